"""The server in use: what it reports, what it tolerates, and what its administrators can change."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import time
from typing import Any

import pytest
from dtcp.server import presence

from lab import SLOW
from lab.internet import Internet
from lab.machine import machine
from lab.snapshot import difference
from tests.running import (
    PREFIX,
    ROOT,
    Program,
    Talker,
    dtcpauth,
    login,
    ping,
    serve,
    set_users,
    wait_until,
)

pytestmark = pytest.mark.lab

CONFIG = "/usr/local/etc/dtcps.conf"
DTCPS = [sys.executable, str(ROOT / "dtcps.py")]


def _tunnels(net: Internet) -> list[str]:
    return re.findall(r"tunnel inet (\S+ --> \S+)", net.server.run(["ifconfig", "-a"]).stdout)


# --- seeing it --------------------------------------------------------------------------------


def test_status_for_people_and_for_machines(net: Internet) -> None:
    assert net.server.run([*DTCPS, "--status"], check=False).stdout == "not running\n"
    with serve(net) as server, login(net.client, "-t", "host") as client:
        client.wait_for("up after")
        assert ping(net.client)
        told = json.loads(net.server.run([*DTCPS, "--status", "--json"]).stdout)
        assert (told["connections"], told["logins"], told["refused"]) == (1, 1, 0)
        (tunnel,) = told["tunnels"]
        assert tunnel["user"] == "itojun"
        assert tunnel["from"] == "203.0.113.7"
        assert tunnel["address"] == "2001:db8:1::6"
        assert tunnel["interface"] == "gif0"
        assert abs(tunnel["since"] - time.time()) < 60
        assert client.end() == 0
        server.wait_for("itojun: down")
        assert net.server.run([*DTCPS, "--status"]).stdout.startswith("up for ")
        assert server.end() == 0
    done = net.server.run([*DTCPS, "--status", "--json"], check=False)
    assert (done.returncode, done.stdout) == (1, "{}\n")


FETCH = """
import sys, urllib.error, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=10) as answer:
        print(answer.status, answer.headers["Content-Type"]); print(answer.read().decode(), end="")
except urllib.error.HTTPError as error:
    print(error.code)
except OSError as error:
    print("nobody")
