"""A tunnel is a list of reversible commands: grant + options + what the host has -> steps.  No I/O.

`client` and `server` make the list; `dtcp.system` runs it, forwards and backwards.  `--dry-run`
prints it.  Nothing else ever changes the system, so whatever dtcpc can do to a host is on this
page.  Every word of a command comes out of `ipaddress`, an integer, or a name that matched NAME
(interfaces) or dtcp.wire.USER and HOST (the mark).

The order, and what FreeBSD needs for each step, is that of gif(4), ifconfig(8) and route(8) as
they were seen to behave on 13.2 and 15.1; the oddities are named where they matter.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple

from dtcp.grant import Grant

Words = tuple[str, ...]

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,14}")  # of an interface: IFNAMSIZ - 1 letters at most
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"  # RFC 1035 section 2.3.4
HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?")  # a host name, or an address

MTU_LEAST, MTU_MOST = 1280, 8192  # gif(4)
GROUP = "dtcp"  # the interface group (ifconfig(8)) by which our interfaces are found

# Stands for the tunnel interface until its name is known: the kernel picks it, and ifconfig prints
# it.  Spelled so that a printed plan can be pasted into sh(1).
TUNNEL = "$IF"
# The undo that takes an interface which is not of our making out of our group: the last of all.
UNGROUP = ("ifconfig", TUNNEL, "-group", GROUP)
# In an undo: each link-local address that the interface has by then, one command for each.
LINK_LOCAL = "$LINK_LOCAL"
# Not a command of the system: ends the daemon whose pid file is the next word, and waits for it.
STOP = "stop"

# Nor this: waits until the daemon holds its pid file locked, and says `running`.
RUNNING = "running"

RTSOL_TIME = 20.0  # seconds: rtsol(8) gives up after 9 to 12

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
    otherwise: str = ""  # what it means when they are not as they should be


class Step(NamedTuple):
    """One command, the commands that undo it in their order, and how to see that it worked."""

    do: Words
    undo: tuple[Words, ...] = ()
    check: Check | None = None
    leave: tuple[Words, ...] | None = None  # in place of `undo` once the tunnel has been up
    names_tunnel: str = ""  # the command prints the (new) name of the tunnel interface, like this
    mark: str = ""  # the command makes the tunnel interface, and it is known by this
    limit: float | None = None  # seconds that the command may take, when not the usual ones
    input: str = ""  # what the command reads
    along: tuple[str, ...] = ()  # what it depends on: when that changes, it is another step
    mend: Words = ()  # what makes the check come true again, if it ever ceases to be


class Delegation(NamedTuple):
    """What one LAN interface gets of the delegated prefix (-P)."""

    interface: str
    sla: int
    identifier: int | None  # the low 64 bits of its address; None: EUI-64 (RFC 4291 appendix A)
    length: int


class Options(NamedTuple):
    """What the user asked for, as far as the host's configuration is concerned."""

    interface: str | None = None  # -i
    keep: bool = False  # -o
    mtu: int = MTU_LEAST  # -m
    addresses: tuple[IPv6Interface, ...] = ()  # -A
    destinations: tuple[IPv6Network, ...] = (ANYWHERE,)  # -R
    fib: int | None = None  # -F
    solicit: bool = False  # -r solicit
    delegations: tuple[Delegation, ...] = ()  # -P
    advertise: bool = True  # not -a
    files: str = "/var/run/dtcpc"  # what the names of rtadvd's files begin with
    node: str = ""  # over UDP: the name of our netgraph node, like no other's


class Interface(NamedTuple):
    """An interface as ifconfig(8) shows it, as far as we may have to put it back."""

    name: str
    mtu: int = MTU_LEAST
    up: bool = False
    running: bool = False
    outer: tuple[IPv4Address, IPv4Address] | None = None
    description: str = ""
    groups: tuple[str, ...] = ()
    inet6_disabled: bool = True
    link_local: IPv6Address | None = None
    addresses: tuple[IPv6Address, ...] = ()  # others than link-local ones
    ether: str = ""
    fib: int = 0


class PlanError(Exception):
    """What was asked for cannot be had on this host.  Fit for a terminal."""


class Host(NamedTuple):
    """What the host has that a plan depends on."""

    existing: Interface | None = None  # the tunnel interface, when it is to be used as it stands
    default_route: bool = False  # somebody has an IPv6 default route
    forwards: bool = False  # it is a router: net.inet6.ip6.forwarding
    lan: tuple[Interface, ...] = ()  # the interfaces of -P
    advertised: tuple[str, ...] = ()  # interfaces that a running rtadvd serves
    routed: tuple[IPv6Network, ...] = ()  # networks that have a route already


