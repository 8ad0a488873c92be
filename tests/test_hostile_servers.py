"""The client and servers that are down, silent, something else, or up to no good.

Whatever such a server does, the user gets one line that says what is wrong, the exit status says
whether to try again, and the host stays as it was.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from lab.internet import CLIENT4, SERVER4, SERVER_NAME, Internet
from lab.machine import machine
from lab.snapshot import Snapshot, difference
from tests.running import PREFIX, Program, login, serve, set_users, wait_until

pytestmark = pytest.mark.lab

USER, PASSWORD = "itojun", "correct horse"
GREETING = f"+OK {'0' * 32} hostile\r\n"
PAIR = f"{CLIENT4} {SERVER4}"
FAILED, TRY_AGAIN, NOT_ALLOWED = 1, 75, 77

Scene = list[list[Any]]


class Case(NamedTuple):
    """What a server does, and what the user gets for it."""

    scene: Scene
    status: int
    why: str  # behind the name of the server
    tunnel_type: str = "host"


def say(text: str, status: int, why: str) -> Case:
    return Case([["say", text], ["silent"]], status, why)


def answer(reply: str, status: int, why: str) -> Case:
    return Case([["say", GREETING], ["hear"], ["say", reply], ["silent"]], status, why)


def grant(words: str, why: str, tunnel_type: str = "host") -> Case:
    scene = [["say", GREETING], ["hear"], ["say", f"+OK {words}\r\n"], ["silent"]]
    return Case(scene, FAILED, f"the server's grant makes no sense: {why}", tunnel_type)


NO_DTCP = "this is no DTCP server; it looks like {}"
CLOSED, RESET = "the server closed the connection", "Connection reset by peer"

# Before the login: none of these gets a digest.
STRANGERS = {
    "SSH": say("SSH-2.0-OpenSSH_9.9\r\n", FAILED, NO_DTCP.format("an SSH server")),
    "HTTP": say("HTTP/1.1 408 Timeout\r\n\r\n", FAILED, NO_DTCP.format("a web server")),
    "TLS": say("\x15\x03\x01\x00\x02\x02\x46", FAILED, NO_DTCP.format("a TLS server")),
    "SMTP": say("220 mx ESMTP\r\n", FAILED, NO_DTCP.format("a mail or FTP server")),
    "binary": say("\0\0\0\x0c", FAILED, "this is no DTCP server"),
    "busy": say("-ERR busy\r\n", TRY_AGAIN, "the server refuses: busy"),
    "busy, with escapes": say(
        "-ERR \x1b[2J\x1b]0;x\x07no\x85\r\n",
        TRY_AGAIN,
        "the server refuses: \\x1b[2J\\x1b]0;x\\x07no\\x85",
    ),
    "busy, at length": say(
        f"-ERR {'x' * 500}\r\n", TRY_AGAIN, f"the server refuses: {'x' * 200}..."
    ),
    "no challenge": say("+OK hello\r\n", FAILED, 'no challenge in the greeting: "hello"'),
    "a challenge of its own": say(
        f"+OK {'<1896.697170952@dbc.mtview.ca.us>'} hello\r\n",
        FAILED,
        'no challenge in the greeting: "<1896.697170952@dbc.mtview.ca.us> hello"',
    ),
    "an endless line": say(f"+OK {'0' * 100_000}", FAILED, "a line of more than 512 bytes"),
    "NUL": say("+OK \0\r\n", FAILED, "a carriage return or NUL inside a line"),
    "an answer before the question": say(
        f"{GREETING}+OK {PAIR}\r\n", FAILED, "unexpected data before the login"
    ),
    "closed at once": Case([["end"]], TRY_AGAIN, CLOSED),
    "closed in the greeting": Case([["say", "+OK 00"], ["end"]], TRY_AGAIN, CLOSED),
    "reset in the greeting": Case([["say", "+OK 00"], ["reset"]], TRY_AGAIN, RESET),
}

# In answer to the login.
ANSWERS = {
    "refused": answer("-ERR no, thanks\r\n", NOT_ALLOWED, "the server refuses: no, thanks"),
    "refused in several lines": answer(
        "-ERR one\ndtcpc: two\r\n-ERR three\n", NOT_ALLOWED, "the server refuses: one"
    ),
    "refused with escapes": answer(
        "-ERR \x1b[31m\tno\x08\xff\n",
        NOT_ALLOWED,
        "the server refuses: \\x1b[31m\\tno\\x08\\xff",
    ),
    "refused for now": answer(
        "-ERR tunnel interface sold out\r\n",
        TRY_AGAIN,
        "the server refuses: tunnel interface sold out",
    ),
    "neither": answer("maybe \x1b[m\r\n", FAILED, 'neither +OK nor -ERR: "maybe \\x1b[m"'),
    "more than one": answer(
        f"+OK {PAIR}\r\n+OK {PAIR}\r\n", FAILED, "unexpected data behind the reply to the login"
    ),
    "closed": Case([["say", GREETING], ["hear"], ["end"]], TRY_AGAIN, CLOSED),
    "reset": Case([["say", GREETING], ["hear"], ["reset"]], TRY_AGAIN, RESET),
}

# Numbered as the faults are: 7 too little or too much, 8 no addresses, 9 the other end, 10 the
# inner pair, 11 the prefix.
GRANTS = {
    "7 nothing": grant("", "the reply lacks the two IPv4 addresses"),
    "7 no pair": grant(PAIR, "no inner addresses, though type host was asked for"),
    "7 two pairs": grant(
        f"{PAIR} {PREFIX}6 {PREFIX}5 {PREFIX}a {PREFIX}9", "more than one pair of inner addresses"
    ),
    "8 a name": grant(f"{CLIENT4} relay.example.org", "'relay.example.org' is no IPv4 address"),
    "8 leading zeros": grant(f"{CLIENT4} 192.0.2.001", "'192.0.2.001' is no IPv4 address"),
    "8 command": grant(
        f"{CLIENT4} $(>/run/owned)", "'$(>/run/owned)' is no IPv4 address", "tunnelonly"
    ),
    "8 second command": grant(
        f"{PAIR} {PREFIX}6;>/run/owned {PREFIX}5",
        f"'{PREFIX}6;>/run/owned' stands where an address is due",
    ),
    "8 option": grant(f"{PAIR} -alias", "'-alias' stands where an address is due"),
    "8 interface": grant(f"{PAIR} {PREFIX}6 gif0", "'gif0' stands where an address is due"),
    "8 zone": grant(f"{PAIR} fe80::1%em0", "'fe80::1%em0' stands where an address is due"),
    "8 escapes": grant(f"{PAIR} \x1b[2J", "'\\x1b[2J' stands where an address is due"),
    **{
        f"9 {what}": grant(
            f"{CLIENT4} {address}", f"{address} cannot be the other end of a tunnel", "tunnelonly"
        )
        for what, address in (
            ("nowhere", "0.0.0.0"),
            ("loopback", "127.0.0.1"),
            ("many", "224.0.0.1"),
            ("everybody", "255.255.255.255"),
            ("ourselves", CLIENT4),
        )
    },
    "10 unspecified": grant(f"{PAIR} :: {PREFIX}5", ":: cannot be an address of a tunnel"),
    "10 loopback": grant(f"{PAIR} {PREFIX}6 ::1", "::1 cannot be an address of a tunnel"),
    "10 many": grant(f"{PAIR} ff02::1 {PREFIX}5", "ff02::1 cannot be an address of a tunnel"),
    "10 link-local": grant(f"{PAIR} fe80::6 fe80::5", "fe80::6 cannot be an address of a tunnel"),
    "10 twice the same": grant(
        f"{PAIR} {PREFIX}6 {PREFIX}6", f"both inner addresses are {PREFIX}6"
    ),
    "11 everything": grant(
        f"{PAIR} ::/0", "::/0 cannot be delegated: its length is not 16 to 64", "network"
    ),
    "11 too short": grant(
        f"{PAIR} 2000::/15", "2000::/15 cannot be delegated: its length is not 16 to 64", "network"
    ),
    "11 too long": grant(
        f"{PAIR} 2001:db8::/65",
        "2001:db8::/65 cannot be delegated: its length is not 16 to 64",
        "network",
    ),
    "11 link-local": grant(
        f"{PAIR} fe80::/64", "fe80::/64 cannot be delegated: it is not global unicast", "network"
    ),
    "61 dozens": grant(
        " ".join([PAIR, *(f"2001:db8:{number}::/48" for number in range(9))]),
        "more than 8 delegated prefixes",
        "network",
    ),
    "11 many": grant(
        f"{PAIR} ff00::/16", "ff00::/16 cannot be delegated: it is not global unicast", "network"
    ),
}

SILENT = {
    "no greeting": Case(
        [["silent"]], TRY_AGAIN, "no answer: the greeting did not come within 30 s"
    ),
    "half a greeting": Case(
        [["say", "+OK 00"], ["silent"]],
        TRY_AGAIN,
        "no answer: the greeting did not come within 30 s",
    ),
    "a byte each second": Case(
        [["drip", GREETING, 1], ["silent"]],
        TRY_AGAIN,
        "no answer: the greeting did not come within 30 s",
    ),
    "no reply": Case(
        [["say", GREETING], ["silent"]],
        TRY_AGAIN,
        "no answer: the reply to the login did not come within 30 s",
    ),
    "half a reply": Case(
        [["say", GREETING], ["hear"], ["say", "+OK 203"], ["silent"]],
        TRY_AGAIN,
        "no answer: the reply to the login did not come within 30 s",
    ),
}

CASES = [*STRANGERS.values(), *ANSWERS.values(), *GRANTS.values(), *SILENT.values()]
CLOSED_PORT, BLACK_HOLE, REJECTED = 20200, 20201, 20202


def port_of(case: Case) -> int:
    return 20301 + CASES.index(case)


class Lab(NamedTuple):
    """An internet whose server plays every scene, each on its own port."""

    net: Internet
    server: Program
    before: Snapshot  # of the client
    slow: dict[int, Program]  # clients that wait for what will not come, by port
    began: float

    def client(self, port: int, tunnel_type: str = "host", server: str = SERVER_NAME) -> Program:
        # Each has a pid file of its own: some run at the same time.
        options = ("-u", USER, "-t", tunnel_type, "-p", str(port), "-f", f"/run/{port}.pid")
        return Program(self.net.client, "dtcpc", *options, server)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The clients that need half a minute to give up begin at once, beside the others."""
    scenes = {port_of(case): case.scene for case in CASES}
    scenes |= {port: [["say", GREETING], ["silent"]] for port in (BLACK_HOLE, REJECTED)}
    with Internet() as net:
        auth = f"{SERVER_NAME}:{USER}:{PASSWORD}\nnowhere.example.org:{USER}:{PASSWORD}\n"
        net.client.write("/usr/local/etc/dtcpc.auth", auth)
        net.router.run(machine.refuse("tcp", BLACK_HOLE, ""))
        net.router.run(machine.refuse("tcp", REJECTED, "reset"))
        with ExitStack() as stack:
            words = ("tests/servers", "hostile", json.dumps(scenes))
            server = stack.enter_context(Program(net.server, *words))
            server.wait_for("^ready$")
            lab = Lab(net, server, net.client.snapshot(), {}, time.monotonic())
            for case in SILENT.values():
                port = port_of(case)
                lab.slow[port] = stack.enter_context(lab.client(port, case.tunnel_type))
            lab.slow[BLACK_HOLE] = stack.enter_context(lab.client(BLACK_HOLE))
            yield lab


