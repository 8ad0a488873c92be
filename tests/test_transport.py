"""--transport auto: protocol 41, and UDP where that does not pass."""

from __future__ import annotations

import json
import sys
from argparse import Namespace

import pytest
from dtcp.client.transport import Transport

from lab.internet import Internet
from lab.machine import machine
from lab.snapshot import difference
from tests.running import ROOT, Talker, login, ping, serve, wait_until

GIF, UDP = 41, 17  # protocols
STATUS = [sys.executable, str(ROOT / "dtcpc.py"), "--status", "--json"]


def _options(transport: str, *, nat: bool = False) -> Namespace:
    udp = transport == "udp"
    return Namespace(transport=transport, udp=udp, nat=nat, nat_port=None, announced=None)


def test_each_is_tried_once_until_packets_pass() -> None:
    options = _options("auto")
    transport = Transport(options)
    tried = [transport.name]
    while transport.has_other:
        transport.change()
        tried.append(transport.name)
    assert tried == ["gif", "udp", "gif"]
    assert (options.udp, options.nat, options.announced) == (False, False, None)
    transport.anew()  # another network
    assert transport.has_other
    transport.passes()
    transport.change()  # it did pass, and does not any more
    assert (options.udp, options.nat, options.announced) == (True, True, 0)
    assert transport.on_trial
    transport.passes()
    assert not transport.on_trial
    assert transport.has_other


@pytest.mark.parametrize("name", ["gif", "udp"])
def test_what_is_asked_for_is_kept(name: str) -> None:
    transport = Transport(_options(name))
    assert not transport.has_other
    assert (transport.name, transport.limit) == (name, 15.0)


def _transport(net: Internet) -> tuple[str, str]:
    facts = json.loads(net.client.run(STATUS).stdout)
    return facts["transport"], facts["data"]


@pytest.mark.lab
def test_protocol_41_is_kept_where_it_passes(net: Internet) -> None:
    with serve(net, "-U"), login(net.client, "--transport", "auto", "-t", "host") as client:
        client.wait_for("packets pass")
        assert _transport(net) == ("gif", "passing")
        assert client.end() == 0


@pytest.mark.lab
@pytest.mark.hazard(54)
def test_udp_where_protocol_41_does_not_pass(net: Internet) -> None:
    """Without -l, too: to try the other one is no new attempt."""
    with serve(net, "-U"):
        net.router.run(machine.drop(GIF))
        before = net.client.snapshot()
        with login(net.client, "--transport", "auto", "-t", "host") as client:
            client.wait_for("is protocol 41 open on the way.; UDP may do better; trying again at")
            client.wait_for("packets pass")
            assert ping(net.client)
            assert _transport(net) == ("udp", "passing")
            assert "gif0" not in net.client.run(["ifconfig", "-l"]).stdout
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.lab
def test_udp_at_once_behind_a_nat(release: str, enclosed: None) -> None:
    auto = ("--transport", "auto")
    with (
        Internet(release, nat=True) as net,
        serve(net, "-U"),
        login(net.client, *auto, "-t", "host") as client,
    ):
        client.wait_for("there is a NAT between; .*; UDP may do better; trying again at once")
        client.wait_for("packets pass")
        assert _transport(net) == ("udp", "passing")
        assert client.end() == 0


@pytest.mark.lab
def test_udp_where_another_user_has_protocol_41(net: Internet) -> None:
    """At the same address, as behind a NAT: the server says so."""
    with serve(net, "-U"), Talker(net, "jun", "hidden", "host") as other:
        assert other.answer.startswith("+OK")
        with login(net.client, "--transport", "auto", "-t", "host") as client:
            client.wait_for("203.0.113.7 has a tunnel of another user; use -U; UDP may do better")
            client.wait_for("packets pass")
            assert _transport(net) == ("udp", "passing")
            assert client.end() == 0


@pytest.mark.lab
def test_back_to_protocol_41_where_there_is_no_udp(net: Internet) -> None:
    """The server refuses it, and protocol 41 may pass later."""
    with serve(net):
        net.router.run(machine.drop(GIF))
        with login(net.client, "--transport", "auto", "-t", "host") as client:
            client.wait_for("the server refuses: .*; protocol 41 may do better; trying again at")
            client.wait_for("nothing has come back .*: is protocol 41 open on the way.$", 40)
            net.router.run(machine.accept_all())
            wait_until("a packet passes", lambda: ping(net.client))
            assert not client.ended
            assert client.end() == 0