"""


def test_prometheus_is_answered_on_loopback_and_only_when_wanted(net: Internet) -> None:
    def fetch(path: str) -> str:
        url = f"http://127.0.0.1:9123{path}"
        return net.server.run([sys.executable, "-c", FETCH, url]).stdout

    with serve(net) as server, Talker(net, "itojun", "secret", "network"):
        assert fetch("/metrics") == "nobody\n"
        net.server.write(CONFIG, "metrics = 127.0.0.1:9123\n")
        server.send(signal.SIGHUP)
        server.wait_for("the configuration was read again")
        head, *lines = fetch("/metrics").splitlines()
        assert head == "200 text/plain; version=0.0.4; charset=utf-8"
        samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert samples["dtcps_tunnels"] == "1"
        assert samples["dtcps_logins_total"] == "1"
        assert 'dtcps_tunnel_sent_bytes_total{user="itojun",interface="gif0"}' in samples
        assert fetch("/") == "404\n"
        net.server.run(["rm", CONFIG])
        seen = len(server.lines)
        server.send(signal.SIGHUP)
        wait_until("read", lambda: any("read again" in line for line in server.lines[seen:]))
        assert fetch("/metrics") == "nobody\n"
        assert server.end() == 0


def test_an_address_that_is_not_there_to_listen_at_is_named(net: Internet) -> None:
    set_users(net.server, "itojun:secret\n")
    net.server.write(CONFIG, "listen = 192.0.2.77\n")
    done = net.server.run([*DTCPS, "-d"], check=False)
    assert done.returncode == 1
    assert re.fullmatch(
        r"dtcps: listen on 192\.0\.2\.77 port 20200: Can\S+ assign requested address\n", done.stderr
    )


# --- the configuration, again -----------------------------------------------------------------


def test_a_wrong_configuration_changes_nothing(net: Internet) -> None:
    with serve(net) as server, Talker(net, "itojun", "secret", "network") as talker:
        for text, why in (
            ("delegate = 2001:db8:4000::/40 /48\nmtu = 7\n", f"{CONFIG}:2: '7' is not a number"),
            ("store = /var/db/other.db\n", "store cannot change while we run: restart"),
            ("listen = 127.0.0.1\n", "listen cannot change while we run: restart"),
        ):
            net.server.write(CONFIG, text)
            server.send(signal.SIGHUP)
            server.wait_for(f"nothing was changed: {re.escape(why)}")
        net.server.write(CONFIG, "mtu = 7\n")
        done = net.server.run([*DTCPS, "--check"], check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"dtcps: {CONFIG}:1: '7' is not a number")
        net.server.write(CONFIG, "mtu = 1400\n")
        assert net.server.run([*DTCPS, "--check"]).stderr == ""
        assert len(_tunnels(net)) == 1
        assert talker.process.poll() is None
        assert server.end() == 0


@pytest.mark.hazard(76)
def test_a_reload_keeps_nobody_waiting(net: Internet) -> None:
    """route(8) hangs, for longer than a login takes."""
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    serve(net).end()
    slow = ("run.LIMIT=30", "dtcps", "-d", PREFIX)
    with (
        Program(net.server, "tests/hasty", *slow) as server,
        contextlib.ExitStack() as stack,
    ):
        server.wait_for("listening")
        talker = stack.enter_context(Talker(net, "itojun", "secret", "network"))
        assert talker.answer.startswith("+OK")
        fault = {"command": "route", "match": ["get"], "do": "hang"}
        net.server.write("/run/freebsd/faults", json.dumps([fault]))
        net.server.write(CONFIG, "mtu = 1400\n")
        seen = len(server.lines)
        server.send(signal.SIGHUP)
        wait_until("it looks", lambda: any("# route -n get" in x for x in server.lines[seen:]))
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as other:
            assert other.answer.startswith("+OK")
            assert not any("nothing was changed" in line for line in server.lines), "it hangs still"
            assert "mtu 1280" in net.server.run(["ifconfig", "gif1"]).stdout  # not half of it
        assert server.end() == 0
        assert not any("read again" in line for line in server.lines)


def test_a_reload_touches_only_whom_it_concerns(net: Internet) -> None:
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    net.server.write(CONFIG, "delegate = 2001:db8:4000::/40 /48\n")
    with (
        serve(net) as server,
        Talker(net, "itojun", "secret", "network") as fixed,
        Talker(net, "jun", "hidden", "network", "203.0.113.20") as leased,
    ):
        assert leased.answer == "+OK 203.0.113.20 192.0.2.1 2001:db8:4000::/48"
        # A larger pool concerns nobody: of what follows, only the second makes him go.
        net.server.write(CONFIG, "delegate = 2001:db8:4000::/39 /48\n")
        server.send(signal.SIGHUP)
        server.wait_for("the configuration was read again")
        net.server.write(CONFIG, "delegate = 2001:db8:5000::/40 /48\nlog-lines = 7\n")
        server.send(signal.SIGHUP)
        server.wait_for("jun: down: what this user has was changed")
        server.wait_for(f"{CONFIG}:2: log-lines is now fixed at 5; remove this line")
        assert sum("read again" in line for line in server.lines) == 2
        wait_until("one is left", lambda: len(_tunnels(net)) == 1)
        assert leased.process.stdout is not None
        assert fixed.process.poll() is None
        with Talker(net, "jun", "hidden", "network", "203.0.113.20") as again:
            assert again.answer == "+OK 203.0.113.20 192.0.2.1 2001:db8:5000::/48"
        assert not any("itojun: down" in line for line in server.lines)
        assert server.end() == 0


# --- users ------------------------------------------------------------------------------------


@pytest.mark.turns(3)
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("delete", "itojun"), "this user was deleted"),
        (("change", "--disable", "itojun"), "this user is disabled"),
        (("change", "-e", "2001-01-01", "itojun"), "this user has expired"),
        (("change", "-t", "host", "itojun"), "no tunnels of type network for this user"),
        (("change", "-P", "2001:db8:9::/48", "itojun"), "what this user has was changed"),
    ],
)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_a_change_of_a_user_is_noticed(net: Internet, words: tuple[str, ...], why: str) -> None:
    with serve(net) as server, Talker(net, "itojun", "secret", "network") as talker:
        assert talker.answer.startswith("+OK")
        dtcpauth(net.server, *words)
        server.wait_for(f"itojun: down: {why}")
        wait_until("it has gone", lambda: not _tunnels(net))
        assert server.end() == 0


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_who_is_kicked_may_come_back(net: Internet) -> None:
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    with serve(net) as server, Talker(net, "jun", "hidden", "host", "203.0.113.20") as jun:
        assert jun.answer.startswith("+OK")
        with login(net.client, "-l", "-t", "network") as client:
            client.wait_for("up after")
            heard = len(client.lines)
            dtcpauth(net.server, "kick", "itojun")
            server.wait_for("itojun: down: ended by the administrator")
            client.wait_for("lost: .*ended by the administrator")
            wait_until("back", lambda: any("up after" in line for line in client.lines[heard:]))
            seen = len(server.lines)
            server.send(signal.SIGHUP)  # it looks at all of them
            server.wait_for("the configuration was read again")
            dtcpauth(net.server, "kick", "jun")
            server.wait_for("jun: down: ended by the administrator")
            assert not [line for line in server.lines[seen:] if "itojun: down" in line]
            assert client.end() == 0
        assert server.end() == 0


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_what_users_have_done_is_listed(net: Internet) -> None:
    """Also on an interface that has counted for others, and by a server that ends at once."""

    def told(name: str) -> dict[str, Any]:
        (found,) = json.loads(dtcpauth(net.server, "list", "--json", name))
        assert isinstance(found, dict)
        return found

    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    with serve(net, "-o") as server:
        assert told("itojun")["last_login"] is None
        began = time.time()
        with login(net.client, "-t", "host") as client:
            client.wait_for("up after")
            wait_until("it pings", lambda: ping(net.client))
            wait_until("the login is listed", lambda: (told("itojun")["last_login"] or 0) >= began)
            assert client.end() == 0
        server.wait_for("itojun: down")
        wait_until("the bytes are listed", lambda: min(_bytes(told("itojun"))) > 100)
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as talker:
            assert talker.answer.startswith("+OK")
            assert "gif0" in server.wait_for("jun: up")
            assert server.end() == 0
    assert told("jun")["last_login"] >= began
    pairs = zip(_bytes(told("jun")), _bytes(told("itojun")), strict=True)
    assert all(less < more for less, more in pairs)


def _bytes(told: dict[str, Any]) -> tuple[int, int]:
    return told["received"], told["sent"]


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_a_new_password_and_other_users_touch_nobody(net: Internet) -> None:
    with serve(net) as server, Talker(net, "itojun", "secret", "network"):
        dtcpauth(net.server, "change", "-p", "itojun", input="another-secret-of-mine")
        dtcpauth(net.server, "delete", "jun")
        with Talker(net, "itojun", "another-secret-of-mine", "network") as again:
            assert again.answer.startswith("+OK")
        assert server.end() == 0


@pytest.mark.parametrize(
    ("words", "kind", "answer"),
    [
        (("--disable",), "host", "-ERR this user is disabled"),
        (("-e", "2001-01-01"), "host", "-ERR this user has expired"),
        (("-t", "network"), "host", "-ERR no tunnels of type host for this user"),
        (
            ("-A", "2001:db8:77::7"),
            "host",
            "+OK 203.0.113.7 192.0.2.1 2001:db8:77::7 2001:db8:77::6",
        ),
        (
            ("-P", "2001:db8:8::/48,2001:db8:9::/56"),
            "tunnelroute",
            "+OK 203.0.113.7 192.0.2.1 2001:db8:8::/48 2001:db8:9::/56",
        ),
    ],
)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_what_a_user_may_have(
    net: Internet, words: tuple[str, ...], kind: str, answer: str
) -> None:
    with serve(net) as server:
        dtcpauth(net.server, "change", *words, "jun")
        with Talker(net, "jun", "hidden", kind) as talker:
            assert talker.answer == answer
        assert server.end() == 0


# --- limits -----------------------------------------------------------------------------------

SCAN = """
import socket
busy = 0
for _ in range(100):
    with socket.create_connection(("192.0.2.1", 20200)) as sock:
        file = sock.makefile("rb")
        assert file.readline().startswith(b"+OK ")
        for _ in range(2):
            sock.sendall(b"tunnel itojun 0 host\\r\\n")
            busy += file.readline().startswith(b"-ERR busy")
