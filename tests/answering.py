"""The far end of a gif that answers each router solicitation: `answering.py [PREFIX]`.

With an advertisement as in the recordings: router lifetime 1800 s, and an MTU or the /64.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

ROUTER, ALL_NODES = "fe80::99", "ff02::1"
IPV6_IN_IPV4, ICMPV6, SOLICITATION = 41, 58, 133


def advertisement(prefix: str | None) -> bytes:
    """A whole IPv6 packet (RFC 4861 section 4.2)."""
    message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    if prefix is None:
        message += struct.pack("!BBHI", 5, 1, 0, 1400)
    else:
        network = ipaddress.IPv6Address(prefix).packed
        message += struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 1800, 0) + network
    ends = b"".join(ipaddress.IPv6Address(end).packed for end in (ROUTER, ALL_NODES))
    summed = ends + struct.pack("!II", len(message), ICMPV6) + message
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = message[:2] + struct.pack("!H", total ^ 0xFFFF) + message[4:]
    return struct.pack("!IHBB", 6 << 28, len(message), ICMPV6, 255) + ends + message


def main(prefix: str | None = None) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, IPV6_IN_IPV4) as outer:
        print("ready", flush=True)
        while True:
            datagram, sender = outer.recvfrom(65536)
            packet = datagram[(datagram[0] & 15) * 4 :]
            if packet[6] == ICMPV6 and packet[40] == SOLICITATION:
                outer.sendto(advertisement(prefix), sender)


if __name__ == "__main__":
    main(*sys.argv[1:])
