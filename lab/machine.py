"""The two ways to make hosts, behind one interface: namespaces on Linux, VNET jails on FreeBSD.

Everything that only one system has stands in ``linux`` or in ``jails``, under the names that
``Machine`` lists. Who uses them, tests included, asks ``machine`` and cannot tell which one it is.
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
    """What the system keeps for one host."""

    def enter(self, words: Sequence[str], *, freebsd: bool) -> list[str]:
        """The words to spawn so that the command ``words`` runs in this host, in its /.

        Args:
            words: the command.
            freebsd: whether FreeBSD's commands are to be found first.
        """
        ...

    def processes(self) -> dict[int, str]:
        """Every process of the host: process id and command line."""
        ...

    def close(self) -> None:
        """Kill whatever runs in the host, and remove the host."""
        ...


class End(NamedTuple):
    """One end of a wire."""

    place: Place
    interface: str
    ether: str


class Machine(Protocol):
    """What ``linux`` and ``jails`` both have."""

    @property
    def RELEASES(self) -> tuple[str, ...]:
        """The releases of FreeBSD that hosts can speak, the usual one first."""
        ...

    @property
    def SETUPS(self) -> Mapping[str, str]:
        """For each host that is not under test the shell script that configures it."""
        ...

    @property
    def LOOKS(self) -> Mapping[str, str]:
        """The state of a host: what is looked at -> the shell command that shows it."""
        ...

    def enclosed(self, command: Sequence[str]) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start a command; afterwards nothing is left of it and of what it made.

        Raises:
            OSError: it could not be started.
            RuntimeError: this machine cannot have hosts; the text says why.
        """
        ...

    def inside(self) -> bool:
        """Whether this process runs in an enclosure."""
        ...

    def traces(self) -> dict[str, set[str]]:
        """All that a run inside this enclosure might leave behind."""
        ...

    def place(self, name: str, etc: Path) -> Place:
        """Make a host.

        Args:
            name: its host name.
            etc: a directory with its hosts, nsswitch.conf and resolv.conf.

        Raises:
            RuntimeError: it could not be made.
        """
        ...

    def join(self, wires: Sequence[tuple[End, End]]) -> None:
        """Lay wires between hosts."""
        ...

    def ping(self, address: str, count: int, seconds: int) -> list[str]:
        """The words that send so many requests, and wait so long for each reply."""
        ...

    def reach(self, address: str, seconds: int) -> list[str]:
        """The words that send requests until the first reply; status 0: there was one in time."""
        ...

    def link(self, interface: str, *, up: bool) -> list[str]:
        """The words that switch an interface on or off."""
        ...

    def identity(self, interface: str) -> list[str]:
        """The words that print the same only for the same interface, and not for one made anew."""
        ...

    def autoconfigured(self, interface: str) -> list[str]:
        """The words that print a host's global IPv6 addresses, a line each: ADDRESS/64."""
        ...

    def default_router(self) -> list[str]:
        """The words that print a host's default router for IPv6, or nothing."""
        ...

    def refuse(self, protocol: str, port: int, answer: str) -> list[str]:
        """The words that let a firewall refuse packets to a port.

        Args:
            protocol: "udp" or "tcp".
            port: of their destination.
            answer: "" for none, "unreachable", or "reset", which a TCP connection gets once it is
                established.
        """
        ...

    def accept_all(self) -> list[str]:
        """The words that end all that ``refuse`` has begun."""
        ...

    def nat_forgets(self, seconds: int) -> list[str]:
        """The words that let a NAT box forget silent UDP flows so soon."""
        ...

    def nat_forwards(self, port: int, address: str, to: int) -> list[str]:
        """The words that let a NAT box have one UDP port for a port of a host behind it."""
        ...

    def costs(self, pid: int) -> tuple[int, int, int]:
        """Descriptors, threads, and KiB of memory of a process."""
        ...

    def write(self, path: str, mode: int) -> list[str]:
        """The words that make or replace a file from standard input."""
        ...


machine: Machine = jails if FREEBSD else linux
