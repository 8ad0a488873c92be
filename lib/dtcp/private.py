"""Files in which others have no hand: opened without following a link, and checked as opened."""

from __future__ import annotations

import errno
import os
import stat

from dtcp.errors import Error

WRITING, ANYTHING = 0o022, 0o077  # of a file's mode: others may write, or do anything at all


def open_file(path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the file at `path`, unless that is a symbolic link.  Raises OSError.

    Nothing is waited for, a pipe's other end neither; a file that is made is for its owner only.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # the latter is FreeBSD's
            error.strerror = "is a symbolic link"
        raise


def check(path: str, fd: int, error: type[Error], *, secret: bool = False) -> os.stat_result:
    """See that an open file is a regular one, of root or of us, to which others cannot write.

    Nor can they read a `secret` one, whose owner or mode is to be mended; any other is to be
    removed.  What stat(2) tells of it.  Raises `error`.
    """
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise error(f"{path}: not a regular file")
    if info.st_uid not in (0, os.geteuid()):
        remedy = f"chown root {path}" if secret else "remove it"
        raise error(f"{path}: belongs to somebody else; {remedy}")
    if secret and info.st_mode & ANYTHING:
        what = "readable" if info.st_mode & 0o044 else "accessible"
        raise error(f"{path}: {what} by others; chmod 600 {path}, if it is the password file")
    if info.st_mode & WRITING:
        raise error(f"{path}: writable by others; remove it")
    return info


def openness(directory: str, *, sticky: bool = True) -> str:
    """How others can put another file in the place of one there, and the remedy; or nothing.

    `sticky`: the file is there already, so that with the sticky bit only its owner can.
    Raises OSError.
    """
    info = os.stat(directory)
    if info.st_uid not in (0, os.geteuid()):
        return f"belongs to somebody else; chown root {directory}"
    if info.st_mode & WRITING and not (sticky and info.st_mode & stat.S_ISVTX):
        return f"writable by others; chmod go-w {directory}"
    return ""


def read(path: str, most: int, error: type[Error], *, secret: bool = False) -> bytes:
    """The first `most` bytes of a file that passes `check`.  Raises `error`, FileNotFoundError."""
    try:
        fd = open_file(path)
        try:
            check(path, fd, error, secret=secret)
            with open(fd, "rb", closefd=False) as file:
                return file.read(most)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except OSError as why:
        raise error(f"{path}: {why.strerror}") from None
