"""The time of day may jump: what is told of spans does not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dtcp import daemon
from dtcp.ledger import Ledger

from dtcpc import status_lines
from tests.running import ROOT

LOGIN = {"server": "tunnel.example.org", "user": "itojun", "type": "host", "pid": 123}


@pytest.mark.hazard(28)
@pytest.mark.parametrize("jump", [-86400.0, 0.0, 86400.0])
def test_a_clock_that_is_set_changes_no_span(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    up = {"state": "up", "since": time.monotonic() - 65, **LOGIN}
    waiting = {"state": "waiting", "next_attempt": time.monotonic() + 65.5, **LOGIN}
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert status_lines(up)[0].startswith("up for 1 min 5 s: ")
    assert status_lines(waiting)[0].startswith("trying again in 1 min 5 s: ")


@pytest.mark.hazard(28)
def test_machines_get_the_time_of_day(tmp_path: Path) -> None:
    pid_file = daemon.PidFile(str(tmp_path / "x.pid"))
    pid_file.write()
    ledger = Ledger(str(tmp_path / "x.state"))
    ledger.tell(state="up", since=time.monotonic() - 65, **LOGIN)
    words = [sys.executable, str(ROOT / "dtcpc.py"), "--status", "--json", "-f", pid_file.path]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert abs(json.loads(done.stdout)["since"] - (time.time() - 65)) < 30
    pid_file.remove()
