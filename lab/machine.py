"""The two ways to create hosts, behind one interface: namespaces on Linux, VNET jails on FreeBSD.

Everything specific to one system is in ``linux`` or in ``jails``, under the names that ``Machine``
lists. Callers, including tests, go through ``machine`` and cannot tell which one it is.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from lab import jails, linux

FREEBSD = os.uname().sysname == "FreeBSD"


class Place(Protocol):
    """The system's side of one host."""

    def enter(self, words: Sequence[str], *, freebsd: bool) -> list[str]:
        """The words to spawn so that the command ``words`` runs in this host, in its /.

        Args:
            words: the command.
            freebsd: whether FreeBSD's commands come first in PATH.
        """
        ...

    def processes(self) -> dict[int, str]:
        """Every process of the host: process id and command line."""
        ...

    def close(self) -> None:
        """Kill everything that runs in the host, and remove the host."""
        ...


class End(NamedTuple):
    """One end of a wire."""

    place: Place
    interface: str
    ether: str


class Machine(Protocol):
    """What both ``linux`` and ``jails`` provide."""

    @property
    def RELEASES(self) -> tuple[str, ...]:
        """The releases of FreeBSD that hosts can have, the usual one first."""
        ...

    @property
    def SETUPS(self) -> Mapping[str, str]:
        """For each host that is not under test, the shell script that configures it."""
        ...

    @property
    def LOOKS(self) -> Mapping[str, str]:
        """The state of a host: what is looked at -> the shell command that shows it."""
        ...

    def enclosed(self, command: Sequence[str]) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start a command; afterwards nothing is left of it or of what it created.

        Raises:
            OSError: it could not be started.
            RuntimeError: this machine does not support hosts; the text says why.
        """
        ...

    def inside(self) -> bool:
        """Whether this process runs in an enclosure."""
        ...

    def from_outside(self, mark: str, words: Sequence[str]) -> str:
        """For a shell outside this enclosure: runs the command ``words`` in it.

        Args:
            mark: of the processes of this machine, only the caller has it in its command line.
            words: the command.
        """
        ...

    def traces(self) -> dict[str, set[str]]:
        """All that a run inside this enclosure might leave behind."""
        ...

    def place(self, name: str, etc: Path) -> Place:
        """Create a host.

        Args:
            name: its host name.
            etc: a directory with its hosts, nsswitch.conf and resolv.conf.

        Raises:
            RuntimeError: it could not be created.
        """
        ...

    def join(self, wires: Sequence[tuple[End, End]]) -> None:
        """Connect hosts with wires."""
        ...

    def ping(self, address: str, count: int, seconds: int) -> list[str]:
        """The words that send ``count`` requests, and wait ``seconds`` for each reply."""
        ...

    def reach(self, address: str, seconds: int) -> list[str]:
        """The words that send requests until the first reply; status 0: there was one in time."""
        ...

    def link(self, interface: str, *, up: bool) -> list[str]:
        """The words that switch an interface on or off."""
        ...

    def identity(self, interface: str) -> list[str]:
        """The words whose output identifies an interface, and differs if it is recreated."""
        ...

    def autoconfigured(self, interface: str) -> list[str]:
        """The words that print a host's global IPv6 addresses, one per line: ADDRESS/64."""
        ...

    def default_router(self) -> list[str]:
        """The words that print a host's default router for IPv6, or nothing."""
        ...

    def refuse(self, protocol: str, port: int, answer: str) -> list[str]:
        """The words that make a firewall reject packets to a port.

        Args:
            protocol: "udp" or "tcp".
            port: the destination port.
            answer: "" for none, "unreachable", or "reset", which a TCP connection gets once it is
                established.
        """
        ...

    def accept_all(self) -> list[str]:
        """The words that undo every ``refuse``."""
        ...

    def drop(self, protocol: int) -> list[str]:
        """Drops the packets of an IP protocol on their way through, until `accept_all`."""

    def nat_forgets(self, seconds: int) -> list[str]:
        """The words that make a NAT forget idle UDP flows this soon."""
        ...

    def nat_forwards(self, port: int, address: str, to: int) -> list[str]:
        """The words that make a NAT forward a UDP port to a port of a host behind it."""
        ...

    def costs(self, pid: int) -> tuple[int, int, int]:
        """Descriptors, threads, and KiB of memory of a process."""
        ...

    def write(self, path: str, mode: int) -> list[str]:
        """The words that create or replace a file from standard input."""
        ...


machine: Machine = jails if FREEBSD else linux
