"""What --status tells: the facts that a ledger keeps, for people and for machines."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
from dtcp import daemon
from dtcp.ledger import Ledger, LedgerError, Left
from dtcp.status import Facts, as_json, as_text

# As dtcpc 0.1.0 has left it when it was killed, or while it still runs; another member may come.
OF_THE_LAST_VERSION = """
{
 "uptime": 1.5,
 "tunnel": "gif0",
 "mark": "dtcpc itojun@tunnel.example.org pid 123",
 "undo": [["ifconfig", "$IF", "destroy"]],
 "facts": {
  "state": "waiting",
  "pid": 123,
  "server": "tunnel.example.org",
  "user": "itojun",
  "type": "network",
  "mtu": 1280,
  "reconnects": 2,
  "lines": ["gif0: 203.0.113.7 --> 192.0.2.1, mtu 1280"],
  "interface": "gif0",
  "local": "203.0.113.7",
  "remote": "192.0.2.1",
  "inner": null,
  "peer": null,
  "prefixes": ["2001:db8:3c3::/48"],
  "routes": ["default"],
  "lan": [],
  "since": 2.5,
  "last_reason": "lost: no answer to two pings",
  "next_attempt": 0.5,
  "mood": "good"
 }
}
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    path = tmp_path / "x.state"
    path.write_text(OF_THE_LAST_VERSION)
    path.chmod(0o600)
    return Ledger(str(path))


def test_the_state_file_of_the_last_version_is_understood(ledger: Ledger) -> None:
    undo = (("ifconfig", "$IF", "destroy"),)
    assert ledger.left() == Left(undo, "gif0", "dtcpc itojun@tunnel.example.org pid 123")
    facts = ledger.facts()
    assert as_text(facts) == [
        "trying again now: tunnel.example.org as itojun, type network",
        "gif0: 203.0.113.7 --> 192.0.2.1, mtu 1280",
        "because: lost: no answer to two pings",
        "pid 123",
    ]
    told = json.loads(OF_THE_LAST_VERSION)["facts"]
    day = time.time() - time.monotonic()
    times = {name: pytest.approx(told[name] + day, abs=5) for name in ("since", "next_attempt")}
    del told["mood"]
    # What it did not tell.
    unknown = dict.fromkeys(("data", "rtt_ms", "transport", "bytes_in", "bytes_out"))
    assert json.loads(json.dumps(as_json(facts))) == told | times | unknown


def test_how_often_it_came_back() -> None:
    facts = Facts("up", 1, reconnects=2, last_reason="lost: no answer to two pings")
    assert "logged in again 2 times, last: lost: no answer to two pings" in as_text(facts)


def test_what_is_told_is_read_as_it_was(tmp_path: Path) -> None:
    facts = Facts("up", 123, "192.0.2.1", "itojun", "host", 1280, since=3.5, routes=("default",))
    ledger = Ledger(str(tmp_path / "x.state"))
    ledger.tell(facts)
    assert ledger.facts() == facts


@pytest.mark.parametrize("text", ["{}", "[]", '{"facts": {}}', '{"facts": null}', "1"])
def test_without_facts_nothing_runs(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.state"
    path.write_text(text)
    path.chmod(0o600)
    facts = Ledger(str(path)).facts()
    assert as_text(facts) == ["not running"]
    assert as_json(facts) == {"state": "not running"}


# --- who may read it --------------------------------------------------------------------------


@pytest.mark.hazard(65)
@pytest.mark.parametrize(("readers", "mode"), [(None, 0o600), (os.getgid(), 0o640)])
def test_a_group_may_read_and_nobody_else_whatever_the_mask(
    tmp_path: Path, readers: int | None, mode: int
) -> None:
    for mask in (0, 0o077):
        before = os.umask(mask)
        try:
            Ledger(str(tmp_path / "x.state"), readers).tell(Facts("up"))
        finally:
            os.umask(before)
        info = (tmp_path / "x.state").stat()
        assert (info.st_mode & 0o7777, info.st_uid) == (mode, os.getuid())
        assert readers in (None, info.st_gid)


@pytest.mark.hazard(65)
def test_whoever_reads_it_may_lock_it_and_hinders_nobody(tmp_path: Path) -> None:
    path = tmp_path / "x.state"
    ledger = Ledger(str(path), os.getgid())
    ledger.tell(Facts("connecting"))
    with path.open() as stranger:
        ledger.tell(Facts("up"))
        fcntl.flock(stranger, fcntl.LOCK_EX | fcntl.LOCK_NB)  # what is no ledger any more
        with path.open() as another, pytest.raises(BlockingIOError):
            fcntl.flock(another, fcntl.LOCK_SH | fcntl.LOCK_NB)
    ledger.close()
    assert not path.exists()


def test_it_is_held_for_as_long_as_its_writer_lives(tmp_path: Path) -> None:
    path = str(tmp_path / "x.state")
    assert daemon.running(path) is None
    ledger = Ledger(path)
    ledger.record([("ifconfig", "gif0", "destroy")], "gif0", "a mark")
    assert daemon.running(path) is not None
    ledger.close()  # it is still there, for the next start
    assert Ledger(path).left() is not None
    assert daemon.running(path) is None


def test_one_that_is_replaced_at_the_moment_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "x.state")
    ledger = Ledger(path)
    ledger.tell(Facts("connecting"))
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        monkeypatch.undo()
        ledger.tell(Facts("up"))
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert daemon.running(path) is not None


@pytest.mark.hazard(65)
@pytest.mark.parametrize("mode", [0o660, 0o642])
def test_what_others_may_have_written_is_neither_undone_nor_shown(
    ledger: Ledger, mode: int
) -> None:
    os.chmod(ledger.path, mode)
    for use in (ledger.left, ledger.facts):
        with pytest.raises(LedgerError, match="writable by others; remove it"):
            use()
