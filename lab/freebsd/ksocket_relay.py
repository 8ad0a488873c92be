"""One ng_ksocket(4): IPv6 packets from a TUN device into UDP datagrams, bare, and back.

ksocket_relay.py INTERFACE LISTENER [TUN]: the last two are descriptors that ``ksocket`` has
opened; who connects to the first says "bind inet/192.0.2.1:4028", "connect ..." (to the peer: only
then anything is sent), "getname" or "getpeername". "!" and an errno(2) answer what failed.

An ICMP unreachable that arrives takes the peer away, until it is named again. With a file
/run/freebsd/ksocket-steadfast it costs no more than the next packet.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import sys
from pathlib import Path

IPV6 = 6
# Not in the socket module: ip(7).
IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IP_RECVERR = 10, 0, 11
FROM_ICMP, UNREACHABLE, TOO_BIG = 2, 3, 4
STEADFAST = Path("/run/freebsd/ksocket-steadfast")


class Node:
    def __init__(self, listener: int, tun: int | None) -> None:
        self.listener, self.tun = socket.socket(fileno=listener), tun
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        self.udp.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)

    def run(self) -> None:
        poll = select.poll()
        for each in (self.listener, self.udp, self.tun):
            if each is not None:
                poll.register(each, select.POLLIN)
        while True:
            for descriptor, event in poll.poll():
                if descriptor == self.listener.fileno():
                    self.attend()
                elif descriptor == self.tun and event & select.POLLERR:
                    return  # the interface is gone
                else:
                    self.carry(descriptor, event)

    def carry(self, descriptor: int, event: int) -> None:
        try:
            if descriptor == self.tun:
                self.send(os.read(descriptor, 65536))
            elif event & select.POLLERR:
                self.heed()
            else:
                self.receive(self.udp.recv(65536))
        except OSError:
            return  # no peer, no route, the interface down: it is lost

    def send(self, packet: bytes) -> None:
        if packet[0] >> 4 == IPV6:
            self.udp.send(packet)

    def receive(self, packet: bytes) -> None:
        if self.tun is not None and packet and packet[0] >> 4 == IPV6:
            os.write(self.tun, packet)

    def heed(self) -> None:
        """An error that came by ICMP: struct sock_extended_err of ip(7)."""
        self.udp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        _, ancillary, _, _ = self.udp.recvmsg(65536, 512, socket.MSG_ERRQUEUE)
        for _, _, data in ancillary:
            _, origin, kind, code = struct.unpack_from("=IBBB", data)
            unreachable = (origin, kind) == (FROM_ICMP, UNREACHABLE) and code != TOO_BIG
            if unreachable and not STEADFAST.exists():
                self.disconnect()

    def disconnect(self) -> None:
        """connect(2) with AF_UNSPEC, which Python cannot say."""
        nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
        ctypes.CDLL(None).connect(self.udp.fileno(), nowhere, len(nowhere))

    def attend(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            try:
                answer = self.obey(*connection.recv(4096).decode().split())
            except (OSError, ValueError) as error:
                code = error.errno if isinstance(error, OSError) else errno.EINVAL
                answer = f"!{code}"
            connection.sendall(answer.encode())

    def obey(self, verb: str, where: str = "") -> str:
        if verb == "bind":
            if self.udp.getsockname()[1]:
                raise OSError(errno.EINVAL, "bound already")
            self.udp.bind(parsed(where))
        elif verb == "connect":
            # Whatever was connected before is not any more, also when this fails.
            self.disconnect()
            far = parsed(where)
            if not far[1]:
                raise OSError(errno.EADDRNOTAVAIL, "no port")
            self.udp.connect(far)
        elif verb == "getname":
            return "inet/{}:{}".format(*self.udp.getsockname())
        elif verb == "getpeername":
            return "inet/{}:{}".format(*self.udp.getpeername())
        else:
            raise OSError(errno.ENOSYS, verb)
        return ""


def parsed(where: str) -> tuple[str, int]:
    """ "inet/192.0.2.1:4028"; without a port it is 0. ValueError: it is something else."""
    family, _, rest = where.partition("/")
    text, _, port = rest.partition(":")
    if family != "inet" or len(text.split(".")) != 4:
        raise ValueError(where)
    socket.inet_aton(text)
    return text, int(port or 0)


def main() -> None:
    os.chdir("/")
    descriptors = [int(word) for word in sys.argv[2:]]
    Node(descriptors[0], descriptors[1] if len(descriptors) > 1 else None).run()


if __name__ == "__main__":
    main()
