"""The Linux side: sees what only Linux knows, and makes the namespace look like the model.

Linux drops routes when a link goes down, and addresses with them; FreeBSD does not. So after every
command the difference between model and namespace is computed anew and done, in one ip(8) batch.
"""

from __future__ import annotations

import os
from ipaddress import IPv6Address, ip_address

from . import addresses, as_json, links, process, relay, store
from .model import ACCEPT_RTADV, INET, INET6, NO_DAD, Address, Host, Interface, Route

OURS = "41"  # the protocol number which our routes carry; nobody else's
MAIN, FIRST_FIB_TABLE = 254, 1000
IPV6_MIN_MTU = 1280  # Linux takes IPv6 away from links with less
RTF_ADDRCONF = 0x40000  # linux/ipv6_route.h: from an advertisement
CONF = "/proc/sys/net/ipv6/conf"

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any

    Shown = dict[str, Any]  # an object of ip(8)'s JSON
    Target = tuple[str, int, tuple[tuple[str, str], ...]]  # type, mtu, (gateway, device) ...


def ip(*arguments: str, batch: str = "") -> tuple[str, str]:
    program = next(path for path in ("/sbin/ip", "/bin/ip") if os.access(path, os.X_OK))
    return process.run([program, *arguments], batch)


def run(lines: list[str], *options: str) -> None:
    if lines:
        _, refused = ip(*options, "-force", "-batch", "-", batch="\n".join(lines) + "\n")
        if refused:
            store.note_refusal("\n".join([*lines, refused]))


def linux_name(name: str) -> str:
    return "lo" if name == "lo0" else name


def look() -> tuple[dict[str, Shown], list[Shown]]:
    """The links with their addresses, by their FreeBSD name, and the routes of both families."""
    output, _ = ip("-j", "-batch", "-", batch="addr show\nroute show table all\n")
    links, routes = output.splitlines()
    return by_name(as_json.loads(links)), as_json.loads(routes)


def all_links() -> dict[str, Shown]:
    """With their addresses, by their FreeBSD name."""
    return by_name(listed("addr", "show"))


def by_name(links: list[Shown]) -> dict[str, Shown]:
    return {"lo0" if a["ifname"] == "lo" else a["ifname"]: a for a in links if a}


def listed(*arguments: str) -> list[Shown]:
    output, _ = ip("-j", *arguments)
    return [entry for entry in as_json.loads(output or "[]") if entry]


# --- seeing ---------------------------------------------------------------------------------


def observe(host: Host) -> None:
    """Brings the model up to date: links that came or went, and what advertisements brought."""
    seen = all_links()
    for interface in list(host.interfaces.values()):
        if interface.name not in seen:
            links.forget(host, interface)
    for name, link in seen.items():
        if link["link_type"] == "ether" and name not in host.interfaces:
            new = links.attach(host, name, "ether", ether=link["address"])
            new.up, new.mtu = "UP" in link["flags"], link["mtu"]
    if "lo0" not in host.interfaces:
        links.attach_loopback(host)
    for name, link in seen.items():
        if name in host.interfaces:
            observe_link(host, host.interfaces[name], link)
    observe_routers(host)


def observe_link(host: Host, interface: Interface, link: Shown) -> None:
    interface.carrier = "NO-CARRIER" not in link["flags"] or interface.kind == "epair"
    for address in interface.addresses:
        # IPv6 off: FreeBSD keeps the addresses but does not trust the link-local one.
        address.state = "tentative" if interface.disabled and address.is_linklocal else ""
    for info in link["addr_info"]:
        known = interface.address(info.get("local", ""))
        if known:
            known.state = "duplicated" if info.get("dadfailed") else ""
            known.state = known.state or ("tentative" if info.get("tentative") else "")
        elif info.get("dynamic") and info["family"] == INET6:
            observe_autoconf(host, interface, info)


def observe_autoconf(host: Host, interface: Interface, info: Shown) -> None:
    address = Address(INET6, info["local"], info["prefixlen"])
    address.lifetimes = (info["preferred_life_time"], info["valid_life_time"])
    address.state = "tentative" if info.get("tentative") else ""
    before = len(host.routes)
    interface.addresses.append(address)
    addresses.add_routes(host, interface, address)
    for route in host.routes[before:]:
        route.learned = True


