"""A tunnel is a list of reversible commands: grant + options + what the host has -> Plan.  No I/O.

`client` and `server` make the plan; `dtcp.system` runs it, forwards and backwards.  `--dry-run`
prints it.  Nothing else ever changes the system, so whatever dtcpc can do to a host is on this
page, which is long for that reason.  Every word of a command comes out of `ipaddress`, an integer,
or a name that matched dtcp.look.NAME (interfaces) or dtcp.wire.USER and HOST (the mark).

What makes the interface comes first (`Make`); the steps behind it are what the interface, the
routing table and the LAN get.  The order, and what FreeBSD needs for each step, is that of gif(4),
ifconfig(8) and route(8) as they were seen to behave on 13.2 and 15.1; the oddities are named where
they matter.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple

from dtcp.errors import Error
from dtcp.grant import Grant
from dtcp.look import NAME, Interface

Words = tuple[str, ...]

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"  # RFC 1035 section 2.3.4
HOST = rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?"  # a host name, or an address

MTU_LEAST, MTU_MOST = 1280, 8192  # gif(4)
GROUP = "dtcp"  # the interface group (ifconfig(8)) by which our interfaces are found

# The variables of a command.  The first stands for the tunnel interface until its name is known:
# the kernel picks it, and ifconfig prints it.  Spelled so that a printed plan can be pasted into
# sh(1).  The second, in an undo, for each link-local address that the interface has by then.
TUNNEL = "$IF"
LINK_LOCAL = "$LINK_LOCAL"

# The undo that takes an interface which is not of our making out of our group: the last of all.
UNGROUP = ("ifconfig", TUNNEL, "-group", GROUP)

RTSOL_TIME = 20.0  # seconds: rtsol(8) gives up after 9 to 12

ANYWHERE = IPv6Network("::/0")
# Where somebody else's default route exists these go in instead of ours: together they cover
# everything, they win by their length, and when they are gone the other is as it was.
HALVES = (IPv6Network("::/1"), IPv6Network("8000::/1"))


class EndDaemon(NamedTuple):
    """An undo: ends the daemon that holds this pid file, and waits until it has gone."""

    pid_file: str


Undo = Words | EndDaemon


class Shows(NamedTuple):
    """Holds when `look` shows every phrase of `shows` and none of `lacks`.

    A phrase is words in a row.  Blanks and the signs <>,= separate words, for the order and the
    columns of these outputs differ between releases.
    """

    look: Words
    shows: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    otherwise: str = ""  # what it means when they are not as they should be


class DaemonRuns(NamedTuple):
    """Holds when a daemon holds this pid file locked: it does so when it is ready."""

    pid_file: str


Holds = Shows | DaemonRuns


class Step(NamedTuple):
    """One command, the commands that undo it in their order, and what shows that it holds."""

    do: Words
    undo: tuple[Undo, ...] = ()
    holds: Holds | None = None
    limit: float | None = None  # seconds that the command may take, when not the usual ones
    input: str = ""  # what the command reads
    mend: Words = ()  # what makes it hold again, if it ever ceases to
    vital: bool = True  # a tunnel that loses it for good is lost


class Make(NamedTuple):
    """The tunnel interface: what makes it, what it is called, and by what it is known as ours.

    One that is there already is taken over instead, and has no mark.
    """

    do: Words
    undo: tuple[Undo, ...]
    holds: Shows | None = None
    settings: Words = ()  # the words of `do` that can be said again, at any time
    ends: Words = ()  # those after them: the outer pair, which can be changed on its own
    mark: str = ""  # its description, or the name of its netgraph node, which ends in a colon
    name: str = ""  # what it is called, where that is known before
    prints: str = ""  # otherwise: the command prints its name, which matches this
    rename: str = ""  # what it is called from then on
    input: str = ""  # what the command reads
    leave: tuple[Undo, ...] | None = None  # in place of `undo` once the tunnel has been up
    vital: bool = True  # as with a step

    @property
    def command(self) -> Words:
        """All the words of the command."""
        return (*self.do, *self.settings, *self.ends)

    @property
    def description(self) -> str:
        """The description that it gives the interface; empty: it leaves that alone."""
        words = iter(self.settings)
        return next(words) if "description" in words else ""

    @property
    def again(self) -> Words:
        """The command for an interface that exists."""
        return ("ifconfig", TUNNEL, *self.settings, *self.ends)


class Plan(NamedTuple):
    """What makes the interface, if there is to be one, and the steps behind that."""

    make: Make | None
    steps: tuple[Step, ...]


class Delegation(NamedTuple):
    """What one LAN interface gets of the delegated prefix (-P)."""

    interface: str
    sla: int
    identifier: int | None  # the low 64 bits of its address; None: EUI-64 (RFC 4291 appendix A)
    length: int


class Alias(NamedTuple):
    """One more address of the tunnel interface (-A), as ifconfig(8) has it."""

    address: IPv6Interface
    peer: IPv6Address | None = None  # the other end of the link; then the length is 128


class Options(NamedTuple):
    """What the user asked for, as far as the host's configuration is concerned."""

    interface: str | None = None  # -i
    keep: bool = False  # -o
    mtu: int = MTU_LEAST  # -m
    aliases: tuple[Alias, ...] = ()  # -A
    destinations: tuple[IPv6Network, ...] = (ANYWHERE,)  # -R
    fib: int | None = None  # -F
    solicit: bool = False  # -r solicit
    delegations: tuple[Delegation, ...] = ()  # -P
    advertise: bool = True  # not -a
    files: str = "/var/run/dtcpc"  # what the names of rtadvd's files begin with
    node: str = ""  # over UDP: the name of our netgraph node, like no other's


