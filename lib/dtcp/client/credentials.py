"""Where the password comes from: the password file, or the terminal."""

from __future__ import annotations

import argparse

from dtcp import daemon, password
from dtcp.cli import Failure
from dtcp.client import options as command_line
from dtcp.password import PasswordError


def check(options: argparse.Namespace) -> None:
    """See that nobody would be asked for the password.  Raises Failure, PasswordError."""
    path, line = _path(options), _line(options)
    try:
        found = password.from_file(path, options.server, options.user)
    except FileNotFoundError:
        raise Failure(f"{path}: no such file; it needs mode 600, and a line {line}") from None
    if found is None:
        raise Failure(f"{path}: has no line {line}")


def find(options: argparse.Namespace) -> str:
    """The password, from the password file or the terminal.

    Raises Failure, PasswordError, Stopped.
    """
    path = _path(options)
    try:
        found = password.from_file(path, options.server, options.user)
    except FileNotFoundError:
        if options.auth_file is not None:
            raise Failure(f"{path}: no such file") from None
        found = None
    if found is None:
        found = password.from_terminal(
            f"Password of {options.user} at {options.server}: ",
            f"add a line {_line(options)} to {path} (mode 600)",
        )
    return found


def again(options: argparse.Namespace, before: str, log: daemon.Log) -> str:
    """The password that the file has by now; `before`, where it has none."""
    try:
        return password.from_file(_path(options), options.server, options.user) or before
    except FileNotFoundError:
        return before  # it was typed
    except PasswordError as error:
        log.error(f"{error}; going on with the password of before")
        return before


def _path(options: argparse.Namespace) -> str:
    return command_line.AUTH_FILE if options.auth_file is None else str(options.auth_file)


def _line(options: argparse.Namespace) -> str:
    return f"{options.server}:{options.user}:PASSWORD"
