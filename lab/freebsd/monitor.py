"""``route monitor``: what happens to links, addresses and routes, as it happens, without end.

The events are Linux's (rtnetlink(7)), the words FreeBSD's: a paragraph each before 14, then a line.
Not every event of the one has its equal on the other: it is news to look at, not to rely on.
"""

from __future__ import annotations

import signal
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import NoReturn

from .linux import FIRST_FIB_TABLE, MAIN

# rtnetlink(7): groups, messages, attributes.
LINKS, ADDRESSES4, ROUTES4, ADDRESSES6, ROUTES6 = 0x1, 0x10, 0x40, 0x100, 0x400
NEWLINK, DELLINK, GETLINK, NEWADDR, DELADDR, GETADDR = 16, 17, 18, 20, 21, 22
NEWROUTE, DELROUTE, END_OF_DUMP = 24, 25, 3
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU = 1, 3, 4
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
RTPROT_KERNEL = 2
DUMP_REQUEST, OUR_DUMP = 0x301, 1

IFF_UP, IFF_RUNNING = 0x1, 0x40
# route(8)'s names for the flags which both systems have.
FLAGS = {0x1: "UP", 0x2: "BROADCAST", 0x8: "LOOPBACK", 0x10: "PTP", 0x40: "RUNNING"}
FLAGS |= {0x1000: "MULTICAST"}

Attributes = dict[int, bytes]


@dataclass
class Link:
    index: int
    name: str
    flags: int
    mtu: int
    ether: str

    @property
    def with_ether(self) -> str:
        """Like vtnet0:52.54.0.99.0.2."""
        return ":".join(filter(None, (self.name, self.ether)))


