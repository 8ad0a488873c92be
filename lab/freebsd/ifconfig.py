"""ifconfig(8): reads its words from left to right and does each at once, as the real one does.

So what stands before a mistake is done; only the address comes last, when its prefix length and
peer are known.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv6Address, ip_address, ip_network

from . import addresses, links, linux, show, store
from .model import (
    ACCEPT_RTADV,
    AUTO_LINKLOCAL,
    BITS,
    DEFAULTIF,
    EADDRNOTAVAIL,
    EINVAL,
    ENAMETOOLONG,
    EPERM,
    IFDISABLED,
    INET,
    INET6,
    NO_DAD,
    NO_PREFER_IFACE,
    NO_RADR,
    PERFORMNUD,
    Address,
    Host,
    Interface,
    Refused,
)

HEX = "0123456789abcdefABCDEF"
GIF_MTU = range(1280, 8193)
ETHER_MTU = range(72, 65536)
NAME_MAX, DESCRIPTION_MAX = 15, 1023

ND6 = {
    "nud": PERFORMNUD,
    "accept_rtadv": ACCEPT_RTADV,
    "ifdisabled": IFDISABLED,
    "auto_linklocal": AUTO_LINKLOCAL,
    "no_radr": NO_RADR,
    "no_prefer_iface": NO_PREFER_IFACE,
    "no_dad": NO_DAD,
    "defaultif": DEFAULTIF,
}
LINK_FLAGS = {"link0": 0x1000, "link1": 0x2000, "link2": 0x4000}
CREATE, DESTROY = ("create", "plumb"), ("destroy", "unplumb")


class Wrong(Exception):
    """Ends the command: what stands on standard error, without the "ifconfig: "."""


def main(arguments: list[str]) -> int:
    host = store.load()
    linux.observe(host)
    try:
        options = show.Options.parse(arguments, host.netlink)
    except show.Usage as usage:
        sys.stderr.write(str(usage))
        return 1
    words = options.words
    if options.jail:
        return fail("jail not found: No such file or directory")
    if not words or options.all or options.names or options.group or options.cloners:
        sys.stdout.write(show.overview(host, options))
        return 0
    if len(words) == 1 or (len(words) == 2 and words[1] in show.FAMILIES):
        if words[0] not in host.interfaces:
            return fail(f"interface {words[0]} does not exist")
        family = words[1] if len(words) == 2 else ""
        sys.stdout.write(show.interface(host, host.interfaces[words[0]], options, family))
        return 0
    return change(host, words)


def change(host: Host, words: list[str]) -> int:
    command = Command(host, list(words))
    status = 0
    try:
        command.run()
    except Wrong as wrong:
        status = fail(str(wrong))
    # The name of what was made is printed even when a later word is wrong.
    if command.interface and command.interface.name != words[0]:
        print(command.interface.name)
    if not os.geteuid() and host.jail != "plain":
        linux.project(host)
        store.save(host)
    return status


def fail(message: str) -> int:
    print(f"ifconfig: {message}", file=sys.stderr)
    return 1


class Command:
    def __init__(self, host: Host, words: list[str]) -> None:
        self.host, self.words = host, words
        self.interface: Interface | None = None
        self.family = INET
        self.allowed = not os.geteuid() and host.jail != "plain"
        # The address, while it is being put together.
        self.address = self.peer = ""
        self.prefixlen: int | None = None
        self.adds, self.removes, self.alias, self.eui64 = False, False, False, False

    @property
    def it(self) -> Interface:
        assert self.interface
        return self.interface

    def next(self, word: str) -> str:
        if not self.words:
            raise Wrong(f"'{word}' requires argument")
        return self.words.pop(0)

    def run(self) -> None:
        name = self.words.pop(0)
        if self.words[0] in CREATE:
            self.words.pop(0)
            self.create(name)  # or take what is there: only create alone is an error then
        elif name not in self.host.interfaces:
            raise Wrong(f"interface {name} does not exist")
        else:
            self.interface = self.host.interfaces[name]
        if self.words and self.words[0] in show.FAMILIES:
            self.family = self.words.pop(0)
        if self.host.jail == "plain":
            number = 28 if self.family == INET6 else 2
            raise Wrong(f"socket(family {number},SOCK_DGRAM): Protocol not supported")
        while self.words:
            self.do(self.words.pop(0))
            if self.interface is None:
                return  # destroyed
        self.settle()

    def create(self, name: str) -> None:
        if self.host.jail == "plain":
            raise Wrong("socket(family 2,SOCK_DGRAM): Protocol not supported")
        if name in self.host.interfaces:
            if not self.words:
                raise Wrong(f"interface {name} already exists")
            self.interface = self.host.interfaces[name]
            return
        try:
            self.permit()
            self.interface = links.create(self.host, name)
        except Refused as no:
            raise Wrong(f"SIOCIFCREATE2 ({name}): {no}") from None

    def permit(self) -> None:
        if not self.allowed:
            raise Refused(EPERM)

    # --- words ------------------------------------------------------------------------------

    def do(self, word: str) -> None:
        if word in ROOTS_WORDS and not self.allowed:
            raise Wrong(f"{word}: permission denied")
        if word in WORDS:
            WORDS[word](self)
        elif self.family == INET6 and word.lstrip("-") in ND6:
            self.nd6(word)
        elif word.lstrip("-") in LINK_FLAGS:
            flag = LINK_FLAGS[word.lstrip("-")]
            self.it.link_flags = toggled(self.it.link_flags, flag, not word.startswith("-"))
        elif self.family in ("ether", "link", "lladdr"):
            self.set_ether(word)
        else:
            self.take_address(word)

    def up(self) -> None:
        addresses.bring_up(self.host, self.it)

    def down(self) -> None:
        self.it.up = False

    def destroy(self) -> None:
        try:
            self.permit()
            links.destroy(self.host, self.it)
        except Refused as no:
            raise Wrong(f"SIOCIFDESTROY: {no}") from None
        self.interface = None

    def mtu(self) -> None:
        word = self.next("mtu")
        try:
            self.permit()
            size = int(word) if word.isdecimal() else 0
            if size not in (GIF_MTU if self.it.kind == "gif" else ETHER_MTU):
                raise Refused(EINVAL)
        except Refused as no:
            raise Wrong(f"ioctl SIOCSIFMTU (set mtu): {no}") from None
        self.it.mtu = size

    def name(self) -> None:
        try:
            self.permit()
            links.rename(self.host, self.it, self.next("name"))
        except Refused as no:
            raise Wrong(f"ioctl SIOCSIFNAME (set name): {no}") from None

    def describe(self) -> None:
        text = self.next("description")
        try:
            self.permit()
            if len(text) > DESCRIPTION_MAX:
                raise Refused(ENAMETOOLONG)
        except Refused as no:
            raise Wrong(f"ioctl SIOCSIFDESCR (set descr): {no}") from None
        self.it.description = text

    def undescribe(self) -> None:
        self.it.description = ""

    def group(self) -> None:
        group = self.next("group")
        if group[-1:].isdigit():
            raise Wrong("setifgroup: group names may not end in a digit")
        if len(group) > NAME_MAX:
            raise Wrong("setifgroup: group name too long")
        if group not in self.it.groups:
            self.it.groups.append(group)

    def ungroup(self) -> None:
        group = self.next("-group")
        self.it.groups = [g for g in self.it.groups if g != group]

    def tunnel(self) -> None:
        if len(self.words) < 2:
            raise Wrong("'tunnel' requires 2 arguments")
        source, destination = (self.resolve(self.words.pop(0)) for _ in "sd")
        if (":" in source) != (":" in destination):
            raise Wrong("source and destination address families do not match")
        try:
            self.permit()
            links.set_tunnel(self.host, self.it, self.family, source, destination)
        except Refused as no:
            # The famous one: said, but not an error.
            fail(f"SIOCSIFPHYADDR{'_IN6' if self.family == INET6 else ''}: {no}")

    def resolve(self, word: str) -> str:
        address, percent, _ = word.partition("%")
        try:
            if not percent:
                return str(ip_address(word))
            if ip_address(address).is_link_local:
                return word
        except ValueError:
            pass
        import socket  # takes long, and is seldom needed

        try:
            return str(socket.getaddrinfo(word, None, type=socket.SOCK_DGRAM)[0][4][0])
        except OSError:
            reason = show.no_such_name(self.host)
            raise Wrong(f"error in parsing address string: {reason}") from None

    def deletetunnel(self) -> None:
        try:
            self.permit()
            links.delete_tunnel(self.it)
        except Refused as no:
            raise Wrong(f"SIOCDIFPHYADDR: {no}") from None

    def fib(self) -> None:
        number = self.routing_table("fib", "SIOCSIFFIB")
        self.it.fib = self.it.fib if number is None else number

    def tunnelfib(self) -> None:
        self.routing_table("tunnelfib", "SIOCSTUNFIB")  # the relay asks no routing table

    def routing_table(self, word: str, request: str) -> int | None:
        number = self.next(word)
        if number.isdecimal() and int(number) < self.host.fibs:
            return int(number)
        message = f"ioctl ({request}): {EINVAL}"
        if self.host.netlink:
            raise Wrong(message)
        fail(message)  # before 14 this, too, is only said
        return None

    def ignore_source(self) -> None:
        self.it.ignore_source = True

    def heed_source(self) -> None:
        self.it.ignore_source = False

    def ether(self) -> None:
        self.set_ether(self.next("ether"))

    def set_ether(self, word: str) -> None:
        octets = word.split(":")
        if len(octets) != 6 or not all(0 < len(o) < 3 and not o.strip(HEX) for o in octets):
            raise Wrong(f"{word}: bad value")
        self.it.hwaddr = self.it.hwaddr or self.it.ether
        self.it.ether = ":".join(f"{int(octet, 16):02x}" for octet in octets)

    def nd6(self, word: str) -> None:
        if not self.allowed:
            fail(f"ioctl(SIOCSIFINFO_IN6): {EPERM}")  # said, but not an error
            return
        name = word.lstrip("-")
        self.it.nd6 = toggled(self.it.nd6, ND6[name], not word.startswith("-"))
        if name in ("ifdisabled", "auto_linklocal"):
            addresses.attach_linklocal(self.host, self.it)

    # --- the address ------------------------------------------------------------------------

    def take_address(self, word: str) -> None:
        """What is no word of ifconfig's is the address, or after that the peer's."""
        text, slash, bits = word.partition("/")
        if not self.address:
            self.address = self.parse(text, word)
            if slash:
                self.prefixlen = self.parse_prefixlen(bits)
            self.adds = not self.removes
        else:
            self.peer = self.parse(word, word)

    def parse(self, text: str, word: str) -> str:
        try:
            address = ip_address(text.partition("%")[0])
        except ValueError:
            raise Wrong(f"{word}: bad value") from None
        if isinstance(address, IPv6Address) != (self.family == INET6):
            raise Wrong(f"{word}: bad value")
        return str(address)

    def parse_prefixlen(self, word: str) -> int:
        """strtol(3): what is no number is 0, and what follows a number is nothing."""
        number = word.removeprefix("-")
        bits = int(number[: len(number) - len(number.lstrip("0123456789"))] or 0)
        if (bits and number != word) or bits > BITS[self.family]:
            raise Wrong(f"{word}: bad value")
        if self.family == INET6 and not bits and not self.host.netlink:
            return BITS[INET6]
        return bits

    def set_prefixlen(self) -> None:
        self.prefixlen = self.parse_prefixlen(self.next("prefixlen"))

    def netmask(self) -> None:
        word = self.next("netmask")
        try:
            mask = str(ip_address(int(word, 16))) if word.startswith("0x") else word
            self.prefixlen = ip_network(f"0.0.0.0/{mask}").prefixlen
        except ValueError:
            raise Wrong(f"{word}: bad value") from None

    def broadcast(self) -> None:
        self.parse(self.next("broadcast"), "broadcast")  # always that of the network here

    def add_alias(self) -> None:
        self.alias = True

    def remove_alias(self) -> None:
        self.removes, self.adds = True, False

    def take_eui64(self) -> None:
        self.eui64 = True

    def settle(self) -> None:
        """The address, now that all is said about it."""
        if self.eui64:
            self.fill_in_identifier()
        if self.removes:
            self.remove_address()
        elif self.adds:
            self.add_address()

    def fill_in_identifier(self) -> None:
        linklocal = self.it.linklocal
        if not linklocal:
            raise Wrong("could not determine link local address")
        prefix, identifier = int(ip_address(self.address)), int(ip_address(linklocal.address))
        low = (1 << 64) - 1
        if prefix & low:
            raise Wrong("interface index is already filled")
        self.address = str(IPv6Address(prefix | identifier & low))

    def remove_address(self) -> None:
        try:
            self.removal_permitted()
            addresses.remove(self.host, self.it, self.address)
        except Refused as no:
            raise Wrong(f"ioctl (SIOCDIFADDR): {no}") from None

    def removal_permitted(self) -> None:
        if not self.allowed:
            raise Refused(EPERM if self.host.netlink else EADDRNOTAVAIL)

    def add_address(self) -> None:
        if not self.allowed:
            word = EPERM if self.host.netlink else "permission denied"
            raise Wrong(f"ioctl (SIOCAIFADDR): {word}")
        prefixlen = self.prefixlen
        if prefixlen is None:
            prefixlen = 64 if self.family == INET6 else class_of(self.address)
        new = Address(self.family, self.address, prefixlen, self.peer)
        if self.family == INET and not self.alias:
            self.clear_first(new)
        try:
            addresses.add(self.host, self.it, new)
        except Refused as no:
            raise Wrong(f"ioctl (SIOCAIFADDR): {no}") from None

    def clear_first(self, new: Address) -> None:
        """Without ``alias`` an IPv4 address replaces the first one there is."""
        first = next((a for a in self.it.addresses if a.family == INET), None)
        if first and first != new:
            addresses.remove(self.host, self.it, first.address)


def class_of(address: str) -> int:
    """The prefix length of an IPv4 address of which none is given: before 1993 and here."""
    first = IPv4Interface(address).packed[0]
    return 8 if first < 128 else 16 if first < 192 else 24


def toggled(flags: int, flag: int, on: bool) -> int:
    return flags | flag if on else flags & ~flag


# The words for which FreeBSD has no better answer to who is not root.
ROOTS_WORDS = (
    *("up", "down", "-description", "-descr", "group", "-group", "fib", "tunnelfib"),
    *("ignore_source", "-ignore_source", "ether", "lladdr"),
)


def nothing(_: Command) -> None:
    """A word that changes nothing here."""


WORDS: dict[str, Callable[[Command], None]] = {
    "up": Command.up,
    "down": Command.down,
    **dict.fromkeys(DESTROY, Command.destroy),
    "mtu": Command.mtu,
    "name": Command.name,
    "description": Command.describe,
    "descr": Command.describe,
    "-description": Command.undescribe,
    "-descr": Command.undescribe,
    "group": Command.group,
    "-group": Command.ungroup,
    "tunnel": Command.tunnel,
    "deletetunnel": Command.deletetunnel,
    "-tunnel": Command.deletetunnel,
    "fib": Command.fib,
    "tunnelfib": Command.tunnelfib,
    "ignore_source": Command.ignore_source,
    "-ignore_source": Command.heed_source,
    "ether": Command.ether,
    "lladdr": Command.ether,
    "prefixlen": Command.set_prefixlen,
    "netmask": Command.netmask,
    "broadcast": Command.broadcast,
    "alias": Command.add_alias,
    "add": Command.add_alias,
    **dict.fromkeys(("-alias", "delete", "remove"), Command.remove_alias),
    "eui64": Command.take_eui64,
    "prefer_source": nothing,
    "-prefer_source": nothing,
}