def gives(program: Program, port: int, status: int, why: str, limit: float = 15) -> None:
    """The client ends with this status, and one line beside the one that it tries."""
    assert (program.status(limit), program.lines) == (
        status,
        [
            f"dtcpc: logging in to {SERVER_NAME} ({SERVER4}) port {port} as {USER}",
            f"dtcpc: {SERVER_NAME} ({SERVER4}) port {port}: {why}",
        ],
    )


def heard(lab: Lab, port: int) -> list[str]:
    """What the server heard from the client, once that is gone."""
    lab.server.wait_for(f"^{port} end$")
    return [line for line in lab.server.lines if line.startswith(f"{port} heard")]


@pytest.mark.hazard(1, 2, 3, 4, 6, 13, 15, "C1", "K1")
@pytest.mark.parametrize("case", STRANGERS.values(), ids=STRANGERS)
def test_who_does_not_greet_as_a_dtcp_server_gets_no_digest(lab: Lab, case: Case) -> None:
    port = port_of(case)
    with lab.client(port, case.tunnel_type) as program:
        gives(program, port, case.status, case.why)
    assert heard(lab, port) == []


@pytest.mark.hazard(6, 13, "K6")
@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS)
def test_a_strange_answer_to_the_login_is_told_in_one_line(lab: Lab, case: Case) -> None:
    port = port_of(case)
    with lab.client(port, case.tunnel_type) as program:
        gives(program, port, case.status, case.why)