def mark(program: str, user: str, server: str, pid: int) -> str:
    """The description by which an interface is known to be ours, and whose it is."""
    return f"{program} {user}@{server} pid {pid}"


def client(grant: Grant, options: Options, host: Host, description: str) -> list[Step]:
    """The steps of a client's tunnel.  Raises PlanError."""
    if host.existing is not None:
        _refuse_foreign(host.existing, [grant.inner, *(each.ip for each in options.addresses)])
    lan = lan_addresses(grant, options, host)
    # Packets to subnets of the delegated prefix that are not in use must not bounce between us and
    # the server.  An interface that has the very same prefix needs no such route, and must not
    # have it: on 13.2 it would shadow the interface's own, on 15.1 be replaced by it.
    taken = [*host.routed, *(address.network for address in options.addresses)]
    taken += [address.network for _, address in lan]
    return [
        *_ends(grant, options, host.existing, description),
        *_inner(grant, options.addresses),
        *_up(grant, host.existing),
        *(_solicited(host, options.fib) if options.solicit else _routed(options, host)),
        *(_unreachable(prefix, options.fib) for prefix in grant.prefixes if prefix not in taken),
        *(step for interface, address in lan for step in _on_lan(interface, address)),
        *_advertised(lan, options, host),
    ]


def _refuse_foreign(interface: Interface, wanted: Iterable[IPv6Address | None]) -> None:
    # ifconfig(8) would not mind, and the address would be gone afterwards.
    for address in wanted:
        if address is not None and address in (*interface.addresses, interface.link_local):
            raise PlanError(f"{interface.name} has {address} already, and not from dtcpc")


def server(
    grant: Grant, options: Options, description: str, existing: Interface | None = None
) -> list[Step]:
    """The steps of a server's end of a tunnel; `grant` as the server sees it.

    In as few commands as can be: they are what a login costs.
    """
    routes = [_route(prefix, options.fib) for prefix in grant.prefixes]
    if grant.ports is not None or existing is not None or options.keep:
        return [
            *_ends(grant, options, existing, description),
            *_inner(grant, ()),
            *_up(grant, existing),
            *routes,
        ]
    create, *renamed = _interface(options, None, description)
    assert create.check is not None
    ends = _outer(grant, None)
    assert ends.check is not None
    create = create._replace(
        do=(*create.do, "tunnel", str(grant.local), str(grant.remote)),
        check=create.check._replace(shows=(*create.check.shows, *ends.check.shows)),
    )
    # It is up from its first command on; and when it is destroyed, its addresses and routes go too.
    inner = _inner(grant, ())[0]
    assert inner.check is not None
    inner = inner._replace(
        undo=(), check=inner.check._replace(shows=(*inner.check.shows, "RUNNING"))
    )
    return [create, *renamed, inner, *(route._replace(undo=()) for route in routes)]


def unreachable(prefixes: Iterable[IPv6Network], fib: int | None) -> list[Step]:
    """What a server does not use of its prefixes must not bounce between it and its router."""
    return [_unreachable(prefix, fib) for prefix in prefixes]


def spelled(words: Words) -> str:
    """A command as a person would type it into sh(1)."""
    return " ".join(word if word in (TUNNEL, LINK_LOCAL) else shlex.quote(word) for word in words)


def script(steps: list[Step], tunnel: str | None) -> list[str]:
    """The commands of a plan as lines for sh(1); `tunnel` when its name is known already."""
    known = [f"IF={tunnel}"] if tunnel else []
    known += [f"IF={step.do[1]}" for step in steps if step.mark and not step.names_tunnel]
    return known + [_line(step) for step in steps]


def _line(step: Step) -> str:
    line = spelled(step.do)
    if step.input:
        lines = " ".join(map(shlex.quote, step.input.splitlines()))
        line = f"printf '%s\\n' {lines} | {line}"
        if step.names_tunnel:
            line += " | sed -n 's/.*\"\\(.*\\)\"$/\\1/p'"
    return f"IF=$({line})" if step.names_tunnel else line


