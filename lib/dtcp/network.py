"""What this host's network is at the moment: which addresses are its own."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address


def own_address(to: IPv4Address | None) -> IPv4Address | None:
    """The address that this host has on its way to `to` (None: to anywhere), now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            # Sends nothing, so any port will do; 192.0.2.1 stands for anywhere (RFC 5737).
            sock.connect((str(to or "192.0.2.1"), 9))
            address = IPv4Address(sock.getsockname()[0])
        except OSError:
            return None
        return None if address.is_unspecified else address


def is_here(address: IPv4Address | IPv6Address) -> bool:
    """Whether this host has that address."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(address), 0))
        except OSError:
            return False
        return True
