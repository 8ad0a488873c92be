"""--test: what it shows of each stage, that it finds out which one fails, and leaves nothing."""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import pytest
from dtcp import look, wire
from dtcp.client import passage
from dtcp.client.passage import SIZES, between
from dtcp.client.remedies import _REMEDIES, remedy
from dtcp.client.stages import StageFailed, Stages
from dtcp.errors import Error

from lab.internet import CLIENT4, SERVER4, Internet
from lab.machine import machine
from lab.snapshot import Snapshot, difference
from tests.running import (
    DELEGATED,
    PREFIX,
    ROOT,
    SERVER,
    Program,
    dtcpauth,
    go_wrong,
    identity,
    login,
    names,
    ping,
    serve,
    wait_until,
)
from tests.test_manual import _rendered

GIF, UDP = 41, 17  # protocols
FAILED, TRY_AGAIN, NOT_ALLOWED = 1, 75, 77
ALL = ["name", "TCP", "greeting", "login", "interface", "routes"]
ALL += ["packets-out", "packets-back", "path-MTU"]


class Stage(NamedTuple):
    name: str
    text: str
    remedy: str


class Shown(NamedTuple):
    """What a run of --test has shown."""

    status: int
    stages: list[Stage]
    said: list[str]  # on standard error

    def __str__(self) -> str:
        return "\n".join(f"{each.name}: {each.text} | {each.remedy}" for each in self.stages)

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.stages]

    def fails(self, status: int, stage: str, text: str, remedy: str) -> None:
        """See that it has failed in that stage, and in no other, with a text and a remedy."""
        *before, last = self.stages
        assert not [each for each in before if each.text.startswith("failed")]
        assert (self.status, last.name) == (status, stage), self
        assert last.text.startswith("failed: ")
        assert re.search(text, last.text), last
        assert re.search(remedy, last.remedy), last

    def passes(self, *stages: str) -> None:
        """See that it has gone through all these stages."""
        assert (self.status, self.names) == (0, [*stages]), self
        assert not [each for each in self.stages if "failed" in each.text]


def run(net: Internet, *words: str, server: str = SERVER) -> Shown:
    """Run --test on the client, to its end."""
    program = [sys.executable, str(ROOT / "dtcpc.py"), "--test", "-u", "itojun"]
    done = net.client.run([*program, *words, server], check=False, timeout=60)
    stages: list[Stage] = []
    for line in done.stdout.splitlines():
        if found := re.fullmatch(r"([a-zA-Z]+(?: [a-zA-Z]+)?) +[0-9.]+ m?s  (.*)", line):
            stages.append(Stage(found[1].replace(" ", "-"), found[2], ""))
        else:
            assert line.startswith(" " * 24)
            stages[-1] = stages[-1]._replace(remedy=line.strip())
    return Shown(done.returncode, stages, done.stderr.splitlines())


@pytest.fixture
def same(net: Internet) -> Iterator[Callable[[], None]]:
    """Sees that the client is as it was, whenever called, and in the end."""
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")
    before = net.client.snapshot()

    def see() -> None:
        assert difference(before, net.client.snapshot()) == []

    yield see
    see()


# --- nothing is wrong -------------------------------------------------------------------------


