"""A day in the life of a client: a flapping server, changing addresses, jumping clocks.

The client, its commands and its packets are real; only time is not (tests/virtual.py).  This
process is the coordinator and the server: it advances the clock when the client is idle.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dtcp import wire

from lab.host import Host
from lab.internet import SERVER4, Internet
from lab.linux import Namespaces
from lab.snapshot import difference
from tests.running import ROOT, SERVER, Program, wait_until
from tests.trust import Figure
from tests.virtual import DAY, MONOTONIC, PID, Clock

pytestmark = pytest.mark.lab

SEED = os.environ.get("SEED", "1")
A_DAY = 86_400.0
STUCK = 60.0  # seconds of real time in which something must happen
INNER = "2001:db8:1::6 2001:db8:1::5"


def _in_network_of(host: Host, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket in the network of a host: namespaces belong to threads, so one goes there for it."""
    made: list[socket.socket] = []
    place = host.place
    assert isinstance(place, Namespaces)

    def go() -> None:
        with open(f"/proc/{place.pid}/ns/net") as network:
            assert ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0) == 0
        made.append(make())

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    return made[0]


# One that changes or shows something, and not the monitor, which runs for ever.
COMMAND = re.compile(r"/bin/(ifconfig|route) (?!.*monitor)")


class Server:
    """A server in one process with the test, as good or bad as it is told to be.

    well: like any.  down: not there.  busy: says so.  silent: accepts, and says nothing.  deaf:
    answers no ping.  flapping: ends each connection a second after its grant.
    """

    def __init__(self, host: Host, clock: Clock) -> None:
        self._host, self._clock = host, clock
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._peers: dict[socket.socket, wire.Session] = {}
        self._ends: dict[socket.socket, float] = {}
        self.mood = "down"
        self.logins = 0
        self.tunnel: socket.socket | None = None  # of the client
        self.address = ""  # of the client
        self.since = 0.0  # it has it

    def be(self, mood: str) -> None:
        """Change the mood; the connections do not survive it, but for a deaf server."""
        self.mood = mood
        if mood != "deaf":
            for sock in [*self._peers]:
                self._drop(sock)
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        if mood != "down":
            there = (SERVER4, wire.PORT)
            self._listener = _in_network_of(self._host, lambda: socket.create_server(there))
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def close(self) -> None:
        self.be("down")
        self._selector.close()

    @property
    def next(self) -> float:
        return min(self._ends.values(), default=float("inf"))

    def work(self) -> bool:
        """Do what there is to be done; whether there was anything."""
        found = self._selector.select(0)
        for key, _ in found:
            assert isinstance(key.fileobj, socket.socket)
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj in self._peers:
                self._hear(key.fileobj)
        due = [sock for sock, end in self._ends.items() if end <= self._clock.now]
        for sock in due:
            self._drop(sock)
        return bool(found or due)

    def _accept(self) -> None:
        assert self._listener is not None
        sock, _ = self._listener.accept()
        challenge = os.urandom(16).hex().upper()
        session = wire.Session("soak", challenge, {"itojun": "secret"}.get, self._clock.now)
        if self.mood == "busy":
            sock.send(f"-ERR {wire.BUSY}\r\n".encode())
            sock.close()
            return
        self._peers[sock] = session
        self._selector.register(sock, selectors.EVENT_READ)
        if self.mood != "silent":
            sock.send(session.take())

    def _hear(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(4096)
        except OSError:
            data = b""
        session = self._peers[sock]
        events = session.receive(data, self._clock.now)
        if self.mood in ("silent", "deaf") and data:
            return
        for event in events:
            if isinstance(event, wire.Asked):
                ours, theirs = sock.getsockname()[0], sock.getpeername()[0]
                if self.tunnel is not None:  # it lost the other one, and we have not heard of it
                    self._drop(self.tunnel)
                session.accept(f"{theirs} {ours} {INNER}", self._clock.now)
                self.logins += 1
                self.tunnel, self.address, self.since = sock, theirs, self._clock.now
                if self.mood == "flapping":
                    self._ends[sock] = self._clock.now + 1
        with contextlib.suppress(OSError):
            sock.send(session.take())
        if any(isinstance(event, wire.Ended) for event in events):
            self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        if sock is self.tunnel:
            self.tunnel = None
        self._selector.unregister(sock)
        self._ends.pop(sock, None)
        del self._peers[sock]
        sock.close()


class Soak:
    """The course of time."""

    def __init__(self, net: Internet, clock: Clock, client: Program, server: Server) -> None:
        self.net, self.clock, self.client, self.server = net, clock, client, server
        self.commands_to_slow = 0
        self.slowed: set[int] = set()  # their pids
        self.moves = 0
        self._ending = False

    def wait_for_client(self) -> None:
        """Wait until it has begun to take part."""
        wait_until("the client", self.clock.slots, STUCK)

    def end(self) -> int:
        """Have the client end; its exit status."""
        self._ending = True
        self.client.send(signal.SIGTERM)
        self.run(30, lambda: self.client.ended)
        return self.client.status()

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let that much time pass, or less: until something holds.  How much has passed."""
        begun = self.clock.now
        end = begun + seconds
        moved = time.monotonic()
        while self.clock.now < end and not until():
            assert self._ending or not self.client.ended, "\n".join(self.client.lines[-20:])
            if self.server.work():
                continue
            if self._quiet() and not self.server.work():
                self.clock.set_time(
                    MONOTONIC,
                    max(self.clock.now, min(end, self.clock.until(), self.server.next)),
                )
                self.moves += 1
                moved = time.monotonic()
            assert time.monotonic() < moved + STUCK, "\n".join(self.client.lines[-20:])
        return self.clock.now - begun

    def _quiet(self) -> bool:
        """Whether every process of the client waits, with nothing to do."""
        clock = self.clock
        if not clock.all_wait():
            self._slow_down()
            clock.clear()
            time.sleep(0.0005)
            return False
        asked = clock.ask()
        while (answer := clock.answered(asked)) is None:
            if self.server.work():
                return False
            time.sleep(0.0002)
        return answer

    def _slow_down(self) -> None:
        """A command that runs takes long, if it is to: the clock moves under it."""
        if not self.commands_to_slow:
            return
        for pid, words in self.net.client.processes().items():
            if COMMAND.search(words) and pid not in self.slowed:
                self.slowed.add(pid)
                self.commands_to_slow -= 1
                self.clock.set_time(MONOTONIC, self.clock.now + 3)
                return

    def jump(self, seconds: float) -> None:
        """Somebody sets the time of day."""
        self.clock.set_time(DAY, self.clock.time(DAY) + seconds)

    def move(self, old: str, new: str) -> None:
        """The provider gives us another address."""
        gateway = "route -n delete default; route -n add default 203.0.113.1"
        script = f"ifconfig em0 inet {new}/24 alias; ifconfig em0 inet {old} -alias; {gateway}"
        seen = len(self.client.lines)
        self.net.client.run(["sh", "-c", script])

        def told() -> bool:
            return any("lost: our address was" in line for line in self.client.lines[seen:])

        def told_soon() -> bool:
            time.sleep(0.1)  # the monitor that tells it runs in real time
            self.run(1.0, told)  # and the client looks a second after its last look, in ours
            return told()

        wait_until("it is told", told_soon, STUCK)

    def costs(self) -> tuple[int, int, int]:
        """Descriptors, threads, and KiB of memory of all processes of the client."""
        pids = [self.clock.number(slot + PID) for slot in self.clock.slots()]
        files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
        status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        threads = sum(int(text.partition("Threads:")[2].split()[0]) for text in status)
        memory = sum(int(text.partition("VmRSS:")[2].split()[0]) for text in status)
        return files, threads, memory


@contextlib.contextmanager
def _soak(net: Internet, tmp_path: Path) -> Iterator[Soak]:
    clock = Clock.make(str(tmp_path / "clock"))
    words = (
        str(tmp_path / "clock"),
        str(ROOT / "dtcpc.py"),
        "-l",
        "-u",
        "itojun",
        "-t",
        "host",
        SERVER,
    )
    with (
        contextlib.closing(Server(net.server, clock)) as server,
        Program(net.client, "tests/virtual", *words) as client,
    ):
        yield Soak(net, clock, client, server)


# What may happen to a server, and for how many seconds.
MOODS = {
    "down": (1, 20),
    "down for minutes": (60, 540),
    "down for long": (700, 1800),
    "silent": (30, 900),
    "busy": (30, 900),
    "deaf": (100, 400),
    "flapping": (100, 1500),
}
KINDS = [*MOODS, "another address", "a jump of the clock"] * 8 + ["down", "another address"] * 4
STABLE = 70.0  # up for so long, it has forgotten its troubles


@pytest.mark.whole
@pytest.mark.hazard(16, 18, 26, 28)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_a_day_of_troubles(net: Internet, tmp_path: Path, figure: Figure) -> None:
    chance = random.Random(SEED)
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")
    before = net.client.snapshot()
    addresses = ["203.0.113.7", "203.0.113.8"]
    kinds = chance.sample(KINDS, len(KINDS))
    with _soak(net, tmp_path) as soak:
        clock, server, client = soak.clock, soak.server, soak.client
        soak.wait_for_client()
        start = unstable = clock.now

        def is_up() -> bool:
            return server.tunnel is not None and server.address == addresses[0]

        def attempts() -> int:
            return sum("logging in to" in line for line in client.lines)

        def comes_up(trouble: str) -> None:
            """Nothing stands in its way any more: it is back as soon as its waits promise."""
            lasted = clock.now - unstable
            took = soak.run(400, is_up)
            told = f"after {lasted:.0f} s of {trouble}: {took:.0f} s\n"
            assert took < min(1.4 * lasted + 5, 300), told + "\n".join(client.lines[-20:])
            soak.run(15)  # slow commands included
            shown = net.client.run(["ifconfig", "gif0"]).stdout
            assert f"tunnel inet {addresses[0]} --> {SERVER4}" in shown, told

        soak.run(30)  # the server is not there yet, as after a power failure
        server.be("well")
        comes_up("waiting for the first time")
        costs = soak.costs()
        for number, kind in enumerate(kinds):
            soak.run(chance.choice((20.0, 90.0, 90.0, 2000.0 * chance.random())))
            if number == len(kinds) // 10:
                costs = soak.costs()
            if clock.now - server.since > STABLE:
                unstable = clock.now
            begun, tried = clock.now, attempts()
            soak.commands_to_slow = chance.choice((0, 0, 1))
            if kind == "a jump of the clock":
                since, seen = server.since, len(client.lines)
                soak.jump(chance.choice((-A_DAY, A_DAY)))
                soak.run(130)
                assert (server.since, len(client.lines)) == (since, seen), "nothing has happened"
            elif kind == "another address":
                soak.move(*addresses)
                addresses.reverse()
                comes_up(kind)
            else:
                server.be(kind.partition(" ")[0])
                soak.run(chance.uniform(*MOODS[kind]))
                server.be("well")
                comes_up(kind)
            # Twelve seconds of short waits, then doubled ones, then long ones.
            assert attempts() - tried < 20 + (clock.now - begun) / 200, kind
        soak.run(max(start + A_DAY - clock.now, 2 * STABLE))
        assert len(client.lines) < 8 * attempts()
        assert soak.slowed

        files, threads, memory = soak.costs()
        assert (files, threads) == costs[:2]
        assert memory < costs[2] + 2048
        assert is_up()
        if addresses[0] != "203.0.113.7":
            soak.move(*addresses)
            addresses.reverse()
            comes_up("coming home")
        assert soak.end() == 0
    assert difference(before, net.client.snapshot()) == []
    print(f"{soak.moves} moves, {server.logins} logins, {len(client.lines)} lines")
    promise = "The tunnel is up whenever it can be, day after day, and nothing grows"
    figure(promise, "hours of simulated time", int(A_DAY / 3600))
    figure(promise, "troubles", len(kinds))
    figure(promise, "descriptors and threads more in the end", files + threads - sum(costs[:2]))
    figure(promise, "KiB of memory more, at most", "2,048")
