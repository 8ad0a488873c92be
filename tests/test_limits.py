"""Limits, timers and settings of the server, without one."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

import pytest
from dtcp import limits, settings
from dtcp.limits import Penalties, Quiet
from dtcp.settings import Settings, SettingsError
from dtcp.store import Store, User
from dtcp.timers import Timers
from hypothesis import given
from hypothesis import strategies as st

from tests.running import ROOT

# --- penalties --------------------------------------------------------------------------------


def test_penalties_double_and_have_an_end() -> None:
    penalties = Penalties(1, 60)
    waits = [penalties.fail("who", 0.0) for _ in range(9)]
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert penalties.left("who", 10.0) == 50
    assert penalties.left("who", 60.0) == 0
    assert penalties.left("another", 0.0) == 0


def test_who_has_logged_in_is_forgiven_and_who_has_been_quiet() -> None:
    penalties = Penalties(1, 60)
    for _ in range(5):
        penalties.fail("who", 0.0)
    penalties.forgive("who")
    assert penalties.left("who", 0.0) == 0
    for _ in range(5):
        penalties.fail("who", 0.0)
    assert penalties.fail("who", 8 + limits.FORGET + 1) == 0


def test_the_table_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LARGEST", 100)
    penalties = Penalties(1, 60)
    for number in range(10000):
        penalties.fail(number, number / 1000)
    assert len(penalties) == 100
    penalties.fail("late", 10000.0)
    assert len(penalties) == 1  # nobody else has mattered for long


# --- the log ----------------------------------------------------------------------------------


def test_so_many_lines_a_second_and_the_rest_counted() -> None:
    quiet = Quiet(3)
    said = [quiet.say("scan", 0.001 * number) for number in range(1000)]
    assert [say for say, _ in said].count(True) == 3
    assert quiet.say("other", 0.5) == (True, 0)
    assert quiet.say("scan", 1.5) == (True, 997)
    assert quiet.say("scan", 1.5) == (True, 0)


def test_what_was_not_said_is_told_in_the_end() -> None:
    quiet = Quiet(1)
    for _ in range(10):
        quiet.say("scan", 0.0)
    assert quiet.kept(0.5) == []
    assert quiet.kept(1.5) == [("scan", 9)]
    assert quiet.kept(9.9) == []


# --- timers -----------------------------------------------------------------------------------


class Thing:
    deadline = math.inf


def test_a_deadline_that_moves_away_costs_nothing_until_it_comes() -> None:
    timers: Timers[Thing] = Timers(lambda thing: thing.deadline)
    thing = Thing()
    thing.deadline = 10
    timers.watch(thing)
    for moment in range(1, 10):
        thing.deadline = 10 + moment
        timers.watch(thing)
    assert timers.first() == 10
    assert list(timers.due(10)) == []
    assert timers.first() == 19
    assert list(timers.due(19)) == [thing]
    assert list(timers.due(99)) == []
    assert timers.first() == math.inf


def test_what_has_gone_is_not_due() -> None:
    timers: Timers[Thing] = Timers(lambda thing: thing.deadline)
    thing = Thing()
    thing.deadline = 1
    timers.watch(thing)
    timers.forget(thing)
    assert timers.first() == math.inf
    assert list(timers.due(2)) == []


ACTS = st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 30))))


@given(acts=ACTS)
def test_each_is_due_when_it_says_and_never_twice(acts: list[tuple[int, int | None]]) -> None:
    timers: Timers[Thing] = Timers(lambda thing: thing.deadline)
    things = [Thing() for _ in range(5)]
    for now, (which, later) in enumerate(acts):
        thing = things[which]
        if later is None:
            timers.forget(thing)
            thing.deadline = math.inf
        else:
            thing.deadline = now + later
            timers.watch(thing)
        expected = {each for each in things if each.deadline <= now}
        assert min((each.deadline for each in things), default=math.inf) >= timers.first() or (
            timers.first() == math.inf
        )
        due = list(timers.due(now))
        assert len(due) == len(set(due))
        assert set(due) == expected
        for each in due:
            each.deadline = math.inf


# --- the configuration file -------------------------------------------------------------------


def test_what_is_not_said_is_as_it_always_is() -> None:
    assert settings.parse("", "x") == Settings()
    assert settings.parse("# a remark\n\n   \n", "x") == Settings()


def test_everything_can_be_said() -> None:
    text = """
