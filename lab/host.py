"""One host of the small internet: namespaces of its own and a way in.

A host is a network, a mount and a host-name namespace, kept by one process
that does nothing (the anchor). It has an empty /run, /usr/local/etc and
/var/db, and knows the names in its /etc/hosts only. What happens in it leaves the rest of
the machine alone.
"""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab.capture import Capture
from lab.snapshot import Snapshot, snapshot

FREEBSD_COMMANDS = Path(__file__).resolve().parent / "freebsd" / "bin"
_LINUX_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# $1: host name, $2: directory with the files that go over those in /etc.
# The bind mounts come first: resolv.conf may be a link into /run.
_ANCHOR = """
set -e
echo "$1" >/proc/sys/kernel/hostname
for file in hosts nsswitch.conf resolv.conf; do
    if [ -e "/etc/$file" ]; then mount --bind "$2/$file" "/etc/$file"; fi
done
mount -t tmpfs -o mode=755 tmpfs /run
if [ ! -L /var/run ]; then mount --bind /run /var/run; fi
mount -t tmpfs -o mode=755 tmpfs /usr/local/etc
mount -t tmpfs -o mode=755 tmpfs /var/db
# Known beginnings, whatever the machine has (IPv4 settings are inherited from it).
echo 0 >/proc/sys/net/ipv4/ip_forward
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
# No waiting for duplicate address detection: addresses are good at once.
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up
echo ready
exec cat
"""


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
            or None for a plain Linux host.

    Raises:
        RuntimeError: its namespaces could not be made.
    """

    def __init__(self, name: str, etc: Path, release: str | None = None) -> None:
        self.name = name
        self._started: list[subprocess.Popen[str]] = []
        self.release = release
        # Without a fork in between, the process we start is the anchor. It
        # ends when we close its input or are no more.
        self._anchor = subprocess.Popen(
            [
                *("unshare", "--net", "--uts", "--mount", "--propagation", "private"),
                *("sh", "-c", _ANCHOR, "sh", name, str(etc)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._anchor.stdout is not None
        if self._anchor.stdout.readline() != "ready\n":
            raise RuntimeError(f"lab: the namespaces of {name} could not be made")
        self._net = os.readlink(f"/proc/{self.pid}/ns/net")
        if release is not None:
            self.write("/run/freebsd/release", f"{release}\n", 0o644)

    @property
    def pid(self) -> int:
        """Process id of the anchor: stands for the host in ``ip link ... netns PID``."""
        return self._anchor.pid

    def argv(self, words: Sequence[str]) -> list[str]:
        """The words to spawn so that the command ``words`` runs in this host, in its /."""
        path = _LINUX_PATH if self.release is None else f"{FREEBSD_COMMANDS}:{_LINUX_PATH}"
        return [
            *("nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--"),
            *("env", f"PATH={path}", *words),
        ]

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
            timeout: seconds.
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
            timeout=timeout,
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
        self.run(["install", "-D", f"--mode={mode:o}", "/dev/stdin", path], input=text)

    def read(self, path: str) -> str:
        """The text of a file of this host.

        Raises:
            CommandFailed: it is not there.
        """
        return self.run(["cat", path]).stdout

    def processes(self) -> dict[int, str]:
        """Every process in this host but the anchor: process id and command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            # Processes come and go while we look, and the dead have no namespaces.
            with suppress(OSError):
                if entry.name.isdecimal() and os.readlink(entry / "ns/net") == self._net:
                    words = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                    found[int(entry.name)] = b" ".join(words).decode(errors="replace")
        found.pop(self.pid, None)
        return found

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
        self._anchor.kill()
        self._anchor.communicate()
        limit = time.monotonic() + 5
        while (left := self.processes()) and time.monotonic() < limit:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.kill()
            process.wait()
            for stream in process.stdin, process.stdout, process.stderr:
                if stream is not None:
                    stream.close()
