"""The main job, with real packets: a tunnel comes up, carries IPv6, and leaves no trace."""

from __future__ import annotations

import re
import signal
import sys

import pytest

from lab.internet import Internet
from lab.machine import machine
from lab.snapshot import difference
from tests.running import (
    DELEGATED,
    FAR,
    ROOT,
    SERVER,
    TUNNELED,
    Program,
    Talker,
    login,
    ping,
    serve,
    wait_until,
)

pytestmark = pytest.mark.lab

INSIDE = "2001:db8:3c3::1"  # an address of the delegated prefix


@pytest.mark.dialects
@pytest.mark.smoke
@pytest.mark.turns(3)
@pytest.mark.parametrize(
    ("tunnel_type", "words", "source"),
    [
        ("host", (), "2001:db8:1::6"),
        ("network", ("-A", f"{INSIDE}/128"), INSIDE),
        ("tunnelroute", ("-A", f"{INSIDE} -prefixlen 128"), INSIDE),
        ("network", ("-A", f"{INSIDE} fd00::1 prefixlen 128"), INSIDE),
    ],
)
def test_packets_pass_and_no_trace_is_left(
    net: Internet, tunnel_type: str, words: tuple[str, ...], source: str
) -> None:
    with serve(net) as server:
        client_before, server_before = net.client.snapshot(), net.server.snapshot()
        with login(net.client, "-t", tunnel_type, *words) as client:
            client.wait_for("up after")
            with net.router.capture("eth0", TUNNELED) as capture:
                assert ping(net.client)
                assert ping(net.far, source)
                packets = capture.wait(4)
            assert {(p.src, p.dst) for p in packets} == {
                ("203.0.113.7", "192.0.2.1"),
                ("192.0.2.1", "203.0.113.7"),
            }
            assert {p.proto for p in packets} == {41}
            assert client.end() == 0
        assert difference(client_before, net.client.snapshot()) == []
        server.wait_for("itojun: down: the client said quit")
        assert difference(server_before, net.server.snapshot()) == []
        assert server.end() == 0


def test_a_link_without_addresses_carries_packets(net: Internet) -> None:
    """Type tunnelonly: the two ends reach each other by their link-local addresses."""
    with serve(net):
        before = net.client.snapshot()
        with login(net.client) as client:
            client.wait_for("up after")
            shown = net.server.run(["ifconfig", "gif0"]).stdout
            found = re.search(r"inet6 (fe80::\S+)%gif0", shown)
            assert found
            # Not while the address is being tried (duplicate address detection).
            wait_until("packets", lambda: ping(net.client, f"{found[1]}%gif0"))
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(25)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_changes_nothing(net: Internet, number: signal.Signals) -> None:
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "host") as client:
            client.wait_for("up after")
            client.send(number)
            client.wait_for("ending as asked")
            assert client.end(number) == 0
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.dialects
@pytest.mark.hazard(22, "K5")
def test_a_static_default_route_stays(net: Internet) -> None:
    net.client.run(["ifconfig", "em0", "inet6", "2001:db8:f::7", "prefixlen", "64", "alias"])
    net.client.run(["route", "-n", "add", "-inet6", "default", "2001:db8:f::1"])
    _another_default_stays(net)


@pytest.mark.dialects
@pytest.mark.hazard(22, "K5")
def test_an_advertised_default_route_stays(release: str, enclosed: None) -> None:
    with Internet(release, lan=True) as net:
        net.client.run(["ifconfig", "em1", "inet6", "-ifdisabled", "accept_rtadv", "up"])
        advertise = [sys.executable, str(ROOT / "tests/advertise.py"), "eth0", "2001:db8:f::"]

        def has_default() -> bool:
            net.lan.run(advertise, check=False)  # its link may still be coming up
            words = ["route", "-n", "get", "-inet6", "default"]
            return net.client.run(words, check=False).returncode == 0

        wait_until("the advertised default route", has_default)
        _another_default_stays(net)


def _another_default_stays(net: Internet) -> None:
    def default() -> list[str]:
        shown = net.client.run(["netstat", "-rn", "-f", "inet6"]).stdout
        return [line for line in shown.splitlines() if line.startswith("default")]

    there = default()
    assert len(there) == 1
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "host") as client:
            client.wait_for("routes: ::/1, 8000::/1 through gif0")
            client.wait_for("up after")
            assert default() == there
            assert ping(net.client)
            assert client.end() == 0
        assert default() == there
        assert difference(before, net.client.snapshot()) == []


def test_other_destinations_instead_of_the_default(net: Internet) -> None:
    with (
        serve(net),
        login(
            net.client, "-t", "host", "-R", "2001:db8::/32,2001:db8:77:: -prefixlen 48"
        ) as client,
    ):
        client.wait_for("routes: 2001:db8::/32, 2001:db8:77::/48 through gif0")
        client.wait_for("up after")
        assert ping(net.client)
        words = ["route", "-n", "get", "-inet6", "default"]
        assert net.client.run(words, check=False).returncode == 255
        assert client.end() == 0


