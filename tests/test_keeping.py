"""Keeping a tunnel: with -l through whatever happens to the server, the network and ourselves."""

from __future__ import annotations

import json
import re
import signal
import sys
import time

import pytest

from lab import SLOW
from lab.internet import Internet
from lab.machine import machine
from lab.snapshot import difference
from tests.running import (
    PREFIX,
    ROOT,
    SERVER,
    Program,
    go_wrong,
    identity,
    login,
    ping,
    serve,
    set_users,
    wait_until,
)

pytestmark = pytest.mark.lab

# Seconds, on a machine that is busy: for what waits for nothing, and for a login.
AT_ONCE, LOGIN = 12.0, 8.0


def _index(net: Internet) -> str:
    return identity(net.client, "gif0")


def _commands(client: Program, since: int) -> list[str]:
    """The commands that changed something."""
    lines = client.lines[since:]
    found = [line.partition("# ")[2] for line in lines if "dtcpc: # " in line]
    return [line for line in found if not re.match(r"ifconfig \S+$|route -n (get|monitor)", line)]


@pytest.mark.smoke
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_restarted_server_finds_us_back_and_nothing_touched(
    net: Internet, number: signal.Signals
) -> None:
    server = serve(net)
    with login(net.client, "-l", "-t", "network", "-A", "2001:db8:3c3::1") as client:
        client.wait_for("up after")
        index, seen = _index(net), len(client.lines)
        server.end(number)
        client.wait_for("lost: .*; trying again at once")
        # As it was, and at once: the longer it has been away, the longer are the client's waits.
        with Program(net.server, "dtcps", "-d", PREFIX) as server:
            server.wait_for("listening")
            back = time.monotonic()
            wait_until("back", lambda: any("up after" in line for line in client.lines[seen:]))
            # Two seconds of waiting at most (dtcp.client.backoff), and a login.
            assert time.monotonic() - back < 2 + LOGIN * SLOW
            assert _commands(client, seen) == []
            assert _index(net) == index
            assert ping(net.client)
            assert client.end() == 0


def test_it_waits_for_a_server_that_is_not_there_yet(net: Internet) -> None:
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")
    with login(net.client, "-l", "-t", "host") as client:
        client.wait_for("Connection refused; trying again at once")
        client.wait_for("Connection refused; trying again in 1 s|trying again in 2 s")
        with serve(net):
            client.wait_for("up after")
            assert ping(net.client)
            assert client.end() == 0


def test_a_different_grant_changes_only_the_difference(net: Internet) -> None:
    server = serve(net)
    with login(net.client, "-l", "-t", "network", "-A", "2001:db8:3c3::1") as client:
        client.wait_for("up after")
        index, seen = _index(net), len(client.lines)
        server.end()
        with serve(net) as again:
            again.end()
        set_users(net.server, "", "itojun 2001:db8:4c4::/48\n")
        with Program(net.server, "dtcps", "-d", "2001:db8:1::") as server:
            server.wait_for("listening")
            wait_until("back", lambda: any("4c4::/48 del" in line for line in client.lines[seen:]))
            assert _commands(client, seen) == [
                "netstat -rnW -f inet6",
                "route -n delete -inet6 2001:db8:3c3::/48 ::1",
                "route -n add -inet6 2001:db8:4c4::/48 ::1 -reject",
            ]
            assert _index(net) == index
            assert client.end() == 0


@pytest.mark.hazard(26)
def test_a_change_of_our_own_address_is_noticed_at_once(net: Internet) -> None:
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-l", "-t", "host") as client:
            client.wait_for("up after")
            index, seen = _index(net), len(client.lines)
            changed = time.monotonic()
            script = """
                ifconfig em0 inet 203.0.113.8/24 alias
                ifconfig em0 inet 203.0.113.7 -alias
                route -n delete default; route -n add default 203.0.113.1
                """
            net.client.run(["sh", "-c", script])
            client.wait_for(
                "our address was 203.0.113.7 and is (203.0.113.8|gone); trying again at"
            )
            wait_until("back", lambda: any("up after" in line for line in client.lines[seen:]))
            assert time.monotonic() - changed < AT_ONCE * SLOW
            assert _index(net) == index
            commands = _commands(client, seen)
            tunnels = [line for line in commands if line.startswith("ifconfig gif0 tunnel")]
            assert tunnels == ["ifconfig gif0 tunnel 203.0.113.8 192.0.2.1"]
            assert ping(net.client)
            assert client.end() == 0
        script = """
            ifconfig em0 inet 203.0.113.7/24 alias
            ifconfig em0 inet 203.0.113.8 -alias
            route -n delete default; route -n add default 203.0.113.1
            """
        net.client.run(["sh", "-c", script])
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(21)
@pytest.mark.parametrize("words", [("-l",), ("-l", "-F", "0")])
def test_a_first_look_that_hangs_is_tried_again(net: Internet, words: tuple[str, ...]) -> None:
    """Behind the login, or before it (-F names what must be there)."""
    go_wrong(net, {"command": "ifconfig", "match": ["-g"], "do": "hang"})
    with serve(net), login(net.client, "-t", "host", *words) as client:
        client.wait_for("did not end in")
        client.wait_for("up after", 30)
        assert client.end() == 0


