"""Limits, timers and settings of the server, without a server."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from dtcp import daemon
from dtcp.server import limits, pools, settings
from dtcp.server.limits import Penalties, Quiet
from dtcp.server.settings import Settings, SettingsError
from dtcp.server.store import Store, User
from dtcp.server.timers import Timers
from hypothesis import given
from hypothesis import strategies as st

from tests.running import ROOT

# --- penalties --------------------------------------------------------------------------------


HERE, THERE = IPv4Address("203.0.113.7"), IPv4Address("203.0.113.8")


def test_penalties_double_and_have_an_end() -> None:
    penalties = Penalties(1)
    waits = [penalties.fail(HERE, "who", 0.0) for _ in range(10)]
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert penalties.left(HERE, "who", 10.0) == 50
    assert penalties.left(HERE, "who", 60.0) == 0
    assert Penalties(300).fail(HERE, "who", 0.0) == 0
    slow = Penalties(300)
    assert [slow.fail(HERE, "who", 0.0) for _ in range(3)] == [0, 300, 300]


@pytest.mark.hazard(68)
def test_nobody_waits_for_what_others_did() -> None:
    """Neither the neighbor at the same address, nor the user whose name is used elsewhere."""
    penalties = Penalties(1)
    for _ in range(limits.FAILURES - 1):
        penalties.fail(HERE, "who", 0.0)
    assert penalties.left(HERE, "who", 0.0) > 0
    assert penalties.left(HERE, "neighbor", 0.0) == 0
    assert penalties.left(THERE, "who", 0.0) == 0
    assert not penalties.crowded(HERE, 0.0)
    penalties.fail(HERE, "another", 1.0)
    assert penalties.crowded(HERE, 1.0)
    assert not penalties.crowded(THERE, 1.0)


@pytest.mark.hazard(68)
def test_a_login_forgives_nobody_else() -> None:
    penalties = Penalties(1)
    for _ in range(limits.FAILURES):
        penalties.fail(HERE, "who", 0.0)
    penalties.forgive(HERE, "neighbor")
    penalties.forgive(THERE, "who")
    assert penalties.left(HERE, "who", 0.0) == 60
    penalties.forgive(HERE, "who")
    assert penalties.left(HERE, "who", 0.0) == 0
    assert penalties.crowded(HERE, 0.0), "which says nothing of the others there"


@given(gaps=st.lists(st.integers(0, 6), min_size=60, max_size=200))
def test_an_address_has_so_many_failures_a_minute(gaps: list[int]) -> None:
    penalties, now, looked_at = Penalties(1), 0.0, list[float]()
    for number, gap in enumerate(gaps):
        now += gap / 2
        if not penalties.crowded(HERE, now):
            penalties.fail(HERE, f"user{number}", now)
            looked_at.append(now)
    for each in looked_at:
        assert sum(each <= other < each + limits.PERIOD for other in looked_at) <= limits.FAILURES


def test_who_has_been_quiet_is_forgiven() -> None:
    penalties = Penalties(1)
    for _ in range(5):
        penalties.fail(HERE, "who", 0.0)
    assert penalties.fail(HERE, "who", 8 + limits.FORGET + 1) == 0


def test_without_penalties_nobody_waits() -> None:
    penalties = Penalties(0)
    assert {penalties.fail(HERE, "who", 0.0) for _ in range(100)} == {0}
    assert not penalties.crowded(HERE, 0.0)
    assert len(penalties) == 0


def test_the_tables_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LARGEST", 100)
    penalties = Penalties(1)
    for number in range(10000):
        penalties.fail(IPv4Address(number), "who", number / 1000)
    assert len(penalties) == 200
    penalties.fail(HERE, "late", 10000.0)
    assert len(penalties) == 2  # nobody else has mattered for long


# --- the log ----------------------------------------------------------------------------------


class Said(daemon.Log):
    """A log, and a clock."""

    def __init__(self) -> None:
        super().__init__("dtcps")
        self.lines: list[str] = []
        self.now = 0.0
        self.quiet = Quiet(self, lambda: self.now)

    def notice(self, text: str) -> None:
        self.lines.append(text)


def test_so_many_lines_a_second_and_the_rest_counted() -> None:
    said = Said()
    for number in range(1000):
        said.now = 0.0009 * number
        said.quiet.notice("scan", "x")
    assert said.lines == ["x"] * limits.LINES
    said.quiet.notice("other", "y")
    said.now = 1.5
    said.quiet.notice("scan", "x")
    said.quiet.notice("scan", "x")
    assert said.lines[limits.LINES :] == ["y", "x (and 995 more like this)", "x"]


def test_what_was_not_said_is_told_in_the_end() -> None:
    said = Said()
    for _ in range(10):
        said.quiet.notice("scan", "x")
    for said.now in (0.5, 1.5, 9.9):
        said.quiet.catch_up()
    assert said.lines == ["x"] * limits.LINES + ["scan: 5 more"]


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
    assert settings.parse("", "x") == (Settings(), [])
    assert settings.parse("# a remark\n\n   \n", "x") == (Settings(), [])


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
adopt-time = 0
penalty = 2
metrics = 127.0.0.1:9123
tls-certificate = /usr/local/etc/dtcps.pem
tls-key = /usr/local/etc/dtcps.key
tls-required = yes
"""
    found, remarks = settings.parse(text, "x")
    assert not remarks
    assert all(getattr(found, name) != getattr(Settings(), name) for name in Settings._fields)


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
        ("prefix = x", "'x' is not an IPv6 prefix"),
        ("prefix = 2001:db8::1/64", "2001:db8::1/64 is an address in a prefix; the prefix is 2001"),
        ("delegate = 2001:db8::/40", "'2001:db8::/40' is not: prefix/length /length"),
        ("delegate = 2001:db8::/40 /²", "'2001:db8::/40 /\\xb2' is not: prefix/length /length"),
        ("delegate = 2001:db8::/40 /٤٨", "u0664\\u0668' is not: prefix/length /length"),
        ("delegate = 2001:db8::/40 /32", "cannot be cut into /32"),
        ("delegate = 2001:db8:9::/48 /48", "2001:db8:9::/48 cannot be cut into /48"),
        ("delegate = ::/0 /48", "'::/0': only /16 to /64 can be delegated"),
        ("delegate = 2001:db8:9:2::/63 /64\ndelegate = 2001:db8:9::/48 /64", "overlaps"),
        ("unreachable = 192.0.2.0/24", "'192.0.2.0/24' is not an IPv6 prefix"),
        ("unreachable = ::/0", "'::/0': only /16 to /64 can be delegated"),
        ("listen = localhost", "invalid IPv4 address: 'localhost'"),
        ("store = dtcps.db", "'dtcps.db' is not an absolute path"),
        ("metrics = 0.0.0.0:9123", "is not: loopback-address:port"),
        ("metrics = 127.0.0.1", "is not: loopback-address:port"),
        ("tls-certificate = dtcps.pem", "'dtcps.pem' is not an absolute path"),
        ("tls-key = dtcps.key", "'dtcps.key' is not an absolute path"),
        ("tls-required = true", "'true' is neither yes nor no"),
        ("mtu = 1400\nmtu = 1400", "mtu is given twice"),
    ],
)
def test_a_wrong_line_is_named(line: str, why: str) -> None:
    number = 2 + line.count("\n")
    with pytest.raises(SettingsError) as caught:
        settings.parse(f"\n{line}\n", "/etc/x.conf")
    assert str(caught.value).startswith(f"/etc/x.conf:{number}: ")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tls-certificate = /a", "tls-certificate and tls-key go together"),
        ("tls-key = /a\ntls-required = yes", "tls-certificate and tls-key go together"),
        ("tls-required = yes", "tls-required goes with tls-certificate and tls-key"),
    ],
)
def test_what_belongs_together_is_there_or_not_at_all(text: str, why: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.parse(text, "/etc/x.conf")
    assert str(caught.value) == f"/etc/x.conf: {why}"
    assert settings.parse("tls-required = no", "x") == (Settings(), [])


def test_what_can_no_longer_be_set_is_said_and_does_no_harm() -> None:
    text = "line-length = 256\nmtu = 1400\nlogin-time = nonsense\n"
    assert settings.parse(text, "/etc/x.conf") == (
        Settings(mtu=1400),
        [
            "/etc/x.conf:1: line-length is now fixed at 512; remove this line",
            "/etc/x.conf:3: login-time is now fixed at 60; remove this line",
        ],
    )
    _, remarks = settings.parse("".join(f"{key} = 7\n" for key in settings._FIXED), "x")
    assert len(remarks) == len(settings._FIXED) == 6


def test_pools_of_different_kinds_must_not_overlap() -> None:
    text = "delegate = 2001:db8:4000::/40 /48"
    why = "x:1: 2001:db8:4000::/40 overlaps 2001:db8:4001::/64"
    with pytest.raises(SettingsError, match=why):
        settings.parse(text, "x", pools.pairs("2001:db8:4001::"))
    both, _ = settings.parse(f"unreachable = 2001:db8:4000::/36\n{text}", "x")
    assert both.unreachable


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = str(tmp_path / "dtcps.conf")
    assert settings.read(path, needed=False) == (Settings(), [])
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


def test_a_file_of_an_earlier_version_is_taken_with_a_warning(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with contextlib.closing(Store(str(tmp_path / "dtcps.db"), create=True)):
        pass
    path = tmp_path / "dtcps.conf"
    path.write_text(f"store = {tmp_path / 'dtcps.db'}\nidle-time = 600\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "dtcps.py"), "--check", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == f"dtcps: {path}:2: idle-time is now fixed at 300; remove this line\n"
