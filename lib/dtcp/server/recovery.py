"""What a server before us has left on this host: by the pid file's lock, no other one runs.

Tunnels that the store knows wait for their clients to come back; the rest is removed.  Whatever
there is, is looked at by itself, and later (dtcp.server.tunnels for the tunnels, `tidy` for the
rest): a look at everything takes minutes where there are thousands of interfaces.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import NamedTuple

from dtcp import plan
from dtcp.daemon import Log
from dtcp.errors import CommandFailed
from dtcp.look import Interface
from dtcp.server import unreachable
from dtcp.server.interfaces import Interfaces
from dtcp.server.settings import Settings
from dtcp.server.shell import Shell
from dtcp.server.store import Made, Store
from dtcp.system import System


class Left(NamedTuple):
    """What there is at the start."""

    tunnels: list[Made]  # as far as the store knows; nobody has looked
    names: list[str]  # of other interfaces in our group
    nodes: list[str]  # of netgraph, which are no tunnel's


def recover(
    log: Log, settings: Settings, interfaces: Interfaces, *, fib: int | None, udp: bool
) -> Left:
    """See to it that unused space is unreachable, and what there may be beside.

    Raises CommandFailed, StoreError.
    """
    # A daemon has another process, and so another shell.
    with contextlib.closing(Shell()) as shell, contextlib.closing(Store(settings.store)) as store:
        host = System(log.command, shell.run)
        unreachable.change(unreachable.prefixes(settings), host, store, fib)
        tunnels = store.tunnels()
        taken = {made.interface for made in tunnels}
        interfaces.find(host.look, taken)
        names = [each for each in host.look.members(plan.GROUP) if each not in taken]
        nodes = []
        if udp:
            known = {made.node for made in tunnels}
            shown = host.commands.run(("ngctl", "list"))
            found = re.findall(r"Name: (dtcps[0-9]+u[0-9]+) ", shown)
            nodes = [each for each in found if each not in known]
        return Left(tunnels, names, nodes)


def tidy(log: Log, name: str, host: System, *, destroy: bool) -> bool:
    """Remove an interface that is half made, or half taken down; whether it was one.

    Without `destroy` it stays, for new tunnels.  Raises CommandFailed.
    """
    there = host.look.interface(name)
    if (
        there is None
        or plan.GROUP not in there.groups
        or not there.description.startswith("dtcps ")
        or there.description.endswith(f" pid {os.getpid()}")  # it has become one of ours since
        or there.name.startswith("ng")  # those go with their nodes
    ):
        return False
    log.notice(f"removing {name}, which a killed dtcps has left")
    _remove(host, there, destroy=destroy)
    return True


def shut_down(log: Log, node: str, host: System) -> None:
    """Remove a node of netgraph, and its interface with it.  Raises CommandFailed."""
    log.notice(f"removing {node}, which a killed dtcps has left")
    host.commands.run(("ngctl", "shutdown", f"{node}:"))


def _remove(host: System, interface: Interface, *, destroy: bool) -> None:
    if destroy:
        try:
            host.commands.run(("ifconfig", interface.name, "destroy"))
        except CommandFailed as failed:
            if "does not exist" not in failed.reason:  # somebody was quicker
                raise
        return
    words: list[tuple[str, ...]] = [("deletetunnel",)]
    words += [("inet6", str(address), "-alias") for address in interface.addresses]
    words += [("inet6", "ifdisabled"), ("-description",), ("down",)]
    for each in words:
        with contextlib.suppress(CommandFailed):
            host.commands.run(("ifconfig", interface.name, *each))
