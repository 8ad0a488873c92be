"""Programs under test, running in a host of the lab."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from lab import SLOW
from lab.host import Host
from lab.internet import Internet
from lab.machine import machine

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 15.0  # seconds for anything that is waited for; like all limits, of a usual machine

SERVER = "tunnel.example.org"
PREFIX = "2001:db8:1::"  # of tunnels of type host: the first client gets ::6, the server ::5
DELEGATED = "2001:db8:3c3::/48"
FAR = "2001:db8:0:ff::2"


class Program:
    """A running dtcpc or dtcps, and every line it has said so far on standard error."""

    def __init__(self, host: Host, name: str, *words: str) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._process = host.popen(
            [sys.executable, str(ROOT / f"{name}.py"), *words],
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
            return bool(found) or self._process.poll() is not None

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
    set_users(net.server, "itojun:secret\njun:hidden\n", f"itojun {DELEGATED}\n")
    server = Program(net.server, "dtcps", "-d", *words, PREFIX)
    server.wait_for("listening")
    return server


def login(host: Host, *words: str) -> Program:
    """A dtcpc on `host` that logs in as itojun."""
    return Program(host, "dtcpc", "-d", "-u", "itojun", *words, SERVER)


def go_wrong(net: Internet, *rules: dict[str, object]) -> None:
    """Let commands on the client go wrong: see lab/freebsd/faults.py."""
    net.client.write("/run/freebsd/faults", json.dumps(rules))


def identity(host: Host, interface: str) -> str:
    """Stays the same as long as the interface does: one made anew has another."""
    return host.run(machine.identity(interface)).stdout


def ping(host: Host, address: str = FAR) -> bool:
    """Whether `address` answers."""
    return host.run(machine.reach(address, 5), check=False).returncode == 0


def wait_until(what: str, true: object, limit: float = LIMIT) -> None:
    """Wait until the function `true` says so."""
    assert callable(true)
    end = time.monotonic() + limit * SLOW
    while not true():
        assert time.monotonic() < end, f"waited in vain for: {what}"
        time.sleep(0.02)