def observe_routers(host: Host) -> None:
    """The default routes from advertisements: they stay when no more are accepted."""
    with open("/proc/net/ipv6_route") as file:
        lines = [line.split() for line in file]
    for destination, bits, _, _, gateway, _, _, _, flags, device in lines:
        if (int(destination, 16), bits) == (0, "00") and int(flags, 16) & RTF_ADDRCONF:
            interface = host.interfaces[device]
            route = addresses.interface_route(interface, INET6, "::", 0, learned=True)
            route.gateway, route.pinned = str(IPv6Address(int(gateway, 16))), False
            host.routes.append(route)


# --- doing ----------------------------------------------------------------------------------


def project(host: Host) -> None:
    run(host.errands)
    host.errands = []
    for interface in host.interfaces.values():
        switch_ipv6(host, interface)
    write("/proc/sys/net/ipv6/conf/all/forwarding", forwards(host))
    write("/proc/sys/net/ipv4/ip_forward", host.sysctl.get("net.inet.ip.forwarding", 0))
    seen, routes = look()
    steps: list[str] = []
    for interface in host.interfaces.values():
        steps += link_steps(interface, seen[interface.name])
    if steps:
        run(steps)
        seen, routes = look()  # a link that goes down takes much along
    steps = []
    for interface in host.interfaces.values():
        steps += address_steps(interface, seen[interface.name])
    if steps:
        # And so does an address: what shall go goes first, then we see what is left.
        gone = [s for s in route_steps(host, routes) if s.startswith("route del")]
        run(gone + steps)
        _, routes = look()
    run(route_steps(host, routes))
    if host.fibs > 1:
        follow_fibs(host)
    relay.sync(host)  # a relay needs its source address


def forwards(host: Host) -> int:
    return host.sysctl.get("net.inet6.ip6.forwarding", 0)


def write(path: str, value: int) -> None:
    """sysctl(8) of Linux. /proc/sys/net is that of the namespace of who reads it."""
    if read(path) != value:
        with open(path, "w") as file:
            file.write(str(value))


def read(path: str) -> int:
    with open(path) as file:
        return int(file.read())


def switch_ipv6(host: Host, interface: Interface) -> None:
    conf = f"{CONF}/{linux_name(interface.name)}"
    if interface.kind == "loop":
        return
    accepts = interface.nd6 & ACCEPT_RTADV
    # A router takes addresses from advertisements but no default route, unless rfc6204w3 is set;
    # and a static default route keeps an advertised one out.
    ignores = forwards(host) and not host.sysctl.get("net.inet6.ip6.rfc6204w3", 0)
    defaults = [r for r in host.matching(INET6, 0, "::", 0) if not r.learned]
    silent = interface.nd6 & NO_DAD or not host.sysctl.get("net.inet6.ip6.dad_count", 1)
    write(f"{conf}/addr_gen_mode", 1)  # link-local addresses come from the model
    write(f"{conf}/disable_ipv6", int(interface.disabled))
    write(f"{conf}/router_solicitations", 0)  # that is for rtsol(8)
    write(f"{conf}/accept_ra", 2 if accepts else 0)  # 2: although forwarding
    write(f"{conf}/accept_ra_defrtr", int(not ignores and not defaults))
    write(f"{conf}/accept_ra_mtu", 0)
    write(f"{conf}/use_tempaddr", 0)
    # Whether addresses are tried at all is the lab's decision (waiting costs a second each).
    usual = read(f"{CONF}/default/accept_dad")
    write(f"{conf}/accept_dad", 0 if silent else usual)


def link_steps(interface: Interface, seen: Shown) -> list[str]:
    dev = f"link set dev {linux_name(interface.name)}"
    steps = []
    if interface.kind != "loop":
        mtu = max(interface.mtu, IPV6_MIN_MTU)
        if seen["mtu"] != mtu:
            steps.append(f"{dev} mtu {mtu}")
        if interface.ether and seen["address"] != interface.ether:
            steps.append(f"{dev} address {interface.ether}")
    if ("UP" in seen["flags"]) != interface.up:
        steps.append(f"{dev} {'up' if interface.up else 'down'}")
    return steps


def address_steps(interface: Interface, seen: Shown) -> list[str]:
    """Peers are left to the routes, prefixes too: Linux's own ideas of them differ."""
    dev = f"dev {linux_name(interface.name)}"
    wanted = {
        f"{a.address}/{32 if a.peer and a.family == INET else a.prefixlen}"
        for a in interface.addresses
        if not a.lifetimes
        and not ip_address(a.address).is_multicast
        and not (interface.kind == "loop" and a.is_linklocal)
        and not (a.family == INET6 and (interface.disabled or not interface.up))
    }
    present = {
        f"{info['local']}/{info['prefixlen']}"
        for info in seen["addr_info"]
        if "local" in info and not (info.get("dynamic") and info["family"] == INET6)
    }
    steps = [f"addr del {gone} {dev}" for gone in sorted(present - wanted)]
    for new in sorted(wanted - present):
        # The one prefix route that exists on every link at once is left to Linux.
        quiet = "" if ip_address(new.partition("/")[0]).is_link_local else " noprefixroute"
        broadcast = " brd +" if interface.ether and ":" not in new else ""
        steps.append(f"addr add {new}{broadcast} {dev}{quiet}")
    return steps


