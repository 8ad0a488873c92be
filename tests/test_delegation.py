"""A delegated prefix on the LAN: addresses, advertisements, and a LAN host that uses them."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator

import pytest

from lab.internet import Internet
from lab.machine import machine
from lab.snapshot import difference
from tests.running import FAR, ROOT, Program, login, ping, serve, set_users, wait_until

pytestmark = pytest.mark.lab

EUI64 = "200:5eff:fe00:5301"  # of the client's em1, from its Ethernet address


@pytest.fixture
def net(release: str, enclosed: None) -> Iterator[Internet]:
    """An internet with a LAN behind the client, which forwards."""
    with Internet(release, lan=True) as internet:
        internet.client.run(["sysctl", "net.inet6.ip6.forwarding=1"])
        yield internet


def _lan_addresses(net: Internet) -> list[str]:
    return net.lan.run(machine.autoconfigured("eth0")).stdout.replace("/64", "").split()


def _lan_router(net: Internet) -> str:
    return net.lan.run(machine.default_router()).stdout


def _rtadvds(net: Internet) -> list[str]:
    return [words for words in net.client.processes().values() if "rtadvd" in words]


def _no_rtadvd(net: Internet) -> None:
    """Wait for the end of the farewell: rtadvd may outlive us by some seconds."""
    wait_until("rtadvd is gone", lambda: not _rtadvds(net))


@pytest.mark.dialects
@pytest.mark.smoke
def test_a_lan_host_gets_an_address_and_reaches_the_world(net: Internet) -> None:
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "network", "-P", "em1/1/0:0:0:1") as client:
            client.wait_for("2001:db8:3c3::/48 delegated: em1 2001:db8:3c3:1::1/64, advertised")
            client.wait_for("up after")
            wait_until("the LAN host has an address", lambda: _lan_addresses(net), 30)
            assert _lan_addresses(net)[0].startswith("2001:db8:3c3:1:")
            wait_until("and its router", lambda: _lan_router(net))
            assert ping(net.lan, FAR)
            assert ping(net.far, _lan_addresses(net)[0])
            assert client.end() == 0, client.lines
        # The farewell: the LAN host knows at once that its router has gone.
        wait_until("no router", lambda: not _lan_router(net))
        _no_rtadvd(net)
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.turns(3)
@pytest.mark.parametrize(
    ("spec", "address"),
    [
        ("em1/f", f"2001:db8:3c3:f:{EUI64}/64"),
        ("em1/1//64", f"2001:db8:3c3:1:{EUI64}/64"),
        ("em1/00ff/::53/128", "2001:db8:3c3:ff::53/128"),
        ("em1/2/::1", "2001:db8:3c3:2::1/64"),
    ],
)
def test_addresses_as_asked(net: Internet, spec: str, address: str) -> None:
    net.client.run(["ifconfig", "em1", "inet6", "ifdisabled"])
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "network", "-a", "-P", spec) as client:
            client.wait_for(f"delegated: em1 {address}$")
            client.wait_for("up after")
            shown = net.client.run(["ifconfig", "em1"]).stdout
            assert f"inet6 {address.replace('/', ' prefixlen ')}" in shown
            assert "IFDISABLED" not in shown
            assert client.end() == 0
        # IPv6 is off again, and the link-local address that it made has gone.
        assert difference(before, net.client.snapshot()) == []


def test_an_interface_that_uses_ipv6_keeps_what_it_had(net: Internet) -> None:
    net.client.run(["ifconfig", "em1", "inet6", "2001:db8:f::1", "prefixlen", "64", "alias"])
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "network", "-a", "-P", "em1/1/::1,em1/2/::1") as client:
            client.wait_for("em1 2001:db8:3c3:1::1/64, em1 2001:db8:3c3:2::1/64")
            client.wait_for("up after")
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


def test_a_prefix_that_one_interface_gets_whole(net: Internet) -> None:
    """No unreachable route then: it would shadow the interface's own, or be replaced by it."""
    with serve(net) as server:
        server.end()
        set_users(net.server, "", "itojun 2001:db8:3c3:1::/64\n")
        before = net.client.snapshot()
        with Program(net.server, "dtcps", "-d") as server:
            server.wait_for("listening")
            with login(net.client, "-t", "network", "-P", "em1/0/::1") as client:
                client.wait_for("em1 2001:db8:3c3:1::1/64, advertised")
                client.wait_for("up after")
                wait_until("the LAN host has an address", lambda: _lan_addresses(net), 30)
                wait_until("and its router", lambda: _lan_router(net))
                assert ping(net.lan, FAR)
                assert client.end() == 0
        _no_rtadvd(net)
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.dialects
def test_the_administrators_rtadvd_is_left_to_it(net: Internet) -> None:
    net.client.run(["rtadvd", "em1"])
    wait_until(
        "rtadvd runs",
        lambda: "em1: " in net.client.run(["rtadvctl", "show"], check=False).stdout,
    )
    with serve(net), login(net.client, "-t", "network", "-P", "em1/1/::1") as client:
        client.wait_for("up after")
        assert not any("# rtadvd " in line for line in client.lines)
        wait_until("the LAN host has an address", lambda: _lan_addresses(net), 30)
        assert client.end() == 0
    assert len(_rtadvds(net)) == 1


