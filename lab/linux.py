"""Hosts made of Linux namespaces.

A host is a network, a mount and a host-name namespace, kept by one process that does nothing (the
anchor). The whole run is in namespaces too: the kernel cleans up, whichever process is killed.

    supervisor --- setpriv, then unshare --- process 1 (init.py) --- command
                   killed by the kernel      killed by the kernel
                   when the supervisor dies  when unshare dies
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.machine import End

FREEBSD_COMMANDS = Path(__file__).resolve().parent / "freebsd" / "bin"
_INIT = Path(__file__).resolve().with_name("init.py")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PR_SET_CHILD_SUBREAPER = 36

RELEASES: tuple[str, ...] = ("15.1", "13.2")

# $1: host name, $2: directory with the files that go over those in /etc.
# The bind mounts come first: resolv.conf may be a link into /run.
_ANCHOR = """
set -e
echo "$1" >/proc/sys/kernel/hostname
{
    for file in hosts nsswitch.conf resolv.conf; do
        if [ -e "/etc/$file" ]; then echo "$2/$file /etc/$file none bind"; fi
    done
    echo "$1 /run tmpfs mode=755"
    if [ ! -L /var/run ]; then echo "/run /var/run none bind"; fi
    echo "$1 /usr/local/etc tmpfs mode=755"
    echo "$1 /var/db tmpfs mode=755"
} >"$2/fstab"
# mount(8) is run once because every test makes some hosts. What is mounted already, from the same
# source, it leaves out: hence the names.
mount -a -T "$2/fstab"
mkdir -p /run/mount  # mount(8) makes it the next time: no test that mounts something shall leave it
# Known beginnings, whatever the machine has (IPv4 settings are inherited from it).
echo 0 >/proc/sys/net/ipv4/ip_forward
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
# No waiting for duplicate address detection: addresses are good at once.
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up
echo ready
exec cat
"""

SETUPS = {
    # The IPv4 internet carries no IPv6, by anyone's accident.
    "router": """
        echo 1 >/proc/sys/net/ipv4/ip_forward
        echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
        ip link set eth0 up
        ip link set eth1 up
        ip address add 203.0.113.1/24 dev eth0
        ip address add 192.0.2.254/24 dev eth1
        """,
    "far": """
        ip link set eth0 up
        ip address add 2001:db8:0:ff::2/64 dev eth0
        ip route add default via 2001:db8:0:ff::1
        """,
    "lan": "ip link set eth0 up\n",
    "nat": """
        echo 1 >/proc/sys/net/ipv4/ip_forward
        ip link set eth0 up
        ip link set eth1 up
        ip address add 198.51.100.1/24 dev eth0
        ip address add 203.0.113.7/24 dev eth1
        ip route add default via 203.0.113.1
        nft 'table ip nat {
            chain out {
                type nat hook postrouting priority srcnat
                oifname "eth1" masquerade
            }
        }'
        """,
}

LOOKS = {
    "interfaces": "ip -o link",
    "addresses": "ip -o address",
    "IPv4 routes": "ip -4 route show table all",
    "IPv6 routes": "ip -6 route show table all",
    "IPv4 rules": "ip -4 rule",
    "IPv6 rules": "ip -6 rule",
    "settings": """cd /proc/sys/net && grep . ipv4/ip_forward \
        ipv6/conf/*/forwarding ipv6/conf/*/accept_ra ipv6/conf/*/disable_ipv6""",
    # Type, mode, owner, size and, for files, a check sum of what is in them. What is in
    # /run/freebsd is the machinery behind FreeBSD's commands, whose view is compared itself.
    "files": """find /run /usr/local/etc -path /run/freebsd -prune -o ! -name '*.log' \
            ! -type f -printf '%M %u %p %l\\n'
        find /run /usr/local/etc -path /run/freebsd -prune -o ! -name '*.log' \
            -type f -printf '%M %u %s bytes ' -exec cksum {} ';'""",
}


class Namespaces:
    """The namespaces of one host."""

    def __init__(self, name: str, etc: Path) -> None:
        # Without a fork in between, the process we start is the anchor. It
        # exits when we close its input or are gone.
        self._anchor = subprocess.Popen(
            [
                *("unshare", "--net", "--uts", "--mount", "--propagation", "private"),
                *("sh", "-c", _ANCHOR, "sh", name, str(etc)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._anchor.stdout is not None
        if self._anchor.stdout.readline() != "ready\n":
            raise RuntimeError(f"lab: the namespaces of {name} could not be made")
        self._net = os.readlink(f"/proc/{self.pid}/ns/net")

    @property
    def pid(self) -> int:
        """Process id of the anchor: identifies the host in ``ip link ... netns PID``."""
        return self._anchor.pid

    def enter(self, words: Sequence[str], *, freebsd: bool) -> list[str]:
        path = f"{FREEBSD_COMMANDS}:{_PATH}" if freebsd else _PATH
        return [
            *("nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--"),
            *("env", f"PATH={path}", *words),
        ]

    def processes(self) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").iterdir():
            # Processes come and go while we look, and the dead have no namespaces.
            with suppress(OSError):
                if entry.name.isdecimal() and os.readlink(entry / "ns/net") == self._net:
                    words = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                    found[int(entry.name)] = b" ".join(words).decode(errors="replace")
        found.pop(self.pid, None)
        return found

    def close(self) -> None:
        self._anchor.kill()
        self._anchor.communicate()
        limit = time.monotonic() + 5
        while (left := self.processes()) and time.monotonic() < limit:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


place = Namespaces


def join(wires: Sequence[tuple[End, End]]) -> None:
    """Both ends of a wire are created in place, so that nothing collides here."""
    words = []
    for ends in wires:
        born = []
        for end in ends:
            assert isinstance(end.place, Namespaces)
            born.append(f"{end.interface} netns {end.place.pid} address {end.ether}")
        words.append(f"link add {born[0]} type veth peer name {born[1]}\n")
    subprocess.run(["ip", "-batch", "-"], input="".join(words), text=True, check=True)


def ping(address: str, count: int, seconds: int) -> list[str]:
    family = "-6" if ":" in address else "-4"
    return ["ping", family, "-n", "-c", str(count), "-i", "0.2", "-W", str(seconds), address]


def reach(address: str, seconds: int) -> list[str]:
    return ["ping", "-c", "1", "-i", "0.2", "-w", str(seconds), address]


def link(interface: str, *, up: bool) -> list[str]:
    return ["ip", "link", "set", interface, "up" if up else "down"]


def identity(interface: str) -> list[str]:
    return ["sh", "-c", 'ip -o link show "$1" | cut -d : -f 1', "sh", interface]


def autoconfigured(interface: str) -> list[str]:
    script = "ip -6 -o address show dev $1 scope global | grep -o 'inet6 [^ ]*/64' | cut -c 7-"
    return ["sh", "-c", script, "sh", interface]