print(busy)
"""


@pytest.mark.hazard(68)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_who_tries_passwords_must_wait_and_nobody_else(net: Internet) -> None:
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    net.server.write(CONFIG, "penalty = 60\n")
    with serve(net) as server:
        assert net.client.run([sys.executable, "-c", SCAN]).stdout == "198\n"
        server.wait_for("203.0.113.7: login of itojun failed; must wait 60 s")
        assert sum("login of itojun failed" in line for line in server.lines) == 2
        # Neither the user elsewhere nor another user there.
        with (
            Talker(net, "itojun", "secret", "host", "203.0.113.20") as user,
            Talker(net, "jun", "hidden", "host") as neighbor,
        ):
            assert user.answer.startswith("+OK")
            assert neighbor.answer.startswith("+OK")
        assert server.end() == 0


FLOOD = """
import socket
for number in range(30):
    with socket.create_connection(("192.0.2.1", 20200)) as sock:
        file = sock.makefile("rb")
        file.readline()
        sock.sendall(f"tunnel user{number} 0 host\\r\\n".encode())
        print(file.readline().decode().strip())
"""


@pytest.mark.hazard(68)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_who_had_a_tunnel_gets_in_from_where_others_guess_after_a_restart_too(
    net: Internet,
) -> None:
    with serve(net) as server:
        with Talker(net, "itojun", "secret", "host") as user:
            assert user.answer.startswith("+OK")
        server.wait_for("itojun: down")
        assert server.end() == 0
    with serve(net) as server:
        answers = net.client.run([sys.executable, "-c", FLOOD]).stdout.splitlines()
        assert answers == ["-ERR authentication failed."] * 20 + ["-ERR busy, try again later"] * 10
        with Talker(net, "jun", "hidden", "host") as stranger:
            assert stranger.answer == "-ERR busy, try again later"
        with Talker(net, "itojun", "secret", "host") as user:
            assert user.answer.startswith("+OK")
        assert server.end() == 0


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_connections_have_a_limit_in_all_and_for_each_address(net: Internet) -> None:
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    net.server.write(CONFIG, "connections-per-address = 1\n")
    busy = "-ERR busy, try again later"
    with serve(net) as server, Talker(net, "itojun", "secret", "host"):
        with Talker(net, "jun", "hidden", "host") as other:
            assert other.answer == busy
        server.wait_for("203.0.113.7: turned away: 1 connections from there are open")
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as other:
            assert other.answer.startswith("+OK")
        server.wait_for("jun: down")
        net.server.write(CONFIG, "connections = 1\n")
        server.send(signal.SIGHUP)
        server.wait_for("the configuration was read again")
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as other:
            assert other.answer == busy
        server.wait_for("203.0.113.20: turned away: 1 connections are open")
        with Talker(net, "itojun", "secret", "host") as again:
            assert again.answer.startswith("+OK"), "this replaces the one that is there"
        assert server.end() == 0


HOLD = """
import hashlib, socket, struct, sys
sock = socket.create_connection(("192.0.2.1", 20200), 20, ("203.0.113.7", 40000))
file = sock.makefile("rb")
challenge = file.readline().split()[1].decode()
digest = hashlib.md5(f"itojun{challenge}secret".encode()).hexdigest().upper()
sock.sendall(f"tunnel itojun {digest} host\\r\\n".encode())
print(file.readline().decode().strip(), flush=True)
sys.stdin.readline()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""


