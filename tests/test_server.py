"""The server, with real tunnels: many clients at once, and nothing left after they are gone."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from lab.internet import Internet
from lab.snapshot import difference
from tests.running import (
    PREFIX,
    ROOT,
    Program,
    Talker,
    login,
    ping,
    serve,
    set_users,
    wait_until,
)

pytestmark = pytest.mark.lab


def _tunnels(net: Internet) -> list[str]:
    """The outer pairs that the server's gifs have."""
    shown = net.server.run(["ifconfig", "-a"]).stdout
    return sorted(re.findall(r"tunnel inet (\S+ --> \S+)", shown))


@pytest.mark.hazard("K16")
def test_several_clients_at_once_each_with_its_own_addresses(net: Internet) -> None:
    sources = [f"203.0.113.{number}" for number in (20, 21, 22)]
    for source in sources:
        net.client.run(["ifconfig", "em0", "inet", f"{source}/32", "alias"])
    users = "".join(f"user{number}:secret\n" for number in range(3))
    set_users(net.server, users)
    before = net.server.snapshot()
    with Program(net.server, "dtcps", "-d", PREFIX) as server:
        server.wait_for("listening")
        talkers = [
            Talker(net, f"user{number}", "secret", "host", source)
            for number, source in enumerate(sources)
        ]
        assert [each.answer for each in talkers] == [
            f"+OK {source} 192.0.2.1 2001:db8:1::{low:x} 2001:db8:1::{low - 1:x}"
            for source, low in zip(sources, (6, 10, 14), strict=True)
        ]
        assert _tunnels(net) == [f"192.0.2.1 --> {source}" for source in sources]
        for each in talkers:
            each.process.kill()
            each.process.communicate()
        wait_until("no tunnel is left", lambda: not _tunnels(net))
        assert server.end() == 0
    assert difference(before, net.server.snapshot()) == []


