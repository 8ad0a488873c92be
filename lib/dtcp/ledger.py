"""What has been done to the host, on disk, so that the next start can undo what a killed one left.

The ledger lies beside the pid file, `.state` in place of `.pid`.  It is written before each step
runs, and replaced as a whole, so that it is never behind the host and never half of anything.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

from dtcp import plan
from dtcp.plan import Words


class LedgerError(Exception):
    """The ledger cannot be read or written.  Fit for a terminal."""


class Left(NamedTuple):
    """What an earlier run left: the undos in the order to run them, and whose interface it was."""

    undo: tuple[Words, ...]
    tunnel: str | None
    mark: str


class Ledger:
    """The ledger at `path`.  Only who holds the pid file's lock may write it.

    Beside what is to be undone it holds facts about the tunnel, for --status.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._undo: list[Words] = []
        self._tunnel: str | None = None
        self._mark = ""
        self._facts: dict[str, object] = {}
        self._is_ours = False  # what is on disk is of our writing

    def record(self, undo: list[Words], tunnel: str | None, mark: str) -> None:
        """What is to be undone from here on, in that order.  Raises LedgerError."""
        self._undo, self._tunnel, self._mark = undo, tunnel, mark
        self._write()

    def tell(self, **facts: object) -> None:
        """Facts for --status, beside those told before.  Raises LedgerError."""
        self._facts |= facts
        self._write()

    def close(self) -> None:
        """Remove it, unless something is left that the next start has to undo.

        What an earlier run has left, and nobody undid or could even read, stays as well.
        """
        if self._is_ours and not self._undo:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _write(self) -> None:
        import json

        text = json.dumps(
            {
                "uptime": time.monotonic(),
                "tunnel": self._tunnel,
                "mark": self._mark,
                "undo": self._undo,
                "facts": self._facts,
            },
            indent=1,
        )
        # Beside it, for rename(2) to replace it atomically; not to be followed, not to be read.
        new = f"{self._path}.new"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(new, flags, 0o600), "w") as file:
                file.write(text)
            os.rename(new, self._path)
            self._is_ours = True
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(new)  # on a full disk there may be half of it
            raise LedgerError(f"{self._path}: {error.strerror}") from None

    def facts(self) -> dict[str, object]:
        """What a running instance tells of itself.  Raises LedgerError."""
        found = self._load()
        facts = found.get("facts") if isinstance(found, dict) else None
        return facts if isinstance(facts, dict) else {}

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
                commands = tuple(
                    tuple(map(str, words)) for words in undo if isinstance(words, list)
                )
                known = all(map(plan.is_undo, commands)) and len(commands) == len(undo)
                if known and (tunnel is None or plan.NAME.fullmatch(tunnel)):
                    return Left(commands, tunnel, mark)
        raise LedgerError(f"{self._path}: holds what dtcpc cannot have written; remove it")

    def _load(self) -> object:
        import json

        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                if os.fstat(fd).st_uid not in (0, os.geteuid()):
                    raise LedgerError(f"{self._path}: belongs to somebody else; remove it")
                return json.loads(file.read(1 << 20))
        except FileNotFoundError:
            return None
        except OSError as error:
            # For one, open(2) of FreeBSD says "Too many links".
            why = "is a symbolic link" if os.path.islink(self._path) else error.strerror
            raise LedgerError(f"{self._path}: {why}") from None
        except ValueError:
            raise LedgerError(f"{self._path}: not readable; remove it") from None