# What an undo may look like: the shapes that the functions below make.  Anything else that stands
# in a ledger was put there by somebody else.
@functools.cache  # compiled only when there is a ledger to check
def _undo_shapes() -> tuple[re.Pattern[str], ...]:
    return tuple(
        re.compile(shape.replace("IF", rf"(\$IF|{NAME.pattern})").replace("ADDRESS", r"[0-9a-f:]+"))
        for shape in (
            r"ifconfig IF destroy",
            r"ifconfig IF inet6 (ifdisabled|-accept_rtadv)",
            r"ifconfig IF inet6 (\$LINK_LOCAL|ADDRESS(%IF)?) -alias",
            r"ifconfig IF (down|deletetunnel|-description|-group dtcp)",
            r"ifconfig IF (mtu|fib) [0-9]{1,5}",
            r"ifconfig IF tunnel [0-9.]{7,15} [0-9.]{7,15}",
            r"route -n delete -inet6 (default|ADDRESS(/[0-9]{1,3})?) (-interface IF|::1)"
            r"( -fib [0-9]{1,5})?",
            r"stop /[^\n]+\.rtadvd\.pid",
            r"ngctl shutdown [a-z0-9]{1,31}:(inet6)?",
        )
    )


def is_undo(words: Words) -> bool:
    """Whether a plan could have had this command for an undo."""
    line = " ".join(words)
    if any(" " in word for word in words) and words[0] != STOP:
        return False
    return any(shape.fullmatch(line) for shape in _undo_shapes())


def _ends(
    grant: Grant, options: Options, existing: Interface | None, description: str
) -> list[Step]:
    """The tunnel interface and its outer ends."""
    if grant.ports is not None:
        return _netgraph(grant, grant.ports, options, description)
    return [*_interface(options, existing, description), _outer(grant, existing)]


def _ifconfig(*words: object) -> Words:
    return ("ifconfig", *(str(word) for word in words))


def _interface(options: Options, existing: Interface | None, description: str) -> list[Step]:
    settings: tuple[object, ...] = (
        *("group", GROUP),
        *("description", description),
        *("mtu", options.mtu),
    )
    if options.fib is not None:
        settings += ("fib", options.fib)
    # 13.2 exits 0 when there is no such FIB.
    fib_shown = (f"fib: {options.fib}",) if options.fib else ()
    shows = Check(_ifconfig(TUNNEL), shows=(f"mtu {options.mtu}", GROUP, *fib_shown))
    if existing is not None:
        if existing.description:  # the administrator's: it stays
            settings = settings[:2] + settings[4:]
        return [
            Step(_ifconfig(TUNNEL, *settings), undo=_restored(existing, options.fib), check=shows)
        ]
    # The mark comes first: should a later word fail, or we be killed, it tells whose this is.
    # inet6 words cannot follow in the same command (ifconfig: inet6: bad value).  It is up at once:
    # what devd(8) runs for a new interface, /etc/pccard_ether, lets alone those that are, and would
    # give others what rc.conf(5) has in ifconfig_DEFAULT.
    name = options.interface
    by_name = name is not None and re.fullmatch(r"gif(0|[1-9][0-9]*)", name)
    steps = [
        Step(
            _ifconfig(name if by_name else "gif", "create", *settings, "up"),
            undo=(_ifconfig(TUNNEL, "destroy"),),
            check=shows._replace(shows=(*shows.shows, "UP")),
            leave=_restored(Interface(TUNNEL, groups=(GROUP,)), options.fib)
            if options.keep
            else None,
            names_tunnel="" if by_name else r"gif[0-9]+",
            mark=description,
        )
    ]
    if name is not None and not by_name:
        steps.append(Step(_ifconfig(TUNNEL, "name", name), names_tunnel=re.escape(name)))
    return steps


def _restored(was: Interface, fib: int | None) -> tuple[Words, ...]:
    """The commands that make the tunnel interface what it was, its addresses and pair apart."""
    # Giving an interface an address switches it up and its IPv6 on, which makes a link-local
    # address; taking the address away undoes none of the three.
    commands: list[Words] = []
    if was.inet6_disabled:
        commands.append(_ifconfig(TUNNEL, "inet6", "ifdisabled"))
    if was.link_local is None:
        commands.append(_ifconfig(TUNNEL, "inet6", LINK_LOCAL, "-alias"))
    if not was.up:
        commands.append(_ifconfig(TUNNEL, "down"))
    commands.append(_ifconfig(TUNNEL, "mtu", was.mtu))
    if fib is not None:
        commands.append(_ifconfig(TUNNEL, "fib", was.fib))
    if not was.description:
        commands.append(_ifconfig(TUNNEL, "-description"))
    if GROUP not in was.groups:
        commands.append(UNGROUP)
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
    shown = f"{address.ip}%{TUNNEL}" if address.ip.is_link_local else str(address.ip)
    return Step(
        _ifconfig(TUNNEL, "inet6", address.ip, "prefixlen", length, "alias"),
        undo=(_ifconfig(TUNNEL, "inet6", shown, "-alias"),),
        check=Check(_ifconfig(TUNNEL), shows=(f"inet6 {shown} prefixlen {length}",)),
    )


