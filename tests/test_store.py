"""The server's store: nothing is given out twice, no matter who writes or is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from itertools import pairwise
from pathlib import Path

import pytest
from dtcp.grant import Grant
from dtcp.server import database, pools
from dtcp.server.database import Busy, StoreError
from dtcp.server.pools import Pool, Span
from dtcp.server.store import DAY, Made, Shared, Store, Use, User
from dtcp.server.usage import Usage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.running import ROOT

PAIRS = pools.pairs("2001:db8:1::")
BLOCKS = pools.prefixes("2001:db8:4000::/40 /48")
PREFIX = IPv6Network("2001:db8:3c3::/48")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "dtcps" / "dtcps.db")


@pytest.fixture
def db(path: str) -> Iterator[Store]:
    db = Store(path, create=True)
    yield db
    db.close()


def add(db: Store, *names: str) -> None:
    for name in names:
        db.put(User(name), "secret")


def tunnel(user: str, number: int = 7, prefixes: tuple[IPv6Network, ...] = ()) -> Made:
    outer = (IPv4Address(f"203.0.113.{number}"), IPv4Address("192.0.2.1"))
    grant = Grant(*outer, prefixes=prefixes)
    return Made(user, "network", grant, f"gif{number}", f"dtcps {user}", "", False, 1e9)


# --- pools ------------------------------------------------------------------------------------


def test_pairs_are_numbered_as_kame_did() -> None:
    spans = [PAIRS.piece(number) for number in range(3)]
    assert [(str(span.client), str(span.server)) for span in spans if span] == [
        ("2001:db8:1::6", "2001:db8:1::5"),
        ("2001:db8:1::a", "2001:db8:1::9"),
        ("2001:db8:1::e", "2001:db8:1::d"),
    ]


def test_the_smallest_pool_of_pairs() -> None:
    pool = pools.pairs("2001:db8:1::/112")
    assert pool.size == 16383
    last = pool.piece(pool.size - 1)
    assert last is not None
    assert last.client == IPv6Address("2001:db8:1::fffe")
    assert pool.piece(pool.size) is None


def test_a_prefix_cut_into_prefixes() -> None:
    assert BLOCKS.size == 256
    first, last = BLOCKS.piece(0), BLOCKS.piece(255)
    assert first is not None
    assert last is not None
    assert str(first.network) == "2001:db8:4000::/48"
    assert str(last.network) == "2001:db8:40ff::/48"
    assert BLOCKS.piece(256) is None


@given(number=st.integers(0, 255), offset=st.integers(0, (1 << 80) - 1))
@pytest.mark.parametrize("pool", [PAIRS, BLOCKS], ids=str)
def test_the_piece_behind_an_address(pool: Pool, number: int, offset: int) -> None:
    address = pool.prefix.network_address + (number << (80 if pool.length else 8)) + offset % 1000
    behind = pool.behind(address)
    span = pool.piece(behind)
    assert span is None or span.first > address
    before = pool.piece(behind - 1) if behind else None
    assert before is None or before.first <= address


@given(number=st.integers(0, 255), first=st.integers(-9, 9), last=st.integers(-9, 9))
@pytest.mark.parametrize("pool", [PAIRS, BLOCKS], ids=str)
def test_the_number_of_a_piece(pool: Pool, number: int, first: int, last: int) -> None:
    span = pool.piece(number)
    assert span is not None
    assert pool.number(span) == number
    other = Span(span.first + first, span.last + last)
    found = pool.number(other)
    assert found is None or pool.piece(found) == other


@pytest.mark.parametrize(
    "text",
    [
        "2001:db8::/40",
        "2001:db8::/40 48",
        "2001:db8::/40 /39",
        "2001:db8::/40 /40",
        "2001:db8::/40 /65",
        "2001:db8::/8 /12",
        "2001:db8::1/40 /48",
        "2001:db8:: /48",
        "x /48",
        "",
    ],
)
def test_what_is_no_pool(text: str) -> None:
    with pytest.raises(pools.PoolError):
        pools.prefixes(text)


# --- users ------------------------------------------------------------------------------------


def test_a_user_is_as_he_was_put(db: Store, path: str) -> None:
    user = User(
        "itojun",
        ("host", "network"),
        IPv6Address("2001:db8:1::106"),
        (IPv6Network("2001:db8:ffff::/56"), PREFIX),  # the order is the administrator's
        date(2031, 12, 31),
        True,
    )
    secret = "a colon: and \udcff"  # what was no UTF-8 comes back as it was
    db.put(user, secret)
    again = Store(path)
    assert again.user("itojun") == user
    assert again.password("itojun") == secret
    again.close()
    assert "secret" not in repr(db.user("itojun"))


def test_a_password_stays_until_another_is_given(db: Store) -> None:
    add(db, "itojun")
    db.put(User("itojun", disabled=True))
    assert db.password("itojun") == "secret"
    db.put(User("itojun"), "another")
    assert db.password("itojun") == "another"


def test_who_may_not_have_a_tunnel() -> None:
    last = date(2031, 12, 31)
    assert User("itojun", expires=last).barred(last) == ""
    assert User("itojun", expires=last).barred(date(2032, 1, 1)) == "this user has expired"
    assert User("itojun", disabled=True).barred(last) == "this user is disabled"


def test_users_who_are_not_there(db: Store) -> None:
    assert db.user("nobody") is None
    assert db.password("nobody") is None
    with pytest.raises(StoreError, match="nobody: no such user"):
        db.delete("nobody")
    with pytest.raises(StoreError, match="nobody: no such user"):
        db.put(User("nobody"))


@pytest.mark.parametrize(
    "prefix", ["2001:db8:3c3::/48", "2001:db8:3c3:1::/64", "2001:db8:300::/40", "2001:db8:3c3::/64"]
)
def test_prefixes_cannot_overlap(db: Store, prefix: str) -> None:
    db.put(User("itojun", prefixes=(PREFIX,)), "secret")
    add(db, "jun")
    with pytest.raises(StoreError, match=f"{prefix} overlaps what itojun has"):
        db.put(User("jun", prefixes=(IPv6Network("2001:db8:9::/48"), IPv6Network(prefix))))
    assert db.user("jun") == User("jun")  # all of it, or nothing


def test_a_pair_cannot_lie_in_anothers_prefix_or_touch_his_pair(db: Store) -> None:
    address = IPv6Address("2001:db8:3c3::6")
    db.put(User("itojun", prefixes=(PREFIX,), address=IPv6Address("2001:db8:1::6")), "secret")
    for taken in (address, IPv6Address("2001:db8:1::5"), IPv6Address("2001:db8:1::7")):
        with pytest.raises(StoreError, match=f"{taken} overlaps what itojun has"):
            db.put(User("jun", address=taken), "secret")
    db.put(User("jun", address=IPv6Address("2001:db8:1::8")), "secret")


def test_the_changes_are_told_once_each(db: Store, path: str) -> None:
    start, _ = db.changes()
    other = Store(path)
    add(other, "itojun", "jun")
    other.put(User("itojun", disabled=True))
    number, names = db.changes(start)
    assert names == ["jun", "itojun"]
    other.delete("jun")
    db.remember(tunnel("itojun"))  # no change of a user
    assert db.changes(number)[1] == ["jun"]
    other.close()


# --- leases -----------------------------------------------------------------------------------


def test_who_comes_back_gets_what_he_had(db: Store, path: str) -> None:
    add(db, "itojun", "jun", "kame")
    first = [db.lease(name, [PAIRS]) for name in ("itojun", "jun", "kame")]
    assert [str(span.client) for span in first if span] == [
        "2001:db8:1::6",
        "2001:db8:1::a",
        "2001:db8:1::e",
    ]
    again = Store(path)
    assert [again.lease(name, [PAIRS]) for name in ("kame", "jun", "itojun")] == first[::-1]
    again.close()
    prefix = db.lease("jun", [BLOCKS])
    assert prefix is not None
    assert str(prefix.network) == "2001:db8:4000::/48"
    assert [(each.user, each.kind) for each in db.leases()] == [
        ("itojun", "pair"),
        ("jun", "pair"),
        ("kame", "pair"),
        ("jun", "prefix"),
    ]


def test_a_lease_goes_round_what_is_fixed(db: Store) -> None:
    db.put(User("fixed", address=IPv6Address("2001:db8:1::a")), "secret")
    db.put(User("large", prefixes=(IPv6Network("2001:db8:4000::/44"),)), "secret")
    add(db, "itojun", "jun")
    pairs = [db.lease(name, [PAIRS]) for name in ("itojun", "jun")]
    assert [str(span.client) for span in pairs if span] == ["2001:db8:1::6", "2001:db8:1::e"]
    block = db.lease("itojun", [BLOCKS])
    assert block is not None
    assert str(block.network) == "2001:db8:4010::/48"


def test_a_pool_is_used_to_its_last_piece_and_what_comes_back_again(db: Store) -> None:
    pool = pools.prefixes("2001:db8:4000::/46 /48")
    names = [f"user{number}" for number in range(5)]
    add(db, *names)
    spans = [db.lease(name, [pool]) for name in names]
    assert None not in spans[:4]
    assert spans[4] is None
    db.delete("user1")
    assert db.lease("user4", [pool]) == spans[1]


def test_the_next_pool_is_used_when_one_is_full_and_a_pool_may_go(db: Store) -> None:
    small, other = pools.prefixes("2001:db8:4000::/47 /48"), pools.prefixes("2001:db8:5::/48 /56")
    add(db, "itojun", "jun", "kame")
    db.lease("itojun", [small, other])
    db.lease("kame", [small, other])
    span = db.lease("jun", [small, other])
    assert span is not None
    assert str(span.network) == "2001:db8:5::/56"
    moved = db.lease("itojun", [other])
    assert moved is not None
    assert str(moved.network) == "2001:db8:5:100::/56"


@pytest.mark.parametrize(
    ("pool", "others"),
    [
        (BLOCKS, [pools.prefixes("2001:db8:4000::/39 /48")]),  # grown
        (BLOCKS, [pools.prefixes("2001:db8:4000::/41 /48")]),  # shrunk
        (PAIRS, [pools.pairs("2001:db8:1::/56")]),
        (PAIRS, [pools.pairs("2001:db8:7::"), pools.pairs("2001:db8::/32")]),
    ],
    ids=str,
)
def test_a_lease_outlives_another_cut_of_its_pool(
    db: Store, pool: Pool, others: list[Pool]
) -> None:
    names = [f"user{number}" for number in range(5)]
    add(db, *names, "late", "later")
    before = {name: db.lease(name, [pool]) for name in names}
    assert {name: db.leased(name, others) for name in names} == before
    given = [db.lease("late", others)]  # nobody has come back yet
    assert {name: db.lease(name, others) for name in names} == before
    given += [db.lease("later", others)]
    assert None not in given
    assert len({*given, *before.values()}) == len(names) + 2
    assert {each.pool for each in db.leases()} <= {str(each) for each in others}
    assert len(db.leases()) == len(names) + 2


def test_a_lease_ends_with_a_pool_of_other_pieces(db: Store) -> None:
    add(db, "itojun")
    assert db.lease("itojun", [BLOCKS]) is not None
    span = db.lease("itojun", [pools.prefixes("2001:db8:4000::/40 /56")])
    assert span is not None
    assert str(span.network) == "2001:db8:4000::/56"
    assert [each.span for each in db.leases()] == [span]


def test_what_is_fixed_takes_the_place_of_a_lease(db: Store) -> None:
    add(db, "itojun")
    span = db.lease("itojun", [BLOCKS])
    assert span is not None
    db.put(User("itojun", prefixes=(span.network,)))  # the same, for ever
    assert db.leases() == []


# --- tunnels ----------------------------------------------------------------------------------


def test_a_standing_tunnel_is_remembered(db: Store, path: str) -> None:
    db.put(User("itojun", prefixes=(PREFIX,)), "secret")
    grant = Grant(
        *(IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1")),
        *(IPv6Address("2001:db8:1::6"), IPv6Address("2001:db8:1::5")),
        (PREFIX,),
        (0, 4028),
    )
    made = Made("itojun", "network", grant, "ng0", "dtcps itojun", "dtcps1u4028", False, 5.0)
    db.remember(made)
    again = Store(path)
    (found,) = again.tunnels()
    assert found._replace(since=5.0) == made
    assert abs(found.since - 5.0) < 5
    again.forget("itojun")
    assert db.tunnels() == []
    again.close()


def test_what_a_standing_tunnel_has_is_nobody_elses(db: Store) -> None:
    """Though its user has lost it, or is no more."""
    db.put(User("itojun", prefixes=(PREFIX,)), "secret")
    add(db, "jun")
    db.remember(tunnel("itojun", prefixes=(PREFIX,)))
    db.delete("itojun")
    with pytest.raises(StoreError, match="overlaps what a tunnel of itojun still has"):
        db.put(User("jun", prefixes=(PREFIX,)))
    block = Pool(PREFIX, 48)
    assert db.lease("jun", [block]) is None
    db.forget("itojun")
    assert db.lease("jun", [block]) is not None


def test_a_tunnel_cannot_have_what_became_anothers_meanwhile(db: Store) -> None:
    db.put(User("itojun", prefixes=(PREFIX,)), "secret")
    add(db, "jun")
    db.put(User("itojun"))
    db.put(User("jun", prefixes=(PREFIX,)))
    with pytest.raises(StoreError, match="itojun: what the tunnel has is taken"):
        db.remember(tunnel("itojun", prefixes=(PREFIX,)))
    assert db.tunnels() == []


def test_two_tunnels_cannot_have_the_same_ends(db: Store) -> None:
    db.remember(tunnel("itojun", 7))
    with pytest.raises(StoreError, match="jun: what the tunnel has is taken"):
        db.remember(tunnel("jun", 7)._replace(interface="gif8"))


# --- many at once, and killed -----------------------------------------------------------------

CHILD = """
import sys
import time
from dtcp.server import pools
from dtcp.server.store import Store, User
path, own = sys.argv[1:]
db = Store(path)
pool = pools.pairs("2001:db8:1::")
number = 0
while True:
    name = f"{own}-{number}"
    db.put(User(name), "secret")
    span = db.lease(name, [pool])
    print(name, span.client, flush=True)
    number += 1
