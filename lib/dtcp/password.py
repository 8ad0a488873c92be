"""The password: from its file, or asked for on the terminal.  It goes nowhere else."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys

from dtcp import private
from dtcp.errors import Error

LARGEST = 1 << 20  # bytes of a password file


class PasswordError(Error):
    """There is no password to be had, or only an unsafe one."""


def read_private(path: str) -> str:
    """The text of a file that holds secrets.  Raises PasswordError, or FileNotFoundError.

    The file is opened once and checked as opened: a regular file, no symbolic link, of root or the
    caller, without access for group or others, in a directory where nobody else can replace it.
    """
    data = private.read(path, LARGEST + 1, PasswordError, secret=True)
    directory = os.path.dirname(os.path.abspath(path))
    if wrong := private.openness(directory):
        raise PasswordError(f"{directory}: {wrong}")
    if len(data) > LARGEST:
        raise PasswordError(f"{path}: too large for a password file")
    if data.startswith(b"\xef\xbb\xbf"):
        raise PasswordError(f"{path}: begins with a byte order mark; remove it")
    return data.decode("utf-8", "surrogateescape")


def from_file(path: str, server: str, user: str) -> str | None:
    """The password for `user` at `server`, as written on the command line, or None.

    Lines are `server:user:password`; the password may hold colons, and blanks at its end.
    Raises PasswordError, or FileNotFoundError.
    """
    for number, line in enumerate(read_private(path).split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split(":", 2)
        if len(fields) < 3:
            raise PasswordError(f"{path}: line {number} is not server:user:password")
        if fields[:2] == [server, user]:
            if line.endswith("\r"):
                raise PasswordError(f"{path}: line {number} ends in a carriage return")
            if not fields[2]:
                raise PasswordError(f"{path}: line {number} has an empty password")
            return fields[2]
    return None


def from_terminal(prompt: str, instead: str) -> str:
    """Ask on the controlling terminal, without echo; `instead`: what to do where there is none.

    Raises PasswordError.
    The terminal is as it was however this ends; a signal's handler may end it by raising.
    """
    import termios

    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        raise PasswordError(f"no password, and no terminal to ask on; {instead}") from None
    with os.fdopen(terminal, "r+b", buffering=0) as tty:
        try:
            line = _ask(tty, prompt)
        except (OSError, termios.error):
            raise PasswordError("no password: the terminal cannot be read") from None
    password = line.rstrip(b"\n").decode(sys.getfilesystemencoding(), "surrogateescape")
    if not password:
        raise PasswordError("no password given")
    return password


def _ask(tty: io.FileIO, prompt: str) -> bytes:
    import termios

    before = termios.tcgetattr(tty)
    # Stopped by ^Z we would leave a terminal without echo behind.
    stopping = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    silent = list(before)
    silent[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(tty, termios.TCSAFLUSH, silent)
        tty.write(prompt.encode())
        line = b""
        while not line.endswith(b"\n") and (part := tty.read(1024)):
            line += part
        if not line:
            termios.tcgetattr(tty)  # fails when the terminal has hung up: that reads like ^D
        return line
    finally:
        # A terminal that has hung up cannot be put back, and need not be.
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(tty, termios.TCSAFLUSH, before)
            tty.write(b"\n")
        signal.signal(signal.SIGTSTP, stopping)