@pytest.mark.hazard(7, 8, 9, 10, 11)
@pytest.mark.parametrize("case", GRANTS.values(), ids=GRANTS)
def test_a_grant_that_makes_no_sense_is_refused_whole(lab: Lab, case: Case) -> None:
    port = port_of(case)
    with lab.client(port, case.tunnel_type) as program:
        gives(program, port, case.status, case.why)


def test_a_server_that_is_down(lab: Lab) -> None:
    with lab.client(CLOSED_PORT) as program:
        gives(program, CLOSED_PORT, TRY_AGAIN, "Connection refused")


def test_a_connection_that_is_reset_as_soon_as_it_stands(lab: Lab) -> None:
    with lab.client(REJECTED) as program:
        gives(program, REJECTED, TRY_AGAIN, RESET)


def test_a_server_that_nobody_knows(lab: Lab) -> None:
    with lab.client(CLOSED_PORT, server="nowhere.example.org") as program:
        assert program.status() == FAILED
    (line,) = program.lines
    assert re.fullmatch(r"dtcpc: nowhere\.example\.org: [A-Z][a-z ]+", line)


def test_no_answer_to_the_connection(lab: Lab) -> None:
    why = "Connection timed out; does a packet filter on the way drop it?"
    gives(lab.slow[BLACK_HOLE], BLACK_HOLE, TRY_AGAIN, why, 20)