class Monitor:
    def __init__(self, netlink: bool) -> None:
        self.netlink = netlink
        self.links: dict[int, Link] = {}
        self.addresses: set[tuple[int, str]] = set()
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self.socket.bind((0, LINKS | ADDRESSES4 | ROUTES4 | ADDRESSES6 | ROUTES6))
        self.unseen = [GETLINK, GETADDR]  # what is there already must be known
        self.dump()

    def dump(self) -> None:
        if self.unseen:
            kind = self.unseen.pop(0)
            self.socket.send(struct.pack("=IHHIIB3x", 20, kind, DUMP_REQUEST, OUR_DUMP, 0, 0))

    def run(self) -> NoReturn:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        while True:
            for kind, sequence, body in messages(self.socket.recv(65536)):
                said = self.tell(kind, body)
                if said and sequence != OUR_DUMP:
                    print(said, flush=True)

    def tell(self, kind: int, body: bytes) -> str:
        if kind in (NEWLINK, DELLINK):
            return self.link(kind == NEWLINK, body)
        if kind in (NEWADDR, DELADDR):
            return self.address(kind == NEWADDR, body)
        if kind in (NEWROUTE, DELROUTE):
            return self.route(kind == NEWROUTE, body)
        if kind == END_OF_DUMP:
            self.dump()
        return ""

    def link(self, new: bool, body: bytes) -> str:
        _, index, flags = struct.unpack_from("=BxxxiI", body)
        told = attributes(body[16:])
        name = text(told[IFLA_IFNAME])
        (mtu,) = struct.unpack("=I", told[IFLA_MTU])
        ether = told.get(IFLA_ADDRESS, b"").hex(".") if name != "lo" else ""
        ether = ".".join(f"{int(octet, 16):x}" for octet in ether.split(".") if octet)
        link = Link(index, "lo0" if name == "lo" else name, flags, mtu, ether)
        known = self.links.get(index)
        if new:
            self.links[index] = link
        else:
            self.links.pop(index, None)
        if self.netlink:
            admin, oper = ("UP" if flags & bit else "DOWN" for bit in (IFF_UP, IFF_RUNNING))
            what = f"iface#{index} {link.name} admin {admin} oper {oper} mtu {mtu}"
            return self.line(new, f"iface {what} ")
        if not new or not known:
            what = "arrival" if new else "departure"
            head = "RTM_IFANNOUNCE: interface arrival/departure"
            return paragraph(f"{head}: len 24, if# {index}, what: {what}", 24)
        state = "up" if flags & IFF_RUNNING else "down"
        names = ",".join(name for bit, name in FLAGS.items() if flags & bit)
        head = f"RTM_IFINFO: iface status change: len 168, if# {index}, link: {state}"
        return paragraph(f"{head}, flags:<{names}>", 168)

    def address(self, new: bool, body: bytes) -> str:
        family, bits, index = struct.unpack_from("=BBxxI", body)
        told = attributes(body[8:])
        address = printable(told.get(IFA_LOCAL) or told[IFA_ADDRESS])
        link = self.links.get(index)
        if not link or (new and (index, address) in self.addresses):
            return ""  # duplicate address detection is over: no news for FreeBSD
        (self.addresses.add if new else self.addresses.discard)((index, address))
        if self.netlink:
            return self.line(new, f"addr {address}/{bits} iface {link.name} ")
        inet = family == socket.AF_INET
        kinds, words = "NETMASK,IFP,IFA", f"{mask(address, bits)} {link.with_ether} {address}"
        if IFA_BROADCAST in told:
            kinds, words = f"{kinds},BRD", f"{words} {printable(told[IFA_BROADCAST])}"
        head = (
            "RTM_NEWADDR: address being added to"
            if new
            else "RTM_DELADDR: address being removed from"
        )
        flags = "<HOST>" if new and not inet else ""
        size = 124 if inet else 140
        head = f"{head} iface: len {size}, metric 0, flags:{flags}"
        return paragraph(f"{head}\nsockaddrs: <{kinds}>\n {words}", size)

    def route(self, new: bool, body: bytes) -> str:
        family, bits, table, protocol = struct.unpack_from("=BBxxBB", body)
        told = attributes(body[12:])
        (table,) = struct.unpack("=I", told[RTA_TABLE]) if RTA_TABLE in told else (table,)
        link = self.links.get(struct.unpack("=i", told.get(RTA_OIF, b"\xff" * 4))[0])
        if protocol == RTPROT_KERNEL or (table != MAIN and table < FIRST_FIB_TABLE):
            return ""  # Linux's own
        inet6 = family == socket.AF_INET6
        destination = printable(told.get(RTA_DST, bytes(16 if inet6 else 4)))
        gateway = printable(told[RTA_GATEWAY]) if RTA_GATEWAY in told else ""
        if self.netlink:
            way = f" gw {gateway}" if gateway else ""
            way += f" iface {link.name} mtu {link.mtu}" if link else ""
            name = (
                f"{'inet6' if inet6 else 'inet'}.{0 if table == MAIN else table - FIRST_FIB_TABLE}"
            )
            return self.line(new, f"route {destination}/{bits}{way} table {name}")
        flags = ["UP"] * new + ["GATEWAY"] * bool(gateway) + ["DONE", "STATIC"]
        size = 232 if inet6 else 200
        head = "RTM_ADD: Add Route" if new else "RTM_DELETE: Delete Route"
        head = f"{head}: len {size}, pid: 0, seq 0, errno 0, flags:<{','.join(flags)}>"
        via = gateway or f"link#{link.index if link else 0}"
        words = f"{destination} {via} {mask(destination, bits)}"
        return paragraph(
            f"{head}\nlocks:  inits: \nsockaddrs: <DST,GATEWAY,NETMASK>\n {words}", size
        )

    def line(self, new: bool, what: str) -> str:
        now = time.time()
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        verb = "add/repl" if new else "delete"
        return f"{clock}.{int(now * 1000) % 1000:03d} PID {0:4d} {verb} {what}"


def paragraph(message: str, size: int) -> str:
    return f"\ngot message of size {size} on {time.ctime()}\n{message}"


def mask(address: str, bits: int) -> str:
    return str(ip_network(f"{address}/{bits}", strict=False).netmask)


def printable(octets: bytes) -> str:
    return str(ip_address(octets))


def text(octets: bytes) -> str:
    return octets.rstrip(b"\0").decode()


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and body of each; see netlink(7)."""
    while len(data) >= 16:
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
        yield kind, sequence, data[16:length]
        data = data[(length + 3) // 4 * 4 :]


def attributes(data: bytes) -> Attributes:
    found: Attributes = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) // 4 * 4 :]
    return found
