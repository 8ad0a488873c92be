"""One host of the small internet: a network and files of its own, and a way in.

It has an empty /run, /usr/local/etc and /var/db, and knows the names in its /etc/hosts only. What
happens in it leaves the rest of the machine alone. How the machine makes one: ``machine``.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import SLOW
from lab.capture import Capture
from lab.machine import machine
from lab.snapshot import Snapshot, snapshot


class CommandFailed(subprocess.CalledProcessError):
    """A command in a host ended with another status than 0; the text has its words."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stdout}{self.stderr}".rstrip()


class Host:
    """A running host.

    Args:
        name: its host name.
        etc: a directory with its hosts, nsswitch.conf and resolv.conf.
        release: the FreeBSD release whose commands it speaks, such as "15.1",
            or None for a host that speaks what the machine does.

    Raises:
        RuntimeError: it could not be made.
    """

    def __init__(self, name: str, etc: Path, release: str | None = None) -> None:
        self.name = name
        self.place = machine.place(name, etc)
        self._started: list[subprocess.Popen[str]] = []
        self.release = release
        if release is not None:
            self.write("/run/freebsd/release", f"{release}\n", 0o644)

    def argv(self, words: Sequence[str]) -> list[str]:
        """The words to spawn so that the command ``words`` runs in this host, in its /."""
        return self.place.enter(words, freebsd=self.release is not None)

    def run(
        self,
        words: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 10,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return its words and status.

        Args:
            words: the command.
            check: whether another status than 0 is an error.
            timeout: seconds, on a machine of the usual speed.
            input: what it reads; None: nothing.

        Raises:
            CommandFailed: with ``check``, it ended with another status than 0.
            subprocess.TimeoutExpired: it was killed after ``timeout``.
        """
        done = subprocess.run(
            self.argv(words),
            input="" if input is None else input,
            capture_output=True,
            text=True,
            timeout=timeout * SLOW,
        )
        if check and done.returncode != 0:
            raise CommandFailed(done.returncode, list(words), done.stdout, done.stderr)
        return done

    def popen(self, words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command; options as for ``subprocess.Popen``, streams are text.

        It need not be ended or waited for: ``close`` does.
        """
        process = subprocess.Popen(self.argv(words), text=True, **options)
        self._started.append(process)
        return process

    def write(self, path: str, text: str, mode: int = 0o600) -> None:
        """Make or replace a file of this host, missing directories included."""
        self.run(machine.write(path, mode), input=text)

    def read(self, path: str) -> str:
        """The text of a file of this host.

        Raises:
            CommandFailed: it is not there.
        """
        return self.run(["cat", path]).stdout

    def processes(self) -> dict[int, str]:
        """Every process in this host: process id and command line."""
        return self.place.processes()

    def snapshot(self) -> Snapshot:
        """The whole state of this host, for ``difference(before, after)``."""
        state = snapshot(self.run, freebsd=self.release is not None)
        state["processes"] = [f"{pid} {words}" for pid, words in sorted(self.processes().items())]
        return state

    def capture(self, interface: str, filter: str = "") -> Capture:
        """A context manager that captures packets of an interface (``filter``: see pcap-filter)."""
        return Capture(self.argv, interface, filter)

    def close(self) -> None:
        """Kill whatever runs in this host, and with it the host."""
        self.place.close()
        for process in self._started:
            process.kill()
            process.wait()
            for stream in process.stdin, process.stdout, process.stderr:
                if stream is not None:
                    stream.close()
