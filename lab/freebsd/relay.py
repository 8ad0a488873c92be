"""Starts and ends the processes that carry the packets of the gifs (see ``gif_relay``)."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time

from . import process
from .model import INET, Host, Interface

PROTOCOL = 41  # IPv6 in IPv4
TTL = 30  # net.inet.ip.gifttl
PATIENCE = 2.0  # seconds for an old relay to let go of the device

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def sync(host: Host) -> None:
    """Every gif that is RUNNING has its relay, and no other has one.

    An IPv6 pair is kept and shown like any, but nothing carries it.
    """
    for gif in host.interfaces.values():
        if gif.kind != "gif":
            continue
        pair = gif.tunnel if host.running(gif) and gif.tunnel[0] == INET else []
        if gif.relay and (pair != gif.relay_pair or not is_alive(gif.relay)):
            stop(gif)
        if pair and not gif.relay:
            start(gif, pair)


def start(gif: Interface, pair: list[str]) -> None:
    import socket  # takes long, and is seldom needed

    _, source, destination = pair
    tun = attach(gif.name)
    outer = socket.socket(socket.AF_INET, socket.SOCK_RAW, PROTOCOL)
    outer.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, TTL)
    outer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0  # not in the socket module; clears DF
    outer.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
    outer.bind((source, 0))
    pid = process.start("gif_relay.py", [gif.name, source, destination], [tun, outer.fileno()])
    os.close(tun)
    outer.close()
    gif.relay, gif.relay_pair = [pid, start_time(pid)], pair


def attach(name: str) -> int:
    """Opens the TUN device, when the relay before has gone for good."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    flags = IFF_TUN | IFF_NO_PI
    request = name.encode().ljust(16, b"\0") + flags.to_bytes(2, sys.byteorder) + bytes(22)
    limit = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.ioctl(tun, TUNSETIFF, request)
            return tun
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > limit:
                raise
            time.sleep(0.001)


def stop(gif: Interface) -> None:
    if gif.relay and is_alive(gif.relay):
        os.kill(gif.relay[0], process.SIGKILL)
    gif.relay, gif.relay_pair = [], []


def is_alive(relay: list[int]) -> bool:
    pid, started = relay
    return start_time(pid) == started


def start_time(pid: int) -> int:
    """Tells a process from a later one with the same number: proc(5), field 22. 0: no process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
