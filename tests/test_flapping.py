"""Our own address comes and goes, many times: the tunnel is back when it stays."""

from __future__ import annotations

import sys

import pytest

from lab.internet import Internet
from tests.running import ROOT, is_watched, login, ping, serve, set_users, wait_until

pytestmark = pytest.mark.lab

STATUS = [sys.executable, str(ROOT / "dtcpc.py"), "--status"]
GO = "ifconfig em0 inet 203.0.113.7 -alias"
COME = "ifconfig em0 inet 203.0.113.7/24 alias; route -n add default 203.0.113.1 || true"


@pytest.mark.hazard(53)
def test_the_same_address_that_comes_back_is_a_change(net: Internet) -> None:
    """It ends a wait that began while we had it."""
    with serve(net):
        set_users(net.server, "itojun:changed\n")
        with login(net.client, "-l", "-t", "host") as client:
            client.wait_for("trying again in 300 s")
            wait_until("it is told of changes", lambda: is_watched(net))
            seen = len(client.lines)
            net.client.run(["sh", "-c", f"{GO}; sleep 0.5; {COME}"])
            wait_until("a login", lambda: any("logging in" in x for x in client.lines[seen:]))
            assert client.end() == 0


@pytest.mark.hazard(53)
@pytest.mark.parametrize(
    ("times", "gone", "there"),
    [
        (10, 0.75, 0.75),
        pytest.param(5, 1.5, 0.1, marks=pytest.mark.whole),
        pytest.param(40, 0.75, 0.75, marks=pytest.mark.whole),
        pytest.param(10, 3.0, 2.0, marks=pytest.mark.whole),
    ],
)
def test_it_is_up_when_the_address_stays(
    net: Internet, times: int, gone: float, there: float
) -> None:
    with serve(net), login(net.client, "-l", "-t", "host") as client:
        client.wait_for("up after")
        once = f"{GO}; sleep {gone}; {COME}; sleep {there}"
        script = f"for i in $(seq {times}); do {once}; done; {GO}; sleep {gone}; {COME}"
        net.client.run(["sh", "-c", script], timeout=300)
        # Waits of minutes, as they were, are beyond this; seconds are in the benchmark.
        wait_until("it is up", lambda: net.client.run(STATUS, check=False).returncode == 0, 40)
        assert ping(net.client)
        assert client.end() == 0
