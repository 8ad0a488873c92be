"""The lab's ngctl: IPv6 over UDP between two hosts, bare, by ng_iface and ng_ksocket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from lab.host import Host
from lab.internet import CLIENT4, SERVER4, Internet
from lab.machine import machine
from lab.snapshot import difference
from tests.running import ping, wait_until

pytestmark = [pytest.mark.proves_lab, pytest.mark.lab, pytest.mark.usefixtures("enclosed")]

# Where the releases say and do the same.
one_release = pytest.mark.parametrize("release", ["15.1"], indirect=True)

CLIENT6, SERVER6 = "2001:db8:6::2", "2001:db8:6::1"
PEER = f"inet/{SERVER4}:4028"
UDP = "udp port 4028"


def sh(host: Host, script: str) -> str:
    return host.run(["sh", "-ec", script]).stdout


def ngctl(host: Host, *words: str) -> tuple[int, str]:
    done = host.run(["ngctl", *words], check=False)
    return done.returncode, done.stdout + done.stderr


def make(host: Host, own: str, far: str, own6: str, far6: str) -> None:
    sh(
        host,
        f"""ngctl mkpeer iface dummy inet6
        ngctl mkpeer ng0: ksocket inet6 inet/dgram/udp
        ngctl name ng0:inet6 ks0
        ngctl msg ks0: bind inet/{own}:4028
        ngctl msg ks0: connect inet/{far}:4028
        ifconfig ng0 mtu 1280
        ifconfig ng0 inet6 {own6} {far6} prefixlen 128""",
    )


def relays(host: Host) -> list[int]:
    return [pid for pid, words in host.processes().items() if "ksocket_relay" in words]


@pytest.fixture
def tunnel(net: Internet) -> Iterator[Internet]:
    make(net.client, CLIENT4, SERVER4, CLIENT6, SERVER6)
    make(net.server, SERVER4, CLIENT4, SERVER6, CLIENT6)
    # What the interfaces had to say when they came up may have found no one at the other end.
    sh(net.client, f"ngctl msg ks0: connect {PEER}")
    yield net
    for host in (net.client, net.server):
        assert host.run(["cat", "/run/freebsd/refused"], check=False).stdout == ""


def test_a_datagram_is_a_bare_packet(tunnel: Internet) -> None:
    # Not what an interface that has just come up says to all neighbors: that goes to ff02::.
    with tunnel.router.capture("eth0", f"{UDP} and ip[52] != 0xff") as capture:
        assert ping(tunnel.client, SERVER6)
        sent, *_, came = capture.wait(2)
    assert (sent.src, sent.dst, sent.ttl, sent.df) == (CLIENT4, SERVER4, 64, False)
    assert came.src == SERVER4
    for packet, source, destination in ((sent, CLIENT6, SERVER6), (came, SERVER6, CLIENT6)):
        inner = packet.payload[8:]
        assert inner[0] >> 4 == 6
        assert len(inner) == 40 + int.from_bytes(inner[4:6], "big")
        assert socket.inet_ntop(socket.AF_INET6, inner[8:24]) == source
        assert socket.inet_ntop(socket.AF_INET6, inner[24:40]) == destination


def send(host: Host, source: str, data: str) -> None:
    """A datagram out of the blue."""
    script = f"""import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("{source}", 4029))
