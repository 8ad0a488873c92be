"""Time to tunnel: from the exec of dtcpc until its routes are in place.

The server is the scripted one of the tests, on loopback; the commands are stubs.  A distant one
waits before it replies, twice before its greeting, as loopback has no handshake to wait for.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench import stubs
from bench.figures import Figure, ms
from bench.place import ROOT, Installed, undisturbed
from tests.certificates import Certificate

PORT, FAR_PORT = 20211, 20213
ALLOWED = 0.060  # seconds beyond Python's startup and the commands
ROUND_TRIP = 0.020  # seconds: round trip to a distant server
ROUND_TRIPS = 3  # TCP's handshake, the greeting, the reply to the login
ALLOWED_FAR = 0.040  # seconds beyond them, Python's start and the commands


class Client(NamedTuple):
    """How to start a dtcpc that gets its tunnel of stubs from a scripted server."""

    words: list[str]
    environment: dict[str, str]
    commands: Path
    heard: Path  # what the server hears
    server: int  # its process

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        stubs.forget(self.commands)
        return subprocess.Popen(
            [*self.words, *more, "127.0.0.1"],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


def until_up(process: subprocess.Popen[bytes]) -> list[str]:
    """Read what a client says until its tunnel is up."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line.decode().rstrip())
        if b"up after" in line:
            return lines
    raise RuntimeError("\n".join(["dtcpc ended:", *lines]))


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a client cleanly."""
    process.terminate()
    _, rest = process.communicate(timeout=30)
    if process.returncode != 0:
        raise RuntimeError(f"dtcpc ended with {process.returncode}: {rest.decode()}")


@contextmanager
def client(
    installed: Installed,
    directory: Path,
    port: int = PORT,
    round_trip: float = 0.0,
    certificate: Certificate | None = None,
) -> Iterator[Client]:
    """A server for a client, `round_trip` seconds away, and everything the client needs.

    With a `certificate` of the server, it speaks with it over TLS.
    """
    tls = ["--tls", str(certificate.path), str(certificate.key)] if certificate else []
    insist = ["--tls-fingerprint", certificate.fingerprint] if certificate else []
    directory.mkdir()
    commands = stubs.make(directory, first="0")
    secrets = directory / "auth"
    secrets.write_text("127.0.0.1:bench:secret\n")
    secrets.chmod(0o600)
    heard = directory / "heard"
    with heard.open("wb") as output:
        server = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "tests/servers.py"), "kame", "--port", str(port)),
                *("--user", "bench", "--password", "secret", "--prefix", "2001:db8:1::"),
                *("--round-trip", str(round_trip), *tls),
            ],
            stderr=output,
        )
    try:
        while "ready" not in heard.read_text():
            if server.poll() is not None:
                raise RuntimeError(heard.read_text())
            time.sleep(0.02)
        words = [
            *(str(installed.client), "-f", str(directory / "dtcpc.pid"), "-p", str(port)),
            *("-u", "bench", "--auth-file", str(secrets), "-t", "host", *insist),
        ]
        path = f"{commands}:/usr/sbin:/usr/bin:/sbin:/bin"
        yield Client(words, {"PATH": path}, commands, heard, server.pid)
    finally:
        server.kill()
        server.wait()


def command_lines(client: Client) -> list[str]:
    """The commands that a client runs until its tunnel is up, as a person would type them."""
    process = client.start("-d")
    lines = until_up(process)
    end(process)
    return [line.removeprefix("dtcpc: # ") for line in lines if line.startswith("dtcpc: # ")]


def measure(installed: Installed, directory: Path, rounds: int) -> list[Figure]:
    """The client, near its server and far away, its commands alone, and Python alone, in turn."""
    with (
        client(installed, directory / "start") as ours,
        client(installed, directory / "far", FAR_PORT, ROUND_TRIP) as far,
    ):
        lines = command_lines(ours)
        # Each on its own: a failing one, such as `route get`, is no reason to stop.
        script = "".join(f"{line} >/dev/null 2>&1\n" for line in lines)

        def run_client(which: Client) -> float:
            begun = time.monotonic()
            process = which.start()
            until_up(process)
            took = time.monotonic() - begun
            end(process)
            return took

        def run_commands() -> float:
            stubs.forget(ours.commands)
            return _timed(["/bin/sh", "-c", script], ours.environment)

        def run_python() -> float:
            return _timed([sys.executable, "-c", "pass"], ours.environment)

        turns: list[Callable[[], float]] = [
            partial(run_client, ours),
            partial(run_client, far),
            run_python,
            run_commands,
        ]
        times = []
        for _ in range(rounds):
            with undisturbed(ours.server, far.server):
                times.append([turn() for turn in turns])
    near, away, *parts = (Times(statistics.median(c), min(c)) for c in zip(*times, strict=True))
    what = f"stub commands; {rounds} runs"
    trips = ROUND_TRIPS * ROUND_TRIP
    return [
        _beyond(f"client, time to tunnel ({what})", near, parts, len(lines), ALLOWED),
        _beyond(
            f"client, time to tunnel over a round trip of {ms(ROUND_TRIP)} ({what})",
            away,
            [*parts, Times(trips, trips)],
            len(lines),
            ALLOWED_FAR,
        ),
    ]


class Times(NamedTuple):
    """Durations, in seconds."""

    median: float
    best: float

    def __str__(self) -> str:
        return f"{ms(self.median)} (best {ms(self.best)})"


def _beyond(what: str, up: Times, parts: list[Times], commands: int, allowed: float) -> Figure:
    """How long it took beyond its parts: Python, the commands, and perhaps round trips."""
    median, best = (sum(column) for column in zip(*parts, strict=True))
    beyond = Times(up.median - median, up.best - best)
    names = (
        f"a Python that does nothing {parts[0]}",
        f"its {commands} commands run by sh(1) {parts[1]}",
        f"{ROUND_TRIPS} round trips {ms(parts[-1].median)} (TCP's handshake, greeting, login; the"
        " server waits before it speaks, and the wire is loopback)",
    )
    return Figure(
        what,
        str(up),
        f"{' + '.join(names[: len(parts)])}: {beyond} beyond",
        up.median / median,
        f"at most {ms(allowed)} beyond",
        beyond.median <= allowed,
    )


def _timed(words: list[str], environment: dict[str, str]) -> float:
    begun = time.monotonic()
    subprocess.run(words, env=environment, check=False)
    return time.monotonic() - begun