class PlanError(Error):
    """What was asked for cannot be had on this host."""


class Host(NamedTuple):
    """What the host has that a plan depends on."""

    existing: Interface | None = None  # the tunnel interface, when it is to be used as it stands
    default_route: bool = False  # somebody has an IPv6 default route
    forwards: bool = False  # it is a router: net.inet6.ip6.forwarding
    lan: tuple[Interface, ...] = ()  # the interfaces of -P that are there
    advertised: tuple[str, ...] = ()  # interfaces that a running rtadvd serves
    routed: tuple[IPv6Network, ...] = ()  # networks that have a route already


def mark(program: str, user: str, server: str, pid: int) -> str:
    """The description by which an interface is known to be ours, and whose it is."""
    return f"{program} {user}@{server} pid {pid}"


def is_mark(description: str) -> bool:
    """Whether it is such a description."""
    return re.fullmatch(r"dtcp[cs] \S+@\S+ pid [0-9]+", description) is not None


def client(grant: Grant, options: Options, host: Host, description: str) -> Plan:
    """The plan of a client's tunnel.  Raises PlanError."""
    if host.existing is not None:
        _refuse_foreign(
            host.existing, [grant.inner, *(each.address.ip for each in options.aliases)]
        )
    lan = lan_addresses(grant, options, host)
    # Packets to subnets of the delegated prefix that are not in use must not bounce between us and
    # the server.  An interface that has the very same prefix needs no such route, and must not
    # have it: on 13.2 it would shadow the interface's own, on 15.1 be replaced by it.
    taken = [*host.routed, *(alias.address.network for alias in options.aliases)]
    taken += [address.network for _, address in lan]
    make, first = _interface(grant, options, host.existing, description)
    return Plan(
        make,
        (
            *first,
            *_inner(grant, options.aliases),
            *(_solicited(host, options.fib) if options.solicit else _routed(options, host)),
            *(_unreachable(each, options.fib) for each in grant.prefixes if each not in taken),
            *(_on_lan(interface, address) for interface, address in lan),
            *_advertised(lan, options, host),
        ),
    )


def _refuse_foreign(interface: Interface, wanted: Iterable[IPv6Address | None]) -> None:
    # ifconfig(8) would not mind, and the address would be gone afterwards.
    for address in wanted:
        if address is not None and address in (*interface.addresses, interface.link_local):
            raise PlanError(f"{interface.name} has {address} already, and not from dtcpc")


def server(
    grant: Grant, options: Options, description: str, existing: Interface | None = None
) -> Plan:
    """The plan of a server's end of a tunnel; `grant` as the server sees it."""
    make, first = _interface(grant, options, existing, description)
    routes = (_route(prefix, options.fib) for prefix in grant.prefixes)
    return Plan(make, (*first, *_inner(grant, ()), *routes))


def unreachable(prefixes: Iterable[IPv6Network], fib: int | None) -> Plan:
    """What a server does not use of its prefixes must not bounce between it and its router.

    Here these routes are all there is, and each counts.
    """
    steps = (_unreachable(prefix, fib)._replace(vital=True) for prefix in prefixes)
    return Plan(None, tuple(steps))


