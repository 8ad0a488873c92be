"""Thousands of clients in one process, which create no tunnels.

No two tunnels may have the same endpoints, so each client uses its own address.
"""

from __future__ import annotations

import heapq
import random
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from dtcp.client.backoff import BackOff
from dtcp.wire import LOGIN_TIME, digest

from bench import server


@dataclass
class Client:
    """One client."""

    number: int
    socket: socket.socket | None = None
    state: str = "away"  # -> greeting -> granted -> up
    begun: float = 0.0  # this attempt
    asked: float = 0.0  # when the last ping went out; 0: it was answered
    heard: bytes = b""
    back_off: BackOff = field(default_factory=BackOff)

    @property
    def address(self) -> str:
        return str(socket.inet_ntoa(((127 << 24) + 0x10000 + self.number).to_bytes(4, "big")))


@dataclass
class Counts:
    """What has happened since the last look."""

    refused: dict[str, int] = field(default_factory=dict)  # by the server's reply
    timed_out: int = 0
    lost: int = 0
    answers: list[float] = field(default_factory=list)  # seconds, of pings
    logins: list[float] = field(default_factory=list)  # seconds, of logins


class Crowd:
    """The clients, and what they report."""

    def __init__(self, size: int) -> None:
        self.clients = [Client(number) for number in range(size)]
        self.counts = Counts()
        self.up = 0
        self.comes_back = False  # a client that loses its connection logs in again, as dtcpc would
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something at a time (monotonic)."""
        self._count += 1
        heapq.heappush(self._due, (when, self._count, what))

    def turn(self, end: float) -> None:
        """Wait until something happens, once, or until `end`."""
        first = min(end, self._due[0][0]) if self._due else end
        for key, _ in self._selector.select(max(0.0, first - time.monotonic())):
            self._hear(key.data)
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()

    def log_in(self, client: Client) -> None:
        """Begin to log in."""
        client.begun = now = time.monotonic()
        client.heard, client.state, client.asked = b"", "greeting", 0.0
        client.socket = sock = socket.socket()
        sock.bind((client.address, 0))
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", server.PORT))
        self._selector.register(sock, selectors.EVENT_READ, client)
        self.at(now + LOGIN_TIME, lambda: self._give_up(client, now))

    def all_up(self, limit: float, at_once: int, target: int | None = None) -> float:
        """Log in until so many are logged in (all), so many at a time; the seconds it took."""
        begun = time.monotonic()
        target = len(self.clients) if target is None else min(target, len(self.clients))
        waiting = [client for client in self.clients if client.state == "away"]
        waiting = waiting[: target - self.up]
        while self.up < target:
            busy = target - self.up - len(waiting)
            while waiting and busy < at_once:
                self.log_in(waiting.pop())
                busy += 1
            if self.counts.refused or time.monotonic() - begun > limit:
                raise RuntimeError(
                    f"{self.up} of {target} logged in after {time.monotonic() - begun:.0f} s;"
                    f" refused: {self.counts.refused}"
                )
            self.turn(time.monotonic() + 0.1)
        return time.monotonic() - begun

    def wait(self, seconds: float, rate: float) -> None:
        """Let all clients wait, with so many pings per second in total."""
        begun = time.monotonic()
        end = begun + seconds
        for number in range(int(seconds * rate)):
            client = random.choice(self.clients)
            self.at(begun + number / rate, partial(self._ping, client))
        while time.monotonic() < end:
            self.turn(end)

    def _ping(self, client: Client) -> None:
        if client.state == "up" and not client.asked and client.socket is not None:
            client.asked = time.monotonic()
            client.socket.send(b"ping\r\n")

    def _hear(self, client: Client) -> None:
        assert client.socket is not None
        try:
            data = client.socket.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._lost(client)
            return
        client.heard += data
        while b"\n" in client.heard and client.socket is not None:
            line, _, client.heard = client.heard.partition(b"\n")
            self._line(client, line.decode().strip())

    def _line(self, client: Client, line: str) -> None:
        assert client.socket is not None
        now = time.monotonic()
        if not line.startswith("+OK"):
            self.counts.refused[line] = self.counts.refused.get(line, 0) + 1
            self._drop(client)
        elif client.state == "greeting":
            user = server.name(client.number)
            answer = digest(user, line.split()[1], server.PASSWORD)
            client.socket.send(f"tunnel {user} {answer} host\r\n".encode())
            client.state = "granted"
        elif client.state == "granted":
            client.state = "up"
            client.back_off.up()
            self.up += 1
            self.counts.logins.append(now - client.begun)
        elif client.asked:
            self.counts.answers.append(now - client.asked)
            client.asked = 0.0

    def _give_up(self, client: Client, begun: float) -> None:
        if client.begun == begun and client.state in ("greeting", "granted"):
            self.counts.timed_out += 1
            self._drop(client)

    def _lost(self, client: Client) -> None:
        self.counts.lost += 1
        self._drop(client)

    def _drop(self, client: Client) -> None:
        assert client.socket is not None
        self._selector.unregister(client.socket)
        client.socket.close()
        client.socket = None
        self.up -= client.state == "up"
        client.state = "away"
        if self.comes_back:
            when = time.monotonic() + client.back_off.next(time.monotonic())
            self.at(when, lambda: self.log_in(client))

    def forget(self) -> None:
        """Reset the counts."""
        self.counts = Counts()

    def leave(self) -> None:
        """Close all connections, without logging out."""
        self.comes_back = False
        for client in self.clients:
            if client.socket is not None:
                self._drop(client)