def route_steps(host: Host, seen: list[Shown]) -> list[str]:
    wanted = wanted_routes(host)
    present = {where(shown): target(shown) for shown in seen if is_ours(shown)}
    steps = []
    for (table, destination), (kind, _, _) in present.items():
        if (table, destination) not in wanted:
            steps.append(f"route del {kind} {destination} table {table} proto {OURS}")
    for (table, destination), (kind, mtu, hops) in wanted.items():
        if present.get((table, destination)) != (kind, mtu, hops):
            hop = [f"via {via} dev {dev} onlink" if via else f"dev {dev}" for via, dev in hops]
            to = hop[0] if len(hop) == 1 else "".join(f" nexthop {h}" for h in hop)
            size = f" mtu {mtu}" if mtu else ""
            steps.append(
                f"route replace {kind} {destination} table {table} proto {OURS}{size} {to}"
            )
    return steps


def is_ours(shown: Shown) -> bool:
    return str(shown.get("protocol")) == OURS


def where(shown: Shown) -> tuple[int, str]:
    table = shown.get("table", "main")
    is_ipv6 = "pref" in shown  # RFC 4191, section 2.1
    default = "::/0" if is_ipv6 else "0.0.0.0/0"
    destination = default if shown["dst"] == "default" else shown["dst"]
    if "/" not in destination:
        destination += "/128" if is_ipv6 else "/32"
    return MAIN if table == "main" else int(table), destination


def target(shown: Shown) -> Target:
    kind = shown.get("type", "unicast")
    hops = [(h.get("gateway", ""), h.get("dev", "")) for h in shown.get("nexthops", [shown])]
    size = shown["metrics"][0].get("mtu", 0) if shown.get("metrics") else 0
    return kind, size, tuple(sorted(hops)) if kind == "unicast" else ()


def wanted_routes(host: Host) -> dict[tuple[int, str], Target]:
    wanted: dict[tuple[int, str], Target] = {}
    for route in host.routes:
        # Linux has its own ways to its own addresses, and to the neighbours on each link.
        if route.is_own or route.is_scoped or route.learned:
            continue
        table = FIRST_FIB_TABLE + route.fib if route.fib else MAIN
        place = (table, f"{route.destination}/{route.prefixlen}")
        kind, hops = way(host, route)
        if place in wanted and kind == "unicast":
            hops = tuple(sorted({*wanted[place][2], *hops}))
        wanted[place] = (kind, route.mtu if kind == "unicast" else 0, hops)
    return wanted


def way(host: Host, route: Route) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The type of the route in Linux, and where it leads.

    Over a link that is down or has IPv6 off, FreeBSD keeps the route and the sender gets an error.
    """
    interface = host.interfaces.get(route.interface)
    if route.blackhole or (interface and interface.kind == "loop" and not route.reject):
        return "blackhole", ()
    off = not interface or not interface.up or (route.family == INET6 and interface.disabled)
    if route.reject or off or not interface:
        return "unreachable", ()
    # Into a tunnel goes what is routed there, whatever the gateway; Linux takes only a peer.
    peers = [a.peer for a in interface.addresses]
    any_gateway = interface.kind not in ("gif", "ng") or route.gateway in peers
    return "unicast", ((route.gateway if any_gateway else "", interface.name),)


def follow_fibs(host: Host) -> None:
    """What comes in on an interface of another FIB is routed by that FIB's table.

    Unlike on FreeBSD, what that table does not know is then routed by FIB 0.
    """
    wanted = {i.name: FIRST_FIB_TABLE + i.fib for i in host.interfaces.values() if i.fib}
    for option in ("-4", "-6"):
        present = {str(r["iif"]): int(r["table"]) for r in listed(option, "rule") if "iif" in r}
        gone = present.items() - wanted.items()
        new = wanted.items() - present.items()
        steps = [f"rule del iif {name} lookup {table}" for name, table in gone]
        run(steps + [f"rule add iif {name} lookup {table}" for name, table in new], option)
