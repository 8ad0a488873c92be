"""What a careless parent or a crippled host does to a client: it works, or says why in one line."""

from __future__ import annotations

import grp
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lab.internet import CLIENT4, Internet
from lab.snapshot import difference
from tests.running import ROOT, SERVER, Program, login, ping, serve, wait_until

pytestmark = pytest.mark.lab

FAILED, TRY_AGAIN, NOT_ALLOWED = 1, 75, 77

# By the client.  Neighbors are looked for seconds after something was sent, by the test before too.
SENT = f"ip6 or (ip src {CLIENT4})"

DTCPC = f"{sys.executable} {ROOT / 'dtcpc.py'} -u itojun -t host {{}} {SERVER}"


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    """An internet with a server; every test leaves the client as it was."""
    with Internet() as internet, serve(internet):
        before = internet.client.snapshot()
        yield internet
        assert difference(before, internet.client.snapshot()) == []


def through(net: Internet, script: str, *words: str) -> Program:
    """A client that a shell's script starts, which ends in `$DTCPC`."""
    command = DTCPC.format(" ".join(words))
    return Program(net.client, "tests/through", script.replace("$DTCPC", f"exec {command}"))


PARENTS = {
    "no descriptors": "$DTCPC <&- >&- 2>&-",
    "only standard error": "$DTCPC <&- >&-",
    "descriptors of others": "exec 3</dev/null 7>/dev/null 9</dev/null; $DTCPC",
    "signals ignored": "trap '' CHLD HUP PIPE USR1 ALRM; $DTCPC",
    "a language that is none": "export LANG=xx_YY.nonsense LC_ALL=xx_YY.nonsense; $DTCPC",
    "no environment": "unset HOME USER LOGNAME LANG; $DTCPC",
    "an open mask": "umask 000; $DTCPC",
    "a directory that is gone": "mkdir /run/gone; cd /run/gone; rmdir /run/gone; $DTCPC",
    "a full log": "$DTCPC 2>/dev/full",
    "a log that nobody reads": "mkfifo /run/p; true </run/p & exec 2>/run/p; rm /run/p; $DTCPC",
}


@pytest.mark.hazard(32)
@pytest.mark.turns(3)
@pytest.mark.parametrize("script", PARENTS.values(), ids=PARENTS)
def test_a_careless_parent_changes_nothing(net: Internet, script: str) -> None:
    before = net.client.snapshot()
    with through(net, script) as client:
        wait_until("up", lambda: ping(net.client))
        modes = net.client.run(["ls", "-l", "/run/dtcpc.pid", "/run/dtcpc.state"])
        assert re.findall("^[-rwx]{10}", modes.stdout, re.M) == ["-rw-------", "-rw-r-----"]
        assert client.end() == 0
    assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(32)
@pytest.mark.parametrize("most", [6, 8, 10, 12, 16])
def test_few_descriptors_are_enough_or_named(net: Internet, most: int) -> None:
    before = net.client.snapshot()
    with through(net, f"ulimit -n {most}; $DTCPC") as client:
        wait_until("up or ended", lambda: client.ended or _is_up(client))
        if client.ended:
            assert client.status() in (FAILED, TRY_AGAIN)
            assert "Traceback" not in "\n".join(client.lines)
            assert "oo many open files" in client.lines[-1]
        else:
            assert client.end() == 0
    assert difference(before, net.client.snapshot()) == []


def _is_up(client: Program) -> bool:
    return any("up after" in line for line in client.lines)


@pytest.mark.hazard(33)
def test_who_is_not_root_is_told_before_anything_is_sent(net: Internet) -> None:
    before = net.client.snapshot()
    with net.router.capture("eth0", SENT) as capture:
        with through(net, "exec unshare --user $DTCPC".replace("$DTCPC", DTCPC.format(""))) as it:
            assert it.status() == NOT_ALLOWED
            assert it.lines == ["dtcpc: must be root to make a tunnel"]
        assert capture.packets == []
    assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(58)
@pytest.mark.parametrize("number", [7, 300])
def test_a_daemon_keeps_nothing_that_its_parent_had_open(net: Internet, number: int) -> None:
    """A lock, as a cron job or a script may hold one while it starts us."""
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")
    words = [sys.executable, f"{ROOT}/dtcpc.py", "-Dl", "-u", "itojun", SERVER]
    moved = f"import os, sys; os.dup2(7, {number}); os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", moved, *words]
    script = 'exec 7>/run/lock 9>/run/other; flock -n 7 || exit 9; "$@"'
    assert net.client.run(["sh", "-c", script, "sh", *words], check=False).returncode == 0
    pid = net.client.read("/var/run/dtcpc.pid").strip()
    free = ["flock", "-n", "/run/lock", "true"]
    assert net.client.run(free, check=False).returncode == 0
    net.client.run(["kill", pid])
    wait_until("it has ended", lambda: int(pid) not in net.client.processes())
    net.client.run(["rm", "/run/lock", "/run/other"])


