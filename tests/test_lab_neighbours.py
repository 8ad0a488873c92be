"""The lab's routers advertise, its hosts solicit: rtadvd, rtadvctl and rtsol with real packets."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest

from lab.host import Host
from lab.internet import CLIENT4, FAR6, SERVER4, Internet
from tests.running import ping, wait_until

pytestmark = [pytest.mark.proves_lab, pytest.mark.lab, pytest.mark.usefixtures("enclosed")]

# Where the releases say and do the same.
one_release = pytest.mark.parametrize("release", ["15.1"], indirect=True)

NET, OTHER = "2001:db8:5:1", "2001:db8:5:2"
ADVERTISED = "icmp6 and ip6[40] == 134"


def sh(host: Host, script: str) -> str:
    return host.run(["sh", "-ec", script]).stdout


@pytest.fixture
def net(release: str, enclosed: None) -> Iterator[Internet]:
    """The client is a router with a prefix on its LAN; nothing advertises it yet."""
    with Internet(release, lan=True) as internet:
        client = internet.client
        sh(client, f"ifconfig em1 inet6 {NET}::1/64; sysctl net.inet6.ip6.forwarding=1")
        sh(client, "echo 0.3 >/run/freebsd/rtadvd-seconds")
        yield internet
        for host in (client, internet.server):
            assert host.run(["cat", "/run/freebsd/refused"], check=False).stdout == ""


def start(host: Host, *words: str, pid_file: str = "/var/run/rtadvd.pid") -> int:
    """The process id of a new rtadvd."""
    host.run(["rtadvd", *words])
    wait_until("its pid", lambda: host.run(["cat", pid_file], check=False).stdout)
    return int(host.read(pid_file))


def addresses(host: Host, interface: str = "eth0") -> str:
    return sh(host, f"ip -6 -o address show dev {interface} scope global")


def has_router(host: Host) -> bool:
    return "proto ra" in sh(host, "ip -6 route show default")


def daemons(host: Host) -> list[int]:
    return [pid for pid, words in host.processes().items() if "bin/rtadvd" in words]


def present(host: Host) -> list[str]:
    return [name for name in sh(host, "ls /var/run").split() if "rtadvd" in name]


def test_a_lan_host_makes_its_address_and_is_told_when_the_router_leaves(net: Internet) -> None:
    pid = start(net.client, "em1")
    wait_until("an address", lambda: NET in addresses(net.lan))
    assert has_router(net.lan)
    assert ping(net.lan, f"{NET}::1")
    with net.lan.capture("eth0", ADVERTISED) as capture:
        os.kill(pid, signal.SIGTERM)
        wait_until("no files", lambda: not present(net.client))
        assert daemons(net.client) == [pid], "it has farewells to say"
        os.kill(pid, signal.SIGTERM)  # once more changes nothing
        farewells = capture.wait(3)
    assert all("router lifetime 0s" in packet.text for packet in farewells)
    assert all(f"{NET}::/64" in packet.text for packet in farewells)
    assert (farewells[0].src[:6], farewells[0].dst, farewells[0].ttl) == ("fe80::", "ff02::1", 255)
    wait_until("its end", lambda: not daemons(net.client))
    assert not has_router(net.lan)
    assert NET in addresses(net.lan)


@one_release
def test_an_advertisement_is_as_recorded(net: Internet) -> None:
    with net.lan.capture("eth0", ADVERTISED) as capture:
        start(net.client, "em1")
        [packet] = capture.wait(1)
    for words in (
        "hop limit 64, Flags [none], pref medium, router lifetime 1800s, reachable time 0ms",
        "source link-address option (1), length 8 (1): 00:00:5e:00:53:01",
        f"{NET}::/64, Flags [onlink, auto], valid time 2592000s, pref. time 604800s",
    ):
        assert words in packet.text


@one_release
def test_it_is_silent_until_the_host_forwards(net: Internet) -> None:
    sh(net.client, "sysctl net.inet6.ip6.forwarding=0")
    with net.lan.capture("eth0", "icmp6 and ip6[40] >= 133 and ip6[40] <= 134") as capture:
        pid = start(net.client, "em1")
        sh(net.lan, "ip link set eth0 down; ip link set eth0 up")
        assert "router solicitation" in capture.wait(1)[0].text
        assert "status=<INACTIVE> mtu 1500" in sh(net.client, "rtadvctl show")
        assert not [packet for packet in capture.packets if "advertisement" in packet.text]
        sh(net.client, "sysctl net.inet6.ip6.forwarding=1")
        wait_until("an address", lambda: NET in addresses(net.lan))
    assert "status=<RA_SEND>" in sh(net.client, "rtadvctl show")
    sh(net.client, "sysctl net.inet6.ip6.forwarding=0; rm /run/freebsd/rtadvd-seconds")
    os.kill(pid, signal.SIGKILL)
    quiet = start(net.client, "em1")
    os.kill(quiet, signal.SIGTERM)
    # Less than the farewells of one that had told somebody something.
    wait_until("its end: nobody was told anything", lambda: not daemons(net.client), limit=5)


@one_release
def test_it_follows_the_prefixes_of_its_interfaces(net: Internet) -> None:
    start(net.client, "em1", "em7")
    wait_until("an address", lambda: NET in addresses(net.lan))
    sh(net.client, f"ifconfig em1 inet6 {OTHER}::1/64; ifconfig em1 inet6 {NET}::1 -alias")
    wait_until("another address", lambda: OTHER in addresses(net.lan))
    wait_until("the end of the first", lambda: "deprecated" in addresses(net.lan))
    shown = sh(net.client, "rtadvctl -v show em1")
    assert f"\tPrefixes (1):\n\t  {OTHER}::/64 (DYNAMIC, vltime=30d, pltime=7d, flags=LA)" in shown
    assert sh(net.client, "rtadvctl show em7") == (
        "em7: flags=<NONEXISTENT,PERSIST> status=<INACTIVE> \n"
    )


@one_release
def test_what_the_configuration_says(net: Internet) -> None:
    net.client.write(
        "/var/run/conf", f'em1:\\\n\t:mtu#1280:rltime#600:addr="{OTHER}::":prefixlen#64:\n'
    )
    with net.lan.capture("eth0", ADVERTISED) as capture:
        start(net.client, "-c", "/var/run/conf", "em1")
        [packet] = capture.wait(1)
    for words in ("mtu option (5), length 8 (1):  1280", "lifetime 600s", f"{OTHER}::/64"):
        assert words in packet.text
    assert f"{NET}::/64" not in packet.text
    assert f"  {OTHER}::/64 (CONFIG, " in sh(net.client, "rtadvctl -v show")


def test_two_side_by_side(net: Internet) -> None:
    client, lan = net.client, net.lan
    own = ["-p", "/var/run/own.rtadvd.pid", "-C", "/var/run/own.rtadvd.sock"]
    sh(client, f"ifconfig epair create; ifconfig epair0a inet6 {OTHER}::1/64")
    administrators = start(client, "epair0a")
    for words in (["em1"], [*own[2:], "em1"]):
        done = client.run(["rtadvd", *words], check=False)
        assert (done.returncode, done.stderr) == (
            1,
            f"rtadvd: rtadvd already running, pid: {administrators}\n",
        )
    mine = start(client, *own, "em1", pid_file=own[1])
    assert set(daemons(client)) == {administrators, mine}
    assert re.findall(r"^\w+", sh(client, "rtadvctl show"), re.M) == ["epair0a"]
    wait_until("an address", lambda: NET in addresses(lan))
    os.kill(mine, signal.SIGTERM)
    wait_until("its end", lambda: daemons(client) == [administrators])
    assert present(client) == ["rtadvd.pid", "rtadvd.sock"]
    assert not has_router(lan)
    # Without a control socket of its own it takes that of the other, and with it into its grave.
    thief = start(client, *own[:2], "em1", pid_file=own[1])
    assert re.findall(r"^\w+", sh(client, "rtadvctl show"), re.M) == ["em1"]
    os.kill(thief, signal.SIGTERM)
    wait_until("no socket", lambda: present(client) == ["rtadvd.pid"])
    done = client.run(["rtadvctl", "show"], check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "rtadvctl: connect: /var/run/rtadvd.sock: No such file or directory\n",
    )


@one_release
def test_what_a_killed_one_leaves_is_no_obstacle(net: Internet) -> None:
    pid = start(net.client, "em1")
    os.kill(pid, signal.SIGUSR1)
    wait_until("its end", lambda: not daemons(net.client))
    assert present(net.client) == ["rtadvd.pid", "rtadvd.sock"]
    refused = net.client.run(["rtadvctl", "show"], check=False).stderr
    assert refused == "rtadvctl: connect: /var/run/rtadvd.sock: Connection refused\n"
    net.client.run(["rtadvd", "em1"])
    wait_until("another pid", lambda: net.client.read("/var/run/rtadvd.pid") not in ("", str(pid)))
    assert "em1: flags" in sh(net.client, "rtadvctl show")


@one_release
def test_another_one_may_start_while_the_first_says_farewell(net: Internet) -> None:
    first = start(net.client, "em1")
    wait_until("an address", lambda: NET in addresses(net.lan))
    with net.lan.capture("eth0", f"{ADVERTISED} and ip6[46:2] = 0") as farewells:
        os.kill(first, signal.SIGTERM)
        wait_until("no files", lambda: not present(net.client))
        second = start(net.client, "em1")
        farewells.wait(3)
    wait_until("the end of the first", lambda: daemons(net.client) == [second])
    assert present(net.client) == ["rtadvd.pid", "rtadvd.sock"]
    assert "em1: flags" in sh(net.client, "rtadvctl show")


@one_release
def test_rtadvctl(net: Internet) -> None:
    def ask(*words: str) -> tuple[int, str, str]:
        done = net.client.run(["rtadvctl", *words], check=False)
        return done.returncode, re.sub(r"\n\t.*", "", done.stdout), done.stderr

    verbs = "show\nreload\nshutdown\nenable\ndisable\n"
    em1 = "em1: flags=<UP,TRANSITIVE,PERSIST> status=<RA_SEND> mtu 1500\n"
    start(net.client, "em1")
    assert ask() == ask("foo") == (1, verbs, "")
    assert ask("-C", "/var/run/x", "show") == (1, verbs, "rtadvctl: illegal option -- C\n")
    assert ask("show") == ask("show", "em1") == (0, em1, "")
    assert ask("show", "em7") == (1, "", "show failed: invalid interface em7.\n")
    assert ask("enable", "em0") == ask("disable", "em1") == ask("disable", "em7") == (0, "", "")
    assert ask("show") == (0, em1.replace("em1", "em0"), "")
    assert ask("reload") == ask("shutdown") == (0, "", "")
    wait_until("its end", lambda: not daemons(net.client))
    assert present(net.client) == []


# --- rtsol ----------------------------------------------------------------------------------


@pytest.fixture
def tunnel(net: Internet) -> Internet:
    """A gif between client and server; the server advertises a prefix on it."""
    sh(
        net.server,
        f"""ifconfig gif0 create tunnel {SERVER4} {CLIENT4}
        ifconfig gif0 inet6 {OTHER}::1/64""",
    )
    sh(
        net.client,
        f"""sysctl net.inet6.ip6.forwarding=0
        ifconfig gif0 create tunnel {CLIENT4} {SERVER4}
        ifconfig gif0 inet6 -ifdisabled accept_rtadv up""",
    )
    return net


@pytest.mark.parametrize("forwarding", [0, 1])
def test_rtsol_gets_an_address_and_a_router_if_the_host_does_not_forward(
    tunnel: Internet, forwarding: int
) -> None:
    sh(tunnel.client, f"sysctl net.inet6.ip6.forwarding={forwarding}")
    start(tunnel.server, "gif0")
    done = tunnel.client.run(["rtsol", "gif0"], timeout=5)
    assert (done.stdout, done.stderr) == ("", "")
    assert re.search(rf"inet6 {OTHER}:\S+ .*autoconf", sh(tunnel.client, "ifconfig gif0"))
    found = sh(tunnel.client, "netstat -rn -f inet6")
    routed = bool(re.search(r"^default +fe80::\S+%gif0 +UG +gif0$", found, re.M))
    assert routed == (not forwarding), found
    assert ping(tunnel.client, FAR6) == (not forwarding)


def test_rtsol_waits_in_silence_and_says_that_all_is_well(tunnel: Internet) -> None:
    sh(tunnel.client, "echo 1 >/run/freebsd/rtsol-seconds")
    with tunnel.server.capture("gif0", "icmp6 and ip6[40] == 133") as capture:
        begin = time.monotonic()
        done = tunnel.client.run(["rtsol", "gif0"])
        assert time.monotonic() - begin > 1
        assert len(capture.wait(3)) == 3
    assert (done.stdout, done.stderr) == ("", "")
    assert "default" not in sh(tunnel.client, "netstat -rn -f inet6")


@one_release
def test_who_waits_keeps_no_other_command_waiting(tunnel: Internet) -> None:
    with tunnel.server.capture("gif0", "icmp6 and ip6[40] == 133") as capture:
        waiting = tunnel.client.popen(["rtsol", "gif0"])
        capture.wait(1)
    sh(tunnel.client, "ifconfig gif0; sysctl net.inet6.ip6.forwarding")
    assert waiting.poll() is None
