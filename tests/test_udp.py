"""Tunnels over UDP: through netgraph, with and without a NAT between."""

from __future__ import annotations

import time

import pytest

from lab.internet import CLIENT4_BEHIND_NAT, Internet
from lab.machine import machine
from lab.snapshot import difference
from tests.running import (
    DELEGATED,
    PREFIX,
    SERVER,
    Program,
    login,
    ping,
    set_users,
    wait_until,
)

pytestmark = pytest.mark.lab


def _serve(net: Internet, *words: str) -> Program:
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")
    set_users(net.server, "itojun:secret\njun:hidden\n", f"itojun {DELEGATED}\n")
    server = Program(net.server, "dtcps", "-d", *words, PREFIX)
    server.wait_for("listening")
    return server


@pytest.mark.dialects
@pytest.mark.smoke
@pytest.mark.parametrize(
    ("words", "ports"),
    [((), (4028, 4028)), (("-b", "5000"), (5000, 4028))],
)
def test_bare_ipv6_packets_in_udp(
    net: Internet, words: tuple[str, ...], ports: tuple[int, int]
) -> None:
    with _serve(net, "-U") as server:
        before, server_before = net.client.snapshot(), net.server.snapshot()
        with login(net.client, "-U", *words, "-t", "host") as client:
            client.wait_for(rf">> tunnel itojun \S+ host udp={ports[0]}")
            client.wait_for(r"<< \+OK .* udp=4028")
            client.wait_for("up after")
            wait_until("packets pass", lambda: ping(net.client))
            with net.router.capture("eth0", "udp") as capture:
                assert ping(net.client)
                assert ping(net.far, "2001:db8:1::6")
                packets = capture.wait(4)
            assert {packet.proto for packet in packets} == {17}
            for packet in packets:
                source, to = (int.from_bytes(packet.payload[i : i + 2], "big") for i in (0, 2))
                assert sorted((source, to)) == sorted(ports)
                assert packet.payload[8] >> 4 == 6  # right behind the UDP header
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []
        server.wait_for("itojun: down")
        assert difference(server_before, net.server.snapshot()) == []


@pytest.mark.parametrize("jail", ["", "vnet"])
@pytest.mark.parametrize("lacks", ["ng_socket", "ng_iface", "ng_ksocket"])
def test_a_kernel_without_netgraph_is_told_with_the_remedy(
    net: Internet, lacks: str, jail: str
) -> None:
    net.client.write("/run/freebsd/jail", jail)
    net.client.write("/run/freebsd/lacks", lacks)
    with _serve(net, "-U"):
        before = net.client.snapshot()
        with login(net.client, "-U", "-t", "host") as client:
            assert client.status() == 1
            assert client.lines[-1] == (
                "dtcpc: the kernel has no netgraph: kldload ng_socket ng_iface ng_ksocket"
                " (for a jail, on its host)"
            )
        assert difference(before, net.client.snapshot()) == []


def test_a_delegated_prefix_and_a_default_route(net: Internet) -> None:
    inside = "2001:db8:3c3::1"
    with _serve(net, "-U"):
        before = net.client.snapshot()
        with login(net.client, "-U", "-t", "network", "-A", inside, "-m", "1400") as client:
            client.wait_for("ng0: 203.0.113.7 --> 192.0.2.1, mtu 1400")
            client.wait_for("up after")
            wait_until("packets pass", lambda: ping(net.far, inside))
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


def test_a_server_without_it_is_told_from_a_wrong_password(net: Internet) -> None:
    with _serve(net):
        before = net.client.snapshot()
        with login(net.client, "-U", "-t", "host") as client:
            assert client.status() == 77
            client.wait_for("the server refuses: no tunnels over UDP")
        assert difference(before, net.client.snapshot()) == []


