"""Interfaces that are made and unmade: gif(4), epair(4), and their names and tunnels."""

from __future__ import annotations

import os
from ipaddress import ip_address

from . import addresses
from .model import (
    ACCEPT_RTADV,
    AUTO_LINKLOCAL,
    EADDRNOTAVAIL,
    EEXIST,
    EINVAL,
    ENAMETOOLONG,
    ENOSPC,
    IFDISABLED,
    INET,
    INET6,
    PERFORMNUD,
    Address,
    Host,
    Interface,
    Refused,
)

GROUPS = {"gif": ["gif"], "epair": ["epair"], "loop": ["lo"], "ether": [], "ng": []}
MTU = {"gif": 1280, "epair": 1500, "loop": 16384, "ether": 1500, "ng": 1500}
LAST_UNIT = 32767
NAME_MAX = 15


def attach(host: Host, name: str, kind: str, ether: str = "") -> Interface:
    """A new interface is down, and IPv6 off until somebody asks for it, or for advertisements."""
    interface = Interface(name, host.free_index(), kind, driver=name, mtu=MTU[kind], ether=ether)
    interface.groups = list(GROUPS[kind])
    accepts = host.sysctl.get("net.inet6.ip6.accept_rtadv", 0)
    interface.nd6 = PERFORMNUD | (ACCEPT_RTADV if accepts else IFDISABLED)
    if host.sysctl.get("net.inet6.ip6.auto_linklocal", 1):
        interface.nd6 |= AUTO_LINKLOCAL
    host.interfaces[name] = interface
    return interface


def attach_loopback(host: Host) -> None:
    interface = attach(host, "lo0", "loop")
    interface.nd6 &= ~IFDISABLED
    interface.up = True
    linklocal, loopback = Address(INET6, "fe80::1", 64), Address(INET6, "::1", 128)
    for address in [loopback, linklocal] if host.netlink else [linklocal, loopback]:
        addresses.add(host, interface, address)
    addresses.add(host, interface, Address(INET, "127.0.0.1", 8))


def create(host: Host, word: str) -> Interface:
    """``SIOCIFCREATE2``: "gif" takes the first free unit, "gif7" that one."""
    kind = word.rstrip("0123456789")
    digits = word[len(kind) :]
    if kind not in ("gif", "epair") or (digits[:1] == "0" and digits != "0"):
        raise Refused(EINVAL)
    if f"if_{kind}" in host.lacks:
        raise Refused(EINVAL)  # as for any other word that no driver knows
    used = {i.driver.rstrip("ab") for i in host.interfaces.values()}
    unit = int(digits or next(n for n in range(LAST_UNIT) if f"{kind}{n}" not in used))
    if unit > LAST_UNIT:
        raise Refused(ENOSPC)
    driver = f"{kind}{unit}"
    if driver in used:
        raise Refused(EEXIST)
    if kind == "gif":
        host.errands.append(f"tuntap add dev {driver} mode tun")
        return attach(host, driver, kind)
    pair = [attach(host, driver + end, kind, random_ether(end)) for end in "ab"]
    host.errands.append(f"link add {driver}a type veth peer name {driver}b")
    return pair[0]


def random_ether(end: str) -> str:
    """Without zeros, so that addresses made of it are all written alike."""
    octets = [2, *(1 + octet % 255 for octet in os.urandom(4)), ord(end)]
    return ":".join(f"{octet:02x}" for octet in octets)


def destroy(host: Host, interface: Interface) -> None:
    """Addresses and routes go along; of an epair both ends."""
    if interface.kind not in ("gif", "epair"):
        raise Refused(EINVAL)
    host.errands.append(f"link del {interface.name}")
    for end in list(host.interfaces.values()):
        if end is interface or (end.kind == "epair" and end.driver[:-1] == interface.driver[:-1]):
            forget(host, end)


def forget(host: Host, interface: Interface) -> None:
    """The interface is gone. Routes which an address left in another FIB stay, without it."""
    for address in list(interface.addresses):
        addresses.remove(host, interface, address.address)
    del host.interfaces[interface.name]
    host.routes = [r for r in host.routes if r.pinned or r.interface != interface.name]
    for route in host.routes:
        if route.link == interface.name:
            route.link = ""
            if route.interface == interface.name:
                route.interface = ""


def rename(host: Host, interface: Interface, name: str) -> None:
    if len(name) > NAME_MAX:
        raise Refused(ENAMETOOLONG)
    if name in host.interfaces:
        raise Refused(EEXIST)
    old = interface.name
    host.errands += [f"link set {old} down", f"link set {old} name {name}"]
    for route in host.routes:
        if route.interface == old:
            route.interface = name
        if route.link == old:
            route.link = name
    interface.name = name
    host.interfaces = {i.name: i for i in host.interfaces.values()}


def set_tunnel(
    host: Host, interface: Interface, family: str, source: str, destination: str
) -> None:
    """``SIOCSIFPHYADDR``: refused, the old pair stays."""
    given = {INET6 if ":" in address else INET for address in (source, destination)}
    if interface.kind != "gif" or given != {family}:
        raise Refused(EINVAL)
    pair = [family, source, destination]
    plain = [address.partition("%")[0] for address in (source, destination)]
    if any(ip_address(address).is_unspecified for address in plain):
        raise Refused(EADDRNOTAVAIL)
    if any(i is not interface and i.tunnel == pair for i in host.interfaces.values()):
        raise Refused(EADDRNOTAVAIL)
    interface.tunnel = pair


def delete_tunnel(interface: Interface) -> None:
    if interface.kind != "gif":
        raise Refused(EINVAL)
    interface.tunnel = []
