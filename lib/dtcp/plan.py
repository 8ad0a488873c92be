"""A tunnel is a list of reversible commands: grant + options + what the host has -> steps.  No I/O.

`client` and `server` make the list; `dtcp.system` runs it, forwards and backwards.  `--dry-run`
prints it.  Nothing else ever changes the system, so whatever dtcpc can do to a host is on this
page.  Every word of a command comes out of `ipaddress`, an integer, or a name that matched NAME
(interfaces) or dtcp.wire.USER and HOST (the mark).

The order, and what FreeBSD needs for each step, is that of gif(4), ifconfig(8) and route(8) as
they were seen to behave on 13.2 and 15.1; the oddities are named where they matter.
"""

from __future__ import annotations

import re
import shlex
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple

from dtcp.grant import Grant

Words = tuple[str, ...]

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,14}")  # of an interface: IFNAMSIZ - 1 letters at most
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9.])?")  # a host name, or an address

MTU_LEAST, MTU_MOST = 1280, 8192  # gif(4)
GROUP = "dtcp"  # the interface group (ifconfig(8)) by which our interfaces are found

# Stands for the tunnel interface until its name is known: the kernel picks it, and ifconfig prints
# it.  Spelled so that a printed plan can be pasted into sh(1).
TUNNEL = "$IF"
# In an undo: each link-local address that the interface has by then, one command for each.
LINK_LOCAL = "$LINK_LOCAL"

ANYWHERE = IPv6Network("::/0")
# Where somebody else's default route exists these go in instead of ours: together they cover
# everything, they win by their length, and when they are gone the other is as it was.
HALVES = (IPv6Network("::/1"), IPv6Network("8000::/1"))


class Check(NamedTuple):
    """How to see that a step worked: run `look`, find every phrase of `shows` and none of `lacks`.

    A phrase is words in a row.  Blanks and the signs <>,= separate words, for the order and the
    columns of these outputs differ between releases.
    """

    look: Words
    shows: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


class Step(NamedTuple):
    """One command, the commands that undo it in their order, and how to see that it worked."""

    do: Words
    undo: tuple[Words, ...] = ()
    check: Check | None = None
    leave: tuple[Words, ...] | None = None  # in place of `undo` once the tunnel has been up
    names_tunnel: bool = False  # the command prints the (new) name of the tunnel interface
    mark: str = ""  # the command makes the tunnel interface, with this description


class Options(NamedTuple):
    """What the user asked for, as far as the host's configuration is concerned."""

    interface: str | None = None  # -i
    keep: bool = False  # -o
    mtu: int = MTU_LEAST  # -m
    addresses: tuple[IPv6Interface, ...] = ()  # -A
    destinations: tuple[IPv6Network, ...] = (ANYWHERE,)  # -R


class Interface(NamedTuple):
    """An interface as ifconfig(8) shows it, as far as we may have to put it back."""

    name: str
    mtu: int = MTU_LEAST
    up: bool = False
    outer: tuple[IPv4Address, IPv4Address] | None = None
    description: str = ""
    groups: tuple[str, ...] = ()
    inet6_disabled: bool = True
    link_local: bool = False
    addresses: tuple[IPv6Address, ...] = ()  # others than link-local ones


class PlanError(Exception):
    """What was asked for cannot be had on this host.  Fit for a terminal."""


class Host(NamedTuple):
    """What the host has that a plan depends on."""

    existing: Interface | None = None  # the tunnel interface, when it is to be used as it stands
    default_route: bool = False  # somebody has an IPv6 default route


def mark(program: str, user: str, server: str, pid: int) -> str:
    """The description by which an interface is known to be ours, and whose it is."""
    return f"{program} {user}@{server} pid {pid}"


def client(grant: Grant, options: Options, host: Host, description: str) -> list[Step]:
    """The steps of a client's tunnel.  Raises PlanError."""
    _refuse_foreign(grant, options, host.existing)
    # Packets to subnets of the delegated prefix that are not in use must not bounce between us and
    # the server.  An interface that has the very same prefix needs no such route, and must not
    # have it: on 13.2 it would shadow the interface's own.
    taken = [address.network for address in options.addresses]
    return [
        *_interface(options, host.existing, description),
        _outer(grant, host.existing),
        *_inner(grant, options.addresses),
        _up(),
        *(_route(to) for to in _destinations(options, host)),
        *(_unreachable(prefix) for prefix in grant.prefixes if prefix not in taken),
    ]