@pytest.mark.dialects
def test_name_and_mtu_as_asked(net: Internet) -> None:
    for name in ("gif7", "dtcp0"):
        with serve(net):
            before = net.client.snapshot()
            with login(net.client, "-t", "host", "-i", name, "-m", "1400") as client:
                client.wait_for(f"{name}: .*mtu 1400")
                client.wait_for("up after")
                assert "mtu 1400" in net.client.run(["ifconfig", name]).stdout
                assert ping(net.client)
                assert client.end() == 0
            assert difference(before, net.client.snapshot()) == []


def test_an_interface_that_is_there_is_used_and_left_as_it_was(net: Internet) -> None:
    """-c, with settings of the administrator's on the interface."""
    net.client.run(["ifconfig", "gif0", "create", "mtu", "1300", "description", "mine"])
    net.client.run(["ifconfig", "gif0", "tunnel", "203.0.113.7", "198.51.100.99"])
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-c", "-t", "host", "-m", "1480") as client:
            client.wait_for("up after")
            assert ping(net.client)
            assert "description: mine" in net.client.run(["ifconfig", "gif0"]).stdout
            assert client.end() == 0
        after = net.client.snapshot()
        for view in ("ifconfig -a", "netstat -rn", "files", "settings"):
            assert after[view] == before[view]


@pytest.mark.dialects
def test_a_kept_interface_is_bare_and_taken_over(net: Internet) -> None:
    """-o leaves the interface, and nothing else of ours; the next run uses it again."""
    with serve(net):
        with login(net.client, "-o", "-t", "host") as client:
            client.wait_for("up after")
            assert client.end() == 0
        shown = net.client.run(["ifconfig", "gif0"]).stdout
        for word in ("tunnel", "2001:db8", "fe80", "UP", "description"):
            assert word not in shown
        assert "IFDISABLED" in shown
        before = net.client.snapshot()
        with login(net.client, "-t", "host") as client:
            client.wait_for("gif0: 203.0.113.7 --> 192.0.2.1")
            client.wait_for("up after")
            assert ping(net.client)
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


def test_a_failed_start_leaves_nothing_even_with_o(net: Internet) -> None:
    net.client.write(
        "/run/freebsd/faults", '[{"command": "route", "match": ["add"], "do": "exit1"}]'
    )
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-o", "-t", "host") as client:
            assert client.status() == 1
        assert difference(before, net.client.snapshot()) == []


def test_dry_run_changes_nothing_and_its_output_makes_the_tunnel(net: Internet) -> None:
    with serve(net):
        before = net.client.snapshot()
        words = ["--dry-run", "-t", "host", "-u", "itojun", SERVER]
        done = net.client.run([sys.executable, str(ROOT / "dtcpc.py"), *words])
        assert difference(before, net.client.snapshot()) == []
        assert done.stdout.startswith("IF=$(ifconfig gif create ")
        # The server keeps its end while somebody is logged in.
        with Talker(net, "itojun", "secret", "host") as talker:
            assert talker.answer.startswith("+OK")
            net.client.run(["sh", "-e"], input=done.stdout)
            assert ping(net.client)


@pytest.mark.hazard(34)
def test_a_second_instance_names_the_first(net: Internet) -> None:
    with serve(net), login(net.client, "-t", "host") as first:
        first.wait_for("up after")
        with login(net.client, "-t", "host") as second:
            assert second.status() == 1
            assert second.lines == [
                f"dtcpc: /var/run/dtcpc.pid: already running as pid {first.pid}"
            ]
        assert ping(net.client)
        assert first.end() == 0


