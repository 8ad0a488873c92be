"""A running server, and clients that are broken, rude, numerous, or up to no good."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from dtcp import wire
from dtcp.server.admission import STRANGERS_HERE
from dtcp.server.limits import LINES

from lab.internet import SERVER4, Internet
from lab.machine import machine
from lab.snapshot import Snapshot, difference
from tests.running import (
    PREFIX,
    ROOT,
    Program,
    Talker,
    serve,
    set_users,
    wait_until,
    wait_until_as_it_was,
)
from tests.trust import Figure

pytestmark = [pytest.mark.lab, pytest.mark.parametrize("release", ["15.1"], indirect=True)]

SCANNED = 4000  # connections
WORKERS = 4  # of the server, each with a thread and a shell that has another


def _gifs(net: Internet) -> int:
    return net.server.run(["ifconfig", "-l"]).stdout.count("gif")


def _talk(net: Internet, said: str) -> list[str]:
    """What the server answers, line by line, until it closes the connection."""
    script = (
        "import socket, sys\n"
        f"with socket.create_connection(('{SERVER4}', 20200), 10) as s:\n"
        "    f = s.makefile('rb'); print(f.readline().decode().rstrip())\n"
        "    s.sendall(sys.stdin.buffer.read()); s.shutdown(socket.SHUT_WR)\n"
        "    print(f.read().decode('latin-1'), end='')\n"
    )
    done = net.client.run([sys.executable, "-c", script], input=said)
    return done.stdout.splitlines()


@pytest.mark.hazard(37, 38, 39, 46, 47)
def test_a_scan_gets_documented_replies_and_leaves_nothing(net: Internet, figure: Figure) -> None:
    set_users(net.server, "itojun:correct horse\njun:x:y\n")
    # So that every login is looked at.
    net.server.write("/usr/local/etc/dtcps.conf", "penalty = 0\n")
    scan = [sys.executable, str(ROOT / "tests/scan.py")]
    with Program(net.server, "dtcps", "-D", PREFIX) as server:
        server.wait_for("listening")
        before = net.server.snapshot()
        net.server.run([*scan, "500", "0"], timeout=120)
        wait_until("no tunnel is left", lambda: not _gifs(net), 60)
        costs = machine.costs(server.pid)
        begun = time.monotonic()
        done = net.server.run([*scan, str(SCANNED), "500"], timeout=240, check=False)
        seconds = time.monotonic() - begun
        assert not server.ended, "\n".join(server.lines[-30:])
        assert not done.stderr
        *heard, count = done.stdout.splitlines()
        assert count == f"{SCANNED} conversations"
        wait_until("no tunnel is left", lambda: not _gifs(net), 60)
        wait_until("as few descriptors", lambda: machine.costs(server.pid)[0] <= costs[0])
        # Its workers are not many, but not all may have been needed before.
        assert machine.costs(server.pid)[1] <= costs[1] + 2 * WORKERS
        assert machine.costs(server.pid)[2] < costs[2] + 2048
        # A tunnel may have been in the making when there was none, for somebody who had gone.
        wait_until_as_it_was(net.server, before)
        texts = {
            f"-ERR {text}"
            for name, text in vars(wire).items()
            if name.isupper() and isinstance(text, str)
        }
        texts |= {f"+OK {text}" for text in (wire.BYE, wire.PONG, wire.HELP)}
        for line in {*heard} - texts:
            assert re.fullmatch(
                r"\+OK [0-9A-F]{32} dtcps .*|-ERR unsupported tunnel type [ -~]*"
                r"|\+OK 127\.[0-9.]+ 127\.0\.0\.1[ -~]*|-ERR logged in again from 127\.[0-9.]+",
                line,
            ), line
            assert len(line) <= wire.LINE_LIMIT
        assert len({*heard} & texts) > 6
        # What it says of them is bounded: so many lines a second of each kind of trouble, and some
        # for each that got a tunnel.
        ups = sum(": up: " in line for line in server.lines)
        assert ups > 0
        assert len(server.lines) < 20 + 10 * ups + (LINES + 1) * (seconds + 2)
        assert server.end() == 0
    figure("A scan of the server costs it nothing", "connections", SCANNED)


@pytest.mark.hazard(46)
def test_a_log_cannot_be_forged(net: Internet) -> None:
    with serve(net) as server:
        _talk(net, "tunnel x\x1b[2J\x0bdtcps:\x85itojun " + "0" * 32 + " host\nwhat\x07\x08 now\n")
        server.wait_for("what.x07.x08 now")
        assert all(line.isprintable() for line in server.lines)
        assert server.end() == 0


@pytest.mark.hazard(45, "C2", "K9")
def test_a_login_copied_from_another_session_fails(net: Internet) -> None:
    with serve(net) as server:
        challenges = {_talk(net, "quit\n")[0].split()[1] for _ in range(5)}
        assert len(challenges) == 5
        digest = wire.digest("itojun", challenges.pop(), "secret")
        answers = _talk(net, f"tunnel itojun {digest} host\n" * 5)
        assert answers[1:] == [*[f"-ERR {wire.BAD_LOGIN}"] * 2, f"-ERR {wire.BUSY}"]
        assert not _gifs(net)
        assert server.end() == 0


@pytest.mark.hazard(35, 69)
def test_of_too_many_connections_the_oldest_make_room(net: Internet) -> None:
    with serve(net) as server, Talker(net, "itojun", "secret", "host") as user:
        assert user.answer.startswith("+OK")
        before = machine.costs(server.pid)
        script = (
            "import select, socket, sys\n"
            "lines = []\n"
            "while not lines or len(lines) < 300 or not select.select(lines[:1], [], [], 0)[0]:\n"
            f"    s = socket.create_connection(('{SERVER4}', 20200), 10)\n"
            "    lines.append(s.makefile('rb')); print(lines[-1].readline().decode().strip())\n"
            "print('end', lines[0].readline().decode().strip(), lines[0].read(), flush=True)\n"
            "sys.stdin.read()\n"
        )
        many = net.client.popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert many.stdout is not None
        greetings = list[str]()
        while not (line := many.stdout.readline().rstrip()).startswith("end"):
            greetings.append(line)
        assert line == f"end -ERR {wire.BUSY} b''"
        # Who comes while all others have only just come is not greeted at all.
        assert all(re.match(r"\+OK [0-9A-F]{32} dtcps |$", line) for line in greetings)
        assert all(greetings[:STRANGERS_HERE])
        most = before[0] + STRANGERS_HERE
        wait_until("the others have gone", lambda: machine.costs(server.pid)[0] <= most)
        assert machine.costs(server.pid)[1] <= before[1], "threads"
        net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as other:
            assert other.answer.startswith("+OK")
        many.communicate()
        wait_until("as few descriptors", lambda: machine.costs(server.pid)[0] <= before[0])
        assert user.process.poll() is None
        assert not any("itojun: down" in line for line in server.lines)
        assert server.end() == 0


@pytest.mark.hazard(36)
def test_who_is_silent_is_closed_and_his_tunnel_removed(net: Internet) -> None:
    """With the limits of dtcp.wire, made short."""
    set_users(net.server, "itojun:secret\njun:hidden\n")
    words = ("wire.AUTH_TIME=2", "wire.IDLE_TIME=4", "dtcps", "-d", PREFIX)
    with Program(net.server, "tests/hasty", *words) as server:
        server.wait_for("listening")
        with Talker(net, "itojun", "wrong", "host") as stranger:
            assert stranger.answer == f"-ERR {wire.BAD_LOGIN}"
            server.wait_for(f">> -ERR {wire.TIMED_OUT}")
        with Talker(net, "itojun", "secret", "host") as silent:
            assert silent.answer.startswith("+OK")
            # No FIN comes from a host that has lost its power.
            net.router.run(machine.link("eth0", up=False))
            server.wait_for("itojun: down: timed out")
            wait_until("its tunnel is gone", lambda: not _gifs(net))
        net.router.run(machine.link("eth0", up=True))
        assert server.end() == 0


@pytest.mark.hazard(40, "K12")
def test_a_second_tunnel_in_one_session_is_refused_and_leaks_nothing(net: Internet) -> None:
    with serve(net) as server:
        before = net.server.snapshot()
        script = (
            "import hashlib, socket\n"
            f"s = socket.create_connection(('{SERVER4}', 20200), 10); f = s.makefile('rb')\n"
            "c = f.readline().split()[1]\n"
            "d = hashlib.md5(b'itojun' + c + b'secret').hexdigest().upper()\n"
            "for t in 'host', 'tunnelonly', 'network':\n"
            "    s.sendall(f'tunnel itojun {d} {t}\\n'.encode())\n"
            "    print(f.readline().decode().strip())\n"
        )
        answers = net.client.run([sys.executable, "-c", script]).stdout.splitlines()
        assert answers[0].startswith("+OK 203.0.113.7")
        assert answers[1:] == [f"-ERR {wire.HAVE_TUNNEL}"] * 2
        wait_until_as_it_was(net.server, before)
        assert server.end() == 0


@pytest.mark.hazard(41)
def test_when_all_are_given_away_the_session_goes_on(net: Internet) -> None:
    """UDP ports are what can run out first."""
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    set_users(net.server, "itojun:secret\njun:hidden\n")
    script = (
        "import hashlib, socket, sys\n"
        f"s = socket.create_connection(('{SERVER4}', 20200), 10, ('203.0.113.20', 0))\n"
        "f = s.makefile('rb'); c = f.readline().split()[1]\n"
        "d = hashlib.md5(b'jun' + c + b'hidden').hexdigest().upper()\n"
        "for t in 'tunnelonly udp=4028', 'tunnelonly':\n"
        "    s.sendall(f'tunnel jun {d} {t}\\n'.encode()); print(f.readline().decode().strip())\n"
    )
    with Program(net.server, "dtcps", "-d", "-U", "-b", "65535", PREFIX) as server:
        server.wait_for("listening")
        with Talker(net, "itojun", "secret", "tunnelonly udp=4028") as one:
            assert one.answer.startswith("+OK 203.0.113.7 192.0.2.1 udp=65535 key=")
            answers = net.client.run([sys.executable, "-c", script]).stdout.splitlines()
            assert answers == [f"-ERR {wire.SOLD_OUT}", "+OK 203.0.113.20 192.0.2.1"]
        assert server.end() == 0


@pytest.mark.hazard(42, "K13")
@pytest.mark.parametrize("step", ["create", "2001:db8:1::5"])
def test_a_client_that_is_gone_in_mid_setup_leaves_nothing(net: Internet, step: str) -> None:
    with serve(net) as server:
        before = net.server.snapshot()
        fault = {"command": "ifconfig", "match": [step], "do": "hang"}
        net.server.write("/run/freebsd/faults", json.dumps([fault]))
        script = (
            "import hashlib, socket, struct, sys\n"
            f"s = socket.create_connection(('{SERVER4}', 20200), 10)\n"
            "c = s.makefile('rb').readline().split()[1]\n"
            "d = hashlib.md5(b'itojun' + c + b'secret').hexdigest().upper()\n"
            "s.sendall(f'tunnel itojun {d} host\\n'.encode()); sys.stdin.read()\n"
            "s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n"
        )
        client = net.client.popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
        server.wait_for(f"# ifconfig .*{step}")
        client.communicate()  # ends it with a reset
        wait_until("nothing is left", lambda: not _gifs(net))
        net.server.run(["rm", "/run/freebsd/faults"])
        wait_until("as before", lambda: _but_shells(net.server.snapshot()) == _but_shells(before))
        assert server.end() == 0


def _but_shells(state: Snapshot) -> Snapshot:
    """As many processes as there are; a shell that had to be killed was started anew."""
    return state | {"processes": [re.sub(r"^\d+ |\w{32}$", "", x) for x in state["processes"]]}


@pytest.mark.hazard(42)
def test_many_tunnels_are_all_gone_in_bounded_time(net: Internet, figure: Figure) -> None:
    many = 12
    sources = [f"203.0.113.{20 + number}" for number in range(many)]
    for source in sources:
        net.client.run(["ifconfig", "em0", "inet", f"{source}/32", "alias"])
    users = "".join(f"user{number}:secret\n" for number in range(many))
    set_users(net.server, users)
    before = net.server.snapshot()
    with ExitStack() as stack:
        server = stack.enter_context(Program(net.server, "dtcps", "-d", PREFIX))
        server.wait_for("listening")
        for number, source in enumerate(sources):
            talker = Talker(net, f"user{number}", "secret", "host", source)
            assert stack.enter_context(talker).answer.startswith("+OK")
        assert _gifs(net) == many
        server.send(signal.SIGTERM)
        assert server.status(limit=20) == 0
    assert difference(before, net.server.snapshot()) == []
    figure("The server ends with all its tunnels, in bounded time", "tunnels", many)
