"""Tunnels over UDP: through netgraph, with and without a NAT between."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lab.internet import CLIENT4_BEHIND_NAT, SERVER4, Internet
from lab.machine import machine
from lab.snapshot import difference
from tests.running import (
    FAR,
    PREFIX,
    ROOT,
    SERVER,
    Program,
    Talker,
    identity,
    login,
    ping,
    serve,
    wait_until,
)
from tests.test_ears import WRONG, packet

pytestmark = pytest.mark.lab


@pytest.mark.dialects
@pytest.mark.smoke
@pytest.mark.parametrize(
    ("words", "ports"),
    [((), (4028, 4028)), (("-b", "5000"), (5000, 4028))],
)
def test_bare_ipv6_packets_in_udp(
    net: Internet, words: tuple[str, ...], ports: tuple[int, int]
) -> None:
    with serve(net, "-U") as server:
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


@pytest.mark.turns(3)
@pytest.mark.parametrize("jail", ["", "vnet"])
@pytest.mark.parametrize("lacks", ["ng_socket", "ng_iface", "ng_ksocket"])
def test_a_kernel_without_netgraph_is_told_with_the_remedy(
    net: Internet, lacks: str, jail: str
) -> None:
    net.client.write("/run/freebsd/jail", jail)
    net.client.write("/run/freebsd/lacks", lacks)
    with serve(net, "-U"):
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
    with serve(net, "-U"):
        before = net.client.snapshot()
        with login(net.client, "-U", "-t", "network", "-A", inside, "-m", "1400") as client:
            client.wait_for("ng0: 203.0.113.7 --> 192.0.2.1, mtu 1400")
            client.wait_for("up after")
            wait_until("packets pass", lambda: ping(net.far, inside))
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


def test_a_server_without_it_is_told_from_a_wrong_password(net: Internet) -> None:
    with serve(net):
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
    with serve(net, "-U"), login(net.client, "-U", "-t", "host") as client:
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
    with serve(net, "-U"), Program(net.server, "tests/servers", *kame) as other:
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


@pytest.mark.long
def test_through_a_nat_that_forgets_quickly(release: str, enclosed: None) -> None:
    with Internet(release, nat=True) as net, serve(net, "-U") as server:
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
    with Internet(release, nat=True) as net, serve(net, "-U"):
        net.nat.run(machine.nat_forwards(7777, CLIENT4_BEHIND_NAT, 4028))
        with login(net.client, "-U", "-n", "-B", "7777", "-t", "host") as client:
            client.wait_for("udp=7777")
            client.wait_for("up after")
            wait_until("packets pass", lambda: ping(net.far, "2001:db8:1::6"))
            assert ping(net.client)
            assert client.end() == 0


# --- who decides where a tunnel goes ----------------------------------------------------------

# Sends packets to the server's first port for as long as it lives, each as a line has it; ICMP
# unreachables before that is open are no reason to stop.
FLOOD = f"""
import socket, sys, time
packets = [bytes.fromhex(line) for line in sys.argv[1].split(",")]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    while True:
        for packet in packets:
            try:
                sock.sendto(packet, ("{SERVER4}", 4028))
            except OSError:
                pass
            time.sleep(0.001)
"""


@pytest.fixture
def net_with_nat(release: str, enclosed: None) -> Iterator[Internet]:
    with Internet(release, nat=True) as net:
        yield net


def _packets_pass(net: Internet) -> bool:
    return ping(net.far, "2001:db8:1::6") and ping(net.client)


def _keys(said: list[bytes]) -> set[bytes]:
    """The data of the echo requests with a key, in UDP datagrams."""
    return {each[56:] for each in said if len(each) == 72 and each[48] == 128}


@pytest.mark.hazard(70)
def test_strangers_behind_the_same_nat_take_no_tunnel(net_with_nat: Internet) -> None:
    """Out of the client's own address, before it can say a word; not with a key they saw once."""
    net = net_with_nat
    with serve(net, "-U") as server:
        words = ("-U", "-n", "-t", "host")
        with net.router.capture("eth0", "udp and dst port 4028") as capture:
            with login(net.client, *words) as client:
                client.wait_for("packets pass")
                assert client.end() == 0
            [seen] = _keys([each.payload for each in capture.wait(2)])
        server.wait_for("itojun: down")
        wrong = [*WRONG.values(), packet(seen)]
        flood = [sys.executable, "-c", FLOOD, ",".join(each.hex() for each in wrong)]
        # The NAT box itself has the client's outer address.
        strangers = net.nat.popen(flood)
        try:
            with Talker(net, "jun", "hidden", "tunnelonly udp=0") as idle:
                assert "udp=4028 key=" in idle.answer
                end = time.monotonic() + 1
                wait_until("a second has passed", lambda: time.monotonic() > end)
                assert "ng0" not in net.server.run(["ifconfig", "-l"]).stdout
            with login(net.client, *words) as client:
                client.wait_for("up after")
                wait_until("packets pass", lambda: _packets_pass(net))
                client.wait_for("packets pass")
                server.wait_for("itojun: up: ng0")
                assert client.end() == 0
            assert strangers.poll() is None
        finally:
            strangers.kill()
            strangers.wait()