def test_kames_server_is_told_from_a_wrong_password(net: Internet) -> None:
    """It counts five words where there may be four, and calls that a failed authentication."""
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")
    words = ("kame", "--user", "itojun", "--password", "secret", "--prefix", PREFIX)
    with Program(net.server, "tests/servers", *words) as server:
        server.wait_for("^ready$")
        with login(net.client, "-U", "-t", "tunnelonly") as client:
            assert client.status() == 77
            client.wait_for("the server refuses: no tunnels over UDP")
        net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:wrong\n")
        with login(net.client, "-U", "-t", "tunnelonly") as client:
            assert client.status() == 77
            client.wait_for("the server refuses: authentication failed")


def test_an_unreachable_that_disconnects_the_socket_is_mended(net: Internet) -> None:
    """ICMP port unreachable, from a firewall or a server that was away for a moment."""
    with _serve(net, "-U"), login(net.client, "-U", "-t", "host") as client:
        client.wait_for("up after")
        wait_until("packets pass", lambda: ping(net.client))
        net.server.run(machine.refuse("udp", 4028, "unreachable"))
        assert not ping(net.client)
        net.server.run(machine.accept_all())
        # It looks after its socket every 20 s.
        client.wait_for("had lost its peer: connected again", 30)
        wait_until("packets pass again", lambda: ping(net.client), 40)
        assert client.end() == 0


def test_instances_side_by_side_and_one_too_many(net: Internet) -> None:
    """With pid files and outer ends of their own, instances do not disturb each other."""
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n{SERVER}:jun:hidden\n")
    kame = ("kame", "--user", "jun", "--password", "hidden", "--port", "20201")
    with _serve(net, "-U"), Program(net.server, "tests/servers", *kame) as other:
        other.wait_for("^ready$")
        net.client.write(
            "/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n{SERVER}:jun:hidden\n"
        )
        before = net.client.snapshot()
        with login(net.client, "-t", "host", "-i", "gif5") as first:
            first.wait_for("up after")
            words = ("-d", "-u", "jun", "-f", "/var/run/b.pid")
            with Program(net.client, "dtcpc", "-U", "-t", "host", *words, SERVER) as second:
                second.wait_for("routes: ::/1, 8000::/1 through ng0")
                wait_until("packets pass", lambda: ping(net.client))
                assert second.end() == 0
            # Another server at the same address: the same outer pair.
            with Program(net.client, "dtcpc", "-p", "20201", *words, SERVER) as third:
                assert third.status() == 1
                third.wait_for(
                    rf"gif5 \(dtcpc itojun@{SERVER} pid {first.pid}\) has the outer pair"
                )
            assert ping(net.client)
            assert first.end() == 0
        assert difference(before, net.client.snapshot()) == []


def test_through_a_nat_that_forgets_quickly(release: str, enclosed: None) -> None:
    with Internet(release, nat=True) as net, _serve(net, "-U") as server:
        net.nat.run(machine.nat_forgets(25))
        before = net.client.snapshot()
        with login(net.client, "-U", "-n", "-t", "host") as client:
            client.wait_for("udp=0")
            client.wait_for("up after")
            server.wait_for("itojun: up: ng0")
            wait_until("packets pass", lambda: ping(net.far, "2001:db8:1::6"))
            # Idle for longer than the NAT remembers, but for what dtcpc sends itself.
            end = time.monotonic() + 30
            wait_until("30 s have passed", lambda: time.monotonic() > end, 40)
            assert ping(net.far, "2001:db8:1::6")
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


def test_through_a_nat_with_a_forwarded_port(release: str, enclosed: None) -> None:
    """-B: the NAT forwards a port of its own to ours."""
    with Internet(release, nat=True) as net, _serve(net, "-U"):
        net.nat.run(machine.nat_forwards(7777, CLIENT4_BEHIND_NAT, 4028))
        with login(net.client, "-U", "-n", "-B", "7777", "-t", "host") as client:
            client.wait_for("udp=7777")
            client.wait_for("up after")
            wait_until("packets pass", lambda: ping(net.far, "2001:db8:1::6"))
            assert ping(net.client)
            assert client.end() == 0
