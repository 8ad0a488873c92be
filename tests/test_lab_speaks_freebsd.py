"""The lab's commands against recordings of the real ones: word for word, line by line.

``tests/freebsd/RELEASE/*.txt`` were recorded on FreeBSD: ``# command``, what it printed, standard
error marked ``2> ``, ``[exit N]``. Here the same command lines are played, in their order, on a
host of the lab that is set up as the recorded machine was, and every answer is compared.

Where the lab knowingly differs, ``EXCEPTIONS`` says so line by line, and an exception that is no
longer needed is an error.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.host import Host
from lab.internet import CLIENT4, FAR6, SERVER4, Internet
from lab.linux import join
from lab.machine import End
from lab.snapshot import difference as difference_of
from tests.recordings import RECORDINGS, Answer, Line, parse

pytestmark = [pytest.mark.proves_lab, pytest.mark.lab, pytest.mark.usefixtures("enclosed")]

FILES = [
    "01-gif-lifecycle",
    "02-inet6-addresses",
    "02b-eui64",
    "03-route",
    "03b-route-multipath",
    "04-rtsol",
    "05b-rtadvd-more",
    "05d-rtadvd-private",
    "06-netgraph-udp",
    "12-delegated-prefix-on-lan",
    "20-probes",
    "21-probes",
    "22-probes",
]
# Only there something happens while the recorded command sleeps; in some a tenth of it is enough.
REAL_SLEEP = ["02b-eui64"]
SHORT_SLEEP = ["05b-rtadvd-more", "05d-rtadvd-private"]
# Where the far end answers solicitations: the heading, and the prefix it advertises.
ANSWERED = {
    "--- === the far end answers each RS with an RA: no prefix": [],
    "--- === RA with a /64 prefix": ["2001:db8:4:1::"],
    "--- === forwarding = 1 and RA": ["2001:db8:4:1::"],
    "--- === point-to-point /128 address on gif0 + accept_rtadv; RA without prefix": [],
}
# The interface identifier of gifs on the recorded machines.
HOSTIDS = {"15.1": "5421:59e4:dad1:1a39", "13.2": "ecf7:503f:4caa:5e62"}

KERNEL = "The messages of the kernel and the list of its modules are FreeBSD's."
NO_PING = "ping(8) is Linux's here: it does not speak FreeBSD."
NDP = "No ndp(8): the client does not call it."
SETFIB = "No setfib(1): the client does not call it."
COUNTERS = (
    "Linux counts other packets, and not by address; no sockstat(1), no sockets in netstat(1)."
)
LIBXO = "No --libxo: the client reads text."
MONITOR = "The events are those of Linux: others, and in another order."
SERVICE = "No rc(8) and no jail(8)."
RTSOLD = "No rtsold(8): the client does not start it."
SOCKET_OPTIONS = "The client sets no options of sockets."

# File and number of the line, how the line begins, and why it is let go. A line is only for one
# release when that stands before it. It is played all the same: later lines build on it.
EXCEPTIONS = {
    "01-gif-lifecycle:1 uname -r": KERNEL,
    "01-gif-lifecycle:186 dmesg": KERNEL,
    "02-inet6-addresses:109 ndp -i gif99": NDP,
    "02b-eui64:33 ifconfig vtnet0 inet6 fd99::1/64 alias": KERNEL,
    "03-route:48 ping6": NO_PING,
    "03-route:49 netstat -I": COUNTERS,
    "03-route:119 ping6": NO_PING,
    "03-route:120 ping6": NO_PING,
    "03-route:121 ping6": NO_PING,
    "03-route:129 setfib": SETFIB,
    "03-route:133 setfib": SETFIB,
    "03-route:138 setfib": SETFIB,
    "03-route:140 netstat -rn -f inet6 --libxo": LIBXO,
    "03-route:141 netstat -rn -f inet6 --libxo": LIBXO,
    "03-route:142 netstat --libxo": LIBXO,
    "03-route:143 netstat -in --libxo": LIBXO,
    "13.2 03-route:146 route -n -v add": "route -v does not print its message to the kernel.",
    "03-route:161 dmesg": KERNEL,
    "03b-route-multipath:52 route delete -inet6 default; ifconfig gif0 destroy": NO_PING,
    "03b-route-multipath:53 ifconfig gif0 inet6 2001:db8:0:1::2": NO_PING,
    "04-rtsol:16 rtsol -D": "Its timers are not told: the client does not ask.",
    "04-rtsol:25 ifconfig gif0 deletetunnel up": "Linux drops it in silence.",
    "04-rtsol:59 ping6": NO_PING,
    "04-rtsol:60 ping6": NO_PING,
    "04-rtsol:63 rtsold": RTSOLD,
    "04-rtsol:64 rtsold": RTSOLD,
    "04-rtsol:66 cat /var/run/rtsold.dump": RTSOLD,
    "04-rtsol:67 ifconfig gif0 destroy; sleep 2; ps axww | grep [r]tsold": RTSOLD,
    "04-rtsol:68 kill $(cat /var/run/rtsold.pid)": RTSOLD,
    "04-rtsol:69 rtsold": RTSOLD,
    "04-rtsol:70 rtsold": RTSOLD,
    "04-rtsol:71 dmesg": KERNEL,
    "05b-rtadvd-more:1 rtadvd nosuch0": "It has another process id.",
    "05b-rtadvd-more:5 rtadvd epair7a": "Other files are in /var/run.",
    "05b-rtadvd-more:7 ifconfig epair7a": "rtadvctl does not crash.",
    "05b-rtadvd-more:8 sysctl": "No counters.",
    "05b-rtadvd-more:10 dmesg": KERNEL,
    "15.1 05d-rtadvd-private:12 su": "The real one words an errno that was there before.",
    "06-netgraph-udp:2 ngctl types": "Only the types that the client makes exist.",
    "06-netgraph-udp:49 sockstat": COUNTERS,
    "06-netgraph-udp:50 netstat -an": COUNTERS,
    "06-netgraph-udp:56 ping6": NO_PING,
    "06-netgraph-udp:57 ping6": NO_PING,
    "06-netgraph-udp:58 ping6": NO_PING,
    "06-netgraph-udp:59 netstat -I": COUNTERS,
    "06-netgraph-udp:63 ping6": NO_PING,
    "06-netgraph-udp:66 netstat -I": COUNTERS,
    "06-netgraph-udp:67 ping6": NO_PING,
    "06-netgraph-udp:68 netstat -s": COUNTERS,
    "06-netgraph-udp:69 netstat -s": COUNTERS,
    "06-netgraph-udp:70 ifconfig ng0; netstat -I": COUNTERS,
    "06-netgraph-udp:80 sockstat": COUNTERS,
    "06-netgraph-udp:83 sockstat": COUNTERS,
    "06-netgraph-udp:85 ngctl msg ng0:inet6 setopt": SOCKET_OPTIONS,
    "06-netgraph-udp:86 ngctl msg dtcpks: 'getopt": SOCKET_OPTIONS,
    "06-netgraph-udp:87 ngctl msg dtcpks: 'getopt": SOCKET_OPTIONS,
    "06-netgraph-udp:94 dmesg": KERNEL,
    "06-netgraph-udp:98 ping6": NO_PING,
    "06-netgraph-udp:134 sockstat": COUNTERS,
    "06-netgraph-udp:135 ngctl shutdown ng0:; ngctl list; netstat -an": COUNTERS,
    "12-delegated-prefix-on-lan:26 ping6": NO_PING,
    "12-delegated-prefix-on-lan:55 (route -n monitor": MONITOR,
    "12-delegated-prefix-on-lan:56 python3": MONITOR,
    "20-probes:47 route -n add -inet6 2001:db8:3c3::/48": LIBXO,
    "20-probes:61 (route -n monitor": MONITOR,
    "20-probes:102 su -m nobody -c 'ndp": NDP,
    "20-probes:103 ndp": NDP,
    "20-probes:107 ndp": NDP,
    "20-probes:108 ndp": NDP,
    "20-probes:109 ndp": NDP,
    "20-probes:110 ndp": NDP,
    "20-probes:111 ls -la /sbin/ping": NO_PING,
    "20-probes:112 ping6": NO_PING,
    "20-probes:113 ping": NO_PING,
    "20-probes:114 ping6": NO_PING,
    "20-probes:115 ping": NO_PING,
    "20-probes:116 ping6": NO_PING,
    "20-probes:117 ping6": NO_PING,
    "20-probes:120 kldload": KERNEL,
    "20-probes:121 kldload": KERNEL,
    "20-probes:122 kldstat": KERNEL,
    "20-probes:123 kldstat": KERNEL,
    "20-probes:124 service": SERVICE,
    "20-probes:125 jls": SERVICE,
    "20-probes:126 jexec": SERVICE,
    "15.1 20-probes:128 sysctl": "net.netlink is not known: nothing depends on it.",
    "21-probes:10 ping6": NO_PING,
    "21-probes:11 ifconfig gif0 down; ifconfig gif0 up; python3": "The ports are random.",
    "21-probes:40 jail": SERVICE,
    "21-probes:41 jail": SERVICE,
}


# --- what varies from one machine to another ------------------------------------------------

VARIES = {
    re.compile(pattern): replacement
    for pattern, replacement in {
        r" tentative": "",
        r"\b(ether|hwaddr) (?!52:54:00:99:00:02)[0-9a-f:]{17}": r"\1 RANDOM",
        r"\w{3} \w{3} [ \d]\d [\d:]{8}( UTC)? \d{4}": "DATE",
        r"(Last RA send: ).*": r"\1",  # the first one comes sooner here
        r"pltime \d+ vltime \d+": "LIFETIMES",
        r"about \d+/10 s": "soon",
        r"^ *\d+  -  Ss   \d:\d\d\.\d\d ": "PROCESS ",
        r"^([-s][rwx-]{9}) .* ": r"\1 ",  # owner, size and time of a file
        r"^(\S+ +\S+ +[A-Z0-9]+) +\d+ ( *\d+ +\S+)$": r"\1 N \2",  # the number of a next hop
    }.items()
}
# An interface identifier made of a random hardware address, not that of vtnet0; and a process id
# in a name. The columns move with them.
UNALIKE = re.compile(
    r"(?<=:)(?!5054:ff:fe99:2)[0-9a-f]{1,4}:[0-9a-f]{0,2}ff:fe[0-9a-f]{2}:[0-9a-f]+"
    r"|(?<=ngctl)\d+"
)
# ndp(8), which the client does not call: its lines are left out of what others say.
NDP_SAID = re.compile(
    r"\S+ if=\S+|flags=L|  (No advertising router|advertised by)|    fe80:\S+ \(|linkmtu=|Flags: "
)


def settled(text: str) -> str:
    """The text without what is different each time: random addresses and what takes a second."""
    lines = []
    for line in text.splitlines():
        if NDP_SAID.match(line):
            continue
        if UNALIKE.search(line):
            line = re.sub(" +", " ", UNALIKE.sub("RANDOM", line))
        line = line.rstrip()
        for pattern, replacement in VARIES.items():
            line = pattern.sub(replacement, line)
        lines.append(line)
    # ps(1) lists by number, and numbers begin anew after the largest.
    processes = iter(sorted(line for line in lines if line.startswith("PROCESS ")))
    lines = [next(processes) if line.startswith("PROCESS ") else line for line in lines]
    return "\n".join(lines)


# --- the machine ----------------------------------------------------------------------------

ETC = {
    "hosts": "::1 localhost\n127.0.0.1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "resolv.conf": "",
}
SHIMS = {
    "su": 'exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "$4"',
    # Excepted anyway, and -t is the time to live to Linux: nothing is worth waiting for.
    "ping": "exit 1",
    "ping6": "exit 1",
    "sleep": ":",
    # Its effects only.
    "ndp": """
        case "$1,$(cat /run/freebsd/release)" in
        -R,*) ip -6 route flush proto ra ;;
        -P,13.2) ip -6 address flush dynamic ;;
        esac""",
    "ls": 'exec /bin/ls -H "$@"',  # /var/run may be a link
    "ps": """
        for process in /proc/[0-9]*; do
            if [ "$(readlink $process/ns/net)" = "$(readlink /proc/self/ns/net)" ]; then
                words=$(tr '\\0' ' ' <$process/cmdline)
                case "$words" in
                *freebsd/bin/*) echo "${process#/proc/}  -  Ss   0:00.00 ${words#*freebsd/bin/}" ;;
                esac
            fi
        done""",
}
SHORT = 'exec /bin/sleep "$(awk "BEGIN { print $1 / 5 }")"'


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    for name, text in ETC.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def shims(tmp_path: Path) -> Path:
    """Commands of the recorded machine that Linux has, but different."""
    directory = tmp_path / "shims"
    directory.mkdir()
    for name, text in SHIMS.items():
        (directory / name).write_text(f"#!/bin/sh\n{text}\n")
        (directory / name).chmod(0o755)
    return directory


@pytest.fixture
def far(etc: Path, enclosed: None) -> Iterator[Host]:
    host = Host("far", etc)
    yield host
    host.close()


@pytest.fixture
def machine(etc: Path, far: Host, release: str) -> Iterator[Host]:
    """As recorded: vtnet0 10.99.0.2/24 fd99::2/64; at the far end 10.99.0.1 and fd99::1."""
    host = Host("machine", etc, release)
    host.write("/run/freebsd/hostid", HOSTIDS[release], 0o644)
    host.write("/run/freebsd/ksocket-steadfast", "", 0o644)
    host.write("/run/freebsd/rtsol-seconds", "0.3", 0o644)
    host.write("/run/freebsd/rtadvd-seconds", "0.6", 0o644)
    # Duplicate address detection is part of what was recorded.
    host.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/accept_dad"])
    ends = (
        End(host.place, "vtnet0", "52:54:00:99:00:02"),
        End(far.place, "eth0", "52:54:00:99:00:01"),
    )
    join([ends])
    far.run(["ip", "link", "set", "eth0", "up"])
    far.run(["ip", "address", "add", "10.99.0.1/24", "dev", "eth0"])
    far.run(["ip", "address", "add", "fd99::1/64", "dev", "eth0"])
    host.run(["ifconfig", "vtnet0", "inet", "10.99.0.2/24"])
    host.run(["ifconfig", "vtnet0", "inet6", "-ifdisabled"])
    host.run(["ifconfig", "vtnet0", "inet6", "fd99::2/64"])
    yield host
    host.close()


# --- playing --------------------------------------------------------------------------------


def play(host: Host, line: Line, prelude: str) -> Answer:
    done = host.run(["sh", "-c", f"{prelude}\n{line.command}"], check=False, timeout=60)
    return Answer(done.stdout, done.stderr, done.returncode)


def refusals(host: Host) -> str:
    """What Linux would not do of what the commands wanted."""
    return host.run(["cat", "/run/freebsd/refused"], check=False).stdout


def excepted(release: str, line: Line) -> bool:
    names = (line.name, f"{release} {line.name}")
    return any(name.startswith(beginning) for beginning in EXCEPTIONS for name in names)


def difference(line: Line, answer: Answer) -> str:
    """In what the answer is not the recorded one; empty: in nothing."""
    parts = []
    for what, recorded, now in (
        ("out", line.answer.out, answer.out),
        ("err", line.answer.err, answer.err),
    ):
        if settled(recorded) != settled(now):
            parts.append(f"{what} recorded:\n{settled(recorded)}\n{what} here:\n{settled(now)}")
    if line.answer.status != answer.status:
        parts.append(f"exit recorded: {line.answer.status}, here: {answer.status}")
    return "\n".join(parts)


class FarEnd:
    """Answers solicitations where the recorded one did."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.heading = ""
        self.answering: list[subprocess.Popen[str]] = []

    def follow(self, heading: str) -> None:
        if heading == self.heading:
            return
        self.heading = heading
        for process in self.answering:
            process.kill()
        for beginning, prefix in ANSWERED.items():
            if heading.startswith(beginning):
                words = ["python3", str(Path(__file__).with_name("answering.py")), *prefix]
                self.answering.append(self.host.popen(words, stdout=subprocess.PIPE))
                stdout = self.answering[-1].stdout
                assert stdout
                assert stdout.readline() == "ready\n"


@pytest.mark.parametrize("file", FILES)
def test_the_lab_says_what_freebsd_said(
    machine: Host, far: Host, release: str, shims: Path, file: str
) -> None:
    if file in REAL_SLEEP:
        (shims / "sleep").unlink()
    elif file in SHORT_SLEEP:
        (shims / "sleep").write_text(f"#!/bin/sh\n{SHORT}\n")
        machine.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"])
    far_end = FarEnd(far)
    wrong, stale = [], []
    for line in parse(RECORDINGS / release / f"{file}.txt"):
        far_end.follow(line.heading)
        differs = difference(line, play(machine, line, f"PATH={shims}:$PATH"))
        if differs and not excepted(release, line):
            wrong.append(f"{release} {line.name}\n{differs}")
        elif excepted(release, line) and not differs:
            stale.append(f"{release} {line.name}")
    report = "\n\n".join(wrong)
    assert not wrong, f"{len(wrong)} answers differ:\n{report}"
    assert not stale, f"no exception is needed: {stale}"
    assert refusals(machine) == ""


@pytest.mark.parametrize("beginning", EXCEPTIONS)
def test_an_exception_is_for_a_recorded_line(beginning: str) -> None:
    words = beginning.split()
    releases = [words.pop(0)] if words[0] in HOSTIDS else list(HOSTIDS)
    file = words[0].partition(":")[0]
    for release in releases:
        lines = parse(RECORDINGS / release / f"{file}.txt")
        assert any(line.name.startswith(" ".join(words)) for line in lines)


def test_counters_are_shown_as_recorded(machine: Host, release: str) -> None:
    """But for what was counted."""
    (recorded,) = (
        line.answer.out
        for line in parse(RECORDINGS / release / "03-route.txt")
        if line.command == "netstat -I gif0 -n"
    )
    sh(
        machine,
        """ifconfig gif0 create tunnel 10.99.0.2 10.99.0.1
        ifconfig gif0 inet6 2001:db8:0:1::2 2001:db8:0:1::1 prefixlen 128""",
    )
    shown = sh(machine, "netstat -I gif0 -n")
    number = re.compile(r"( +)\d+(?= |$)", re.MULTILINE)

    def uncounted(text: str) -> str:
        return number.sub(lambda found: " " * (len(found[0]) - 1) + "N", text)

    assert uncounted(shown) == uncounted(recorded)
    wide = sh(machine, "netstat -I gif0 -b -n -W")
    assert [len(line.split()) for line in wide.splitlines()] == [12] * 4
    assert "Idrop     Ibytes    Opkts Oerrs     Obytes  Coll" in wide
    assert "fe80::%gif0/64 " in wide
    assert len(sh(machine, "netstat -I gif9 -b -n -W").splitlines()) == 1


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_what_looks_at_everything_takes_long_in_a_crowd(machine: Host) -> None:
    """A host with many interfaces, of which netstat and ifconfig see all, or one."""
    machine.write("/run/freebsd/crowd", "20000", 0o644)
    for words in ("ifconfig -a", "ifconfig", "netstat -rnW -f inet6", "netstat -i -b -n -W"):
        with pytest.raises(subprocess.TimeoutExpired):
            machine.run(words.split(), timeout=1)
    for words in ("ifconfig vtnet0", "ifconfig -g gif", "netstat -I vtnet0 -b -n -W"):
        machine.run(words.split(), timeout=30)
    machine.run(["route", "-n", "get", "-inet6", "fd99::1"], timeout=30)


# --- what is said is done -------------------------------------------------------------------

CLIENT6, SERVER6 = "2001:db8:1::2", "2001:db8:1::1"
DELEGATED = "2001:db8:3c3::"
PING = ["ping", "-6", "-n", "-c", "1", "-W", "1"]


def sh(host: Host, script: str) -> str:
    return host.run(["sh", "-ec", script]).stdout


@pytest.fixture
def wired(net: Internet) -> Iterator[Internet]:
    """An internet in which Linux has done all that the commands said was done."""
    yield net
    for host in (net.client, net.server):
        assert refusals(host) == ""


@pytest.fixture
def tunnel(wired: Internet) -> Internet:
    """A gif at both ends, and the client's way to everything through it."""
    sh(
        wired.server,
        f"""ifconfig gif0 create tunnel {SERVER4} {CLIENT4}
        ifconfig gif0 inet6 {SERVER6} {CLIENT6} prefixlen 128""",
    )
    sh(
        wired.client,
        f"""ifconfig gif0 create tunnel {CLIENT4} {SERVER4} mtu 1400
        ifconfig gif0 inet6 {CLIENT6} {SERVER6} prefixlen 128
        route -n add -inet6 default -interface gif0""",
    )
    return wired


def relays(host: Host) -> list[int]:
    return [pid for pid, words in host.processes().items() if "gif_relay" in words]


def until(what: Callable[[], object]) -> None:
    limit = time.monotonic() + 15
    while not what():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.005)


def test_packets_go_through_a_gif(tunnel: Internet) -> None:
    with tunnel.router.capture("eth0", "ip proto 41") as capture:
        tunnel.client.run([*PING, "-Q", "0xb8", FAR6])
        sent = next(p for p in capture.wait(2) if p.src == CLIENT4 and "echo request" in p.text)
    assert (sent.dst, sent.proto, sent.ttl, sent.df) == (SERVER4, 41, 30, False)
    assert "tos 0xb8" in sent.text


def test_nothing_passes_a_gif_that_is_down(tunnel: Internet) -> None:
    tunnel.client.run([*PING, SERVER6])
    sh(tunnel.client, "ifconfig gif0 down")
    with tunnel.router.capture("eth0", f"ip proto 41 and src {CLIENT4}") as capture:
        assert tunnel.client.run([*PING, SERVER6], check=False).returncode != 0
        assert tunnel.server.run([*PING, CLIENT6], check=False).returncode != 0
        assert capture.packets == []
    sh(tunnel.client, "ifconfig gif0 up")
    tunnel.client.run([*PING, FAR6])


def test_packets_from_another_source_are_dropped(tunnel: Internet) -> None:
    sh(tunnel.client, f"ifconfig gif0 tunnel {CLIENT4} 192.0.2.99")
    with tunnel.router.capture("eth0", "ip proto 41") as capture:
        assert tunnel.server.run([*PING, CLIENT6], check=False).returncode != 0
        assert capture.wait(1)
        assert not [packet for packet in capture.packets if packet.src == CLIENT4]


def test_a_packet_larger_than_the_wire_is_fragmented_outside(tunnel: Internet) -> None:
    for host in (tunnel.client, tunnel.server):
        sh(host, "ifconfig gif0 mtu 1500")
    with tunnel.router.capture("eth0", f"ip proto 41 and src {CLIENT4}") as capture:
        tunnel.client.run([*PING, "-s", "1452", "-M", "do", SERVER6])
        assert [p.length for p in capture.wait(2)][:2] == [1480, 20]


def test_the_relay_lives_as_long_as_the_pair(tunnel: Internet) -> None:
    client = tunnel.client
    (first,) = relays(client)
    sh(client, f"ifconfig gif0 tunnel {CLIENT4} {SERVER4}")
    assert relays(client) == [first]
    sh(client, f"ifconfig gif0 tunnel {CLIENT4} 192.0.2.99")
    until(lambda: len(relays(client)) == 1 and relays(client) != [first])
    sh(client, "ifconfig gif0 deletetunnel")
    until(lambda: not relays(client))
    # Without its source address a gif cannot send. With it, it can again.
    sh(client, f"ifconfig gif0 tunnel {CLIENT4} {SERVER4}; ifconfig em0 inet {CLIENT4} -alias")
    until(lambda: not relays(client))
    assert "RUNNING" not in sh(client, "ifconfig gif0").splitlines()[0]
    sh(client, f"ifconfig em0 inet {CLIENT4}/24; route -n add default 203.0.113.1 || true")
    assert "RUNNING" in sh(client, "ifconfig gif0").splitlines()[0]
    client.run([*PING, FAR6])
    (last,) = relays(client)
    assert Path(f"/proc/{last}/stat").read_text().split()[5] == str(last), "not its own session"
    opened = {os.readlink(fd) for fd in Path(f"/proc/{last}/fd").iterdir()}
    assert {name.partition(":")[0] for name in opened} == {"/dev/null", "/dev/net/tun", "socket"}
    sh(client, "ifconfig gif0 destroy")
    until(lambda: not relays(client))
    assert "gif0" not in sh(client, "ip -br link")


def test_a_relay_ends_with_its_device(tunnel: Internet) -> None:
    sh(tunnel.client, "ip link del gif0")
    until(lambda: not relays(tunnel.client))
    assert "gif0" not in sh(tunnel.client, "ifconfig -l; netstat -rn")


def test_what_is_undone_leaves_no_trace(wired: Internet) -> None:
    before = wired.client.snapshot()
    sh(
        wired.client,
        f"""ifconfig gif create tunnel {CLIENT4} {SERVER4} mtu 1400 group dtcpc description "a b"
        ifconfig gif0 inet6 {CLIENT6} {SERVER6} prefixlen 128 alias
        route -n add -inet6 default -interface gif0
        route -n add -inet6 {DELEGATED}/48 ::1 -reject
        ifconfig em0 inet6 {DELEGATED}1 prefixlen 64 alias""",
    )
    assert difference_of(before, wired.client.snapshot())
    sh(
        wired.client,
        f"""ifconfig em0 inet6 {DELEGATED}1 -alias
        ifconfig em0 inet6 ifdisabled
        ifconfig em0 inet6 $(ifconfig em0 | awk '/inet6 fe80/{{print $2}}') -alias
        route -n delete -inet6 {DELEGATED}/48 ::1
        route -n delete -inet6 default -interface gif0
        ifconfig gif0 destroy""",
    )
    until(lambda: not relays(wired.client))
    assert difference_of(before, wired.client.snapshot()) == []


@pytest.mark.parametrize(("kind", "answers"), [("reject", True), ("blackhole", False)])
def test_a_barrier_answers_or_does_not(wired: Internet, kind: str, answers: bool) -> None:
    sh(wired.server, f"route -n add -inet6 {DELEGATED}/48 ::1 -{kind}")
    with wired.far.capture("eth0", "icmp6 and ip6[40] = 1") as unreachable:
        assert wired.far.run([*PING, f"{DELEGATED}7"], check=False).returncode != 0
        if answers:
            assert unreachable.wait(1)
        else:
            assert unreachable.packets == []


def test_an_interface_is_routed_by_its_own_fib(tunnel: Internet) -> None:
    sh(
        tunnel.server,
        f"""sysctl net.fibs=2
        route -n add -inet6 {DELEGATED}/48 ::1 -reject
        route -n add -inet6 {DELEGATED}/48 -interface gif0 -fib 1
        ifconfig em1 fib 1""",
    )
    with tunnel.client.capture("gif0", f"dst {DELEGATED}7") as capture:
        tunnel.far.run([*PING, f"{DELEGATED}7"], check=False)
        assert capture.wait(1)


ADVERTISE = """
import socket, struct
prefix = socket.inet_pton(socket.AF_INET6, "2001:db8:4:1::")
option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 1800, 0) + prefix
message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + option
out = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
out.sendto(message, ("ff02::1%eth0", 0))
"""


@pytest.mark.parametrize(
    ("forwarding", "rfc6204w3", "router"), [(0, 0, True), (1, 0, False), (1, 1, True)]
)
def test_advertisements_are_taken_as_freebsd_takes_them(
    wired: Internet, release: str, forwarding: int, rfc6204w3: int, router: bool
) -> None:
    sh(wired.server, f"sysctl net.inet6.ip6.forwarding={forwarding}")
    sh(wired.server, f"sysctl net.inet6.ip6.rfc6204w3={rfc6204w3}")
    sh(wired.server, "ifconfig em1 inet6 accept_rtadv")
    wired.far.run(["python3", "-c", ADVERTISE])
    until(lambda: "autoconf" in sh(wired.server, "ifconfig em1"))
    shown = sh(wired.server, "ifconfig em1 inet6")
    lifetimes = " pltime 1800 vltime 3600" if release == "15.1" else ""
    assert re.search(rf"inet6 2001:db8:4:1:\S+ prefixlen 64 autoconf{lifetimes}\n", shown)
    found = sh(wired.server, "netstat -rn -f inet6")
    assert re.search(r"^2001:db8:4:1::/64 +link#\d+ +U +em1$", found, re.M)
    assert bool(re.search(r"^default +fe80::\S+%em1 +UG +em1$", found, re.M)) == router
    if router:
        sh(wired.server, "route -n delete -inet6 default")
        assert "default" not in sh(wired.server, "netstat -rn -f inet6")


def test_a_static_default_route_keeps_an_advertised_one_out(wired: Internet) -> None:
    sh(wired.server, "sysctl net.inet6.ip6.forwarding=0; ifconfig em1 inet6 accept_rtadv")
    sh(wired.server, "route -n add -inet6 default ::1 -reject")
    wired.far.run(["python3", "-c", ADVERTISE])
    until(lambda: "autoconf" in sh(wired.server, "ifconfig em1"))
    assert "UG " not in sh(wired.server, "netstat -rn -f inet6")
    sh(wired.server, "route -n delete -inet6 default")
    wired.far.run(["python3", "-c", ADVERTISE])
    until(lambda: "UG " in sh(wired.server, "netstat -rn -f inet6"))


def test_a_plain_jail_may_look_only(wired: Internet, release: str) -> None:
    wired.client.write("/run/freebsd/jail", "plain\n", 0o644)
    before = wired.client.read("/run/freebsd/state.json")
    asked = {
        "ifconfig gif create": "ifconfig: socket(family 2,SOCK_DGRAM): Protocol not supported\n",
        "route -n add -inet6 default -interface lo0": (
            "route: message indicates error: Operation not permitted\n"
            if release == "15.1"
            else "route: writing to routing socket: Operation not permitted\n"
        ),
        "sysctl net.inet6.ip6.forwarding=1": (
            "sysctl: net.inet6.ip6.forwarding=1: Operation not permitted\n"
        ),
    }
    for command, error in asked.items():
        done = wired.client.run(command.split(), check=False)
        assert (done.returncode, done.stderr) == (1, error)
    looked = sh(wired.client, "sysctl security.jail.jailed security.jail.vnet; netstat -rn")
    assert looked == "security.jail.jailed: 1\nsecurity.jail.vnet: 0\nRouting tables\n"
    assert wired.client.read("/run/freebsd/state.json") == before


def test_commands_go_wrong_on_purpose(wired: Internet) -> None:
    rules = [
        {"command": "ifconfig", "match": ["create"], "nth": 2, "do": "exit1"},
        {"command": "ifconfig", "match": ["tunnel"], "do": "error-exit0"},
        {"command": "route", "do": "garbage"},
        {"command": "sysctl", "do": "hang"},
    ]
    wired.client.write("/run/freebsd/faults", json.dumps(rules), 0o644)

    def run(command: str) -> tuple[int, str, bool]:
        done = wired.client.run(command.split(), check=False)
        return done.returncode, done.stdout, bool(done.stderr)

    assert run("ifconfig gif create") == (0, "gif0\n", False)
    assert run("ifconfig gif create") == (1, "", True)
    assert run("ifconfig gif create") == (0, "gif1\n", False)
    assert run(f"ifconfig gif0 tunnel {CLIENT4} {SERVER4}") == (0, "", True)
    assert "tunnel" not in sh(wired.client, "ifconfig gif0")
    # These bytes are no text in any encoding a program might expect.
    assert "377 376" in sh(wired.client, "route -n get default | od -An -c")
    with pytest.raises(subprocess.TimeoutExpired):
        wired.client.run(["sysctl", "net.fibs"], timeout=3)
    assert run("sysctl net.fibs") == (0, "net.fibs: 1\n", False)
