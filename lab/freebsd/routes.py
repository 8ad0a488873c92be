"""The routing table and its rules: what rtsock(4) and, since 14, rtnetlink(4) accept."""

from __future__ import annotations

from ipaddress import ip_address

from .model import (
    EEXIST,
    EINVAL,
    ENETUNREACH,
    ESRCH,
    INET6,
    Host,
    Interface,
    Refused,
    Route,
    cut,
)
from .record import dataclass


@dataclass
class Request:
    """What route(8) asks for."""

    family: str
    fib: int
    destination: str
    prefixlen: int
    gateway: str = ""
    zone: str = ""  # the interface of a link-local gateway
    link: str = ""  # -interface
    reject: bool = False
    blackhole: bool = False
    proto1: bool = False
    mtu: int = 0
    source: str = ""  # -ifa

    @property
    def leads(self) -> bool:
        return bool(self.gateway or self.link or self.reject or self.blackhole)


def add(host: Host, request: Request) -> None:
    new = build(host, request)
    present = found(host, request)
    if present and not (host.sysctl.get("net.route.multipath", 1) and can_join(present, new)):
        raise Refused(EEXIST)
    if present:
        host.sysctl["net.route.hash_outbound"] = 1
    host.routes.append(new)


def can_join(present: list[Route], new: Route) -> bool:
    """Multipath: several gateways, all different. A route to an interface stays alone."""
    gateways = [r.gateway for r in [*present, new]]
    return all(gateways) and len(set(gateways)) == len(gateways) and not present[0].reject


def delete(host: Host, request: Request) -> None:
    present = [r for r in found(host, request) if fits(r, request)]
    ambiguous = len(present) > 1 and not host.netlink
    if not present or ambiguous:
        raise Refused(ESRCH)
    for route in present:
        drop(host, route)


def change(host: Host, request: Request) -> None:
    """13.2 changes what is asked for and forgets the rest; 15.1 replaces the whole."""
    present = found(host, request)
    if not host.netlink:
        change_before_14(host, request, present)
        return
    if not request.leads:
        raise Refused(EINVAL)
    new = build(host, request)
    if not present:
        raise Refused(ESRCH)
    for route in present:
        drop(host, route)
    host.routes.append(new)


def change_before_14(host: Host, request: Request, present: list[Route]) -> None:
    if not present or (len(present) > 1 and not request.gateway):
        raise Refused(ESRCH)
    if any(r.gateway == request.gateway for r in present) and len(present) > 1:
        return
    old = present[0]
    holder = host.holder(request.source, request.fib)
    if request.leads:
        new = build(host, request)
        # From an interface to anything else: the packets keep going out of the old one.
        if old.gateway:
            old.interface = new.interface
        old.link, old.link_index, old.gateway = new.link, new.link_index, new.gateway
    elif request.mtu or holder:
        old.interface = holder.name if holder else old.interface
    else:
        raise Refused(ENETUNREACH)
    old.mtu = request.mtu or old.mtu


def flush(host: Host, family: str, fib: int) -> list[Route]:
    """Only routes with a gateway go, as ever."""
    gone = [r for r in host.routes if (r.family, r.fib) == (family, fib) and r.gateway]
    for route in gone:
        drop(host, route)
    return gone


def drop(host: Host, route: Route) -> None:
    host.routes.remove(route)
    if route.learned:
        host.errands.append(f"route del ::/0 via {route.gateway} dev {route.interface} proto ra")


def found(host: Host, request: Request) -> list[Route]:
    return host.matching(request.family, request.fib, request.destination, request.prefixlen)


def fits(route: Route, request: Request) -> bool:
    """Whether the gateway asked for, if any, is that of the route."""
    if request.link:
        return not route.gateway and route.link == request.link
    if request.gateway and not route.gateway:
        # A reject route shows no gateway, but remembers lo0.
        return ip_address(request.gateway).is_loopback and route.link == "lo0"
    return request.gateway in ("", route.gateway)


def build(host: Host, request: Request) -> Route:
    out = outgoing(host, request)
    barrier = request.reject or request.blackhole
    return Route(
        request.family,
        request.fib,
        request.destination,
        request.prefixlen,
        interface=out.name,
        link=out.name,
        link_index=out.index,
        gateway="" if barrier else request.gateway,
        reject=request.reject,
        blackhole=request.blackhole,
        static=True,
        proto1=request.proto1,
        mtu=request.mtu,
    )


def outgoing(host: Host, request: Request) -> Interface:
    if request.reject or request.blackhole:
        return host.interfaces["lo0"]
    if request.link:
        return host.interfaces[request.link]
    if not request.gateway:
        raise Refused(EINVAL)
    out = towards(host, request)
    if not out:
        raise Refused(EINVAL if host.netlink else ENETUNREACH)
    return out


def towards(host: Host, request: Request) -> Interface | None:
    """The interface on whose link the gateway is: a peer, an own address, or in the network."""
    gateway = ip_address(request.gateway)
    if gateway.is_link_local and request.family == INET6:
        return host.interfaces.get(request.zone)
    for interface in host.interfaces.values():
        for address in interface.addresses:
            if interface.fib != request.fib or address.family != request.family:
                continue
            if request.gateway in (address.peer, address.address):
                return interface
            if not address.peer and gateway in cut(address.address, address.prefixlen):
                return interface
    return None
