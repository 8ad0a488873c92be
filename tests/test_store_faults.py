"""A store that is replaced, holds nonsense, or is written by somebody slow."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path

import pytest
from dtcp.grant import Grant
from dtcp.server import building, database, pools
from dtcp.server.database import Busy, InvalidRow, StoreError
from dtcp.server.store import Made, Shared, Store, User

from lab.internet import Internet
from tests.running import Program, Talker, dtcpauth, serve, set_users, wait_until

PREFIX = IPv6Network("2001:db8:3c3::/48")
POOL = pools.prefixes("2001:db8:4000::/40 /48")
STORE = "/var/db/dtcps/dtcps.db"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "dtcps" / "dtcps.db")


@pytest.fixture
def db(path: str) -> Iterator[Store]:
    with contextlib.closing(Store(path, create=True)) as db:
        db.put(User("itojun", prefixes=(PREFIX,)), "secret")
        db.put(User("jun"), "secret")
        yield db


@pytest.fixture
def shared(db: Store, path: str) -> Iterator[Shared]:
    with contextlib.closing(Shared(path)) as shared:
        yield shared


SINCE = 1e9  # the store keeps it by another clock


def tunnel(user: str, number: int = 7, *prefixes: IPv6Network) -> Made:
    outer = (IPv4Address(f"203.0.113.{number}"), IPv4Address("192.0.2.1"))
    grant = Grant(*outer, prefixes=prefixes)
    return Made(user, "network", grant, f"gif{number}", f"dtcps {user}", "", False, SINCE)


def other(path: str, *users: User) -> None:
    """Put another store, with these users, in the place of the one there is."""
    with contextlib.closing(Store(f"{path}.new", create=True)) as new:
        for user in users:
            new.put(user, "another")
    os.rename(f"{path}.new", path)


# --- replaced ---------------------------------------------------------------------------------


@pytest.mark.hazard(74)
def test_another_store_in_the_place_of_ours(db: Store, path: str, shared: Shared) -> None:
    block = IPv6Network("2001:db8:4000::/48")
    with shared() as store:
        for made in (tunnel("itojun", 7, PREFIX), tunnel("jun", 8, block)):
            store.remember(made)
        store.set_unreachable([POOL.prefix])
    assert not shared.follow(db)
    other(path, User("itojun", prefixes=(PREFIX,)), User("kame", prefixes=(block,)))
    assert db.password("itojun") == "secret"
    assert shared.follow(db)
    assert not shared.follow(db)
    assert db.password("itojun") == "another"
    assert [user.name for user in db.users()] == ["itojun", "kame"]
    # What stands goes along; but where it is another's here, that one has it.
    assert [each._replace(since=SINCE) for each in db.tunnels()] == [tunnel("itojun", 7, PREFIX)]
    assert db.unreachable() == [POOL.prefix]
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    raw.close()


@pytest.mark.hazard(74)
def test_no_store_in_the_place_of_ours(db: Store, path: str, shared: Shared) -> None:
    """The old one is as good as ever until there is one; nonsense is not, and is told."""
    with shared() as store:
        store.remember(tunnel("itojun", 7, PREFIX))
    os.rename(path, f"{path}.old")
    assert not shared.follow(db)
    assert db.password("itojun") == "secret"
    Path(path).write_text("nonsense" * 1000)
    os.chmod(path, 0o600)
    for _ in range(2):
        with pytest.raises(StoreError, match="file is not a database"):
            shared.follow(db)
        with pytest.raises(StoreError):
            db.password("itojun")
    other(path, User("itojun", prefixes=(PREFIX,)))
    assert shared.follow(db)
    assert db.password("itojun") == "another"
    assert [made.user for made in db.tunnels()] == ["itojun"]


@pytest.mark.hazard(74)
def test_a_good_store_in_the_place_of_a_broken_one(db: Store, path: str, shared: Shared) -> None:
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("DROP TABLE tunnel")
    other(path, User("itojun", prefixes=(PREFIX,)))
    assert shared.follow(db)
    assert (db.password("itojun"), db.tunnels()) == ("another", [])


@pytest.mark.hazard(74)
def test_the_main_thread_waits_for_nobody_who_has_the_store(
    db: Store, path: str, shared: Shared
) -> None:
    other(path, User("itojun"))
    with shared():
        assert not shared.follow(db)
    assert shared.follow(db)


# --- nonsense ---------------------------------------------------------------------------------

NONSENSE = [
    "UPDATE user SET expires = 'tomorrow' WHERE name = 'jun'",
    "UPDATE user SET expires = 5 WHERE name = 'jun'",
    "UPDATE user SET types = x'ff' WHERE name = 'jun'",
    "UPDATE user SET password = 5000000000 WHERE name = 'jun'",
    "UPDATE user SET password = 'secret' WHERE name = 'jun'",
    "INSERT INTO span VALUES ('aaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbb', 'jun', 'prefix', NULL, 0)",
    "INSERT INTO span VALUES (x'20010db8000000000000000000000001',"
    " x'20010db8000000000000000000000004', 'jun', 'prefix', NULL, 0)",
]


@pytest.mark.hazard(74)
@pytest.mark.parametrize("statement", NONSENSE)
def test_a_row_of_nonsense_is_its_users_alone(db: Store, path: str, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(statement)
    with pytest.raises(InvalidRow, match="jun: invalid in the store: "):
        _ = db.password("jun"), db.user("jun")
    assert db.password("itojun") == "secret"
    assert db.user("itojun") == User("itojun", prefixes=(PREFIX,))
    assert "itojun" in db.changes(0)[1]
    db.delete("jun")  # which is what helps
    assert db.users() == [User("itojun", prefixes=(PREFIX,))]


@pytest.mark.hazard(74)
def test_a_name_of_nonsense_keeps_no_change_from_being_seen(db: Store, path: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("INSERT INTO user VALUES (CAST(x'ff' AS TEXT), x'', 'host', NULL, 0)")
    db.put(User("jun", disabled=True))
    assert db.changes(0)[1] == ["itojun", "\ufffd", "jun"]


@pytest.mark.hazard(74)
def test_a_tunnel_of_nonsense_is_none(db: Store, path: str) -> None:
    db.remember(tunnel("itojun", 7, PREFIX))
    db.remember(tunnel("jun", 8))
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE tunnel SET prefixes = 'x' WHERE user = 'itojun'")
    assert [each._replace(since=SINCE) for each in db.tunnels()] == [tunnel("jun", 8)]
    db.delete("itojun")
    db.put(User("jun", prefixes=(PREFIX,)))  # nothing is held any more


# --- slow -------------------------------------------------------------------------------------


class _Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.hazard(74)
def test_what_cannot_be_recorded_now_is_recorded_later(
    db: Store, path: str, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    monkeypatch.setattr(database, "HASTE", 0.01)
    log = _Log()
    builder = building.Builder(log, shared, 1280, None, keep=False)  # type: ignore[arg-type]
    builder._record("jun", tunnel("jun", 8))
    slow = sqlite3.connect(path, isolation_level=None)
    slow.execute("BEGIN IMMEDIATE")
    builder._record("itojun", tunnel("itojun", 7, PREFIX))
    builder._record("jun", None)
    assert [line.partition(": another")[0] for line in log.lines] == [
        f"{name}: recorded later: {path}" for name in ("itojun", "jun")
    ]
    builder.catch_up()
    assert builder.is_late
    assert [made.user for made in db.tunnels()] == ["jun"]
    slow.execute("COMMIT")
    builder.catch_up()
    assert not builder.is_late
    assert [made.user for made in db.tunnels()] == ["itojun"]
    slow.execute("BEGIN IMMEDIATE")
    builder._record("itojun", None)
    slow.execute("COMMIT")
    builder._record("itojun", tunnel("itojun", 9, PREFIX))  # which says all there is to say
    assert not builder.is_late
    slow.close()


@pytest.mark.hazard(74)
def test_a_full_disk_keeps_nobody_out(db: Store, path: str, shared: Shared) -> None:
    """Whoever can fill it; SQLite says the same of a file that may not grow."""
    log = _Log()
    builder = building.Builder(log, shared, 1280, None, keep=False)  # type: ignore[arg-type]
    shared._store._db.execute("PRAGMA max_page_count = 1")
    large = tunnel("itojun", 7, PREFIX)._replace(mark="x" * 100000)
    assert builder._record("itojun", large) == []
    assert log.lines == [f"itojun: recorded later: {path}: database or disk is full"]
    builder.catch_up()
    assert builder.is_late
    shared._store._db.execute("PRAGMA max_page_count = 1000000")
    builder.catch_up()
    assert not builder.is_late
    assert [made.user for made in db.tunnels()] == ["itojun"]


@pytest.mark.hazard(74)
def test_where_one_has_waited_in_vain_the_others_do_not(
    db: Store, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    slow = sqlite3.connect(path, isolation_level=None)
    monkeypatch.setattr(database, "PATIENCE", 0.3)
    monkeypatch.setattr(database, "HASTE", 0.1)
    db._db.set_trace_callback(said.append)
    slow.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        with pytest.raises(Busy):
            db.forget("itojun")
    slow.execute("COMMIT")
    for _ in range(2):
        db.forget("itojun")
    waits = [each.split()[-1] for each in said if each.startswith("PRAGMA busy_timeout")]
    assert waits == ["300", "100", "100", "300"]
    slow.close()


# --- of a server that runs --------------------------------------------------------------------

LAB = [pytest.mark.lab, pytest.mark.parametrize("release", ["15.1"], indirect=True)]

HOLD = """
import sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("BEGIN IMMEDIATE")
print("it is mine", flush=True)
sys.stdin.read()
"""

SQL = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1], timeout=10) as store:
    store.execute(sys.argv[2])
"""