def routes(plan: Plan) -> list[str]:
    """The destinations that a plan routes through the tunnel."""
    return [step.do[4] for step in plan.steps if step.do[5:7] == ("-interface", TUNNEL)]


def script(plan: Plan) -> list[str]:
    """The commands of a plan as lines for sh(1)."""
    lines = []
    if (make := plan.make) is not None:
        line = _line(make.command, make.input)
        if make.input:
            line += " | sed -n 's/.*\"\\(.*\\)\"$/\\1/p'"
        lines += [f"IF={make.name}", line] if make.name else [f"IF=$({line})"]
        if make.rename:
            lines.append(f"IF=$({_line(renamed(make))})")
    return lines + [_line(step.do, step.input) for step in plan.steps]


def _line(words: Words, input: str = "") -> str:
    line = " ".join(word if word == TUNNEL else shlex.quote(word) for word in words)
    if input:
        line = f"printf '%s\\n' {shlex.join(input.splitlines())} | {line}"
    return line


# What an undo may look like: the shapes that the functions below make.  Anything else that stands
# in a ledger was put there by somebody else.
_UNDO_SHAPES = tuple(
    shape.replace("IF", rf"(\$IF|{NAME})").replace("ADDRESS", r"[0-9a-f:.]+")
    for shape in (
        r"ifconfig IF destroy",
        r"ifconfig IF inet6 (ifdisabled|-accept_rtadv)",
        r"ifconfig IF inet6 (\$LINK_LOCAL|ADDRESS(%IF)?) -alias",
        r"ifconfig IF (down|deletetunnel|-description|-group dtcp)",
        r"ifconfig IF (mtu|fib) [0-9]{1,5}",
        r"ifconfig IF tunnel [0-9.]{7,15} [0-9.]{7,15}",
        r"route -n delete -inet6 (default|ADDRESS(/[0-9]{1,3})?) (-interface IF|::1)"
        r"( -fib [0-9]{1,5})?",
        r"ngctl shutdown [a-z0-9]{1,31}:(inet6)?",
    )
)


def written(undo: Undo) -> list[str]:
    """An undo as a ledger has it."""
    return ["stop", undo.pid_file] if isinstance(undo, EndDaemon) else list(undo)


def read(words: list[str]) -> Undo | None:
    """The undo that a ledger has written like this, or None: no plan could have had it."""
    match words:
        case ["stop", pid_file] if re.fullmatch(r"/[^\n]+\.rtadvd\.pid", pid_file):
            return EndDaemon(pid_file)
    line = " ".join(words)
    known = any(re.fullmatch(shape, line) for shape in _UNDO_SHAPES)
    return tuple(words) if known and not any(" " in word for word in words) else None


def _ifconfig(*words: object) -> Words:
    return ("ifconfig", *(str(word) for word in words))


def _interface(
    grant: Grant, options: Options, existing: Interface | None, description: str
) -> tuple[Make, tuple[Step, ...]]:
    """What makes the tunnel interface, and the steps that complete it."""
    # The mark comes first: should a later word fail, or we be killed, it tells whose this is.
    # inet6 words cannot follow in the same command (ifconfig: inet6: bad value).
    marked: tuple[object, ...] = ("group", GROUP, "description", description)
    if existing is not None and existing.description:  # the administrator's: it stays
        marked = ("group", GROUP)
    # It is up at once: what devd(8) runs for a new interface, /etc/pccard_ether, lets alone those
    # that are, and would give others what rc.conf(5) has in ifconfig_DEFAULT.
    settings = (*marked, "mtu", options.mtu, *_fib(options), "up")
    # 13.2 exits 0 when there is no such FIB.
    shows = (f"mtu {options.mtu}", GROUP, *([f"fib: {options.fib}"] if options.fib else ()))
    if grant.ports is not None:
        return _netgraph(grant, grant.ports, options, settings, shows)
    # `tunnel` exits 0 when the kernel refuses the pair: only looking tells.
    shows = (*shows, "UP", "RUNNING", f"tunnel inet {grant.local} --> {grant.remote}")
    make = Make(
        _ifconfig(TUNNEL),
        undo=(),
        holds=Shows(_ifconfig(TUNNEL), shows),
        settings=tuple(map(str, settings)),
        ends=("tunnel", str(grant.local), str(grant.remote)),
    )
    if existing is not None:
        return make._replace(undo=_restored(existing, options.fib), name=existing.name), ()
    name = options.interface or ""
    by_name = re.fullmatch(r"gif(0|[1-9][0-9]*)", name) is not None
    make = make._replace(
        do=_ifconfig(name if by_name else "gif", "create"),
        undo=(_ifconfig(TUNNEL, "destroy"),),
        mark=description,
        name=name if by_name else "",
        prints="" if by_name else r"gif[0-9]+",
        rename="" if by_name else name,
    )
    if options.keep:
        bare = Interface(TUNNEL, groups=(GROUP,))
        make = make._replace(leave=_restored(bare, options.fib))
    return make, ()


