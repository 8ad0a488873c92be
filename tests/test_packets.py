"""Up means that packets pass: what the log and --status say of it, and what comes of silence."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import time
from ipaddress import IPv6Address

import pytest
from dtcp.client.probe import Echo, Probe

from lab.internet import Internet
from lab.machine import FREEBSD, machine
from tests.running import ROOT, login, ping, serve, wait_until

pytestmark = pytest.mark.lab

CLIENT = [sys.executable, str(ROOT / "dtcpc.py"), "--status"]
GIF, UDP = 41, 17  # protocols


def status(net: Internet) -> str:
    return net.client.run(CLIENT, check=False).stdout.splitlines()[0]


def data(net: Internet) -> tuple[str, float | None]:
    facts = json.loads(net.client.run([*CLIENT, "--json"], check=False).stdout)
    return facts["data"], facts["rtt_ms"]


@pytest.mark.hazard(54)
@pytest.mark.parametrize("words", [("-t", "host"), ("-t", "tunnelonly"), ("-U", "-t", "network")])
def test_packets_pass(net: Internet, words: tuple[str, ...]) -> None:
    """For every type, over both transports."""
    with serve(net, "-U"), login(net.client, *words) as client:
        client.wait_for(r"packets pass \([0-9]+ ms\)")
        assert ", packets pass (" in status(net)
        state, rtt = data(net)
        assert state == "passing"
        assert rtt is not None
        assert 0 < rtt < 10_000
        assert client.end() == 0


@pytest.mark.long
@pytest.mark.hazard(54)
def test_protocol_41_is_blocked_on_the_way(net: Internet) -> None:
    with serve(net):
        net.router.run(machine.drop(GIF))
        with login(net.client, "-t", "host") as client:
            client.wait_for("up after")
            up = time.monotonic()
            assert data(net) == ("unproven", None)
            client.wait_for("nothing has come back .*: is protocol 41 open on the way?", 30)
            assert time.monotonic() - up > 10
            assert ", nothing has come back yet" in status(net)
            # It stays up: the other end may not answer.
            net.router.run(machine.accept_all())
            assert ping(net.client)
            assert client.end() == 0


def test_over_udp_it_goes_on_asking_though_nothing_has_come_back(enclosed: None) -> None:
    """A server that waits for the first packet, or a NAT, knows us by the next one only."""
    peer = IPv6Address("2001:db8::7")
    with contextlib.closing(
        Probe("lo0" if FREEBSD else "lo", None, peer, 0.0, keep_alive=True)
    ) as probe:
        for moment in (0.0, 1.0, 2.0, 4.0, 8.0):
            assert probe.on_time(moment) == ""
        assert probe.on_time(15.0) == "unproven"
        assert probe.due == 35.0
        assert probe.on_time(35.0) == ""
        assert probe.due == 55.0


@pytest.mark.parametrize(("inner", "data"), [("::1", "passing"), ("2001:db8::7", "unproven")])
def test_an_answer_beside_the_tunnel_does_not_count(enclosed: None, inner: str, data: str) -> None:
    """Only what was asked from the inner address, which may be tentative for a moment."""
    probe = Probe("lo0" if FREEBSD else "lo", IPv6Address(inner), IPv6Address("::1"), 0.0)
    with contextlib.closing(probe):
        probe.on_time(0.0)

        def is_known() -> bool:
            probe.on_time(0.1)
            return probe.data == data

        if data == "passing":
            wait_until("an answer", is_known)  # what is readable may be the request
        else:
            time.sleep(0.3)
        assert is_known()
        assert probe.on_time(20.0) == ("" if data == "passing" else "unproven")


@pytest.mark.hazard(54)
def test_an_answer_that_was_guessed_does_not_count(enclosed: None) -> None:
    """Whoever tries every identifier must guess the number of a request as well."""
    here = IPv6Address("::1")
    echo = Echo("lo0" if FREEBSD else "lo", here, here)
    with (
        contextlib.closing(echo),
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as forger,
    ):
        echo.ask(1)
        found: list[int] = []

        def is_answered() -> bool:
            found.extend(echo.answered())
            return bool(found)

        wait_until("an answer", is_answered)  # what is readable may be the request
        assert found == [1]
        for identifier in range(65536):
            forger.sendto(struct.pack("!BBHHH", 129, 0, 0, identifier, 2), ("::1", 0))
            if identifier % 16 == 15:  # or they would be too many for the socket
                assert echo.answered() == []


@pytest.mark.long
@pytest.mark.hazard(54)
def test_silence_is_a_loss_and_a_new_login_heals_it(net: Internet) -> None:
    """Over UDP, where it is noticed soonest."""
    with serve(net, "-U"), login(net.client, "-U", "-l", "-t", "host") as client:
        client.wait_for("packets pass")
        net.router.run(machine.drop(UDP))
        client.wait_for("lost: nothing comes back through the tunnel; trying again at once", 75)
        lost = len(client.lines)
        net.router.run(machine.accept_all())
        wait_until("packets pass", lambda: any("packets pass" in x for x in client.lines[lost:]))
        assert ping(net.client)
        assert client.end() == 0


@pytest.mark.whole
@pytest.mark.hazard(54)
def test_what_a_new_login_does_not_heal_is_made_anew(net: Internet) -> None:
    with serve(net, "-U"), login(net.client, "-U", "-l", "-t", "host") as client:
        client.wait_for("packets pass")
        net.router.run(machine.drop(UDP))
        client.wait_for("lost: nothing comes back through the tunnel; trying again at once", 75)
        client.wait_for("taking the tunnel down: nothing comes back through it", 30)
        client.wait_for("nothing has come back through the tunnel: is UDP port 4028 open", 45)
        net.router.run(machine.accept_all())
        lost = len(client.lines)
        wait_until(
            "packets pass", lambda: any("packets pass" in x for x in client.lines[lost:]), 75
        )
        assert client.end() == 0


@pytest.mark.whole
@pytest.mark.hazard(54)
def test_silence_of_protocol_41_is_noticed_behind_the_next_ping(net: Internet) -> None:
    with serve(net), login(net.client, "-t", "host") as client:
        client.wait_for("packets pass")
        net.router.run(machine.drop(GIF))
        dropped = time.monotonic()
        client.wait_for("lost: nothing comes back through the tunnel", 140)
        assert time.monotonic() - dropped < 135
        assert client.status() == 75