def lab(test: object) -> object:
    for mark in LAB:
        test = mark(test)
    return test


def _stands(net: Internet, interface: str) -> bool:
    return interface in net.server.run(["ifconfig", "-l"]).stdout.split()


@lab
@pytest.mark.hazard(74)
def test_a_server_follows_its_store(net: Internet) -> None:
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    with (
        serve(net) as server,
        Talker(net, "itojun", "secret", "network") as itojun,
        Talker(net, "jun", "hidden", "host", "203.0.113.20") as jun,
    ):
        assert itojun.answer.startswith("+OK")
        assert jun.answer.startswith("+OK")
        new = ("--store", "/var/db/dtcps/new.db")
        dtcpauth(net.server, *new, "import", "users", "-", input="itojun:other\nkame:secret\n")
        dtcpauth(net.server, *new, "change", "-P", "2001:db8:3c3::/48", "itojun")
        net.server.run(["mv", "/var/db/dtcps/new.db", STORE])
        server.send(signal.SIGHUP)
        server.wait_for("the configuration was read again")
        before = server.lines[: [*map(_is_reload, server.lines)].index(True)]
        assert any("the store was replaced" in line for line in before)
        server.wait_for("jun: down: this user was deleted")
        assert _stands(net, "gif0")
        with Talker(net, "kame", "secret", "host", "203.0.113.20") as talker:
            assert talker.answer.startswith("+OK"), "\n".join(server.lines)
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as talker:
            assert talker.answer.startswith("-ERR")
        # And without a signal, at the next look.
        net.server.run(["cp", "-p", STORE, "/var/db/dtcps/new.db"])
        net.server.run([sys.executable, "-c", SQL, "/var/db/dtcps/new.db", "DELETE FROM user"])
        net.server.run(["mv", "/var/db/dtcps/new.db", STORE])
        server.wait_for("itojun: down: this user was deleted")
        assert server.end() == 0