def _refuse_foreign(grant: Grant, options: Options, existing: Interface | None) -> None:
    # ifconfig(8) would not mind, and the address would be gone afterwards.
    ours = {grant.inner, *(address.ip for address in options.addresses)}
    for address in existing.addresses if existing is not None else ():
        if address in ours:
            raise PlanError(f"{address} is there already, and it is not ours")


def server(grant: Grant, description: str) -> list[Step]:
    """The steps of a server's end of a tunnel; `grant` as the server sees it."""
    return [
        *_interface(Options(), None, description),
        _outer(grant, None),
        *_inner(grant, ()),
        _up(),
        *(_route(prefix) for prefix in grant.prefixes),
    ]


def spelled(words: Words) -> str:
    """A command as a person would type it into sh(1)."""
    return " ".join(word if word in (TUNNEL, LINK_LOCAL) else shlex.quote(word) for word in words)


def script(steps: list[Step], tunnel: str | None) -> list[str]:
    """The commands of a plan as lines for sh(1); `tunnel` when its name is known already."""
    known = [f"IF={tunnel}"] if tunnel else []
    known += [f"IF={step.do[1]}" for step in steps if step.mark and not step.names_tunnel]
    return known + [
        f"IF=$({spelled(step.do)})" if step.names_tunnel else spelled(step.do) for step in steps
    ]


# What an undo may look like: the shapes that the functions below make.  Anything else that stands
# in a ledger was put there by somebody else.
_UNDO_SHAPES = tuple(
    re.compile(shape.replace("IF", rf"(\$IF|{NAME.pattern})").replace("ADDRESS", r"[0-9a-f:]+"))
    for shape in (
        r"ifconfig IF destroy",
        r"ifconfig IF inet6 ifdisabled",
        r"ifconfig IF inet6 (\$LINK_LOCAL|ADDRESS) -alias",
        r"ifconfig IF (down|deletetunnel|-description|-group dtcp|mtu [0-9]{4})",
        r"ifconfig IF tunnel [0-9.]{7,15} [0-9.]{7,15}",
        r"route -n delete -inet6 (default|ADDRESS(/[0-9]{1,3})?) (-interface IF|::1)",
    )
)


def is_undo(words: Words) -> bool:
    """Whether a plan could have had this command for an undo."""
    line = " ".join(words)
    return len(words) == line.count(" ") + 1 and any(
        shape.fullmatch(line) for shape in _UNDO_SHAPES
    )


def _ifconfig(*words: object) -> Words:
    return ("ifconfig", *(str(word) for word in words))


def _interface(options: Options, existing: Interface | None, description: str) -> list[Step]:
    settings: tuple[object, ...] = (
        *("group", GROUP),
        *("description", description),
        *("mtu", options.mtu),
    )
    shows = Check(_ifconfig(TUNNEL), shows=(f"mtu {options.mtu}",))
    if existing is not None:
        if existing.description:  # the administrator's: it stays
            settings = ("group", GROUP, "mtu", options.mtu)
        return [Step(_ifconfig(TUNNEL, *settings), undo=_restored(existing), check=shows)]
    # The mark comes first: should a later word fail, or we be killed, it tells whose this is.
    # inet6 words cannot follow in the same command (ifconfig: inet6: bad value).
    name = options.interface
    by_name = name is not None and re.fullmatch(r"gif(0|[1-9][0-9]*)", name)
    steps = [
        Step(
            _ifconfig(name if by_name else "gif", "create", *settings),
            undo=(_ifconfig(TUNNEL, "destroy"),),
            check=shows,
            leave=_restored(Interface(TUNNEL, groups=(GROUP,))) if options.keep else None,
            names_tunnel=not by_name,
            mark=description,
        )
    ]
    if name is not None and not by_name:
        steps.append(Step(_ifconfig(TUNNEL, "name", name), names_tunnel=True))
    return steps


