"""Every command of every plan fails once, in every way, and the host is as it was before."""

from __future__ import annotations

import concurrent.futures
import os
import re

import pytest

from lab.internet import Internet
from lab.snapshot import difference
from tests.fault_table import CASES, PATH, is_look
from tests.running import Program, go_wrong, login, serve, wait_until
from tests.selection import Rows
from tests.tables import LEAST, fill, prepare
from tests.trust import Figure

pytestmark = pytest.mark.lab


@pytest.mark.hazard(19, 20, 21)
@pytest.mark.turns(5)
@pytest.mark.parametrize(
    ("plan", "release"),
    [(plan, ("15.1", "13.2")[number % 2]) for number, plan in enumerate(CASES)],
    indirect=["release"],
)
def test_whatever_fails_the_host_is_as_it_was(
    plan: str,
    release: str,
    enclosed: None,
    capsys: pytest.CaptureFixture[str],
    figure: Figure,
    rows: Rows,
) -> None:
    # What hangs costs no processor: side by side with the others.
    with Internet(release, lan=True) as net, Internet(release, lan=True) as other:
        hosts = (net.client, other.client)
        for each in (net, other):
            prepare(each, plan)
        before = [host.snapshot() for host in hosts]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            tables = list(pool.map(fill, hosts, (plan,) * 2, ("quick", "hang"), (rows,) * 2))
        for table, host, was in zip(tables, hosts, before, strict=True):
            assert table.wrong == []
            now = host.snapshot()
            was["processes"] = now["processes"] = []  # fault_table looked: other numbers now
            assert difference(was, now) == []
        promise = "Whatever fails in whatever step, the host is as it was"
        figure(promise, "plans", 1)
        figure(promise, "commands that failed, lied or were missing", tables[0].ran)
        figure(promise, "commands that hung", tables[1].ran)
        with capsys.disabled():
            faults, hangs = (f"{table.ran} of {table.cases}" for table in tables)
            print(f"\n{plan} ({release}): {faults} faults and {hangs} hangs")
        for table, least in zip(tables, LEAST[plan][:2], strict=True):
            assert table.cases >= least


def test_every_plan_says_how_long_its_table_is() -> None:
    assert LEAST.keys() == CASES.keys()


LAN = ("-t", "network", "-P", "em1/1/::1")
MESSAGE = "something went wrong, as the lab was told"


@pytest.mark.smoke
@pytest.mark.hazard(19, 21, "K6", "K7")
@pytest.mark.turns(3)
@pytest.mark.parametrize(
    ("words", "strikes", "kind", "command", "why"),
    [
        (("-t", "host"), ["create"], "exit1", "ifconfig gif create .*", MESSAGE),
        (("-t", "host"), ["tunnel"], "garbage", "ifconfig gif create .*", "no name of an .*"),
        (("-t", "host"), ["alias"], "garbage", "ifconfig gif0", "does not show .*"),
        (("-A", "2001:db8::7"), ["alias"], "error-exit0", "ifconfig gif0 inet6 .*", MESSAGE),
        (("-i", "dtcp0"), ["name"], "garbage", "ifconfig gif0 name dtcp0", "no name of an .*"),
        (("-t", "host"), ["add"], "late", "route -n add -inet6 default .*", MESSAGE),
        (("-t", "network"), ["-reject"], "hang", "route -n add .*", r"did not end in [4-9]\.. s"),
        (LAN, ["-C"], "exit1", "rtadvd .*", MESSAGE),
        (LAN, ["-C"], "late", "rtadvd .*", MESSAGE),
        (("-U", "-t", "host"), ["-f", "-"], "late", "ngctl -f -", MESSAGE),
        (("-U", "-t", "host"), ["getpeername"], "garbage", "ngctl msg .*", "does not show .*"),
        (("-o", "-t", "host"), ["alias"], "exit1", "ifconfig gif0 inet6 .*", MESSAGE),
    ],
)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_what_is_said_of_it(
    release: str,
    enclosed: None,
    words: tuple[str, ...],
    strikes: list[str],
    kind: str,
    command: str,
    why: str,
) -> None:
    """One line with the command and the reason, and the exit status of the manual."""
    with Internet(release, lan=True) as net, serve(net, "-U"):
        go_wrong(net, {"match": strikes, "do": kind})
        before = net.client.snapshot()
        with login(net.client, *words) as client:
            assert client.status() == 1
            line = client.lines[-2 if client.lines[-1] == "dtcpc: down" else -1]
            assert re.fullmatch(f"dtcpc: the tunnel could not be made: {command}: {why}", line)
        assert difference(before, net.client.snapshot()) == []


def test_a_command_that_is_missing(release: str, enclosed: None) -> None:
    with Internet(release, lan=True) as net, serve(net):
        others = " ".join(name for name in sorted(os.listdir(PATH)) if name != "rtadvd")
        script = f"""
            mount -t tmpfs tmpfs {PATH}
            for name in {others}; do ln -s ../command.py {PATH}/$name; done
            """
        net.client.run(["sh", "-ec", script])
        before = net.client.snapshot()
        with login(net.client, *LAN) as client:
            assert client.status() == 1
            client.wait_for("the tunnel could not be made: rtadvd .*: no such command in /")
        assert difference(before, net.client.snapshot()) == []


def test_a_command_that_only_looks_may_lie(release: str, enclosed: None) -> None:
    """Before anything is changed, and what the plan is made from: one line, and no harm."""
    with Internet(release, lan=True) as net, serve(net):
        before = net.client.snapshot()
        with login(net.client, *LAN) as client:
            client.wait_for("up after")
            assert client.end() == 0
        ran = [line.partition("# ")[2] for line in client.lines if "dtcpc: # " in line]
        looks = [n for n, line in enumerate(ran) if is_look(line) or line.startswith("sysctl")]
        first = next(n for n, line in enumerate(ran) if "create" in line)
        assert sum(n < first for n in looks) >= 4
        for number in (n for n in looks if n < first):
            for kind in ("garbage", ("exit1", "error-exit0")[number % 2]):
                go_wrong(net, {"nth": number + 1, "do": kind})
                with login(net.client, *LAN) as client:
                    wait_until("up or ended", lambda: client.ended or _is_up(client))
                    status = client.status() if client.ended else client.end()
                    assert status in (0, 1)
                    assert client.lines[-1].startswith("dtcpc: ")
                    assert not any("Traceback" in line for line in client.lines)
                assert difference(before, net.client.snapshot()) == [], (kind, ran[number])


def _is_up(client: Program) -> bool:
    return any("up after" in line for line in client.lines)
