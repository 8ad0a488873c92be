"""route(8): add, delete, change, get, flush and monitor.

What it says of a success or failure stands on standard output, and the reason again, in other
words, on standard error; before 14 not always. The exit statuses are those of sysexits(3).
"""

from __future__ import annotations

import getopt
import os
import sys
from ipaddress import IPv6Address, ip_address, ip_network

from . import linux, routes, show, store
from .model import (
    BITS,
    EEXIST,
    ENOTSOCK,
    EPERM,
    ESRCH,
    INET,
    INET6,
    Host,
    Refused,
    Route,
    network,
)
from .routes import Request

EX_USAGE, EX_DATAERR, EX_OSERR, EX_NOPERM, NOT_FOUND = 64, 65, 71, 77, 255

CHANGES = {
    "add": routes.add,
    "change": routes.change,
    "chg": routes.change,
    "delete": routes.delete,
    "del": routes.delete,
}
IN_WORDS = {EEXIST: "route already in table", ESRCH: "not in table"}

# The bits of route.h that `get` shows, in their order there.
TABLE_HEAD = " recvpipe  sendpipe  ssthresh  rtt,msec    mtu        weight    expire"


class Wrong(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def main(arguments: list[str]) -> int:
    host = store.load()
    linux.observe(host)
    try:
        return Command(host).run(arguments)
    except Wrong as wrong:
        print(f"route: {wrong}", file=sys.stderr)
        if wrong.status == EX_USAGE and "prefixlen" not in str(wrong) and "fib" not in str(wrong):
            jail = "[-j jail] " if host.netlink else ""
            usage = f"usage: route {jail}[-46dnqtv] command [[modifiers] args]"
            print(f"route: {usage}", file=sys.stderr)
        return wrong.status


class Command:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.quiet = self.numeric = self.dry = self.test = False
        self.verb = ""
        # What the words say.
        self.family = ""
        self.fib: int | None = None
        self.prefixlen: int | None = None
        self.kind = ""  # net or host
        self.by_interface = self.reject = self.blackhole = self.proto1 = False
        self.mtu = 0
        self.source = ""
        self.positional: list[str] = []

    def run(self, arguments: list[str]) -> int:
        words = self.take_options(arguments)
        self.verb = words.pop(0) if words else ""
        if self.verb not in (*CHANGES, "get", "show", "flush", "monitor"):
            raise Wrong(EX_USAGE, f"bad keyword: {self.verb}" if self.verb else "no command")
        if self.verb == "monitor":
            from . import monitor  # what it imports takes long

            store.unlock()
            monitor.Monitor(self.host.netlink).run()
        if self.verb not in ("get", "show") and os.geteuid():
            raise Wrong(EX_NOPERM, "must be root to alter routing table")
        self.take_words(words)
        if self.verb == "flush":
            return self.flush()
        if not self.positional:
            raise Wrong(EX_USAGE, "destination parameter required")
        request = self.request()
        if self.verb in ("get", "show"):
            return self.get(request)
        return self.alter(request)

    # --- what is asked ----------------------------------------------------------------------

    def take_options(self, arguments: list[str]) -> list[str]:
        letters = "46dnqtv" + ("j:" if self.host.netlink else "")
        try:
            given, words = getopt.getopt(arguments, letters)
        except getopt.GetoptError as error:
            raise Wrong(EX_USAGE, f"illegal option -- {error.opt}") from None
        for letter, _ in given:
            if letter == "-j":
                raise Wrong(1, "Jail not found")
            self.quiet |= letter == "-q"
            self.numeric |= letter == "-n"
            # -d and -t are to change nothing, and since 14 no longer keep to it.
            self.dry |= letter == "-d" and not self.host.netlink
            self.test |= letter == "-t" and not self.host.netlink
            self.family = {"-4": INET, "-6": INET6}.get(letter, self.family)
        return words

    def take_words(self, words: list[str]) -> None:
        while words:
            word = words.pop(0)
            if word in MODIFIERS:
                attribute, value = MODIFIERS[word]
                setattr(self, attribute, value)
            elif word in ("-prefixlen", "-fib", "-mtu", "-ifa", "-ifp", "-netmask"):
                self.take_value(word, words.pop(0) if words else "")
            elif word.startswith("-"):
                raise Wrong(EX_USAGE, f"bad keyword: {word[1:]}")
            else:
                self.positional.append(word)

    def take_value(self, word: str, value: str) -> None:
        if word == "-prefixlen":
            self.prefixlen = self.bits(value)
        elif word == "-netmask":
            self.prefixlen = ip_network(f"0.0.0.0/{value}").prefixlen
        elif word == "-fib":
            if not value.isdecimal() or int(value) >= self.host.fibs:
                raise Wrong(EX_USAGE, f"invalid fib number: {value}")
            self.fib = int(value)
        elif word == "-mtu":
            self.mtu = int(value)
        elif word == "-ifa":
            self.source = value

    def bits(self, word: str) -> int:
        number = int(word) if word.isdecimal() else 0
        if number > BITS[self.family or INET]:
            raise Wrong(EX_USAGE, f"{word}: invalid prefixlen")
        return number

    def request(self) -> Request:
        self.family = self.family or INET
        word, _, bits = self.positional[0].partition("/")
        if word == "default":
            destination, prefixlen = "::" if self.family == INET6 else "0.0.0.0", 0
        else:
            destination = self.resolve(word)[0]
            prefixlen = BITS[self.family] if self.prefixlen is None else self.prefixlen
            prefixlen = self.bits(bits) if bits else prefixlen
        if not self.kind:
            short = prefixlen < BITS[self.family] or bits
            self.kind = "net" if short else "host"
        gateway, zone, link = self.gateway()
        return Request(
            self.family,
            self.fib or 0,
            network(destination, prefixlen),
            prefixlen,
            gateway,
            zone,
            link,
            self.reject,
            self.blackhole,
            self.proto1,
            self.mtu,
            self.source,
        )

    def gateway(self) -> tuple[str, str, str]:
        """Gateway, its zone, interface: either the first two or the last."""
        if len(self.positional) > 2:
            self.resolve(self.positional[2])  # a netmask, in the older way of saying it
        if len(self.positional) < 2:
            return "", "", ""
        word = self.positional[1]
        if not self.by_interface:
            return (*self.resolve(word), "")
        if word not in self.host.interfaces:
            raise Wrong(EX_DATAERR, f"interface '{word}' does not exist")
        return "", "", word

    def resolve(self, word: str) -> tuple[str, str]:
        text, _, zone = word.partition("%")
        try:
            address = ip_address(text)
        except ValueError:
            address = None
        if address is None or isinstance(address, IPv6Address) != (self.family == INET6):
            raise Wrong(EX_OSERR, f"{word}: {show.no_such_name(self.host)}")
        return str(address), zone

    # --- what is done -----------------------------------------------------------------------

    def alter(self, request: Request) -> int:
        said = f"{self.verb} {self.kind} {self.positional[0]}"
        if len(self.positional) > 1:
            said += f": gateway {self.positional[1]}"
        if self.test:
            self.say(f"{said} fib 0: {ENOTSOCK}")
            raise Wrong(1, f"fib number 0 is ignored: {ENOTSOCK}")
        try:
            if self.host.jail == "plain":
                raise Refused(EPERM)
            if not self.dry and not self.is_garbled():
                CHANGES[self.verb](self.host, request)
                linux.project(self.host)
                store.save(self.host)
        except Refused as no:
            return self.failed(said, str(no))
        if self.fib is not None or self.host.fibs > 1:
            said += f" fib {self.fib or 0}"
        self.say(said)
        return 0

    def is_garbled(self) -> bool:
        """A prefix length that is no number: "done", says route(8), and nothing is (03)."""
        bits = self.positional[0].partition("/")[2]
        return bool(bits) and not bits[:1].isdecimal()

    def failed(self, said: str, reason: str) -> int:
        denied = reason == EPERM and not self.host.netlink
        if not denied:
            self.say(f"{said} fib {self.fib or 0}: {IN_WORDS.get(reason, reason)}")
        if reason == ESRCH:
            print("route: route has not been found", file=sys.stderr)
        elif self.host.netlink:
            print(f"route: message indicates error: {reason}", file=sys.stderr)
        elif reason != EEXIST:
            print(f"route: writing to routing socket: {reason}", file=sys.stderr)
        return 1

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, flush=True)

    def flush(self) -> int:
        fib = self.fib or 0
        for family in [self.family] if self.family else [INET, INET6]:
            for route in routes.flush(self.host, family, fib):
                self.say(f"{route.destination:<20.20s} {route.gateway:<20.20s} -fib {fib:<3d} done")
        linux.project(self.host)
        store.save(self.host)
        return 0

    def get(self, request: Request) -> int:
        # With a mask, that of "default" included, it is the very route or none.
        if request.prefixlen == BITS[request.family]:
            routes = self.host.lookup(request.family, request.fib, request.destination)
        else:
            routes = self.host.matching(
                request.family, request.fib, request.destination, request.prefixlen
            )
        if not routes or self.host.jail == "plain":
            print("route: route has not been found", file=sys.stderr)
            return NOT_FOUND
        sys.stdout.write(self.describe(request, routes[0], several=len(routes) > 1))
        return 0

    def describe(self, request: Request, route: Route, several: bool) -> str:
        interface = self.host.interfaces[route.interface]
        default = "default" if not route.prefixlen and not self.numeric else ""
        asked = default if not request.prefixlen and default else request.destination
        lines = [f"   route to: {asked}", f"destination: {default or route.destination}"]
        if not route.is_host:
            mask = ip_network(f"{route.destination}/{route.prefixlen}").netmask
            lines.append(f"       mask: {default or mask}")
        if route.gateway:
            zone = f"%{route.link}" if ip_address(route.gateway).is_link_local else ""
            lines.append(f"    gateway: {route.gateway}{zone}")
        mtu, weight = route.mtu or interface.mtu, 0 if several else 1
        lines += [
            f"        fib: {route.fib}",
            f"  interface: {route.interface}",
            f"      flags: <{','.join(flag_names(route))}>",
            TABLE_HEAD,
            f"       0         0         0         0  {mtu:8d}  {weight:8d}  {0:8d} ",
        ]
        return "\n".join(lines) + "\n"


MODIFIERS: dict[str, tuple[str, object]] = {
    "-inet": ("family", INET),
    "-4": ("family", INET),
    "-inet6": ("family", INET6),
    "-6": ("family", INET6),
    "-net": ("kind", "net"),
    "-host": ("kind", "host"),
    "-interface": ("by_interface", True),
    "-iface": ("by_interface", True),
    "-reject": ("reject", True),
    "-blackhole": ("blackhole", True),
    "-proto1": ("proto1", True),
    "-static": ("static", True),
}


def flag_names(route: Route) -> list[str]:
    present = {
        "UP": True,
        "GATEWAY": route.gateway,
        "HOST": route.is_host,
        "REJECT": route.reject,
        "DONE": True,
        "STATIC": route.static,
        "BLACKHOLE": route.blackhole,
        "PROTO1": route.proto1,
        "FIXEDMTU": route.mtu,
        "PINNED": route.pinned,
    }
    return [name for name, yes in present.items() if yes]
