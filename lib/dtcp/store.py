"""The server's store: users, what addresses and prefixes are whose, and the tunnels that stand.

One SQLite file, written by dtcpauth(8) and by a running dtcps(8) at the same time.  That no address
is ever given to two is not a matter of the programs' care: the database itself refuses a span that
overlaps another, and one that a standing tunnel still holds, in whatever order things happen and
whoever is killed in between.

Passwords are in the clear: the digest of DTCP cannot be computed without.  So the file is for its
owner alone, in a directory in which nobody else can put anything in its place.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from datetime import date
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any, NamedTuple

from dtcp import pools
from dtcp.grant import Grant
from dtcp.pools import Pool, Span

PATH = "/var/db/dtcps/dtcps.db"
TYPES = ("tunnelonly", "host", "network")  # tunnelroute is another name of the last one
PATIENCE = 5.0  # seconds to wait for another program that is writing

_APPLICATION = 0x44544350  # PRAGMA application_id: "DTCP"
_VERSION = 1  # PRAGMA user_version: of the schema
_INTEGERS = 1 << 63  # SQLite's end below it

# Addresses are blobs of 16 octets, so that they sort as they should.  Spans never overlap, so of
# those that begin before the end of a new one, only the last can reach into it.
_SCHEMA = f"""
CREATE TABLE user (
    name TEXT PRIMARY KEY NOT NULL,
    password BLOB NOT NULL,
    types TEXT NOT NULL,
    expires TEXT,
    disabled INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE span (
    first BLOB PRIMARY KEY NOT NULL CHECK (length(first) = 16),
    last BLOB UNIQUE NOT NULL CHECK (length(last) = 16 AND first <= last),
    user TEXT NOT NULL REFERENCES user ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('pair', 'prefix')),
    pool TEXT,
    number INTEGER,
    UNIQUE (pool, number)
) WITHOUT ROWID;
CREATE INDEX span_of_user ON span (user);

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

CREATE TRIGGER held_is_free BEFORE INSERT ON held
WHEN (SELECT last FROM held WHERE first <= new.last ORDER BY first DESC LIMIT 1) >= new.first
BEGIN SELECT raise(ABORT, 'held'); END;

CREATE TRIGGER held_is_nobody_elses BEFORE INSERT ON held
WHEN EXISTS (
    SELECT 1 FROM (SELECT last, user FROM span WHERE first <= new.last ORDER BY first DESC LIMIT 1)
    WHERE last >= new.first AND user <> new.user)
BEGIN SELECT raise(ABORT, 'overlap'); END;

PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""


class StoreError(Exception):
    """The store cannot be had, or refuses.  Fit for a terminal."""


class NotAllowed(StoreError):
    """The store may be somebody else's to read or write."""


class User(NamedTuple):
    """What a user may have; the password is not among it."""

    name: str
    types: tuple[str, ...] = TYPES
    address: IPv6Address | None = None  # the client's of a fixed pair; None: one out of the pool
    prefixes: tuple[IPv6Network, ...] = ()  # fixed; none: one out of the pool
    expires: date | None = None  # the last day
    disabled: bool = False

    def barred(self, today: date) -> str:
        """Why this user may not have a tunnel on that day, or nothing."""
        if self.disabled:
            return "this user is disabled"
        if self.expires is not None and today > self.expires:
            return "this user has expired"
        return ""


class Lease(NamedTuple):
    """A span out of a pool that a user keeps."""

    user: str
    kind: str  # `pair` or `prefix`
    span: Span
    pool: str


class Tunnel(NamedTuple):
    """A tunnel that stands: enough for another server process to take it over."""

    user: str
    type: str
    grant: Grant  # as the client sees it
    interface: str
    mark: str
    node: str  # of netgraph, over UDP
    kept: bool  # the interface was not made for it, and stays
    since: float  # seconds since the epoch


