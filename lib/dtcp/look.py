"""Looking at the host: what its commands show, as typed facts.  Changes nothing.

Lines are found by their words, in any order: the columns and the order of what ifconfig(8) and
netstat(1) print differ between releases.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from dtcp.errors import CommandFailed, NotRun

NAME = r"[A-Za-z][A-Za-z0-9_.]{0,14}"  # of an interface: at most IFNAMSIZ - 1 characters
LONG = 30.0  # seconds for a look at everything there is, which may be ten thousand tunnels


class Interface(NamedTuple):
    """An interface as ifconfig(8) shows it, as far as we may have to put it back."""

    name: str
    mtu: int = 1280
    up: bool = False
    running: bool = False
    outer: tuple[IPv4Address, IPv4Address] | None = None
    description: str = ""
    groups: tuple[str, ...] = ()
    inet6_disabled: bool = True
    link_local: IPv6Address | None = None
    addresses: tuple[IPv6Address, ...] = ()  # other than link-local ones
    ether: str = ""
    fib: int = 0


class Route(NamedTuple):
    """A line of the routing table, as netstat(1) shows it."""

    destination: str
    flags: str
    interface: str


class Look:
    """Looks at this host with `run`, which runs one command and returns its standard output.

    Every look raises CommandFailed, also when a command shows what makes no sense.
    """

    def __init__(self, run: Callable[..., str]) -> None:
        self._run = run

    # --- interfaces ---------------------------------------------------------------------------

    def interface(self, name: str) -> Interface | None:
        """The interface of that name, or None."""
        try:
            return interface(name, self._shown(name))
        except CommandFailed as failed:
            if "does not exist" in failed.reason:
                return None
            raise
        except ValueError as error:  # an invalid address
            raise CommandFailed(("ifconfig", name), str(error)) from None

    def _shown(self, name: str) -> str:
        words = ("ifconfig", name)
        shown = self._run(words)
        if not shown.startswith(f"{name}: flags="):
            raise _nonsense(words, shown)
        return shown

    def group(self, name: str) -> list[Interface]:
        """The interfaces in a group; every gif(4) is in the group `gif`."""
        found = map(self.interface, self.members(name))
        return [each for each in found if each is not None]

    def members(self, group: str) -> list[str]:
        """Their names alone, which takes no longer if there are thousands."""
        shown = self._run(("ifconfig", "-g", group))
        return [each for each in shown.split() if re.fullmatch(NAME, each)]

    def interfaces(self) -> dict[str, Interface]:
        """All interfaces by name, with a single command."""
        words = ("ifconfig", "-a")
        blocks = re.split(r"^(?=\S+: flags=)", self._run(words, limit=LONG), flags=re.MULTILINE)
        try:
            found = [interface(block.partition(":")[0], block) for block in blocks if block]
        except ValueError as error:  # an invalid address
            raise CommandFailed(words, str(error)) from None
        return {each.name: each for each in found if re.fullmatch(NAME, each.name)}

    def link_locals(self, name: str) -> list[str]:
        """The link-local addresses of an interface, with their scope, as ifconfig(8) takes them."""
        return re.findall(r"^\s+inet6 (fe80:\S+)", self._shown(name), re.MULTILINE)

    def traffic(self, name: str) -> tuple[int, int]:
        """The bytes received and sent by an interface."""
        words = ("netstat", "-I", name, "-b", "-n", "-W")
        shown = self._run(words)
        try:
            head, *lines = (line.split() for line in shown.splitlines() if line)
            # Beside the line of the link there is one for each address.  What stands left of the
            # numbers may be missing or anything: count from the right.
            received, sent = (head.index(each) - len(head) for each in ("Ibytes", "Obytes"))
            # The name of one that is down ends in an asterisk.
            (link,) = (
                each
                for each in lines
                if each[0].rstrip("*") == name and each[2].startswith("<Link#")
            )
            return int(link[received]), int(link[sent])
        except (ValueError, IndexError):
            raise _nonsense(words, shown) from None

    def advertised(self) -> tuple[str, ...]:
        """The interfaces that a running rtadvd(8), other than ours, serves."""
        try:
            shown = self._run(("rtadvctl", "show"))
        except NotRun:
            raise
        except CommandFailed:
            return ()  # none is running
        return tuple(re.findall(rf"^({NAME}): flags=", shown, re.MULTILINE))

    # --- routes and settings ------------------------------------------------------------------

    def has_route(self, to: IPv6Network, fib: int | None) -> bool:
        """Whether there is a route for this very prefix in that FIB."""
        table = () if fib is None else ("-fib", str(fib))
        words = ("route", "-n", "get", "-inet6", *table, str(to))
        try:
            shown = self._run(words)
        except NotRun:
            raise
        except CommandFailed as failed:
            if "has not been found" in failed.reason:
                return False
            raise
        if not re.search(r"^destination: ", shown, re.MULTILINE):
            raise _nonsense(words, shown)
        return f"destination: {to.network_address}\n" in shown

    def ipv6_routes(self, fib: int | None) -> dict[IPv6Network, Route]:
        """The IPv6 routes in that FIB, but for those of one link, which have a scope."""
        found = {}
        for route in self._routes("inet6", fib):
            with contextlib.suppress(ValueError):
                to = "::/0" if route.destination == "default" else route.destination
                if "%" not in to:
                    found[IPv6Network(to, strict=False)] = route
        return found

    def ipv4_networks(self) -> list[IPv4Network]:
        """The networks that have a route in our own FIB."""
        found = []
        for route in self._routes("inet", None):
            with contextlib.suppress(ValueError):
                to = "0.0.0.0/0" if route.destination == "default" else route.destination
                found.append(IPv4Network(to, strict=False))
        return found

    def _routes(self, family: str, fib: int | None) -> Iterator[Route]:
        table = () if fib is None else ("-F", str(fib))
        words = ("netstat", "-rnW", "-f", family, *table)
        shown = self._run(words, limit=LONG)
        if not shown.startswith("Routing tables"):
            raise _nonsense(words, shown)
        head: list[str] = []
        for line in map(str.split, shown.splitlines()):
            if {"Destination", "Flags", "Netif"} <= set(line):
                head = line
            elif head and len(line) >= len(head) - 1:  # Expire is mostly empty
                yield Route(line[0], line[head.index("Flags")], line[head.index("Netif")])

    def settings(self, *names: str) -> list[str]:
        """The values of variables of sysctl(8), one word each."""
        words = ("sysctl", "-n", *names)
        shown = self._run(words)
        if len(shown.split()) != len(names):
            raise _nonsense(words, shown)
        return shown.split()


def number_of(name: str) -> int:
    """The number by which the kernel knows an interface; 0: there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def name_of(number: int) -> str:
    """What the interface with that number is called; empty: there is none."""
    try:
        return socket.if_indextoname(number)
    except OSError:
        return ""


