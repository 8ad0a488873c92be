"""sysctl(8): reads and sets what the lab knows of, in FreeBSD's words."""

from __future__ import annotations

import os
import sys

from . import linux, store
from .model import EPERM, Host

# In the order in which sysctl(8) lists a subtree.
DEFAULTS = {
    "security.jail.vnet": 0,
    "security.jail.jailed": 0,
    "net.fibs": 1,
    "net.inet.ip.forwarding": 0,
    "net.inet.ip.ttl": 64,
    "net.inet.ip.gifttl": 30,
    "net.link.gif.max_nesting": 1,
    "net.inet6.ip6.forwarding": 0,
    "net.inet6.ip6.accept_rtadv": 0,
    "net.inet6.ip6.dad_count": 1,
    "net.inet6.ip6.auto_flowlabel": 1,
    "net.inet6.ip6.use_deprecated": 1,
    "net.inet6.ip6.use_tempaddr": 0,
    "net.inet6.ip6.temppltime": 86400,
    "net.inet6.ip6.tempvltime": 172800,
    "net.inet6.ip6.auto_linklocal": 1,
    "net.inet6.ip6.prefer_tempaddr": 0,
    "net.inet6.ip6.use_defaultzone": 0,
    "net.inet6.ip6.no_radr": 0,
    "net.inet6.ip6.use_stableaddr": 0,
    "net.inet6.ip6.rfc6204w3": 0,
    "net.inet6.ip6.dad_enhanced": 1,
    "net.inet6.ip6.temp_max_desync_factor": 32700,
    "net.inet6.ip6.log_cannot_forward": 1,
    "net.route.netisr_maxqlen": 256,
    "net.route.debug.rtsock_debug_level": 6,
    "net.route.debug.rt_helpers_debug_level": 6,
    "net.route.debug.route_ctl_debug_level": 6,
    "net.route.debug.nhop_ctl_debug_level": 6,
    "net.route.debug.nhop_debug_level": 6,
    "net.route.debug.nhgrp_ctl_debug_level": 6,
    "net.route.debug.nhgrp_debug_level": 6,
    "net.route.ipv6_nexthop": 1,
    "net.route.hash_outbound": 0,
    "net.route.multipath": 1,
}
SINCE_14 = (
    "net.inet6.ip6.use_stableaddr",
    "net.inet6.ip6.temp_max_desync_factor",
    "net.inet6.ip6.log_cannot_forward",
)
BEFORE_14 = {"net.inet6.ip6.tempvltime": 604800}
READ_ONLY = ("security.jail.", "net.link.gif.")


def main(arguments: list[str]) -> int:
    host = store.load()
    linux.observe(host)
    bare = arguments[:1] == ["-n"]
    status = 0
    for word in arguments[bare:]:
        name, sets, value = word.partition("=")
        known = [n for n in names(host) if n == name or n.startswith(f"{name}.")]
        if not known:
            print(f"sysctl: unknown oid '{name}'", file=sys.stderr)
            status = 1
        elif sets:
            status |= change(host, name, value, bare)
        else:
            for n in known:
                print(current(host, n) if bare else f"{n}: {current(host, n)}")
    return status


def names(host: Host) -> list[str]:
    return [n for n in DEFAULTS if host.netlink or n not in SINCE_14]


def current(host: Host, name: str) -> int:
    if name == "security.jail.jailed":
        return int(bool(host.jail))
    if name == "security.jail.vnet":
        return int(host.jail == "vnet")
    default = DEFAULTS[name] if host.netlink else BEFORE_14.get(name, DEFAULTS[name])
    return host.sysctl.get(name, default)


def change(host: Host, name: str, value: str, bare: bool) -> int:
    line = f"{'' if bare else f'{name}: '}{current(host, name)}"
    if os.geteuid() or host.jail == "plain" or name.startswith(READ_ONLY):
        print(line, flush=True)
        print(f"sysctl: {name}={value}: {EPERM}", file=sys.stderr)
        return 1
    host.sysctl[name] = int(value)
    linux.project(host)
    store.save(host)
    print(f"{line} -> {value}")
    return 0
