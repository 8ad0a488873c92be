"""What a look-up or a lease costs is independent of how many users and leases there are.

What SQLite does is counted in the steps of its machine, which are the same on every computer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dtcp import wire
from dtcp.grant import Grant
from dtcp.server import imports, leases, pools
from dtcp.server.database import StoreError
from dtcp.server.pools import Pool
from dtcp.server.settings import Settings
from dtcp.server.store import Lease, Made, Shared, Store, Use, User
from dtcp.server.workers import Event

import dtcpauth
from tests.running import ROOT

BLOCKS = pools.prefixes("2001:db8:4000::/40 /48")
PAIRS = Pool(IPv6Network("2001:db8:1::/117"))  # 511 of them
FIXED = IPv6Network("2001:db8:8000::/33")  # where the users of `fill` have theirs


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "dtcps" / "dtcps.db")


@pytest.fixture
def db(path: str) -> Iterator[Store]:
    with contextlib.closing(Store(path, create=True)) as db:
        yield db


@pytest.fixture
def shared(db: Store, path: str) -> Iterator[Shared]:
    with contextlib.closing(Shared(path)) as shared:
        yield shared


def steps(db: Store, call: Callable[[], object]) -> int:
    """How many steps of SQLite's machine this takes."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    db._db.set_progress_handler(step, 1)
    try:
        call()
    finally:
        db._db.set_progress_handler(None, 1)
    return count


def fill(db: Store, *numbers: int) -> None:
    """Users who have fixed prefixes, by number."""
    with db.transaction():
        for number in numbers:
            prefix = IPv6Network((int(FIXED.network_address) + (number << 64), 64))
            db.put(User(f"user{number}", prefixes=(prefix,)), "secret")


def put(db: Store, *names: str) -> None:
    for name in names:
        db.put(User(name), "secret")


# --- leases -----------------------------------------------------------------------------------


@pytest.mark.hazard(71)
@pytest.mark.parametrize("pool", [BLOCKS, PAIRS], ids=str)
def test_a_full_pool_costs_no_more_than_an_empty_one(db: Store, path: str, pool: Pool) -> None:
    put(db, "first", "last", "late", "later")
    names = [f"user{number}" for number in range(pool.size - 2)]
    spans = {}

    def lease(name: str) -> None:
        spans[name] = db.lease(name, [pool])

    empty = steps(db, lambda: lease("first"))
    with db.transaction():
        for name in names:
            put(db, name)
            lease(name)
    assert steps(db, lambda: lease("last")) < 2 * empty
    assert None not in spans.values()
    lease("late")  # it is full, and that is seen
    assert steps(db, lambda: lease("late")) < empty
    assert steps(db, lambda: lease("later")) < empty
    assert (spans["late"], spans["later"]) == (None, None)
    with contextlib.closing(Store(path)) as again:
        assert steps(again, lambda: again.lease("late", [pool])) < empty
    db.delete(names[17])
    assert steps(db, lambda: lease("late")) < 2 * empty
    assert spans["late"] == spans[names[17]]
    assert steps(db, lambda: lease("later")) < empty
    assert spans["later"] is None
    assert db.lease(names[40], [pool]) == spans[names[40]]


def test_what_was_given_back_is_used_again_last(db: Store) -> None:
    pool = pools.prefixes("2001:db8:4000::/45 /48")
    names = [f"user{number}" for number in range(12)]
    put(db, *names)
    first = [db.lease(name, [pool]) for name in names[:6]]
    for number in (5, 3, 1):
        db.delete(names[number])
    then = [db.lease(name, [pool]) for name in names[6:]]
    assert then[:2] == [pool.piece(6), pool.piece(7)]
    assert then[2:] == [first[1], first[3], first[5], None]