"""


def test_two_programs_at_once_and_a_kill_in_the_middle(db: Store, path: str) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, path, own],
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": str(ROOT / "lib")},
            text=True,
        )
        for own in ("a", "b")
    ]
    said: list[str] = []
    for child in children:
        assert child.stdout is not None
        said += [child.stdout.readline() for _ in range(20)]
    for child in children:
        child.send_signal(signal.SIGKILL)
        out, _ = child.communicate()
        said += out.splitlines()
    spans = [each.span for each in db.leases()]
    assert len(spans) >= 40
    assert all(one.last < other.first for one, other in pairwise(spans))
    # What was told is there, and who it was told to still has it.
    for name, client in (line.split() for line in said if line.strip()):
        span = db.lease(name, [PAIRS])
        assert span is not None
        assert str(span.client) == client


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(("fix", "pair", "block", "delete", "keep", "forget")),
        st.integers(0, 4),
        st.integers(0, 7),
    ),
    max_size=40,
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(actions=ACTIONS)
def test_whatever_happens_nothing_is_anybodys_twice(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, int]]
) -> None:
    path = str(tmp_path_factory.mktemp("store") / "dtcps.db")
    db = Store(path, create=True)
    blocks, small = pools.prefixes("2001:db8:4000::/45 /48"), pools.pairs("2001:db8:1::/112")
    for act, who, which in actions:
        name = f"user{who}"
        prefix = IPv6Network(("2001:db8:4000::", 48)).supernet(new_prefix=45)
        fixed = list(prefix.subnets(new_prefix=47 if which % 2 else 48))[which // 2]
        try:
            if act == "fix":
                db.put(User(name, prefixes=(fixed,)), "secret")
            elif act == "delete":
                db.delete(name)
            elif act == "forget":
                db.forget(name)
            elif db.user(name) is not None and act in ("pair", "block"):
                db.lease(name, [small if act == "pair" else blocks])
            elif act == "keep" and (user := db.user(name)) is not None:
                db.remember(tunnel(name, which, user.prefixes))
        except StoreError:
            pass
    db.close()
    raw = sqlite3.connect(path)
    for table in ("span", "held"):
        rows = raw.execute(f"SELECT first, last FROM {table} ORDER BY first").fetchall()
        assert all(one[1] < other[0] for one, other in pairwise(rows))
    crossed = "SELECT 1 FROM span s JOIN held h ON s.first <= h.last AND h.first <= s.last"
    assert raw.execute(f"{crossed} AND s.user <> h.user").fetchall() == []
    raw.close()


def test_the_database_itself_refuses(db: Store, path: str) -> None:
    """Even an administrator with SQLite's shell."""
    add(db, "itojun", "jun")
    db.lease("itojun", [PAIRS])
    raw = sqlite3.connect(path)
    insert = "INSERT INTO span SELECT first, last, 'jun', kind, NULL, 0 FROM span"
    with pytest.raises(sqlite3.IntegrityError, match="overlap"):
        raw.execute(insert)
    with pytest.raises(sqlite3.IntegrityError, match="cannot move"):
        raw.execute("UPDATE span SET last = x'20010db8000100000000000000000007'")
    raw.close()


