"""One host of the small internet: its own network and files, and a way in.

It has an empty /run, /usr/local/etc and /var/db, and knows only the names in its /etc/hosts. What
happens in it does not affect the rest of the machine. For how hosts are created, see ``machine``.
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
    """A command in a host exited with a nonzero status; the text has its output."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stdout}{self.stderr}".rstrip()


class Host:
    """A running host.

    Args:
        name: its host name.
        etc: a directory with its hosts, nsswitch.conf and resolv.conf.
        release: the FreeBSD release whose commands it speaks, such as "15.1",
            or None for a host with the machine's own commands.

    Raises:
        RuntimeError: it could not be created.
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
        timeout: float = 30,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to completion and return its output and status.

        Args:
            words: the command.
            check: whether a nonzero status is an error.
            timeout: seconds, on a machine of normal speed.
            input: what it reads; None: nothing.

        Raises:
            CommandFailed: with ``check``, it exited with a nonzero status.
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

        It need not be killed or waited for: ``close`` does so.
        """
        process = subprocess.Popen(self.argv(words), text=True, **options)
        self._started.append(process)
        return process

    def write(self, path: str, text: str, mode: int = 0o600) -> None:
        """Create or replace a file of this host, including missing directories."""
        self.run(machine.write(path, mode), input=text)

    def read(self, path: str) -> str:
        """The text of a file of this host.

        Raises:
            CommandFailed: it does not exist.
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
        """A context manager that captures packets on an interface (``filter``: see pcap-filter)."""
        return Capture(self.argv, interface, filter)

    def close(self) -> None:
        """Kill everything that runs in this host, and thereby the host."""
        self.place.close()
        for process in self._started:
            process.kill()
            process.wait()
            for stream in process.stdin, process.stdout, process.stderr:
                if stream is not None:
                    stream.close()