def _restored(was: Interface) -> tuple[Words, ...]:
    """The commands that make the tunnel interface what it was, its addresses and pair apart."""
    # Giving an interface an address switches it up and its IPv6 on, which makes a link-local
    # address; taking the address away undoes none of the three.
    commands: list[Words] = []
    if was.inet6_disabled:
        commands.append(_ifconfig(TUNNEL, "inet6", "ifdisabled"))
    if not was.link_local:
        commands.append(_ifconfig(TUNNEL, "inet6", LINK_LOCAL, "-alias"))
    if not was.up:
        commands.append(_ifconfig(TUNNEL, "down"))
    commands.append(_ifconfig(TUNNEL, "mtu", was.mtu))
    if not was.description:
        commands.append(_ifconfig(TUNNEL, "-description"))
    if GROUP not in was.groups:
        commands.append(_ifconfig(TUNNEL, "-group", GROUP))
    return tuple(commands)


def _outer(grant: Grant, existing: Interface | None) -> Step:
    # `tunnel` exits 0 when the kernel refuses the pair: only looking tells.
    was = existing.outer if existing is not None else None
    return Step(
        _ifconfig(TUNNEL, "tunnel", grant.local, grant.remote),
        undo=(_ifconfig(TUNNEL, "tunnel", *was) if was else _ifconfig(TUNNEL, "deletetunnel"),),
        check=Check(
            _ifconfig(TUNNEL), shows=(f"tunnel inet {grant.local} --> {grant.remote}", "RUNNING")
        ),
    )


def _inner(grant: Grant, addresses: tuple[IPv6Interface, ...]) -> list[Step]:
    steps = []
    if grant.inner is not None:
        steps.append(_pair(grant.inner, grant.peer))
    else:
        # Without an address nothing else switches IPv6 on, which a new gif has off.
        steps.append(
            Step(
                _ifconfig(TUNNEL, "inet6", "-ifdisabled"),
                check=Check(_ifconfig(TUNNEL), lacks=("IFDISABLED",)),
            )
        )
    return steps + [_address(address) for address in addresses]


def _pair(inner: IPv6Address, peer: IPv6Address | None) -> Step:
    ends = (inner,) if peer is None else (inner, peer)
    return Step(
        _ifconfig(TUNNEL, "inet6", *ends, "prefixlen", 128, "alias"),
        undo=(_ifconfig(TUNNEL, "inet6", inner, "-alias"),),
        check=Check(
            _ifconfig(TUNNEL), shows=(f"inet6 {' --> '.join(map(str, ends))} prefixlen 128",)
        ),
    )


def _address(address: IPv6Interface) -> Step:
    length = address.network.prefixlen
    return Step(
        _ifconfig(TUNNEL, "inet6", address.ip, "prefixlen", length, "alias"),
        undo=(_ifconfig(TUNNEL, "inet6", address.ip, "-alias"),),
        check=Check(_ifconfig(TUNNEL), shows=(f"inet6 {address.ip} prefixlen {length}",)),
    )


def _up() -> Step:
    # No undo: the interface is destroyed, or _restored puts it down.
    return Step(_ifconfig(TUNNEL, "up"), check=Check(_ifconfig(TUNNEL), shows=("UP", "RUNNING")))


def _destinations(options: Options, host: Host) -> list[IPv6Network]:
    wanted: list[IPv6Network] = []
    for to in options.destinations:
        wanted += HALVES if to == ANYWHERE and host.default_route else (to,)
    return list(dict.fromkeys(wanted))


def _destination(to: IPv6Network) -> str:
    if to == ANYWHERE:
        return "default"
    return str(to.network_address) if to.prefixlen == 128 else str(to)


def _route(to: IPv6Network) -> Step:
    # Deleting without saying through what could hit another's route of the same destination:
    # with several default routes, 15.1 deletes them all.
    words = ("-inet6", _destination(to), "-interface", TUNNEL)
    return Step(
        ("route", "-n", "add", *words),
        undo=(("route", "-n", "delete", *words),),
        check=Check(
            ("route", "-n", "get", "-inet6", _destination(to)),
            shows=(f"destination: {to.network_address}", f"interface: {TUNNEL}"),
        ),
    )


def _unreachable(prefix: IPv6Network) -> Step:
    return Step(
        ("route", "-n", "add", "-inet6", str(prefix), "::1", "-reject"),
        undo=(("route", "-n", "delete", "-inet6", str(prefix), "::1"),),
        check=Check(
            ("route", "-n", "get", "-inet6", str(prefix)),
            shows=(f"destination: {prefix.network_address}", "REJECT"),
        ),
    )
