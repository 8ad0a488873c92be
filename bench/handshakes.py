"""A crowd that shakes hands at once, beside a crowd that has its tunnels.

The former is a process of its own (``python -m bench.handshakes COUNT``); each of it has its own
address, says goodbye as soon as it is greeted under TLS, and comes once.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from dtcp import tls
from dtcp.errors import Error

from bench import server
from bench.crowd import Crowd
from bench.figures import Figure, ms
from bench.place import ROOT, Installed, undisturbed
from bench.server import Server
from tests.certificates import self_signed

COUNT = 1000  # handshakes, and tunnels
AT_ONCE = 32  # logins
PATIENCE = 300.0  # seconds for all logins; and for all handshakes
MOST_DELAY = 0.5  # seconds for the slowest ping
RATE = 500.0  # pings a second
ALONE = 3.0  # seconds of them without handshakes


def measure(installed: Installed, directory: Path, count: int = COUNT) -> list[Figure]:
    """The slowest ping of so many tunnels, while so many others shake hands."""
    _raise_limit()
    place = directory / "certificate"
    place.mkdir()
    ours = self_signed(place)
    words = f"tls-certificate = {ours.path}\ntls-key = {ours.key}\n"
    served = Server(installed, directory / "handshakes", count, words)
    crowd = Crowd(count)
    try:
        crowd.all_up(PATIENCE, AT_ONCE)
        with undisturbed(served.pid):
            crowd.wait(ALONE, RATE)
            alone = crowd.counts.answers
            crowd.forget()
            told = _beside(crowd, count)
            answers = crowd.counts.answers
        crowd.leave()
    except RuntimeError as error:
        last = "\n".join(served.said().splitlines()[-20:])
        raise RuntimeError(f"{error}; dtcps said last:\n{last}") from None
    finally:
        served.kill()
    return [
        Figure(
            f"server, slowest answer to a ping beside {count} handshakes at once ({count} tunnels,"
            f" {RATE:.0f} pings a second)",
            f"{ms(max(answers))} of {len(answers)} pings, the median"
            f" {ms(statistics.median(answers))}; {told['done']:.0f} handshakes came through within"
            f" {told['seconds']:.1f} s, the others made room",
            f"{len(alone)} pings without handshakes: {ms(max(alone))}",
            max(answers) / max(alone),
            f"at most {ms(MOST_DELAY)}",
            max(answers) <= MOST_DELAY,
        )
    ]


def _beside(crowd: Crowd, count: int) -> dict[str, float]:
    """Have the pings and the handshakes; what the latter report."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.handshakes", str(count)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:
            crowd.wait(0.2, RATE)
        process.kill()
        told: dict[str, float] = json.loads(process.stdout.readline() or "{}")
    if not told:
        raise RuntimeError(f"the handshakes were not over within {PATIENCE:.0f} s")
    return told


def _raise_limit() -> None:
    """Allow as many descriptors as the system does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Guest:
    """One client of those that shake hands."""

    def __init__(self, number: int) -> None:
        self.socket = socket.socket()
        address = ((127 << 24) + 0x20000 + number).to_bytes(4, "big")
        self.socket.bind((socket.inet_ntoa(address), 0))
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", server.PORT))
        self.heard = b""
        self.tls: tls.Tls | None = None
        self.done = False

    def hear(self, data: bytes, context: object) -> None:
        """Go on with what has come.  Raises Error."""
        if self.tls is None:
            self.heard += data
            if self.heard.count(b"\n") == 2:
                self.tls = tls.Tls(context)  # type: ignore[arg-type]
                self.socket.send(self.tls.take())
            elif self.heard.endswith(b"\n"):
                self.socket.send(b"stls\r\n")
            return
        if self.tls.receive(data).endswith(b"tunnel server\r\n"):
            self.done = True
            self.tls.send(b"quit\r\n")
        self.socket.send(self.tls.take())


def shake_hands(count: int) -> dict[str, float]:
    """So many at once; how many were done, and the seconds it took."""
    context = tls.for_client(pinned=True)
    selector = selectors.DefaultSelector()
    begun = time.monotonic()
    guests = [Guest(number) for number in range(count)]
    for guest in guests:
        selector.register(guest.socket, selectors.EVENT_READ, guest)
    while selector.get_map():
        for key, _ in selector.select():
            guest = key.data
            try:
                if data := guest.socket.recv(4096):
                    guest.hear(data, context)
                    continue
            except (Error, OSError):
                pass
            selector.unregister(guest.socket)
            guest.socket.close()
    return {"done": sum(each.done for each in guests), "seconds": time.monotonic() - begun}


if __name__ == "__main__":
    _raise_limit()
    print("ready", flush=True)
    print(json.dumps(shake_hands(int(sys.argv[1]))), flush=True)