@pytest.mark.long
def test_what_news_has_caused_is_looked_at_again(net: Internet) -> None:
    """FreeBSD tells that an address goes before it has gone: one look at once is too early."""
    with serve(net), login(net.client, "-t", "host") as client:
        client.wait_for("up after")

        def looks() -> int:
            return client.lines.count("dtcpc: # ifconfig gif0")

        def is_quiet() -> bool:
            before = looks()
            time.sleep(4)  # longer than it waits for the second look
            return looks() == before

        wait_until("nothing is news any more", is_quiet, 60)
        seen = looks()
        net.client.run(["ifconfig", "lo0", "inet", "127.0.0.9/32", "alias"])
        wait_until("a look", lambda: looks() > seen)
        first, seen = time.monotonic(), looks()

        def another() -> bool:
            """Whether there is one behind those for what else is news of that."""
            nonlocal seen
            before, seen = seen, looks()
            return seen > before and time.monotonic() > first + 1.5

        wait_until("another one", another)
        assert client.end() == 0


@pytest.mark.hazard("C5")
def test_a_refused_login_takes_the_tunnel_down_and_waits_long(net: Internet) -> None:
    server = serve(net)
    with login(net.client, "-l", "-t", "host") as client:
        client.wait_for("up after")
        server.end()
        set_users(net.server, "itojun:changed\n")
        with Program(net.server, "dtcps", "-d", "2001:db8:1::") as server:
            client.wait_for("taking the tunnel down: the server refuses us")
            client.wait_for(
                r"authentication failed; trying again in 300 s, or on SIGHUP \(service dtcpc reload"
            )
            assert "gif0" not in net.client.run(["ifconfig", "-l"]).stdout
            # A file that cannot be used is not, and then it has the right password.
            auth = "/usr/local/etc/dtcpc.auth"
            net.client.run(["chmod", "644", auth])
            client.send(signal.SIGHUP)
            client.wait_for("going on with the password of before")
            net.client.write(auth, f"{SERVER}:itojun:changed\n")
            seen = len(client.lines)
            client.send(signal.SIGHUP)
            wait_until("back", lambda: any("up after" in line for line in client.lines[seen:]))
            assert client.end() == 0


@pytest.mark.hazard(25)
def test_hup_logs_in_again_without_a_flap(net: Internet) -> None:
    """Without -l too."""
    with serve(net), login(net.client, "-t", "host") as client:
        client.wait_for("up after")
        index, seen = _index(net), len(client.lines)
        client.send(signal.SIGHUP)
        client.wait_for("told to log in again; trying again at once")
        wait_until("back", lambda: any("up after" in line for line in client.lines[seen:]))
        assert _commands(client, seen) == []
        assert _index(net) == index
        assert client.end() == 0


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_twenty_logins_cost_no_descriptors_and_no_threads(net: Internet) -> None:
    def costs() -> tuple[int, int]:
        """Once they do not change any more: some come a moment after it is up."""
        seen = list[tuple[int, int]]()

        def is_settled() -> bool:
            descriptors, threads, _ = machine.costs(client.pid)
            seen.append((descriptors, threads))
            return len(seen) > 20 and len({*seen[-20:]}) == 1

        wait_until("it is settled", is_settled)
        return seen[-1]

    with serve(net), login(net.client, "-t", "host") as client:
        client.wait_for("up after")
        client.wait_for("route -n monitor")
        before = None
        for number in range(20):
            seen = len(client.lines)
            client.send(signal.SIGHUP)
            wait_until("back", lambda: any("up after" in line for line in client.lines[seen:]))  # noqa: B023
            if number == 2:
                before = costs()
        wait_until("as few as before", lambda: costs() == before)
        assert client.end() == 0


