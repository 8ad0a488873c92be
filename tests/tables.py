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
from tests.selection import Rows

# Cases of each plan, those that hang apart, and in how many we are killed: fewer, and the table
# has shrunk.
LEAST = {
    "tunnelonly": (23, 6, 6),
    "host": (23, 6, 6),
    "network": (31, 8, 8),
    "-A": (35, 8, 8),
    "-F": (23, 6, 6),
    "-i gif7 -m": (23, 6, 6),
    "-i dtcp0": (28, 7, 7),
    "-R": (30, 7, 7),
    "halves": (30, 7, 7),
    "-c": (32, 15, 14),
    "-c, used before": (30, 13, 12),
    "-o": (31, 14, 13),
    "-r solicit": (29, 7, 7),
    "-P id": (48, 14, 13),
    "-P EUI-64 -a": (42, 13, 12),
    "-P several": (68, 23, 20),
    "-P /128": (42, 13, 12),
    "-P whole": (40, 12, 11),
    "-P, foreign rtadvd": (42, 13, 12),
    "-U": (38, 9, 9),
    "-U -n -i -F": (51, 12, 12),
    "server": (23, 6, 6),
    "server, UDP": (38, 9, 9),
    "change of host": (17, 5, 8),
    "change of outer": (12, 4, 7),
    "change of prefix": (47, 10, 16),
}


class Table(NamedTuple):
    """How many cases there are, how many were due, and what was wrong in which."""

    cases: int
    ran: int
    wrong: list[str]


def fill(host: Host, plan: str, what: str, rows: Rows) -> Table:
    words = [sys.executable, str(ROOT / "tests/fault_table.py"), plan, what, json.dumps(rows.due)]
    done = host.run(words, timeout=900)
    *wrong, (cases, ran) = map(json.loads, done.stdout.splitlines())
    rows.failed += [case for case, _ in wrong]
    return Table(cases, ran, [f"{what}: {line}" for line in [*wrong, *done.stderr.splitlines()]])


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