@pytest.mark.lab
@pytest.mark.smoke
@pytest.mark.hazard(54)
@pytest.mark.parametrize("words", [("-t", "host"), ("-t", "tunnelonly"), ("-U", "-t", "network")])
def test_the_whole_way(net: Internet, same: Callable[[], None], words: tuple[str, ...]) -> None:
    """For every type, over both transports; also with what stands in rc.conf for every day."""
    with serve(net, "-U") as server:
        tunnel, wrapped = ("ng0", 28) if "-U" in words else ("gif0", 20)
        large = f"ip[2:2] = {1400 + wrapped}"
        # The answer comes in fragments: the server's end has an MTU of its own.
        with net.router.capture("eth0", large) as capture:
            shown = run(net, *words, "-m", "1400", "-l", "-D")
            assert {each.src for each in capture.wait(1)} == {CLIENT4}
        shown.passes(*ALL)
        assert shown.said == []
        texts = dict(zip(ALL, (each.text for each in shown.stages), strict=True))
        assert texts["name"] == f"{SERVER} is {SERVER4}"
        assert texts["TCP"] == f"connected to {SERVER4} port 20200 from {CLIENT4}"
        assert re.fullmatch(r'"dtcps [0-9.]+ tunnel server"', texts["greeting"])
        over = " over UDP" if "-U" in words else ""
        what = {"host": f", {PREFIX}6", "network": f", {DELEGATED}"}.get(words[-1], "")
        assert texts["login"] == f"granted: type {words[-1]}{over}{what}"
        assert texts["interface"].startswith(f"{tunnel}: {CLIENT4} --> {SERVER4}")
        assert texts["routes"] == f"default through {tunnel}"
        assert texts["packets-out"].endswith(f"bytes counted by {tunnel}")
        peer = f"{PREFIX}5" if "host" in words else "the other end"
        assert texts["packets-back"] == f"from {peer}"
        assert texts["path-MTU"] == "1400 bytes pass"
        server.wait_for("itojun: down: the client said quit")
        if "network" in words:
            assert shown.stages[5].remedy.startswith("no interface has an address of this prefix")
        same()


@pytest.mark.lab
def test_with_all_that_can_be_made(release: str, enclosed: None) -> None:
    """A LAN, an interface with a name that stays otherwise, and a script."""
    with Internet(release, lan=True) as net, serve(net):
        net.client.run(["sysctl", "net.inet6.ip6.forwarding=1"])
        net.client.write("/run/script", '#!/bin/sh\necho "$1 $DTCP_INTERFACE" >>/run/said\n', 0o700)
        net.client.write("/run/said", "")
        before = net.client.snapshot()
        delegated = ("-t", "network", "-P", "em1/1/::1", "-i", "home", "-o")
        shown = run(net, *delegated, "-s", "/run/script")
        shown.passes(*ALL[:6], "LAN", *ALL[6:])
        assert shown.stages[6].remedy == ""
        assert shown.stages[6].text.endswith("/48 delegated: em1 2001:db8:3c3:1::1/64, advertised")
        assert net.client.read("/run/said") == "up home\ndown home\n"
        net.client.write("/run/said", "")
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.lab
def test_a_default_route_of_the_server(net: Internet, same: Callable[[], None]) -> None:
    """-r solicit: somebody has to advertise it, and here nobody does."""
    with serve(net):
        run(net, "-t", "host", "-r", "solicit").fails(
            FAILED, "routes", "no router answered on the tunnel; use -r static", "^$"
        )


# --- the way to the server --------------------------------------------------------------------


@pytest.mark.lab
@pytest.mark.hazard(27)
def test_the_name_service(net: Internet, same: Callable[[], None]) -> None:
    told = {"none.example.org": "NXDOMAIN", "broken.example.org": "SERVFAIL"}
    told["dead.example.org"] = f"192.0.2.254,{SERVER4}"
    lines = [f"{name}:itojun:secret\n" for name in (*told, SERVER)]
    with serve(net):
        net.client.write("/usr/local/etc/dtcpc.auth", "".join(lines))
        with names(net.client, told):
            run(net, server="none.example.org").fails(
                FAILED, "name", "none.example.org: ", "is it spelled right"
            )
            run(net, server="broken.example.org").fails(
                TRY_AGAIN, "name", "broken.example.org: ", "no name server answers"
            )
            shown = run(net, server="dead.example.org")
        assert shown.status == 0
        tried = [each.text for each in shown.stages if each.name == "TCP"]
        if len(tried) > 1:  # the resolver may put the one that answers first
            assert tried[0] == "failed: 192.0.2.254 port 20200: Connection refused"
        assert tried[-1].startswith(f"connected to {SERVER4}")
        net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")