def _fib(options: Options) -> tuple[object, ...]:
    return () if options.fib is None else ("fib", options.fib)


def renamed(make: Make) -> Words:
    """The command that gives an interface which was just made its own name, and prints that."""
    return _ifconfig(TUNNEL, "name", make.rename)


def _restored(was: Interface, fib: int | None) -> tuple[Words, ...]:
    """The commands that make the tunnel interface what it was, apart from its addresses."""
    pair = ("tunnel", *was.outer) if was.outer else ("deletetunnel",)
    commands = [_ifconfig(TUNNEL, *pair)]
    # Giving an interface an address switches it up and its IPv6 on, which makes a link-local
    # address; taking the address away undoes none of the three.
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


def _inner(grant: Grant, aliases: tuple[Alias, ...]) -> list[Step]:
    steps = []
    if grant.inner is not None:
        steps.append(_pair(grant.inner, grant.peer))
    else:
        # Without an address nothing else switches IPv6 on, which a new gif has off.
        steps.append(
            Step(
                _ifconfig(TUNNEL, "inet6", "-ifdisabled"),
                holds=Shows(_ifconfig(TUNNEL), lacks=("IFDISABLED",)),
            )
        )
    return steps + [_alias(alias) for alias in aliases]


def _pair(inner: IPv6Address, peer: IPv6Address | None) -> Step:
    ends = (inner,) if peer is None else (inner, peer)
    return Step(
        _ifconfig(TUNNEL, "inet6", *ends, "prefixlen", 128, "alias"),
        undo=(_ifconfig(TUNNEL, "inet6", inner, "-alias"),),
        holds=Shows(
            _ifconfig(TUNNEL),
            shows=(f"inet6 {' --> '.join(map(str, ends))} prefixlen 128",),
            lacks=("IFDISABLED",),
        ),
    )


def _alias(alias: Alias) -> Step:
    address, length = alias.address.ip, alias.address.network.prefixlen
    own = f"{address}%{TUNNEL}" if address.is_link_local else str(address)
    ends = () if alias.peer is None else (alias.peer,)
    shown = " --> ".join((own, *map(str, ends)))
    return Step(
        _ifconfig(TUNNEL, "inet6", address, *ends, "prefixlen", length, "alias"),
        undo=(_ifconfig(TUNNEL, "inet6", own, "-alias"),),
        holds=Shows(_ifconfig(TUNNEL), shows=(f"inet6 {shown} prefixlen {length}",)),
    )


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
            holds=Shows(_ifconfig(TUNNEL), shows=("ACCEPT_RTADV",), lacks=("IFDISABLED",)),
        ),
        # rtsol(8) exits 0 whatever happens, nobody answering included.  The name servers and
        # domains of an advertisement it gives to a script, by itself to resolvconf(8): they would
        # hold for the whole host, and nothing would take them back.
        Step(
            ("rtsol", "-R", "/usr/bin/true", TUNNEL),
            holds=Shows(
                ("route", "-n", "get", "-inet6", *_table(fib), "default"),
                shows=(f"interface: {TUNNEL}",),
                otherwise="no router answered on the tunnel; use -r static",
            ),
            limit=RTSOL_TIME,
            vital=False,  # another interface may get a default route that goes before ours
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
        holds=Shows(
            ("route", "-n", "get", "-inet6", *table, _destination(to)),
            shows=(f"destination: {to.network_address}", f"interface: {TUNNEL}"),
        ),
    )


