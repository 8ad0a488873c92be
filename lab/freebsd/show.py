"""What ifconfig(8) prints about interfaces."""

from __future__ import annotations

import getopt
from ipaddress import ip_address, ip_interface

from .model import INET, INET6, Address, Host, Interface
from .record import dataclass, field

FAMILIES = ("inet", "inet6", "link", "ether", "lladdr")

UP, BROADCAST, LOOPBACK, POINTOPOINT, EPOCH, RUNNING = 0x1, 0x2, 0x8, 0x10, 0x20, 0x40
NOARP, SIMPLEX, MULTICAST, LOWER_UP = 0x80, 0x800, 0x8000, 0x1000000
FLAGS = {
    UP: "UP",
    BROADCAST: "BROADCAST",
    LOOPBACK: "LOOPBACK",
    POINTOPOINT: "POINTOPOINT",
    RUNNING: "RUNNING",
    NOARP: "NOARP",
    SIMPLEX: "SIMPLEX",
    0x1000: "LINK0",
    0x2000: "LINK1",
    0x4000: "LINK2",
    MULTICAST: "MULTICAST",
    LOWER_UP: "LOWER_UP",
}
ND6 = {
    0x1: "PERFORMNUD",
    0x2: "ACCEPT_RTADV",
    0x8: "IFDISABLED",
    0x20: "AUTO_LINKLOCAL",
    0x40: "NO_RADR",
    0x80: "NO_PREFER_IFACE",
    0x100: "NO_DAD",
    0x8000: "DEFAULTIF",
}
# What the drivers can do: as vtnet(4), epair(4), gif(4) and lo(4) say.
VTNET = "RXCSUM,TXCSUM,VLAN_MTU,VLAN_HWTAGGING,JUMBO_MTU,VLAN_HWCSUM,TSO4,TSO6,LRO,"
OPTIONS = {
    True: {
        "ether": f"ec07bb<{VTNET}VLAN_HWTSO,LINKSTATE,RXCSUM_IPV6,TXCSUM_IPV6,HWSTATS>",
        "epair": "60001b<RXCSUM,TXCSUM,VLAN_MTU,VLAN_HWTAGGING,RXCSUM_IPV6,TXCSUM_IPV6>",
        "gif": "80000<LINKSTATE>",
        "loop": "680003<RXCSUM,TXCSUM,LINKSTATE,RXCSUM_IPV6,TXCSUM_IPV6>",
        "ng": "0",
    },
    False: {
        "ether": f"4c07bb<{VTNET}VLAN_HWTSO,LINKSTATE,TXCSUM_IPV6>",
        "epair": "8<VLAN_MTU>",
        "gif": "80000<LINKSTATE>",
        "loop": "680003<RXCSUM,TXCSUM,LINKSTATE,RXCSUM_IPV6,TXCSUM_IPV6>",
    },
}
CAPABILITIES = {
    True: f"ed07bb<{VTNET}VLAN_HWFILTER,VLAN_HWTSO,LINKSTATE,RXCSUM_IPV6,TXCSUM_IPV6,HWSTATS>",
    False: f"4d07bb<{VTNET}VLAN_HWFILTER,VLAN_HWTSO,LINKSTATE,TXCSUM_IPV6>",
}
CLONERS = {
    True: "vlan gre bridge vmnet tap tun stf lo gif epair\n",
    False: "gre bridge vlan vmnet tap tun gif epair lo stf\n",
}
USAGE = """\
usage: ifconfig {j}[-f type:format] [-g groupname] [-C] [-L] interface address_family
                [address [dest_address]] [parameters]
       ifconfig {j}interface create
       ifconfig {j}-a [-g groupname] [-C] [-L] [-d] [-m] [-u] [-v] [address_family]
       ifconfig {j}-l [-d] [-u] [address_family]
       ifconfig {j}[-g groupname] [-C] [-L] [-d] [-m] [-u] [-v]
"""


class Usage(Exception):
    """An option that is none: what is printed then."""


@dataclass
class Options:
    words: list[str]
    all: bool = False
    names: bool = False
    up: bool = False
    down: bool = False
    cloners: bool = False
    capabilities: bool = False
    verbose: bool = False
    group: str = ""
    jail: str = ""
    formats: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, arguments: list[str], netlink: bool) -> Options:
        letters = "aCdf:g:G:kLlmnuv" + ("j:" if netlink else "")
        try:
            given, words = getopt.getopt([a if a != "--" else "-?" for a in arguments], letters)
        except getopt.GetoptError as error:
            usage = USAGE.format(j="[-j jail] " if netlink else "")
            letter = "-" if arguments[0].startswith("--") else error.opt
            raise Usage(f"ifconfig: illegal option -- {letter}\n{usage}") from None
        options = cls(words)
        for letter, value in given:
            if letter == "-f":
                options.formats = dict(f.partition(":")[::2] for f in value.split(","))
            elif letter in ARGUMENTS:
                setattr(options, ARGUMENTS[letter], value)
            elif letter in SWITCHES:
                setattr(options, SWITCHES[letter], True)
        return options


ARGUMENTS = {"-g": "group", "-j": "jail"}
SWITCHES = {
    "-a": "all",
    "-l": "names",
    "-u": "up",
    "-d": "down",
    "-C": "cloners",
    "-m": "capabilities",
    "-v": "verbose",
}