@pytest.mark.lab
def test_a_port_that_is_closed_or_filtered(net: Internet, same: Callable[[], None]) -> None:
    run(net, "-p", "20201").fails(
        TRY_AGAIN, "TCP", f"{SERVER4} port 20201: Connection refused", "nothing listens there"
    )
    net.router.run(machine.refuse("tcp", 20200, ""))
    run(net).fails(
        TRY_AGAIN, "TCP", "timed out", "what is sent to TCP port 20200, or the answer, is dropped"
    )
    net.client.run(["route", "-n", "delete", "default"])
    run(net).fails(TRY_AGAIN, "TCP", "unreachable", "is its network up")
    net.client.run(["route", "-n", "add", "default", "203.0.113.1"])


@pytest.mark.lab
@pytest.mark.hazard(1, 15)
def test_who_greets_otherwise(net: Internet, same: Callable[[], None]) -> None:
    scenes = {
        "20201": [["say", "220 mail.example.org ESMTP\x1b[31m\r\n"], ["silent"]],
        "20202": [["say", "-ERR busy, try again later\r\n"], ["end"]],
        "20203": [["end"]],
        "20204": [["say", "+OK hello\r\n"], ["silent"]],
    }
    with Program(net.server, "tests/servers", "hostile", json.dumps(scenes)) as server:
        server.wait_for("^ready$")
        for port, status, text, remedy in (
            (
                1,
                FAILED,
                r'a mail or FTP server: it says "220 mail.*\\x1b',
                "something else listens",
            ),
            (2, TRY_AGAIN, "the server refuses: busy", "try again"),
            (3, TRY_AGAIN, "the server closed the connection", "see its log"),
            (4, FAILED, "no challenge in the greeting", "something else listens there"),
        ):
            run(net, "-p", f"2020{port}").fails(status, "greeting", text, remedy)


# --- the login --------------------------------------------------------------------------------


@pytest.mark.lab
@pytest.mark.hazard("C5")
def test_a_login_that_is_refused(net: Internet, same: Callable[[], None]) -> None:
    with serve(net):
        net.client.write("/run/wrong.auth", f"{SERVER}:itojun:wrong\n")
        run(net, "--auth-file", "/run/wrong.auth").fails(
            NOT_ALLOWED,
            "login",
            "authentication failed",
            "itojun or the password .*/run/wrong.auth",
        )
        net.client.run(["rm", "/run/wrong.auth"])
        run(net, "-U").fails(NOT_ALLOWED, "login", r"no tunnels over UDP \(-U\)", "leave out -U")
        dtcpauth(net.server, "change", "-t", "network", "itojun")
        run(net, "-t", "host").fails(
            NOT_ALLOWED, "login", "no tunnels of type host", "type host there: .* with -t"
        )
    kame = ("kame", "--user", "itojun", "--password", "secret")
    with Program(net.server, "tests/servers", *kame) as server:
        server.wait_for("^ready$")
        run(net, "-t", "host").fails(
            NOT_ALLOWED, "login", "unsupported tunnel type host", "choose another with -t"
        )


@pytest.mark.lab
@pytest.mark.hazard(14)
def test_a_nat(release: str, enclosed: None) -> None:
    with Internet(release, nat=True) as net, serve(net, "-U"):
        before = net.client.snapshot()
        run(net, "-t", "host").fails(
            NOT_ALLOWED, "login", r"the server sees 203.0.113.7: there is a NAT .*use -U -n", "^$"
        )
        run(net, "-U", "-n", "-t", "host").passes(*ALL)
        assert difference(before, net.client.snapshot()) == []


# --- this host --------------------------------------------------------------------------------


