"""The table of faults that tests/fault_table.py fills, seen from outside the host."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import NamedTuple

from lab.host import Host
from lab.internet import Internet
from tests.fault_table import CASES
from tests.running import ROOT

# Cases of each plan, hangs apart and hangs: with fewer the table has shrunk.
LEAST = dict.fromkeys(CASES, (1, 1, 1))


class Table(NamedTuple):
    """How many cases there were, and what was wrong in which."""

    cases: int
    wrong: list[str]


def fill(host: Host, plan: str, what: str) -> Table:
    words = [sys.executable, str(ROOT / "tests/fault_table.py"), plan, what]
    done = host.run(words, timeout=900)
    *wrong, cases = map(json.loads, done.stdout.splitlines())
    return Table(cases, [f"{what}: {line}" for line in [*wrong, *done.stderr.splitlines()]])


def prepare(net: Internet, plan: str) -> None:
    for line in CASES[plan].prepare:
        net.client.run(line.split())
    if CASES[plan].options.solicit:
        net.client.write("/run/freebsd/rtsol-seconds", "1\n")
        net.server.run(["ifconfig", "gif0", "create", "tunnel", "192.0.2.1", "203.0.113.7"])
        words = [sys.executable, str(ROOT / "tests/answering.py")]
        router = net.server.popen(words, stdout=subprocess.PIPE)
        assert router.stdout is not None
        assert router.stdout.readline() == "ready\n"