def _status(net: Internet) -> str:
    return net.client.run([sys.executable, str(ROOT / "dtcpc.py"), "--status"], check=False).stdout


def test_the_hint_when_the_host_does_not_forward(net: Internet) -> None:
    net.client.run(["sysctl", "net.inet6.ip6.forwarding=0"])
    hint = 'does not forward IPv6, .*: set ipv6_gateway_enable="YES"'
    with serve(net), login(net.client, "-t", "network", "-a", "-P", "em1/1") as client:
        client.wait_for(hint)
        client.wait_for("up after")
        wait_until("it is told", lambda: re.search(hint, _status(net)))
        shown = net.client.run(["sysctl", "-n", "net.inet6.ip6.forwarding"]).stdout
        assert shown == "0\n"
        net.client.run(["sysctl", "net.inet6.ip6.forwarding=1"])
        client.send(signal.SIGHUP)
        wait_until("no hint any more", lambda: not re.search(hint, _status(net)))
        assert client.end() == 0


def test_the_hint_when_nothing_has_an_address_of_the_prefix(net: Internet) -> None:
    hint = "no interface has an address of this prefix: give -P, or use -t host"
    with serve(net), login(net.client, "-t", "network") as client:
        client.wait_for(hint)
        client.wait_for("up after")
        wait_until("it is told", lambda: hint in _status(net))
        net.client.run(["ifconfig", "lo0", "inet6", "2001:db8:3c3::1", "prefixlen", "128", "alias"])
        wait_until("no hint any more", lambda: hint not in _status(net))
        assert client.end() == 0


@pytest.mark.hazard(51)
def test_a_lan_interface_that_is_not_there_yet_is_waited_for(release: str, enclosed: None) -> None:
    with Internet(release) as net, serve(net):
        net.client.run(["sysctl", "net.inet6.ip6.forwarding=1"])
        options = ("-l", "-t", "network", "-P", "epair7a/1/::1")
        with login(net.client, *options, "-s", "/bin/true") as client:
            client.wait_for("epair7a: no such interface yet; it gets its addresses when it comes")
            client.wait_for("up after")
            no_such = "epair7a: no such interface yet"
            wait_until("it is told", lambda: no_such in _status(net))
            net.client.run(["ifconfig", "epair7", "create"])
            client.wait_for("delegated: epair7a 2001:db8:3c3:1::1/64, advertised")
            shown = net.client.run(["ifconfig", "epair7a"]).stdout
            assert "inet6 2001:db8:3c3:1::1 prefixlen 64" in shown
            wait_until("it is told", lambda: no_such not in _status(net))
            assert ping(net.client)
            client.wait_for("# /bin/true change")
            assert client.end() == 0
        _no_rtadvd(net)
        assert "2001:db8:3c3" not in net.client.run(["ifconfig", "epair7a"]).stdout


@pytest.mark.hazard(50)
def test_the_administrators_rtadvd_that_comes_later(net: Internet) -> None:
    """Ours makes room without a word: its farewell would tell the hosts that the router leaves."""
    with serve(net), login(net.client, "-t", "network", "-P", "em1/1/::1") as client:
        client.wait_for("up after")
        wait_until("the LAN host has its router", lambda: _lan_router(net), 30)
        net.client.run(["rtadvd", "em1"])
        wait_until(
            "rtadvd runs",
            lambda: "em1: " in net.client.run(["rtadvctl", "show"], check=False).stdout,
        )
        client.send(signal.SIGHUP)
        client.wait_for("em1: another rtadvd serves it now; ours leaves it to that")
        wait_until("one of them is left", lambda: len(_rtadvds(net)) == 1)
        assert "dtcpc" not in _rtadvds(net)[0]
        assert _lan_router(net)
        assert client.end() == 0