@pytest.mark.hazard(5, "K7")
@pytest.mark.parametrize("case", SILENT.values(), ids=SILENT)
def test_a_server_that_falls_silent_costs_half_a_minute(lab: Lab, case: Case) -> None:
    port = port_of(case)
    left = max(1.0, lab.began + 60 - time.monotonic())
    gives(lab.slow[port], port, case.status, case.why, left)


def test_none_of_all_these_has_changed_the_host(lab: Lab) -> None:
    is_as_it_was(lab)


def is_as_it_was(lab: Lab) -> None:
    """Once the slow ones have ended, too."""
    for program in lab.slow.values():
        program.status(max(1.0, lab.began + 60 - time.monotonic()))
    assert difference(lab.before, lab.net.client.snapshot()) == []


# --- where a tunnel comes up, or could --------------------------------------------------------


@pytest.mark.hazard(17, "K4")
@pytest.mark.parametrize("end", ["end", "reset"])
def test_a_server_that_leaves_at_once_takes_the_tunnel_with_it(net: Internet, end: str) -> None:
    scene = [["say", GREETING], ["hear"], ["say", f"+OK {PAIR} {PREFIX}6 {PREFIX}5\r\n"], [end]]
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER_NAME}:{USER}:{PASSWORD}\n")
    before = net.client.snapshot()
    words = ("-u", USER, "-t", "host", SERVER_NAME)
    with Program(net.server, "tests/servers", "hostile", json.dumps({"20200": scene})) as server:
        server.wait_for("^ready$")
        with Program(net.client, "dtcpc", *words) as program:
            assert program.status() == TRY_AGAIN
    why = CLOSED if end == "end" else RESET
    assert [line for line in program.lines if "lost" in line] == [f"dtcpc: lost: {why}"]
    assert program.lines[-1] == "dtcpc: down"
    assert difference(before, net.client.snapshot()) == []