def _up(grant: Grant, existing: Interface | None) -> list[Step]:
    if grant.ports is None and existing is None:
        return []  # _interface has made it up
    # No undo: the interface is destroyed, or _restored puts it down.
    return [Step(_ifconfig(TUNNEL, "up"), check=Check(_ifconfig(TUNNEL), shows=("UP", "RUNNING")))]


def _routed(options: Options, host: Host) -> list[Step]:
    """Routes of our own making (-r static)."""
    wanted: list[IPv6Network] = []
    for to in options.destinations:
        wanted += HALVES if to == ANYWHERE and host.default_route else (to,)
    return [_route(to, options.fib) for to in dict.fromkeys(wanted)]


def _solicited(host: Host, fib: int | None) -> list[Step]:
    """A default route that the server advertises on the tunnel (-r solicit)."""
    if host.forwards:
        raise PlanError(
            "-r solicit: this host forwards IPv6 (net.inet6.ip6.forwarding), so it takes no route"
            " from an advertisement; use -r static"
        )
    if host.default_route:
        raise PlanError(
            "-r solicit: there is a default route already, and an advertised one would not"
            " replace it; use -r static"
        )
    return [
        Step(
            _ifconfig(TUNNEL, "inet6", "accept_rtadv"),
            undo=(_ifconfig(TUNNEL, "inet6", "-accept_rtadv"),),
            check=Check(_ifconfig(TUNNEL), shows=("ACCEPT_RTADV",), lacks=("IFDISABLED",)),
        ),
        # rtsol(8) exits 0 whatever happens, nobody answering included.
        Step(
            ("rtsol", TUNNEL),
            check=Check(
                ("route", "-n", "get", "-inet6", *_table(fib), "default"),
                shows=(f"interface: {TUNNEL}",),
                otherwise="no router answered on the tunnel; use -r static",
            ),
            limit=RTSOL_TIME,
        ),
    ]


def _destination(to: IPv6Network) -> str:
    if to == ANYWHERE:
        return "default"
    return str(to.network_address) if to.prefixlen == 128 else str(to)


def _table(fib: int | None) -> Words:
    """The words of route(8) that name a FIB."""
    return () if fib is None else ("-fib", str(fib))


def _route(to: IPv6Network, fib: int | None = None) -> Step:
    # Deleting without saying through what could hit another's route of the same destination:
    # with several default routes, 15.1 deletes them all.
    table = _table(fib)
    words = ("-inet6", _destination(to), "-interface", TUNNEL, *table)
    return Step(
        ("route", "-n", "add", *words),
        undo=(("route", "-n", "delete", *words),),
        check=Check(
            ("route", "-n", "get", "-inet6", *table, _destination(to)),
            shows=(f"destination: {to.network_address}", f"interface: {TUNNEL}"),
        ),
    )


def _unreachable(prefix: IPv6Network, fib: int | None) -> Step:
    table = _table(fib)
    return Step(
        ("route", "-n", "add", "-inet6", str(prefix), "::1", "-reject", *table),
        undo=(("route", "-n", "delete", "-inet6", str(prefix), "::1", *table),),
        check=Check(
            ("route", "-n", "get", "-inet6", *table, str(prefix)),
            shows=(f"destination: {prefix.network_address}", "REJECT"),
        ),
    )


# --- over UDP ---------------------------------------------------------------------------------


def _netgraph(
    grant: Grant, ports: tuple[int, int], options: Options, description: str
) -> list[Step]:
    """An ng_iface(4) whose packets an ng_ksocket(4) sends and receives, bare, one a datagram."""
    # The node's name is ours from its first moment, so it can be found whatever becomes of us; the
    # interface's name is the kernel's choice.  The hook to ngctl's own node must go before the
    # same hook can take the ksocket.
    node, socket = f"{options.node}:", f"{options.node}:inet6"
    peer = f"inet/{grant.remote}:{ports[1]}"
    settings: tuple[object, ...] = ("group", GROUP, "description", description, "mtu", options.mtu)
    if options.fib is not None:
        settings += ("fib", options.fib)
    steps = [
        Step(
            ("ngctl", "-f", "-"),
            undo=(("ngctl", "shutdown", node),),
            names_tunnel=r"ng[0-9]+",
            mark=node,
            input="\n".join(
                (
                    "mkpeer iface dummy inet6",
                    f"name dummy {options.node}",
                    "rmhook dummy",
                    f"msg {node} getifname",
                    "",
                )
            ),
        ),
    ]
    if options.interface is not None:
        name = options.interface
        steps.append(Step(_ifconfig(TUNNEL, "name", name), names_tunnel=re.escape(name)))
    return [
        *steps,
        # An ng_iface has an MTU of 1500, which no tunnel can carry.
        Step(
            _ifconfig(TUNNEL, *settings),
            check=Check(_ifconfig(TUNNEL), shows=(f"mtu {options.mtu}",)),
        ),
        # An ICMP unreachable that arrives disconnects the socket: see System.mend.
        Step(
            ("ngctl", "-f", "-"),
            undo=(("ngctl", "shutdown", socket),),
            check=Check(("ngctl", "msg", socket, "getpeername"), shows=(peer,)),
            mend=("ngctl", "msg", socket, "connect", peer),
            input="\n".join(
                (
                    f"mkpeer {node} ksocket inet6 inet/dgram/udp",
                    f"msg {socket} bind inet/{grant.local}:{ports[0]}",
                    f"msg {socket} connect {peer}",
                    "",
                )
            ),
        ),
    ]


