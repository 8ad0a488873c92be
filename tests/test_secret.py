"""The password, searched for wherever it must not be, from the start of a client to its end."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dtcp import wire

from lab.internet import Internet
from tests.running import PREFIX, SERVER, Program, login, set_users
from tests.trust import Figure

pytestmark = pytest.mark.lab

SECRET = "correct.horse:battery staple"


class Watch:
    """Reads the arguments and the environment of every process of a host, again and again."""

    def __init__(self, net: Internet) -> None:
        self._host = net.client
        self._over = threading.Event()
        self.seen: dict[tuple[int, str], bytes] = {}
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.is_set():
            for pid in self._host.processes():
                for file in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        words = Path(f"/proc/{pid}/{file}").read_bytes()
                        self.seen[pid, file] = self.seen.get((pid, file), b"") + words
            self._over.wait(0.01)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@contextlib.contextmanager
def _server(net: Internet) -> Iterator[Program]:
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:{SECRET}\n")
    set_users(net.server, f"itojun:{SECRET}\n")
    with Program(net.server, "dtcps", "-d", PREFIX) as server:
        server.wait_for("listening")
        yield server


def _digests(lines: list[str]) -> set[str]:
    """The answers to the challenges that were shown."""
    challenges = re.findall(r"<< \+OK ([0-9A-F]{32}) ", "\n".join(lines))
    return {wire.digest("itojun", challenge, SECRET) for challenge in challenges}


@pytest.mark.hazard(31)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_the_password_is_nowhere_from_the_start_to_the_end(net: Internet, figure: Figure) -> None:
    script = "#!/bin/sh\n{ env; cat /proc/$$/cmdline; } >>/run/script.log\n"
    net.client.write("/run/script", script, 0o700)
    with _server(net) as server:
        with Watch(net) as watch, login(net.client, "-t", "host", "-s", "/run/script") as client:
            client.wait_for("up after")
            state = net.client.read("/run/dtcpc.state")
            core = net.client.read(f"/proc/{client.pid}/limits")
            assert client.end() == 0
        said = "\n".join([*client.lines, *server.lines, state, net.client.read("/run/script.log")])
        digests = _digests(client.lines)
        assert digests
        assert "DTCP_INNER" in said  # the script has run
        assert ">> tunnel itojun ******** host" in said
        commands = {pid for pid, file in watch.seen if file == "cmdline"}
        assert len(commands) > 5
        everywhere = b"\n".join(watch.seen.values()).decode("latin-1") + said
        for secret in (SECRET, "battery", *digests):
            assert secret.lower() not in everywhere.lower()
        assert re.search(r"Max core file size +0 +0 ", core)
    promise = "The password is in no argument, environment, log, trace or file"
    figure(promise, "processes looked at, at least", "5")


@pytest.mark.hazard(31)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_a_login_that_fails_does_not_bring_it_out(net: Internet) -> None:
    with _server(net) as server:
        net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:x{SECRET}\n")
        with login(net.client, "-t", "host") as client:
            assert client.status() == 77
        assert server.end() == 0
    assert SECRET not in "\n".join([*client.lines, *server.lines])
