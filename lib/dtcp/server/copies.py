"""A copy of the store, and the store out of a copy, both while a server runs.

A copy is one file.  It holds users, what they have and what they have done, but not what belongs to
the host: the tunnels that stand, and the unreachable routes.  These stay when a copy is restored.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator

from dtcp.server import database
from dtcp.server.database import Busy, NotAllowed, StoreError
from dtcp.server.store import Store

TRIES = 10


def backup(store: Store, path: str) -> None:
    """Copy a store, as it is at this moment, to a file that is not there yet.

    Raises StoreError.
    """
    with _file_beside(path) as name:
        if os.path.lexists(path):
            raise FileExistsError
        store.copy(name)
        os.rename(name, path)


def restore(path: str, file: str) -> int:
    """Put what `backup` has written in the place of a store; how many users are in it.

    The file is checked first, and stays as it is.  Raises StoreError.
    """
    database.check_directory(path, create=True)
    with _file_beside(path) as name:
        with _told_of(file):
            database.check_copy(file)
            shutil.copyfile(file, name)
        try:
            with contextlib.closing(Store(name)) as new:
                new.verify()
                users = len(new.users())
        except StoreError as error:
            raise StoreError(f"{file}: {str(error).removeprefix(f'{name}: ')}") from None
        with _at_rest(path) as old:
            with contextlib.closing(Store(name)) as new:
                new.take_over(*((old.tunnels(), old.unreachable()) if old else ((), ())))
            if old is None:
                _forget_log(path)
            os.rename(name, path)
            # A server that has the old ones open goes on with them until it looks; whoever opens
            # the new store must not find them beside it.
            _forget_log(path)
    return users


@contextlib.contextmanager
def _at_rest(path: str) -> Iterator[Store | None]:
    """The store that there is, with nothing in its log, and nobody writing; None: it is broken."""
    if not os.path.lexists(path):
        yield None
        return
    database.prepare(path, create=False)
    try:
        store = Store(path)
    except Busy:
        raise
    except StoreError:
        yield None
        return
    with contextlib.closing(store):
        for _ in range(TRIES):
            store.leave()
            with store.transaction():
                if not os.path.getsize(f"{path}-wal"):  # nobody was quicker
                    yield store
                    return
        raise Busy(f"{path}: another program writes again and again")


def _forget_log(path: str) -> None:
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


@contextlib.contextmanager
def _file_beside(path: str) -> Iterator[str]:
    """The name of a new file in the directory of that one, which goes unless it is moved."""
    with _told_of(path):
        made = f"{path}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        os.close(os.open(made, flags, 0o600))
        try:
            yield made
            _make_lasting(os.path.dirname(os.path.abspath(path)))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made)


def _make_lasting(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told_of(path: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise StoreError(f"{path}: is there already") from None
    except PermissionError as error:
        raise NotAllowed(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
