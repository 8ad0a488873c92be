"""What the programs' command lines have in common: exit statuses, output, usage errors, numbers."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

# The exit status says what a script should do next.  64 to 77 are those of sysexits(3).
OK, FAILED, USAGE, TRY_AGAIN, NOT_ALLOWED = 0, 1, 64, 75, 77


class Failure(Exception):
    """Why a program ends, in one line, and with which status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


def show(text: str, *, needed: bool = False) -> None:
    """Print what was asked for.  Raises Failure when it cannot be printed.

    A reader who has gone, as head(1) does, has seen enough: that is no failure, and no word is said
    of it, unless what is printed is `needed`, for there will be no other way to learn it.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # What is left in the buffer would be tried again when Python ends, and complained of.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if needed or not isinstance(error, BrokenPipeError):
            raise Failure(f"standard output: {error.strerror}") from None


def complain(text: str) -> None:
    """Say on standard error what is wrong; the exit status says it also to who cannot read that."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _formatter(prog: str) -> argparse.HelpFormatter:
    # Asked for the width, argparse imports shutil, archives and all, at each start.
    return argparse.HelpFormatter(prog, width=78)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, then the usage; ends with USAGE."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_formatter, **options)

    def error(self, message: str) -> NoReturn:
        complain(
            f"{self.prog}: {message.removeprefix('argument ')}\n{self.format_usage().rstrip()}"
        )
        raise SystemExit(USAGE)

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse prints --help and --version with this, and leaves the rest to Python's end.
        try:
            show(message.rstrip("\n"))
        except Failure as failure:
            complain(f"{self.prog}: {failure}")
            raise SystemExit(FAILED) from None


def in_range(least: int, most: int) -> Callable[[str], int]:
    """A parser of numbers in that range, for `type=` of an argument."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!a} is not a number from {least} to {most}")
        return int(text)

    return parse
