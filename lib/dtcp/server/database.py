"""One SQLite file that two programs write at the same time: private, opened, with its schema.

That no address is ever given to two is not a matter of the programs' care: the schema refuses a
span that overlaps another, and one that a standing tunnel still holds, in whatever order things
happen and whoever is killed in between.

Passwords are in the clear: the digest of DTCP cannot be computed without.  So the file is for its
owner alone, in a directory in which nobody else can put anything in its place.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any

from dtcp.errors import NOT_ALLOWED, Error

PATIENCE = 5.0  # seconds to wait for another program that is writing
HASTE = 0.2  # seconds, when the one before us has waited in vain

_APPLICATION = 0x44544350  # PRAGMA application_id: "DTCP"
_VERSION = 3  # PRAGMA user_version: of the schema

# Addresses are blobs of 16 octets, so that they sort as they should.  Spans never overlap, so of
# those that begin before the end of a new one, only the last can reach into it.
#
# A span with a pool is a lease; one without is fixed, and has a number among its user's.
#
# A pool that has been used has its room here: where there may be pieces that nobody has.  At first
# that is all of it.  Who looks for a piece strikes off what is taken, and what is given back is
# added, as `used`; so what there is not need not be looked for, however much is taken.
_SPANS = """
CREATE TABLE span (
    first BLOB PRIMARY KEY NOT NULL CHECK (length(first) = 16),
    last BLOB UNIQUE NOT NULL CHECK (length(last) = 16 AND first <= last),
    user TEXT NOT NULL REFERENCES user ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('pair', 'prefix')),
    pool TEXT,
    number INTEGER
) WITHOUT ROWID;
CREATE INDEX span_of_user ON span (user);

