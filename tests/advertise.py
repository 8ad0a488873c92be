"""Sends one router advertisement (RFC 4861 section 4.2): `advertise.py INTERFACE PREFIX`."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys


def main(interface: str, prefix: str) -> None:
    index = socket.if_nametoindex(interface)
    # Router lifetime 1800 s; one prefix, /64, on link and autonomous.
    router = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    network = ipaddress.IPv6Address(prefix).packed
    option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 1800, 0) + network
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sock.sendto(router + option, ("ff02::1", 0, 0, index))


if __name__ == "__main__":
    main(*sys.argv[1:])
