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
    "tunnelonly": (37, 10, 9),
    "host": (38, 11, 10),
    "network": (45, 12, 11),
    "-A": (52, 15, 14),
    "-F": (38, 11, 10),
    "-i gif7 -m": (38, 11, 10),
    "-i dtcp0": (45, 12, 11),
    "-R": (46, 13, 12),
    "halves": (46, 13, 12),
    "-c": (44, 17, 15),
    "-c, used before": (42, 15, 13),
    "-o": (43, 16, 14),
    "-r solicit": (44, 12, 11),
    "-P id": (62, 18, 16),
    "-P EUI-64 -a": (56, 17, 15),
    "-P several": (82, 27, 23),
    "-P /128": (56, 17, 15),
    "-P whole": (54, 16, 14),
    "-P, foreign rtadvd": (56, 17, 15),
    "-U": (46, 12, 11),
    "-U -n -i -F": (59, 14, 13),
    "server": (23, 6, 5),
    "server, UDP": (46, 12, 11),
    "change of host": (17, 5, 12),
    "change of outer": (17, 5, 12),
    "change of prefix": (52, 12, 23),
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