CREATE TABLE pool (
    name TEXT PRIMARY KEY NOT NULL,
    kind TEXT NOT NULL,
    first BLOB NOT NULL,
    last BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE room (
    pool TEXT NOT NULL REFERENCES pool ON DELETE CASCADE,
    used INTEGER NOT NULL,
    first BLOB NOT NULL,
    last BLOB NOT NULL,
    PRIMARY KEY (pool, used, first, last)
) WITHOUT ROWID;
CREATE TRIGGER pool_is_new AFTER INSERT ON pool
BEGIN INSERT INTO room VALUES (new.name, 0, new.first, new.last); END;

CREATE TRIGGER span_is_given_back AFTER DELETE ON span
BEGIN
    INSERT OR IGNORE INTO room SELECT name, 1, old.first, old.last FROM pool
    WHERE first <= old.last AND last >= old.first;
END;
CREATE TRIGGER held_is_given_back AFTER DELETE ON held
WHEN NOT EXISTS (SELECT 1 FROM span WHERE first = old.first)
BEGIN
    INSERT OR IGNORE INTO room SELECT name, 1, old.first, old.last FROM pool
    WHERE first <= old.last AND last >= old.first;
END;

CREATE TRIGGER span_is_free BEFORE INSERT ON span
WHEN (SELECT last FROM span WHERE first <= new.last ORDER BY first DESC LIMIT 1) >= new.first
BEGIN SELECT raise(ABORT, 'overlap'); END;

CREATE TRIGGER span_is_not_held BEFORE INSERT ON span
WHEN EXISTS (
    SELECT 1 FROM (SELECT last, user FROM held WHERE first <= new.last ORDER BY first DESC LIMIT 1)
    WHERE last >= new.first AND user <> new.user)
BEGIN SELECT raise(ABORT, 'held'); END;

CREATE TRIGGER span_stays BEFORE UPDATE OF first, last ON span
BEGIN SELECT raise(ABORT, 'a span cannot move'); END;

CREATE TRIGGER held_is_nobody_elses BEFORE INSERT ON held
WHEN EXISTS (
    SELECT 1 FROM (SELECT last, user FROM span WHERE first <= new.last ORDER BY first DESC LIMIT 1)
    WHERE last >= new.first AND user <> new.user)
BEGIN SELECT raise(ABORT, 'overlap'); END;
"""

# Of version 2; what came later is added to it (_LATER).
_SCHEMA = f"""
CREATE TABLE user (
    name TEXT PRIMARY KEY NOT NULL,
    password BLOB NOT NULL,
    types TEXT NOT NULL,
    expires TEXT,
    disabled INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE tunnel (
    user TEXT PRIMARY KEY NOT NULL,
    type TEXT NOT NULL,
    local TEXT NOT NULL,
    remote TEXT NOT NULL,
    server TEXT,
    client TEXT,
    prefixes TEXT NOT NULL,
    own_port INTEGER NOT NULL,
    port INTEGER NOT NULL,
    interface TEXT UNIQUE NOT NULL,
    mark TEXT NOT NULL,
    node TEXT NOT NULL,
    kept INTEGER NOT NULL,
    since REAL NOT NULL,
    UNIQUE (local, remote, own_port)
) WITHOUT ROWID;

CREATE TABLE unreachable (prefix TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID;

CREATE TABLE held (
    first BLOB PRIMARY KEY NOT NULL,
    last BLOB UNIQUE NOT NULL,
    user TEXT NOT NULL REFERENCES tunnel ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX held_of_user ON held (user);

CREATE TABLE change (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    user TEXT UNIQUE NOT NULL
);
CREATE TRIGGER user_is_new AFTER INSERT ON user
BEGIN INSERT OR REPLACE INTO change (user) VALUES (new.name); END;
CREATE TRIGGER user_has_changed AFTER UPDATE ON user
BEGIN INSERT OR REPLACE INTO change (user) VALUES (new.name); END;
CREATE TRIGGER user_is_gone AFTER DELETE ON user
BEGIN INSERT OR REPLACE INTO change (user) VALUES (old.name); END;

CREATE TRIGGER held_is_free BEFORE INSERT ON held
WHEN (SELECT last FROM held WHERE first <= new.last ORDER BY first DESC LIMIT 1) >= new.first
BEGIN SELECT raise(ABORT, 'held'); END;

{_SPANS}

PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = 2;
"""

# What makes the schema of a version that of the next one.
_LATER = {
    # Pools had no room, but a number for each piece, with an index that misled SQLite.
    1: f"""
CREATE TABLE kept AS
    SELECT first, last, user, kind, pool, CASE WHEN pool IS NULL THEN number END FROM span;
DROP TRIGGER held_is_nobody_elses;
DROP TABLE span;
{_SPANS}
INSERT INTO span SELECT * FROM kept;
DROP TABLE kept;
PRAGMA user_version = 2;
""",
    # What users have done: when they last had a tunnel, and logged in, in seconds since the epoch,
    # and the bytes of all tunnels that have ended.  The first of it may be there.
    #
    # And of a tunnel, what its interface had counted before it was made, and whether the server is
    # to end it.
    2: """
CREATE TABLE IF NOT EXISTS seen (
    user TEXT PRIMARY KEY NOT NULL REFERENCES user ON DELETE CASCADE,
    last REAL NOT NULL
) WITHOUT ROWID;
ALTER TABLE seen ADD COLUMN login REAL;
ALTER TABLE seen ADD COLUMN received INTEGER NOT NULL DEFAULT 0;
ALTER TABLE seen ADD COLUMN sent INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tunnel ADD COLUMN received INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tunnel ADD COLUMN sent INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tunnel ADD COLUMN kicked INTEGER NOT NULL DEFAULT 0;
PRAGMA user_version = 3;
""",
}


class StoreError(Error):
    """The store cannot be had, or refuses."""


class NotAllowed(StoreError):
    """The store may be somebody else's to read or write."""

    status = NOT_ALLOWED


class Busy(StoreError):
    """Nothing can be written for now: another program does, and takes its time; or a full disk."""


class InvalidRow(StoreError):
    """What the store has of one user makes no sense; everybody else's may."""


class Database:
    """The file at `path`; raises StoreError, from every method.

    One object is for one thread at a time, and for one process: not across fork(2).
    """

    def __init__(self, path: str, *, create: bool = False) -> None:
        try:
            import sqlite3
        except ImportError:  # FreeBSD has it in a package of its own
            package = "py{}{}-sqlite3".format(*sys.version_info)
            raise StoreError(f"Python's module sqlite3 is missing; install {package}") from None
        self.path = path
        self._errors = sqlite3
        prepare(path, create=create)
        self._connect()

    def _connect(self) -> None:
        try:
            file = _identity(self.path)  # before it is opened: see `replaced`
            self._db = self._errors.connect(
                self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
        except (OSError, self._errors.Error) as error:
            raise StoreError(f"{self.path}: {error}") from None
        self._hasty = False
        # Whatever somebody else may have written, it is no reason to fail for all rows.
        self._db.text_factory = lambda octets: octets.decode("utf-8", "replace")
        try:
            with self._failing():
                self._open()
        except BaseException:
            self._db.close()
            raise
        self._file = file

    def _open(self) -> None:
        # Readers do not wait for a writer, nor a writer for them; and what was committed is there
        # however a process ends.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("PRAGMA secure_delete = ON")  # a password that was changed is gone
        if self._pragma("user_version") == 0:
            with self._writing():
                if self._pragma("user_version") == 0:  # nobody was quicker
                    if self._one("SELECT count(*) FROM sqlite_master")[0]:
                        raise StoreError(f"{self.path}: not a store of dtcps")
                    for statement in _statements(_SCHEMA):
                        self._db.execute(statement)
        if self._pragma("application_id") != _APPLICATION:
            raise StoreError(f"{self.path}: not a store of dtcps")
        if self._pragma("user_version") in _LATER:
            with self._writing():
                while (version := self._pragma("user_version")) in _LATER:
                    for statement in _statements(_LATER[version]):
                        self._db.execute(statement)
        if self._pragma("user_version") != _VERSION:
            raise StoreError(f"{self.path}: made by a later version of dtcps")

    def close(self) -> None:
        self._db.close()

    def leave(self) -> None:
        """Leave nothing in the log, which would be taken for that of the file there is now.

        SQLite itself empties it at the end, but not of a file that has been moved.
        """
        with self._failing():
            if self._one("PRAGMA wal_checkpoint(TRUNCATE)")[0]:
                raise Busy(f"{self.path}: another program is using what was there before")

    def replaced(self) -> bool:
        """Whether another file has been put in the place of the one that is open."""
        try:
            return _identity(self.path) != self._file
        except OSError:
            return False  # there will be one soon; this one is as good as ever until then

    def reopen(self) -> None:
        """Open what is at the path now, after `leave` and `close`.

        No object of this process may have the old file open any more: SQLite knows the two files
        beside it by their names, and would take those of the one for the other's.
        """
        prepare(self.path, create=False)
        self._connect()

    def copy(self, path: str) -> None:
        """Copy what there is at this moment, but for what belongs to the host, to an empty file."""
        with self._failing(), contextlib.closing(self._errors.connect(path)) as copy:
            self._db.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file is all there is to it
            with copy:
                for table in ("held", "tunnel", "unreachable"):
                    copy.execute(f"DELETE FROM {table}")

    def verify(self) -> None:
        """See that all is as our own programs would have made it."""
        with self._failing():
            if self._db.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                raise StoreError(f"{self.path}: malformed")
            with contextlib.closing(self._errors.connect(":memory:")) as ours:
                for script in (_SCHEMA, *(_LATER[number] for number in range(2, _VERSION))):
                    ours.executescript(script)
                wanted, found = (
                    {*db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")}
                    for db in (ours, self._db)
                )
            if wanted != found:
                raise StoreError(f"{self.path}: not a store of dtcps")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done in this block, or nothing of it."""
        with self._failing(), self._writing():
            yield

    def _one(self, query: str, *values: object) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._db.execute(query, values).fetchone()
        return row

    def _pragma(self, name: str) -> int:
        return int(self._one(f"PRAGMA {name}")[0])

    @contextlib.contextmanager
    def _writing(self, *, lasting: bool = True) -> Iterator[None]:
        """A transaction that nobody else writes in; inside another one, part of it.

        `lasting`: it is on the disk when this ends, so not even a crash of the machine undoes it.
        The tunnels do not survive that either, and need not wait for the disk.
        """
        if self._db.in_transaction:
            yield
            return
        self._db.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
        # Where one has waited in vain, those behind it need not do so as well, one by one.
        patience = HASTE if self._hasty else PATIENCE
        self._db.execute(f"PRAGMA busy_timeout = {patience * 1000:.0f}")
        self._hasty = True
        self._db.execute("BEGIN IMMEDIATE")
        self._hasty = False
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # which SQLite has ended itself if the disk is full
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """What SQLite says, in our words."""
        try:
            yield
        except self._errors.OperationalError as error:
            if "locked" in str(error):
                raise Busy(
                    f"{self.path}: another program has been writing for {PATIENCE:.0f} s"
                ) from None
            kind = Busy if "is full" in str(error) else StoreError
            raise kind(f"{self.path}: {error}") from None
        except self._errors.Error as error:
            raise StoreError(f"{self.path}: {error}") from None


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; executescript() would commit before it begins."""
    import sqlite3

    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _identity(path: str) -> tuple[int, int]:
    """Of the file that is there now.  Raises OSError."""
    info = os.stat(path)
    return info.st_dev, info.st_ino


def prepare(path: str, *, create: bool) -> None:
    """See that a store is as private as it must be; make an empty file where there is none.

    Raises StoreError.
    """
    # Looked at by name: nobody else can change what is in that directory.  (Opening and closing
    # the file would lose the locks that SQLite has on it in this process, see fcntl(2).)
    check_directory(path, create=create)
    with _missing_or_not_allowed(path):
        if create:
            with contextlib.suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                os.close(os.open(path, flags, 0o600))
        _check(path, os.lstat(path), stat.S_ISREG, "a regular file", 0o077, "600")
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            raise NotAllowed(f"{path}: the file system is read-only; mount it for writing")
        if not os.access(path, os.R_OK | os.W_OK):
            raise NotAllowed(f"{path}: Permission denied")


def check_directory(path: str, *, create: bool) -> None:
    """The same of the directory of a store."""
    directory = os.path.dirname(os.path.abspath(path))
    with _missing_or_not_allowed(path):
        if create:
            above = os.path.dirname(directory)
            if not os.path.isdir(above):
                raise StoreError(f"{above}: no such directory")
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        _check(directory, os.stat(directory), stat.S_ISDIR, "a directory", 0o022, "go-w")


def check_copy(path: str) -> None:
    """See that a file may be a store in a single file.  Raises OSError, StoreError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise StoreError(f"{path}: not a regular file")
    with open(path, "rb") as file:
        head = file.read(100)
    # The empty one would be made a store.
    if head[:16] != b"SQLite format 3\0" or head[68:72] != _APPLICATION.to_bytes(4, "big"):
        raise StoreError(f"{path}: not a store of dtcps")
    for suffix in ("-wal", "-journal"):
        if os.path.exists(path + suffix):
            raise StoreError(f"{path}: in use, as {path}{suffix} says; use backup")


@contextlib.contextmanager
def _missing_or_not_allowed(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; dtcpauth add makes it") from None
    except PermissionError as error:
        raise NotAllowed(f"{error.filename}: {error.strerror}") from None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None


def _check(
    path: str, info: os.stat_result, is_right: Any, what: str, forbidden: int, mode: str
) -> None:
    if not is_right(info.st_mode):
        raise StoreError(f"{path}: not {what}")
    if info.st_uid not in (0, os.geteuid()):
        raise StoreError(f"{path}: belongs to somebody else; chown root {path}")
    if info.st_mode & forbidden:
        raise StoreError(f"{path}: accessible by others; chmod {mode} {path}")
