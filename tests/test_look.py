"""What is read from FreeBSD's output, against the recordings of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from dtcp.errors import CommandFailed
from dtcp.look import Interface, Look, Route

from tests.recordings import RECORDINGS, Line, parse

RELEASES = ("13.2", "15.1")
OURS = IPv4Address("10.99.0.2"), IPv4Address("10.99.0.1")


def recorded(release: str, command: str) -> list[Line]:
    """Each recording of a command that went well."""
    lines = [line for file in sorted((RECORDINGS / release).glob("*.txt")) for line in parse(file)]
    found = [each for each in lines if re.fullmatch(command, each.command)]
    return [each for each in found if each.answer.status == 0 and not each.answer.err]


def saying(out: str) -> Look:
    """A look at a host whose commands all say that."""
    run: Callable[..., str] = lambda words, limit=None: out  # noqa: E731
    return Look(run)


@pytest.mark.parametrize("release", RELEASES)
def test_every_interface_that_was_recorded(release: str) -> None:
    """What ifconfig(8) says line by line is what is read, found here in another way."""
    count = 0
    for line in recorded(release, r"ifconfig [a-z]+[0-9]+[ab]?"):
        name, shown = line.command.split()[1], line.answer.out
        seen = saying(shown).interface(name)
        assert seen is not None, line.name
        lines = [each.split() for each in shown.splitlines()]
        said = [IPv6Address(each[1].partition("%")[0]) for each in lines if each[0] == "inet6"]
        assert [*seen.addresses, *filter(None, [seen.link_local])] == sorted(
            said, key=lambda each: each.is_link_local
        ), line.name
        assert seen.mtu == int(lines[0][lines[0].index("mtu") + 1]), line.name
        flags = re.split("[<,>]", lines[0][1])
        assert (seen.up, seen.running) == ("UP" in flags, "RUNNING" in flags), line.name
        pairs = [(each[2], each[4]) for each in lines if each[:2] == ["tunnel", "inet"]]
        assert pairs == ([tuple(map(str, seen.outer))] if seen.outer else []), line.name
        groups = [each[1:] for each in lines if each[0] == "groups:"]
        assert groups == ([[*seen.groups]] if seen.groups else []), line.name
        count += 1
    assert count > 60


@pytest.mark.parametrize("release", RELEASES)
def test_a_gif_with_everything(release: str) -> None:
    """As one command after the other makes it."""
    found = [
        seen
        for line in recorded(release, r"ifconfig gif[0-9]")
        if (seen := saying(line.answer.out).interface(line.command.split()[1])) is not None
    ]
    assert any(each.outer == OURS and each.running and each.up for each in found)
    assert any(each.description == "a b" for each in found)
    assert any(each.groups == ("gif", "dtcpc") for each in found)
    assert {each.inet6_disabled for each in found} == {True, False}


@pytest.mark.parametrize("release", RELEASES)
def test_the_routes(release: str) -> None:
    first, *more = recorded(release, r"netstat -rnW? -f inet6")
    routes = saying(first.answer.out).ipv6_routes(None)
    assert routes[IPv6Network("fd99::/64")] == Route("fd99::/64", "U", "vtnet0")
    assert IPv6Network("fd99::2/128") in routes
    assert not any(each.is_link_local for each in routes)  # they have a scope
    through = [
        routes[IPv6Network("::/0")].interface
        for routes in (saying(line.answer.out).ipv6_routes(None) for line in more)
        if IPv6Network("::/0") in routes
    ]
    assert "gif0" in through


def test_the_ipv4_networks() -> None:
    shown = """Routing tables

Internet:
Destination        Gateway            Flags   Nhop#    Mtu      Netif Expire
default            10.99.0.1          UGS         5   1500     vtnet0
10.99.0.0/24       link#1             U           3   1500     vtnet0
127.0.0.1          link#2             UH          1  16384        lo0
"""
    assert saying(shown).ipv4_networks() == list(
        map(IPv4Network, ("0.0.0.0/0", "10.99.0.0/24", "127.0.0.1/32"))
    )


@pytest.mark.parametrize("release", RELEASES)
def test_what_rtadvd_serves(release: str) -> None:
    shown = [line.answer.out for line in recorded(release, r".*rtadvctl show.*")]
    served = {each for out in shown for each in saying(out).advertised()}
    assert "vtnet0" in served or "epair7a" in served or "epair1a" in served


@pytest.mark.parametrize(
    "look",
    [
        lambda look: look.interface("gif0"),
        lambda look: look.link_locals("gif0"),
        lambda look: look.ipv6_routes(None),
        lambda look: look.ipv4_networks(),
        lambda look: look.settings("net.fibs"),
        lambda look: look.traffic("gif0"),
        lambda look: look.has_route(IPv6Network("2001:db8:1::/64"), None),
    ],
)
@pytest.mark.parametrize("nonsense", ["", "what?  I do not know\n", "\n\n\n"])
def test_nonsense_is_refused(look: Callable[[Look], object], nonsense: str) -> None:
    with pytest.raises(CommandFailed):
        look(saying(nonsense))


def test_an_interface_with_an_invalid_address_is_refused() -> None:
    with pytest.raises(CommandFailed):
        saying("gif0: flags=1<UP> mtu 1280\n\tinet6 1:2 prefixlen 64\n").interface("gif0")


@pytest.mark.parametrize("release", RELEASES)
def test_the_bytes_of_one_interface(release: str) -> None:
    """The line of the link as recorded, with the bytes that -b adds; not those of its addresses."""
    rows = [
        [*words[:-3], received, *words[-3:-1], sent, words[-1]]
        for words, (received, sent) in zip(
            map(str.split, recorded(release, "netstat -I gif0 -n")[0].answer.out.splitlines()),
            (("Ibytes", "Obytes"), ("700", "800"), ("7", "8"), ("9", "9")),
            strict=True,
        )
    ]
    shown = "".join(" ".join(row) + "\n" for row in rows)
    said: list[tuple[str, ...]] = []

    def run(words: tuple[str, ...], **_: object) -> str:
        said.append(words)
        return shown

    assert Look(run).traffic("gif0") == (700, 800)
    assert said == [("netstat", "-I", "gif0", "-b", "-n", "-W")]
    down = shown.replace("gif0 ", "gif0* ")  # as netstat(1) marks one that is down
    assert saying(down).traffic("gif0") == (700, 800)
    with pytest.raises(CommandFailed):  # it is gone, and only the head is left
        saying(shown.splitlines()[0]).traffic("gif0")


@pytest.mark.parametrize("release", RELEASES)
def test_a_route_for_a_prefix(release: str) -> None:
    answers = {
        line.answer.status: line.answer
        for line in recorded(release, r"route -n get -inet6 3ffe:505:2::/48")
    }
    there = answers[0]
    assert saying(there.out).has_route(IPv6Network("3ffe:505:2::/48"), None)

    def refuse(words: tuple[str, ...], **_: object) -> str:
        raise CommandFailed(words, "route: route has not been found")

    assert not Look(refuse).has_route(IPv6Network("3ffe:505:2::/48"), 1)


def test_all_interfaces_at_once() -> None:
    shown = "".join(
        f"{name}: flags=8051<UP,POINTOPOINT,RUNNING> metric 0 mtu 1400\n\tgroups: gif dtcp\n"
        for name in ("gif0", "gif1", "dtcp0")
    )
    found = saying(shown).interfaces()
    assert found["dtcp0"] == Interface(
        "dtcp0", mtu=1400, up=True, running=True, groups=("gif", "dtcp"), inet6_disabled=False
    )
    assert list(found) == ["gif0", "gif1", "dtcp0"]