@pytest.mark.hazard(62)
def test_a_prefix_that_is_another_now_is_withdrawn_on_the_lan(net: Internet) -> None:
    server = serve(net)
    with login(net.client, "-l", "-t", "network", "-P", "em1/1/::1") as client:
        client.wait_for("up after")
        wait_until("the LAN host has an address", lambda: _lan_addresses(net), 30)
        server.end()
        set_users(net.server, "", "itojun 2001:db8:fff0::/48\n")
        with Program(net.server, "dtcps", "-d") as server:
            client.wait_for("2001:db8:fff0::/48 delegated: em1 2001:db8:fff0:1::1/64, advertised")
            # The old one is the nearer to FAR, but deprecated (RFC 6724 section 5, rules 3 and 8).
            wait_until(
                "the LAN host speaks from the new one",
                lambda: _source(net).startswith("2001:db8:fff0:1:"),
                30,
            )
            assert _lan_router(net)
            assert client.end() == 0


def _source(net: Internet) -> str:
    """The address from which the LAN host speaks to the world."""
    script = f"""
import socket
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
    sock.connect(("{FAR}", 9))
    print(sock.getsockname()[0])
"""
    return net.lan.run([sys.executable, "-c", script]).stdout


def test_what_cannot_be_given_is_refused_and_rolled_back(net: Internet) -> None:
    net.client.run(["ifconfig", "em1", "inet6", "2001:db8:3c3:9::1", "prefixlen", "64", "alias"])
    with serve(net) as server:
        server.end()
        set_users(net.server, "", "itojun 2001:db8:3c3::/60\n")
        with Program(net.server, "dtcps", "-d") as server:
            server.wait_for("listening")
            before = net.client.snapshot()
            for spec, message in (
                ("em1/1f", "em1: SLA ID 1f does not fit: 2001:db8:3c3::/60 leaves 4 bits for it"),
                ("em1/9/::1", "em1 has 2001:db8:3c3:9::1 already, and not from dtcpc"),
                ("em9/1", "-P: em9: no such interface"),
            ):
                with login(net.client, "-t", "network", "-P", spec) as client:
                    assert client.status() == 1
                    assert f"dtcpc: {message}" in client.lines
                assert difference(before, net.client.snapshot()) == []


def test_connections_of_the_lan_survive_a_restarted_server(net: Internet) -> None:
    echo = """
import socket
listener = socket.create_server(("::", 7), family=socket.AF_INET6)
print("ready", flush=True)
connection, _ = listener.accept()
while data := connection.recv(100):
    connection.sendall(data)
"""
    talk = f"""
import socket, sys
connection = socket.create_connection(("{FAR}", 7), timeout=20)
for line in sys.stdin:
    connection.sendall(line.encode())
    print(connection.recv(100).decode(), end="", flush=True)
"""
    server = serve(net)
    far = net.far.popen([sys.executable, "-c", echo], stdout=-1)
    assert far.stdout is not None
    assert far.stdout.readline() == "ready\n"
    with login(net.client, "-l", "-t", "network", "-P", "em1/1/::1") as client:
        client.wait_for("up after")
        wait_until("the LAN host has an address", lambda: _lan_addresses(net), 30)
        wait_until("and its router", lambda: _lan_router(net))
        addresses = _lan_addresses(net)
        user = net.lan.popen([sys.executable, "-c", talk], stdin=-1, stdout=-1)
        assert user.stdin is not None
        assert user.stdout is not None
        for word, restart in (("before", False), ("after", True)):
            if restart:
                seen = len(client.lines)
                server.end()
                server = serve(net)
                wait_until("back", lambda: any("up after" in x for x in client.lines[seen:]))  # noqa: B023
            user.stdin.write(f"{word}\n")
            user.stdin.flush()
            assert user.stdout.readline() == f"{word}\n"
        assert _lan_addresses(net) == addresses
        assert client.end() == 0


@pytest.mark.dialects
def test_solicit(release: str, enclosed: None) -> None:
    """-r solicit: the server advertises on the tunnel, and the default route is learned."""
    with Internet(release) as net, serve(net) as server:
        before = net.client.snapshot()
        with login(net.client, "-t", "host", "-r", "solicit") as client:
            server.wait_for("up: gif0")
            net.server.run(["rtadvd", "gif0"])
            client.wait_for("routes: default, as advertised, through gif0", 40)
            client.wait_for("up after")
            assert ping(net.client)
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


def test_solicit_without_an_answer_is_an_error(release: str, enclosed: None) -> None:
    with Internet(release) as net, serve(net):
        net.client.write("/run/freebsd/rtsol-seconds", "1\n")
        before = net.client.snapshot()
        with login(net.client, "-t", "host", "-r", "solicit") as client:
            assert client.status(30) == 1
            client.wait_for("no router answered on the tunnel; use -r static")
        assert difference(before, net.client.snapshot()) == []


def test_solicit_on_a_router_says_why_not(net: Internet) -> None:
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "host", "-r", "solicit") as client:
            assert client.status() == 1
            client.wait_for("this host forwards IPv6 .* use -r static")
        assert difference(before, net.client.snapshot()) == []
