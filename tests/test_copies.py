"""Copies of the store: everybody has again what he had, and nobody who uses it is disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path

import pytest
from dtcp.grant import Grant
from dtcp.server import copies, database, pools
from dtcp.server.database import StoreError
from dtcp.server.store import Made, Shared, Store, Use, User

from lab.internet import Internet
from tests.running import ROOT, Talker, dtcpauth, serve, wait_until

PAIRS = pools.pairs("2001:db8:1::")
BLOCKS = pools.prefixes("2001:db8:4000::/40 /48")
PREFIX = IPv6Network("2001:db8:3c3::/48")
SINCE = 1e9  # the store keeps it by another clock


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "dtcps" / "dtcps.db")


@pytest.fixture
def db(path: str) -> Iterator[Store]:
    """A store with everything in it that there can be."""
    with contextlib.closing(Store(path, create=True)) as db:
        db.put(User("itojun", ("network",), prefixes=(PREFIX,)), 'pass wörd \\ "x" \udcff')
        for name in ("gone", "jun", "kame"):
            db.put(User(name), f"secret of {name}")
            db.lease(name, [PAIRS])
            db.lease(name, [BLOCKS])
        db.delete("gone")
        db.put(User("jun", disabled=True))
        db.add_use({"jun": Use(1e9, 5, 6)})
        db.remember(tunnel("itojun", PREFIX))
        db.set_unreachable([BLOCKS.prefix])
        yield db


def tunnel(user: str, *prefixes: IPv6Network) -> Made:
    grant = Grant(IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"), prefixes=prefixes)
    return Made(user, "network", grant, "gif7", f"dtcps {user}", "", False, SINCE)


def run(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "dtcpauth.py"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == status, done
    return done


def has(path: str) -> dict[str, object]:
    """All that a store has, but for what belongs to the host."""
    with contextlib.closing(Store(path)) as db:
        return {
            "users": [(each, db.password(each.name)) for each in db.users()],
            "leases": db.leases(),
            "use": db.use(),
            "room": sorted(db._db.execute("SELECT * FROM room")),
        }


def spoil(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        for statement in statements:
            raw.execute(statement)


# --- both ways --------------------------------------------------------------------------------


def test_on_another_machine_everybody_has_what_he_had(db: Store, path: str, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy", str(tmp_path / "other" / "dtcps.db")
    assert run("--store", path, "backup", str(copy)).stdout == ""
    assert copy.stat().st_mode & 0o777 == 0o600
    assert [*tmp_path.glob("copy*")] == [copy]  # all of it in a single file
    assert run("--store", other, "restore", str(copy)).stdout == "3 users\n"
    assert has(other) == has(path)
    assert os.stat(other).st_mode & 0o777 == 0o600
    assert os.listdir(os.path.dirname(other)) == ["dtcps.db"]
    with contextlib.closing(Store(other)) as there:
        for name in ("kame", "jun"):
            for pool in (PAIRS, BLOCKS):
                assert there.lease(name, [pool]) == db.lease(name, [pool])
        there.put(User("new"), "secret")
        assert there.lease("new", [BLOCKS]) not in {each.span for each in there.leases()[:-1]}
        assert (there.tunnels(), there.unreachable()) == ([], [])  # those are not of that machine
    listed = run("--store", path, "list", "--json")
    assert json.loads(run("--store", other, "list", "--json", "itojun", "jun", "kame").stdout) == (
        json.loads(listed.stdout)
    )


def test_a_copy_is_of_one_moment(db: Store, path: str, tmp_path: Path) -> None:
    """Whoever writes meanwhile; and of the log as well."""
    before = has(path)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM user")
    copies.backup(db, str(tmp_path / "copy"))
    writer.execute("ROLLBACK")
    writer.close()
    other = str(tmp_path / "other" / "dtcps.db")
    assert copies.restore(other, str(tmp_path / "copy")) == 3
    assert has(other) == before


def test_a_copy_replaces_nothing(db: Store, path: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("something else")
    said = run("--store", path, "backup", str(file), status=1).stderr
    assert said == f"dtcpauth: {file}: is there already\n"
    assert file.read_text() == "something else"
    assert [*tmp_path.glob("file*")] == [file]
    file = tmp_path / "nowhere" / "file"
    said = run("--store", path, "backup", str(file), status=1).stderr
    assert said == f"dtcpauth: {file}: No such file or directory\n"


@pytest.mark.parametrize("version", [1, 2])
def test_a_copy_of_an_earlier_version(tmp_path: Path, version: int) -> None:
    """As the shell of SQLite has made it, with the tunnels of another host."""
    file, path = tmp_path / "copy", str(tmp_path / "dtcps" / "dtcps.db")
    raw = sqlite3.connect(file)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.executescript((ROOT / f"tests/store_{version}.sql").read_text())
    raw.close()
    before = file.read_bytes()
    assert copies.restore(path, str(file)) == 3
    assert file.read_bytes() == before
    with contextlib.closing(Store(path)) as db:
        assert [user.name for user in db.users()] == ["itojun", "jun", "kame"]
        assert len(db.leases()) == 4
        assert db.tunnels() == []


# --- what is no copy --------------------------------------------------------------------------

WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda file: file.unlink(), "No such file or directory"),
    (lambda file: [each(file) for each in (os.unlink, os.mkdir)], "not a regular file"),
    (lambda file: [each(file) for each in (os.unlink, os.mkfifo)], "not a regular file"),
    (lambda file: file.write_bytes(b""), "not a store of dtcps"),
    (lambda file: file.write_text("nonsense" * 1000), "not a store of dtcps"),
    (lambda file: file.write_bytes(file.read_bytes()[:20000]), "malformed"),
    (lambda file: spoil(file, "PRAGMA application_id = 5"), "not a store of dtcps"),
    (lambda file: spoil(file, "PRAGMA user_version = 99"), "made by a later version of dtcps"),
    (lambda file: spoil(file, "PRAGMA user_version = 0"), "not a store of dtcps"),
    (lambda file: spoil(file, "PRAGMA user_version = 2"), "duplicate column name: login"),
    (lambda file: spoil(file, "DROP TRIGGER span_is_free"), "not a store of dtcps"),
    (lambda file: spoil(file, "CREATE TABLE more (x)"), "not a store of dtcps"),
    (lambda file: spoil(file, "DROP TABLE seen"), "not a store of dtcps"),
    (lambda file: file.with_name("copy-wal").touch(), "in use, as {}-wal says; use backup"),
]


@pytest.mark.parametrize(("wrong", "why"), WRONG, ids=range(len(WRONG)))
def test_what_is_no_copy_changes_nothing(
    db: Store, path: str, tmp_path: Path, wrong: Callable[[Path], object], why: str
) -> None:
    file, before = tmp_path / "copy", has(path)
    copies.backup(db, str(file))
    wrong(file)
    there = sorted(os.listdir(os.path.dirname(path)))
    done = run("--store", path, "restore", str(file), status=1)
    said, _, rest = done.stderr.partition("\n")
    assert said.startswith(f"dtcpauth: {file}: ")
    assert why.format(file) in said
    assert rest == done.stdout == ""
    assert has(path) == before
    assert sorted(os.listdir(os.path.dirname(path))) == there
    other = tmp_path / "other" / "dtcps.db"
    run("--store", str(other), "restore", str(file), status=1)
    assert not other.exists()


def test_where_others_can_write_nothing_is_restored(db: Store, path: str, tmp_path: Path) -> None:
    copies.backup(db, str(tmp_path / "copy"))
    before = has(path)
    os.chmod(os.path.dirname(path), 0o777)
    said = run("--store", path, "restore", str(tmp_path / "copy"), status=1).stderr
    assert "accessible by others; chmod go-w" in said
    os.chmod(os.path.dirname(path), 0o700)
    assert has(path) == before


# --- in use -----------------------------------------------------------------------------------


def test_a_server_takes_the_tunnels_along_and_sees_what_was_changed_meanwhile(
    db: Store, path: str, tmp_path: Path
) -> None:
    copies.backup(db, str(tmp_path / "copy"))
    db.delete("kame")
    db.put(User("late"), "secret")
    with contextlib.closing(Shared(path)) as shared:
        copies.restore(path, str(tmp_path / "copy"))
        assert not os.path.exists(f"{path}-wal")
        # The server has not looked yet: it goes on with what it has, and others with the new one.
        with shared() as store:
            store.remember(tunnel("itojun", PREFIX)._replace(interface="gif8"))
            store.forget("jun")
        with contextlib.closing(Store(path)) as other:
            assert [user.name for user in other.users()] == ["itojun", "jun", "kame"]
            assert [made.interface for made in other.tunnels()] == ["gif7"]
            other.put(User("new"), "secret")
            assert shared.follow(db)
            other.put(User("newer"), "secret")
        assert [user.name for user in db.users()] == ["itojun", "jun", "kame", "new", "newer"]
        assert [made.interface for made in db.tunnels()] == ["gif8"]
        assert db.unreachable() == [BLOCKS.prefix]
        db.put(User("last"), "secret")
    with contextlib.closing(Store(path)) as again:
        assert len(again.users()) == 6
        again.verify()


def test_who_writes_for_too_long_keeps_the_store(
    db: Store, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies.backup(db, str(tmp_path / "copy"))
    db.delete("kame")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    with pytest.raises(StoreError, match="another program"):
        copies.restore(path, str(tmp_path / "copy"))
    writer.execute("ROLLBACK")
    writer.close()
    assert [user.name for user in db.users()] == ["itojun", "jun"]
    assert sorted(os.listdir(os.path.dirname(path))) == [
        "dtcps.db",
        "dtcps.db-shm",
        "dtcps.db-wal",
    ]


def test_what_a_killed_server_has_left_is_not_forgotten(
    db: Store, path: str, tmp_path: Path
) -> None:
    copies.backup(db, str(tmp_path / "copy"))
    db.close()
    copies.restore(path, str(tmp_path / "copy"))
    with contextlib.closing(Store(path)) as again:
        assert [made._replace(since=SINCE) for made in again.tunnels()] == [
            tunnel("itojun", PREFIX)
        ]
        assert again.unreachable() == [BLOCKS.prefix]


def test_a_broken_store_is_replaced_with_its_log(db: Store, path: str, tmp_path: Path) -> None:
    copies.backup(db, str(tmp_path / "copy"))
    before = has(path)
    db.put(User("late"), "secret")
    log = Path(f"{path}-wal").read_bytes()
    assert log
    db.close()
    Path(path).write_text("nonsense" * 1000)
    Path(f"{path}-wal").write_bytes(log)
    assert run("--store", path, "restore", str(tmp_path / "copy")).stdout == "3 users\n"
    assert has(path) == before


@pytest.mark.lab
@pytest.mark.hazard(74)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_a_store_that_is_restored_under_a_server(net: Internet) -> None:
    """Its tunnels stay; who was not there loses his; and leases are what they were."""
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    with serve(net) as server, Talker(net, "itojun", "secret", "network") as itojun:
        assert itojun.answer.startswith("+OK")
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as jun:
            leased = jun.answer
            assert leased.startswith("+OK")
        server.wait_for("jun: down")
        dtcpauth(net.server, "backup", "/var/db/dtcps/copy")
        dtcpauth(net.server, "delete", "jun")
        dtcpauth(net.server, "import", "users", "-", input="kame:secret\n")
        with Talker(net, "kame", "secret", "host", "203.0.113.20") as kame:
            assert kame.answer.startswith("+OK")
            assert dtcpauth(net.server, "restore", "/var/db/dtcps/copy") == "2 users\n"
            dtcpauth(
                net.server, "change", "-e", "2131-12-31", "jun"
            )  # before the server has looked
            server.wait_for("the store was replaced")
            server.wait_for("kame: down: this user was deleted")
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as jun:
            assert jun.answer == leased
        wait_until("both ended", lambda: sum("jun: down" in line for line in server.lines) == 2)
        assert "2131-12-31" in dtcpauth(net.server, "list", "jun")
        assert itojun.process.poll() is None
        server.end(signal.SIGKILL)
    with serve(net) as server:
        server.wait_for("1 tunnels wait for their clients")
        assert server.end() == 0
