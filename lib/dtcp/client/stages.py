"""The stages of --test: a line each on standard output, and what to do where one fails."""

from __future__ import annotations

import time
from collections.abc import Callable

from dtcp import cli
from dtcp.cli import Failure
from dtcp.errors import FAILED, OK, Error

INDENT = 24  # columns of a stage's name and its time


class StageFailed(Failure):
    """Why a stage has failed; its likely cause and the remedy; and the exit status."""

    def __init__(self, text: str, remedy: str, status: int = FAILED) -> None:
        super().__init__(text, status)
        self.remedy = remedy


class Stages:
    """Shows each stage when it is over.

    `name` is that of the one under way, `error` what has failed.
    """

    def __init__(self) -> None:
        self.name = ""
        self.error: Error | None = None
        self._begun = 0.0
        self._not_shown: Failure | None = None

    def begin(self, name: str) -> None:
        self.name, self._begun = name, time.monotonic()

    def passed(self, text: str, seconds: float | None = None) -> None:
        """It went well, in so many seconds (None: since it began).  Raises Failure."""
        self._show(text, time.monotonic() - self._begun if seconds is None else seconds)

    def failed(self, text: str, remedy: str = "") -> None:
        """It did not, and what to do.  Raises Failure."""
        self._show(f"failed: {text}", time.monotonic() - self._begun)
        if remedy:
            self.remark(remedy)

    def remark(self, text: str) -> None:
        """Something about the stage that was shown last.  Raises Failure."""
        self._print(" " * INDENT + text)

    def _show(self, text: str, seconds: float) -> None:
        took = f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
        self._print(f"{self.name}{took:>{INDENT - 2 - len(self.name)}}  {text}")

    def _print(self, line: str) -> None:
        try:
            cli.show(line)
        except Failure as failure:
            self._not_shown = failure  # which is no failure of the stage
            raise

    def run(self, way: Callable[[], None], remedy: Callable[[str, Error], str]) -> int:
        """Go the way, which begins a stage after the other; the exit status.

        `remedy` knows one for a stage and its error, if there is any.  Raises what is no error of
        a stage; and Failure, when a line cannot be shown.
        """
        try:
            way()
        except Error as error:
            if error is self._not_shown:
                raise
            self.error = error
            known = error.remedy if isinstance(error, StageFailed) else remedy(self.name, error)
            self.failed(str(error), known)
            return error.status
        except OSError as error:
            self.failed(error.strerror or str(error))
            return FAILED
        return OK
