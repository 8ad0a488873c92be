"""A host that conflicts with its tunnel: addresses, routes and undos that involve others."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from lab.internet import Internet
from lab.snapshot import difference
from tests.running import (
    ROOT,
    SERVER,
    Program,
    go_wrong,
    is_watched,
    login,
    ping,
    serve,
    wait_until,
)

pytestmark = [pytest.mark.lab, pytest.mark.parametrize("release", ["15.1"], indirect=True)]


@pytest.mark.hazard(10)
@pytest.mark.parametrize("low", ["6", "5"])
def test_an_inner_address_that_we_have_already_is_refused(net: Internet, low: str) -> None:
    net.client.run(["ifconfig", "em0", "inet6", f"2001:db8:1::{low}", "prefixlen", "64", "up"])
    net.client.run(["ifconfig", "em0", "inet6", "-ifdisabled"])
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "host") as client:
            assert client.status() == 1
        assert client.lines[-1] == (
            "dtcpc: tunnel.example.org: the server's grant makes no sense:"
            f" 2001:db8:1::{low} is an address of em0 already; if that is a mistake,"
            f" `ifconfig em0 inet6 2001:db8:1::{low} -alias`"
        )
        assert difference(before, net.client.snapshot()) == []


# What there is when dtcpc starts, and what the administrator does before the server is there.
MEANWHILE = {
    "a LAN interface comes into use": (
        "ifconfig em1 inet6 ifdisabled; ifconfig em1 down",
        "ifconfig em1 up; ifconfig em1 inet6 -ifdisabled",
    ),
    "an interface that was left by -o comes into use": (
        "ifconfig gif0 create group dtcp",
        "ifconfig gif0 tunnel 203.0.113.7 203.0.113.99 up",
    ),
}


@pytest.mark.parametrize(("at_start", "later"), MEANWHILE.values(), ids=MEANWHILE)
def test_what_has_changed_before_the_server_was_there_is_respected(
    release: str, enclosed: None, at_start: str, later: str
) -> None:
    with Internet(release, lan=True) as net:
        net.client.run(["sh", "-ec", at_start])
        with serve(net) as server:  # which knows its users from then on
            server.end()
        with login(net.client, "-l", "-t", "network", "-P", "em1/1/::1") as client:
            client.wait_for("Connection refused; trying again in")
            net.client.run(["sh", "-ec", later])
            before = net.client.snapshot()
            with serve(net):
                client.send(signal.SIGHUP)
                client.wait_for("up after")
                assert client.end() == 0
        after = net.client.snapshot()
        for looks in ("ifconfig -a", "netstat -rn"):
            assert after[looks] == before[looks]


@pytest.mark.hazard(11)
def test_a_delegated_prefix_over_a_network_of_ours_leaves_it_alone(net: Internet) -> None:
    """The more specific route wins, and stays."""
    net.client.run(["ifconfig", "em0", "inet6", "2001:db8:3c3:7::1", "prefixlen", "64"])
    net.client.run(["ifconfig", "em0", "inet6", "-ifdisabled"])
    way = ["route", "-n", "get", "-inet6", "2001:db8:3c3:7::99"]
    with serve(net):
        before = net.client.snapshot()
        ours = net.client.run(way).stdout
        assert "interface: em0" in ours
        with login(net.client, "-t", "network") as client:
            client.wait_for("up after")
            assert net.client.run(way).stdout == ours
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(20)
def test_an_undo_that_fails_is_told_and_keeps_no_other_from_being_tried(net: Internet) -> None:
    with serve(net), login(net.client, "-t", "network") as client:
        client.wait_for("up after")
        fault = {"command": "route", "match": ["delete"], "do": "exit1"}
        net.client.write("/run/freebsd/faults", json.dumps([fault]))
        assert client.end() == 1
        client.wait_for("could not be undone: route -n delete .*: something went wrong")
        assert "gif" not in net.client.run(["ifconfig", "-l"]).stdout
        # What is left is written down for the next start.
        assert "route" in net.client.read("/run/dtcpc.state")
        with login(net.client, "-t", "network") as again:
            again.wait_for("undoing what a killed dtcpc has left")
            again.wait_for("up after")
            assert again.end() == 0


@pytest.mark.hazard(23)
def test_an_interface_that_is_destroyed_under_us_is_made_anew(net: Internet) -> None:
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-l", "-t", "host") as client:
            client.wait_for("up after")
            seen = len(client.lines)
            wait_until("it is told of changes", lambda: is_watched(net))
            net.client.run(["ifconfig", "gif0", "destroy"])
            client.wait_for("lost: somebody has removed the tunnel; trying again at once")
            wait_until("back", lambda: any("up after" in line for line in client.lines[seen:]))
            assert ping(net.client)
            told = [line for line in client.lines[seen:] if not re.search(": (#|<<|>>) ", line)]
            assert len(told) < 10
            assert not any("could not" in line for line in told)
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


def test_another_of_its_name_and_number_is_not_taken_for_it(net: Internet, tmp_path: Path) -> None:
    """FreeBSD gives a number that is free again to the next interface; Linux counts on."""
    always = "import socket\nsocket.if_nametoindex = lambda name: 7\n"
    (tmp_path / "sitecustomize.py").write_text(always)
    client = f"{sys.executable} {ROOT}/dtcpc.py -dl -u itojun -t host {SERVER}"
    with (
        serve(net),
        Program(net.client, "tests/through", f"PYTHONPATH={tmp_path} exec {client}") as program,
    ):
        program.wait_for("up after")
        # Part of its marks may go, and it stays ours.
        net.client.run(["ifconfig", "gif0", "-group", "dtcp", "description", "mine"])
        program.send(signal.SIGHUP)
        program.wait_for("told to log in again")
        wait_until("up again", lambda: sum("up after" in line for line in program.lines) == 2)
        assert not any("has been removed" in line for line in program.lines)
        program.send(signal.SIGSTOP)  # or it might be the quicker one to make another
        net.client.run(["ifconfig", "gif0", "destroy"])
        net.client.run(["ifconfig", "gif0", "create"])
        program.send(signal.SIGCONT)
        program.send(signal.SIGHUP)  # if it has not looked already
        program.wait_for("taking the tunnel down: gif0 has been removed")
        wait_until("up again", lambda: ping(net.client))
        assert program.end() == 0
        # Nor is the other one destroyed.
        assert net.client.run(["ifconfig", "gif0"]).stdout.startswith("gif0: flags=8010<")


@pytest.mark.hazard(66)
def test_a_roll_back_spares_another_of_its_name(net: Internet) -> None:
    """Somebody removes our new interface, and makes one of that name, while we set it up."""
    go_wrong(net, {"command": "ifconfig", "match": ["inet6", "alias"], "do": "hang"})
    with serve(net), login(net.client, "-t", "host") as client:
        client.wait_for("# ifconfig gif0 inet6 .* alias")
        net.client.run(["sh", "-ec", "ifconfig gif0 destroy; ifconfig gif0 create"])
        assert client.status(30) == 1
        client.wait_for("the tunnel could not be made: ifconfig gif0 inet6 .* alias: ")
        assert net.client.run(["ifconfig", "gif0"]).stdout.startswith("gif0: flags=8010<")


@pytest.mark.hazard(24)
def test_an_interface_that_looks_like_ours_but_is_not_stays(net: Internet) -> None:
    """The same name and group as what a killed instance left, but not its mark."""
    with serve(net) as server:
        with login(net.client, "-t", "host") as client:
            client.wait_for("up after")
            client.end(9)
        server.wait_for("itojun: down")
        net.client.run(["ifconfig", "gif0", "destroy"])
        foreign = "dtcpc somebody@elsewhere pid 1"
        net.client.run(["ifconfig", "gif0", "create", "group", "dtcp", "description", foreign])
        theirs = net.client.run(["ifconfig", "gif0"]).stdout
        with Program(net.client, "dtcpc", "-u", "itojun", "-t", "host", "tunnel.example.org") as it:
            it.wait_for("up after")
            assert it.end() == 0
        assert net.client.run(["ifconfig", "gif0"]).stdout == theirs
