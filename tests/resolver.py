"""A name server on 127.0.0.1 that answers as it is told: `resolver.py '{"name": "answer"}'`.

The answer is NXDOMAIN, SERVFAIL, empty (then none is sent), or IPv4 or IPv6 addresses separated by
commas; SERVFAIL among these is that to a question for an IPv4 address.  Other names do not exist.
Prints `ready` on standard error, and each question (RFC 1035 section 4).
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from ipaddress import ip_address

PORT = 53
A, AAAA = 1, 28
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3


def question(packet: bytes) -> tuple[str, int, int]:
    """The name, its type, and where the question ends."""
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode("ascii"))
        at += 1 + packet[at]
    (kind,) = struct.unpack_from("!H", packet, at + 1)
    return ".".join(labels).lower(), kind, at + 5


def reply(packet: bytes, told: str) -> bytes:
    _, kind, end = question(packet)
    if told.startswith("SERVFAIL,"):
        told = "SERVFAIL" if kind == A else told.removeprefix("SERVFAIL,")
    code = {"NXDOMAIN": NXDOMAIN, "SERVFAIL": SERVFAIL}.get(told, NOERROR)
    records = []
    if code == NOERROR:
        packed = [ip_address(word).packed for word in told.split(",")]
        size = {A: 4, AAAA: 16}.get(kind)
        records = [
            struct.pack("!HHHIH", 0xC00C, kind, 1, 60, len(each)) + each
            for each in packed
            if len(each) == size
        ]
    head = packet[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(records), 0, 0)
    return head + packet[12:end] + b"".join(records)


def main(names: str) -> None:
    told = json.loads(names)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", PORT))
        print("ready", file=sys.stderr, flush=True)
        while True:
            packet, sender = sock.recvfrom(512)
            name, kind, _ = question(packet)
            print(f"{name} {kind}", file=sys.stderr, flush=True)
            answer = told.get(name, "NXDOMAIN")
            if answer:
                sock.sendto(reply(packet, answer), sender)


if __name__ == "__main__":
    main(sys.argv[1])
