"""A server with thousands of interfaces: nothing it does looks at all of them.

What does takes minutes there (lab/freebsd/crowd.py), and who waits for it has given up by then.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from typing import Any

import pytest
from dtcp.server.traffic import SILENCE, Traffic

from lab.internet import Internet
from tests.running import (
    PREFIX,
    ROOT,
    Program,
    Talker,
    login,
    ping,
    serve,
    wait_until,
)

CONFIG = "/usr/local/etc/dtcps.conf"
DTCPS = [sys.executable, str(ROOT / "dtcps.py")]
JUN = "203.0.113.20"
# What sees everything there is, as a server shows its commands.
WHOLE = r"# (ifconfig( -a.*)?|netstat (?!-I ).*)$"


def told(net: Internet) -> dict[str, Any]:
    """The tunnels by their users, as the server tells of them."""
    shown = json.loads(net.server.run([*DTCPS, "--status", "--json"]).stdout)
    return {each["user"]: each for each in shown["tunnels"]}


def metrics(net: Internet) -> str:
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9123/metrics').read())"
    return net.server.run([sys.executable, "-c", fetch]).stdout


def counting(net: Internet, *words: str) -> Program:
    """A server that looks at its counters all the time; there are users already."""
    server = Program(net.server, "tests/hasty", "server.traffic.ROUND=0.2", "dtcps", "-d", *words)
    server.wait_for("listening")
    return server


@pytest.mark.lab
@pytest.mark.dialects
@pytest.mark.turns(3)
@pytest.mark.parametrize("words", [(), ("-o",), ("-U",), ("-F", "1")])
def test_nothing_looks_at_everything(net: Internet, words: tuple[str, ...]) -> None:
    """Not at the start, nor for --status, metrics, a reload, an end, or who comes back."""
    net.client.run(["ifconfig", "em0", "inet", f"{JUN}/32", "alias"])
    net.server.run(["sysctl", "net.fibs=2"])
    net.server.write(CONFIG, "metrics = 127.0.0.1:9123\ndelegate = 2001:db8:4000::/40 /48\n")
    serve(net, *words).end()
    net.server.write("/run/freebsd/crowd", "5000")
    servers = []
    for number in (signal.SIGKILL, signal.SIGUSR2, signal.SIGTERM):
        with counting(net, *words, PREFIX) as server:
            servers.append(server)
            with (
                Talker(net, "itojun", "secret", "network") as itojun,
                Talker(net, "jun", "hidden", "network", JUN) as jun,
            ):
                assert itojun.answer.startswith("+OK")
                assert jun.answer.startswith("+OK")
                assert told(net)["jun"]["state"] == "up"
                assert 'user="itojun"' in metrics(net) or len(servers) > 1
                net.server.run([*DTCPS, "--reload"])
                server.wait_for("# netstat -I ")
                server.end(number)
    for line in (line for server in servers for line in server.lines):
        assert not re.search(WHOLE, line)
    assert sum("as it was" in line for server in servers[1:] for line in server.lines) == 4


@pytest.mark.lab
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_after_a_reboot_nobody_is_searched_for(net: Internet) -> None:
    """A name that the store knows as one user's is another's by now."""
    net.client.run(["ifconfig", "em0", "inet", f"{JUN}/32", "alias"])
    with serve(net) as server, Talker(net, "itojun", "secret", "host") as talker:
        assert talker.answer.startswith("+OK")
        server.end(signal.SIGKILL)
    net.server.run(["ifconfig", "gif0", "destroy"])
    with serve(net) as server, Talker(net, "jun", "hidden", "host", JUN) as talker:
        assert talker.answer.startswith("+OK")
        server.wait_for("jun: up: gif0")
        server.wait_for("itojun: down: gif0 was destroyed behind our back")
        assert told(net).keys() == {"jun"}
        assert [line for line in server.lines if "ifconfig -g" in line] == [
            "dtcps: # ifconfig -g dtcp"
        ]
        with Talker(net, "itojun", "secret", "host") as again:
            assert again.answer.startswith("+OK")
            assert server.end() == 0


@pytest.mark.lab
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
@pytest.mark.parametrize("words", [("destroy",), ("name", "mine")])
def test_nor_is_one_that_was_up_but_by_its_number(net: Internet, words: tuple[str, ...]) -> None:
    with serve(net) as server, Talker(net, "itojun", "secret", "host") as talker:
        assert talker.answer.startswith("+OK")
        net.server.run(["ifconfig", "gif0", *words])
        server.send(signal.SIGHUP)
        server.wait_for("itojun: ifconfig gif0: not there any more: making it anew")
        wait_until("made anew", lambda: sum("itojun: up: " in line for line in server.lines) == 2)
        assert sum("# ifconfig -g" in line for line in server.lines) == 1
        shown = net.server.run(["ifconfig", "-a"]).stdout
        assert shown.count("tunnel inet 192.0.2.1 --> 203.0.113.7") == 1
        assert "mine" not in shown
        assert server.end() == 0


@pytest.mark.lab
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_what_is_gone_keeps_nobody_from_its_address(net: Internet) -> None:
    """Whose tunnel is still there may come back to it; after a reboot there is none."""
    with serve(net) as server, Talker(net, "itojun", "secret", "host") as talker:
        assert talker.answer.startswith("+OK")
        server.end(signal.SIGKILL)
    with serve(net) as server:
        with Talker(net, "jun", "hidden", "host") as talker:
            assert talker.answer.startswith("-ERR busy")
        net.server.run(["ifconfig", "gif0", "destroy"])
        with Talker(net, "jun", "hidden", "host") as talker:
            assert talker.answer.startswith("+OK")
            server.wait_for("itojun: down: ifconfig gif0: not there any more")
            assert told(net).keys() == {"jun"}
            assert server.end() == 0


@pytest.mark.lab
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_what_status_tells_of_each_tunnel(net: Internet) -> None:
    serve(net, "-U").end()
    with counting(net, "-U", PREFIX) as server:
        with (
            Talker(net, "jun", "hidden", "host udp=4028"),
            login(net.client, "-t", "host") as client,
        ):
            client.wait_for("up after")
            assert told(net)["jun"]["state"] == "hearing"
            assert told(net)["jun"]["from"] == "203.0.113.7"
            assert ping(net.client)
            wait_until("packets pass", lambda: told(net)["itojun"]["data"] == "passing")
            assert told(net)["itojun"]["state"] == "up"
            # An echo request and its reply, of 64 + 40 bytes each, at least.
            assert min(told(net)["itojun"][each] for each in ("received", "sent")) >= 104
            text = net.server.run([*DTCPS, "--status"]).stdout
            assert re.search(
                r"^itojun +203\.0\.113\.7 +gif0 +up +passing +\d+s +\S+ +\S+ +2001:\S+$", text, re.M
            )
            assert re.search(r"^jun +203\.0\.113\.7 \(udp\) +- +hearing +- +- +\? +\?", text, re.M)
            server.end(signal.SIGKILL)
        with counting(net, PREFIX):
            assert told(net)["itojun"]["state"] == "orphan"
            assert "1 tunnels wait for" in net.server.run([*DTCPS, "--status"]).stdout


@pytest.mark.lab
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_an_end_is_logged_with_the_bytes_both_ways(net: Internet) -> None:
    with serve(net) as server:
        with login(net.client, "-t", "host") as client:
            client.wait_for("up after")
            assert ping(net.client)
            assert client.end() == 0
        line = server.wait_for("itojun: down: the client said quit; gif0 was up")
        found = re.search(r"gif0 was up \d+ s, (\S+) bytes in, (\S+) out$", line)
        assert found
        assert "0" not in found.groups()
        assert server.end() == 0


def test_whether_packets_pass_is_known_from_what_was_counted() -> None:
    made = Traffic(0, 0, since=0.0, at=0.0)
    assert made.data is None
    assert made.then(0, 500, 900.0).data == "unproven"
    passing = made.then(100, 500, 60.0)
    assert passing.data == "passing"
    assert passing.then(100, 900, 59.0 + SILENCE).data == "passing"
    silent = passing.then(100, 900, 60.0 + SILENCE)
    assert silent.data == "silent"
    assert silent.then(101, 900, 120.0 + SILENCE).data == "passing"
    # One that a server before us has left: what came then says nothing of now.
    adopted = Traffic(100, 500, since=0.0, at=0.0)
    assert adopted.data is None
    assert adopted.then(100, 500, 60.0).data is None
    assert adopted.then(200, 500, 60.0).data == "passing"
    assert adopted.then(100, 500, SILENCE).data == "silent"
