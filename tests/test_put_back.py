"""What somebody takes from a tunnel that is up is noticed, put back, and named in one line."""

from __future__ import annotations

import re
import signal

import pytest

from lab.internet import Internet
from lab.snapshot import difference
from tests.running import Program, login, ping, serve, wait_until

pytestmark = pytest.mark.lab

# What `service netif restart` and others do to a tunnel of type host; the commands.
LOSSES = {
    "down": ("ifconfig gif0 down",),
    "inner address": ("ifconfig gif0 inet6 2001:db8:1::6 -alias",),
    "outer pair": ("ifconfig gif0 deletetunnel",),
    "another pair": ("ifconfig gif0 tunnel 203.0.113.7 192.0.2.99",),
    "default route": ("route -n delete -inet6 default",),
    "MTU": ("ifconfig gif0 mtu 1400",),
    "IPv6": ("ifconfig gif0 inet6 ifdisabled",),
    "group": ("ifconfig gif0 -group dtcp",),
    "three at once": (
        "ifconfig gif0 down",
        "ifconfig gif0 inet6 2001:db8:1::6 -alias",
        "route -n delete -inet6 default",
    ),
}


def take(net: Internet, commands: tuple[str, ...]) -> None:
    for command in commands:
        net.client.run(command.split())


def differs(whole: dict[str, list[str]], net: Internet) -> list[str]:
    """What is not as it was, but for what comes a moment after the tunnel, or has a number."""
    lines = difference(whole, net.client.snapshot())
    return [line for line in lines if not re.search(r"processes:|fe80::|rtadvd|dtcpc\.state", line)]


def put_back(client: Program, since: int) -> str:
    """The line that says what was missing."""
    wait_until("put back", lambda: any("put back" in line for line in client.lines[since:]))
    (line,) = [line for line in client.lines[since:] if "put back" in line]
    return line


@pytest.mark.hazard(48)
@pytest.mark.turns(3)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_lost_is_put_back(net: Internet, loss: str) -> None:
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "host") as client:
            client.wait_for("route -n monitor")
            whole, seen = net.client.snapshot(), len(client.lines)
            # It sees all of it at once, and not one half before the other is taken.
            client.send(signal.SIGSTOP)
            take(net, LOSSES[loss])
            client.send(signal.SIGCONT)
            put_back(client, seen)
            # A look that was under way has seen the first half whole: the rest comes with the next.
            wait_until("whole", lambda: differs(whole, net) == [])
            assert ping(net.client)
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


def rtadvd(net: Internet) -> list[str]:
    return [words for words in net.client.processes().values() if "rtadvd" in words]


LAN = ("-t", "network", "-P", "em1/1/::1")


@pytest.mark.hazard(48)
@pytest.mark.turns(3)
@pytest.mark.parametrize(
    "loss",
    [
        "ifconfig em1 inet6 2001:db8:3c3:1::1 -alias",
        "route -n delete -inet6 2001:db8:3c3::/48 ::1",
        "pkill -F /var/run/dtcpc.rtadvd.pid",
    ],
)
def test_what_the_lan_has_lost_is_put_back(
    request: pytest.FixtureRequest, release: str, enclosed: None, loss: str
) -> None:
    with Internet(release, lan=True) as net, serve(net):
        net.client.run(["sysctl", "net.inet6.ip6.forwarding=1"])
        before = net.client.snapshot()
        with login(net.client, *LAN) as client:
            client.wait_for("route -n monitor")
            whole, seen = net.client.snapshot(), len(client.lines)
            if loss.startswith("pkill"):
                pid = net.client.read("/var/run/dtcpc.rtadvd.pid").strip()
                net.client.run(["kill", "-KILL", pid])
                net.client.run(["ifconfig", "em1", "inet6", "2001:db8:ffff::1/64", "alias"])
                net.client.run(["ifconfig", "em1", "inet6", "2001:db8:ffff::1", "-alias"])
            else:
                take(net, (loss,))
            put_back(client, seen)
            if loss.startswith("pkill"):
                wait_until("it runs", lambda: net.client.read("/var/run/dtcpc.rtadvd.pid"))
            assert differs(whole, net) == []
            assert client.end() == 0
        wait_until("rtadvd has said farewell", lambda: not rtadvd(net))
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(48)
def test_a_lan_interface_that_goes_does_not_take_the_tunnel_along(
    release: str, enclosed: None
) -> None:
    with Internet(release, lan=True) as net, serve(net):
        net.client.run(["sysctl", "net.inet6.ip6.forwarding=1"])
        net.client.run(["ifconfig", "em1", "name", "lan0"])
        with login(net.client, "-t", "network", "-P", "lan0/1/::1", "-A", "2001:db8:3c3::1") as up:
            up.wait_for("route -n monitor")
            net.client.run(["ifconfig", "lan0", "name", "em1"])
            up.wait_for("cannot be put back: ifconfig lan0.*does not exist")
            assert ping(net.client)
            net.client.run(["ifconfig", "em1", "name", "lan0"])
            assert up.end() == 0