# What the client reaches by its interface and by a route of its administrator's.
LINK, ROUTED = "2001:db8:5:1::/64", "2001:db9::/32"
GATEWAY4 = "203.0.113.1"
TAKEN = {
    "a prefix": ("network", f"{PAIR} 2001:db9:7::/48", f"2001:db9:7::/48 lies in {ROUTED}"),
    "an inner address": (
        "host",
        f"{PAIR} 2001:db8:5:1::6 {PREFIX}5",
        f"2001:db8:5:1::6 lies in {LINK}",
    ),
    "a neighbour": (
        "host",
        f"{PAIR} {PREFIX}6 2001:db8:5:1::9",
        f"2001:db8:5:1::9 lies in {LINK}",
    ),
    "the gateway": (
        "tunnelonly",
        f"{CLIENT4} {GATEWAY4}",
        f"{GATEWAY4} lies in 203.0.113.0/24",
    ),
}


@pytest.mark.hazard(61)
def test_what_the_host_reaches_is_not_taken_from_it(net: Internet) -> None:
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER_NAME}:{USER}:{PASSWORD}\n")
    net.client.run(["ifconfig", "em0", "inet6", "2001:db8:5:1::7", "prefixlen", "64"])
    net.client.run(["route", "-n", "add", "-inet6", ROUTED, "2001:db8:5:1::1"])
    before = net.client.snapshot()
    # Around a network of ours a prefix may be: it is reached as before.
    cases = {"around": ("network", f"{PAIR} 2001:db8:5::/48", ""), **TAKEN}
    scenes = {
        20301 + number: [["say", GREETING], ["hear"], ["say", f"+OK {words}\r\n"], ["silent"]]
        for number, (_, words, _) in enumerate(cases.values())
    }
    with Program(net.server, "tests/servers", "hostile", json.dumps(scenes)) as server:
        server.wait_for("^ready$")
        for port, (tunnel_type, _, why) in zip(scenes, cases.values(), strict=True):
            options = ("-u", USER, "-t", tunnel_type, "-p", str(port))
            with Program(net.client, "dtcpc", *options, SERVER_NAME) as program:
                if why:
                    assert program.status() == FAILED
                    assert program.lines[-1] == (
                        f"dtcpc: {SERVER_NAME}: the server's grant makes no sense: {why},"
                        " which this host reaches without the tunnel"
                    )
                else:
                    program.wait_for("up after")
                    words = ["route", "-n", "get", "-inet6", "2001:db8:5:1::9"]
                    assert "interface: em0" in net.client.run(words).stdout
                    assert program.end() == 0
            assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(61)
@pytest.mark.parametrize("first", ["2001:db8:3c3::/48", "2001::/16"])
def test_nor_at_a_second_login(net: Internet, first: str) -> None:
    """Nor where the first grant was around it."""
    with ExitStack() as stack:
        stack.enter_context(serve(net))
        set_users(net.server, "", f"itojun {first}\n")
        client = stack.enter_context(login(net.client, "-l", "-t", "network"))
        client.wait_for("up after")
        net.client.run(["ifconfig", "em0", "inet6", "2001:db8:5:1::7", "prefixlen", "64"])
        net.client.run(["route", "-n", "add", "-inet6", ROUTED, "2001:db8:5:1::1"])
        before = net.client.snapshot()
        set_users(net.server, "", "itojun 2001:db9:7::/48\n")
        client.send(signal.SIGHUP)
        client.wait_for(f"makes no sense: 2001:db9:7::/48 lies in {ROUTED}")
        for looks in ("ifconfig -a", "netstat -rn"):
            assert net.client.snapshot()[looks] == before[looks]
        assert client.end() == 0