def default_router() -> list[str]:
    return ["ip", "-6", "route", "show", "default"]


def refuse(protocol: str, port: int, answer: str) -> list[str]:
    what = {
        "": "drop",
        "unreachable": "reject with icmp port-unreachable",
        "reset": "tcp flags & (syn | ack) == ack reject with tcp reset",
    }[answer]
    chains = "".join(
        f"chain {hook} {{\n"
        f"type filter hook {hook} priority filter\n"
        f"{protocol} dport {port} {what}\n"
        "}\n"
        for hook in ("input", "forward")
    )
    return ["nft", f"table ip refuse {{\n{chains}}}"]


def drop(protocol: int) -> list[str]:
    rule = f"type filter hook forward priority filter\nip protocol {protocol} drop\n"
    return ["nft", f"table ip refuse {{\nchain forward {{\n{rule}}}\n}}"]


def accept_all() -> list[str]:
    return ["sh", "-c", "nft delete table ip refuse 2>/dev/null || true"]


def nat_forgets(seconds: int) -> list[str]:
    script = """
        for state in udp_timeout udp_timeout_stream; do
            echo $1 >/proc/sys/net/netfilter/nf_conntrack_$state
        done
        """
    return ["sh", "-ec", script, "sh", str(seconds)]


def nat_forwards(port: int, address: str, to: int) -> list[str]:
    rules = f"""table ip forward_udp {{
        chain in {{
            type nat hook prerouting priority dstnat
            iifname "eth1" udp dport {port} dnat to {address}:{to}
        }}
        chain out {{
            type nat hook postrouting priority srcnat - 1
            oifname "eth1" udp sport {to} snat to 203.0.113.7:{port}
        }}
    }}"""
    return ["nft", rules]


def costs(pid: int) -> tuple[int, int, int]:
    status = Path(f"/proc/{pid}/status").read_text()
    threads, memory = (
        int(re.findall(rf"{n}:\s+([0-9]+)", status)[0]) for n in ("Threads", "VmRSS")
    )
    return len(os.listdir(f"/proc/{pid}/fd")), threads, memory


def write(path: str, mode: int) -> list[str]:
    # Put in place as a whole: somebody may be about to read it.
    script = 'install -D --mode="$2" /dev/stdin "$1.new" && mv -f "$1.new" "$1"'
    return ["sh", "-ec", script, "sh", path, f"{mode:o}"]


def inside() -> bool:
    words = Path("/proc/1/cmdline").read_bytes().split(b"\0")
    return words[1:3] == [b"-I", b"-S"] and words[3].endswith(b"/lab/init.py")


def from_outside(mark: str, words: Sequence[str]) -> str:
    # Our process id out there is not known in here. The newest process is meant: those that have
    # started the caller have its command line in theirs.
    return f"nsenter -at $(pgrep -nf {shlex.quote(mark)}) {shlex.join(words)}"


def traces() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"processes": set(), "namespaces": set()}
    for process in Path("/proc").glob("[0-9]*"):
        # One may exit while we look.
        with suppress(OSError):
            found["namespaces"] |= {os.readlink(link) for link in (process / "ns").iterdir()}
            found["processes"].add(process.name)
    found["mounts"] = set(Path("/proc/self/mountinfo").read_text().splitlines())
    found["interfaces"] = {name for _, name in socket.if_nameindex()}
    found["files"] = {str(path) for top in ("/run", "/dev/shm") for path in Path(top).rglob("*")}
    return found


@contextmanager
def enclosed(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    # The first process of the enclosure becomes our child when the one between
    # us is killed, and it can be waited for: it ends last of all in there.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    lifeline, held = os.pipe()  # `held` is closed by our end, whatever it is
    child = None
    try:
        child = subprocess.Popen(_words(lifeline, command), pass_fds=[lifeline])
        os.close(lifeline)
        yield child
    finally:
        os.close(held)
        if child is not None:
            child.kill()
        _reap()


def _words(lifeline: int, command: Sequence[str]) -> list[str]:
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--fork", "--kill-child", "--pid", "--mount-proc"),
        *("--mount", "--propagation", "private", "--net", "--uts"),
        *(sys.executable, "-I", "-S", str(_INIT), str(lifeline)),
        *command,
    ]


def _reap() -> None:
    """Wait for every child, adopted ones included."""
    with suppress(ChildProcessError):
        while True:
            os.wait()
