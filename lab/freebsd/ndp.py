"""Router discovery on the wire: solicitations and advertisements (RFC 4861, sections 4.1, 4.2)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

SOLICITATION, ADVERTISEMENT = 133, 134
ALL_NODES, ALL_ROUTERS = "ff02::1", "ff02::2"
HOP_LIMIT = 255  # what came through a router has less, and is not believed
ICMPV6_FILTER = 1  # icmpv6(7); not in the socket module


@dataclass
class Prefix:
    """A prefix information option."""

    network: str
    length: int
    valid: int = 30 * 86400
    preferred: int = 7 * 86400

    def option(self) -> bytes:
        on_link_autonomous = 0xC0
        times = (self.valid, self.preferred, 0)
        head = struct.pack("!BBBBIII", 3, 4, self.length, on_link_autonomous, *times)
        return head + socket.inet_pton(socket.AF_INET6, self.network)


def solicitation(ether: str) -> bytes:
    return struct.pack("!BBHI", SOLICITATION, 0, 0, 0) + source_option(ether)


def advertisement(lifetime: int, ether: str, mtu: int, prefixes: list[Prefix]) -> bytes:
    """``mtu`` 0: not said. The kernel fills in the check sum."""
    message = struct.pack("!BBHBBHII", ADVERTISEMENT, 0, 0, 64, 0, lifetime, 0, 0)
    message += source_option(ether)
    if mtu:
        message += struct.pack("!BBHI", 5, 1, 0, mtu)
    return message + b"".join(prefix.option() for prefix in prefixes)


def source_option(ether: str) -> bytes:
    """The source link-layer address; interfaces like gif(4) have none."""
    return b"\x01\x01" + bytes.fromhex(ether.replace(":", "")) if ether else b""


def listen(wanted: int) -> socket.socket:
    """A socket that receives messages of one type, and sends any."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    blocked = [0xFFFFFFFF] * 8
    blocked[wanted // 32] &= ~(1 << wanted % 32)
    sock.setsockopt(socket.IPPROTO_ICMPV6, ICMPV6_FILTER, struct.pack("=8I", *blocked))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOP_LIMIT)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    return sock


def join(sock: socket.socket, group: str, index: int) -> None:
    member = socket.inet_pton(socket.AF_INET6, group) + struct.pack("=i", index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)


def send(sock: socket.socket, message: bytes, group: str, source: str, index: int) -> None:
    """OSError: the address is not there, or not good yet."""
    origin = socket.inet_pton(socket.AF_INET6, source) + struct.pack("=i", index)
    ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, origin)]
    sock.sendmsg([message], ancillary, 0, (group, 0, 0, index))


def received_on(sock: socket.socket) -> int:
    """Takes a message; the index of its interface, 0 if it is not to be believed."""
    _, ancillary, _, _ = sock.recvmsg(2048, 128)
    told = {kind: data for level, kind, data in ancillary if level == socket.IPPROTO_IPV6}
    (hops,) = struct.unpack("=i", told[socket.IPV6_HOPLIMIT])
    (index,) = struct.unpack_from("=i", told[socket.IPV6_PKTINFO], 16)
    return index if hops == HOP_LIMIT else 0