def _unreachable(prefix: IPv6Network, fib: int | None) -> Step:
    table = _table(fib)
    return Step(
        ("route", "-n", "add", "-inet6", str(prefix), "::1", "-reject", *table),
        undo=(("route", "-n", "delete", "-inet6", str(prefix), "::1", *table),),
        holds=Shows(
            ("route", "-n", "get", "-inet6", *table, str(prefix)),
            shows=(f"destination: {prefix.network_address}", "REJECT"),
        ),
        vital=False,
    )


# --- over UDP ---------------------------------------------------------------------------------


def _netgraph(
    grant: Grant,
    ports: tuple[int, int],
    options: Options,
    settings: tuple[object, ...],
    shows: tuple[str, ...],
) -> tuple[Make, tuple[Step, ...]]:
    """An ng_iface(4) whose packets an ng_ksocket(4) sends and receives, bare, one a datagram."""
    # The node's name is ours from its first moment, so it can be found whatever becomes of us; the
    # interface's name is the kernel's choice.  The hook to ngctl's own node must go before the
    # same hook can take the ksocket.
    node, socket = f"{options.node}:", f"{options.node}:inet6"
    peer = f"inet/{grant.remote}:{ports[1]}"
    make = Make(
        ("ngctl", "-f", "-"),
        undo=(("ngctl", "shutdown", node),),
        mark=node,
        prints=r"ng[0-9]+",
        rename=options.interface or "",
        input=_lines(
            "mkpeer iface dummy inet6",
            f"name dummy {options.node}",
            "rmhook dummy",
            f"msg {node} getifname",
        ),
    )
    return make, (
        # An ng_iface has an MTU of 1500, which no tunnel can carry.
        Step(_ifconfig(TUNNEL, *settings), holds=Shows(_ifconfig(TUNNEL), (*shows, "UP"))),
        # An ICMP unreachable that arrives disconnects the socket: see System.mend.
        Step(
            ("ngctl", "-f", "-"),
            undo=(("ngctl", "shutdown", socket),),
            holds=Shows(("ngctl", "msg", socket, "getpeername"), (peer,)),
            mend=("ngctl", "msg", socket, "connect", peer),
            input=_lines(
                f"mkpeer {node} ksocket inet6 inet/dgram/udp",
                f"msg {socket} bind inet/{grant.local}:{ports[0]}",
                f"msg {socket} connect {peer}",
            ),
        ),
    )


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


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
        bits = 64 - prefix.prefixlen
        if wanted.sla >> bits:
            raise PlanError(
                f"{wanted.interface}: SLA ID {wanted.sla:x} does not fit: {prefix} leaves"
                f" {bits} bits for it"
            )
        interface = interfaces.get(wanted.interface)
        if interface is None:  # it may come later (dtcp.client.survey)
            continue
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


def _on_lan(interface: Interface, address: IPv6Interface) -> Step:
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
    return Step(
        _ifconfig(name, "inet6", address.ip, "prefixlen", length, "alias"),
        undo=tuple(off),
        holds=Shows(
            _ifconfig(name),
            # Not UP, which is the administrator's to change.
            shows=(f"inet6 {address.ip} prefixlen {length}",),
            lacks=("IFDISABLED",),
        ),
        vital=False,  # an interface that is unplugged is no reason to lose the tunnel
    )


def _advertised(
    lan: list[tuple[Interface, IPv6Interface]], options: Options, host: Host
) -> list[Step]:
    """An rtadvd(8) of our own for the LAN, where no running one serves it already."""
    # It reads the prefixes from the routing table, so the interfaces are all it has to be told; and
    # it follows their changes, so that the hosts hear which prefix is not to be used any more.
    # With a configuration, pid file and control socket of its own it and the administrator's live
    # side by side; without -C it would take away the other's socket.
    names = [
        interface.name
        for interface, address in lan
        if address.network.prefixlen < 128 and interface.name not in host.advertised
    ]
    if not names or not options.advertise:
        return []
    pid_file, control = f"{options.files}.rtadvd.pid", f"{options.files}.rtadvd.sock"
    return [
        Step(
            ("rtadvd", "-c", "/dev/null", "-p", pid_file, "-C", control, *dict.fromkeys(names)),
            # It must end before the addresses go: then it tells the hosts that the router leaves.
            undo=(EndDaemon(pid_file),),
            holds=DaemonRuns(pid_file),
            vital=False,
        )
    ]