@pytest.mark.hazard(73)
@pytest.mark.parametrize("now", ["answers nothing", "knows nothing of it"])
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_an_address_goes_on_to_another_user(net: Internet, now: str) -> None:
    """What is there now drops the packets of the old connection, or resets it when asked."""
    with serve(net) as server:
        before = net.client.popen([sys.executable, "-c", HOLD], stdin=-1, stdout=-1)
        assert before.stdout is not None
        assert before.stdout.readline().startswith("+OK")
        if now == "answers nothing":
            net.router.run(machine.refuse("tcp", 40000, ""))
        else:
            net.router.run(machine.link("eth0", up=False))
            before.communicate()  # its reset reaches nobody
            net.router.run(machine.link("eth0", up=True))
        assert not any("itojun: down" in line for line in server.lines)
        begun = time.monotonic()
        with Talker(net, "jun", "hidden", "host") as after:
            assert after.answer.startswith("+OK")
            assert time.monotonic() - begun < 2 * presence.TIME * SLOW
        server.wait_for("itojun: down")
        net.router.run(machine.accept_all())
        before.kill()
        before.communicate()
        assert server.end() == 0


LONG = """
import socket, time
with socket.create_connection(("192.0.2.1", 20200)) as sock:
    began = time.monotonic()
    sock.recv(100)
    sock.sendall(b"x" * 200 + b"\\r\\n")
    print(sock.recv(100).decode().strip())
    sock.settimeout(30)
with socket.create_connection(("192.0.2.1", 20200)) as sock:
    sock.settimeout(30)
    began = time.monotonic()
    while data := sock.recv(100):
        last = data
    print(last.decode().strip(), 0.5 < time.monotonic() - began < 20)
"""


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_long_lines_and_long_silence(net: Internet) -> None:
    set_users(net.server, "itojun:secret\n")
    with Program(net.server, "tests/hasty", "wire.AUTH_TIME=2", "dtcps", "-d", PREFIX) as server:
        server.wait_for("listening")
        assert net.client.run([sys.executable, "-c", LONG], timeout=60).stdout.splitlines() == [
            "-ERR invalid command",
            "-ERR connection timed out, disconnecting True",
        ]
        assert server.end() == 0


