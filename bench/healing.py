"""In the lab, with real packets: seconds without packets after each loss of a part of the tunnel.

A ping every 20 ms through the tunnel tells for how long there was no answer.  The lab's commands
are Python programs: each takes far longer than FreeBSD's.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.figures import Figure
from bench.place import undisturbed
from lab.host import Host
from lab.internet import Internet
from lab.machine import machine
from tests.running import FAR, login, serve

INTERVAL = 0.02  # seconds between two pings
GAP = 0.1  # seconds without an answer that count as an interruption
NONE = 5.0  # seconds without such a gap, after which there will be none
QUIET = 1.0  # seconds of answers after which a loss counts as healed
PATIENCE = 30.0
GOAL = 3.0  # seconds
GIF = 41  # the protocol
PROBED = 2 * 60.0 + 10.0  # seconds: dtcp.client.probe

GO = "ifconfig em0 inet 203.0.113.7 -alias"
COME = "ifconfig em0 inet 203.0.113.7/24 alias; route -n add default 203.0.113.1"
FLAPPING = "own address gone and back ten times, from its last return"
LOSSES = {
    "interface down": "ifconfig gif0 down",
    "inner address": "ifconfig gif0 inet6 2001:db8:1::6 -alias",
    "outer pair": "ifconfig gif0 deletetunnel",
    "IPv6 switched off": "ifconfig gif0 inet6 ifdisabled",
    "default route": "route -n delete -inet6 default -interface gif0",
    "these four at once": """
        route -n delete -inet6 default -interface gif0
        ifconfig gif0 inet6 2001:db8:1::6 -alias
        ifconfig gif0 deletetunnel
        ifconfig gif0 down
        """,
    "interface destroyed": "ifconfig gif0 destroy",
    FLAPPING: f"""
        for i in 1 2 3 4 5 6 7 8 9; do {GO}; sleep 0.75; {COME}; sleep 0.75; done
        {GO}; sleep 0.75; {COME}
        """,
}


SILENCE = "silence of protocol 41: from the first packet lost until it counts as lost"
SILENT = 75.0  # seconds


class _Answers:
    """The moments of the answers to a ping that goes on and on."""

    def __init__(self, host: Host) -> None:
        self.moments: list[float] = []
        words = ["ping", "-6", "-n", "-i", str(INTERVAL), FAR]
        self._process = host.popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "time=" in line:
                self.moments.append(time.monotonic())

    def healed(self, begun: float) -> float | None:
        """Wait until they come again; seconds from `begun` to the first after the last gap."""
        while (now := time.monotonic()) < begun + PATIENCE:
            time.sleep(0.1)
            after = [each for each in self.moments if each > begun]
            gaps = [
                later
                for earlier, later in zip([begun, *after], after, strict=False)
                if later - earlier > GAP
            ]
            if gaps and now - gaps[-1] > QUIET and now - after[-1] < GAP + QUIET / 2:
                return gaps[-1] - begun
            if not gaps and now > begun + NONE:
                return GAP  # at most
        return None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()


@contextmanager
def _tunnel() -> Iterator[tuple[Internet, _Answers, float]]:
    """A small internet with a tunnel in it, the answers, and a round trip (seconds)."""
    with Internet() as net, serve(net), login(net.client, "-l", "-t", "host") as client:
        client.wait_for("packets pass")
        time.sleep(QUIET)  # the monitor has begun to listen
        shown = net.client.run(["ping", "-6", "-q", "-c", "5", "-i", "0.05", FAR]).stdout
        found = re.search(r"= [0-9.]+/([0-9.]+)/", shown)
        assert found
        answers = _Answers(net.client)
        try:
            yield net, answers, float(found[1]) / 1000
        finally:
            answers.end()
            client.end()


def silence() -> Figure:
    """What only the probes reveal, which go along with the pings of the control connection."""
    with Internet() as net, serve(net), login(net.client, "-l", "-t", "host") as client:
        client.wait_for("packets pass")
        net.router.run(machine.drop(GIF))
        begun = time.monotonic()
        client.wait_for("lost: nothing comes back through the tunnel", 150)
        seconds = time.monotonic() - begun
        client.end()
    return Figure(
        SILENCE,
        f"{seconds:.1f} s",
        f"two intervals of the ping and five more requests, {PROBED:g} s",
        seconds / PROBED,
        f"within {SILENT:g} s",
        seconds <= SILENT,
    )


def measure(times: int) -> list[Figure]:
    """All losses, one after the other, in one tunnel each time."""
    took: dict[str, list[float]] = {what: [] for what in LOSSES}
    trips = []
    for _ in range(times):
        with _tunnel() as (net, answers, trip), undisturbed():
            trips.append(trip)
            for what, script in LOSSES.items():
                begun = time.monotonic()
                net.client.run(["sh", "-c", script], check=False, timeout=60)
                if what == FLAPPING:
                    begun = time.monotonic()
                if (seconds := answers.healed(begun)) is None:
                    raise RuntimeError(f"no packet passes after: {what}")
                took[what].append(seconds)
    trip = statistics.median(trips)
    runs = f" ({times} runs)" if times > 1 else ""
    return [
        Figure(
            f"healing, {what}{runs}",
            f"{(seconds := statistics.median(each)):.2f} s without packets",
            f"a round trip through the tunnel, {trip * 1000:.2f} ms",
            seconds / trip,
            f"within {GOAL:g} s",
            seconds <= GOAL,
        )
        for what, each in took.items()
    ]
