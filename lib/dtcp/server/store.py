"""The server's store: users, what addresses and prefixes are whose, and the tunnels that stand.

It is written by dtcpauth(8) and by a running dtcps(8) at the same time (dtcp.server.database).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any, NamedTuple

from dtcp.grant import Grant
from dtcp.server import pools
from dtcp.server.database import Database, InvalidRow, StoreError
from dtcp.server.pools import Pool, Span

PATH = "/var/db/dtcps/dtcps.db"
TYPES = ("tunnelonly", "host", "network")  # tunnelroute is another name of the last one
TURN = 0.1  # seconds to wait for a store that another thread has

DAY = 86400.0  # seconds


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
        if self.is_over(today):
            return "this user has expired"
        return ""

    def is_over(self, today: date) -> bool:
        """Whether this user has expired on that day."""
        return self.expires is not None and today > self.expires


def called(kind: str, span: Span) -> str:
    """How people call a pair, or a prefix."""
    return str(span.client if kind == "pair" else span.network)


def spans(user: User) -> list[tuple[str, Span]]:
    """What a user has fixed: the kind of each, and its addresses."""
    fixed = [("prefix", pools.whole(prefix)) for prefix in user.prefixes]
    if user.address is not None:
        fixed.append(("pair", pools.pair(user.address)))
    return fixed


class Lease(NamedTuple):
    """A span out of a pool that a user keeps."""

    user: str
    kind: str  # `pair` or `prefix`
    span: Span
    pool: str


class Made(NamedTuple):
    """A tunnel as it was made: enough for another server process to take it over."""

    user: str
    type: str
    grant: Grant  # as the client sees it; its key is not in the store
    interface: str
    mark: str
    node: str  # of netgraph, over UDP
    borrowed: bool  # the interface was not made for it, and stays
    since: float  # by the monotonic clock, so that nobody's setting of the other one matters
    number: int = 0  # of the interface, in the kernel; not in the store: a reboot changes it
    counted: tuple[int, int] = (0, 0)  # bytes received and sent by the interface before


class Use(NamedTuple):
    """What a user has done, as far as it is known."""

    login: float | None = None  # the last one, in seconds since the epoch
    received: int = 0  # bytes from the user, in all tunnels that have ended
    sent: int = 0


class Store(Database):
    """Users, leases and tunnels; raises StoreError, from every method."""

    # --- users --------------------------------------------------------------------------------

    def password(self, name: str) -> str | None:
        """A user's password; None for a user who is not there."""
        with self._failing():
            row = self._db.execute("SELECT password FROM user WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None
        with _row_of(name):
            secret: bytes = row[0]
            return secret.decode("utf-8", "surrogateescape")

    def user(self, name: str) -> User | None:
        """What a user may have; None for one who is not there."""
        return next(self._users("WHERE name = ?", "AND user = ?", name), None)

    def users(self) -> list[User]:
        """All users, by name."""
        return list(self._users("ORDER BY name", ""))

    def _users(self, which: str, whose: str, *name: str) -> Iterator[User]:
        with self._failing():
            rows = self._db.execute(
                f"SELECT name, types, expires, disabled FROM user {which}", name
            ).fetchall()
            spans = self._db.execute(
                f"SELECT user, kind, first, last FROM span WHERE pool IS NULL {whose}"
                " ORDER BY number",
                name,
            ).fetchall()
        fixed: defaultdict[str, list[tuple[str, bytes, bytes]]] = defaultdict(list)
        for user, *span in spans:
            fixed[user].append((span[0], span[1], span[2]))
        for row in rows:
            with _row_of(row[0]):
                user = _user(row, fixed[row[0]])
            yield user

    def put(self, user: User, password: str | None = None) -> None:
        """Make a user, or change one to this; without a password the old one stays."""
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
        """Give a user these fixed spans; what was leased in their place is free again."""
        wanted = spans(user)
        there = self._db.execute(
            "SELECT first, last FROM span WHERE user = ? AND pool IS NULL ORDER BY number",
            (user.name,),
        ).fetchall()
        if there == [(span.first.packed, span.last.packed) for _, span in wanted]:
            return
        self._db.execute("DELETE FROM span WHERE user = ? AND pool IS NULL", (user.name,))
        for number, (kind, span) in enumerate(wanted):
            self._db.execute(
                "DELETE FROM span WHERE user = ? AND kind = ? AND pool IS NOT NULL",
                (user.name, kind),
            )
            self._give(user.name, kind, span, None, number)

    def set_leases(self, name: str, leases: Iterable[tuple[str, Span]]) -> None:
        """Give a user these leases, and no others: the kind of each, and its addresses.

        Out of which pool each is, is seen when the user comes.
        """
        with self._failing(), self._writing():
            self._db.execute("DELETE FROM span WHERE user = ? AND pool IS NOT NULL", (name,))
            for kind, span in leases:
                self._give(name, kind, span, "", None)

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
        """Delete a user, whose addresses and prefixes are free once the tunnel has gone."""
        with self._failing(), self._writing():
            if not self._db.execute("DELETE FROM user WHERE name = ?", (name,)).rowcount:
                raise StoreError(f"{name}: no such user")

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
        if row is None:
            return None
        with _row_of(row[0]):
            return row[0], _span(row[1], row[2]).network

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

        It is the same each time, as long as it is a piece of one of them.
        """
        usable = tuple(among)
        with self._failing():
            if (found := self._leased(name, usable)) is not None:
                span, now, before = found
                if now != before:  # the pool has grown, say
                    with self._writing():
                        self._db.execute(
                            "UPDATE span SET pool = ? WHERE first = ? AND user = ?",
                            (now, span.first.packed, name),
                        )
                return span
            with self._writing():
                self._use(usable)
                for pool in usable:
                    # One out of a pool that does not exist any more goes back.
                    self._db.execute(
                        "DELETE FROM span WHERE user = ? AND kind = ? AND pool IS NOT NULL",
                        (name, pool.kind),
                    )
                    free = self._free(name, pool)
                    if free is not None:
                        self._give(name, pool.kind, free, str(pool), None)
                        return free
        return None

    def leases(self) -> list[Lease]:
        """All that is leased, in the order of the addresses."""
        with self._failing():
            rows = self._db.execute(
                "SELECT user, kind, first, last, pool FROM span WHERE pool IS NOT NULL"
                " ORDER BY first"
            ).fetchall()
        leases = []
        for user, kind, first, last, pool in rows:
            with _row_of(user):
                leases.append(Lease(user, kind, _span(first, last), pool))
        return leases

    def leased(self, name: str, among: Iterable[Pool]) -> Span | None:
        """The span that a user has out of one of these pools already."""
        with self._failing():
            found = self._leased(name, among)
        return None if found is None else found[0]

    def _leased(self, name: str, among: Iterable[Pool]) -> tuple[Span, str, str] | None:
        """That span, its pool among these, and the one that it is kept under."""
        rows = self._db.execute(
            "SELECT first, last, pool FROM span WHERE user = ? AND pool IS NOT NULL", (name,)
        ).fetchall()
        with _row_of(name):
            spans = [(_span(first, last), pool) for first, last, pool in rows]
        for pool in among:
            for span, before in spans:
                if pool.number(span) is not None:
                    return span, str(pool), before
        return None

    def _use(self, usable: Iterable[Pool]) -> None:
        """Know where there is room in these pools, and in no others of their kind any more."""
        wanted = {str(pool): pool for pool in usable}
        for kind in {pool.kind for pool in wanted.values()}:
            rows = self._db.execute("SELECT name FROM pool WHERE kind = ?", (kind,)).fetchall()
            for (name,) in rows:
                if wanted.pop(name, None) is None:
                    self._db.execute("DELETE FROM pool WHERE name = ?", (name,))
        for name, pool in wanted.items():
            ends = pools.whole(pool.prefix)
            self._db.execute(
                "INSERT INTO pool VALUES (?, ?, ?, ?)",
                (name, pool.kind, ends.first.packed, ends.last.packed),
            )

    def _free(self, name: str, pool: Pool) -> Span | None:
        """A piece of a pool that nobody has.

        What was never given comes first; what was given back is used again last, when its last user
        has most probably forgotten it.
        """
        query = "SELECT * FROM room WHERE pool = ? ORDER BY used, first LIMIT 1"
        while (room := self._db.execute(query, (str(pool),)).fetchone()) is not None:
            self._db.execute(
                "DELETE FROM room WHERE pool = ? AND used = ? AND first = ? AND last = ?", room
            )
            within = _span(*room[2:])
            span = self._first_free(name, pool, within)
            if span is not None:
                if span.last < within.last:
                    rest = (*room[:2], (span.last + 1).packed, within.last.packed)
                    self._db.execute("INSERT OR IGNORE INTO room VALUES (?, ?, ?, ?)", rest)
                return span
        return None

    def _first_free(self, name: str, pool: Pool, within: Span) -> Span | None:
        """The first piece of a pool that reaches into this span, and that nobody has."""
        number = pool.reaching(within.first)
        while (span := pool.piece(number)) is not None and span.first <= within.last:
            taken = self._in_the_way(name, span)
            if taken is None:
                return span
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

    def _give(self, name: str, kind: str, span: Span, pool: str | None, number: int | None) -> None:
        try:
            self._db.execute(
                "INSERT INTO span VALUES (?, ?, ?, ?, ?, ?)",
                (span.first.packed, span.last.packed, name, kind, pool, number),
            )
        except self._errors.IntegrityError:
            owner = self._owner(span)
            raise StoreError(f"{called(kind, span)} overlaps what {owner} has") from None

    # --- tunnels ------------------------------------------------------------------------------

    def tunnels(self) -> list[Made]:
        """The tunnels that stand, as far as anybody knows; a row that makes no sense is none."""
        with self._failing():
            rows = self._db.execute("SELECT * FROM tunnel").fetchall()
        tunnels = []
        for row in rows:
            try:
                with _row_of(row[0]):
                    tunnels.append(_made(row))
            except InvalidRow:
                self.forget(row[0])
        return tunnels

    def take_over(self, tunnels: Iterable[Made], routes: Iterable[IPv6Network]) -> None:
        """These tunnels stand, and no others; and a server has made these unreachable routes."""
        with self._failing(), self._writing(lasting=False):
            self._db.execute("DELETE FROM tunnel")
            for made in tunnels:
                try:
                    self.remember(made)
                except StoreError:  # it is another's here, so the server is going to end it
                    self.forget(made.user)
            self.set_unreachable(routes)

    def remember(self, made: Made) -> list[str]:
        """A tunnel has been made.  Refused when anything of it is another's, or held.

        Whoever had an interface of that name has it no more, for this one was just made: the names
        of these users, who have no tunnel now.
        """
        grant = made.grant
        port, own_port = grant.ports or (0, 0)
        row = {
            "user": made.user,
            "type": made.type,
            "local": str(grant.local),
            "remote": str(grant.remote),
            "server": None if grant.peer is None else str(grant.peer),
            "client": None if grant.inner is None else str(grant.inner),
            "prefixes": " ".join(map(str, grant.prefixes)),
            "own_port": own_port,
            "port": port,
            "interface": made.interface,
            "mark": made.mark,
            "node": made.node,
            "kept": made.borrowed,
            "since": of_day(made.since),
            "received": made.counted[0],
            "sent": made.counted[1],
            "kicked": False,
        }
        held = [pools.whole(prefix) for prefix in grant.prefixes]
        if grant.inner is not None and grant.peer is not None:
            held.append(Span(grant.peer, grant.inner))
        with self._failing(), self._writing(lasting=False):
            losers = self._db.execute(
                "SELECT user FROM tunnel WHERE interface = :interface AND user <> :user", row
            ).fetchall()
            try:
                self._db.execute(
                    "DELETE FROM tunnel WHERE user = :user OR interface = :interface", row
                )
                values = ", ".join(f":{column}" for column in row)
                self._db.execute(f"INSERT INTO tunnel VALUES ({values})", row)
                self._see(made.user)
                self._db.executemany(
                    "INSERT INTO held VALUES (?, ?, ?)",
                    [(span.first.packed, span.last.packed, made.user) for span in held],
                )
            except self._errors.IntegrityError as error:
                raise StoreError(f"{made.user}: what the tunnel has is taken: {error}") from None
        return [user for (user,) in losers]

    def forget(self, user: str) -> None:
        """A user's tunnel has gone, and holds nothing any more."""
        with self._failing(), self._writing(lasting=False):
            if self._db.execute("DELETE FROM tunnel WHERE user = ?", (user,)).rowcount:
                self._see(user)

    def kick(self, user: str, on: bool = True) -> bool:
        """Have the server end the tunnel that a user has now, or not; whether there is one."""
        with self._failing(), self._writing():
            query = "UPDATE tunnel SET kicked = ? WHERE user = ?"
            is_there = self._db.execute(query, (on, user)).rowcount > 0
            if is_there and on:  # so that the server looks
                self._db.execute("INSERT OR REPLACE INTO change (user) VALUES (?)", (user,))
        return is_there

    def is_kicked(self, user: str) -> bool:
        """Whether the server is to end the tunnel that a user has."""
        with self._failing():
            row = self._db.execute("SELECT kicked FROM tunnel WHERE user = ?", (user,)).fetchone()
        return row is not None and bool(row[0])

    def _see(self, user: str) -> None:
        self._db.execute(
            "INSERT INTO seen (user, last) SELECT name, ? FROM user WHERE name = ?"
            " ON CONFLICT (user) DO UPDATE SET last = excluded.last",
            (time.time(), user),
        )

    def has_been_here(self, user: str) -> bool:
        """Whether a user has a tunnel, or had one within a day."""
        with self._failing():
            (count,) = self._one(
                "SELECT (SELECT count(*) FROM tunnel WHERE user = ?)"
                " + (SELECT count(*) FROM seen WHERE user = ? AND last > ?)",
                *(user, user, time.time() - DAY),
            )
        return bool(count)

    def use(self) -> dict[str, Use]:
        """What users have done; who is not among them, nothing."""
        with self._failing():
            rows = self._db.execute("SELECT user, login, received, sent FROM seen").fetchall()
        used = {}
        for user, login, received, sent in rows:
            with _row_of(user):
                used[user] = Use(None if login is None else float(login), int(received), int(sent))
        return used

    def add_use(self, more: Mapping[str, Use]) -> None:
        """They have done this since; who is not there any more is left out."""
        with self._failing(), self._writing(lasting=False):
            self._db.executemany(
                "INSERT INTO seen SELECT name, ?, ?, ?, ? FROM user WHERE name = ?"
                " ON CONFLICT (user) DO UPDATE SET login = coalesce(excluded.login, login),"
                " received = received + excluded.received, sent = sent + excluded.sent",
                [(time.time(), *use, user) for user, use in more.items()],
            )

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


class Shared:
    """A store for several threads: `with shared() as store`, one at a time."""

    def __init__(self, path: str) -> None:
        self._store = Store(path)
        self._lock = threading.Lock()
        self._left: tuple[list[Made], list[IPv6Network]] | None = None  # by a store that has gone

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Store]:
        with self._lock:
            yield self._store

    def close(self) -> None:
        self._store.close()

    def follow(self, other: Store) -> bool:
        """Open the file anew, here and in `other`, if another one was put in its place; whether so.

        The tunnels that stand are the server's own, and go along.  Raises StoreError: then nothing
        can be read here until there is one that can, and this is called again.
        """
        # Who has it may be waiting for a slow writer.  There will be another time.
        if not other.replaced() or not self._lock.acquire(timeout=TURN):
            return False
        try:
            if self._left is None:
                left: tuple[list[Made], list[IPv6Network]] = [], []
                with contextlib.suppress(StoreError):  # it may be broken, and replaced for that
                    left = self._store.tunnels(), self._store.unreachable()
                self._store.leave()
                self._left = left
            self._store.close()
            other.close()
            self._store.reopen()
            self._store.take_over(*self._left)
            other.reopen()
            self._left = None
        finally:
            self._lock.release()
        return True


