"""What happens when an address comes to an interface or leaves it: in6(4), in_control()."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from .model import (
    AUTO_LINKLOCAL,
    BITS,
    EADDRNOTAVAIL,
    EEXIST,
    EINVAL,
    IFDISABLED,
    INET,
    INET6,
    Address,
    Host,
    Interface,
    Refused,
    Route,
)


def add(host: Host, interface: Interface, new: Address) -> None:
    """``SIOCAIFADDR``. What is done before an error stays done, as on the real one."""
    check(interface, new)
    old = interface.address(new.address)
    if old and (old.prefixlen, old.peer) == (new.prefixlen, new.peer):
        return
    if old and old.prefixlen != new.prefixlen:
        raise Refused(EINVAL)
    bring_up(host, interface)
    if not old and is_taken(host, interface, new.address):
        raise Refused(EEXIST)
    if new.peer and is_taken(host, interface, new.peer):
        raise Refused(EEXIST)
    if old:
        place = interface.addresses.index(old)
        remove(host, interface, old.address)
        # 13.2 takes the old address away and appends the new one.
        interface.addresses.insert(place if host.netlink else len(interface.addresses), new)
    else:
        interface.addresses.append(new)
    if new.family == INET6:
        interface.nd6 &= ~IFDISABLED
    add_routes(host, interface, new)
    attach_linklocal(host, interface)


def check(interface: Interface, new: Address) -> None:
    address = ip_address(new.address)
    if new.family == INET6:
        if not new.prefixlen or (new.peer and new.prefixlen != 128):
            raise Refused(EINVAL)
        if address.is_unspecified:
            raise Refused(EEXIST)
    if address.is_loopback and interface.kind != "loop":
        raise Refused(EINVAL)


def is_taken(host: Host, interface: Interface, address: str) -> bool:
    """There is a route to exactly this address: another interface's own, or its peer."""
    if ip_address(address).is_link_local:
        return False
    family = INET6 if ":" in address else INET
    return bool(host.matching(family, interface.fib, address, BITS[family]))


def add_routes(host: Host, interface: Interface, new: Address) -> None:
    if ip_address(new.address).is_multicast:
        return
    # lo0's own 127.0.0.1 is the one address whose route is not static.
    ours = interface_route(interface, new.family, new.address, BITS[new.family])
    ours.interface = "lo0"
    ours.static = not (new.family == INET and interface.kind == "loop")
    host.routes.append(ours)
    if new.peer:
        if new.peer != new.address:
            bits = BITS[new.family]
            host.routes.append(interface_route(interface, new.family, new.peer, bits))
    elif new.prefixlen < BITS[new.family] and not (new.family == INET and interface.kind == "loop"):
        add_prefix(host, interface, new)


def add_prefix(host: Host, interface: Interface, new: Address) -> None:
    """The route to the network of an address. The first interface in a network has it."""
    if not new.is_linklocal:
        present = host.matching(new.family, interface.fib, new.network, new.prefixlen)
        # A route of the administrator's (-reject of a delegated /64, say) gives way since 14.
        if any(r.pinned for r in present) or (present and not host.netlink):
            return
        for route in present:
            host.routes.remove(route)
    host.routes.append(interface_route(interface, new.family, new.network, new.prefixlen))


def interface_route(
    interface: Interface, family: str, destination: str, prefixlen: int, learned: bool = False
) -> Route:
    return Route(
        family,
        interface.fib,
        destination,
        prefixlen,
        interface=interface.name,
        link=interface.name,
        link_index=interface.index,
        pinned=True,
        learned=learned,
    )


def remove(host: Host, interface: Interface, address: str) -> None:
    """``SIOCDIFADDR``."""
    old = interface.address(address)
    if not old:
        raise Refused(EADDRNOTAVAIL)
    interface.addresses.remove(old)
    # Looked for in the FIB which the interface has now: change it between, and they stay (03).
    gone = [(old.address, BITS[old.family])]
    if old.peer:
        gone.append((old.peer, BITS[old.family]))
    elif not any(a.network == old.network for a in interface.addresses):
        gone.append((old.network, old.prefixlen))
    mine = [
        r
        for r in host.routes
        if r.pinned
        and r.fib == interface.fib
        and r.link == interface.name
        and (r.destination, r.prefixlen) in gone
    ]
    for route in mine:
        host.routes.remove(route)
    if not old.peer and not old.is_linklocal and any(not r.is_host for r in mine):
        pass_on(host, old)


def pass_on(host: Host, old: Address) -> None:
    """Another interface with an address in the same network takes the route over."""
    for interface in host.interfaces.values():
        for address in interface.addresses:
            same = (address.network, address.prefixlen) == (old.network, old.prefixlen)
            if same and not address.peer:
                add_prefix(host, interface, address)
                return


def bring_up(host: Host, interface: Interface) -> None:
    interface.up = True
    attach_linklocal(host, interface)


def attach_linklocal(host: Host, interface: Interface) -> None:
    """Whenever IPv6 is on, the interface up and AUTO_LINKLOCAL set, it gets one."""
    ready = interface.up and not interface.disabled and interface.nd6 & AUTO_LINKLOCAL
    if not ready or interface.linklocal or interface.kind == "loop":
        return
    mine = eui64(interface.ether) if interface.ether else host.gif_linklocal()
    address = Address(INET6, mine, 64)
    interface.addresses.append(address)
    add_routes(host, interface, address)


def eui64(ether: str) -> str:
    """The link-local address a hardware address gives (RFC 4291, appendix A)."""
    octets = bytes.fromhex(ether.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(IPv6Address(bytes.fromhex("fe80000000000000") + identifier))
