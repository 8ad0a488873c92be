"""One interface that rtadvd(8) serves: what it knows of it, tells its hosts, and shows of it."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field

from . import ndp
from .model import INET6, Host, Interface
from .ndp import Prefix
from .rtadvd_conf import Settings

KERNEL, DYNAMIC, CONFIG = "KERNEL", "DYNAMIC", "CONFIG"  # it was there when we came, or came later


@dataclass
class Advertiser:
    name: str
    settings: Settings
    follows: bool = True  # changes of the prefixes
    due: float = 0.0  # time(3) of the next advertisement
    last: float = 0.0
    sent: int = 0
    mtu: int = 0  # kept when the interface goes, 0 if there never was one
    fresh: bool = True
    it: Interface | None = None
    active: bool = False
    prefixes: dict[str, tuple[Prefix, str]] = field(default_factory=dict)  # and whence we have it
    withdrawn: dict[str, Prefix] = field(default_factory=dict)
    joined: int = 0  # the index under which it hears solicitations

    def look(self, host: Host) -> bool:
        """How things are now; whether the hosts should be told at once."""
        was = (self.it and self.it.up, list(self.prefixes))
        first, self.fresh = self.fresh, False
        self.it = host.interfaces.get(self.name)
        self.mtu = self.it.mtu if self.it else self.mtu
        self.active = bool(self.mtu and host.sysctl.get("net.inet6.ip6.forwarding", 0))
        present = [(p, CONFIG) for p in self.settings.prefixes]
        if self.settings.follow and (self.follows or first):
            present += [(p, KERNEL if first else DYNAMIC) for p in prefixes(host, self.name)]
        elif self.settings.follow:
            present += self.prefixes.values()
        self.update({p.network: (p, source) for p, source in present})
        return not first and was != (self.it and self.it.up, list(self.prefixes))

    def update(self, present: dict[str, tuple[Prefix, str]]) -> None:
        """A prefix that is gone is advertised as over, so that no host goes on using it."""
        for network, (gone, _) in self.prefixes.items():
            self.withdrawn[network] = Prefix(gone.network, gone.length, valid=0, preferred=0)
        for network in present:
            self.withdrawn.pop(network, None)
        self.prefixes = {n: self.prefixes.get(n, known) for n, known in present.items()}

    def listen(self, sock: socket.socket) -> None:
        """Hear solicitations, also on an interface that went and came again."""
        try:
            index = socket.if_nametoindex(self.name)
        except OSError:
            index = 0
        if index and index != self.joined:
            ndp.join(sock, ndp.ALL_ROUTERS, index)
        self.joined = index

    def advertise(self, sock: socket.socket, lifetime: int) -> bool:
        """Whether it could be sent."""
        own = self.it.linklocal if self.active and self.it and self.it.up else None
        if not self.it or not own or self.it.disabled:
            return False
        mtu = self.mtu if self.settings.own_mtu else self.settings.mtu
        told = [prefix for prefix, _ in self.prefixes.values()] + list(self.withdrawn.values())
        message = ndp.advertisement(lifetime, self.it.ether, mtu, told)
        try:
            ndp.send(sock, message, ndp.ALL_NODES, own.address, self.joined)
        except OSError:
            return False  # duplicate address detection, say
        self.sent, self.last = self.sent + 1, time.time()
        return True

    def show(self, verbose: bool) -> str:
        """As rtadvctl(8) prints it."""
        state = "NONEXISTENT" if not self.it else "UP" if self.it.up else "DOWN"
        if not self.mtu:
            return f"{self.name}: flags=<{state},PERSIST> status=<INACTIVE> \n"
        status = "RA_SEND" if self.active else "INACTIVE"
        s = self.settings
        lines = [
            f"{self.name}: flags=<{state},TRANSITIVE,PERSIST> status=<{status}> mtu {self.mtu}",
            f"DefaultLifetime: {duration(s.lifetime)}",
            f"MinAdvInterval/MaxAdvInterval: {duration(s.min_interval)}/{duration(s.max_interval)}",
            f"AdvLinkMTU: {s.mtu or '<none>'}, Flags: <none>, Preference: medium",
            "ReachableTime: 0s, RetransTimer: 0s, CurHopLimit: 64",
            f"AdvIfPrefixes: {'yes' if s.follow else 'no'}",
            f"Next RA send: {time.ctime(self.due)}",
            f"Last RA send: {time.ctime(self.last) if self.last else 'never'}",
        ]
        if verbose and self.prefixes:
            lines.append(f"Prefixes ({len(self.prefixes)}):")
            lines += [f"  {described(*known)}" for known in self.prefixes.values()]
        return "\n\t".join(lines) + "\n"


def prefixes(host: Host, name: str) -> list[Prefix]:
    """What the routing table has of the networks of an interface."""
    return [
        Prefix(route.destination, route.prefixlen)
        for route in host.routes
        if route.family == INET6 and route.link == name and route.pinned
        if not (route.is_host or route.is_scoped or route.learned)
    ]


def described(prefix: Prefix, source: str) -> str:
    times = f"vltime={duration(prefix.valid)}, pltime={duration(prefix.preferred)}"
    return f"{prefix.network}/{prefix.length} ({source}, {times}, flags=LA)"


def duration(seconds: int) -> str:
    """1800: 30m, 200: 3m20s."""
    text = ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, length)
        text += f"{count}{unit}" if count else ""
    return text or "0s"
