"""The server in use: what it tells of itself, what it bears, and what it takes from its keepers."""

from __future__ import annotations

import json
import re
import signal
import sys
import time

import pytest

from lab.internet import Internet
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
        # An echo request and its reply, of 64 + 40 bytes each, at least.
        assert tunnel["received"] >= 104
        assert tunnel["sent"] >= 104
        text = net.server.run([*DTCPS, "--status"]).stdout
        assert re.search(
            r"^itojun +203\.0\.113\.7 +gif0 +\d+s +\S+ +\S+ +2001:db8:1::6$", text, re.M
        )
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
        assert sum("read again" in line for line in server.lines) == 2
        wait_until("one is left", lambda: len(_tunnels(net)) == 1)
        assert leased.process.stdout is not None
        assert fixed.process.poll() is None
        with Talker(net, "jun", "hidden", "network", "203.0.113.20") as again:
            assert again.answer == "+OK 203.0.113.20 192.0.2.1 2001:db8:5000::/48"
        assert not any("itojun: down" in line for line in server.lines)
        assert server.end() == 0


# --- users ------------------------------------------------------------------------------------


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
import socket, sys
turned_away = 0
for _ in range(int(sys.argv[1])):
    with socket.create_connection(("192.0.2.1", 20200)) as sock:
        if sock.recv(100).startswith(b"-ERR busy"):
            turned_away += 1
            continue
        for _ in range(int(sys.argv[2])):
            sock.sendall(b"tunnel itojun 0 host\\r\\n")
            sock.recv(100)
print(turned_away)
"""


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_who_tries_passwords_must_wait_and_the_log_stays_small(net: Internet) -> None:
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    net.server.write(CONFIG, "penalty = 60\nlog-lines = 2\n")
    with serve(net) as server:
        with Talker(net, "itojun", "secret", "host", "203.0.113.20") as talker:
            assert talker.answer.startswith("+OK")
        server.wait_for("itojun: down")
        done = net.client.run([sys.executable, "-c", SCAN, "300", "2"])
        assert int(done.stdout) == 299
        server.wait_for("203.0.113.7: login of itojun failed; must wait 60 s")
        server.wait_for("turned away: must wait")
        wait_until("the rest counted", lambda: any(" more" in line for line in server.lines), 20)
        assert sum("turned away" in line for line in server.lines) < 30
        # Where the user is at home he need not wait for what others do elsewhere.
        with Talker(net, "itojun", "secret", "host", "203.0.113.20") as talker:
            assert talker.answer.startswith("+OK")
        assert server.end() == 0


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_connections_have_a_limit_in_all_and_for_each_address(net: Internet) -> None:
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    net.server.write(CONFIG, "connections-per-address = 1\n")
    with serve(net) as server, Talker(net, "itojun", "secret", "host"):
        assert net.client.run([sys.executable, "-c", SCAN, "3", "0"]).stdout == "3\n"
        server.wait_for("203.0.113.7: turned away: 1 connections from there are open")
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as other:
            assert other.answer.startswith("+OK")
        net.server.write(CONFIG, "connections = 1\n")
        server.send(signal.SIGHUP)
        server.wait_for("the configuration was read again")
        assert net.client.run([sys.executable, "-c", SCAN, "3", "0"]).stdout == "3\n"
        server.wait_for("203.0.113.7: turned away: 1 connections are open")
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
    net.server.write(CONFIG, "line-length = 128\nlogin-time = 1\n")
    with serve(net) as server:
        assert net.client.run([sys.executable, "-c", LONG], timeout=60).stdout.splitlines() == [
            "-ERR invalid command",
            "-ERR connection timed out, disconnecting True",
        ]
        assert server.end() == 0


# --- options ----------------------------------------------------------------------------------


def _serve(net: Internet, *words: str) -> Program:
    set_users(net.server, "itojun:secret\njun:hidden\n", "itojun 2001:db8:3c3::/48\n")
    server = Program(net.server, "dtcps", "-d", *words, PREFIX)
    server.wait_for("listening")
    return server


def test_without_cloning_it_uses_what_is_there_and_leaves_it_so(net: Internet) -> None:
    for name in ("gif3", "gif4", "gif5"):
        net.server.run(["ifconfig", name, "create"])
        # Linux, which has the last word in a snapshot, remembers that an interface was up.
        net.server.run(["ifconfig", name, "up"])
        net.server.run(["ifconfig", name, "down"])
    net.server.run(["ifconfig", "gif3", "up"])  # somebody's
    before = net.server.snapshot()
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    with _serve(net, "-c", "-i", "gif[34]") as server:
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
    with _serve(net, "-o") as server:
        for user, secret in (("itojun", "secret"), ("jun", "hidden"), ("itojun", "secret")):
            seen = len(server.lines)
            with Talker(net, user, secret, "host") as talker:
                assert talker.answer.startswith("+OK")
            wait_until("down", lambda at=seen: any("down:" in each for each in server.lines[at:]))
        assert server.end() == 0
    assert net.server.run(["ifconfig", "-g", "dtcp"]).stdout == "gif0\n"
    assert not _tunnels(net)
    assert "UP" not in net.server.run(["ifconfig", "gif0"]).stdout.splitlines()[0]
    with _serve(net, "-o") as server, Talker(net, "jun", "hidden", "host") as talker:
        assert talker.answer.startswith("+OK")
        server.wait_for("jun: up: gif0 to")
        assert server.end() == 0


def test_the_lowest_interface(net: Internet) -> None:
    net.server.run(["ifconfig", "gif11", "create"])
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    with _serve(net, "-i", "gif10") as server, Talker(net, "itojun", "secret", "host"):
        server.wait_for("itojun: up: gif10 to")
        net.server.run(["ifconfig", "gif12", "create"])  # behind the server's back
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as other:
            assert other.answer.startswith("+OK"), "\n".join(server.lines)
            server.wait_for("jun: up: gif13 to")
        assert server.end() == 0


def test_another_address_is_announced(net: Internet) -> None:
    with _serve(net, "-g", "198.51.100.7") as server, Talker(net, "itojun", "secret", "host") as it:
        assert it.answer == "+OK 203.0.113.7 198.51.100.7 2001:db8:1::6 2001:db8:1::5"
        assert _tunnels(net) == ["192.0.2.1 --> 203.0.113.7"]
        assert server.end() == 0


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_tunnels_in_a_fib(net: Internet) -> None:
    net.server.run(["sysctl", "net.fibs=2"])
    with _serve(net, "-F", "1") as server, Talker(net, "itojun", "secret", "network") as talker:
        assert talker.answer.startswith("+OK"), "\n".join(server.lines)
        assert "fib: 1" in net.server.run(["ifconfig", "gif0"]).stdout
        routes = net.server.run(["netstat", "-rn", "-f", "inet6", "-F", "1"]).stdout
        assert re.search(r"^2001:db8:3c3::/48\s.*\sgif0", routes, re.M)
        assert server.end() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-i", "gif[0-9]"), "-i: without -c it is the name of the lowest interface"),
        (("-c", "-i", "["), "-i: '[' is no regular expression"),
        (("-I", "gif1"), "-I: 'gif1' is not the name of an interface such as ng10"),
        (("-c", "-o"), "-o goes without -c"),
        (("-g", "2001:db8::1"), "-g: '2001:db8::1' is no IPv4 address"),
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