# --- options ----------------------------------------------------------------------------------


def test_without_cloning_it_uses_what_is_there_and_leaves_it_so(net: Internet) -> None:
    for name in ("gif3", "gif4", "gif5"):
        net.server.run(["ifconfig", name, "create"])
        # Linux, which has the last word in a snapshot, remembers that an interface was up.
        net.server.run(["ifconfig", name, "up"])
        net.server.run(["ifconfig", name, "down"])
    net.server.run(["ifconfig", "gif3", "up"])  # somebody's
    before = net.server.snapshot()
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    with serve(net, "-c", "-i", "gif[34]") as server:
        with Talker(net, "itojun", "secret", "network") as talker:
            assert talker.answer.startswith("+OK")
            server.wait_for("itojun: up: gif4 to")
            with Talker(net, "jun", "hidden", "host", "203.0.113.20") as other:
                assert other.answer == "-ERR tunnel interface sold out"
        server.wait_for("itojun: down")
        with Talker(net, "jun", "hidden", "host") as talker:
            assert talker.answer.startswith("+OK")
            server.wait_for("jun: up: gif4 to")
        assert server.end() == 0
    assert difference(before, net.server.snapshot()) == []


def test_interfaces_are_kept_and_used_again(net: Internet) -> None:
    with serve(net, "-o") as server:
        for user, secret in (("itojun", "secret"), ("jun", "hidden"), ("itojun", "secret")):
            seen = len(server.lines)
            with Talker(net, user, secret, "host") as talker:
                assert talker.answer.startswith("+OK")
            wait_until("down", lambda at=seen: any("down:" in each for each in server.lines[at:]))
        assert server.end() == 0
    assert net.server.run(["ifconfig", "-g", "dtcp"]).stdout == "gif0\n"
    assert not _tunnels(net)
    assert "UP" not in net.server.run(["ifconfig", "gif0"]).stdout.splitlines()[0]
    with serve(net, "-o") as server, Talker(net, "jun", "hidden", "host") as talker:
        assert talker.answer.startswith("+OK")
        server.wait_for("jun: up: gif0 to")
        assert server.end() == 0


def test_the_lowest_interface(net: Internet) -> None:
    net.server.run(["ifconfig", "gif11", "create"])
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    with serve(net, "-i", "gif10") as server, Talker(net, "itojun", "secret", "host"):
        server.wait_for("itojun: up: gif10 to")
        net.server.run(["ifconfig", "gif12", "create"])  # behind the server's back
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as other:
            assert other.answer.startswith("+OK"), "\n".join(server.lines)
            server.wait_for("jun: up: gif13 to")
        assert server.end() == 0


def test_another_address_is_announced(net: Internet) -> None:
    with serve(net, "-g", "198.51.100.7") as server, Talker(net, "itojun", "secret", "host") as it:
        assert it.answer == "+OK 203.0.113.7 198.51.100.7 2001:db8:1::6 2001:db8:1::5"
        assert _tunnels(net) == ["192.0.2.1 --> 203.0.113.7"]
        assert server.end() == 0


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_tunnels_in_a_fib(net: Internet) -> None:
    net.server.run(["sysctl", "net.fibs=2"])
    with serve(net, "-F", "1") as server, Talker(net, "itojun", "secret", "network") as talker:
        assert talker.answer.startswith("+OK"), "\n".join(server.lines)
        assert "fib: 1" in net.server.run(["ifconfig", "gif0"]).stdout
        routes = net.server.run(["netstat", "-rn", "-f", "inet6", "-F", "1"]).stdout
        assert re.search(r"^2001:db8:3c3::/48\s.*\sgif0", routes, re.M)
        assert server.end() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-i", "gif[0-9]"), "-i: without -c it is the name of the lowest interface"),
        (("-c", "-i", "["), "-i: '[' is not a regular expression"),
        (("-I", "gif1"), "-I: invalid name of a UDP interface (ng10, for example): 'gif1'"),
        (("-c", "-o"), "-o goes without -c"),
        (("-g", "2001:db8::1"), "-g: invalid IPv4 address: '2001:db8::1'"),
        (("-F", "x"), "-F: 'x' is not a number"),
        (("--json",), "--json goes with --status"),
        (("2001:db8::/120",), "'2001:db8::/120' is too small: /112 is the smallest"),
    ],
)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_a_wrong_command_line(net: Internet, words: tuple[str, ...], said: str) -> None:
    done = net.server.run([*DTCPS, *words], check=False)
    assert done.returncode == 64
    assert said in done.stderr
