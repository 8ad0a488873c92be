"""In the lab, with real packets: the first tunnel, and recovery of a lost one.

Recovery is measured for the client, so the server is the scripted one of the tests, which grants
at once; the first tunnel is measured with dtcps.  The lab's commands are
Python programs: each takes far longer than FreeBSD's.
"""

from __future__ import annotations

import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.figures import Figure, ms
from bench.place import undisturbed
from lab.host import Host
from lab.internet import SERVER4, Internet
from tests.running import PREFIX, ROOT, SERVER, Program, login, ping, serve

RESTARTED, RESET, MOVED, SILENT = 3.0, 1.0, 2.0, 91.0  # seconds
PINGS_GIVEN_UP = 60.0 + 2 * 15.0  # dtcp.wire: PING_INTERVAL and twice PING_TIME
PATIENCE = 120.0
SILENCE = "recovery, peer silent right behind the login"


def _up_again(client: Program, since: int) -> float:
    """When a client's tunnel was up again (monotonic clock), after this many of its lines."""
    end = time.monotonic() + PATIENCE
    while not any("up after" in line for line in client.lines[since:]):
        if time.monotonic() > end or client.ended:
            raise RuntimeError("\n".join(["dtcpc did not come back:", *client.lines]))
        time.sleep(0.005)
    return time.monotonic()


def _server(host: Host) -> subprocess.Popen[str]:
    """The scripted server, listening."""
    process = host.popen(
        [
            *(sys.executable, str(ROOT / "tests/servers.py"), "kame"),
            *("--user", "itojun", "--password", "secret", "--prefix", PREFIX),
        ],
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    while (line := process.stderr.readline()) and line != "ready\n":
        pass
    return process


@contextmanager
def _tunnel() -> Iterator[tuple[Internet, subprocess.Popen[str], Program, float]]:
    """A small internet with a tunnel in it, and the round-trip time there (seconds)."""
    with Internet() as net:
        net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")
        server = _server(net.server)
        shown = net.client.run(["ping", "-q", "-c", "5", "-i", "0.05", SERVER4]).stdout
        found = re.search(r"= [0-9.]+/([0-9.]+)/", shown)
        assert found
        with Program(net.client, "dtcpc", "-l", "-t", "host", "-u", "itojun", SERVER) as client:
            client.wait_for("up after")
            yield net, server, client, float(found[1]) / 1000
            client.end()


def _restarted() -> tuple[float, float]:
    """Seconds since the server listens again, and a round trip."""
    with _tunnel() as (net, server, client, trip):
        seen = len(client.lines)
        server.kill()
        client.wait_for("lost: ")
        _server(net.server)
        begun = time.monotonic()
        return _up_again(client, seen) - begun, trip


def _reset() -> tuple[float, float]:
    """Seconds since the connection was reset, and a round trip."""
    with _tunnel() as (net, _, client, trip):
        seen, begun = len(client.lines), time.monotonic()
        net.server.run(["ss", "-K", "sport", "=", ":20200", "dst", "203.0.113.7"])
        return _up_again(client, seen) - begun, trip


def _moved() -> tuple[float, float]:
    """Seconds since the new address and its route were set."""
    with _tunnel() as (net, _, client, trip):
        seen = len(client.lines)
        net.client.run(
            [
                *("sh", "-ec"),
                """
                ifconfig em0 inet 203.0.113.8/24 alias
                ifconfig em0 inet 203.0.113.7 -alias
                route -n delete default
                route -n add default 203.0.113.1
                """,
            ]
        )
        begun = time.monotonic()
        return _up_again(client, seen) - begun, trip


def _silent() -> tuple[float, float]:
    """Seconds since the server fell silent, right after the login."""
    with _tunnel() as (_, server, client, trip):
        seen, begun = len(client.lines), time.monotonic()
        # nsenter(1) and env(1) have become the server.
        server.send_signal(signal.SIGSTOP)
        client.wait_for("lost: no answer", PATIENCE)
        server.send_signal(signal.SIGCONT)
        return _up_again(client, seen) - begun, trip


def _figure(
    what: str, measure: Callable[[], tuple[float, float]], times: int, goal: float, limit: str
) -> Figure:
    took = []
    for _ in range(times):
        with undisturbed():
            took.append(measure())
    seconds = statistics.median(each for each, _ in took)
    trip = statistics.median(each for _, each in took)
    runs = f" ({times} runs)" if times > 1 else ""
    return Figure(
        f"recovery, {what}{runs}",
        f"{seconds:.2f} s",
        f"{limit}{trip * 1000:.2f} ms",
        seconds / trip,
        f"within {goal:g} s",
        seconds <= goal,
    )


def measure(times: int) -> list[Figure]:
    """Failures that are noticed at once."""
    trip = "a round trip, "
    return [
        _first(),
        _figure("server restarted: from its listening again", _restarted, times, RESTARTED, trip),
        _figure("connection reset", _reset, times, RESET, trip),
        _figure("own address changed: from its new route", _moved, times, MOVED, trip),
    ]


def silence() -> Figure:
    """A failure that only the pings reveal."""
    seconds, _ = _silent()
    return Figure(
        SILENCE,
        f"{seconds:.2f} s",
        f"the ping interval and two pings without an answer, {PINGS_GIVEN_UP:g} s",
        seconds / PINGS_GIVEN_UP,
        f"within {SILENT:g} s",
        seconds <= SILENT,
    )


def _first() -> Figure:
    """From the client's start to the first packet back through the tunnel."""
    with Internet() as net, undisturbed(), serve(net):
        begun = time.monotonic()
        with login(net.client, "-t", "host") as client:
            client.wait_for("up after")
            up = time.monotonic() - begun
            answered = ping(net.client)
            first = time.monotonic() - begun
            lines = [line.partition("# ")[2] for line in client.lines if "dtcpc: # " in line]
            client.end()
        if not answered:
            raise RuntimeError("nothing came back through the tunnel")
        # These cannot alternate, as the commands that create the tunnel must find none.
        script = "\n".join(line for line in lines if "monitor" not in line)
        begun = time.monotonic()
        net.client.run(["sh", "-c", f"{{ {script}\n}} >/dev/null 2>&1"], check=False, timeout=60)
        commands = time.monotonic() - begun
    return Figure(
        "client, time to tunnel in the lab (dtcps, real packets)",
        f"{ms(up)}, {ms(first)} to the first answer through it",
        f"the client's commands there, run by sh(1): {ms(commands)}",
        up / commands,
        "",
        None,
    )