def test_a_fib_of_its_own(net: Internet) -> None:
    net.client.run(["sysctl", "net.fibs=2"])
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "host", "-F", "1") as client:
            client.wait_for("up after")
            assert "fib: 1" in net.client.run(["ifconfig", "gif0"]).stdout
            table = ["netstat", "-rn", "-f", "inet6", "-F"]
            assert "default" in net.client.run([*table, "1"]).stdout
            assert "default" not in net.client.run([*table, "0"]).stdout
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []
        with (
            net.router.capture("eth0", "tcp") as capture,
            login(net.client, "-l", "-t", "host", "-F", "7") as client,
        ):
            assert client.status() == 1
            client.wait_for(r"-F: 7: no such FIB; this host has 2 \(sysctl net.fibs\)")
            assert capture.packets == []
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.dialects
@pytest.mark.hazard(24)
def test_a_refused_outer_pair_is_noticed_and_rolled_back(net: Internet) -> None:
    """ifconfig exits 0 when the kernel refuses the pair, because another gif has it."""
    net.client.run(["ifconfig", "gif0", "create", "tunnel", "203.0.113.7", "192.0.2.1"])
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "host") as client:
            assert client.status() == 1
            assert (
                "dtcpc: gif0 has the outer pair 203.0.113.7 --> 192.0.2.1 already,"
                " and no two can have the same"
            ) in client.lines
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(16, "K4", "K6")
def test_the_end_of_the_server_is_the_end_of_the_tunnel(net: Internet) -> None:
    for number, reason in (
        (signal.SIGKILL, "lost: the server closed the connection"),
        (signal.SIGTERM, 'lost: the server says "server is going down"'),
    ):
        with serve(net) as server:
            before = net.client.snapshot()
            with login(net.client, "-t", "host") as client:
                client.wait_for("up after")
                server.end(number)
                assert client.status() == 75
                assert f"dtcpc: {reason}" in client.lines
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(14, "K3")
def test_behind_a_nat(release: str, enclosed: None) -> None:
    """Without -n one message that says what this is; with -n the outer source is our own."""
    with Internet(release, nat=True) as net, serve(net) as server:
        before = net.client.snapshot()
        with login(net.client, "-t", "host") as client:
            assert client.status() == 77
            [line] = [line for line in client.lines if "NAT" in line]
            for word in ("198.51.100.7", "203.0.113.7", "protocol 41", "-n", "-U"):
                assert word in line
        assert difference(before, net.client.snapshot()) == []
        server.wait_for("itojun: down")
        with login(net.client, "-n", "-t", "host") as client:
            client.wait_for("gif0: 198.51.100.7 --> 192.0.2.1")
            client.wait_for("up after")
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(33)
@pytest.mark.parametrize("words", [(), ("-l",), ("-D",), ("-i", "gif7")])
def test_a_plain_jail_is_told_before_anything_is_said(
    net: Internet, words: tuple[str, ...]
) -> None:
    """As a daemon, and with options that name something here, before anything is sent at all."""
    net.client.write("/run/freebsd/jail", "plain")
    with serve(net) as server, net.router.capture("eth0", "tcp") as capture:
        with Program(net.client, "dtcpc", *words, "-u", "itojun", SERVER) as client:
            assert client.status() == 77
            assert "this jail has no network stack of its own" in client.lines[-1]
        assert not [line for line in server.lines if "itojun" in line]
        if "-D" in words or "-i" in words:
            assert capture.packets == []


@pytest.mark.parametrize("jail", ["", "vnet"])
def test_a_kernel_without_gif_is_told_with_the_remedy(net: Internet, jail: str) -> None:
    net.client.write("/run/freebsd/jail", jail)
    net.client.write("/run/freebsd/lacks", "if_gif")
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "host") as client:
            assert client.status() == 1
            assert client.lines[-1] == (
                "dtcpc: the kernel has no gif(4): kldload if_gif (for a jail, on its host)"
            )
        assert difference(before, net.client.snapshot()) == []


def test_another_system_is_told(net: Internet) -> None:
    net.router.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")
    with serve(net), login(net.router, "-t", "host") as client:
        assert client.status() == 1
        assert client.lines[-1] == (
            "dtcpc: this is not FreeBSD, whose commands make the tunnel; `make demo` shows it on"
            " Linux"
        )


def test_an_interface_that_cannot_be_had_is_told_before_anything_is_sent(net: Internet) -> None:
    net.client.run(["ifconfig", "gif3", "create"])
    with net.router.capture("eth0", "tcp") as capture:
        for words, message in (
            (("-c", "-i", "gif9"), "gif9: no such interface; create it, or leave out -c"),
            (("-i", "gif3"), "gif3: already exists; use it with -c, or choose another name"),
            (("-i", "em0"), "em0: already exists; use it with -c, or choose another name"),
        ):
            with login(net.client, *words) as client:
                assert client.status() == 1
                assert client.lines[-1] == f"dtcpc: {message}"
        assert capture.packets == []


def test_the_delegated_prefix_does_not_bounce(net: Internet) -> None:
    """A packet to an unused subnet is answered with unreachable instead of going to and fro."""
    with serve(net), login(net.client, "-t", "network", "-A", INSIDE) as client:
        client.wait_for("up after")
        net.client.run(["sysctl", "net.inet6.ip6.forwarding=1"])
        unused = "2001:db8:3c3:7::7"
        # Not what a tunnel that has just come up says to all neighbours: those go to ff02::.
        with net.router.capture("eth0", f"{TUNNELED} and ip[44] != 0xff") as capture:
            # -v: FreeBSD's ping says otherwise nothing of an answer that is none.
            done = net.far.run([*machine.ping(unused, 1, 3)[:-1], "-v", unused], check=False)
            assert "unreachable" in done.stdout.lower()
            # The request in, the answer out: no packet a second time.
            assert len(capture.wait(2)) == 2


def test_everything_ends_with_the_default_route_of_far_alive(net: Internet) -> None:
    """The far host reaches the client only while the tunnel is up."""
    with serve(net):
        with login(net.client, "-t", "network", "-A", INSIDE) as client:
            client.wait_for(f"{re.escape(DELEGATED)} delegated")
            client.wait_for("up after")
            assert ping(net.far, INSIDE)
            assert client.end() == 0
        assert not ping(net.far, INSIDE)
        assert not ping(net.client, FAR)
