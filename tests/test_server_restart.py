"""The server goes and comes back: tunnels stay for those who come back, and for nobody else."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest

from lab.internet import Internet
from lab.snapshot import difference
from tests.running import (
    FAR,
    PREFIX,
    ROOT,
    Program,
    Talker,
    identity,
    login,
    ping,
    serve,
    set_users,
    wait_until,
)

pytestmark = pytest.mark.lab

CONFIG = "/usr/local/etc/dtcps.conf"


def _commands(server: Program) -> list[str]:
    """What a server has done to the system."""
    words = ("create", "destroy", "inet6", "add", "delete", "-alias", "shutdown", "mkpeer")
    lines = [line.partition("# ")[2] for line in server.lines if "dtcps: # " in line]
    lines = [each for each in lines if not each.startswith("netstat")]
    # Routes for all of the server's prefix are not for a tunnel.
    return [
        each for each in lines if any(w in each.split() for w in words) and "-reject" not in each
    ]


def _tunnels(net: Internet) -> list[str]:
    return re.findall(r"tunnel inet (\S+ --> \S+)", net.server.run(["ifconfig", "-a"]).stdout)


def _index(net: Internet, name: str = "gif0") -> str:
    return identity(net.server, name)


@pytest.mark.dialects
@pytest.mark.turns(3)
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGKILL])
@pytest.mark.parametrize("kind", ["host", "network"])
def test_who_comes_back_finds_everything_as_it_was(net: Internet, number: int, kind: str) -> None:
    server = serve(net)
    inside = ["-A", "2001:db8:3c3::1/128"] if kind == "network" else []
    with login(net.client, "-l", "-t", kind, *inside) as client:
        client.wait_for("up after")
        index, seen = _index(net), len(client.lines)
        status = server.end(number)
        assert status == (0 if number == signal.SIGUSR2 else -signal.SIGKILL)
        assert len(_tunnels(net)) == 1
        with serve(net) as again:
            again.wait_for("1 tunnels wait for their clients to come back")
            again.wait_for("itojun: up: gif0 to 203.0.113.7, .*, as it was")
            wait_until("back", lambda: any("up after" in line for line in client.lines[seen:]))
            assert _commands(again) == []
            assert _index(net) == index
            assert ping(net.client)
            assert client.end() == 0
            again.wait_for("itojun: down: the client said quit")
            wait_until("it has gone", lambda: not _tunnels(net))
            assert again.end() == 0


ECHO = """
import socket, sys
sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
if sys.argv[1] == "listen":
    sock.bind(("::", 7777)); sock.listen(); print("ready", flush=True)
    sock, _ = sock.accept()
    while data := sock.recv(4096):
        sock.sendall(data)
else:
    sock.connect((sys.argv[1], 7777)); print("ready", flush=True)
    for line in sys.stdin:
        sock.sendall(line.encode())
        print(sock.recv(4096).decode().strip(), flush=True)
"""


def test_a_connection_through_the_tunnel_outlives_the_server(net: Internet) -> None:
    """TCP between the client and the far host, with and without a server."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = serve(net)
    with login(net.client, "-l", "-t", "host") as client:
        client.wait_for("up after")
        assert ping(net.client)
        echo = net.far.popen([sys.executable, "-c", ECHO, "listen"], **pipes)
        assert echo.stdout is not None
        assert echo.stdout.readline() == "ready\n"
        user = net.client.popen([sys.executable, "-c", ECHO, FAR], **pipes)
        assert user.stdin is not None
        assert user.stdout is not None
        assert user.stdout.readline() == "ready\n"

        def says(text: str) -> str:
            assert user.stdin is not None
            assert user.stdout is not None
            user.stdin.write(f"{text}\n")
            user.stdin.flush()
            return user.stdout.readline().strip()

        assert says("before") == "before"
        server.end(signal.SIGUSR2)
        assert says("meanwhile") == "meanwhile"
        with serve(net) as again:
            again.wait_for("as it was")
            assert says("after") == "after"
            assert client.end() == 0