# --- the file ---------------------------------------------------------------------------------


def test_file_and_directory_are_their_owners_only(db: Store, path: str) -> None:
    add(db, "itojun")
    directory = os.path.dirname(path)
    assert os.stat(directory).st_mode & 0o777 == 0o700
    modes = {
        os.stat(os.path.join(directory, name)).st_mode & 0o777 for name in os.listdir(directory)
    }
    assert modes == {0o600}
    assert len(os.listdir(directory)) == 3  # the log and its index as well


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.chmod(0o640), "accessible by others; chmod 600"),
        (lambda path: path.parent.chmod(0o777), "accessible by others; chmod go-w"),
        (lambda path: path.parent.chmod(0o1777), "accessible by others; chmod go-w"),
        (lambda path: path.rename(path.with_name("x")), "no such file; dtcpauth add makes it"),
        (lambda path: path.unlink() or path.mkdir(0o700), "not a regular file"),
        (lambda path: [each(path) for each in (os.unlink, os.mkfifo)], "not a regular file"),
        (
            lambda path: (
                path.with_name("x").symlink_to(path.rename(path.with_name("y")))
                or path.with_name("x").rename(path)
            ),
            "not a regular file",
        ),
        (lambda path: path.write_text("nonsense" * 100), "file is not a database"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "malformed"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(path: str, spoil: object, message: str) -> None:
    db = Store(path, create=True)
    add(db, "itojun")
    db.close()
    assert callable(spoil)
    spoil(Path(path))

    def read() -> None:
        with contextlib.closing(Store(path)) as opened:
            opened.users()

    with pytest.raises(StoreError, match=message) as caught:
        read()
    assert str(caught.value).startswith(os.path.dirname(path))


def test_a_python_without_sqlite_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    package = f"py{sys.version_info.major}{sys.version_info.minor}-sqlite3"
    with pytest.raises(StoreError, match=f"is missing; install {package}$"):
        Store("/nowhere/x.db")


def test_another_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    path.touch(0o600)
    tmp_path.chmod(0o700)
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE bookmark (url TEXT)")
    raw.commit()
    with pytest.raises(StoreError, match="not a store of dtcps"):
        Store(str(path))
    raw.execute("PRAGMA application_id = 0x44544350")
    raw.execute("PRAGMA user_version = 99")
    raw.commit()
    raw.close()
    with pytest.raises(StoreError, match="made by a later version"):
        Store(str(path))


def test_who_writes_for_too_long_is_named(
    db: Store, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    hasty = Store(path)
    with pytest.raises(StoreError, match="another program has been writing"):
        hasty.put(User("itojun"), "secret")
    assert hasty.user("itojun") is None  # reading does not wait
    raw.execute("ROLLBACK")
    hasty.put(User("itojun"), "secret")
    raw.close()
    hasty.close()


@pytest.mark.hazard(68)
def test_who_has_been_here_is_known_for_a_day(db: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("itojun", "jun"):
        db.put(User(name), "secret")
    assert not db.has_been_here("itojun")
    db.remember(tunnel("itojun"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 9 * DAY)
    assert db.has_been_here("itojun"), "the tunnel stands"
    assert not db.has_been_here("jun")
    db.forget("itojun")
    db.forget("jun")  # who had none
    assert db.has_been_here("itojun")
    assert not db.has_been_here("jun")
    monkeypatch.setattr(time, "time", lambda: now + 10 * DAY)
    assert not db.has_been_here("itojun")
    db.remember(tunnel("jun"))
    db.delete("jun")
    db.forget("jun")
    assert not db.has_been_here("jun")


def test_who_is_kicked_loses_the_tunnel_that_stands_and_no_other(db: Store) -> None:
    add(db, "itojun", "jun")
    number, _ = db.changes()
    assert not db.kick("itojun")
    db.remember(tunnel("itojun", 7))
    db.remember(tunnel("jun", 8))
    assert db.changes(number) == (number, [])
    assert db.kick("itojun")
    assert db.changes(number)[1] == ["itojun"]
    assert (db.is_kicked("itojun"), db.is_kicked("jun")) == (True, False)
    db.put(User("itojun", ("host",)))  # somebody changes him meanwhile
    assert db.is_kicked("itojun")
    db.forget("itojun")
    db.remember(tunnel("itojun", 7))
    assert not db.is_kicked("itojun")


def test_what_users_have_done_is_summed(db: Store) -> None:
    add(db, "itojun", "jun")
    assert db.use() == {}
    db.add_use({"itojun": Use(1000.0, 1, 2), "jun": Use(None, 5, 6), "nobody": Use(1.0, 1, 1)})
    db.add_use({"itojun": Use(None, 10, 20)})
    assert db.use() == {"itojun": Use(1000.0, 11, 22), "jun": Use(None, 5, 6)}
    db.remember(tunnel("itojun"))
    db.forget("itojun")
    db.add_use({"itojun": Use(2000.0)})
    assert db.use()["itojun"] == Use(2000.0, 11, 22)
    db.delete("itojun")
    add(db, "itojun")
    assert "itojun" not in db.use()


def test_what_users_have_done_is_written_at_once_and_nothing_gets_lost(
    db: Store, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(db, "itojun", "jun")
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    monkeypatch.setattr(database, "HASTE", 0.01)
    usage, shared, said = Usage(), Shared(path), list[str]()
    assert not usage
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    usage.logged_in("itojun")
    usage.ended("itojun", 1, 2)
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy):
        usage.write(shared)
    raw.execute("ROLLBACK")
    raw.close()
    usage.ended("itojun", 10, 20)
    usage.ended("jun", 5, 6)
    monkeypatch.setattr(time, "time", lambda: 2000.0)
    usage.logged_in("jun")
    with shared() as store:
        store._db.set_trace_callback(said.append)
    usage.write(shared)
    assert not usage
    usage.write(shared)
    assert len([each for each in said if each.startswith("BEGIN")]) == 1
    assert db.use() == {"itojun": Use(1000.0, 11, 22), "jun": Use(2000.0, 5, 6)}
    shared.close()