# --- the delegated prefix on the LAN ----------------------------------------------------------


def lan_addresses(
    grant: Grant, options: Options, host: Host
) -> list[tuple[Interface, IPv6Interface]]:
    """The addresses that the LAN interfaces get of the delegated prefix.  Raises PlanError."""
    if not grant.prefixes:
        return []
    prefix = grant.prefixes[0]
    interfaces = {interface.name: interface for interface in host.lan}
    found = []
    for wanted in options.delegations:
        interface = interfaces[wanted.interface]
        bits = 64 - prefix.prefixlen
        if wanted.sla >> bits:
            raise PlanError(
                f"{wanted.interface}: SLA ID {wanted.sla:x} does not fit: {prefix} leaves"
                f" {bits} bits for it"
            )
        identifier = wanted.identifier
        if identifier is None:
            identifier = _eui64(interface)
        number = int(prefix.network_address) + (wanted.sla << 64) + identifier
        address = IPv6Interface((number, wanted.length))
        _refuse_foreign(interface, [address.ip])
        found.append((interface, address))
    return found


def _eui64(interface: Interface) -> int:
    """The interface identifier that `ifconfig IF inet6 PREFIX eui64` takes.  Raises PlanError."""
    # Made here, for ifconfig refuses (could not determine link local address) while IPv6 is off.
    if interface.link_local is not None:
        return int(interface.link_local) & (1 << 64) - 1
    if not interface.ether:
        raise PlanError(
            f"{interface.name} has no Ethernet address: give an interface identifier with -P"
        )
    octets = bytes.fromhex(interface.ether.replace(":", ""))
    return int.from_bytes(bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:])), "big")


def _on_lan(interface: Interface, address: IPv6Interface) -> list[Step]:
    name, length = interface.name, address.network.prefixlen
    off: list[Words] = [_ifconfig(name, "inet6", address.ip, "-alias")]
    # An address switches IPv6 and the interface on, and makes a link-local address; all of that
    # outlives the address.
    if interface.inet6_disabled:
        off.append(_ifconfig(name, "inet6", "ifdisabled"))
    if interface.link_local is None:
        off.append(_ifconfig(name, "inet6", LINK_LOCAL, "-alias"))
    if not interface.up:
        off.append(_ifconfig(name, "down"))
    return [
        Step(
            _ifconfig(name, "inet6", address.ip, "prefixlen", length, "alias"),
            undo=tuple(off),
            check=Check(
                _ifconfig(name),
                shows=(f"inet6 {address.ip} prefixlen {length}", "UP"),
                lacks=("IFDISABLED",),
            ),
        )
    ]


def _advertised(
    lan: list[tuple[Interface, IPv6Interface]], options: Options, host: Host
) -> list[Step]:
    """An rtadvd(8) of our own for the LAN, where no running one serves it already."""
    # It reads the prefixes from the routing table, so the interfaces are all it has to be told.
    # With a configuration, pid file and control socket of its own it and the administrator's live
    # side by side; without -C it would take away the other's socket.
    names = [
        interface.name
        for interface, address in lan
        if address.network.prefixlen < 128 and interface.name not in host.advertised
    ]
    if not names or not options.advertise:
        return []
    pid_file = f"{options.files}.rtadvd.pid"
    return [
        Step(
            (
                *("rtadvd", "-c", "/dev/null", "-p", pid_file),
                *("-C", f"{options.files}.rtadvd.sock"),
                *dict.fromkeys(names),
            ),
            # It must end before the addresses go: then it tells the hosts that the router leaves.
            undo=((STOP, pid_file),),
            check=Check((RUNNING, pid_file), shows=("running",)),
            along=tuple(str(address) for _, address in lan),
        )
    ]