def test_who_does_not_come_back_loses_the_tunnel(net: Internet) -> None:
    before = net.server.snapshot()
    net.server.write(CONFIG, "adopt-time = 1\n")
    with serve(net) as server, Talker(net, "itojun", "secret", "network") as talker:
        assert talker.answer.startswith("+OK")
        server.end(signal.SIGKILL)
    assert len(_tunnels(net)) == 1
    with serve(net) as server:
        server.wait_for("itojun: down: its client did not come back")
        wait_until("it has gone", lambda: not _tunnels(net))
        assert server.end() == 0
    net.server.run(["rm", CONFIG])
    assert difference(before, net.server.snapshot()) == []


def test_what_was_half_made_is_removed_at_the_start(net: Internet) -> None:
    """An interface with our mark that the store does not know; one without is left alone."""
    words = ["ifconfig", "gif", "create", "group", "dtcp", "description"]
    net.server.run([*words, "dtcps jun@203.0.113.9 pid 7"])
    net.server.run([*words, "somebody's"])
    with serve(net) as server:
        server.wait_for("removing gif0, which a killed dtcps has left")
        marked = ["ifconfig", "-g", "dtcp"]
        wait_until("gif0 has gone", lambda: net.server.run(marked).stdout == "gif1\n")
        assert server.end() == 0


@pytest.mark.turns(3)
@pytest.mark.parametrize(
    "spoil",
    [
        "ifconfig gif0 destroy",
        "ifconfig gif0 tunnel 192.0.2.1 203.0.113.99",
        "ifconfig gif0 down",
        "route -n delete -inet6 2001:db8:3c3::/48 -interface gif0",
    ],
)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_what_is_not_as_it_was_is_put_back_or_made_anew(net: Internet, spoil: str) -> None:
    with serve(net) as server, Talker(net, "itojun", "secret", "network"):
        server.end(signal.SIGKILL)
    net.server.run(spoil.split())
    with serve(net) as server, Talker(net, "itojun", "secret", "network") as talker:
        assert talker.answer.startswith("+OK")
        server.wait_for("itojun: .*(put back what was missing|not there any more: making it anew)")
        server.wait_for("itojun: up: ")
        is_new = any("create" in line for line in _commands(server))
        assert is_new == ("destroy" in spoil)
        assert _tunnels(net) == ["192.0.2.1 --> 203.0.113.7"]
        assert "<UP," in net.server.run(["ifconfig", "gif0"]).stdout
        shown = net.server.run(["route", "-n", "get", "-inet6", "2001:db8:3c3::"]).stdout
        assert re.search(r"interface: gif[0-9]", shown)
        assert server.end() == 0


def test_another_grant_takes_the_place_of_what_was_left(net: Internet) -> None:
    with serve(net) as server, Talker(net, "itojun", "secret", "network"):
        server.end(signal.SIGKILL)
    with serve(net) as server, Talker(net, "itojun", "secret", "host") as talker:
        assert talker.answer == "+OK 203.0.113.7 192.0.2.1 2001:db8:1::6 2001:db8:1::5"
        server.wait_for("itojun: down: itojun has logged in from 203.0.113.7")
        assert len(_tunnels(net)) == 1
        assert server.end() == 0


def test_a_tunnel_over_udp_too(net: Internet) -> None:
    net.client.write("/usr/local/etc/dtcpc.auth", "tunnel.example.org:itojun:secret\n")
    set_users(net.server, "itojun:secret\n")
    server = Program(net.server, "dtcps", "-d", "-U", PREFIX)
    server.wait_for("listening")
    with login(net.client, "-l", "-U", "-t", "host") as client:
        client.wait_for("up after")
        wait_until("packets pass", lambda: ping(net.client))
        index, seen = _index(net, "ng0"), len(client.lines)
        server.end(signal.SIGUSR2)
        with Program(net.server, "dtcps", "-d", "-U", PREFIX) as again:
            again.wait_for("itojun: up: ng0 to 203.0.113.7, .*, as it was")
            wait_until("back", lambda: any("up after" in line for line in client.lines[seen:]))
            assert _index(net, "ng0") == index
            assert ping(net.client)
            assert client.end() == 0
            again.wait_for("itojun: down")
            assert again.end() == 0


