"""The server: logins, and ten thousand sessions.

One dtcps with stub commands; the clients create nothing.  They share two processors.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.crowd import Crowd
from bench.figures import Figure, ms
from bench.place import Installed, undisturbed
from bench.server import CROWD, Server
from lab.freebsd.crowd import takes

SESSIONS = 10_000
RATE = SESSIONS / 60  # pings a second, of so many that wait
AT_ONCE = 32  # concurrent logins
LEAST_LOGINS = 0.5  # of what sh(1) does
MOST_MEMORY = 12.0  # KB for a session
MOST_DELAY = 0.020  # seconds, for 99 of 100 pings
MOST_STATUS, MOST_RESTART = 1.0, 5.0  # seconds
PATIENCE = 600.0


def measure(
    installed: Installed, directory: Path, *, sessions: int, logins: int, seconds: float
) -> list[Figure]:
    """All figures of the server, with so many sessions, and so long a wait."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sessions = min(sessions, hard - 200)
    served = Server(installed, directory / "server", sessions)
    crowd = Crowd(sessions)
    try:
        served.trace()
        _some(crowd, 1)
        lines = served.login_commands()
        crowd.leave()
        served.again()
        _some(crowd, logins // 4)  # what the first logins allocate once does not count
        before, had = served.memory(), crowd.up
        found = [_logins(served, crowd, lines, logins)]
        crowd.all_up(PATIENCE, AT_ONCE)
        found.append(_memory(served, before, crowd.up - had))
        found.append(_pings(served, crowd, seconds))
        found.append(_status(served, crowd))
        found += _all_at_once(served, crowd)
        crowd.leave()
        return found
    except RuntimeError as error:
        last = "\n".join(served.said().splitlines()[-20:])
        raise RuntimeError(f"{error}; dtcps said last:\n{last}") from None
    finally:
        served.kill()


def _some(crowd: Crowd, count: int) -> float:
    """Log in this many absent users; the seconds it took."""
    return crowd.all_up(PATIENCE, AT_ONCE, crowd.up + count)


def _logins(served: Server, crowd: Crowd, lines: list[str], logins: int) -> Figure:
    """Logins and their commands alone, alternating."""
    ours, alone, busy = [], [], []
    for _ in range(3):
        with undisturbed(served.pid):
            used = served.processor_time()
            ours.append(logins / _some(crowd, logins))
            busy.append((served.processor_time() - used) / logins)
        with undisturbed():
            alone.append(logins / _commands_alone(served, lines, logins))
    rate, most = statistics.median(ours), statistics.median(alone)
    return Figure(
        f"server, logins (3 times {logins}; one process, stub commands)",
        f"{rate:.0f} a second ({ms(statistics.median(busy))} of its own processor time each)",
        f"their {len(lines)} commands each, alone, in two sh(1): {most:.0f} a second",
        rate / most,
        f"at least {LEAST_LOGINS} of that",
        rate >= LEAST_LOGINS * most,
    )


def _commands_alone(served: Server, lines: list[str], logins: int) -> float:
    """Seconds two sh(1) need for the commands of this many logins."""
    body = "".join(f"    {line} >/dev/null\n" for line in lines)
    body = body.replace(") >/dev/null\n", ")\n", 1)
    script = f"n=0\nwhile [ $n -lt {logins // 2} ]; do\n{body}    n=$((n + 1))\ndone\n"
    begun = time.monotonic()
    shells = [subprocess.Popen(["/bin/sh", "-c", script], env=served.environment) for _ in range(2)]
    for shell in shells:
        if shell.wait() != 0:
            raise RuntimeError(f"sh(1) ended with {shell.returncode}")
    return time.monotonic() - begun


def _memory(served: Server, before: float, sessions: int) -> Figure:
    after = served.memory()
    each = (after - before) * 1024 / sessions
    return Figure(
        f"server, memory of a waiting session ({sessions} more of them)",
        f"{each:.1f} KB",
        f"the server with few: {before:.1f} MB, with them {after:.1f} MB",
        after / before,
        f"at most {MOST_MEMORY:g} KB",
        each <= MOST_MEMORY,
    )


# Answers on a connection and does nothing else.
_ECHO = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sock, _ = listener.accept()
while data := sock.recv(64):
    sock.send(data)
"""


def _pings(served: Server, crowd: Crowd, seconds: float) -> Figure:
    with undisturbed(served.pid):
        crowd.wait(seconds, RATE)
        echoes = _echoes(int(seconds * RATE))
    answers = sorted(crowd.counts.answers)
    most, least = _slow(answers), _slow(echoes)
    return Figure(
        f"server, answer to a ping ({crowd.up} sessions, {RATE:.0f} pings a second)",
        f"99 % of {len(answers)} within {most * 1000:.2f} ms,"
        f" the median {statistics.median(answers) * 1000:.2f} ms",
        f"a Python that sends back what it hears: 99 % within {least * 1000:.2f} ms",
        most / least,
        f"99 % under {ms(MOST_DELAY)}",
        most < MOST_DELAY,
    )


def _slow(times: list[float]) -> float:
    """The 99th percentile."""
    return sorted(times)[len(times) * 99 // 100]


def _echoes(count: int) -> list[float]:
    """Seconds for this many replies from a Python that echoes what it receives."""
    took = []
    with subprocess.Popen(
        [sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as sock:
            for _ in range(count):
                begun = time.monotonic()
                sock.send(b"ping\r\n")
                sock.recv(64)
                took.append(time.monotonic() - begun)
    return took


def _status(served: Server, crowd: Crowd) -> Figure:
    took = statistics.median(served.status() for _ in range(3))
    whole = takes("netstat -i", CROWD)
    return Figure(
        f"server, --status with {crowd.up} tunnels (looks at everything as slow as with {CROWD})",
        f"{took:.2f} s",
        f"one netstat -ibnW there: {whole:.0f} s",
        took / whole,
        f"at most {MOST_STATUS:g} s",
        took <= MOST_STATUS,
    )


def _all_at_once(served: Server, crowd: Crowd) -> list[Figure]:
    sessions = crowd.up
    crowd.forget()
    crowd.comes_back = True
    end = time.monotonic() + PATIENCE
    ending, starting = served.restart(lambda: crowd.turn(time.monotonic() + 0.02))
    begun = time.monotonic()
    while crowd.up < sessions and time.monotonic() < end:
        crowd.turn(time.monotonic() + 0.1)
    took = time.monotonic() - begun
    counts = crowd.counts
    slowest = max(counts.logins, default=0.0)
    whole = takes("ifconfig", CROWD)
    return [
        Figure(
            f"server, restarted with {sessions} tunnels (looks at everything as slow as with"
            f" {CROWD}): until it listens again",
            f"{ending:.1f} s for its end, {starting:.1f} s for its start",
            f"one ifconfig -a there: {whole:.0f} s",
            (ending + starting) / whole,
            f"at most {MOST_RESTART:g} s",
            ending + starting <= MOST_RESTART,
        ),
        Figure(
            f"server, {sessions} clients coming back at once after a restart",
            f"{crowd.up} logged in after {took:.1f} s (the slowest login took {slowest:.1f} s);"
            f" time-outs {counts.timed_out}, refused {sum(counts.refused.values())}",
            "the restart itself",
            took / (ending + starting),
            "all logged in, none refused for time-outs",
            crowd.up == sessions and not counts.timed_out and not counts.refused,
        ),
    ]
