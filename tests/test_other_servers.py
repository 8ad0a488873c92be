"""Our client with servers that are not ours: KAME's of 2001, and Feel6's."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from lab.internet import CLIENT4, FAR6, SERVER4, SERVER_NAME, Internet
from lab.snapshot import Snapshot, difference
from tests.running import DELEGATED, PREFIX, TUNNELED, Program, ping

pytestmark = pytest.mark.lab

USER, PASSWORD = "itojun", "correct horse"
AUTH = "/usr/local/etc/dtcpc.auth"
INSIDE = "2001:db8:3c3::1"  # an address of the delegated prefix

KAME = ("kame", "--user", USER, "--password", PASSWORD, "--prefix", PREFIX)
FEEL6 = ("feel6", "--user", USER, "--password", PASSWORD, "--prefix", "2001:0db8:03c3::/48")


def start(net: Internet, server: tuple[str, ...], *commands: str) -> Program:
    """The server, with its end of the tunnel made by `commands`, as they would be typed."""
    for command in commands:
        net.server.run(command.split())
    program = Program(net.server, "tests/servers", *server)
    program.wait_for("^ready$")
    return program


def client(net: Internet, *words: str, user: str = USER, password: str = PASSWORD) -> Program:
    net.client.write(AUTH, f"{SERVER_NAME}:{user}:{password}\n")
    return Program(net.client, "dtcpc", "-u", user, *words, SERVER_NAME)


FAR_END = ("ifconfig gif0 create", f"ifconfig gif0 tunnel {SERVER4} {CLIENT4}")


def carried(net: Internet, address: str) -> bool:
    """Whether a ping is answered, and went through the IPv4 internet as protocol 41."""
    echo = f"{TUNNELED} and ip[26] = 58 and (ip[60] = 128 or ip[60] = 129)"  # behind both headers
    with net.router.capture("eth0", echo) as capture:
        answered = ping(net.client, address)
        packets = capture.wait(2)
    # It asks again when the answer is late.
    ends = [(packet.src, packet.dst) for packet in packets]
    assert ends[0] == (CLIENT4, SERVER4)
    assert {*ends} == {(CLIENT4, SERVER4), (SERVER4, CLIENT4)}
    return answered


def is_logged_in(server: Program, tunnel_type: str) -> None:
    """The login came as those servers want it: four fields, single blanks, capitals, CRLF."""
    server.wait_for(rf"^20200 heard 'tunnel {USER} [0-9A-F]{{32}} {tunnel_type}\\r\\n'$")


def is_taken_down(net: Internet, program: Program, server: Program, before: Snapshot) -> None:
    assert program.end() == 0
    server.wait_for(r"^20200 heard 'quit\\r\\n'$")
    net.client.run(["rm", AUTH])
    assert difference(before, net.client.snapshot()) == []


def test_kame_gives_a_pair_of_addresses(net: Internet) -> None:
    before = net.client.snapshot()
    pair = f"ifconfig gif0 inet6 {PREFIX}5 {PREFIX}6 prefixlen 128 alias"
    with start(net, KAME, *FAR_END, pair) as server, client(net, "-t", "host") as program:
        program.wait_for("up after")
        is_logged_in(server, "host")
        assert f"inet6 {PREFIX}6 --> {PREFIX}5 prefixlen 128" in " ".join(
            net.client.run(["ifconfig", "gif0"]).stdout.split()
        )
        assert carried(net, FAR6)
        passing = program.wait_for(r"packets pass \([0-9]+ ms\)")
        is_taken_down(net, program, server, before)
    assert [line for line in program.lines if "logging in" not in line] == [
        f"dtcpc: gif0: {CLIENT4} --> {SERVER4}, {PREFIX}6 --> {PREFIX}5, mtu 1280",
        "dtcpc: routes: default through gif0",
        program.wait_for("up after"),
        passing,
        "dtcpc: ending as asked",
        "dtcpc: down",
    ]


def test_kame_gives_a_bare_link(net: Internet) -> None:
    before = net.client.snapshot()
    enable = "ifconfig gif0 inet6 -ifdisabled up"
    with start(net, KAME, *FAR_END, enable) as server, client(net) as program:
        program.wait_for("up after")
        is_logged_in(server, "tunnelonly")
        shown = net.server.run(["ifconfig", "gif0"]).stdout
        (link_local,) = [
            word.partition("%")[0] for word in shown.split() if word.startswith("fe80:")
        ]
        assert carried(net, f"{link_local}%gif0")
        is_taken_down(net, program, server, before)


def test_feel6_delegates_a_prefix(net: Internet) -> None:
    before = net.client.snapshot()
    ready = (
        "ifconfig gif0 inet6 -ifdisabled up",
        f"route -n add -inet6 {DELEGATED} -interface gif0",
    )
    words = ("-t", "network", "-A", f"{INSIDE}/128")
    with start(net, FEEL6, *FAR_END, *ready) as server, client(net, *words) as program:
        program.wait_for(f"{DELEGATED} delegated")
        program.wait_for("up after")
        is_logged_in(server, "network")
        assert carried(net, FAR6)
        assert ping(net.far, INSIDE)
        is_taken_down(net, program, server, before)


# --- refused ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kame() -> Iterator[Internet]:
    """An internet with KAME's server without a prefix, on which no client changes anything."""
    with Internet() as internet, start(internet, KAME[:-2]):
        yield internet


@pytest.mark.parametrize(
    ("user", "password", "tunnel_type", "why"),
    [
        (USER, "wrong horse", "tunnelonly", "authentication failed"),
        ("nobody", PASSWORD, "tunnelonly", "authentication failed"),
        (USER, PASSWORD, "network", "unsupported tunnel type network"),
        (USER, PASSWORD, "tunnelroute", "unsupported tunnel type tunnelroute"),
        (USER, PASSWORD, "host", "unsupported tunnel type host"),
    ],
)
def test_a_refusal_is_one_line_and_changes_nothing(
    kame: Internet, user: str, password: str, tunnel_type: str, why: str
) -> None:
    kame.client.write(AUTH, "")
    before = kame.client.snapshot()
    with client(kame, "-t", tunnel_type, user=user, password=password) as program:
        assert program.status() == 77
    assert program.lines == [
        f"dtcpc: logging in to {SERVER_NAME} ({SERVER4}) port 20200 as {user}",
        f"dtcpc: {SERVER_NAME} ({SERVER4}) port 20200: the server refuses: {why}",
    ]
    kame.client.write(AUTH, "")
    assert difference(before, kame.client.snapshot()) == []


def test_the_servers_end_of_the_session_takes_the_tunnel_down(net: Internet) -> None:
    before = net.client.snapshot()
    with start(net, KAME) as server, client(net, "-t", "host") as program:
        program.wait_for("up after")
        server.send(signal.SIGKILL)
        assert program.status() == 75
    assert program.lines[-2:] == ["dtcpc: lost: the server closed the connection", "dtcpc: down"]
    net.client.run(["rm", AUTH])
    assert difference(before, net.client.snapshot()) == []