@pytest.mark.lab
@pytest.mark.hazard(24)
def test_the_outer_pair_is_taken(net: Internet) -> None:
    net.client.run(["ifconfig", "gif3", "create", "tunnel", CLIENT4, SERVER4])
    with serve(net):
        before = net.client.snapshot()
        run(net, "-t", "host").fails(
            FAILED,
            "interface",
            f"gif3 has the outer pair {CLIENT4} --> {SERVER4} already",
            "`ifconfig IF destroy`",
        )
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.lab
@pytest.mark.hazard(19)
def test_a_command_that_fails(net: Internet) -> None:
    go_wrong(
        net,
        {"command": "ifconfig", "match": ["inet6", "alias"], "do": "exit1"},
        {"command": "route", "match": ["add"], "do": "error-exit0"},
    )
    with serve(net):
        before = net.client.snapshot()
        for stage, command in (("interface", "ifconfig gif0 inet6"), ("routes", "route -n add")):
            run(net, "-t", "host").fails(FAILED, stage, command, "run the command by hand")
            assert difference(before, net.client.snapshot()) == []


@pytest.mark.lab
def test_what_cannot_be_meant_is_said_before_the_first_stage(net: Internet) -> None:
    with net.router.capture("eth0", "tcp") as capture:
        for words, text in (
            (("-t", "network", "-P", "em7/1"), "dtcpc: -P: em7: no such interface"),
            (("--auth-file", "/none"), "dtcpc: /none: no such file"),
        ):
            assert run(net, *words) == (FAILED, [], [text])
        assert capture.packets == []


# --- the packets ------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.lab
@pytest.mark.hazard(54)
def test_packets_that_do_not_leave(net: Internet) -> None:
    """The script of -s takes the interface down."""
    net.client.write("/run/script", "#!/bin/sh\nifconfig $DTCP_INTERFACE down\n", 0o700)
    with serve(net):
        before = net.client.snapshot()
        run(net, "-t", "host", "-s", "/run/script").fails(
            FAILED, "packets-out", "", "is gif0 up and running"
        )
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.long
@pytest.mark.lab
@pytest.mark.hazard(54)
def test_packets_that_do_not_come_back(net: Internet, same: Callable[[], None]) -> None:
    with serve(net, "-U"):
        net.router.run(machine.drop(GIF))
        run(net, "-t", "host").fails(
            TRY_AGAIN,
            "packets-back",
            "nothing has come back in 15 s",
            f"protocol 41 to and from {SERVER4} open.*try -U -n",
        )
        net.router.run(machine.accept_all())
        net.router.run(machine.drop(UDP))
        run(net, "-U", "-t", "host").fails(
            TRY_AGAIN,
            "packets-back",
            "nothing has come back in 15 s",
            f"is UDP port 4028 of {SERVER4} open, both ways",
        )
        net.router.run(machine.accept_all())
        same()
        net.router.run(machine.refuse("udp", 4028, "unreachable"))
        run(net, "-U", "-t", "host").fails(
            TRY_AGAIN,
            "packets-back",
            "nothing has come back in 15 s",
            "an ICMP message said that UDP port 4028 is closed",
        )
        net.router.run(machine.accept_all())


@pytest.mark.long
@pytest.mark.lab
@pytest.mark.hazard(54)
def test_the_other_transport_is_tried_where_that_is_asked_for(
    net: Internet, same: Callable[[], None]
) -> None:
    words = ("-t", "host", "--transport", "auto")
    with serve(net, "-U"):
        run(net, *words).passes(*ALL)
        net.router.run(machine.drop(GIF))
        shown = run(net, *words)
        assert (shown.status, shown.names) == (0, [*ALL[:8], *ALL]), str(shown)
        assert "failed: nothing has come back" in shown.stages[7].text
        assert shown.stages[11].text == f"granted: type host over UDP, {PREFIX}6"
        net.router.run(machine.accept_all())