def no_such_name(host: Host) -> str:
    """gai_strerror(3) when there is no resolver."""
    return "Name could not be resolved at this time" if host.netlink else "Name does not resolve"


def overview(host: Host, options: Options) -> str:
    """``-a``, ``-l``, ``-g`` and ``-C``."""
    if options.cloners:
        return CLONERS[host.netlink]
    family = options.words[0] if options.words else ""
    chosen = [
        i
        for i in host.interfaces.values()
        if (not options.up or i.up)
        and (not options.down or not i.up)
        and (not options.group or options.group in i.groups)
    ]
    if options.names:
        return " ".join(i.name for i in chosen if has(i, family)) + "\n"
    if options.group and not options.all:
        return "".join(f"{i.name}\n" for i in chosen)
    return "".join(interface(host, i, options, family) for i in chosen)


def has(interface: Interface, family: str) -> bool:
    if family in (INET, INET6):
        return any(a.family == family for a in interface.addresses)
    return not family or bool(interface.ether)


def bits(value: int, names: dict[int, str]) -> str:
    return f"{value:x}<{','.join(name for bit, name in names.items() if value & bit)}>"


def flags(host: Host, interface: Interface) -> int:
    value = MULTICAST | interface.link_flags | (UP if interface.up else 0)
    if interface.kind in ("ether", "epair"):
        value |= BROADCAST | SIMPLEX | RUNNING
        value |= (LOWER_UP if interface.carrier else 0) if host.netlink else EPOCH
    else:
        value |= LOOPBACK if interface.kind == "loop" else POINTOPOINT
        value |= RUNNING if host.running(interface) else 0
        value |= NOARP | SIMPLEX if interface.kind == "ng" else 0
        value |= LOWER_UP if host.netlink and interface.up else 0
    return value


def interface(host: Host, it: Interface, options: Options, family: str) -> str:
    """The lines about one interface; with a family only some of them."""
    if family and host.netlink and not has(it, family):
        return ""
    everything = not family
    lines = [f"{it.name}: flags={bits(flags(host, it), FLAGS)} metric 0 mtu {it.mtu}"]
    if it.description:
        lines.append(f"description: {it.description}")
    if it.kind in OPTIONS[host.netlink]:
        lines.append(f"options={OPTIONS[host.netlink][it.kind]}")
    if options.capabilities and it.kind == "ether":
        lines.append(f"capabilities={CAPABILITIES[host.netlink]}")
    if it.ether and family not in (INET, INET6):
        lines.append(f"ether {it.ether}")
        if it.hwaddr and it.hwaddr != it.ether:
            lines.append(f"hwaddr {it.hwaddr}")
    if host.jail != "plain":
        if it.tunnel:
            lines.append("tunnel {} {} --> {}".format(*it.tunnel))
        lines += [
            address(host, it, a, options) for a in ordered(host, it) if family in ("", a.family)
        ]
    if it.groups and everything:
        lines.append(f"groups: {' '.join(it.groups)}")
    if it.fib and everything:
        lines.append(f"fib: {it.fib}")
    if it.ether and everything:
        kind = "autoselect" if it.kind == "ether" else "10Gbase-T"
        lines.append(f"media: Ethernet {kind} (10Gbase-T <full-duplex>)")
        lines.append(f"status: {'active' if it.carrier else 'no carrier'}")
    if it.ignore_source and everything:
        lines.append("options=2<IGNORE_SOURCE>")
    if family in ("", INET6) and host.jail != "plain":
        lines.append(f"nd6 options={bits(it.nd6, ND6)}")
    if options.verbose and host.netlink:
        lines.append(f"drivername: {it.driver}")
    return "\n\t".join(lines) + "\n"


def ordered(host: Host, it: Interface) -> list[Address]:
    """13.2 lists first the family that was there first, 15.1 IPv4."""
    families = [a.family for a in it.addresses]
    first = INET if host.netlink or not families else families[0]
    return sorted(it.addresses, key=lambda a: a.family != first)


def address(host: Host, it: Interface, a: Address, options: Options) -> str:
    if a.family == INET:
        return inet(it, a)
    scoped = a.is_linklocal or (ip_address(a.address).is_multicast and not host.netlink)
    zone = f"%{it.name}" if scoped else ""
    words = [f"inet6 {a.address}{zone}"]
    if a.peer and not (host.netlink and a.peer == a.address):
        words.append(f"--> {a.peer}{zone}")
    if options.formats.get(INET6) == "cidr":
        words[-1] += f"/{a.prefixlen}"
    else:
        words.append(f"prefixlen {a.prefixlen}")
    if a.state:
        words.append(a.state)
    if scoped:
        words.append(f"scopeid 0x{it.index:x}")
    if a.lifetimes:
        words.append("autoconf")
        if host.netlink:
            words.append("pltime {} vltime {}".format(*a.lifetimes))
    return " ".join(words)


def inet(it: Interface, a: Address) -> str:
    network = ip_interface(f"{a.address}/{a.prefixlen}").network
    words = [f"inet {a.address}"]
    if a.peer:
        words.append(f"--> {a.peer}")
    words.append(f"netmask 0x{int(network.netmask):08x}")
    if it.ether:
        words.append(f"broadcast {network.broadcast_address}")
    return " ".join(words)
