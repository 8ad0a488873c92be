"""What ends a program: an error has one line for people, and an exit status."""

from __future__ import annotations

import shlex

# The exit status tells a script what to do next.  64 to 77 are those of sysexits(3).
OK, FAILED, USAGE, TRY_AGAIN, NOT_ALLOWED = 0, 1, 64, 75, 77


class Error(Exception):
    """The root of our errors.

    Its text is one line, fit for a terminal; `status` is the exit status of a program that it ends.
    """

    status = FAILED


class CommandFailed(Error):
    """A command failed, or said that it worked and did not: its words, and what it said."""

    def __init__(self, words: tuple[str, ...], reason: str) -> None:
        super().__init__(f"{shlex.join(words)}: {reason}")
        self.words, self.reason = words, reason
        self.not_undone: list[CommandFailed] = []  # what the roll-back could not undo


class NotRun(CommandFailed):
    """A command could not be run, or not to its end: what it would have said is not known."""
