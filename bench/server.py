"""A dtcps with stub commands and many users.  Everything that depends on its setup is here."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench import processes, stubs
from bench.place import Installed

PORT = 20213
PASSWORD = "Zb4-tR9w_kQ2"
CROWD = 5000  # interfaces: whatever looks at all of them takes as long as on FreeBSD
PATIENCE = 300.0  # seconds for a start or an end


def name(number: int) -> str:
    """The user with that number."""
    return f"user{number}"


class Server:
    """A dtcps, running, whose users have tunnels of type host; `more` goes into its dtcps.conf."""

    def __init__(self, installed: Installed, directory: Path, users: int, more: str = "") -> None:
        directory.mkdir()
        self.commands = stubs.make(directory, first="$$", crowd=CROWD)
        self.environment = {"PATH": f"{self.commands}:/usr/sbin:/usr/bin:/sbin:/bin"}
        self._installed = installed
        self._log = directory / "log"
        self._config = directory / "dtcps.conf"
        database = directory / "dtcps.db"
        self._config.write_text(f"store = {database}\n{more}")
        self._run(
            *(installed.prefix / "sbin/dtcpauth", "--store", database, "import", "users", "-"),
            input="".join(f"{name(number)}:{PASSWORD}\n" for number in range(users)),
        )
        self._start()

    def _run(self, *words: str | Path, input: str) -> None:
        if not Path(words[0]).exists():
            raise RuntimeError(f"the port installs no {Path(words[0]).name}")
        done = subprocess.run(
            words, env=self.environment, input=input, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{words[0]}: {done.stderr}")

    def _start(self, *words: str, meanwhile: Callable[[], None] = lambda: time.sleep(0.02)) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(str(self._installed.server), "-D", "--config", str(self._config)),
                    *(*words, "-p", str(PORT), "2001:db8:1::/64"),
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE
        while "listening" not in self.said():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"dtcps does not start: {self.said()}")
            meanwhile()

    def said(self) -> str:
        """What it has logged since it started."""
        return self._log.read_text()

    def trace(self) -> None:
        """Make it show its commands from now on."""
        self.end()
        self._start("-d")

    def again(self) -> None:
        """Start it again, without its tunnels."""
        self.end()
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def login_commands(self) -> list[str]:
        """The commands of the first login, as a person would type them, with `$IF`."""
        lines = re.findall(r"^dtcps: # (.*)$", self.said(), re.MULTILINE)
        first = next(at for at, line in enumerate(lines) if line.startswith("ifconfig gif create"))
        create, *rest = lines[first:]
        interface = rest[0].split()[1]
        return [
            f"IF=$({create})",
            *(" ".join("$IF" if w == interface else w for w in line.split(" ")) for line in rest),
        ]

    def memory(self) -> float:
        """MB, of the server alone: its shells do not grow with its clients."""
        return processes.proportional_share(self._process.pid)

    def processor_time(self) -> float:
        """Seconds of processor time that the server itself has used."""
        return processes.processor_time(self._process.pid)

    def status(self) -> float:
        """The seconds that --status takes, from its start to its end."""
        begun = time.monotonic()
        self._run(self._installed.server, "--status", input="")
        return time.monotonic() - begun

    def restart(self, meanwhile: Callable[[], None]) -> tuple[float, float]:
        """Restart it as `service dtcps restart` does; the seconds it took to stop, and to start."""
        begun = time.monotonic()
        self._process.send_signal(signal.SIGUSR2)
        while self._process.poll() is None:
            meanwhile()
        ended = time.monotonic()
        self._start(meanwhile=meanwhile)
        return ended - begun, time.monotonic() - ended

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