@pytest.mark.lab
@pytest.mark.turns(3)
@pytest.mark.parametrize(
    ("words", "wrapped", "remedy"),
    [
        (("-m", "1480"), 20, "use -m {}"),
        (("-U", "-t", "host", "-m", "8192"), 28, "use -m {}"),
        ((), 20, "IPv4 packets of 1300 bytes, or their fragments"),
    ],
)
def test_large_packets_are_lost_on_the_way(
    net: Internet,
    same: Callable[[], None],
    words: tuple[str, ...],
    wrapped: int,
    remedy: str,
) -> None:
    """What is larger than the MTU of the server's interface never arrives there."""
    mtu = 1400 if words else 1280
    with serve(net, "-U"):
        net.server.run(["ifconfig", "em0", "mtu", str(mtu)])
        shown = run(net, *words)
        most = int(shown.stages[-1].text.split()[1])
        # veth(4) leaves room for the tag of a VLAN.
        assert mtu - wrapped <= most <= mtu - wrapped + 4
        asked = words[-1] if words else "1280"
        shown.fails(
            FAILED,
            "path-MTU",
            f"{most} bytes pass, {most + 1} do not, and the MTU is {asked}$",
            remedy.format(most),
        )


# --- beside a running instance ----------------------------------------------------------------

BESIDE = ["running", *ALL[4:]]


def idle(net: Internet) -> Snapshot:
    """The client, while no look of dtcpc's is running: the same twice."""
    seen = [net.client.snapshot()]

    def is_same() -> bool:
        seen.append(net.client.snapshot())
        return not difference(*seen[-2:])

    wait_until("nothing runs", is_same)
    return seen[-1]


@pytest.mark.lab
@pytest.mark.hazard(34, 54)
@pytest.mark.parametrize("words", [("-t", "host"), ("-U", "-t", "tunnelonly")])
def test_a_running_instance_is_not_disturbed(net: Internet, words: tuple[str, ...]) -> None:
    tunnel = "ng0" if "-U" in words else "gif0"
    with (
        serve(net, "-U") as server,
        Program(net.client, "dtcpc", "-u", "itojun", *words, SERVER) as client,
    ):
        client.wait_for("packets pass")
        host = idle(net)
        before = identity(net.client, tunnel), list(client.lines)
        talk = [line for line in server.lines if f"{CLIENT4}:" in line]
        shown = run(net, *words)
        shown.passes(*BESIDE)
        assert shown.stages[0].text.startswith(f"pid {client.pid}: up for ")
        assert shown.stages[1].text.startswith(f"{tunnel}: {CLIENT4} --> {SERVER4}")
        assert shown.stages[2].text == f"default through {tunnel}"
        # Not at once, while one of the client's own looks may be running.
        wait_until("it is as it was", lambda: not difference(host, net.client.snapshot()))
        assert (identity(net.client, tunnel), client.lines) == before
        assert [line for line in server.lines if f"{CLIENT4}:" in line] == talk
        # Once more with its pid file named, and the packets dropped.
        net.router.run(machine.drop(UDP if "-U" in words else GIF))
        shown = run(net, *words, "-f", "/var/run/dtcpc.pid")
        remedy = "is UDP of 192.0.2.1 open" if "-U" in words else "protocol 41 .*try -U -n"
        shown.fails(TRY_AGAIN, "packets-back", "nothing has come back", remedy)
        net.router.run(machine.accept_all())
        assert client.end() == 0


