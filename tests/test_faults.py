"""Every command of every plan fails once, in every way, and the host is as it was before."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
from typing import NamedTuple

import pytest

from lab.host import Host
from lab.internet import Internet
from lab.snapshot import difference
from tests.fault_table import CASES
from tests.running import ROOT

pytestmark = pytest.mark.lab

# Cases of each plan, hangs apart and hangs: with fewer the table has shrunk.
LEAST = dict.fromkeys(CASES, (1, 1))


class Table(NamedTuple):
    cases: int
    wrong: list[str]


def _fill(host: Host, plan: str, what: str) -> Table:
    words = [sys.executable, str(ROOT / "tests/fault_table.py"), plan, what]
    done = host.run(words, timeout=900)
    *wrong, cases = map(json.loads, done.stdout.splitlines())
    return Table(cases, [f"{what}: {line}" for line in [*wrong, *done.stderr.splitlines()]])


def _prepare(net: Internet, plan: str) -> None:
    for line in CASES[plan].prepare:
        net.client.run(line.split())
    if CASES[plan].options.solicit:
        net.client.write("/run/freebsd/rtsol-seconds", "1\n")
        net.server.run(["ifconfig", "gif0", "create", "tunnel", "192.0.2.1", "203.0.113.7"])
        words = [sys.executable, str(ROOT / "tests/answering.py")]
        router = net.server.popen(words, stdout=subprocess.PIPE)
        assert router.stdout is not None
        assert router.stdout.readline() == "ready\n"


@pytest.mark.parametrize(
    ("plan", "release"),
    [(plan, ("15.1", "13.2")[number % 2]) for number, plan in enumerate(CASES)],
    indirect=["release"],
)
def test_whatever_fails_the_host_is_as_it_was(
    plan: str, release: str, enclosed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    # What hangs costs no processor: side by side with the others.
    with Internet(release, lan=True) as net, Internet(release, lan=True) as other:
        hosts = (net.client, other.client)
        for each in (net, other):
            _prepare(each, plan)
        before = [host.snapshot() for host in hosts]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            tables = list(pool.map(_fill, hosts, (plan, plan), ("quick", "hang")))
        for table, host, was in zip(tables, hosts, before, strict=True):
            assert table.wrong == []
            now = host.snapshot()
            was["processes"] = now["processes"] = []  # fault_table looked: other numbers now
            assert difference(was, now) == []
        with capsys.disabled():
            print(f"\n{plan} ({release}): {tables[0].cases} faults and {tables[1].cases} hangs")
        for table, least in zip(tables, LEAST[plan], strict=True):
            assert table.cases >= least
