"""kill -9 at any point, and what may happen to the host until the next start."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator

import pytest

from lab.internet import Internet
from lab.snapshot import Snapshot, difference
from tests import fault_table
from tests.running import Program, go_wrong, login, serve, wait_until
from tests.selection import Rows
from tests.tables import LEAST, fill, prepare
from tests.trust import Figure

pytestmark = pytest.mark.lab

FULL = ("-t", "network", "-P", "em1/1/::1")
STATE = "/var/run/dtcpc.state"
LONG = 60.0  # seconds: much is undone first, and done, on a machine that may be busy


@pytest.fixture
def net(release: str, enclosed: None) -> Iterator[Internet]:
    """An internet with a LAN behind the client, which forwards."""
    with Internet(release, lan=True) as internet:
        internet.client.run(["sysctl", "net.inet6.ip6.forwarding=1"])
        internet.client.write("/run/freebsd/rtadvd-seconds", "0.05\n")
        yield internet


def _is_up(net: Internet) -> Snapshot:
    """The host with a tunnel, without what differs from one run to the next."""
    state = net.client.snapshot()
    del state["processes"], state["files"]
    return {
        what: [re.sub(r" pid \d+", "", line) for line in lines] for what, lines in state.items()
    }


def _killed(client: Program) -> None:
    assert client.status() == -signal.SIGKILL


def _start_and_stop(net: Internet, *words: str) -> None:
    """A start that finds no server: what is left is undone first, and then it ends."""
    with login(net.client, "-p", "20999", *words) as client:
        assert client.status() == 75, client.lines


def test_a_start_after_it_is_like_a_clean_one(net: Internet, rows: Rows) -> None:
    """The whole program, killed in a command that changes something, on the way up or down.

    Each point of each plan has its turn below, in `test_in_every_step_of_every_plan`.
    """
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, *FULL) as client:
            client.wait_for("route -n monitor", LONG)  # the last of all
            clean = _is_up(net)
            assert client.end() == 0
        ran = [line.partition("# ")[2] for line in client.lines if "dtcpc: # " in line]
        commands = [line for line in ran if not re.match("kill |route -n monitor", line)]
        points = [n for n, line in enumerate(commands) if not fault_table.is_look(line)]
        assert len(points) >= 14
        for number in rows(points):
            kind = ("kill", "kill-late")[number % 2]
            go_wrong(net, {"nth": number + 1, "do": kind})
            with login(net.client, *FULL) as client:
                wait_until("up or killed", lambda: client.ended or _says(client, "n monitor"), LONG)
                if not client.ended:
                    client.send(signal.SIGTERM)
                _killed(client)
            with login(net.client, *FULL) as client:
                client.wait_for("up after", LONG)
                assert difference(clean, _is_up(net)) == [], commands[number]
                assert client.end() == 0
            assert difference(before, net.client.snapshot()) == [], commands[number]


def _says(client: Program, text: str) -> bool:
    return any(text in line for line in client.lines)


def test_while_it_reconnects(net: Internet) -> None:
    before = net.client.snapshot()
    with serve(net) as server:
        before = net.client.snapshot()
        with login(net.client, "-l", *FULL) as client:
            client.wait_for("up after", LONG)
            clean = _is_up(net)
            server.end()
            client.wait_for("Connection refused; trying again")
            client.send(signal.SIGKILL)
            _killed(client)
    with serve(net):
        with login(net.client, *FULL) as client:
            client.wait_for("undoing what a killed dtcpc has left")
            client.wait_for("up after", LONG)
            assert difference(clean, _is_up(net)) == []
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


def _leave(net: Internet, *words: str) -> None:
    """A tunnel whose dtcpc has been killed."""
    with serve(net), login(net.client, *words) as client:
        client.wait_for("up after", LONG)
        client.send(signal.SIGKILL)
        _killed(client)


def test_a_start_without_a_server_undoes_it_all_the_same(net: Internet) -> None:
    net.client.write("/usr/local/etc/dtcpc.auth", "")
    before = net.client.snapshot()
    _leave(net, *FULL)
    _start_and_stop(net)
    net.client.write("/usr/local/etc/dtcpc.auth", "")
    assert difference(before, net.client.snapshot()) == []


def test_somebody_elses_process_has_the_pid(net: Internet) -> None:
    before = net.client.snapshot()
    _leave(net, *FULL)
    with Program(net.client, "tests/servers", "hostile", '{"20200": []}') as other:
        other.wait_for("^ready$")
        for name in ("dtcpc.pid", "dtcpc.rtadvd.pid"):
            # rtadvd's own is killed, and what it leaves is the number of another process.
            if "rtadvd" in name:
                pid = net.client.read(f"/var/run/{name}").strip()
                net.client.run(["kill", "-9", pid])
            net.client.run(["sh", "-c", f"echo {other.pid} >/var/run/{name}"])
        _start_and_stop(net)
        assert not other.ended
    net.client.run(["rm", "/usr/local/etc/dtcpc.auth"])
    assert difference(before, net.client.snapshot()) == []


LOOKALIKES = {
    # Of our group, and of another instance; with our words, and not of our group; nothing at all.
    "gif7": ("group", "dtcp", "description", "dtcpc jun@tunnel.example.org pid 1"),
    "gif8": ("description", "{mark}"),
    "gif0": (),
}


@pytest.mark.parametrize("restarted", [False, True])
def test_what_looks_like_ours_is_left_alone(net: Internet, restarted: bool) -> None:
    """Our interface has gone, as after a crash of the machine, and others have its name."""
    _leave(net, *FULL)
    shown = net.client.run(["ifconfig", "gif0"]).stdout
    mark = re.findall(r"description: (.*)", shown)[0]
    _crash(net)
    for number, (name, words) in enumerate(LOOKALIKES.items()):
        net.client.run(["ifconfig", name, "create", *(w.format(mark=mark) for w in words)])
        net.client.run(["ifconfig", name, "tunnel", "203.0.113.7", f"198.51.100.{number + 1}"])
        net.client.run(["ifconfig", name, "inet6", f"2001:db8:{number}::7", "prefixlen", "64"])
    net.client.run(["route", "-n", "add", "-inet6", "default", "-interface", "gif0"])
    if restarted:
        # The same address as before, but now the administrator's: see `_restart`.
        net.client.run(["ifconfig", "em1", "inet6", "2001:db8:3c3:1::1", "prefixlen", "64"])
        net.client.run(["route", "-n", "add", "-inet6", "2001:db8:3c3::/48", "::1", "-reject"])
        _restart(net)
    state = net.client.read(STATE)
    net.client.run(["rm", "-f", STATE, f"{STATE}.new", "/var/run/dtcpc.pid"])
    before = net.client.snapshot()
    net.client.write(STATE, state)
    _start_and_stop(net)
    assert difference(before, net.client.snapshot()) == []


def _crash(net: Internet) -> None:
    """What a machine loses when it ends; /var/run may be on a disk."""
    pid = net.client.read("/var/run/dtcpc.rtadvd.pid").strip()
    net.client.run(["kill", "-9", pid])
    net.client.run(["rm", "/var/run/dtcpc.rtadvd.pid", "/var/run/dtcpc.rtadvd.sock"])
    for line in (
        "ifconfig em1 inet6 2001:db8:3c3:1::1 -alias",
        "ifconfig em1 inet6 ifdisabled",
        "ifconfig em1 inet6 fe80::200:5eff:fe00:5301%em1 -alias",
        "route -n delete -inet6 2001:db8:3c3::/48 ::1",
        "ifconfig gif0 destroy",
    ):
        net.client.run(line.split())


def _restart(net: Internet) -> None:
    """The machine has been up for longer when the state was written than it is now."""
    state = json.loads(net.client.read(STATE))
    state["uptime"] += 1000
    net.client.write(STATE, json.dumps(state))


@pytest.mark.parametrize("files", ["gone", "there"])
def test_after_a_crash_of_the_machine_a_start_is_a_clean_one(net: Internet, files: str) -> None:
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, *FULL) as client:
            client.wait_for("up after", LONG)
            clean = _is_up(net)
            client.send(signal.SIGKILL)
            _killed(client)
        _crash(net)
        if files == "gone":
            net.client.run(["rm", STATE, "/var/run/dtcpc.pid"])
        else:
            _restart(net)
        with login(net.client, *FULL) as client:
            client.wait_for("up after", LONG)
            assert not _says(client, "undoing")
            assert difference(clean, _is_up(net)) == []
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


def test_an_interface_of_the_administrators_that_has_been_made_anew(net: Internet) -> None:
    """-c: what is there now under that name was never ours."""
    net.client.run(["ifconfig", "gif0", "create", "mtu", "1400", "description", "mine"])
    _leave(net, "-c", "-t", "host")
    for line in (
        "ifconfig gif0 destroy",
        "ifconfig gif0 create mtu 1500 description mine tunnel 203.0.113.7 192.0.2.1",
        "ifconfig gif0 inet6 2001:db8:1::6 2001:db8:1::5 prefixlen 128",
        "route -n add -inet6 default -interface gif0",
    ):
        net.client.run(line.split())
    state = net.client.read(STATE)
    net.client.run(["rm", "-f", STATE, f"{STATE}.new", "/var/run/dtcpc.pid"])
    before = net.client.snapshot()
    net.client.write(STATE, state)
    _start_and_stop(net)
    assert difference(before, net.client.snapshot()) == []


def test_an_interface_over_udp_that_is_not_ours(net: Internet) -> None:
    net.client.write("/usr/local/etc/dtcpc.auth", "")
    words = "mkpeer iface dummy inet6"
    with serve(net, "-U"), login(net.client, "-U", "-t", "host") as client:
        client.wait_for("up after", LONG)
        client.send(signal.SIGKILL)
        _killed(client)
    net.client.run(["ngctl", "shutdown", f"dtcpc{client.pid}:"])
    net.client.run(["ngctl", *words.split()])
    net.client.run(["ifconfig", "ng0", "inet6", "2001:db8:1::6", "prefixlen", "64"])
    net.client.run(["route", "-n", "add", "-inet6", "default", "-interface", "ng0"])
    state = net.client.read(STATE)
    net.client.run(["rm", "-f", STATE, f"{STATE}.new", "/var/run/dtcpc.pid"])
    before = net.client.snapshot()
    net.client.write(STATE, state)
    _start_and_stop(net)
    assert difference(before, net.client.snapshot()) == []


def test_one_that_took_our_name_while_we_ran(net: Internet) -> None:
    """Removed and made anew by the administrator: the take-down does not touch it."""
    with serve(net), login(net.client, "-t", "host") as client:
        client.wait_for("up after", LONG)
        net.client.run(["sh", "-c", "ifconfig gif0 destroy; ifconfig gif0 create mtu 1400"])
        net.client.run(["ifconfig", "gif0", "tunnel", "203.0.113.7", "198.51.100.1"])
        shown = net.client.run(["ifconfig", "gif0"]).stdout
        client.wait_for("somebody has removed the tunnel")
        assert client.status() == 75
        assert net.client.run(["ifconfig", "gif0"]).stdout == shown


def test_what_cannot_be_undone_is_not_forgotten(net: Internet) -> None:
    """Whether it fails, or is told to end in the middle of it: the next start has the list."""
    before = net.client.snapshot()
    _leave(net, *FULL)
    go_wrong(net, {"match": ["destroy"], "do": "exit1"})
    with login(net.client, "-p", "20999") as client:
        assert client.status() == 1
        assert re.fullmatch(
            r"dtcpc: what a killed dtcpc has left cannot be undone: ifconfig gif0 destroy:"
            rf" something went wrong, .*; mend that, and remove {STATE}",
            client.lines[-1],
        )
    go_wrong(net, {"match": ["destroy"], "do": "hang"})
    with login(net.client, "-p", "20999") as client:
        client.wait_for("# ifconfig gif0 destroy")
        client.send(signal.SIGTERM)
        assert client.status(10) == 1
    _start_and_stop(net)
    net.client.run(["rm", "/usr/local/etc/dtcpc.auth", "/run/freebsd/faults"])
    assert difference(before, net.client.snapshot()) == []


def test_a_state_file_that_makes_no_sense_stays_for_who_must_look(net: Internet) -> None:
    net.client.write(STATE, "nonsense")
    for _ in range(2):
        with login(net.client) as client:
            assert client.status() == 1
            assert client.lines[-1] == f"dtcpc: {STATE}: not readable; remove it"


@pytest.mark.hazard(24)
@pytest.mark.turns(5)
@pytest.mark.parametrize(
    ("plan", "release"),
    [(plan, ("13.2", "15.1")[number % 2]) for number, plan in enumerate(fault_table.CASES)],
    indirect=["release"],
)
def test_in_every_step_of_every_plan(
    plan: str,
    release: str,
    enclosed: None,
    capsys: pytest.CaptureFixture[str],
    figure: Figure,
    rows: Rows,
) -> None:
    """What the next start does before anything else makes the host what it was."""
    with Internet(release, lan=True) as net:
        prepare(net, plan)
        before = net.client.snapshot()
        table = fill(net.client, plan, "kill", rows)
        assert table.wrong == []
        now = net.client.snapshot()
        before["processes"] = now["processes"] = []  # fault_table has looked
        assert difference(before, now) == []
        figure("Whenever it is killed, the next start undoes what it left", "kills", table.ran)
        with capsys.disabled():
            print(f"\n{plan} ({release}): killed {table.ran} times, at {table.cases} points")
        assert table.cases >= LEAST[plan][2]