prefix = 2001:db8:1::
prefix = 2001:db8:2::/112
delegate = 2001:db8:4000::/40 /48
delegate = 2001:db8:5000::/40 /56
unreachable = 2001:db8::/32
listen = 192.0.2.1
store = /var/db/other.db
mtu = 1400
connections = 100
connections-per-address=2
logins-per-connection = 2
line-length = 256
login-time = 10
idle-time = 120
adopt-time = 0
penalty = 2
penalty-most = 600
log-lines = 3
metrics = 127.0.0.1:9123
"""
    found = settings.parse(text, "x")
    assert all(getattr(found, name) != getattr(Settings(), name) for name in Settings._fields)
    settings.check(found, "x")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "not: key = value"),
        ("mtu =", "not: key = value"),
        ("= 7", "not: key = value"),
        ("color = blue", "no such key: 'color'"),
        ("MTU = 1400", "no such key: 'MTU'"),
        ("mtu = 1279", "'1279' is not a number from 1280 to 8192"),
        ("mtu = 1400 # large", "'1400 # large' is not a number from 1280 to 8192"),
        ("mtu = -1", "'-1' is not a number"),
        ("prefix = 2001:db8::/120", "'2001:db8::/120' is too small"),
        ("prefix = ::/0", "'::/0' is too large: /16 is the largest"),
        ("prefix = x", "'x' is no IPv6 prefix"),
        ("delegate = 2001:db8::/40", "'2001:db8::/40' is not: prefix/length /length"),
        ("delegate = 2001:db8::/40 /32", "cannot be cut into /32"),
        ("delegate = 2001:db8:9::/48 /48", "2001:db8:9::/48 cannot be cut into /48"),
        ("delegate = ::/0 /48", "'::/0': only /16 to /64 can be delegated"),
        ("delegate = 2001:db8:9:2::/63 /64\ndelegate = 2001:db8:9::/48 /64", "overlaps"),
        ("unreachable = 192.0.2.0/24", "'192.0.2.0/24' is no IPv6 prefix"),
        ("unreachable = ::/0", "'::/0': only /16 to /64 can be delegated"),
        ("listen = localhost", "'localhost' is no IPv4 address"),
        ("store = dtcps.db", "'dtcps.db' is not an absolute path"),
        ("idle-time = 60", "'60' is not a number from 90 to 86400"),
        ("metrics = 0.0.0.0:9123", "is not: loopback-address:port"),
        ("metrics = 127.0.0.1", "is not: loopback-address:port"),
        ("mtu = 1400\nmtu = 1400", "mtu is there already"),
    ],
)
def test_a_wrong_line_is_named(line: str, why: str) -> None:
    number = 2 + line.count("\n")
    with pytest.raises(SettingsError) as caught:
        settings.parse(f"\n{line}\n", "/etc/x.conf")
    assert str(caught.value).startswith(f"/etc/x.conf:{number}: ")
    assert why in str(caught.value)


def test_pools_of_different_kinds_must_not_overlap() -> None:
    found = settings.parse("prefix = 2001:db8:4001::\ndelegate = 2001:db8:4000::/40 /48", "x")
    with pytest.raises(SettingsError, match="x: 2001:db8:4000::/40 overlaps 2001:db8:4001::/64"):
        settings.check(found, "x")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = str(tmp_path / "dtcps.conf")
    assert settings.read(path, needed=False) == Settings()
    with pytest.raises(SettingsError, match="no such file"):
        settings.read(path, needed=True)
    (tmp_path / "dtcps.conf").mkdir()
    with pytest.raises(SettingsError, match="Is a directory"):
        settings.read(path, needed=False)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prefix = 2001:db8:3c3:1::", "which overlaps prefix 2001:db8:3c3:1::/64"),
        ("prefix = 2001:db8:3c0::/44", "which overlaps prefix 2001:db8:3c0::/44"),
        ("delegate = 2001:db8:3c3::/48 /56", "and delegate 2001:db8:3c3::/48 lies within it"),
        ("delegate = 2001:db8:3c3:f00::/56 /64", "and delegate 2001:db8:3c3:f00::/56 lies within"),
        ("unreachable = 2001:db8:3c3::/48", "and unreachable 2001:db8:3c3::/48 lies within it"),
        ("unreachable = 2001:db8:3c3:7::/64", "and unreachable 2001:db8:3c3:7::/64 lies within"),
        ("delegate = 2001:db8:300::/40 /48\nunreachable = 2001:db8::/32", ""),
        ("prefix = 2001:db8:3c2::/48\nprefix = 2001:db8:3c4::/48", ""),
    ],
)
def test_what_is_a_users_for_ever_is_checked(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "dtcps.db"
    tmp_path.chmod(0o700)
    with contextlib.closing(Store(str(path), create=True)) as db:
        prefixes = tuple(map(IPv6Network, ("2001:db8:9::/48", "2001:db8:3c3::/48")))
        db.put(User("itojun", prefixes=prefixes), "secret")
        db.put(User("jun", address=IPv6Address("2001:db8:3c4::6")), "secret")
    (tmp_path / "dtcps.conf").write_text(f"store = {path}\n{line}\n")
    argv = [str(ROOT / "dtcps.py"), "--check", "--config", str(tmp_path / "dtcps.conf")]
    done = subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == bool(said)
    if said:
        assert done.stderr.startswith(f"dtcps: itojun has 2001:db8:3c3::/48, {said}")
    else:
        assert done.stderr == ""
