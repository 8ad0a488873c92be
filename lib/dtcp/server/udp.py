"""Tunnels over UDP: hearing from where a client sends.

What we sent before the client is ready would be answered with an ICMP unreachable, which
disconnects our ng_ksocket(4); and from behind a NAT only a packet tells where the client is.  So a
socket of our own, on the same port, hears the client's first packet, and only then the tunnel is
made.  Anybody can send to that port, even from the client's address, out of the same NAT: so only
a packet with the key counts that the client was told.

An unreachable may come later as well, so these tunnels are looked at more often than others
(dtcp.server.tunnels).
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import selectors
import socket
from collections.abc import Callable, Container
from functools import partial
from ipaddress import IPv4Address

KEY = 16  # bytes
AT_ONCE = 100  # packets: whoever floods an ear must not crowd out the client's

_HEADERS = 48  # bytes: IPv6's, and that of an echo request


class Ears:
    """Sockets that wait for the client's first packet, on ports from `lowest` on."""

    def __init__(self, selector: selectors.BaseSelector, lowest: int) -> None:
        self._selector, self._lowest = selector, lowest
        self._open: dict[int, socket.socket] = {}  # by their ports

    def __len__(self) -> int:
        return len(self._open)

    def open(
        self,
        own: IPv4Address,
        client: IPv4Address,
        key: bytes,
        taken: Container[object],
        heard: Callable[[int], None],
    ) -> int:
        """Listen on the first port that is not taken, and that nobody else listens on.

        `heard` is called with the client's port, once a packet with the key has come from there.
        Raises OSError: there is none.
        """
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ear.setblocking(False)
        for port in range(self._lowest, 65536):
            if port not in taken:
                with contextlib.suppress(OSError):
                    ear.bind((str(own), port))
                    self._open[port] = ear
                    hear = partial(self._hear, ear, str(client), key, heard)
                    self._selector.register(ear, selectors.EVENT_READ, hear)
                    return port
        ear.close()
        raise OSError(errno.EADDRINUSE, "all ports are taken")

    def _hear(
        self, ear: socket.socket, client: str, key: bytes, heard: Callable[[int], None], mask: int
    ) -> None:
        for _ in range(AT_ONCE):
            try:
                # A byte more than it may have: of what is longer, nobody wants the rest.
                packet, (address, port) = ear.recvfrom(_HEADERS + KEY + 1)
            except OSError:  # no more, or it was closed in the same turn
                return
            if address == client and shows(packet, key):
                heard(port)
                return

    def close(self, port: int) -> None:
        """Stop listening there."""
        ear = self._open.pop(port, None)
        if ear is not None:
            self._selector.unregister(ear)
            ear.close()


def shows(packet: bytes, key: bytes) -> bool:
    """Whether this is an ICMPv6 echo request with nothing but the key as its data.

    It is a whole IPv6 packet (RFC 8200 section 3), and what follows is ICMPv6's (RFC 4443 section
    4.1); its check sum proves nothing that the key does not.
    """
    return (
        len(packet) == _HEADERS + len(key)
        and packet[0] >> 4 == 6
        and packet[4:7] == bytes((0, 8 + len(key), 58))
        and packet[40:42] == bytes((128, 0))
        and hmac.compare_digest(packet[_HEADERS:], key)
    )
