"""What the programs' command lines have in common: exit statuses, usage errors, numbers."""

from __future__ import annotations

import argparse
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


def _formatter(prog: str) -> argparse.HelpFormatter:
    # Asked for the width, argparse imports shutil, archives and all, at each start.
    return argparse.HelpFormatter(prog, width=78)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, then the usage; ends with USAGE."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_formatter, **options)

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message.removeprefix('argument ')}\n")
        self.print_usage(sys.stderr)
        raise SystemExit(USAGE)


def in_range(least: int, most: int) -> Callable[[str], int]:
    """A parser of numbers in that range, for `type=` of an argument."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!a} is not a number from {least} to {most}")
        return int(text)

    return parse
