"""Plans: which commands a grant and options result in, in which order, and how they are undone."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network

import pytest
from dtcp import plan
from dtcp.grant import Grant
from dtcp.look import Interface

GRANT = Grant(IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"))
HOST_GRANT = GRANT._replace(inner=IPv6Address("2001:db8:1::6"), peer=IPv6Address("2001:db8:1::5"))
NETWORK_GRANT = GRANT._replace(prefixes=(IPv6Network("2001:db8:3c3::/48"),))
MARK = plan.mark("dtcpc", "itojun", "tunnel.example.org", 7)
BARE = plan.Host()


def _do(made: plan.Plan) -> list[str]:
    assert made.make is not None
    return [" ".join(words) for words in (made.make.do, *(step.do for step in made.steps))]


def _undo(made: plan.Plan) -> list[str]:
    assert made.make is not None
    undos = [undo for step in reversed(made.steps) for undo in step.undo]
    return [" ".join(undo) for undo in (*undos, *made.make.undo)]


def test_a_host_tunnel_in_its_order() -> None:
    steps = plan.client(HOST_GRANT, plan.Options(mtu=1400), BARE, MARK)
    assert plan.script(steps) == [
        "IF=$(ifconfig gif create group dtcp"
        " description 'dtcpc itojun@tunnel.example.org pid 7' mtu 1400 up"
        " tunnel 203.0.113.7 192.0.2.1)",
        "ifconfig $IF inet6 2001:db8:1::6 2001:db8:1::5 prefixlen 128 alias",
        "route -n add -inet6 default -interface $IF",
    ]
    assert _undo(steps) == [
        "route -n delete -inet6 default -interface $IF",
        "ifconfig $IF inet6 2001:db8:1::6 -alias",
        "ifconfig $IF destroy",
    ]


def test_a_network_tunnel_has_an_unreachable_route_for_its_prefix() -> None:
    assert _do(plan.client(NETWORK_GRANT, plan.Options(), BARE, MARK))[1:] == [
        "ifconfig $IF inet6 -ifdisabled",
        "route -n add -inet6 default -interface $IF",
        "route -n add -inet6 2001:db8:3c3::/48 ::1 -reject",
    ]


def test_an_advertisement_that_was_solicited_changes_no_name_servers() -> None:
    """rtsol(8) gives those, and the search domains, to a script: by itself to resolvconf(8)."""
    steps = plan.client(GRANT, plan.Options(solicit=True), BARE, MARK)
    assert _do(steps)[-1] == "rtsol -R /usr/bin/true $IF"


def test_no_unreachable_route_where_an_interface_has_the_whole_prefix() -> None:
    prefix = IPv6Network("2001:db8:3c3:1::/64")
    options = plan.Options(aliases=(plan.Alias(IPv6Interface("2001:db8:3c3:1::1/64")),))
    steps = plan.client(GRANT._replace(prefixes=(prefix,)), options, BARE, MARK)
    assert not any("-reject" in line for line in _do(steps))


def test_two_halves_where_somebody_has_a_default_route() -> None:
    steps = plan.client(GRANT, plan.Options(), plan.Host(default_route=True), MARK)
    assert [line for line in _do(steps) if line.startswith("route")] == [
        "route -n add -inet6 ::/1 -interface $IF",
        "route -n add -inet6 8000::/1 -interface $IF",
    ]


def test_destinations_take_the_place_of_the_default() -> None:
    networks = tuple(map(IPv6Network, ("2001:db8::/32", "2001:db8:7::1/128", "2001:db8::/32")))
    steps = plan.client(GRANT, plan.Options(destinations=networks), BARE, MARK)
    assert [line for line in _do(steps) if line.startswith("route")] == [
        "route -n add -inet6 2001:db8::/32 -interface $IF",
        "route -n add -inet6 2001:db8:7::1 -interface $IF",
    ]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("gif7", ["IF=gif7", "ifconfig gif7 create "]),
        ("gif07", ["IF=$(ifconfig gif create ", "IF=$(ifconfig $IF name gif07)"]),
        ("dtcp0", ["IF=$(ifconfig gif create ", "IF=$(ifconfig $IF name dtcp0)"]),
    ],
)
def test_names(name: str, first: list[str]) -> None:
    lines = plan.script(plan.client(GRANT, plan.Options(interface=name), BARE, MARK))
    for line, start in zip(lines, first, strict=False):
        assert line.startswith(start)


def test_an_existing_interface_is_never_destroyed_and_gets_back_what_it_had() -> None:
    existing = Interface(
        "gif0", mtu=1300, outer=(IPv4Address("203.0.113.7"), IPv4Address("198.51.100.9"))
    )
    steps = plan.client(HOST_GRANT, plan.Options(), plan.Host(existing), MARK)
    assert _undo(steps) == [
        "route -n delete -inet6 default -interface $IF",
        "ifconfig $IF inet6 2001:db8:1::6 -alias",
        "ifconfig $IF tunnel 203.0.113.7 198.51.100.9",
        "ifconfig $IF inet6 ifdisabled",
        "ifconfig $IF inet6 $LINK_LOCAL -alias",
        "ifconfig $IF down",
        "ifconfig $IF mtu 1300",
        "ifconfig $IF -description",
        "ifconfig $IF -group dtcp",
    ]


def test_what_an_existing_interface_had_switched_on_stays_on() -> None:
    existing = Interface(
        "gif0",
        up=True,
        description="mine",
        groups=("dtcp",),
        inet6_disabled=False,
        link_local=IPv6Address("fe80::1"),
    )
    steps = plan.client(HOST_GRANT, plan.Options(), plan.Host(existing), MARK)
    assert _undo(steps)[-1] == "ifconfig $IF mtu 1280"
    assert not any("description" in line for line in _do(steps))


def test_an_address_of_somebody_else_is_refused() -> None:
    existing = Interface("gif0", addresses=(IPv6Address("2001:db8:1::6"),))
    with pytest.raises(plan.PlanError, match="gif0 has 2001:db8:1::6 already"):
        plan.client(HOST_GRANT, plan.Options(), plan.Host(existing), MARK)


def test_a_server_has_the_other_end() -> None:
    steps = plan.server(
        HOST_GRANT._replace(prefixes=NETWORK_GRANT.prefixes).turned(), plan.Options(), MARK
    )
    assert plan.script(steps) == [
        "IF=$(ifconfig gif create group dtcp"
        " description 'dtcpc itojun@tunnel.example.org pid 7' mtu 1280 up"
        " tunnel 192.0.2.1 203.0.113.7)",
        "ifconfig $IF inet6 2001:db8:1::5 2001:db8:1::6 prefixlen 128 alias",
        "route -n add -inet6 2001:db8:3c3::/48 -interface $IF",
    ]


def test_a_server_leaves_an_interface_that_was_there() -> None:
    existing = Interface("gif3")
    steps = plan.server(HOST_GRANT.turned(), plan.Options(), MARK, existing)
    assert "create" not in " ".join(_do(steps))
    assert "destroy" not in " ".join(_undo(steps))
    assert _undo(steps)[-3:] == [
        "ifconfig $IF mtu 1280",
        "ifconfig $IF -description",
        "ifconfig $IF -group dtcp",
    ]


def _every_plan() -> Iterator[plan.Plan]:
    """Plans of every kind that the options can come to."""
    full = HOST_GRANT._replace(prefixes=NETWORK_GRANT.prefixes)
    em1 = Interface("em1", ether="00:00:5e:00:53:01")
    off = Interface("em1.7", link_local=IPv6Address("fe80::1"), up=True, inet6_disabled=False)
    lan = tuple(plan.Delegation(name, 1, 1, 64) for name in ("em1", "em1.7"))
    existing = (
        None,
        Interface("gif0", mtu=99999),
        Interface("gif0", outer=(GRANT.local,) * 2, fib=3),
    )
    aliases = (
        plan.Alias(IPv6Interface("2001:db8::7/128"), IPv6Address("2001:db8::8")),
        plan.Alias(IPv6Interface("fe80::7/64")),
    )
    for interface in existing:
        for keep in (False, True):
            for fib in (None, 1):
                for solicit in (False, True):
                    for ports in (None, (4028, 4029)):
                        options = plan.Options(
                            interface="wan_0.1",
                            keep=keep,
                            mtu=8192,
                            aliases=aliases,
                            fib=fib,
                            solicit=solicit,
                            delegations=lan,
                            files="/var/run/a b",
                            node="dtcpc77",
                        )
                        host = plan.Host(interface, default_route=not solicit, lan=(em1, off))
                        yield plan.client(full._replace(ports=ports), options, host, MARK)


def test_every_undo_of_every_plan_is_one_that_a_ledger_may_hold() -> None:
    count = 0
    for made in _every_plan():
        assert made.make is not None
        undos = [*made.make.undo, *(made.make.leave or ())]
        undos += [undo for step in made.steps for undo in step.undo]
        for undo in undos:
            assert plan.read(plan.written(undo)) == undo
            named = [word.replace(plan.TUNNEL, "wan_0.1") for word in plan.written(undo)]
            assert plan.read(named) is not None, named
            count += 1
    assert count > 500


@pytest.mark.parametrize(
    "words",
    [
        ("ifconfig", "em0", "down", "up"),
        ("ifconfig", "gif0", "destroy; reboot"),
        ("ifconfig", "-a", "destroy"),
        ("route", "-n", "delete", "-inet6", "default"),
        ("route", "-n", "flush"),
        ("rm", "-rf", "/"),
        ("ifconfig gif0", "destroy"),
        ("stop", "/etc/passwd"),
        (),
    ],
)
def test_nothing_else_is_taken_from_a_ledger(words: plan.Words) -> None:
    assert plan.read(list(words)) is None
