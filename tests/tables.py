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
    "tunnelonly": (31, 9, 8),
    "host": (32, 10, 9),
    "network": (39, 11, 10),
    "-A": (46, 14, 13),
    "-F": (32, 10, 9),
    "-i gif7 -m": (32, 10, 9),
    "-i dtcp0": (39, 11, 10),
    "-R": (40, 12, 11),
    "halves": (40, 12, 11),
    "-c": (44, 17, 15),
    "-c, used before": (42, 15, 13),
    "-o": (37, 15, 13),
    "-r solicit": (38, 11, 10),
    "-P id": (56, 17, 15),
    "-P EUI-64 -a": (50, 16, 14),
    "-P several": (76, 26, 22),
    "-P /128": (50, 16, 14),
    "-P whole": (48, 15, 13),
    "-P, foreign rtadvd": (50, 16, 14),
    "-U": (46, 12, 11),
    "-U -n -i -F": (59, 14, 13),
    "server": (23, 6, 5),
    "server, UDP": (46, 12, 11),
    "change of host": (17, 5, 11),
    "change of outer": (17, 5, 11),
    "change of prefix": (52, 12, 22),
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