@pytest.mark.lab
@pytest.mark.hazard(48)
def test_what_is_missing_of_a_running_instance(release: str, enclosed: None) -> None:
    """It is stopped, or it would put everything back before it is seen."""
    with Internet(release, lan=True) as net, serve(net):
        words = ("-t", "network", "-P", "em1/1/::1")
        with login(net.client, *words) as client:
            client.wait_for("packets pass")
            client.send(signal.SIGSTOP)
            for command, back, stage, text in (
                ("ifconfig gif0 down", "ifconfig gif0 up", "interface", "gif0 is down"),
                (
                    "ifconfig gif0 inet6 ifdisabled",
                    "ifconfig gif0 inet6 -ifdisabled",
                    "interface",
                    "IPv6 is off on gif0",
                ),
                (
                    "ifconfig gif0 deletetunnel",
                    f"ifconfig gif0 tunnel {CLIENT4} {SERVER4}",
                    "interface",
                    f"gif0 does not have the outer pair {CLIENT4} --> {SERVER4}",
                ),
                (
                    "route -n delete -inet6 default -interface gif0",
                    "route -n add -inet6 default -interface gif0",
                    "routes",
                    "the route to default is not there",
                ),
                (
                    "ifconfig em1 inet6 2001:db8:3c3:1::1 -alias",
                    "ifconfig em1 inet6 2001:db8:3c3:1::1/64 alias",
                    "LAN",
                    "em1 does not have 2001:db8:3c3:1::1/64",
                ),
            ):
                net.client.run(command.split())
                run(net).fails(FAILED, stage, text, "the running dtcpc puts that back")
                net.client.run(back.split())
            run(net).passes(*BESIDE[:3], "LAN", *BESIDE[3:])
            net.client.run(["ifconfig", "gif0", "destroy"])
            run(net).fails(FAILED, "interface", "gif0: no such interface", "puts that back")
            client.send(signal.SIGCONT)
            client.status()


@pytest.mark.lab
def test_an_instance_that_has_no_tunnel(net: Internet) -> None:
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")
    with login(net.client, "-l") as client:
        client.wait_for("trying again in")
        # In a second or two, which may be over: then it is now.
        running = f"pid {client.pid}: trying again (in|now)"
        run(net).fails(TRY_AGAIN, "running", running, "it has no tunnel")
        assert client.end() == 0


# --- its end ----------------------------------------------------------------------------------


def begun(net: Internet) -> Program:
    """A test that waits for packets, which do not come."""
    net.router.run(machine.drop(GIF))
    client = login(net.client, "--test", "-t", "host")
    client.wait_for("# netstat -I ")
    return client


@pytest.mark.lab
@pytest.mark.hazard(25)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_leaves_nothing(
    net: Internet, same: Callable[[], None], number: int
) -> None:
    with serve(net) as server:
        with begun(net) as client:
            state = [sys.executable, str(ROOT / "dtcpc.py"), "--status"]
            status = net.client.run(state, check=False)
            assert status.stdout.startswith(f"being tested: {SERVER} as itojun, type host\ngif0: ")
            assert status.returncode == 1
            client.send(number)
            assert client.status(10) == FAILED
        server.wait_for("itojun: down")
        same()
        net.router.run(machine.refuse("tcp", 20200, ""))
        with login(net.client, "--test") as client:
            client.wait_for("# netstat -rn|# ifconfig")  # looks at this host, then connects
            client.send(number)
            assert client.status(10) == FAILED


@pytest.mark.lab
@pytest.mark.hazard(24)
def test_what_a_killed_one_leaves_is_undone_by_the_next(
    net: Internet, same: Callable[[], None]
) -> None:
    with serve(net):
        with begun(net) as client:
            client.send(signal.SIGKILL)
            client.status()
        net.router.run(machine.accept_all())
        assert "gif0" in net.client.run(["ifconfig", "-g", "dtcp"]).stdout
        shown = run(net, "-t", "host")
        shown.passes(*ALL)
        assert shown.said == ["dtcpc: undoing what a killed dtcpc has left (gif0)"]


