"""The client that only waits: its memory, and how often it wakes up.

One client with stub commands runs during the whole benchmark, as does a Python that does nothing.
Each has its own copy of the interpreter, so that memory shared with other Pythons on the machine
is fully counted as theirs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import processes, start
from bench.figures import Figure
from bench.place import Installed
from tests.certificates import self_signed

PORT, TLS_PORT = 20212, 20214
PINGS_PER_HOUR = 60  # dtcp.wire.PING_INTERVAL
MOST_MEMORY = 2.5  # times a Python that does nothing
# Per hour: a ping and its reply in one process, and its sign of life in the other.
MOST_WAKE_UPS = 190
SETTLING = 3.0  # seconds until everything needed to create the tunnel has exited
SETTLED = 0.5  # seconds after a ping until its reply has arrived and been read


class Waiting:
    """The waiting client, and the Python beside it."""

    def __init__(self, ours: start.Client, directory: Path) -> None:
        self._client = _with_its_own_python(ours, directory / "one")
        self._process = self._client.start()
        start.until_up(self._process)
        beside = _with_its_own_python(ours, directory / "other")
        self._python = subprocess.Popen(
            [beside.words[0], "-c", "input()"],
            env=beside.environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _own(self) -> list[int]:
        """The processes of dtcpc without `route -n monitor`, which is small on FreeBSD."""
        found = processes.family(self._process.pid)
        return [pid for pid in found if processes.program(pid) not in ("sleep", "route")]

    def memory(self, *, tls: bool = False) -> Figure:
        own = self._own()
        shares = [processes.proportional_share(pid) for pid in own]
        python = processes.proportional_share(self._python.pid)
        ratio = sum(shares) / python
        each = " + ".join(f"{share:.1f}" for share in shares)
        return Figure(
            f"client, memory while it waits{' with --tls' if tls else ''} (proportional share of"
            " all its processes but `route -n monitor`)",
            f"{sum(shares):.1f} MB ({each})",
            f"a Python that does nothing {python:.1f} MB",
            ratio,
            "" if tls else f"at most {MOST_MEMORY} times",
            None if tls else ratio <= MOST_MEMORY,
        )

    def wake_ups(self, pings: int) -> Figure:
        """Wait until so many pings have gone out, and count."""
        time.sleep(SETTLING)
        own = self._own()
        before = sum(map(processes.wake_ups, own))
        begun = time.monotonic()
        heard = self._pings()
        while self._pings() < heard + pings:
            time.sleep(0.1)
        time.sleep(SETTLED)
        count = sum(map(processes.wake_ups, own)) - before
        took = time.monotonic() - begun
        per_hour = count / pings * PINGS_PER_HOUR
        return Figure(
            "client, work while it waits",
            f"{per_hour:.0f} wake-ups an hour ({count} in {took:.0f} s with {pings} pings)",
            f"{PINGS_PER_HOUR} pings an hour (what comes less often than these minutes may be"
            " missing)",
            per_hour / PINGS_PER_HOUR,
            f"at most {MOST_WAKE_UPS} an hour",
            per_hour <= MOST_WAKE_UPS,
        )

    def _pings(self) -> int:
        return self._client.heard.read_text().count("ping")

    def end(self) -> None:
        start.end(self._process)
        self._python.communicate()


def _with_its_own_python(client: start.Client, directory: Path) -> start.Client:
    """The same, with a copy of the virtual environment's Python and its library."""
    (directory / "bin").mkdir(parents=True)
    python = directory / "bin/python"
    shutil.copy(os.path.realpath(sys.executable), python)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", directory)
    (directory / "lib").symlink_to(Path(sys.prefix) / "lib")
    library = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
    if library.suffix != ".a":
        shutil.copy(library, directory / "bin")
    return client._replace(
        words=[str(python), *client.words],
        environment=client.environment | {"LD_LIBRARY_PATH": str(directory / "bin")},
    )


@contextmanager
def waiting(installed: Installed, directory: Path) -> Iterator[Waiting]:
    """A client whose tunnel is up."""
    with start.client(installed, directory / "waiting", PORT) as ours:
        client = Waiting(ours, directory / "waiting")
        yield client
        client.end()


@contextmanager
def waiting_over_tls(installed: Installed, directory: Path) -> Iterator[Waiting]:
    """The same, with --tls-fingerprint."""
    place = directory / "waiting-tls"
    (directory / "certificate-of-kame").mkdir()
    own = self_signed(directory / "certificate-of-kame")
    with start.client(installed, place, TLS_PORT, certificate=own) as ours:
        client = Waiting(ours, place)
        yield client
        client.end()
