"""The time of day may jump: reported durations do not."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from dtcp import daemon
from dtcp.grant import Grant
from dtcp.ledger import Ledger
from dtcp.server import report
from dtcp.server.counts import Counts
from dtcp.server.records import State, Tunnel
from dtcp.server.store import Made, Store
from dtcp.status import Facts, as_text

from tests.running import ROOT

STANDING = Made(
    "itojun", "tunnelonly", Grant(IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1")),
    "gif0", "a mark", "", False, 0.0,
)  # fmt: skip

FACTS = Facts("connecting", 123, "tunnel.example.org", "itojun", "host")


@pytest.mark.hazard(28)
@pytest.mark.parametrize("jump", [-86400.0, 0.0, 86400.0])
def test_a_clock_that_is_set_changes_no_span(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    here = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: here)
    up = FACTS._replace(state="up", since=time.monotonic() - 65)
    waiting = FACTS._replace(state="waiting", next_attempt=time.monotonic() + 65.5)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert as_text(up)[0].startswith("up for 1 min 5 s: ")
    assert as_text(waiting)[0].startswith("trying again in 1 min 5 s: ")


@pytest.mark.hazard(28)
def test_machines_get_the_time_of_day(tmp_path: Path) -> None:
    pid_file = daemon.PidFile(str(tmp_path / "x.pid"))
    pid_file.write()
    ledger = Ledger(str(tmp_path / "x.state"))
    ledger.tell(FACTS._replace(state="up", since=time.monotonic() - 65))
    words = [sys.executable, str(ROOT / "dtcpc.py"), "--status", "--json", "-f", pid_file.path]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert abs(json.loads(done.stdout)["since"] - (time.time() - 65)) < 30
    pid_file.remove()


@pytest.mark.hazard(78)
@pytest.mark.parametrize("jump", [-86400.0, 0.0, 86400.0])
def test_nor_does_it_in_the_servers_status(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    here = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: here)
    counts = Counts()
    counts.started = time.monotonic() - 3720
    made = STANDING._replace(since=time.monotonic() - 65)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    tunnel = Tunnel("itojun", Counter())
    tunnel.become(State.ORPHAN)
    tunnel.made = made
    told = json.loads(report.as_json(counts, [tunnel]))
    first, _, row = report.text(told, time.time())
    assert first.startswith("up for 1 h 2 min, ")
    assert row.split()[5] == "1min5s"
    lines = report.prometheus(counts, [tunnel]).splitlines()
    (started,) = [line for line in lines if line.startswith("dtcps_start_time_seconds ")]
    assert abs(float(started.split()[1]) - (now + jump - 3720)) < 30


@pytest.mark.hazard(78)
def test_a_tunnel_taken_over_is_as_old_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    made = STANDING._replace(since=time.monotonic() - 65)
    path = str(tmp_path / "dtcps.db")
    with contextlib.closing(Store(path, create=True)) as store:
        store.remember(made)
    with contextlib.closing(Store(path)) as store:
        (again,) = store.tunnels()
    assert abs(again.since - made.since) < 30