@pytest.mark.hazard(70)
def test_the_key_is_nowhere_but_in_the_packets(net: Internet) -> None:
    """In no trace, list of arguments, state, or store."""
    with (
        serve(net, "-U") as server,
        net.router.capture("eth0", "udp and dst port 4028") as capture,
        login(net.client, "-U", "-t", "host") as client,
    ):
        client.wait_for(r"<< \+OK .* udp=4028 key=\*{8}$")
        server.wait_for(r">> \+OK .* udp=4028 key=\*{8}$")
        client.wait_for("packets pass")
        server.wait_for("itojun: up")
        client.send(signal.SIGHUP)
        client.wait_for(r">> tunnel itojun \*+ host udp=4028 key=\*{8}$")
        server.wait_for(r"<< tunnel itojun \*+ host udp=4028 key=\*{8}$")
        [key] = _keys([each.payload for each in capture.wait(2)])
        said = [*client.lines, *server.lines]
        for host in (net.client, net.server):
            said += [*host.processes().values()]
            hidden = "cat /var/run/dtcp*.state /var/db/dtcps/* 2>/dev/null | od -An -v -tx1"
            shown = host.run(["sh", "-c", hidden]).stdout.replace(" ", "").replace("\n", "")
            assert shown
            assert key.hex() not in shown
            assert key.hex().encode().hex() not in shown
        status = [sys.executable, str(ROOT / "dtcpc.py"), "--status", "--json"]
        said.append(net.client.run(status, check=False).stdout)
        assert json.loads(said[-1])["interface"] == "ng0"
        assert key.hex() not in "\n".join(said).lower()
        assert client.end() == 0


@pytest.mark.hazard(70)
def test_behind_a_nat_too_it_is_handed_over_as_it_was(net_with_nat: Internet) -> None:
    """Not a packet is lost at SIGHUP; a client that knows nothing of it is heard anew."""
    net = net_with_nat
    with serve(net, "-U") as server:
        with login(net.client, "-U", "-n", "-t", "host") as client:
            client.wait_for("packets pass")
            wait_until("packets pass", lambda: _packets_pass(net))
            made = [identity(host, "ng0") for host in (net.client, net.server)]
            flow = net.client.popen(["ping", "-n", "-i", "0.02", FAR], stdout=subprocess.PIPE)
            for number in range(2, 7):
                client.send(signal.SIGHUP)
                wait_until(
                    "up again",
                    lambda n=number: sum("up after" in each for each in client.lines) == n,
                )
            flow.send_signal(signal.SIGINT)
            said, _ = flow.communicate(timeout=10)
            numbers = [int(each) for each in re.findall(r"icmp_seq=(\d+)", said)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert made == [identity(host, "ng0") for host in (net.client, net.server)]
            assert sum(line.endswith("as it was") for line in server.lines) == 5
            client.end(signal.SIGKILL)
        with login(net.client, "-U", "-n", "-t", "host") as client:
            client.wait_for("packets pass")
            assert sum(line.endswith("as it was") for line in server.lines) == 5
            assert client.end() == 0


@pytest.mark.hazard(70)
def test_behind_a_nat_another_server_hears_the_client_anew(net_with_nat: Internet) -> None:
    """It has read of the tunnel in the store, where the key is not."""
    net = net_with_nat
    server = serve(net, "-U")
    with login(net.client, "-U", "-n", "-l", "-t", "host") as client:
        client.wait_for("packets pass")
        wait_until("it is up", lambda: any("itojun: up" in line for line in server.lines))
        server.end(signal.SIGUSR2)
        with Program(net.server, "dtcps", "-d", "-U", PREFIX) as again:
            again.wait_for("itojun: up: ng[01] to 203.0.113.7")
            assert not any(line.endswith("as it was") for line in again.lines)
            wait_until("packets pass", lambda: _packets_pass(net))
            assert client.end() == 0
            again.wait_for("itojun: down")


@pytest.mark.long
@pytest.mark.hazard(70)
def test_when_the_nat_moves_the_tunnel_follows(net_with_nat: Internet) -> None:
    """By a new login, once the client has noticed the silence."""
    net = net_with_nat
    with serve(net, "-U") as server:
        net.nat.run(machine.nat_forgets(1))
        with login(net.client, "-U", "-n", "-l", "-t", "host") as client:
            client.wait_for("packets pass")
            server.wait_for("itojun: up: ng0")
            net.nat.run(machine.nat_forwards(7777, CLIENT4_BEHIND_NAT, 4028))
            client.wait_for("lost: nothing comes back through the tunnel; trying again at once", 75)
            lost = len(client.lines)
            wait_until("passing", lambda: any("packets pass" in x for x in client.lines[lost:]))
            assert _packets_pass(net)
            assert client.end() == 0
