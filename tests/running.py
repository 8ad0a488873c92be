"""Programs under test, running in a host of the lab."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from dtcp import look, run, system

from lab import SLOW
from lab.host import Host
from lab.internet import Internet
from lab.machine import machine
from lab.snapshot import Snapshot, difference

ROOT = Path(__file__).resolve().parent.parent
# Seconds for anything that is waited for; like all limits, of a usual machine that may be busy.
# Less than a minute, in which the programs would come to many a thing without being told.
LIMIT = 30.0
# Limits of the programs for the commands of the system: on a slow machine a command that has
# nothing wrong with it needs more.
_LIMITS = {
    look: ("LONG",),
    run: ("LIMIT", "HURRY", "LEAST"),
    system: ("STARTING", "HEARING", "FAREWELL", "AFTER_FAREWELL"),
}

SERVER = "tunnel.example.org"
PREFIX = "2001:db8:1::"  # of tunnels of type host: the first client gets ::6, the server ::5
DELEGATED = "2001:db8:3c3::/48"
_USERS = [
    {"user": "itojun", "password": "secret", "prefixes": [DELEGATED]},
    {"user": "jun", "password": "hidden"},
]
FAR = "2001:db8:0:ff::2"
# What passes a tunnel, for tcpdump(1), without the 68 octets by which dtcpc sees that it does.
TUNNELED = "ip proto 41 and ip[2:2] > 68"


class Program:
    """A running dtcpc or dtcps, and every line it has said so far on standard error."""

    def __init__(self, host: Host, name: str, *words: str) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._name = " ".join((name, *words))
        program = [str(ROOT / f"{name}.py"), *words]
        if SLOW > 1 and name in ("dtcpc", "dtcps"):
            limits = [
                f"{module.__name__.removeprefix('dtcp.')}.{each}={getattr(module, each) * SLOW}"
                for module, names in _LIMITS.items()
                for each in names
            ]
            program = [str(ROOT / "tests/hasty.py"), *limits, name, *words]
        self._process = host.popen(
            [sys.executable, *program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def wait_for(self, pattern: str, limit: float = LIMIT) -> str:
        """Wait for a line that holds `pattern` (a regular expression), and return it."""
        found: list[str] = []

        def seen() -> bool:
            found[:] = [line for line in self.lines if re.search(pattern, line)]
            # Of one that has ended, the last lines may still be on their way to us.
            is_over = self._process.poll() is not None and not self._reader.is_alive()
            return bool(found) or is_over

        with self._changed:
            end = time.monotonic() + limit * SLOW
            while not seen() and time.monotonic() < end:
                self._changed.wait(0.05)
        assert found, f"no {pattern!r} in:\n" + "\n".join(self.lines)
        return found[-1]

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def status(self, limit: float = LIMIT) -> int:
        """Wait for its end; the exit status."""
        status = self._process.wait(limit * SLOW)
        self._reader.join(limit * SLOW)
        return status

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it; the exit status."""
        self.send(number)
        return self.status()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self.status()
        if error is not None:  # pytest shows it with the failure
            print(f"--- {self._name}", *self.lines, sep="\n")


class Talker:
    """tests/talk.py on the client host, and the server's answer to it."""

    def __init__(self, net: Internet, *words: str) -> None:
        self.process = net.client.popen(
            [sys.executable, str(ROOT / "tests/talk.py"), "192.0.2.1", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.answer = self.process.stdout.readline().rstrip()

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def dtcpauth(host: Host, *words: str, input: str = "") -> str:
    """Run dtcpauth on a host; its standard output."""
    command = [sys.executable, str(ROOT / "dtcpauth.py"), *words]
    return host.run(command, input=input, timeout=LIMIT).stdout


def set_users(host: Host, users: str, routes: str = "") -> None:
    """Give a server these users (lines `user:password`) and prefixes (`user prefix[,prefix]`)."""
    if users:
        dtcpauth(host, "import", "--replace", "users", "-", input=users)
    if routes:
        dtcpauth(host, "import", "--replace", "routes", "-", input=routes)


def serve(net: Internet, *words: str) -> Program:
    """A dtcps on the server, ready for clients; the client knows its password."""
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")
    dtcpauth(net.server, "import", "--replace", "json", "-", input=json.dumps(_USERS))
    server = Program(net.server, "dtcps", "-d", *words, PREFIX)
    server.wait_for("listening")
    return server


def login(host: Host, *words: str) -> Program:
    """A dtcpc on `host` that logs in as itojun."""
    return Program(host, "dtcpc", "-d", "-u", "itojun", *words, SERVER)


@contextlib.contextmanager
def names(host: Host, told: dict[str, str]) -> Iterator[None]:
    """Let a resolver answer to a host as tests/resolver.py is told, beside its hosts file."""
    # These files are mounted there, so they are overwritten, not replaced.
    for path, text in (
        ("/etc/nsswitch.conf", "hosts: files dns\n"),
        ("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n"),
    ):
        host.run(["sh", "-c", f"cat >{path}"], input=text)
    with Program(host, "tests/resolver", json.dumps(told)) as resolver:
        resolver.wait_for("^ready$")
        yield


def go_wrong(net: Internet, *rules: dict[str, object]) -> None:
    """Let commands on the client go wrong: see lab/freebsd/faults.py."""
    net.client.write("/run/freebsd/faults", json.dumps(rules))


def identity(host: Host, interface: str) -> str:
    """Stays the same as long as the interface does: one made anew has another."""
    return host.run(machine.identity(interface)).stdout


def is_watched(net: Internet) -> bool:
    """Whether somebody on the client listens to rtnetlink(7)."""
    lines = net.client.run(["cat", "/proc/net/netlink"]).stdout.splitlines()[1:]
    return any(words[1] == "0" and int(words[3], 16) for words in map(str.split, lines))


def ping(host: Host, address: str = FAR) -> bool:
    """Whether `address` answers."""
    return host.run(machine.reach(address, 5), check=False).returncode == 0


def wait_until_as_it_was(host: Host, before: Snapshot, limit: float = LIMIT) -> None:
    """Wait until a host is as it was, while something there may still be about to end."""
    end = time.monotonic() + limit * SLOW
    while (found := difference(before, host.snapshot())) and time.monotonic() < end:
        time.sleep(0.1)
    assert found == []


def wait_until(what: str, true: object, limit: float = LIMIT) -> None:
    """Wait until the function `true` says so."""
    assert callable(true)
    end = time.monotonic() + limit * SLOW
    begun = time.monotonic()
    while not true():
        now = time.monotonic()
        assert now < end, f"waited in vain for: {what}"
        # To look takes time from those who are waited for, above all if commands do it.
        time.sleep(max(0.02, now - begun))
        begun = time.monotonic()
