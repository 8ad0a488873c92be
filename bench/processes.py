"""What the kernel reports about processes."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in (_PROC / str(parent) / "task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def program(pid: int) -> str:
    return (_PROC / str(pid) / "comm").read_text().strip()


def proportional_share(pid: int) -> float:
    """Memory in MB: a page that n processes share counts one n-th (Pss, proc_pid_smaps(5))."""
    text = (_PROC / str(pid) / "smaps_rollup").read_text()
    found = re.search(r"^Pss: +([0-9]+) kB$", text, re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def wake_ups(pid: int) -> int:
    """The voluntary context switches of a process's threads so far."""
    total = 0
    for task in (_PROC / str(pid) / "task").iterdir():
        found = re.search(
            r"^voluntary_ctxt_switches:\t([0-9]+)$", (task / "status").read_text(), re.MULTILINE
        )
        assert found
        total += int(found[1])
    return total


def processor_time(pid: int) -> float:
    """CPU seconds used by a process itself, without its children."""
    words = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
