"""The network of a host as FreeBSD's kernel keeps it: plain data and questions about it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from .record import dataclass, field

INET, INET6 = "inet", "inet6"
BITS = {INET: 32, INET6: 128}

# nd6 options of ifconfig(8); the numbers are printed.
PERFORMNUD, ACCEPT_RTADV, IFDISABLED = 0x1, 0x2, 0x8
AUTO_LINKLOCAL, NO_RADR, NO_PREFER_IFACE = 0x20, 0x40, 0x80
NO_DAD, DEFAULTIF = 0x100, 0x8000

# What errno(2) is called on FreeBSD.
EEXIST = "File exists"
EINVAL = "Invalid argument"
ENAMETOOLONG = "File name too long"
ENETUNREACH = "Network is unreachable"
ENOTSOCK = "Socket operation on non-socket"
ENOSPC = "No space left on device"
EADDRNOTAVAIL = "Can't assign requested address"
EPERM = "Operation not permitted"
ESRCH = "No such process"


class Refused(Exception):
    """The kernel says no; the argument is strerror(3)."""


@dataclass
class Address:
    family: str
    address: str
    prefixlen: int
    peer: str = ""
    # From Linux, at each observation anew:
    state: str = ""  # "tentative" or "duplicated"
    lifetimes: tuple[int, int] | None = None  # preferred and valid, if an advertisement gave it

    @property
    def network(self) -> str:
        return network(self.address, self.prefixlen)

    @property
    def is_linklocal(self) -> bool:
        return self.family == INET6 and ip_address(self.address).is_link_local


@dataclass
class Interface:
    name: str
    index: int
    kind: str  # ether, epair, gif, loop, ng
    driver: str  # the name it was born with
    mtu: int
    up: bool = False
    link_flags: int = 0  # LINK0, LINK1, LINK2 of ifconfig(8)
    nd6: int = PERFORMNUD
    fib: int = 0
    description: str = ""
    groups: list[str] = field(default_factory=list)
    addresses: list[Address] = field(default_factory=list)
    ether: str = ""
    hwaddr: str = ""  # the first one, when it was changed
    tunnel: list[str] = field(default_factory=list)  # family, source, destination
    ignore_source: bool = False
    relay: list[int] = field(default_factory=list)  # process id and start time
    relay_pair: list[str] = field(default_factory=list)  # the pair it was started with
    carrier: bool = True  # from Linux

    def address(self, address: str) -> Address | None:
        return next((a for a in self.addresses if a.address == address), None)

    @property
    def linklocal(self) -> Address | None:
        return next((a for a in self.addresses if a.is_linklocal), None)

    @property
    def disabled(self) -> bool:
        """Whether IPv6 is switched off here."""
        return bool(self.nd6 & IFDISABLED)


@dataclass
class Route:
    family: str
    fib: int
    destination: str
    prefixlen: int
    interface: str  # where packets go
    link: str  # whose link# the gateway shows; differs for a host's own addresses
    link_index: int
    gateway: str = ""
    reject: bool = False
    blackhole: bool = False
    static: bool = False
    proto1: bool = False
    pinned: bool = False  # made by an address
    mtu: int = 0
    learned: bool = False  # from a router advertisement: Linux has it, we only show it

    @property
    def is_host(self) -> bool:
        return self.prefixlen == BITS[self.family]

    @property
    def is_own(self) -> bool:
        """The way to an address of this host itself."""
        return self.is_host and self.pinned and self.interface == "lo0"

    @property
    def is_scoped(self) -> bool:
        return ip_address(self.destination).is_link_local and self.family == INET6


@dataclass
class Host:
    release: str
    jail: str = ""
    lacks: list[str] = field(default_factory=list)  # kernel modules that cannot be had
    hostid: str = ""  # from which the link-local address of every gif is made
    interfaces: dict[str, Interface] = field(default_factory=dict)
    routes: list[Route] = field(default_factory=list)
    sysctl: dict[str, int] = field(default_factory=dict)  # what was set, the defaults are elsewhere
    errands: list[str] = field(default_factory=list)  # links to make or break in Linux, not kept

    @property
    def netlink(self) -> bool:
        """Since 14 ifconfig(8) and route(8) speak netlink(4), and stumble differently."""
        return int(self.release.split(".")[0]) >= 14

    @property
    def fibs(self) -> int:
        return self.sysctl.get("net.fibs", 1)

    def holder(self, address: str, fib: int | None = None) -> Interface | None:
        """The interface which has this address."""
        for interface in self.interfaces.values():
            if fib in (None, interface.fib) and interface.address(address):
                return interface
        return None

    def running(self, interface: Interface) -> bool:
        """The flag RUNNING. For a gif: it has a pair, and the source is an address of this host."""
        if interface.kind == "ng":
            return interface.up
        if interface.kind != "gif":
            return True
        source = interface.tunnel[1] if interface.tunnel else ""
        return self.holder(source) is not None and not source.startswith("fe80:")

    def matching(self, family: str, fib: int, destination: str, prefixlen: int) -> list[Route]:
        """All routes to exactly this destination: several with multipath."""
        return [
            r
            for r in self.routes
            if (r.family, r.fib, r.destination, r.prefixlen)
            == (family, fib, destination, prefixlen)
            and not r.is_scoped
        ]

    def lookup(self, family: str, fib: int, address: str) -> list[Route]:
        """The routes a packet would take: the longest prefix."""
        wanted = ip_address(address)
        found: list[Route] = []
        for r in self.routes:
            if (r.family, r.fib) != (family, fib) or r.is_scoped:
                continue
            if wanted in ip_network(f"{r.destination}/{r.prefixlen}"):
                if found and r.prefixlen > found[0].prefixlen:
                    found = []
                if not found or r.prefixlen == found[0].prefixlen:
                    found.append(r)
        return found

    def free_index(self) -> int:
        used = {i.index for i in self.interfaces.values()}
        return next(n for n in naturals() if n not in used)

    def gif_linklocal(self) -> str:
        """gif(4) has no hardware address: its interface identifier is a hash, one per host."""
        return str(ip_address(f"fe80::{self.hostid}"))


def naturals() -> Iterator[int]:
    n = 0
    while True:
        n += 1
        yield n


def network(address: str, prefixlen: int) -> str:
    return str(cut(address, prefixlen).network_address)


def cut(address: str, prefixlen: int) -> IPv4Network | IPv6Network:
    return ip_network(f"{address}/{prefixlen}", strict=False)
