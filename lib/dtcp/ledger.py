"""What has been done to the host, on disk, so that the next start can undo what a killed one left.

The ledger lies beside the pid file, `.state` in place of `.pid`.  It is written before each step
runs, and replaced as a whole, so that it is never behind the host and never half of anything.

A group may read it, for --status.  So nothing in it is secret: neither the password nor the key of
a tunnel over UDP gets here.  Who may read a file may lock it, and so nothing but --status depends
on the lock that says that a ledger's writer lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from typing import NamedTuple

from dtcp import plan, private, status
from dtcp.errors import Error
from dtcp.look import NAME
from dtcp.plan import Undo
from dtcp.status import Facts

LARGEST = 1 << 20  # bytes


class LedgerError(Error):
    """The ledger cannot be read or written."""


class Left(NamedTuple):
    """What an earlier run left: the undos in the order to run them, and whose interface it was."""

    undo: tuple[Undo, ...]
    tunnel: str | None
    mark: str


class Ledger:
    """The ledger at `path`.  Only who holds the pid file's lock may write it.

    Beside what is to be undone it holds facts about the tunnel, for --status.  Members of the
    group with the number `readers`, if any, may read what is written.
    """

    def __init__(self, path: str, readers: int | None = None) -> None:
        self.path = path
        self._readers = readers
        self._fd: int | None = None  # of what is on disk: locked for as long as that is so
        self._undo: list[list[str]] = []
        self._tunnel: str | None = None
        self._mark = ""
        self._facts: Facts | None = None

    def record(self, undos: list[Undo], tunnel: str | None, mark: str) -> None:
        """What is to be undone from here on, in that order.  Raises LedgerError."""
        self._undo, self._tunnel, self._mark = list(map(plan.written, undos)), tunnel, mark
        self._write()

    def tell(self, facts: Facts) -> None:
        """Facts for --status.  Raises LedgerError."""
        self._facts = facts
        self._write()

    def close(self) -> None:
        """Remove it, unless something is left that the next start has to undo.

        What an earlier run has left, and nobody undid or could even read, stays as well.
        """
        if self._fd is not None and not self._undo:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._hold(None)

    def _write(self) -> None:
        import json

        text = json.dumps(
            {
                "uptime": time.monotonic(),
                "tunnel": self._tunnel,
                "mark": self._mark,
                "undo": self._undo,
                "facts": self._facts._asdict() if self._facts else {},
            },
            indent=1,
        )
        # Beside it, for rename(2) to replace it atomically; not to be followed, not to be read.
        new, fd = f"{self.path}.new", None
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            fd = os.open(new, flags, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # while nobody else can open it
            with open(fd, "w", closefd=False) as file:
                file.write(text)
            if self._readers is not None:
                os.fchown(fd, -1, self._readers)
                os.fchmod(fd, 0o640)
            os.rename(new, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(new)  # on a full disk there may be half of it
            if fd is not None:
                os.close(fd)
            raise LedgerError(f"{self.path}: {error.strerror}") from None
        self._hold(fd)

    def _hold(self, fd: int | None) -> None:
        """Have this one open, instead of the one before."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = fd

    def facts(self) -> Facts | None:
        """What a running instance tells of itself.  Raises LedgerError."""
        found = self._load()
        return status.read(found.get("facts")) if isinstance(found, dict) else None

    def left(self) -> Left | None:
        """What an earlier run left to undo, or None.  Raises LedgerError.

        Only commands that a plan could have made are taken from it.  With a machine that has been
        started anew all of it is gone, and what is there of the same name is somebody else's.
        """
        match self._load():
            case None | {"undo": []}:
                return None
            case {"uptime": float(uptime)} if uptime > time.monotonic():
                return None
            case {"tunnel": str() | None as tunnel, "mark": str(mark), "undo": list(undo)}:
                written = [list(map(str, words)) for words in undo if isinstance(words, list)]
                undos = [known for words in written if (known := plan.read(words)) is not None]
                if len(undos) == len(undo) and (tunnel is None or re.fullmatch(NAME, tunnel)):
                    return Left(tuple(undos), tunnel, mark)
        raise LedgerError(f"{self.path}: holds what dtcpc cannot have written; remove it")

    def _load(self) -> object:
        import json

        try:
            return json.loads(private.read(self.path, LARGEST, LedgerError))
        except FileNotFoundError:
            return None
        except ValueError:
            raise LedgerError(f"{self.path}: not readable; remove it") from None