def interface(name: str, shown: str) -> Interface:
    """An interface from what ifconfig(8) shows of it.  Raises ValueError."""

    def first(pattern: str) -> str:
        found = re.search(pattern, shown, re.MULTILINE)
        return found[1] if found else ""

    flags = first(r"^\S+ flags=[0-9a-f]+<(.*?)>").split(",")
    pair = re.search(r"^\s+tunnel inet (\S+) --> (\S+)", shown, re.MULTILINE)
    addresses = re.findall(r"^\s+inet6 ([0-9a-f:.]+)", shown, re.MULTILINE)
    return Interface(
        name,
        mtu=int(first(r"\bmtu ([0-9]+)") or 1280),
        up="UP" in flags,
        running="RUNNING" in flags,
        outer=(IPv4Address(pair[1]), IPv4Address(pair[2])) if pair else None,
        description=first(r"^\s+description: (.*)$"),
        groups=tuple(first(r"^\s+groups: (.*)$").split()),
        inet6_disabled="IFDISABLED" in first(r"^\s+nd6 options=[0-9a-f]+<(.*?)>").split(","),
        link_local=next((IPv6Address(a) for a in addresses if a.startswith("fe80:")), None),
        addresses=tuple(IPv6Address(a) for a in addresses if not a.startswith("fe80:")),
        ether=first(r"^\s+ether ([0-9a-f:]{17})$"),
        fib=int(first(r"^\s+fib: ([0-9]+)$") or 0),
    )


def _nonsense(words: tuple[str, ...], shown: str) -> CommandFailed:
    return CommandFailed(words, f"says {shown.strip()!a:.60}")
