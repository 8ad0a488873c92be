"""Signals in every state of the client: it ends in time, and leaves host and terminal as before."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pexpect
import pytest

from lab.internet import Internet
from lab.machine import machine
from lab.snapshot import difference
from tests.running import LIMIT, ROOT, SERVER, Program, go_wrong, login, serve, wait_until
from tests.selection import Rows
from tests.trust import Figure

pytestmark = pytest.mark.lab

IN_TIME = 10.0  # seconds, by the manual
GREETING = f"+OK {'0123456789ABCDEF' * 2} hello\r\n"

PROMISE = "Told to end at any time, it does in time, and the host is as it was"

# Those that end it, and the one that does not.
ONCE = [[signal.SIGTERM], [signal.SIGINT], [signal.SIGHUP, signal.SIGTERM]]
# A second one finds it in its take-down, if there is a tunnel; else it has nothing more to do.
SENT = [*ONCE, *([words[0], *words] for words in ONCE)]


@contextmanager
def _resolving(net: Internet) -> Iterator[Program]:
    net.server.run(machine.refuse("udp", 53, ""))
    script = """
        echo "hosts: dns" >/etc/nsswitch.conf
        echo "nameserver 192.0.2.1" >/etc/resolv.conf
        """
    net.client.run(["sh", "-c", script])
    with net.router.capture("eth0", "udp port 53") as asked, login(net.client, "-l") as client:
        asked.wait(1, LIMIT)
        yield client


@contextmanager
def _connecting(net: Internet) -> Iterator[Program]:
    net.server.run(machine.refuse("tcp", 20200, ""))
    with net.router.capture("eth0", "tcp") as asked, login(net.client, "-l") as client:
        asked.wait(1, LIMIT)
        yield client


@contextmanager
def _playing(net: Internet, *scene: list[str]) -> Iterator[Program]:
    with Program(net.server, "tests/servers", "hostile", json.dumps({"20200": scene})) as server:
        server.wait_for("^ready$")
        with login(net.client, "-l", "-t", "host") as client:
            client.wait_for("logging in")
            if scene[0] != ["silent"]:
                server.wait_for("heard")
            yield client


@contextmanager
def _backing_off(net: Internet) -> Iterator[Program]:
    with login(net.client, "-l", "-t", "host") as client:
        client.wait_for("trying again in [12] s")
        yield client


@contextmanager
def _up(net: Internet) -> Iterator[Program]:
    with serve(net), login(net.client, "-l", "-t", "host") as client:
        client.wait_for("up after")
        client.wait_for("route -n monitor")
        yield client


@contextmanager
def _reconnecting(net: Internet) -> Iterator[Program]:
    with serve(net) as server, login(net.client, "-l", "-t", "host") as client:
        client.wait_for("up after")
        server.end()
        client.wait_for("Connection refused; trying again in [12] s")
        yield client


STATES: dict[str, Callable[[Internet], AbstractContextManager[Program]]] = {
    "resolving": _resolving,
    "connecting": _connecting,
    "waiting for the greeting": lambda net: _playing(net, ["silent"]),
    "waiting for the grant": lambda net: _playing(net, ["say", GREETING], ["hear"], ["silent"]),
    "backing off": _backing_off,
    "up": _up,
    "reconnecting": _reconnecting,
}


@pytest.mark.hazard(25)
@pytest.mark.turns(3)
@pytest.mark.parametrize(
    ("state", "release"),
    [(state, ("15.1", "13.2")[number % 2]) for number, state in enumerate(STATES)],
    indirect=["release"],
)
def test_it_ends_in_time_and_leaves_nothing(
    net: Internet, state: str, figure: Figure, rows: Rows
) -> None:
    serve(net).end()  # for its files
    sent = SENT if state in ("up", "reconnecting") else ONCE
    figure(PROMISE, "states and signals", len(sent))
    etc = {name: net.client.read(f"/etc/{name}") for name in ("nsswitch.conf", "resolv.conf")}
    before = net.client.snapshot()
    for numbers in rows(sent):
        with STATES[state](net) as client:
            for number in numbers:
                if not client.ended:
                    client.send(number)
            assert client.status(IN_TIME) == 0, (numbers, client.lines)
            assert not any("Traceback" in line for line in client.lines)
        assert difference(before, net.client.snapshot()) == [], numbers
        net.server.run(machine.accept_all())
        for name, text in etc.items():
            net.client.run(["sh", "-c", f"cat >/etc/{name}"], input=text)


@pytest.mark.parametrize("state", ["backing off", "up"])
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_hup_means_log_in_again_now(net: Internet, state: str) -> None:
    serve(net).end()
    with STATES[state](net) as client:
        for _ in range(2):
            seen = sum("logging in" in line for line in client.lines)
            client.send(signal.SIGHUP)
            wait_until(
                "another login",
                lambda: sum("logging in" in line for line in client.lines) > seen,  # noqa: B023
            )
        assert client.end() == 0


@pytest.mark.hazard(25)
def test_in_every_step(net: Internet, figure: Figure, rows: Rows) -> None:
    """Each command hangs in its turn, and the signal comes while it does."""
    words = ("-t", "network", "-A", "2001:db8:3c3::1")
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, *words) as client:
            client.wait_for("up after")
            up = client.lines.index(client.wait_for("up after"))
            assert client.end() == 0
        ran = [line.partition("# ")[2] for line in client.lines[:up] if "dtcpc: # " in line]
        first = next(n for n, line in enumerate(ran) if line.startswith("ifconfig gif create"))
        assert len(ran) - first >= 8
        figure(PROMISE, "steps that hung", len(ran) - first)
        for number in rows(range(first, len(ran))):
            go_wrong(net, {"nth": number + 1, "do": "hang"})
            sent = SENT[number % len(SENT)]
            with login(net.client, *words) as client:
                wait_until("it hangs", lambda: sum("# " in x for x in client.lines) > number)  # noqa: B023
                for each in sent:
                    client.send(each)
                assert client.status(IN_TIME) == 0, (ran[number], sent, client.lines)
            assert difference(before, net.client.snapshot()) == [], (ran[number], sent)


@pytest.mark.smoke
@pytest.mark.turns(3)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("release", ["13.2"], indirect=True)
def test_in_a_take_down_that_hangs(net: Internet, number: signal.Signals) -> None:
    """What does not end is given up in time, said, and left to the next start."""
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "network") as client:
            client.wait_for("up after")
            go_wrong(net, {"match": ["delete"], "do": "hang"})
            client.send(signal.SIGTERM)
            client.wait_for("# route -n delete -inet6 2001:db8:3c3::/48 ::1")
            client.send(number)
            client.send(number)
            assert client.status(IN_TIME) == 1
            client.wait_for("could not be undone: route -n delete .*: did not end in")
            client.wait_for("# ifconfig gif0 destroy")
        with login(net.client, "-p", "20999") as client:
            assert client.status() == 75
        assert difference(before, net.client.snapshot()) == []


def test_an_rtadvd_that_does_not_hear_is_killed(release: str, enclosed: None) -> None:
    with Internet(release, lan=True) as net, serve(net):
        net.client.run(["sysctl", "net.inet6.ip6.forwarding=1"])
        before = net.client.snapshot()
        with login(net.client, "-t", "network", "-P", "em1/1/::1") as client:
            client.wait_for("up after")
            pid = net.client.read("/var/run/dtcpc.rtadvd.pid").strip()
            net.client.run(["kill", "-STOP", pid])
            client.send(signal.SIGTERM)
            assert client.status(IN_TIME) == 0
            client.wait_for(f"# kill -KILL {pid}")
        assert difference(before, net.client.snapshot()) == []


# A shell that survives what ends its command, and looks at the terminal before and after.  A second
# key may come when its command has ended; what looks then must survive as well.
ON_TERMINAL = """
trap : INT TERM HUP QUIT
before=$(stty -a)
"$@"
status=$?
trap '' INT TERM HUP QUIT
echo "status $status"
test "$(stty -a)" = "$before" && echo terminal the same || echo terminal changed
"""


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
@pytest.mark.parametrize("asked", [True, False], ids=["asked for the password", "up"])
def test_on_a_terminal(net: Internet, asked: bool, rows: Rows) -> None:
    sent = [
        *((keys, "", times) for keys in ("\x03", "\x1c") for times in (1, 2)),
        *(("", name, times) for name in ("TERM", "INT") for times in (1, 2)),
        *((("", "HUP", 1), ("", "HUP", 2)) if asked else ()),
    ]
    with serve(net):
        before = net.client.snapshot()
        words = [sys.executable, str(ROOT / "dtcpc.py"), "-u", "stranger" if asked else "itojun"]
        argv = net.client.argv(["sh", "-c", ON_TERMINAL, "sh", *words, "-t", "host", SERVER])
        for keys, name, times in rows(sent):
            child = pexpect.spawn(argv[0], argv[1:], encoding="utf-8", timeout=15)
            child.logfile_read = said = io.StringIO()
            child.expect_exact("Password of stranger" if asked else "up after")
            for _ in range(times):
                if keys:
                    child.send(keys)
                    continue
                found = net.client.processes().items()
                for pid, line in found:
                    if line.startswith(" ".join(words)):
                        net.client.run(["kill", "-s", name, str(pid)], check=False)
            child.expect_exact("status 0\r\n", timeout=IN_TIME)
            child.expect_exact("terminal the same\r\n")
            child.expect(pexpect.EOF)
            assert "Traceback" not in said.getvalue()
            assert "Error" not in said.getvalue()
            child.close()
            assert difference(before, net.client.snapshot()) == [], (keys, name, times)