@pytest.mark.hazard(49)
@pytest.mark.turns(3)
@pytest.mark.parametrize("words", [["description", "mine"], ["-description"], ["-group", "dtcp"]])
def test_a_running_process_knows_its_interface_whatever_it_is_called(
    net: Internet, words: list[str]
) -> None:
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "host") as client:
            client.wait_for("route -n monitor")
            net.client.run(["ifconfig", "gif0", *words])
            assert ping(net.client)
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(49)
def test_so_it_does_one_that_was_there_before(net: Internet) -> None:
    """-c: what the interface had is restored, though it is in our group no more."""
    with serve(net):
        net.client.run(["ifconfig", "gif0", "create", "mtu", "1300"])
        before = net.client.snapshot()
        with login(net.client, "-c", "-t", "host") as client:
            client.wait_for("route -n monitor")
            net.client.run(["ifconfig", "gif0", "-group", "dtcp"])
            assert ping(net.client)
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(48)
def test_a_login_looks_as_well(net: Internet) -> None:
    """What was lost while nobody watched: SIGHUP puts it back."""
    with serve(net), login(net.client, "-t", "host") as client:
        client.wait_for("route -n monitor")
        seen = len(client.lines)
        monitors: list[int] = []

        def runs() -> bool:  # some time after the line that says so
            # By its number: other tests have theirs beside us.
            found = net.client.processes().items()
            monitors[:] = [pid for pid, words in found if "route -n monitor" in words]
            return bool(monitors)

        wait_until("the monitor", runs)
        for pid in monitors:
            net.client.run(["kill", "-KILL", str(pid)])
        take(net, LOSSES["down"])
        client.send(signal.SIGHUP)
        put_back(client, seen)
        assert ping(net.client)
        assert client.end() == 0


@pytest.mark.hazard(48)
def test_what_cannot_be_put_back_counts_as_lost(net: Internet) -> None:
    """Somebody else has a default route by now: it stays, and the tunnel is made beside it."""
    with serve(net):
        net.client.run(["ifconfig", "em0", "inet6", "2001:db8:f::7", "prefixlen", "64", "alias"])
        with login(net.client, "-l", "-t", "host") as client:
            client.wait_for("route -n monitor")
            seen = len(client.lines)
            client.send(signal.SIGSTOP)  # or it might be the quicker one
            take(net, ("route -n delete -inet6 default",))
            take(net, ("route -n add -inet6 default 2001:db8:f::1",))
            client.send(signal.SIGCONT)
            wait_until(
                "again", lambda: any("routes: ::/1, 8000::/1" in x for x in client.lines[seen:])
            )
            assert ping(net.client)
            assert client.end() == 0
        assert "2001:db8:f::1" in net.client.run(["netstat", "-rn", "-f", "inet6"]).stdout