def test_whoever_is_in_the_way_room_that_becomes_free_is_found(db: Store) -> None:
    """It was looked at in vain: a fixed prefix, a smaller one, and what a tunnel still held."""
    pool = pools.prefixes("2001:db8:4000::/46 /48")
    wide = IPv6Network("2001:db8:4000::/47")
    small, tunnels = IPv6Network("2001:db8:4002:7::/64"), IPv6Network("2001:db8:4003::/48")
    db.put(User("wide", prefixes=(wide,)), "secret")
    db.put(User("small", prefixes=(small,)), "secret")
    db.put(User("tunnel", prefixes=(tunnels,)), "secret")
    grant = Grant(IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"), prefixes=(tunnels,))
    db.remember(Made("tunnel", "network", grant, "gif0", "dtcps tunnel", "", False, 1e9))
    db.delete("tunnel")
    put(db, "itojun", "jun", "kame", "late")
    assert db.lease("itojun", [pool]) is None
    db.put(User("small"))
    assert db.lease("itojun", [pool]) == pool.piece(2)
    assert db.lease("jun", [pool]) is None
    db.forget("tunnel")
    assert db.lease("jun", [pool]) == pool.piece(3)
    db.delete("wide")
    assert [db.lease(name, [pool]) for name in ("kame", "late")] == [pool.piece(0), pool.piece(1)]


def test_a_tunnel_that_ends_gives_back_nothing_that_is_leased(db: Store) -> None:
    """Or what there is to look at would grow with each login."""
    put(db, "itojun")
    span = db.lease("itojun", [BLOCKS])
    assert span is not None
    outer = (IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"))
    grant = Grant(*outer, prefixes=(span.network,))
    for _ in range(3):
        db.remember(Made("itojun", "network", grant, "gif0", "dtcps itojun", "", False, 1e9))
        db.forget("itojun")
    assert db._one("SELECT count(*) FROM room") == (1,)


def test_a_pool_that_is_not_used_any_more_is_forgotten(db: Store) -> None:
    other = pools.prefixes("2001:db8:5000::/40 /48")
    put(db, "itojun", "jun")
    db.lease("itojun", [BLOCKS])
    db.lease("itojun", [PAIRS])
    db.lease("jun", [other])
    assert {row[0] for row in db._db.execute("SELECT name FROM pool")} == {str(other), str(PAIRS)}
    assert {row[0] for row in db._db.execute("SELECT pool FROM room")} == {str(other), str(PAIRS)}


@pytest.mark.hazard(71)
def test_one_login_of_a_user_is_at_it(db: Store, shared: Shared) -> None:
    put(db, "itojun", "jun")
    settings = Settings(delegate=(BLOCKS,))
    giver = leases.Leases(db, shared, settings, SimpleNamespace(), udp=False)  # type: ignore[arg-type]

    def login(name: str) -> Any:
        ends = (IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"))
        return giver.grant(User(name), wire.Asked(name, "network", None), *ends)

    first, second, other = login("itojun"), login("itojun"), login("jun")
    work, waiting = next(first), next(second)
    assert isinstance(work, partial)
    assert isinstance(waiting, Event)
    assert isinstance(next(other), partial)  # nobody else waits
    happened: list[str] = []
    waiting.wait(lambda: happened.append("it"))
    with pytest.raises(StopIteration) as granted:
        first.send(work(None))
    assert happened == ["it"]
    with pytest.raises(StopIteration) as same:
        second.send(None)
    assert granted.value.value == same.value.value


def test_a_login_that_fails_lets_the_next_one_try(db: Store, shared: Shared) -> None:
    put(db, "itojun")
    settings = Settings(delegate=(BLOCKS,))
    giver = leases.Leases(db, shared, settings, SimpleNamespace(), udp=False)  # type: ignore[arg-type]
    asked = wire.Asked("itojun", "network", None)
    ends = (IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"))
    first, second = (giver.grant(User("itojun"), asked, *ends) for _ in range(2))
    next(first)
    next(second)
    with pytest.raises(StoreError):
        first.throw(StoreError("it failed"))
    assert isinstance(second.send(None), partial)


# --- look-ups ---------------------------------------------------------------------------------


@pytest.mark.hazard(80)
def test_a_look_up_among_many_users_costs_what_it_costs_among_few(db: Store) -> None:
    fill(db, *range(20))
    calls: list[Callable[[], object]] = [
        lambda: db.user("user7"),
        lambda: db.password("user7"),
        lambda: db.leased("user7", [BLOCKS]),
        lambda: db.fixed(pools.whole(IPv6Network("2001:db8:7::/48"))),
        lambda: db.changes(10**6),
        lambda: db.put(User("user7"), "another"),
        lambda: db.delete("user7"),
    ]
    few = [steps(db, call) for call in calls]
    fill(db, 7, *range(20, 2000))
    assert all(steps(db, call) < 1.5 * before for call, before in zip(calls, few, strict=True))


@pytest.mark.hazard(80)
def test_the_plans_of_all_look_ups(db: Store, path: str) -> None:
    """SQLite's own word that it goes through no table of users."""
    fill(db, *range(50))
    put(db, "itojun")
    said: list[str] = []
    db._db.set_trace_callback(said.append)
    user = db.user("user7")
    assert user is not None
    db.password("user7")
    db.fixed(pools.whole(BLOCKS.prefix))
    db.changes(0)
    db.leased("itojun", [BLOCKS])
    db.lease("itojun", [BLOCKS])
    outer = (IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"))
    made = Made("user7", "network", Grant(*outer), "gif0", "dtcps user7", "", False, 1e9)
    db.remember(made._replace(grant=made.grant._replace(prefixes=user.prefixes)))
    db.forget("user7")
    db.put(user._replace(expires=date(2131, 12, 31)), "another")
    db.put(user._replace(prefixes=(), address=IPv6Address("2001:db8:1::6")))
    db.delete("user7")
    db._db.set_trace_callback(None)
    words = ("SELECT", "UPDATE", "DELETE", "INSERT")
    statements = [each for each in said if each.startswith(words)]
    assert len(statements) > 20
    raw = sqlite3.connect(path)
    for each in statements:
        plan = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {each}")]
        # The few rows of what SQLite has found already are another matter.
        whole = [line for line in plan if line.startswith("SCAN") and "(subquery" not in line]
        assert [line for line in whole if line.split()[-1] not in ("CONSTANT", "pool")] == [], each
    raw.close()


@pytest.mark.hazard(80)
@pytest.mark.parametrize("command", ["list_users", "export", "check"])
def test_what_all_users_cost_grows_with_their_number(
    db: Store, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Leases(list[Lease]):
        looked_through = 0

        def __iter__(self) -> Iterator[Lease]:
            Leases.looked_through += 1
            return super().__iter__()

    options = argparse.Namespace(json=True, users=[], format="json", leases=True)
    tell = partial(getattr(dtcpauth, command), db, options)
    fill(db, *range(100))
    few = steps(db, tell)
    fill(db, *range(100, 400))
    real = db.leases
    monkeypatch.setattr(db, "leases", lambda: Leases(real()))
    assert steps(db, tell) < 4.5 * few
    assert Leases.looked_through <= 1
    assert "user399" in capsys.readouterr().out


@pytest.mark.hazard(80)
@pytest.mark.parametrize("kind", imports.DESCRIBING)
def test_what_an_import_costs_grows_with_the_number_of_users(
    db: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    fill(db, *range(400))
    dtcpauth.export(db, argparse.Namespace(format=kind, leases=False))
    many = capsys.readouterr().out
    fill(db, *range(400))
    costs = []
    for number in (100, 400):
        with contextlib.closing(Store(str(tmp_path / f"{number}" / "db"), create=True)) as other:
            file = tmp_path / f"{number}.{kind}"
            if kind == "json":
                file.write_text(json.dumps(json.loads(many)[:number]))
            else:
                file.write_text("\n".join(many.splitlines()[: number + 1]))
            options = argparse.Namespace(format=kind, replace=False, random=False)
            options.found = imports.read(kind, str(file))
            costs.append(steps(other, partial(dtcpauth.import_file, other, options)))
    assert costs[1] < 4.5 * costs[0]


# --- an earlier version -----------------------------------------------------------------------


@pytest.fixture(params=[1, 2, "2, as it was at first"], ids=str)
def old(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A store as an earlier version of the schema had it."""
    directory = tmp_path / "old"
    directory.mkdir(mode=0o700)
    path = directory / "dtcps.db"
    path.touch(0o600)
    raw = sqlite3.connect(path)
    version = str(request.param)
    raw.executescript((ROOT / f"tests/store_{version[0]}.sql").read_text())
    if version[1:]:
        raw.execute("DROP TABLE seen")
    raw.close()
    return str(path)


def test_a_store_of_an_earlier_version_is_taken_over(old: str) -> None:
    pairs, blocks = pools.pairs("2001:db8:1::"), pools.prefixes("2001:db8:4000::/46 /48")
    with contextlib.closing(Store(old)) as db:
        assert db.user("itojun") == User(
            "itojun",
            ("host", "network"),
            IPv6Address("2001:db8:1::106"),
            (IPv6Network("2001:db8:ffff::/56"), IPv6Network("2001:db8:3c3::/48")),
            date(2131, 12, 31),
        )
        assert db.password("itojun") == "wj4SNZ:x3rkYw-"
        assert [(made.user, made.counted) for made in db.tunnels()] == [("jun", (0, 0))]
        assert {*db.use().values()} <= {Use()}
        assert db.changes(6)[1] == ["gone"]
        for name, number in (("jun", 0), ("kame", 2)):
            assert db.lease(name, [pairs]) == pairs.piece(number)
            assert db.lease(name, [blocks]) == blocks.piece(number)
        put(db, "a", "b", "c")
        # Where the earlier one began to count is not known any more, but nothing is given twice.
        given = [db.lease(name, [blocks]) for name in "abc"]
        assert given == [blocks.piece(1), blocks.piece(3), None]
        with pytest.raises(StoreError, match="overlaps what jun has"):
            db.put(User("a", prefixes=(IPv6Network("2001:db8:4000::/48"),)))
    with contextlib.closing(Store(old)) as again:
        assert len(again.users()) == 6


def test_both_ways_lead_to_the_same_schema(old: str, db: Store, path: str) -> None:
    Store(old).close()
    schemas = []
    for each in (old, path):
        raw = sqlite3.connect(each)
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        schemas.append([*raw.execute(query), *raw.execute("PRAGMA user_version")])
        raw.close()
    assert schemas[0] == schemas[1]


def test_a_take_over_that_fails_leaves_everything(old: str) -> None:
    raw = sqlite3.connect(old)
    raw.execute("ALTER TABLE tunnel ADD COLUMN sent INTEGER")  # which is in its way
    before = list(raw.iterdump())
    with pytest.raises(StoreError, match="duplicate column name: sent"):
        Store(old)
    assert list(raw.iterdump()) == before
    raw.close()