def test_unused_space_is_unreachable_and_only_while_it_serves(net: Internet) -> None:
    before = net.server.snapshot()
    net.server.write(CONFIG, "delegate = 2001:db8:4000::/40 /48\nunreachable = 2001:db8:7::/48\n")
    route = ["route", "-n", "get", "-inet6"]
    with serve(net) as server:
        for prefix in ("2001:db8:1::/64", "2001:db8:4000::/40", "2001:db8:7::/48"):
            assert "REJECT" in net.server.run([*route, prefix]).stdout
        server.end(signal.SIGKILL)
    with serve(net) as server, Talker(net, "jun", "hidden", "network") as talker:
        assert talker.answer == "+OK 203.0.113.7 192.0.2.1 2001:db8:4000::/48"
        assert not any("-reject" in line for line in server.lines)  # they were there
        assert "interface: gif0" in net.server.run([*route, "2001:db8:4000::1"]).stdout
        assert "REJECT" in net.server.run([*route, "2001:db8:4001::1"]).stdout
        assert server.end() == 0
    net.server.run(["rm", CONFIG])
    assert difference(before, net.server.snapshot()) == []


def test_a_replaced_login_waits_for_one_that_is_being_made(net: Internet) -> None:
    """The first hangs in a command; the second gets its tunnel when that was killed."""
    with serve(net) as server:
        whose = f"dtcps itojun@203.0.113.7 pid {server.pid}"
        fault = {"command": "ifconfig", "match": ["create", whose], "do": "hang"}
        net.server.write("/run/freebsd/faults", json.dumps([fault]))
        words = [sys.executable, str(ROOT / "tests/talk.py"), "192.0.2.1", "itojun", "secret"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        net.client.popen([*words, "host"], **pipes)
        server.wait_for(f"ifconfig gif create .*{whose}")
        with Talker(net, "itojun", "secret", "host") as second:
            assert second.answer.startswith("+OK"), "\n".join(server.lines)
            assert len(_tunnels(net)) == 1
        assert server.end() == 0


@pytest.mark.hazard(77)
def test_the_next_one_waits_for_a_slow_command(net: Internet) -> None:
    """Two servers at once would each undo what the other is about to do."""
    set_users(net.server, "itojun:secret\njun:hidden\n")
    words = ("run.LIMIT=9", "dtcps", "-d", PREFIX)
    with Program(net.server, "tests/hasty", *words) as server:
        server.wait_for("listening")
        whose = f"dtcps jun@203.0.113.7 pid {server.pid}"
        fault = {"command": "ifconfig", "match": ["create", whose], "do": "hang"}
        net.server.write("/run/freebsd/faults", json.dumps([fault]))
        slow = [sys.executable, str(ROOT / "tests/talk.py"), "192.0.2.1", "jun", "hidden", "host"]
        net.client.popen(slow, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        server.wait_for(f"ifconfig gif create .*{whose}")
        server.send(signal.SIGUSR2)
        server.wait_for("leaving the tunnels to the next one")
        next_one = net.server.run([sys.executable, str(ROOT / "dtcps.py"), "-D"], check=False)
        assert not any("could not be made" in line for line in server.lines), "it hangs still"
        assert next_one.returncode == 1
        assert f"already running as pid {server.pid}" in next_one.stderr
        assert server.status() == 0
        assert any("could not be made" in line for line in server.lines)
        wait_until(
            "the command has ended",
            lambda: not any(whose in words for words in net.server.processes().values()),
        )
    with serve(net) as server, Talker(net, "jun", "hidden", "host") as talker:
        assert talker.answer.startswith("+OK")
        assert len(_tunnels(net)) == 1
        assert server.end() == 0