def _is_reload(line: str) -> bool:
    return "the configuration was read again" in line


@lab
@pytest.mark.hazard(74)
def test_a_tunnel_outlives_its_store_and_its_server(net: Internet) -> None:
    with serve(net) as server, Talker(net, "itojun", "secret", "network") as talker:
        assert talker.answer.startswith("+OK")
        net.server.run(["cp", "-p", STORE, "/var/db/dtcps/new.db"])
        net.server.run([sys.executable, "-c", SQL, "/var/db/dtcps/new.db", "DELETE FROM tunnel"])
        net.server.run(["mv", "/var/db/dtcps/new.db", STORE])
        server.wait_for("the store was replaced")
        server.end(signal.SIGKILL)
    with Program(net.server, "dtcps", "-d", "2001:db8:1::") as server:
        server.wait_for("1 tunnels wait for their clients")
        with Talker(net, "itojun", "secret", "network") as talker:
            assert talker.answer.startswith("+OK")
            server.wait_for("itojun: up: gif0 .*, as it was")
        assert server.end() == 0


@lab
@pytest.mark.hazard(74)
def test_a_bad_row_is_no_word_against_anybody_else(net: Internet) -> None:
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    with (
        serve(net) as server,
        Talker(net, "itojun", "secret", "network") as itojun,
        Talker(net, "jun", "hidden", "host", "203.0.113.20") as jun,
    ):
        assert itojun.answer.startswith("+OK")
        assert jun.answer.startswith("+OK")
        statement = "UPDATE user SET expires = 'x' || name, disabled = name = 'itojun'"
        net.server.run([sys.executable, "-c", SQL, STORE, f"{statement} WHERE name = 'jun'"])
        dtcpauth(net.server, "change", "--disable", "itojun")
        server.wait_for("jun: invalid in the store: ")
        server.wait_for("itojun: down: this user is disabled")
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as talker:
            assert talker.answer == "-ERR internal error"
        dtcpauth(net.server, "change", "--enable", "itojun")
        with Talker(net, "itojun", "secret", "network") as talker:
            assert talker.answer.startswith("+OK")
        assert server.end() == 0


