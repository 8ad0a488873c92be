"""What a system must offer to make hosts, behind one interface.

Everything that only one system has stands in a module of its own (``linux``), under the names that
``Machine`` lists. Who uses them, tests included, asks ``machine`` and cannot tell which one it is.
"""

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from lab import linux


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
    """What ``linux`` has, and what another system would need."""

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

    def write(self, path: str, mode: int) -> list[str]:
        """The words that make or replace a file from standard input."""
        ...


machine: Machine = linux
