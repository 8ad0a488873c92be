"""Hosts made of FreeBSD's VNET jails, connected by epair(4)s, with the real commands.

A host's root directory is a tmpfs(5) with the machine's programs in it, read-only. Its /run,
/usr/local/etc and /var/db are its own; so is its /etc, with the machine's users. The directory for
temporary files is that of the run.

Here the kernel does not clean up, so everything is marked. A run has a name and, under ``_RUNS``, a
directory of that name with a file that it keeps locked; the names of its jails begin with
dtcplab-NAME-, its epairs have that as a description, its mounts are in the directory, and its
processes have the name in their environment. Each run first clears everything marked by a run
that no longer holds its lock.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import re
import shlex
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from lab.machine import End

_RUNS = Path(os.path.realpath("/var/db/dtcplab"))  # as mount(8) prints it
_RUN = "LAB_RUN"  # in the environment of what runs in an enclosure: the name of the run
_CHECKOUT = Path(__file__).resolve().parents[1]
_PATH = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"

# The real commands have the dialect of the machine.
RELEASES: tuple[str, ...] = (os.uname().release.partition("-")[0],)

# What hosts need, if it is not in the kernel; a jail cannot load modules.
_MODULES = "if_epair if_gif nullfs tmpfs ng_socket ng_iface ng_ksocket pf"
_ETC = "group login.conf login.conf.db master.passwd passwd pf.os protocols pwd.db services spwd.db"

# No duplicate address detection, except on tunnels, which are what is tested.
_START = "/sbin/ifconfig lo0 inet 127.0.0.1/8 up"

# $1: more rules, which come before the usual one.
_NAT = """
    printf '%s\\n' "$1" 'nat on eth1 inet from ! (eth1) to any -> (eth1)' pass | pfctl -q -f -
    pfctl -q -e 2>/dev/null || true
    """

_CALM = "sysctl net.inet6.ip6.dad_count=0\n"
SETUPS = {
    # IPv6 is disabled on a new interface, so the IPv4 internet carries none.
    "router": """
        sysctl net.inet.ip.forwarding=1
        ifconfig eth0 inet 203.0.113.1/24 up
        ifconfig eth1 inet 192.0.2.254/24 up
        """,
    "far": f"""{_CALM}
        ifconfig eth0 inet6 2001:db8:0:ff::2 prefixlen 64 up
        route -n add -inet6 default 2001:db8:0:ff::1
        """,
    "lan": f"""{_CALM}
        ifconfig eth0 inet6 -ifdisabled accept_rtadv up
        """,
    "nat": """
        sysctl net.inet.ip.forwarding=1
        ifconfig eth0 inet 198.51.100.1/24 up
        ifconfig eth1 inet 203.0.113.7/24 up
        route -n add default 203.0.113.1
        """
    + _NAT,
}

# The addresses of lo0 and those of other interfaces, one a line, come without their interface:
# "ifconfig -a" is among the looks as well.
LOOKS = {
    "interfaces": "ifconfig -l | tr ' ' '\\n'",
    "addresses": "ifconfig -a | grep -w -e inet -e inet6 | grep -v 'tunnel inet'",
    "IPv4 routes": "netstat -rn -f inet | sed 1,4d",
    "IPv6 routes": "netstat -rn -f inet6 | sed 1,4d",
    "settings": "sysctl net.inet.ip.forwarding net.inet6.ip6.forwarding net.inet6.ip6.accept_rtadv",
    # As on Linux; a directory's size means nothing.
    "files": """set -- /var/run /usr/local/etc -path /var/run/freebsd -prune -o ! -name '*.log'
        find "$@" ! -type f -exec stat -f '%Sp %Su %N %Y' {} +
        find "$@" -type f -exec stat -f '%Sp %Su %z bytes %N' {} + -exec cksum {} +""",
}

# $1: the mark, then for each end of a wire: jail, interface, Ethernet address. The name that
# create prints ends in a, and its other end is called the same with b. ifconfig(8) sets the
# address last, whatever the order of the words: not together with what moves the interface away.
_JOIN = """
set -e
mark=$1
shift
end() {
    ifconfig "$1" vnet "$2"
    ifconfig -j "$2" "$1" ether "$4" name "$3" >/dev/null
}
while [ $# -gt 0 ]; do
    a=$(ifconfig epair create description "$mark")
    b=${a%a}b
    ifconfig "$b" description "$mark"
    end "$a" "$1" "$2" "$3"
    end "$b" "$4" "$5" "$6"
    shift 6
done
"""

# In front of a real command: lets it go wrong as lab/freebsd/faults.py has it.
_FAULTY = f"""#!/bin/sh
name=${{0##*/}}
for real in /sbin/$name /usr/sbin/$name /usr/bin/$name; do
    if [ -x $real ]; then break; fi
done
if [ -e /run/freebsd/faults ]; then
    exec {sys.executable} -IS {_CHECKOUT}/lab/faulty.py $real "$@"
fi
exec $real "$@"
"""
_COMMANDS = "ifconfig netstat ngctl route rtadvctl rtadvd rtsol sysctl"

_numbers = itertools.count()


class Jail:
    """The jail of one host, and its files."""

    def __init__(self, name: str, etc: Path) -> None:
        # Several processes may make hosts in one run (pytest-xdist).
        self.name = f"{_mark(os.environ[_RUN])}{os.getpid()}-{next(_numbers)}-{name}"
        self._root = _RUNS / os.environ[_RUN] / self.name
        self._root.mkdir()
        try:
            self._furnish(etc)
            _do("jail", "-c", f"name={self.name}", f"path={self._root}", f"host.hostname={name}",
                "vnet", "persist", "enforce_statfs=1", "allow.mount", "allow.mount.tmpfs",
                f"exec.start={_START}")  # fmt: skip
        except subprocess.CalledProcessError as error:
            self.close()
            raise RuntimeError(f"lab: no jail for {name}: {error.stderr.strip()}") from None

    def _furnish(self, etc: Path) -> None:
        _do("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(self._root))
        for path in ("dev", "etc", "root", "var/db", "var/empty", "var/log", "var/run"):
            (self._root / path).mkdir(parents=True)
        for path in ("tmp", "var/tmp"):
            (self._root / path).mkdir()
            (self._root / path).chmod(0o1777)
        (self._root / "run").symlink_to("var/run")
        for directory, names in (Path("/etc"), _ETC.split()), (etc, os.listdir(etc)):
            for name in names:
                with suppress(FileNotFoundError):
                    shutil.copy2(directory / name, self._root / "etc" / name)
        # Where the run-time linker looks for libraries beyond /lib and /usr/lib: ldconfig(8).
        with suppress(FileNotFoundError):
            shutil.copy("/var/run/ld-elf.so.hints", self._root / "var/run")
        commands = self._root / "run/freebsd/bin"
        commands.mkdir(parents=True)
        for name in _COMMANDS.split():
            (commands / name).write_text(_FAULTY)
            (commands / name).chmod(0o755)
        mounts = [(path, path, "nullfs", "ro") for path in _shared()]
        mounts += [
            ("devfs", "/dev", "devfs", "rw"),
            ("tmpfs", "/usr/local/etc", "tmpfs", "rw,mode=755"),
            (tempfile.gettempdir(), tempfile.gettempdir(), "nullfs", "rw"),
        ]
        for _, path, *_ in mounts:
            if not path.startswith("/usr/"):
                (self._root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        table = self._root / "etc/fstab"
        table.write_text(
            "".join(
                f"{_escaped(what)} {_escaped(f'{self._root}{path}')} {kind} {options} 0 0\n"
                for what, path, kind, options in mounts
            )
        )
        _do("mount", "-a", "-F", str(table))

    def enter(self, words: Sequence[str], *, freebsd: bool) -> list[str]:
        path = f"/run/freebsd/bin:{_PATH}" if freebsd else _PATH
        return ["jexec", self.name, "env", f"PATH={path}", *words]

    def processes(self) -> dict[int, str]:
        words = ["ps", "-J", self.name, "-ww", "-o", "pid=", "-o", "state=", "-o", "command="]
        found = {}
        for line in _ask(*words).splitlines():
            pid, state, command = line.split(maxsplit=2)
            if not state.startswith("Z"):
                found[int(pid)] = command
        return found

    def close(self) -> None:
        _clear(self.name, self._root)


place = Jail


def join(wires: Sequence[tuple[End, End]]) -> None:
    words = []
    for end in itertools.chain(*wires):
        assert isinstance(end.place, Jail)
        words += [end.place.name, end.interface, end.ether]
    try:
        _do("sh", "-c", _JOIN, "sh", _mark(os.environ[_RUN]), *words)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"lab: no wires: {error.stderr.strip()}") from None


def ping(address: str, count: int, seconds: int) -> list[str]:
    family = "-6" if ":" in address else "-4"
    # ping(8) counts what it waits for a reply in milliseconds.
    return ["ping", family, "-n", "-c", str(count), "-i", "0.2", "-W", f"{seconds}000", address]


def reach(address: str, seconds: int) -> list[str]:
    return ["ping", "-n", "-o", "-i", "0.2", "-t", str(seconds), address]


def link(interface: str, *, up: bool) -> list[str]:
    return ["ifconfig", interface, "up" if up else "down"]


def identity(interface: str) -> list[str]:
    # Numbers are reused, so the interface is put into its own group when it is looked at.
    script = """
        if ! ifconfig "$1" | grep -o 'seen[0-9]*x'; then
            ifconfig "$1" group seen$$x && echo seen$$x
        fi
        """
    return ["sh", "-c", script, "sh", interface]


def autoconfigured(interface: str) -> list[str]:
    script = r"ifconfig $1 inet6 | sed -n 's|.*inet6 \(2[^ ]*\) prefixlen 64 .*|\1/64|p'"
    return ["sh", "-c", script, "sh", interface]


def default_router() -> list[str]:
    return ["sh", "-c", "route -n get -inet6 default 2>/dev/null || true"]


def refuse(protocol: str, port: int, answer: str) -> list[str]:
    # pf.conf(5); without state each packet is looked at. 3 is "port unreachable".
    how, flags = {
        "": ("drop", ""),
        "unreachable": ("return-icmp (3)", ""),
        "reset": ("return-rst", "flags A/SA"),
    }[answer]
    rule = f"block {how} in quick inet proto {protocol} to port {port} {flags}"
    return ["sh", "-ec", _REFUSE, "sh", rule]


def drop(protocol: int) -> list[str]:
    return ["sh", "-ec", _REFUSE, "sh", f"block drop in quick inet proto {protocol}"]


_REFUSE = """
    rules=/run/freebsd/pf.conf
    mkdir -p /run/freebsd
    [ -e $rules ] || echo 'pass no state' >$rules
    { echo "$1"; cat $rules; } >$rules.new
    mv $rules.new $rules
    pfctl -q -f $rules
    pfctl -q -e 2>/dev/null || true
    """


def accept_all() -> list[str]:
    return ["sh", "-c", "rm -f /run/freebsd/pf.conf; pfctl -q -d -F all 2>/dev/null || true"]


def nat_forgets(seconds: int) -> list[str]:
    states = " ".join(f"udp.{state} {seconds}" for state in ("first", "single", "multiple"))
    return _nat(f"set timeout {{ {states} }}")


def nat_forwards(port: int, address: str, to: int) -> list[str]:
    return _nat(
        f"rdr on eth1 inet proto udp to port {port} -> {address} port {to}\n"
        f"nat on eth1 inet proto udp from {address} port {to} to any -> (eth1) port {port}"
    )


def _nat(rules: str) -> list[str]:
    return ["sh", "-ec", _NAT, "sh", rules]


def costs(pid: int) -> tuple[int, int, int]:
    threads, memory = _ask("ps", "-o", "nlwp=", "-o", "rss=", "-p", str(pid)).split()
    # procstat(1) also lists things that are not descriptors: the text, the root, a terminal.
    files = re.findall(r"^\s*\d+ .{16} +\d+ ", _ask("procstat", "-h", "-f", str(pid)), re.M)
    return len(files), int(threads), int(memory)


def write(path: str, mode: int) -> list[str]:
    script = (
        'umask 022; mkdir -p "${1%/*}"; umask 077; cat >"$1.new"; chmod "$2" "$1.new";'
        ' mv -f "$1.new" "$1"'
    )
    return ["sh", "-ec", script, "sh", path, f"{mode:o}"]


def inside() -> bool:
    return _RUN in os.environ and (_RUNS / os.environ[_RUN]).is_dir()


def from_outside(mark: str, words: Sequence[str]) -> str:
    return shlex.join(words)


def traces() -> dict[str, set[str]]:
    return {
        "jails": set(_ask("jls", "name").split()),
        "interfaces": set(_ask("ifconfig", "-l").split()),
        "mounts": set(_ask("mount", "-p").splitlines()),
        "files": {str(path) for path in (_RUNS, *_RUNS.glob("*"), *_RUNS.glob("*/*"))},
        "runs of processes": set(_processes().values()),
    }


@contextmanager
def enclosed(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    if _ask("sysctl", "-n", "kern.features.vimage").strip() != "1":
        raise RuntimeError("lab: the kernel has no VIMAGE, so jails cannot have networks")
    if _ask("sysctl", "-n", "security.jail.children.max").strip() == "0":
        raise RuntimeError("lab: this jail may not have jails: see children.max in jail(8)")
    with _run() as name:
        # Otherwise we would not know what the command leaves running: procctl(2).
        _procctl(_PROC_REAP_ACQUIRE)
        supervisor = os.getpid()

        def end_with_supervisor() -> None:
            _procctl(_PROC_PDEATHSIG_CTL, ctypes.c_int(signal.SIGKILL))
            if os.getppid() != supervisor:
                os._exit(1)

        temporary = _RUNS / name / "tmp"
        environment = {
            **os.environ,
            _RUN: name,
            "TMPDIR": str(temporary),
            # The checkout is not modified, and hosts cannot write to it.
            "PYTHONPYCACHEPREFIX": str(temporary / "pycache"),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        try:
            yield _Command(command, env=environment, preexec_fn=end_with_supervisor)
        finally:
            _end_descendants()


class _Command(subprocess.Popen[bytes]):
    """The command of an enclosure; its orphans are our children too."""

    def wait(self, timeout: float | None = None) -> int:
        """As usual, but without a limit; orphans that end meanwhile are gone, as by init(8)."""
        while self.returncode is None:
            pid, status = os.wait()
            if pid == self.pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


@contextmanager
def _run() -> Iterator[str]:
    """A new run, marked and locked; leftovers of dead ones are cleared first."""
    _RUNS.mkdir(exist_ok=True)
    with _locked(_RUNS / "lock"):
        for name in _names():
            if (left := _taken(name)) is not None:
                with left:
                    for pid, run in _processes().items():
                        if run == name:
                            with suppress(ProcessLookupError):
                                os.kill(pid, signal.SIGKILL)
                    _clear(_mark(name), _RUNS / name)
        # We do not ask whether they are in the kernel already: a missing one will show.
        subprocess.run(
            ["sh", "-c", f"for module in {_MODULES}; do kldload -n $module; done"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        place = Path(tempfile.mkdtemp(dir=_RUNS, prefix=""))
        place.chmod(0o755)
        (place / "tmp").mkdir(mode=0o1777)
        (place / "tmp").chmod(0o1777)
        lock = _taken(place.name)
        assert lock is not None
    with lock:
        try:
            yield place.name
        finally:
            _clear(_mark(place.name), place)


def _mark(run: str) -> str:
    return f"dtcplab-{run}-"


def _names() -> set[str]:
    """Every run that has left a trace."""
    marked = re.findall(r"\bdtcplab-(\w+)-", _ask("jls", "name") + _ask("ifconfig", "-a"))
    return {*marked, *(entry.name for entry in _RUNS.iterdir() if entry.is_dir())}


def _processes() -> dict[int, str]:
    """The processes that have the name of a run in their environment, and that name."""
    lines = _ask("ps", "-axwwe", "-o", "pid=", "-o", "command=")
    return {int(pid): run for pid, run in re.findall(rf"^ *(\d+) .*\b{_RUN}=(\w+)", lines, re.M)}


def _taken(run: str) -> IO[str] | None:
    """The lock of a run, if it is free."""
    place = _RUNS / run
    place.mkdir(exist_ok=True)
    file = open(place / "lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clear(mark: str, place: Path) -> None:
    """Remove the jails and interfaces with this mark prefix, and a directory with its mounts."""
    jails = [name for name in _ask("jls", "name").split() if name.startswith(mark)]
    for jail in jails:
        # Destroyed inside, since a jail that ends gives them back under the name they have there.
        for wire in _ask("ifconfig", "-j", jail, "-g", "epair").split():
            _ask("ifconfig", "-j", jail, wire, "destroy")
        _ask("jail", "-r", jail)
    for text in re.split(r"^(?=\S)", _ask("ifconfig", "-a", "-g", "epair"), flags=re.M):
        if f"description: {mark}" in text:
            _ask("ifconfig", text.partition(":")[0], "destroy")
    if mounts := _mounts(place):
        _ask("umount", "-f", *reversed(mounts))
    # What is still mounted is not ours to remove.
    if not _mounts(place):
        shutil.rmtree(place, ignore_errors=True)


def _mounts(place: Path) -> list[str]:
    """What is mounted at or below a directory, in mount order."""
    return re.findall(rf" on ({re.escape(str(place))}(?:/.*)?) \([a-z]", _ask("mount"))


def _shared() -> list[str]:
    """The machine's directories that hosts see; nullfs(5) does not follow mounts inside."""
    found: list[str] = []
    wanted = ["/bin", "/sbin", "/lib", "/libexec", "/usr", "/usr/local", sys.base_prefix]
    for path in (*wanted, sys.prefix, str(_CHECKOUT), site.getusersitepackages()):
        there = [each for each in found if Path(path).is_relative_to(each)]
        if os.path.isdir(path) and not any(
            os.stat(each).st_dev == os.stat(path).st_dev for each in there
        ):
            # Below another one only the mount point itself is there to be mounted on.
            while there and not os.path.ismount(path):
                path = os.path.dirname(path)
            found.append(path)
    return found


def _escaped(path: str) -> str:
    """Escape it for fstab(5)."""
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def _do(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


def _ask(*words: str) -> str:
    """What a command prints, whatever its status."""
    return subprocess.run(words, capture_output=True, text=True).stdout


_PROC_REAP_ACQUIRE, _PROC_REAP_KILL, _PROC_PDEATHSIG_CTL = 2, 6, 11
_P_PID = 0


class _ReaperKill(ctypes.Structure):
    """struct procctl_reaper_kill: procctl(2)."""

    _fields_ = (
        ("rk_sig", ctypes.c_int),
        ("rk_flags", ctypes.c_uint),
        ("rk_subtree", ctypes.c_int),
        ("rk_killed", ctypes.c_uint),
        ("rk_fpid", ctypes.c_int),
        ("rk_pad0", ctypes.c_uint * 15),
    )


def _procctl(command: int, data: ctypes._SimpleCData[int] | ctypes.Structure | None = None) -> None:
    """For this process. The last argument is a pointer to what the command needs."""
    pointer = None if data is None else ctypes.byref(data)
    ctypes.CDLL(None).procctl(_P_PID, ctypes.c_int64(0), command, pointer)


def _end_descendants() -> None:
    """Kill every descendant and wait until it is gone, those that left their parents included."""
    with suppress(ChildProcessError):
        while True:
            _procctl(_PROC_REAP_KILL, _ReaperKill(rk_sig=signal.SIGKILL))
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
            time.sleep(0.01)
