"""rtsol(8): asks for a router and waits for its answer, which the kernel takes in.

It nearly always exits 0: when nobody answers, and also where the interface is not fit for it.
"""

from __future__ import annotations

import getopt
import os
import select
import socket
import sys
import time

from . import addresses, linux, ndp, store
from .model import ACCEPT_RTADV, EPERM, Host, Interface

# Nobody answers: it is over after this many seconds, if /run/freebsd/rtsol-seconds says no other.
# It asks at the beginning, and again after each of the shares of that time.
PATIENCE = 10
SOLICITATIONS, SHARE = 3, 0.4
# Duplicate address detection may hold our address back: how long at most, how often to try.
TENTATIVE, RETRY = 3, 0.05

OPTIONS = {
    True: "[-dDFiu] [-O script-name] [-M script-name ] [-A script-name ] [-R script-name]",
    False: "[-dDF] [-O script-name] [-p pidfile] [-R script-name]",
}


def main(arguments: list[str]) -> int:
    host = store.load()
    linux.observe(host)
    try:
        given, names = getopt.getopt(arguments, "adDFiuO:M:A:R:")
    except getopt.GetoptError as error:
        say(f"illegal option -- {error.opt}")
        return usage(host)
    letters = [letter for letter, _ in given]
    if "-a" in letters:
        names = [i.name for i in host.interfaces.values() if i.nd6 & ACCEPT_RTADV]
    elif not names:
        return usage(host)
    if os.geteuid() or host.jail == "plain":
        say(f"socket: {EPERM if os.geteuid() else 'Protocol not supported'}")
        say("failed to open receive socket")
        return 1
    for name in names:
        if name not in host.interfaces:
            say(f"failed to get link layer information for {name}")
            say(f"failed to initialize {name}")
            return 1
    fit = [i for i in map(host.interfaces.__getitem__, names) if is_fit(host, i)]
    store.unlock()
    for interface in fit:
        solicit(interface, debug="-d" in letters)
    return 0


def usage(host: Host) -> int:
    for names in ("interface ...", "-a"):
        print(f"usage: rtsol {OPTIONS[host.netlink]} {names}", file=sys.stderr)
    return 1


def say(message: str) -> None:
    print(f"rtsol: {message}", file=sys.stderr)


def is_fit(host: Host, interface: Interface) -> bool:
    """An interface that is down is only brought up: asking there is for the next time."""
    if not interface.up:
        addresses.bring_up(host, interface)
        linux.project(host)
        store.save(host)
        return False
    if interface.disabled:
        say(f"{interface.name} is disabled.")
    elif not interface.nd6 & ACCEPT_RTADV:
        say(f"{interface.name} does not accept Router Advertisement.")
    else:
        return True
    return False


def solicit(interface: Interface, debug: bool) -> None:
    if debug and not interface.ether:
        what = f"link-layer address option has null length on {interface.name}"
        say(f"{what}. Treat as not included.")
    index = socket.if_nametoindex(interface.name)
    patience = float(store.word("rtsol-seconds", str(PATIENCE)))
    with ndp.listen(ndp.ADVERTISEMENT) as sock:
        begin = time.monotonic()
        while not ask(sock, interface, index) and time.monotonic() < begin + TENTATIVE:
            time.sleep(RETRY)
        sent, now = 1, time.monotonic()
        due, end = now + SHARE * patience, now + patience
        while (now := time.monotonic()) < end:
            if now >= due and sent < SOLICITATIONS:
                ask(sock, interface, index)
                sent, due = sent + 1, due + SHARE * patience
            wait = min(due, end) - now if sent < SOLICITATIONS else end - now
            if select.select([sock], [], [], max(0, wait))[0] and ndp.received_on(sock) == index:
                return
    if debug:
        say(f"No answer after sending {SOLICITATIONS} RSs")


def ask(sock: socket.socket, interface: Interface, index: int) -> bool:
    own = interface.linklocal
    try:
        message = ndp.solicitation(interface.ether)
        ndp.send(sock, message, ndp.ALL_ROUTERS, own.address if own else "::", index)
    except OSError:
        return False
    return True
