"""The server sees what it has: a tunnel that is not whole is made whole, and its client stays."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable

import pytest

from lab.internet import Internet
from lab.snapshot import Snapshot, difference
from tests.running import (
    PREFIX,
    Program,
    Talker,
    login,
    ping,
    serve,
    wait_until,
)

pytestmark = pytest.mark.lab

ROUTE = "route -n delete -inet6 2001:db8:3c3::/48 -interface gif0"
INSIDE = ("-t", "network", "-A", "2001:db8:3c3::1/128")
FROM_FAR = "2001:db8:3c3::1"

# What somebody does to the server's end of a tunnel of that type, and what is then said of it.
LOSSES = {
    "down": ("host", "ifconfig gif0 down", "put back.*UP"),
    "outer pair": ("host", "ifconfig gif0 deletetunnel", "put back.*(RUNNING|tunnel inet)"),
    "another pair": ("host", "ifconfig gif0 tunnel 192.0.2.1 203.0.113.99", "put back.*tunnel"),
    "inner address": ("host", "ifconfig gif0 inet6 2001:db8:1::5 -alias", "put back.*2001:db8:1::"),
    "IPv6": ("host", "ifconfig gif0 inet6 ifdisabled", "put back.*IFDISABLED"),
    "route": ("network", ROUTE, "put back.*(2001:db8:3c3::|not in table)"),
    "interface": ("host", "ifconfig gif0 destroy", "gif0.* making it anew"),
    "interface and route": ("network", "ifconfig gif0 destroy", "gif0.* making it anew"),
}


def up(net: Internet, kind: str, *words: str) -> Program:
    """A client whose packets pass; of type network it has an address to ping."""
    inside = ["-A", f"{FROM_FAR}/128"] if kind == "network" else []
    client = login(net.client, "-t", kind, *inside, *words)
    client.wait_for("packets pass", 40)  # over UDP a socket may have to be connected again
    client.wait_for("route -n monitor")
    return client


def passes(net: Internet, kind: str) -> bool:
    return ping(net.far, FROM_FAR if kind == "network" else "2001:db8:1::6")


def do(net: Internet, command: str) -> None:
    net.server.run(command.split())


def looked(server: Program, since: int, what: str) -> None:
    """Have it look, and see that it says so in one line."""
    server.send(signal.SIGHUP)
    wait_until(what, lambda: said(server.lines[since:], what))
    assert len(said(server.lines[since:], "put back|anew|could not|cannot")) == 1


def said(lines: Iterable[str], what: str) -> list[str]:
    return [line for line in lines if re.search(what, line) and "# " not in line]


def is_as_it_was(net: Internet, before: Snapshot, server: Program) -> bool:
    """Whether nothing is left of the tunnel."""
    server.wait_for("itojun: down: the client said quit")
    assert difference(before, net.server.snapshot()) == []
    return server.end() == 0


@pytest.mark.hazard(72)
@pytest.mark.turns(3)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_lost_is_made_whole_and_the_client_stays(net: Internet, loss: str) -> None:
    kind, command, what = LOSSES[loss]
    with serve(net) as server:
        before = net.server.snapshot()
        with up(net, kind) as client:
            heard, seen = len(client.lines), len(server.lines)
            do(net, command)
            looked(server, seen, what)
            wait_until("packets pass again", lambda: passes(net, kind))
            assert said(client.lines[heard:], "lost|up after|logging in|changed|silent") == []
            assert said(server.lines[seen:], "down|logged in") == []
            assert client.end() == 0
        assert is_as_it_was(net, before, server)


@pytest.mark.hazard(72)
def test_it_looks_by_itself_now_and_then(net: Internet) -> None:
    hasty = ("server.tunnels.LOOK=2", "dtcps", "-d", PREFIX)
    serve(net).end()
    with Program(net.server, "tests/hasty", *hasty) as server:
        server.wait_for("listening")
        with up(net, "host") as client:
            for _ in range(2):
                seen = len(server.lines)
                do(net, "ifconfig gif0 down")
                wait_until("put back", lambda: said(server.lines[seen:], "put back"))  # noqa: B023
                assert passes(net, "host")
            assert client.end() == 0


@pytest.mark.hazard(72)
@pytest.mark.parametrize("loss", ["down", "route", "interface"])
def test_what_is_handed_over_is_looked_at(net: Internet, loss: str) -> None:
    """The client was restarted, and its tunnel is whole when it has its answer."""
    kind, command, what = LOSSES[loss]
    with serve(net) as server, Talker(net, "itojun", "secret", kind) as old:
        assert old.answer.startswith("+OK")
        seen = len(server.lines)
        do(net, command)
        with Talker(net, "itojun", "secret", kind) as new:
            assert new.answer == old.answer
            wait_until(what, lambda: said(server.lines[seen:], what))
            assert said(server.lines[seen:], "as it was") == []
            with up(net, kind) as client:
                assert passes(net, kind)
                server.wait_for("as it was")
                assert client.end() == 0


@pytest.mark.hazard(72)
@pytest.mark.turns(3)
@pytest.mark.parametrize("loss", ["down", "route", "interface"])
def test_what_a_server_before_has_left_is_looked_at_when_its_client_comes(
    net: Internet, loss: str
) -> None:
    kind, command, what = LOSSES[loss]
    with serve(net) as server, Talker(net, "itojun", "secret", kind) as talker:
        assert talker.answer.startswith("+OK")
        server.end(signal.SIGUSR2)
    with serve(net) as server:
        server.wait_for("1 tunnels wait for their clients")
        do(net, command)
        with up(net, kind) as client:
            wait_until(what, lambda: said(server.lines, what))
            assert said(server.lines, "as it was") == []
            assert passes(net, kind)
            assert client.end() == 0


@pytest.mark.hazard(72)
@pytest.mark.parametrize("words", [("-c", "-i", "gif3"), ("-o",)])
def test_on_an_interface_that_stays_as_well(net: Internet, words: tuple[str, ...]) -> None:
    name = words[-1] if "-c" in words else "gif0"
    do(net, f"ifconfig {name} create mtu 1280")
    if "-o" in words:
        do(net, f"ifconfig {name} group dtcp")
    with serve(net, *words) as server:
        before = net.server.snapshot()
        with up(net, "host") as client:
            seen = len(server.lines)
            do(net, f"ifconfig {name} deletetunnel")
            looked(server, seen, "put back.*(RUNNING|tunnel inet)")
            assert passes(net, "host")
            assert client.end() == 0
        assert is_as_it_was(net, before, server)


@pytest.mark.hazard(66, 72)
@pytest.mark.parametrize(
    "then", ["", "ifconfig gif0 create; ifconfig gif0 tunnel 10.0.0.1 10.0.0.2"]
)
def test_one_that_stays_and_has_gone_or_is_anothers(net: Internet, then: str) -> None:
    """With -o a name is all that is known of a bare interface: a look comes before its use."""
    do(net, "ifconfig gif0 create mtu 1280")
    do(net, "ifconfig gif0 group dtcp")
    with serve(net, "-o") as server, up(net, "host") as client:
        seen = len(server.lines)
        net.server.run(["sh", "-ec", f"ifconfig gif0 destroy; {then}"])
        theirs = net.server.run(["ifconfig", "gif0"], check=False).stdout
        looked(server, seen, "gif0.* making it anew")
        wait_until("packets pass again", lambda: passes(net, "host"))
        assert client.end() == 0
        server.wait_for("itojun: down")
        with up(net, "host") as again:
            assert again.end() == 0
        if theirs:
            assert net.server.run(["ifconfig", "gif0"]).stdout == theirs


OVER_UDP = {
    "down": ("ifconfig ng0 down", "put back.*UP"),
    "inner address": ("ifconfig ng0 inet6 2001:db8:1::5 -alias", "put back.*2001:db8:1::"),
    "socket": ("ngctl shutdown NODE:inet6", "put back.*getpeername"),
    # A look of its own may be under way, at whatever it sees first that it has gone.
    "interface": ("ngctl shutdown NODE:", "itojun: .* making it anew"),
}


@pytest.mark.hazard(72)
@pytest.mark.turns(3)
@pytest.mark.parametrize("loss", OVER_UDP)
def test_over_udp_as_well(net: Internet, loss: str) -> None:
    command, what = OVER_UDP[loss]
    with serve(net, "-U") as server:
        before = net.server.snapshot()
        with up(net, "host", "-U") as client:
            server.wait_for("itojun: up: ng0")
            heard, seen = len(client.lines), len(server.lines)
            do(net, command.replace("NODE", f"dtcps{server.pid}u4028"))
            looked(server, seen, what)
            # What was refused meanwhile has cost the client's socket its peer: it looks as well.
            wait_until("packets pass again", lambda: passes(net, "host"), 40)
            assert said(client.lines[heard:], "lost:|up after|logging in") == []
            assert client.end() == 0
        assert is_as_it_was(net, before, server)


@pytest.mark.hazard(72)
def test_who_cannot_have_it_back_is_sent_away_and_logs_in_again(net: Internet) -> None:
    with serve(net) as server, up(net, "network", "-l") as client:
        seen = len(server.lines)
        rule = {"command": "route", "match": ["add", "2001:db8:3c3::/48"], "do": "exit1"}
        net.server.write(
            "/run/freebsd/faults", json.dumps([rule | {"nth": n} for n in range(1, 5)])
        )
        do(net, ROUTE)
        server.send(signal.SIGHUP)
        client.wait_for("lost: ")
        server.wait_for("itojun: the tunnel could not be made: route")
        wait_until("it is up", lambda: said(server.lines[seen:], "itojun: up: gif0"), 40)
        wait_until("packets pass", lambda: passes(net, "network"))
        assert client.end() == 0


@pytest.mark.hazard(49)
@pytest.mark.turns(3)
@pytest.mark.parametrize(
    "words",
    [
        "ifconfig gif0 description mine",
        "ifconfig gif0 -description",
        "ifconfig gif0 -group dtcp",
        "ifconfig gif0 description mine -group dtcp",
    ],
)
@pytest.mark.parametrize("is_left", [False, True])
def test_an_interface_stays_ours_whatever_it_is_called(
    net: Internet, words: str, is_left: bool
) -> None:
    """Also one that a server before has left, once it was seen."""
    before = None
    server = serve(net)
    if is_left:
        with Talker(net, "itojun", "secret", "host") as talker:
            assert talker.answer.startswith("+OK")
            server.end(signal.SIGUSR2)
        server = serve(net)
    with server:
        if not is_left:
            before = net.server.snapshot()
        with up(net, "host") as client:
            do(net, words)
            seen = len(server.lines)
            server.send(signal.SIGHUP)
            wait_until("it looks", lambda: any("# ifconfig gif0" in x for x in server.lines[seen:]))
            assert passes(net, "host")
            assert said(server.lines[seen:], "anew") == []
            assert client.end() == 0
        server.wait_for("itojun: down: the client said quit")
        wait_until("it has gone", lambda: "gif0" not in net.server.run(["ifconfig", "-l"]).stdout)
        assert before is None or is_as_it_was(net, before, server)


def test_what_went_to_another_tunnel_is_not_taken_from_it(net: Internet) -> None:
    """An interface of the same name, and perhaps of the same number, that is another user's."""
    net.client.run(["ifconfig", "em0", "inet", "203.0.113.20/32", "alias"])
    with serve(net) as server, up(net, "network") as client:
        do(net, "ifconfig gif0 destroy")
        with Talker(net, "jun", "hidden", "host", "203.0.113.20") as second:
            assert second.answer.startswith("+OK"), "\n".join(server.lines)
            server.wait_for("itojun: .* making it anew")
            server.wait_for("itojun: up: gif1")
            shown = net.server.run(["ifconfig", "gif0"]).stdout
            assert "tunnel inet 192.0.2.1 --> 203.0.113.20" in shown
            wait_until("packets pass", lambda: passes(net, "network"))
            assert said(client.lines, "lost:") == []
            assert client.end() == 0