@lab
@pytest.mark.hazard(74)
def test_logins_go_on_while_somebody_writes(net: Internet) -> None:
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    with serve(net) as server:
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as talker:
            assert talker.answer.startswith("+OK")
        server.wait_for("jun: down")
        set_users(net.server, "kame:secret\n")
        slow = net.server.popen(
            [sys.executable, "-c", HOLD, STORE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert slow.stdout is not None
        assert slow.stdout.readline() == "it is mine\n"
        with Talker(net, "itojun", "secret", "network") as itojun:
            assert itojun.answer.startswith("+OK"), "\n".join(server.lines)
            server.wait_for("itojun: recorded later: ")
            with Talker(net, "kame", "secret", "host", "203.0.113.20") as talker:
                assert talker.answer == "-ERR internal error"  # it never had an address
            with Talker(net, "jun", "hidden", "host", "203.0.113.20") as talker:
                assert talker.answer.startswith("+OK"), "\n".join(server.lines)
            slow.communicate(timeout=30)
            wait_until("itojun's is recorded", lambda: "itojun" in _recorded(net))
            server.end(signal.SIGKILL)
    with Program(net.server, "dtcps", "-d", "2001:db8:1::") as server:
        server.wait_for("1 tunnels wait for their clients")
        with Talker(net, "itojun", "secret", "network") as talker:
            assert talker.answer.startswith("+OK")
            server.wait_for("itojun: up: gif.*, as it was")
        assert server.end() == 0


def _recorded(net: Internet) -> str:
    query = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute(sys.argv[2]))"
    words = [sys.executable, "-c", query, STORE, "SELECT user FROM tunnel"]
    return net.server.run(words).stdout
