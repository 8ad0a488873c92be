"""Time to tunnel: from the exec of dtcpc until its routes are in place.

The server is the scripted one of the tests, on loopback; the commands are stubs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import stubs
from bench.figures import Figure, ms
from bench.place import ROOT, Installed, undisturbed

PORT = 20211
ALLOWED = 0.060  # seconds beyond Python's start and the commands


class Client(NamedTuple):
    """How to start a dtcpc that gets its tunnel of stubs from a scripted server."""

    words: list[str]
    environment: dict[str, str]
    commands: Path
    heard: Path  # what the server hears

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
    """End a client in order."""
    process.terminate()
    _, rest = process.communicate(timeout=30)
    if process.returncode != 0:
        raise RuntimeError(f"dtcpc ended with {process.returncode}: {rest.decode()}")


@contextmanager
def client(installed: Installed, directory: Path, port: int = PORT) -> Iterator[Client]:
    """A server for a client, and all that the client needs."""
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
            *("-u", "bench", "--auth-file", str(secrets), "-t", "host"),
        ]
        path = f"{commands}:/usr/sbin:/usr/bin:/sbin:/bin"
        yield Client(words, {"PATH": path}, commands, heard)
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
    """The client, its commands alone, and Python alone, by turns."""
    with client(installed, directory / "start") as ours:
        lines = command_lines(ours)
        # Each on its own: what one says, as `route get` does, is no reason to stop.
        script = "".join(f"{line} >/dev/null 2>&1\n" for line in lines)

        def run_client() -> float:
            begun = time.monotonic()
            process = ours.start()
            until_up(process)
            took = time.monotonic() - begun
            end(process)
            return took

        def run_commands() -> float:
            stubs.forget(ours.commands)
            return _timed(["/bin/sh", "-c", script], ours.environment)

        def run_python() -> float:
            return _timed([sys.executable, "-c", "pass"], ours.environment)

        turns: list[Callable[[], float]] = [run_client, run_commands, run_python]
        times = []
        for _ in range(rounds):
            with undisturbed():
                times.append([turn() for turn in turns])
    up, commands, python = (statistics.median(column) for column in zip(*times, strict=True))
    best = [min(column) for column in zip(*times, strict=True)]
    beyond = up - commands - python
    return [
        Figure(
            f"client, time to tunnel (stub commands; {rounds} runs)",
            f"{ms(up)} (best {ms(best[0])})",
            f"a Python that does nothing {ms(python)} (best {ms(best[2])}) + its {len(lines)}"
            f" commands run by sh(1) {ms(commands)} (best {ms(best[1])}): {ms(beyond)} beyond"
            f" (best {ms(best[0] - best[1] - best[2])})",
            up / (commands + python),
            f"at most {ms(ALLOWED)} beyond",
            beyond <= ALLOWED,
        )
    ]


def _timed(words: list[str], environment: dict[str, str]) -> float:
    begun = time.monotonic()
    subprocess.run(words, env=environment, check=False)
    return time.monotonic() - begun
