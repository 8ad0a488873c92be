"""Starts and ends the processes that are ng_ksocket(4) nodes, and passes messages to them."""

from __future__ import annotations

import errno
import os
import socket
import time

from . import process, relay
from .model import EADDRNOTAVAIL, Refused

# strerror(3), where FreeBSD says it in other words than Linux.
IN_WORDS = {
    errno.EADDRNOTAVAIL: EADDRNOTAVAIL,
    errno.ENOTCONN: "Socket is not connected",
    errno.EHOSTUNREACH: "No route to host",
}


def address(number: int) -> str:
    """Where the node listens: not a file, and each host has its own."""
    return f"\0ng_ksocket-{number:x}"


def start(number: int, interface: str) -> list[int]:
    """The process of a new node; it carries the packets of the interface, if one is named."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address(number))
    listener.listen()
    descriptors = [listener.fileno(), *([relay.attach(interface)] if interface else [])]
    pid = process.start("ksocket_relay.py", [interface], descriptors)
    listener.close()
    for descriptor in descriptors[1:]:
        os.close(descriptor)
    return [pid, relay.start_time(pid)]


def stop(node: list[int]) -> None:
    """When it is gone, so is its port."""
    if relay.is_alive(node):
        os.kill(node[0], process.SIGKILL)
    limit = time.monotonic() + relay.PATIENCE
    while relay.is_alive(node) and time.monotonic() < limit:
        time.sleep(0.001)


def ask(number: int, message: str) -> str:
    """What the node answers to "bind inet/192.0.2.1:4028" or the like."""
    with socket.socket(socket.AF_UNIX) as node:
        node.connect(address(number))
        node.sendall(message.encode())
        answer = node.recv(4096).decode()
    if answer.startswith("!"):
        code = int(answer[1:])
        raise Refused(IN_WORDS.get(code, os.strerror(code)))
    return answer