@contextlib.contextmanager
def _row_of(name: str) -> Iterator[None]:
    """What is made of a row of this user; it may be anything.  Raises InvalidRow."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidRow(f"{name}: invalid in the store: {error}") from None


def _user(row: tuple[Any, ...], fixed: Iterable[tuple[str, bytes, bytes]]) -> User:
    """A row of the table `user`, and the user's fixed spans in their order."""
    name, types, expires, disabled = row
    if not {*types.split()} <= {*TYPES}:
        raise ValueError(f"types {types!a}")
    spans = [(kind, _span(first, last)) for kind, first, last in fixed]
    return User(
        name,
        tuple(types.split()),
        next((span.client for kind, span in spans if kind == "pair"), None),
        tuple(span.network for kind, span in spans if kind == "prefix"),
        date.fromisoformat(expires) if expires else None,
        bool(disabled),
    )


def _span(first: bytes, last: bytes) -> Span:
    return Span(IPv6Address(bytes(first)), IPv6Address(bytes(last)))


def of_day(moment: float) -> float:
    """A moment by the monotonic clock, in seconds since the epoch."""
    return time.time() - (time.monotonic() - moment)


def _made(row: tuple[Any, ...]) -> Made:
    """A row of the table `tunnel`."""
    user, kind, local, remote, server, client, prefixes, *rest = row
    own_port, port, interface, mark, node, borrowed, since, received, sent, _ = rest
    grant = Grant(
        local=IPv4Address(local),
        remote=IPv4Address(remote),
        inner=IPv6Address(client) if client else None,
        peer=IPv6Address(server) if server else None,
        prefixes=tuple(map(IPv6Network, prefixes.split())),
        ports=(port, own_port) if own_port else None,
    )
    age = max(0.0, time.time() - since)
    since = time.monotonic() - age
    counted = (received, sent)
    return Made(user, kind, grant, interface, mark, node, bool(borrowed), since, counted=counted)
