"""What the programs' command lines have in common: output, usage errors, converters."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NoReturn

from dtcp.errors import FAILED, USAGE, Error


class Failure(Error):
    """Why a program ends, in one line, and with which status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


class Invalid(Error, argparse.ArgumentTypeError):
    """A word of the command line, or of a file, is not what it should be."""

    status = USAGE


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
            complain(f"{self.prog.split()[0]}: {failure}")  # of a command: the program
            raise SystemExit(FAILED) from None


def in_range(least: int, most: int) -> Callable[[str], int]:
    """A converter of numbers in that range; it raises Invalid."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise Invalid(f"{text!a} is not a number from {least} to {most}")
        return int(text)

    return convert


def matching(pattern: str, what: str) -> Callable[[str], str]:
    """A converter of words that match the pattern as a whole; it raises Invalid.

    `what` is what such a word is, for the message.
    """

    def convert(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise Invalid(f"invalid {what}: {text!a}")
        return text

    return convert


def ipv4(text: str) -> IPv4Address:
    """An IPv4 address.  Raises Invalid."""
    try:
        return IPv4Address(text)
    except ValueError:
        raise Invalid(f"invalid IPv4 address: {text!a}") from None


def ipv6(text: str) -> IPv6Address:
    """An IPv6 address without a scope.  Raises Invalid."""
    try:
        if "%" not in text:
            return IPv6Address(text)
    except ValueError:
        pass
    raise Invalid(f"invalid IPv6 address: {text!a}")