s.sendto(bytes.fromhex("{data}"), ("{CLIENT4}", 4028))"""
    host.run(["python3", "-c", script])


# An echo request from SERVER6 to CLIENT6.
ECHO = (
    "6000000000083a40"
    "20010db8000600000000000000000001"
    "20010db8000600000000000000000002"
    "800012d200010000"
)


@one_release
def test_only_the_peer_is_heard_but_without_one_everybody(tunnel: Internet) -> None:
    with tunnel.client.capture("ng0", "icmp6 and ip6[40] == 128") as capture:
        send(tunnel.server, SERVER4, ECHO)  # another port
        tunnel.server.run(machine.ping(CLIENT6, 1, 5))  # once, however late the answer is
        assert len(capture.wait(1)) == 1
        assert ngctl(tunnel.client, "msg", "ks0:", "connect", f"inet/{SERVER4}")[0] == 71
        for rubbish in ("", "45" + 60 * "00", "00", ECHO[:20]):
            send(tunnel.server, SERVER4, rubbish)
        send(tunnel.server, SERVER4, ECHO)
        assert "echo request" in capture.wait(2)[-1].text
        with tunnel.router.capture("eth0", f"{UDP} and src {CLIENT4}") as silence:
            assert not ping_once(tunnel.client)
            assert silence.packets == []


def ping_once(host: Host) -> bool:
    return host.run(["ping", "-c", "1", "-W", "1", SERVER6], check=False).returncode == 0


@pytest.mark.parametrize(
    ("release", "reason", "steadfast"),
    [
        ("15.1", "port-unreachable", False),
        ("13.2", "host-unreachable", False),
        ("15.1", "port-unreachable", True),
    ],
    indirect=["release"],
)
def test_an_icmp_unreachable_disconnects_and_connect_mends(
    tunnel: Internet, reason: str, steadfast: bool
) -> None:
    """On the recorded machine it does not: that is what the file is for."""
    if steadfast:
        tunnel.client.write("/run/freebsd/ksocket-steadfast", "")
    rule = f"ip saddr {CLIENT4} udp dport 4028 reject with icmp type {reason}"
    sh(
        tunnel.router,
        f"""nft 'add table ip filter
        add chain ip filter forward {{ type filter hook forward priority filter; }}
        add rule ip filter forward {rule}'""",
    )
    with tunnel.client.capture("em0", "icmp[icmptype] == icmp-unreach") as capture:
        assert not ping_once(tunnel.client)
        assert capture.wait(1)
    sh(tunnel.router, "nft delete table ip filter")
    if not steadfast:
        answer = 71, "ngctl: send msg: Socket is not connected\n"
        wait_until("disconnected", lambda: ngctl(tunnel.client, *GETPEERNAME) == answer)
        with tunnel.router.capture("eth0", UDP) as silence:
            assert not ping_once(tunnel.client)
            assert silence.packets == []
        assert ngctl(tunnel.client, "msg", "ks0:", "connect", PEER) == (0, "")
    assert f"\nArgs:\t{PEER}\n" in ngctl(tunnel.client, *GETPEERNAME)[1]
    assert ping(tunnel.client, SERVER6)


GETPEERNAME = ("msg", "ks0:", "getpeername")


def test_what_is_shut_down_leaves_no_trace(net: Internet) -> None:
    before = net.client.snapshot()
    make(net.client, CLIENT4, SERVER4, CLIENT6, SERVER6)
    sh(
        net.client,
        """ifconfig ng0 name dtcp0
        ifconfig dtcp0 group dtcpc description "a b"
        route -n add -inet6 default -interface dtcp0""",
    )
    assert "\tdescription: a b\n" in sh(net.client, "ifconfig dtcp0")
    assert "\tgroups: dtcpc\n" in sh(net.client, "ifconfig dtcp0")
    assert len(relays(net.client)) == 1
    # The other node keeps its name and goes on; the port is free at once.
    assert ngctl(net.client, "shutdown", "ng0:inet6") == (0, "")
    assert relays(net.client) == []
    sh(
        net.client,
        f"""ngctl mkpeer ng0: ksocket inet6 inet/dgram/udp
        ngctl msg ng0:inet6 bind inet/{CLIENT4}:4028
        ngctl shutdown ng0:""",
    )
    assert difference(before, net.client.snapshot()) == []


@one_release
def test_a_script_is_obeyed_up_to_its_first_mistake(net: Internet) -> None:
    def script(*lines: str) -> tuple[int, str, str]:
        done = net.client.run(["ngctl", "-f", "-"], input="\n".join(lines) + "\n", check=False)
        return done.returncode, done.stdout, done.stderr

    assert script(
        "mkpeer iface dummy inet6", "name dummy dtcp", "# as it were", "rmhook dummy"
    ) == (
        0,
        "",
        "",
    )
    assert script(
        "mkpeer dtcp: ksocket inet6 inet/dgram/udp", "msg dtcp: getifname", "msg x: y"
    ) == (
        71,
        'Rec\'d response "getifname" (1) from "[2]:":\nArgs:\t"ng0"\n',
        "ngctl: send msg: No such file or directory\nngctl: line 3: error in file\n",
    )
    assert ngctl(net.client, "msg", "dtcp:inet6", "bind", f"inet/{CLIENT4}:1")[0] == 0
    # A port is had by one only.
    script("mkpeer iface dummy inet6", "name dummy other", "rmhook dummy")
    script("mkpeer other: ksocket inet6 inet/dgram/udp")
    assert ngctl(net.client, "msg", "other:inet6", "bind", f"inet/{CLIENT4}:1") == (
        71,
        "ngctl: send msg: Address already in use\n",
    )


@one_release
def test_nodes_go_with_what_they_are_made_of(tunnel: Internet) -> None:
    [relay] = relays(tunnel.client)
    os.kill(relay, 9)
    wait_until("its end", lambda: not relays(tunnel.client))
    assert "Num hooks: 0" in ngctl(tunnel.client, "show", "ng0:")[1]
    sh(tunnel.server, "ip link del ng0")
    wait_until("its end", lambda: not relays(tunnel.server))
    assert ngctl(tunnel.server, "list")[1].count("Name:") == 1
