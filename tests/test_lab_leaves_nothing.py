"""An enclosure leaves nothing behind, however it ends, and reports how it ended.

These tests run in an enclosure themselves, so each one started here is inside
another: they examine the outer one.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from lab import SLOW, enclosure
from lab.internet import FAR6, SERVER6, SERVER_NAME, Internet
from lab.machine import FREEBSD, machine

pytestmark = [pytest.mark.alone, pytest.mark.lab, pytest.mark.usefixtures("enclosed")]

IN_TIME = 10 if FREEBSD else 5  # seconds; jails are removed one by one
CHECKOUT = Path(__file__).resolve().parents[1]
LAB_RUN = [sys.executable, "-m", "lab", "run"]

# A whole internet, and what is hardest to get rid of: a daemon that ignores
# signals, files, and on Linux a namespace held by a mount, and an interface.
BUSY = """
import subprocess, tempfile
from lab.internet import Internet
from lab.machine import FREEBSD
with Internet() as net:
    stubborn = "trap '' TERM INT HUP; while :; do sleep 9; done"
    net.client.popen(["sh", "-c", stubborn], start_new_session=True)
    subprocess.Popen(["sh", "-c", stubborn], start_new_session=True)
    tempfile.mkdtemp()
    if not FREEBSD:
        subprocess.run(["ip", "netns", "add", "held"], check=True)
        subprocess.run(["ip", "link", "add", "left0", "type", "veth", "peer", "left1"], check=True)
        open("/run/left", "w").close()
    print("busy", flush=True)
    input()
"""
# Ends when a process without a parent is gone, once it has ended: nobody but the enclosure can wait
# for it.
ORPHAN = """
import os, subprocess, time
words = ["sh", "-c", "true & echo $!"]
orphan = int(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
try:
    while True:
        os.kill(orphan, 0)
        time.sleep(0.01)
except ProcessLookupError:
    print("gone")
"""
outer_state = machine.traces


def wait_for(what: Callable[[], object], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds * SLOW
    while not what():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.005)


def descendants(pid: int) -> list[int]:
    """The first child of ``pid``, the first child of that, and so on."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(stat.parent.name)
            return [child, *descendants(child)]
    return []


@pytest.fixture
def before() -> dict[str, set[str]]:
    return outer_state()


def start(program: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*LAB_RUN, sys.executable, "-c", program],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def start_busy() -> "subprocess.Popen[str]":
    run = start(BUSY)
    assert run.stdout is not None
    assert run.stdout.readline() == "busy\n"
    return run


def add_witness(run: "subprocess.Popen[str]") -> None:
    """Lay a wire into the inner enclosure: the kernel takes our end away with the other."""
    inside = str(descendants(run.pid)[1])
    words = ["ip", "link", "add", "witness", "type", "veth", "peer", "there", "netns", inside]
    subprocess.run(words, check=True)


@pytest.mark.parametrize("depth", [0, 1, 2, 3], ids=["supervisor", "unshare", "init", "command"])
def test_nothing_is_left_when_a_process_of_the_run_is_killed(
    before: dict[str, set[str]], depth: int
) -> None:
    with start_busy() as run:
        add_witness(run)
        victim = [run.pid, *descendants(run.pid)][depth]
        os.kill(victim, signal.SIGKILL)
        run.wait(10 * SLOW)
        wait_for(lambda: outer_state() == before)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_nothing_is_left_when_the_supervisor_is_killed_during_the_start(
    before: dict[str, set[str]], depth: int
) -> None:
    with start(BUSY) as run:
        wait_for(lambda: len(descendants(run.pid)) >= depth)
        run.kill()
        run.wait(10 * SLOW)
        wait_for(lambda: outer_state() == before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_it_all_before_the_run_returns(
    before: dict[str, set[str]], name: str
) -> None:
    number = signal.Signals[name]
    with start_busy() as run:
        began = time.monotonic()
        run.send_signal(number)
        assert run.wait(10 * SLOW) == 128 + number
        assert time.monotonic() - began < IN_TIME * SLOW
        assert outer_state() == before


def test_what_a_killed_run_has_left_is_gone_after_the_next(before: dict[str, set[str]]) -> None:
    """On Linux at once; on FreeBSD the next one clears it, and nothing of one that still runs."""
    with start_busy() as run, start_busy() as other:
        both = outer_state()
        run.kill()
        run.wait(10 * SLOW)
        assert subprocess.run([*LAB_RUN, "true"], cwd=CHECKOUT, timeout=60 * SLOW).returncode == 0
        assert outer_state() != both
        assert other.poll() is None
        other.communicate("\n", timeout=60 * SLOW)
        assert other.returncode == 0
        wait_for(lambda: outer_state() == before)


def test_the_end_of_the_command_ends_everything_else(before: dict[str, set[str]]) -> None:
    with start_busy() as run:
        run.communicate("\n", timeout=10 * SLOW)
        assert run.returncode == 0
        assert outer_state() == before


def test_interrupt_key_ends_it_all(before: dict[str, set[str]]) -> None:
    words = [*LAB_RUN[1:], sys.executable, "-c", BUSY]
    run = pexpect.spawn(LAB_RUN[0], words, cwd=str(CHECKOUT), timeout=10 * SLOW)
    run.expect_exact("busy")
    run.sendintr()
    run.expect(pexpect.EOF)
    run.close()
    assert run.exitstatus == 130
    wait_for(lambda: outer_state() == before)


def test_the_terminal_belongs_to_the_command() -> None:
    words = [*LAB_RUN[1:], "sh", "-c", "read answer; echo you said $answer"]
    run = pexpect.spawn(LAB_RUN[0], words, cwd=str(CHECKOUT), timeout=10 * SLOW)
    run.sendline("hello")
    run.expect_exact("you said hello")
    run.expect(pexpect.EOF)
    run.close()
    assert run.exitstatus == 0


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["no-such-command"], 127),
        (["/"], 126),
    ],
    ids=["success", "failure", "signal", "not found", "not executable"],
)
def test_the_status_of_the_command_is_passed_on(command: list[str], status: int) -> None:
    run = subprocess.run(
        LAB_RUN + command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, timeout=10 * SLOW
    )
    assert run.returncode == status