@pytest.mark.hazard(59)
def test_standard_error_that_nobody_reads_blocks_nothing(net: Internet) -> None:
    """The tunnel comes up, and TERM takes it down in time."""
    words = ["-d", "-u", "itojun", "-t", "host", SERVER]
    process = net.client.popen(
        [sys.executable, str(ROOT / "dtcpc.py"), *words], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    wait_until("a packet passes", lambda: ping(net.client), 30)
    for _ in range(2000):  # more than a pipe holds
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.001)
    process.terminate()
    assert process.wait(10) == 0


# What is imported later is imported before, for this Python may lie where only root can read.
AS_NOBODY = """
import grp, json, os, sys
import dtcpc, dtcp.client.inquiry
from dtcp import lean
lean.load()
dtcpc.command_line.parse(sys.argv[2:])
os.setgroups([int(group) for group in sys.argv[1].split()])
os.setgid(65534)
os.setuid(65534)
sys.exit(dtcpc.main(sys.argv[2:]))
"""


WHEEL, OTHERS = 0, grp.getgrnam("daemon")
STATE = "/var/run/dtcpc.state"


def _status_as_nobody(
    net: Internet, *words: str, group: int | None = None
) -> subprocess.CompletedProcess[str]:
    """--status, asked by a member of that group at most."""
    groups = "" if group is None else str(group)
    asking = [sys.executable, "-c", AS_NOBODY, groups, "--status", *words]
    return net.client.run(["env", f"PYTHONPATH={ROOT}", *asking], check=False)


@pytest.mark.hazard(33, 65)
@pytest.mark.parametrize("words", [(), ("--json",)])
def test_who_is_not_root_is_told_so_by_status(net: Internet, words: tuple[str, ...]) -> None:
    done = _status_as_nobody(net, *words)
    assert (done.returncode, done.stderr) == (FAILED, "")
    assert "not running" in done.stdout
    with login(net.client) as client:
        client.wait_for("logging in")
        done = _status_as_nobody(net, *words)
        assert (done.returncode, done.stdout) == (NOT_ALLOWED, "")
        wheel = grp.getgrgid(WHEEL).gr_name
        assert done.stderr == (
            f"dtcpc: {STATE}: not allowed; become root, or a member of group {wheel}\n"
        )
        assert client.end() == 0


@pytest.mark.hazard(33, 65)
@pytest.mark.parametrize("group", [WHEEL, OTHERS.gr_gid])
def test_a_group_may_ask_for_the_status_and_for_nothing_else(net: Internet, group: int) -> None:
    words = ["--status-group", OTHERS.gr_name] if group != WHEEL else []
    with login(net.client, "-t", "host", *words) as client:
        client.wait_for("up after")
        look = f"import os; s = os.stat({STATE!r}); print(oct(s.st_mode), s.st_uid, s.st_gid)"
        assert net.client.run([sys.executable, "-c", look]).stdout == f"0o100640 0 {group}\n"
        done = _status_as_nobody(net, group=group)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("up for ")
        assert f"pid {client.pid}\n" in done.stdout
        assert _status_as_nobody(net, group=4321).returncode == NOT_ALLOWED

        # What it finds there when nobody holds it any more, it does not believe.
        client.send(signal.SIGKILL)
        client.status()
        assert json.loads(net.client.read(STATE))["facts"]["state"] == "up"
        done = _status_as_nobody(net, group=group)
        assert (done.returncode, done.stdout) == (FAILED, "not running\n")

        # One of an earlier version; or none, as on a full disk, which tells nothing.
        for change in (["chmod", "600", STATE], ["mv", STATE, "/run/kept"]):
            net.client.run(change)
            done = _status_as_nobody(net, group=group)
            assert (done.returncode, done.stdout) == (NOT_ALLOWED, "")
            assert done.stderr == f"dtcpc: {STATE}: not allowed; become root\n"
        net.client.run(["mv", "/run/kept", STATE])
        with login(net.client, "-t", "host", *words) as client:
            client.wait_for("up after")
            assert _status_as_nobody(net, group=group).returncode == 0
            assert client.end() == 0
        assert client.end() == 0