@pytest.mark.hazard(44)
def test_a_slow_command_for_one_keeps_nobody_else_waiting(net: Internet) -> None:
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    set_users(net.server, "itojun:secret\njun:hidden\n")
    # Slow for longer than the login of the other takes.
    words = ("run.LIMIT=12", "dtcps", "-d", PREFIX)
    with Program(net.server, "tests/hasty", *words) as server:
        server.wait_for("listening")
        whose = f"dtcps jun@203.0.113.7 pid {server.pid}"
        fault = {"command": "ifconfig", "match": ["create", whose], "do": "hang"}
        net.server.write("/run/freebsd/faults", json.dumps([fault]))
        slow = net.client.popen(
            [sys.executable, str(ROOT / "tests/talk.py"), "192.0.2.1", "jun", "hidden", "host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        server.wait_for(f"ifconfig gif create .*{whose}")
        with Talker(net, "itojun", "secret", "tunnelonly", "203.0.113.20") as quick:
            assert quick.answer == "+OK 203.0.113.20 192.0.2.1", "\n".join(server.lines)
            assert slow.poll() is None
        out, _ = slow.communicate()
        assert out == "-ERR internal error\n"


@pytest.mark.parametrize(
    ("user", "password", "tunnel_type", "answer"),
    [
        ("itojun", "wrong", "host", "-ERR authentication failed."),
        ("nobody", "secret", "host", "-ERR authentication failed."),
        ("itojun", "secret", "moon", "-ERR unsupported tunnel type moon"),
        ("jun", "hidden", "network", "-ERR no route for this user"),
        ("itojun", "secret", "network", "+OK 203.0.113.7 192.0.2.1 2001:db8:3c3::/48"),
    ],
)
def test_answers(net: Internet, user: str, password: str, tunnel_type: str, answer: str) -> None:
    with serve(net), Talker(net, user, password, tunnel_type) as talker:
        assert talker.answer == answer


@pytest.mark.hazard(40, "K15")
def test_a_new_login_replaces_the_old_one(net: Internet) -> None:
    """The client's machine was switched off and is back: its old connection is half open."""
    with serve(net) as server, Talker(net, "itojun", "secret", "host") as old:
        assert old.answer.startswith("+OK")
        with login(net.client, "-t", "host") as client:
            client.wait_for("up after")
            server.wait_for("itojun: up: gif0 to .*, as it was")
            assert ping(net.client)
            assert _tunnels(net) == ["192.0.2.1 --> 203.0.113.7"]
            assert client.end() == 0
        wait_until("no tunnel is left", lambda: not _tunnels(net))


VYATTA = """
import hashlib, socket
with socket.create_connection(("192.0.2.1", 20200), 20) as sock:
    file = sock.makefile("rb")
    challenge = file.readline().split()[1].decode()
    digest = hashlib.md5(f"itojun{challenge}secret".encode()).hexdigest()
    for said in (f"tunnel itojun {digest} network\\n", "ping", "ping", "quit\\n"):
        sock.sendall(said.encode())
        print(file.readline().decode().strip())
"""


def test_vyattas_client_ends_its_lines_with_lf_and_its_pings_with_nothing(net: Internet) -> None:
    with serve(net):
        pong = "+OK hi, happy to hear from you"
        assert net.client.run([sys.executable, "-c", VYATTA]).stdout.splitlines() == [
            "+OK 203.0.113.7 192.0.2.1 2001:db8:3c3::/48",
            *(pong, pong, "+OK see you soon."),
        ]


def test_two_users_cannot_have_the_same_outer_pair(net: Internet) -> None:
    with serve(net), Talker(net, "itojun", "secret", "host") as one:
        assert one.answer.startswith("+OK")
        with Talker(net, "jun", "hidden", "host") as other:
            assert other.answer == "-ERR 203.0.113.7 has a tunnel of another user; use -U"
        assert _tunnels(net) == ["192.0.2.1 --> 203.0.113.7"]


@pytest.mark.hazard(42)
def test_it_ends_with_its_tunnels(net: Internet) -> None:
    with serve(net) as server, Talker(net, "itojun", "secret", "network"):
        assert _tunnels(net)
        assert server.end() == 0
        assert not _tunnels(net)


@pytest.mark.hazard(44, "K13")
def test_a_failed_setup_is_undone_and_tells_the_client_nothing(net: Internet) -> None:
    with serve(net) as server:
        before = net.server.snapshot()
        fault = {"command": "route", "match": ["add"], "do": "exit1"}
        net.server.write("/run/freebsd/faults", json.dumps([fault]))
        with Talker(net, "itojun", "secret", "network") as talker:
            assert talker.answer == "-ERR internal error"
        server.wait_for("itojun: the tunnel could not be made: route -n add -inet6")
        assert difference(before, net.server.snapshot()) == []


@pytest.mark.hazard(43, "K14")
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_a_store_that_cannot_be_used_is_named(net: Internet) -> None:
    path = "/var/db/dtcps/dtcps.db"
    for command, message in (
        ("true", "no such file; dtcpauth add makes it"),
        (
            f"mkdir {path.rpartition('/')[0]}; : >{path}; chmod 644 {path}",
            "accessible by others; chmod 600",
        ),
        (f"chmod 600 {path}; echo nonsense >{path}", "file is not a database"),
        (f"chmod 777 {path.rpartition('/')[0]}", "accessible by others; chmod go-w"),
    ):
        net.server.run(["sh", "-c", command])
        with Program(net.server, "dtcps", "-d") as server:
            assert server.status() == 1
            assert server.lines[-1].startswith("dtcps: /var/db/dtcps")
            assert message in server.lines[-1]


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_it_becomes_a_daemon(net: Internet) -> None:
    """Without -D, as the old one; a second one is refused by its pid."""
    set_users(net.server, "itojun:secret\n")
    with Program(net.server, "dtcps", PREFIX) as server:
        assert server.status() == 0
        assert server.lines == []
    pid = net.server.read("/var/run/dtcps.pid").strip()
    with Program(net.server, "dtcps", PREFIX) as second:
        assert second.status() == 1
        assert second.lines == [f"dtcps: /var/run/dtcps.pid: already running as pid {pid}"]
    with Talker(net, "itojun", "secret", "host") as talker:
        assert talker.answer.startswith("+OK")
        net.server.run(["kill", pid])
        wait_until("the daemon is gone", lambda: int(pid) not in net.server.processes())
    assert not _tunnels(net)