def _status(net: Internet, *words: str) -> tuple[int, str]:
    program = [sys.executable, str(ROOT / "dtcpc.py"), "--status", *words]
    done = net.client.run(program, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_status(net: Internet) -> None:
    assert _status(net) == (1, "not running\n")
    server = serve(net)
    with login(net.client, "-l", "-t", "network") as client:
        client.wait_for("up after")
        wait_until("it is told", lambda: _status(net)[0] == 0)
        _, text = _status(net)
        assert re.fullmatch(
            rf"up for .*: {SERVER} as itojun, type network\n"
            "gif0: 203.0.113.7 --> 192.0.2.1, mtu 1280\n"
            "routes: default through gif0\n"
            "2001:db8:3c3::/48 delegated\n"
            "no interface has an address of this prefix: give -P, or use -t host\n"
            "[0-9.k]+ bytes in, [0-9.k]+ bytes out\n"
            rf"pid {client.pid}\n",
            text,
        )
        status, text = _status(net, "--json")
        assert status == 0
        facts = json.loads(text)
        assert facts["state"] == "up"
        assert facts["prefixes"] == ["2001:db8:3c3::/48"]
        client.send(signal.SIGUSR1)
        client.wait_for(f"up for .*: {SERVER} as itojun")
        server.end()
        client.wait_for("Connection refused; trying again in")
        wait_until("it is told", lambda: "Connection refused" in _status(net)[1])
        status, text = _status(net)
        assert status == 1
        assert text.startswith("trying again ")
        assert client.end() == 0
    assert _status(net) == (1, "not running\n")


def test_the_script_gets_the_facts(net: Internet) -> None:
    script = "#!/bin/sh\necho noise >&2\n{ echo $1; env | grep ^DTCP_ | sort; } >>/run/script.log\n"
    net.client.write("/run/script", script, 0o700)
    with serve(net), login(net.client, "-t", "host", "-s", "/run/script") as client:
        client.wait_for("up after")
        shown = ["grep", "DTCP_USER", "/run/script.log"]
        wait_until("the script", lambda: net.client.run(shown, check=False).stdout)
        assert client.end() == 0
    up, _, down = net.client.read("/run/script.log").partition("down\n")
    # Whether packets pass is not known yet when it has just come up.
    word, data, *facts = up.splitlines()
    assert (word, data) == ("up", "DTCP_DATA=unproven")
    rest = [line for line in down.splitlines() if "DTCP_DATA=" not in line and "RTT" not in line]
    assert facts == rest
    assert rest == [
        "DTCP_INNER=2001:db8:1::6",
        "DTCP_INTERFACE=gif0",
        "DTCP_LOCAL=203.0.113.7",
        "DTCP_MTU=1280",
        "DTCP_PEER=2001:db8:1::5",
        "DTCP_PREFIXES=",
        "DTCP_REMOTE=192.0.2.1",
        f"DTCP_SERVER={SERVER}",
        "DTCP_TYPE=host",
        "DTCP_USER=itojun",
    ]


def test_a_failing_script_is_logged_and_nothing_else(net: Internet) -> None:
    net.client.write("/run/script", "#!/bin/sh\nexit 3\n", 0o700)
    with serve(net), login(net.client, "-t", "host", "-s", "/run/script") as client:
        client.wait_for("dtcpc: /run/script up: exit status 3")
        assert ping(net.client)
        assert client.end() == 0


def test_it_becomes_a_daemon(net: Internet) -> None:
    """The parent ends before the first connection, but after everything that can be checked."""
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n", 0o644)
    words = ("-Dl", "-u", "itojun", "-t", "host", SERVER)
    with Program(net.client, "dtcpc", *words) as client:
        assert client.status() == 1
        assert "readable by others; chmod 600 /usr/local/etc/dtcpc.auth" in client.lines[-1]
    with serve(net):
        before = net.client.snapshot()
        with Program(net.client, "dtcpc", *words) as client:
            assert client.status() == 0
        pid = net.client.read("/var/run/dtcpc.pid").strip()
        assert pid != str(client.pid)
        wait_until("up", lambda: _status(net)[0] == 0)
        assert ping(net.client)
        net.client.run(["kill", pid])
        wait_until("down", lambda: int(pid) not in net.client.processes())
        assert difference(before, net.client.snapshot()) == []
