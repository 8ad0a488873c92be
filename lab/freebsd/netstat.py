"""netstat(1): -r, the routing tables, and -i, the interfaces."""

from __future__ import annotations

import getopt
import sys
from ipaddress import ip_address

from . import linux, store
from .model import INET, INET6, Address, Host, Interface, Route

TITLES = {INET: "Internet", INET6: "Internet6"}
WIDTHS = {INET: (18, 18), INET6: (33, 29)}  # destination, gateway


def main(arguments: list[str]) -> int:
    try:
        options = dict(getopt.getopt(arguments, "rnWf:F:ibI:")[0])
    except getopt.GetoptError as error:
        print(f"netstat: illegal option -- {error.opt}", file=sys.stderr)
        return 1
    if not {"-r", "-i", "-I"} & set(options):
        print("netstat: only -r, -i and -I here", file=sys.stderr)
        return 1
    host = store.load()
    linux.observe(host)
    if "-r" not in options:
        sys.stdout.write(counters(host, options.get("-I"), "-b" in options, "-W" in options))
        return 0
    fib = int(options.get("-F", 0))
    print("Routing tables" + (f" (fib: {fib})" if fib else ""))
    families = [options["-f"]] if "-f" in options else [INET, INET6]
    for family in families:
        chosen = [r for r in host.routes if (r.family, r.fib) == (family, fib)]
        if chosen and host.jail != "plain":
            sys.stdout.write(table(host, family, sorted(chosen, key=order), "-W" in options))
    return 0


def counters(host: Host, only: str | None, octets: bool, wide: bool) -> str:
    """What went through the interfaces, as in tests/freebsd/*/03-route.

    Linux does not count by address, so there stands 0.
    """
    columns = ["Ipkts", "Ierrs", "Idrop", *["Ibytes"] * octets]
    columns += ["Opkts", "Oerrs", *["Obytes"] * octets, "Coll"]
    lines = [("Name    Mtu", "Network", "Address", columns)]
    seen = {each["ifname"]: each for each in linux.listed("-s", "link", "show")}
    for interface in sorted(host.interfaces.values(), key=lambda each: each.index):
        if only not in (None, interface.name):
            continue
        counted = seen[linux.linux_name(interface.name)]["stats64"]
        came, went = counted["rx"], counted["tx"]
        numbers = [came["packets"], came["errors"], came["dropped"], *[came["bytes"]] * octets]
        numbers += [went["packets"], went["errors"], *[went["bytes"]] * octets, went["collisions"]]
        name = f"{interface.name:<5s} {interface.mtu:>5d}"
        address = interface.ether or interface.name
        lines.append((name, f"<Link#{interface.index}>", address, list(map(str, numbers))))
        name = f"{interface.name:<5s} {'-':>5s}"
        none = ["0", "-", "-", *["0"] * octets, "0", "-", *["0"] * octets, "-"]
        lines += [(name, *_named(interface, each), none) for each in interface.addresses]
    # 13.2 cuts what is longer, unless it is told not to.
    grows = host.netlink or wide
    widths = [20, 17] if host.netlink else [13, 17]
    if grows:
        widths = [max(widths[n], *(len(line[1 + n]) for line in lines)) for n in (0, 1)]
    return "".join(
        f"{name} {network[: widths[0]]:<{widths[0]}} {address[: widths[1]]:<{widths[1]}} "
        + " ".join(
            f"{number:>{_width(column)}s}" for column, number in zip(columns, numbers, strict=True)
        )
        + "\n"
        for name, network, address, numbers in lines
    )


def _named(interface: Interface, address: Address) -> tuple[str, str]:
    """The network and the address of a line."""
    zone = f"%{interface.name}" if address.is_linklocal else ""
    network = "fe80::" if zone else address.network
    if address.family == INET6 and address.prefixlen == 128:
        network = address.address
    return f"{network}{zone}/{address.prefixlen}", f"{address.address}{zone}"


def _width(column: str) -> int:
    """Of a column of numbers."""
    return {"Ibytes": 10, "Obytes": 10, "Ipkts": 8, "Opkts": 8}.get(column, 5)


def order(route: Route) -> tuple[bytes, int]:
    """As the kernel keeps them: a link-local address with its link's number inside."""
    octets = bytearray(ip_address(route.destination).packed)
    if route.is_scoped:
        octets[3] = route.link_index
    return bytes(octets), route.prefixlen


def table(host: Host, family: str, routes: list[Route], wide: bool) -> str:
    first, second = WIDTHS[family]
    netif = (16 if wide else 12) if host.netlink else 8
    middle = "Flags   Nhop#    Mtu" if wide else "Flags "
    head = f"{'Destination':<{first}s} {'Gateway':<{second}s} {middle} {'Netif':>{netif}s} Expire"
    lines = ["", f"{TITLES[family]}:", head]
    for number, route in enumerate(routes, 1):
        flags = f"{letters(route):<6s}"
        if wide:
            flags += f" {number:6d} {mtu(host, route):6d}"
        name, via = route.interface or "---", gateway(host, route)
        # A long gateway is printed whole, at the expense of the blanks before the interface.
        rest = max(0, netif - max(0, len(via) - second))
        lines.append(
            f"{destination(host, route):<{first}.{first}s} {via:<{second}s} {flags} {name:>{rest}s}"
        )
    return "\n".join(lines) + "\n"


def mtu(host: Host, route: Route) -> int:
    return route.mtu or host.interfaces[route.interface].mtu


def destination(host: Host, route: Route) -> str:
    if not route.prefixlen:
        return "default"
    # The zone is the interface; for its own addresses 15.1 says lo0; without it, its number.
    zone = route.link or str(route.link_index)
    if route.is_own and host.netlink:
        zone = "lo0"
    text = route.destination + (f"%{zone}" if route.is_scoped else "")
    return text if route.is_host else f"{text}/{route.prefixlen}"


def gateway(host: Host, route: Route) -> str:
    if route.gateway:
        scoped = route.family == INET6 and ip_address(route.gateway).is_link_local
        return route.gateway + (f"%{route.link}" if scoped else "")
    if (route.reject or route.blackhole) and route.link == "lo0" and not host.netlink:
        return "::1" if route.family == INET6 else "127.0.0.1"
    own = route.is_own and host.netlink
    return f"link#{host.interfaces['lo0'].index if own else route.link_index}"


def letters(route: Route) -> str:
    present = {
        "U": True,
        "G": route.gateway,
        "H": route.is_host,
        "R": route.reject,
        "S": route.static,
        "1": route.proto1,
        "B": route.blackhole,
    }
    return "".join(letter for letter, yes in present.items() if yes)