def test_an_orphan_that_has_ended_is_gone_while_the_run_lasts() -> None:
    """Who looks whether a daemon still lives must not find what is left of it."""
    words = [*LAB_RUN, sys.executable, "-c", ORPHAN]
    run = subprocess.run(
        words, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=10 * SLOW
    )
    assert (run.returncode, run.stdout) == (0, b"gone\n")


def test_whoever_is_not_root_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert enclosure.run(["true"]) == 77
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lab: must be root")
    assert said.err.count("\n") == 1


def test_two_internets_do_not_meet(before: dict[str, set[str]]) -> None:
    with Internet("15.1") as one, Internet("13.2") as other:
        assert one.client.read("/run/freebsd/release") == "15.1\n"
        assert other.client.read("/run/freebsd/release") == "13.2\n"
        with other.router.capture("eth0", "icmp") as silence:
            with one.router.capture("eth0", "icmp") as capture:
                one.client.run(["ping", "-c", "1", SERVER_NAME])
                request, reply = capture.wait(2)
            assert (request.src, request.dst) == ("203.0.113.7", "192.0.2.1")
            assert (reply.src, reply.dst) == ("192.0.2.1", "203.0.113.7")
            assert silence.packets == []
        other.far.run(["ping", "-c", "1", SERVER6])
    wait_for(lambda: outer_state() == before)


def test_without_a_tunnel_no_ipv6_leaves_the_client(net: Internet) -> None:
    with net.router.capture("eth0", "ip6 or ip proto 41") as capture:
        ping = net.client.run(machine.ping(FAR6, 1, 1), check=False)
        assert ping.returncode != 0
        assert capture.packets == []


def test_names_come_from_the_hosts_file_only(net: Internet) -> None:
    assert net.client.run(["getent", "ahostsv4", SERVER_NAME]).stdout.startswith("192.0.2.1 ")
    began = time.monotonic()
    assert net.client.run(["getent", "ahosts", "www.example.com"], check=False).returncode == 2
    assert time.monotonic() - began < 4  # a name server would be given five seconds