@pytest.mark.lab
def test_a_server_that_ends_and_lines_that_cannot_be_shown(
    net: Internet, same: Callable[[], None]
) -> None:
    words = [sys.executable, str(ROOT / "dtcpc.py"), "--test", "-u", "itojun", SERVER]
    net.router.run(machine.drop(GIF))
    with serve(net) as server:
        process = net.client.popen(words, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert any("packets out" in line for line in iter(process.stdout.readline, ""))
        server.end()
        out, _ = process.communicate(timeout=30)
        assert process.returncode == TRY_AGAIN
        assert re.search("^packets back .*failed: lost: the server", out)
        same()
    net.router.run(machine.accept_all())
    with serve(net):
        done = net.client.run(["sh", "-c", 'exec "$@" >/dev/full', "sh", *words], check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "standard output: " in done.stderr
        assert not ping(net.client)


# --- without hosts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("received", "sent", "stage", "text", "remedy"),
    [
        (0, 0, "packets out", "5 sent, and gif0 has counted none of them", "is gif0 up"),
        (0, 48, "packets back", "nothing has come back in 15 s", "protocol 41"),
        (7, 48, "packets back", "nothing has come back in 15 s", "gif0 has received 35 bytes, but"),
    ],
)
def test_what_the_interface_counts_tells_where_packets_are_lost(
    monkeypatch: pytest.MonkeyPatch, received: int, sent: int, stage: str, text: str, remedy: str
) -> None:
    """For each request it counts so many bytes; nothing is answered."""
    clock, asked = [0.0], [0]

    class Echo:
        def __init__(self, *words: object, key: bytes | None, largest: int) -> None:
            pass

        def ask(self, number: int, size: int) -> None:
            asked[0] += 1

        def answered(self) -> list[int]:
            return []

        def fileno(self) -> int:
            return -1

        def close(self) -> None:
            pass

    class Look:
        def traffic(self, name: str) -> tuple[int, int]:
            assert name == "gif0"
            return 1000 + received * asked[0], 1000 + sent * asked[0]

    def wait(reader: int, seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(passage, "Echo", Echo)
    monkeypatch.setattr(passage.time, "monotonic", lambda: clock[0])  # type: ignore[attr-defined]
    stages = Stages()
    way = passage.Way("gif0", 1280, None, None, SERVER4, udp=False)
    with pytest.raises(StageFailed) as failed:
        passage.Passage(way, stages, cast(look.Look, Look()), wait).run()
    assert stages.name == stage
    assert str(failed.value) == text
    assert remedy in failed.value.remedy


@pytest.mark.parametrize(("most", "too_large"), [(48, 1280), (48, 8192), (48, 49), (1279, 1281)])
def test_sizes_close_in_on_the_largest_that_passes(most: int, too_large: int) -> None:
    for limit in (*range(most, min(most + 50, too_large)), too_large - 1):
        low, high, rounds = most, too_large, 0
        while sizes := between(low, high):
            assert len(sizes) <= SIZES
            assert sizes[0] > low
            assert sizes[-1] < high
            low = max([low, *(each for each in sizes if each <= limit)])
            high = min(each for each in (*sizes, high) if each > limit)
            rounds += 1
        assert (low, high) == (limit, limit + 1)
        assert rounds <= 5


def test_each_remedy_is_for_a_message_that_there_is() -> None:
    """As the manual has them, or a server says them; the rest is of resolver, kernel or OpenSSL."""
    said = [_rendered("dtcpc.8"), *(each for each in vars(wire).values() if isinstance(each, str))]
    said += ["Temporary failure", "Connection refused", "Operation timed out", "File exists"]
    said += ["route already in table", "certificate has expired", "certificate is not yet valid"]
    text = "\n".join(said)
    for stage, table in _REMEDIES.items():
        for pattern, _ in table:
            for part in pattern.split("|"):
                assert re.search(part, text), (stage, part)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("the server refuses: server is going down", "that passes"),
        ("unexpected data before the TLS handshake", "somebody on the way"),
    ],
)
def test_an_answer_to_stls_has_its_remedy(said: str, advice: str) -> None:
    options = argparse.Namespace(server=SERVER, port=1, user="u", type="host", auth_file="f")
    assert remedy(options, "TLS", Error(f"{SERVER}: {said}")).startswith(advice)


def test_a_python_without_tls_is_no_matter_of_the_network() -> None:
    """That is found out before the connection."""
    options = argparse.Namespace(server=SERVER, port=1, user="u", type="host", auth_file="f")
    error = Error(f"{SERVER}: this Python has no TLS, on which --tls insists")
    assert "module ssl" in remedy(options, "TCP", error)
