"""The packets of one gif: IPv6 from a TUN device into IPv4 protocol 41, and back.

gif_relay.py NAME SOURCE DESTINATION TUN SOCKET: the last two are descriptors that ``relay`` has
opened, so nothing is lost from the moment ifconfig(8) returns. Name and pair are for ps(1).
"""

from __future__ import annotations

import os
import select
import socket
import sys

IPV6 = 6


def wrap(tun: int, outer: socket.socket, far: str) -> None:
    """gif(4): the traffic class becomes the type of service (TTL and DF are set once)."""
    packet = os.read(tun, 65536)
    if packet[0] >> 4 != IPV6:
        return
    traffic_class = (packet[0] & 0xF) << 4 | packet[1] >> 4
    tos = (socket.IPPROTO_IP, socket.IP_TOS, bytes([traffic_class]))
    outer.sendmsg([packet], [tos], 0, (far, 0))


def unwrap(tun: int, outer: socket.socket, far: str) -> None:
    datagram, (sender, _) = outer.recvfrom(65536)
    packet = datagram[(datagram[0] & 0xF) * 4 :]
    if sender == far and packet and packet[0] >> 4 == IPV6:
        os.write(tun, packet)


def main() -> None:
    os.chdir("/")
    far, tun, outer = sys.argv[3], int(sys.argv[4]), socket.socket(fileno=int(sys.argv[5]))
    poll = select.poll()
    poll.register(tun, select.POLLIN)
    poll.register(outer, select.POLLIN)
    while True:
        for descriptor, event in poll.poll():
            if descriptor == tun and event & select.POLLERR:
                return  # the interface is gone
            try:
                (wrap if descriptor == tun else unwrap)(tun, outer, far)
            except OSError:
                # No route, an ICMP error, the interface down: a tunnel drops packets.
                continue


if __name__ == "__main__":
    main()
