"""Where it all runs: namespaces that end with the run, and the programs as the port installs them.

Root uses the lab's enclosure.  Without root, a user namespace takes its place, in which the server
can be measured, but not the client (it cannot have its unprivileged process) or the lab.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import processes
from lab import enclosure

ROOT = Path(__file__).resolve().parent.parent


def run(words: list[str]) -> int:
    """Run a command in its own namespaces; return its exit status."""
    if os.geteuid() == 0:
        return enclosure.run(words)
    lifeline, held = os.pipe()  # `held` is closed by our end, whatever it is
    try:
        return subprocess.call(
            [
                *("unshare", "--map-root-user", "--fork", "--kill-child", "--pid", "--mount-proc"),
                *("--mount", "--propagation", "private", "--net", "--uts"),
                *(sys.executable, "-I", "-S", str(ROOT / "lab/init.py"), str(lifeline)),
                *words,
            ],
            pass_fds=[lifeline],
        )
    finally:
        os.close(lifeline)
        os.close(held)


def is_real_root() -> bool:
    """Whether the users here are the users of the machine."""
    return Path("/proc/self/uid_map").read_text().split()[2] == "4294967295"


@contextmanager
def undisturbed(*pids: int) -> Iterator[None]:
    """Give these processes, and all that is started in here, priority over everything else.

    For a few seconds at a time, and the same for everything that is compared.  Without root, it
    does nothing.
    """
    try:
        _schedule(pids, os.SCHED_RR, 10)
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        _schedule(pids, os.SCHED_OTHER, 0)


def _schedule(pids: Iterable[int], policy: int, priority: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(priority))
    for pid in pids:
        for each in processes.family(pid):
            for thread in Path(f"/proc/{each}/task").iterdir():
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))


class Installed(NamedTuple):
    """The programs, with their byte code, as the port installs them."""

    prefix: Path

    @property
    def client(self) -> Path:
        return self.prefix / "sbin/dtcpc"

    @property
    def server(self) -> Path:
        return self.prefix / "sbin/dtcps"


def install(directory: Path) -> Installed:
    """Stage the port (Makefile), for the Python that runs this, and put it in place."""
    prefix, work = directory / "prefix", directory / "work"
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    done = subprocess.run(
        [
            *("bmake", "-m", str(ROOT / "tests/port")),
            *(f"PYTHON_CMD={sys.executable}", f"PYTHON_SUFFIX={version}"),
            *(f"PREFIX={prefix}", f"WRKDIR={work}", "stage"),
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"bmake stage: {done.stdout}")
    shutil.copytree(f"{work}/stage{prefix}", prefix)
    return Installed(prefix)