# What -P wants of a prefix around a network of ours, or of that network, and the address it makes.
ON_THE_LAN = {
    "around": ("em1/1/::1", "2001:db8:5::/48"),
    "the same": ("em1/0/::1", "2001:db8:5:1::/64"),
    "an address": ("em1/1/::1/128", "2001:db8:5::/48"),
}


@pytest.mark.hazard(61)
def test_nor_by_an_address_of_the_lan(release: str, enclosed: None) -> None:
    with Internet(release, lan=True) as net, serve(net):
        net.client.run(["ifconfig", "em0", "inet6", "2001:db8:5:1::7", "prefixlen", "64"])
        before = net.client.snapshot()
        for delegation, prefix in ON_THE_LAN.values():
            set_users(net.server, "", f"itojun {prefix}\n")
            with login(net.client, "-t", "network", "-P", delegation) as client:
                assert client.status() == FAILED
                assert client.lines[-1].endswith(
                    "the server's grant makes no sense: 2001:db8:5:1::1 lies in"
                    " 2001:db8:5:1::/64, which this host reaches without the tunnel"
                )
            assert difference(before, net.client.snapshot()) == []
        # To the interface that is connected to it it takes nothing, and it comes back as it was.
        with login(net.client, "-l", "-t", "network", "-P", "em0/1/::1") as client:
            client.wait_for("up after")
            client.send(signal.SIGHUP)
            wait_until("again", lambda: sum("up after" in line for line in client.lines) == 2)
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


# Words that a shell, or a command, would take for something else.
EXTRA = "$(>/run/owned) ;>/run/owned `>/run/owned` -alias gif0 fe80::1%em0 \x1b[2J destroy"


@pytest.mark.smoke
@pytest.mark.hazard(8, "K2")
def test_no_word_of_the_server_reaches_a_command(net: Internet) -> None:
    words = f"+OK {PAIR} {PREFIX}0006 {PREFIX}0005 {EXTRA}\r\n"
    scene = [["say", GREETING], ["hear"], ["say", words], ["silent"]]
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER_NAME}:{USER}:{PASSWORD}\n")
    before = net.client.snapshot()
    with Program(net.server, "tests/servers", "hostile", json.dumps({"20200": scene})) as server:
        server.wait_for("^ready$")
        with Program(net.client, "dtcpc", "-d", "-u", USER, "-t", "host", SERVER_NAME) as program:
            program.wait_for("up after")
            assert program.end() == 0
    commands = "\n".join(line for line in program.lines if line.startswith("dtcpc: # "))
    assert f"ifconfig gif0 inet6 {PREFIX}6 {PREFIX}5 prefixlen 128 alias" in commands
    for word in ("owned", "em0", "\x1b", "`", ";", "0006"):
        assert word not in commands
    ignored = [line for line in program.lines if line.startswith("dtcpc: ignored: ")]
    assert ignored == [f"dtcpc: ignored: {word!a}" for word in EXTRA.split(" ")]
    assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(14)
def test_a_nat_is_told_and_the_server_gets_a_goodbye(lab: Lab) -> None:
    scene = [["say", GREETING], ["hear"], ["say", f"+OK 198.51.100.9 {SERVER4}\r\n"], ["silent"]]
    scenes = json.dumps({"20999": scene})
    with Program(lab.net.server, "tests/servers", "hostile", scenes) as server:
        server.wait_for("^ready$")
        with lab.client(20999, "tunnelonly") as program:
            assert program.status() == NOT_ALLOWED
        server.wait_for(r"^20999 heard 'quit\\r\\n'$")
    assert program.lines[1:] == [
        f"dtcpc: our address is {CLIENT4}, but the server sees 198.51.100.9: there is a NAT"
        " between; use -U -n (-n alone, if it passes protocol 41)"
    ]
    is_as_it_was(lab)