# --- the pid file's place ---------------------------------------------------------------------

PLACES = {
    "missing": ("true", "/run/none/dtcpc.pid", "No such file or directory"),
    "read-only": (
        "mkdir /run/ro; mount -t tmpfs -o ro,mode=755 tmpfs /run/ro",
        "/run/ro/dtcpc.pid",
        "Read-only file system",
    ),
    "full": (
        "mkdir /run/full; mount -t tmpfs -o size=4k,mode=755 tmpfs /run/full;"
        " head -c 4096 /dev/zero >/run/full/x",
        "/run/full/dtcpc.pid",
        "No space left on device",
    ),
    "a directory": ("mkdir /run/x.pid", "/run/x.pid", "Is a directory"),
    "a symbolic link": ("ln -s /run/target /run/x.pid", "/run/x.pid", "is a symbolic link"),
    "a hard link": (
        "echo 1 >/run/x; ln /run/x /run/x.pid",
        "/run/x.pid",
        "is a hard link; remove it",
    ),
    "of somebody": (
        "touch /run/x.pid; chown 4321 /run/x.pid",
        "/run/x.pid",
        "belongs to somebody else; remove it",
    ),
    "for everybody to write": (
        "touch /run/x.pid; chmod 666 /run/x.pid",
        "/run/x.pid",
        "writable by others; remove it",
    ),
    "where others can write": (
        "mkdir -m 1777 /run/open",
        "/run/open/x.pid",
        "others can write to /run/open; choose another directory",
    ),
    "a dangling link": ("ln -s /run/nowhere /run/x.pid", "/run/x.pid", "is a symbolic link"),
    "a pipe": ("mkfifo /run/x.pid", "/run/x.pid", "not a regular file"),
    "a device": (
        "ln /dev/null /run/x.pid || mknod /run/x.pid c 1 3",
        "/run/x.pid",
        "not a regular",
    ),
}


@pytest.mark.hazard(29)
@pytest.mark.turns(3)
@pytest.mark.parametrize(("script", "path", "why"), PLACES.values(), ids=PLACES)
def test_a_pid_file_that_cannot_be_had_is_named_before_anything_is_sent(
    net: Internet, script: str, path: str, why: str
) -> None:
    net.client.write("/run/target", "precious\n")
    net.client.run(["sh", "-c", script])
    before = net.client.snapshot()
    with net.router.capture("eth0", SENT) as capture, login(net.client, "-f", path) as client:
        assert client.status() == FAILED
        assert len(client.lines) == 1
        assert client.lines[0].startswith(f"dtcpc: {path}: {why}")
        assert capture.packets == []
    assert difference(before, net.client.snapshot()) == []
    assert net.client.read("/run/target") == "precious\n"
    net.client.run(["sh", "-c", "umount /run/ro /run/full; rm -r /run/ro /run/full"], check=False)
    net.client.run(["rm", "-rf", "/run/target", "/run/x.pid", "/run/x", "/run/open"])


@pytest.mark.hazard(29)
@pytest.mark.parametrize("text", ["99999\n", "", "\0" * 6], ids=["a pid", "nothing", "zeros"])
def test_a_stale_pid_file_is_no_obstacle_whatever_it_says(net: Internet, text: str) -> None:
    net.client.write("/run/dtcpc.pid", text, 0o644)
    with login(net.client) as client:
        client.wait_for("logging in")
        assert net.client.read("/run/dtcpc.pid") == f"{client.pid}\n"
        assert client.end() == 0


@pytest.mark.hazard(29)
@pytest.mark.parametrize("pages", [1, 2])
def test_a_disk_that_is_full_undoes_what_could_not_be_written_down(
    net: Internet, pages: int
) -> None:
    """The pid file fits; the ledger does not, at first or when it is written anew."""
    net.client.run(
        ["sh", "-c", f"mkdir /run/x; mount -t tmpfs -o mode=755,size={4 * pages}k tmpfs /run/x"]
    )
    before = net.client.snapshot()
    with login(net.client, "-t", "host", "-f", "/run/x/dtcpc.pid") as client:
        assert client.status() == FAILED
    assert re.search("^dtcpc: /run/x/dtcpc.state: No space left", client.lines[-1])
    assert difference(before, net.client.snapshot()) == []
    net.client.run(["sh", "-c", "umount /run/x; rmdir /run/x"])