class Store:
    """The store at `path`; raises StoreError, from every method.

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
        _prepare(path, create)
        try:
            self._db = sqlite3.connect(
                path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from None
        try:
            with self._failing():
                self._open()
        except BaseException:
            self._db.close()
            raise

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
        if self._pragma("user_version") != _VERSION:
            raise StoreError(f"{self.path}: made by a later version of dtcps")

    def close(self) -> None:
        self._db.close()

    # --- users --------------------------------------------------------------------------------

    def password(self, name: str) -> str | None:
        """A user's password; None for a user who is not there."""
        with self._failing():
            row = self._db.execute("SELECT password FROM user WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0]).decode("utf-8", "surrogateescape")

    def user(self, name: str) -> User | None:
        """What a user may have; None for one who is not there."""
        return next(self._users("WHERE name = ?", (name,)), None)

    def users(self) -> list[User]:
        """All users, by name."""
        return list(self._users("ORDER BY name", ()))

    def _users(self, which: str, values: tuple[object, ...]) -> Iterator[User]:
        query = f"SELECT name, types, expires, disabled FROM user {which}"
        with self._failing():
            for name, types, expires, disabled in self._db.execute(query, values).fetchall():
                fixed = self._db.execute(
                    "SELECT kind, first, last FROM span WHERE user = ? AND pool IS NULL"
                    " ORDER BY number",
                    (name,),
                ).fetchall()
                spans = [(kind, _span(first, last)) for kind, first, last in fixed]
                yield User(
                    name,
                    tuple(types.split()),
                    next((span.client for kind, span in spans if kind == "pair"), None),
                    tuple(span.network for kind, span in spans if kind == "prefix"),
                    date.fromisoformat(expires) if expires else None,
                    bool(disabled),
                )

    def put(self, user: User, password: str | None = None) -> None:
        """Make a user, or make one what is said here; without a password he keeps his."""
        expires = user.expires.isoformat() if user.expires else None
        facts = (" ".join(user.types), expires, user.disabled, user.name)
        with self._failing(), self._writing():
            changed = self._db.execute(
                "UPDATE user SET types = ?, expires = ?, disabled = ? WHERE name = ?", facts
            ).rowcount
            if not changed and password is None:
                raise StoreError(f"{user.name}: no such user")
            if not changed:
                self._db.execute(
                    "INSERT INTO user (types, expires, disabled, name, password)"
                    " VALUES (?, ?, ?, ?, x'')",
                    facts,
                )
            if password is not None:
                self._db.execute(
                    "UPDATE user SET password = ? WHERE name = ?",
                    (password.encode("utf-8", "surrogateescape"), user.name),
                )
            self._fix(user)

    def _fix(self, user: User) -> None:
        """Give a user his fixed spans; what he had out of a pool instead is free again."""
        wanted = [("prefix", str(prefix), pools.whole(prefix)) for prefix in user.prefixes]
        if user.address is not None:
            wanted.append(("pair", str(user.address), pools.pair(user.address)))
        self._db.execute("DELETE FROM span WHERE user = ? AND pool IS NULL", (user.name,))
        for number, (kind, what, span) in enumerate(wanted):
            self._db.execute(
                "DELETE FROM span WHERE user = ? AND kind = ? AND pool IS NOT NULL",
                (user.name, kind),
            )
            try:
                self._give(user.name, kind, span, None, number)
            except self._errors.IntegrityError:
                raise StoreError(f"{what} overlaps what {self._owner(span)} has") from None

    def _owner(self, span: Span) -> str:
        for table in ("span", "held"):
            row = self._db.execute(
                f"SELECT user FROM {table} WHERE first <= ? AND last >= ?",
                (span.last.packed, span.first.packed),
            ).fetchone()
            if row is not None:
                return f"{row[0]}" if table == "span" else f"a tunnel of {row[0]} still"
        return "somebody else"

    def delete(self, name: str) -> None:
        """Delete a user; what he had is free when his tunnel has gone."""
        with self._failing(), self._writing():
            if not self._db.execute("DELETE FROM user WHERE name = ?", (name,)).rowcount:
                raise StoreError(f"{name}: no such user")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done in this block, or nothing of it."""
        with self._failing(), self._writing():
            yield

    def fixed(self, span: Span) -> tuple[str, IPv6Network] | None:
        """A fixed prefix that overlaps these addresses, and whose it is."""
        with self._failing():
            row = self._db.execute(
                "SELECT user, first, last FROM ("
                "  SELECT * FROM (SELECT * FROM span WHERE first <= :first"
                "    ORDER BY first DESC LIMIT 1) WHERE last >= :first"
                "  UNION ALL"
                "  SELECT * FROM span WHERE first > :first AND first <= :last"
                ") WHERE kind = 'prefix' AND pool IS NULL LIMIT 1",
                {"first": span.first.packed, "last": span.last.packed},
            ).fetchone()
        return None if row is None else (row[0], _span(row[1], row[2]).network)

    def changes(self, since: int | None = None) -> tuple[int, list[str]]:
        """The number of the latest change of a user, and the users changed after `since`."""
        with self._failing():
            if since is None:
                return self._one("SELECT coalesce(max(number), 0) FROM change")[0], []
            rows = self._db.execute(
                "SELECT number, user FROM change WHERE number > ? ORDER BY number", (since,)
            ).fetchall()
        return (rows[-1][0] if rows else since), [user for _, user in rows]

    # --- addresses ----------------------------------------------------------------------------

    def lease(self, name: str, among: Iterable[Pool]) -> Span | None:
        """The span that a user has out of one of these pools (of one kind); None: all are empty.

        Who comes back gets what he had, as long as it is a piece of one of them.
        """
        usable = tuple(among)
        with self._failing():
            if (found := self._leased(name, usable)) is not None:
                span, now, before = found
                if now != before:  # the pool has grown, say
                    with self._writing():
                        self._db.execute(
                            "UPDATE span SET pool = ?, number = ? WHERE first = ? AND user = ?",
                            (*now, span.first.packed, name),
                        )
                return span
            with self._writing():
                for pool in usable:
                    # One out of a pool that is no more goes back.
                    self._db.execute(
                        "DELETE FROM span WHERE user = ? AND kind = ? AND pool IS NOT NULL",
                        (name, pool.kind),
                    )
                    free = self._free(name, pool)
                    if free is not None:
                        number, span = free
                        self._give(name, pool.kind, span, str(pool), number)
                        return span
        return None

    def leases(self) -> list[Lease]:
        """All that is leased, in the order of the addresses."""
        with self._failing():
            rows = self._db.execute(
                "SELECT user, kind, first, last, pool FROM span WHERE pool IS NOT NULL"
                " ORDER BY first"
            ).fetchall()
        return [Lease(user, kind, _span(*ends), pool) for user, kind, *ends, pool in rows]

    def leased(self, name: str, among: Iterable[Pool]) -> Span | None:
        """The span that a user has out of one of these pools already."""
        with self._failing():
            found = self._leased(name, among)
        return None if found is None else found[0]

    def _leased(
        self, name: str, among: Iterable[Pool]
    ) -> tuple[Span, tuple[str, int | None], tuple[str, int | None]] | None:
        """That span, its pool and number among these, and those that it is kept under.

        A number that SQLite cannot hold is none: it only tells where to look for the next piece.
        """
        rows = self._db.execute(
            "SELECT first, last, pool, number FROM span WHERE user = ? AND pool IS NOT NULL",
            (name,),
        ).fetchall()
        for pool in among:
            for first, last, *before in rows:
                span = _span(first, last)
                if (number := pool.number(span)) is not None:
                    now = (str(pool), number if number < _INTEGERS else None)
                    return span, now, (before[0], before[1])
        return None

    def _free(self, name: str, pool: Pool) -> tuple[int, Span] | None:
        """A piece of a pool that nobody has."""
        # Behind the last one first, which costs a look; what was given back is used again last,
        # when whoever had it has most probably forgotten it.
        (top,) = self._one("SELECT max(number) FROM span WHERE pool = ?", str(pool))
        for number in (0 if top is None else top + 1, 0):
            while (span := pool.piece(number)) is not None:
                taken = self._in_the_way(name, span)
                if taken is None:
                    return number, span
                number = max(number + 1, pool.behind(taken))
        return None

    def _in_the_way(self, name: str, span: Span) -> IPv6Address | None:
        """The last address of what is given or held in this span."""
        row = self._db.execute(
            "SELECT max(last) FROM ("
            "  SELECT * FROM (SELECT last FROM span WHERE first <= :last"
            "    ORDER BY first DESC LIMIT 1)"
            "  UNION ALL"
            "  SELECT * FROM (SELECT last FROM held WHERE first <= :last AND user <> :user"
            "    ORDER BY first DESC LIMIT 1)"
            ") WHERE last >= :first",
            {"first": span.first.packed, "last": span.last.packed, "user": name},
        ).fetchone()
        return None if row[0] is None else IPv6Address(bytes(row[0]))

    def _give(self, name: str, kind: str, span: Span, pool: str | None, number: int) -> None:
        self._db.execute(
            "INSERT INTO span (first, last, user, kind, pool, number) VALUES (?, ?, ?, ?, ?, ?)",
            (span.first.packed, span.last.packed, name, kind, pool, number),
        )

    # --- tunnels ------------------------------------------------------------------------------

    def tunnels(self) -> list[Tunnel]:
        """The tunnels that stand, as far as anybody knows."""
        with self._failing():
            rows = self._db.execute("SELECT * FROM tunnel").fetchall()
        return [_tunnel(row) for row in rows]

    def keep(self, tunnel: Tunnel) -> list[str]:
        """A tunnel has been made.  Refused when anything of it is another's, or held.

        Whoever had an interface of that name has it no more, for this one was just made: the names
        of these users, who have no tunnel now.
        """
        grant = tunnel.grant
        own_port, port = (grant.ports[1], grant.ports[0]) if grant.ports else (0, 0)
        held = [pools.whole(prefix) for prefix in grant.prefixes]
        if grant.inner is not None and grant.peer is not None:
            held.append(Span(grant.peer, grant.inner))
        with self._failing(), self._writing(lasting=False):
            losers = self._db.execute(
                "SELECT user FROM tunnel WHERE interface = ? AND user <> ?",
                (tunnel.interface, tunnel.user),
            ).fetchall()
            try:
                self._db.execute(
                    "DELETE FROM tunnel WHERE user = ? OR interface = ?",
                    (tunnel.user, tunnel.interface),
                )
                self._db.execute(
                    "INSERT INTO tunnel VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(tunnel.user, tunnel.type, str(grant.local), str(grant.remote)),
                        *(_text(grant.peer), _text(grant.inner)),
                        " ".join(map(str, grant.prefixes)),
                        *(own_port, port, tunnel.interface, tunnel.mark, tunnel.node),
                        *(tunnel.kept, tunnel.since),
                    ),
                )
                self._db.executemany(
                    "INSERT INTO held VALUES (?, ?, ?)",
                    [(span.first.packed, span.last.packed, tunnel.user) for span in held],
                )
            except self._errors.IntegrityError as error:
                raise StoreError(f"{tunnel.user}: what the tunnel has is taken: {error}") from None
        return [user for (user,) in losers]

    def forget(self, user: str) -> None:
        """A user's tunnel has gone, and holds nothing any more."""
        with self._failing(), self._writing(lasting=False):
            self._db.execute("DELETE FROM tunnel WHERE user = ?", (user,))

    def unreachable(self) -> list[IPv6Network]:
        """The prefixes for which a server has made unreachable routes."""
        with self._failing():
            rows = self._db.execute("SELECT prefix FROM unreachable").fetchall()
        return [IPv6Network(row[0]) for row in rows]

    def set_unreachable(self, prefixes: Iterable[IPv6Network]) -> None:
        """For these it has, or is about to."""
        with self._failing(), self._writing(lasting=False):
            self._db.execute("DELETE FROM unreachable")
            rows = [(str(prefix),) for prefix in prefixes]
            self._db.executemany("INSERT INTO unreachable VALUES (?)", rows)

    # --- SQLite -------------------------------------------------------------------------------

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
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """What SQLite says, in our words."""
        try:
            yield
        except self._errors.OperationalError as error:
            if "locked" in str(error):
                raise StoreError(
                    f"{self.path}: another program has been writing for {PATIENCE:.0f} s"
                ) from None
            raise StoreError(f"{self.path}: {error}") from None
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


def _prepare(path: str, create: bool) -> None:
    """See that a store is as private as it must be; make an empty file where there is none."""
    # Looked at by name: nobody else can change what is in that directory.  (Opening and closing
    # the file would lose the locks that SQLite has on it in this process, see fcntl(2).)
    directory = os.path.dirname(os.path.abspath(path))
    try:
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        _check(directory, os.stat(directory), stat.S_ISDIR, "a directory", 0o022, "go-w")
        if create:
            with contextlib.suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                os.close(os.open(path, flags, 0o600))
        _check(path, os.lstat(path), stat.S_ISREG, "a regular file", 0o077, "600")
        if not os.access(path, os.R_OK | os.W_OK):
            raise NotAllowed(f"{path}: Permission denied")
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


def _span(first: bytes, last: bytes) -> Span:
    return Span(IPv6Address(bytes(first)), IPv6Address(bytes(last)))


def _text(address: IPv6Address | None) -> str | None:
    return None if address is None else str(address)


def _tunnel(row: tuple[Any, ...]) -> Tunnel:
    user, kind, local, remote, server, client, prefixes, own_port, port, *rest = row
    interface, mark, node, kept, since = rest
    return Tunnel(
        user,
        kind,
        Grant(
            IPv4Address(local),
            IPv4Address(remote),
            IPv6Address(client) if client else None,
            IPv6Address(server) if server else None,
            tuple(map(IPv6Network, prefixes.split())),
            (port, own_port) if own_port else None,
        ),
        *(interface, mark, node, bool(kept), since),
    )
