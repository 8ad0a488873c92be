"""Nothing in the programs behaves otherwise on FreeBSD than on Linux, without us knowing.

The lab's commands are FreeBSD's, its kernel and its libc are Linux's.  So what is known to differ
between those is looked for in the programs' syntax trees.  Each use is listed below (ALLOWED) with
the reason why it is right on both; one that is not listed, or a line of the list that nothing needs
any more, is an error.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from dtcp.ledger import Ledger, LedgerError

from tests.running import ROOT

PROGRAMS = [*sorted(ROOT.glob("dtcp*.py")), *sorted((ROOT / "lib").rglob("*.py"))]

# Of signal(7) and signal(3), those that POSIX has.
_SIGNALS = (
    "ABRT|ALRM|BUS|CHLD|CONT|FPE|HUP|ILL|INT|KILL|PIPE|QUIT|SEGV|STOP|TERM|TSTP|TTIN|TTOU|USR1|USR2"
    "|URG|_DFL|_IGN|_BLOCK|_SETMASK|_UNBLOCK"
)

# What is looked for (a pattern of a use, as `uses` spells it), what differs, and an example.
RULES = (
    (
        r"[\w.]*\.((send|recv)msg|(send|recv)_fds|CMSG_|SCM_)",
        "room for ancillary data: with less than CMSG_SPACE FreeBSD drops it",
        "sock.recvmsg(100, 20)",
    ),
    (
        r"socket\.(SO|TCP|IP|IPV6|LOCAL|SOL_LOCAL|UDP|SCTP)_",
        "options of sockets: which there are, and what they do",
        "sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED)",
    ),
    (r"socket\.MSG_", "flags of messages: which there are", "sock.recv(1, socket.MSG_WAITALL)"),
    (
        r"socket\.(AF_(?!INET6?$|UNIX$)|SOCK_(?!STREAM$|DGRAM$)|IPPROTO_(?!TCP$|UDP$|IP$|IPV6$))",
        "families and kinds of sockets: which there are, and what the kernel fills in",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    ),
    (
        r"socket\.(EAI|AI|NI)_",
        "getaddrinfo(3): which error tells what",
        "from socket import EAI_NODATA",
    ),
    (
        r"[\w.]*(sock|socket|listener)\.accept$",
        "accept(2): BSD's hands down O_NONBLOCK, accept4(2) does not",
        "listener.accept()",
    ),
    (
        r"socket\.if_",
        "numbers of interfaces: FreeBSD gives the lowest that is free, which one that has gone may"
        " have had; Linux counts on",
        "socket.if_nametoindex('gif0')",
    ),
    (r"b?'\\x00", "abstract sockets: only Linux has them", "sock.bind('\\0name')"),
    (
        r"select(ors)?\.(select|e?poll|kqueue|devpoll|(?!Base)\w+Selector)$",
        "select(2) and its like: how many descriptors, a hang-up, what fork(2) does to them",
        "select.epoll()",
    ),
    (
        r"errno\.E",
        "errors: which call gives which, and their numbers",
        "error.errno == errno.ELOOP",
    ),
    (r"== .*\.errno\b", "errors: their numbers", "error.errno in (35, 51)"),
    (r"== .*strerror\b|os\.strerror$", "errors: their texts", "'not assign' in error.strerror"),
    (
        r"b?'(.*[^\w.])?/(proc|sys|dev(?!/null)|run)\b",
        "file systems of the kernel: /proc and /sys are Linux's, /dev/fd ends at 2 on FreeBSD",
        "open(f'/proc/{pid}/stat')",
    ),
    (r"ctypes\b|prctl", "libc, and calls of one kernel only", "import ctypes"),
    (
        r"signal\.(sig(?!nal$)|pthread_|set_wakeup_fd|setitimer|valid_signals)\w*$",
        "sets of signals, and how they are waited for",
        "signal.sigtimedwait({1}, 2)",
    ),
    (
        rf"(signal\.|')SIG(?!({_SIGNALS})'?$)[A-Z0-9]+'?$",
        "signals that are not POSIX's",
        "getattr(signal, 'SIGPWR')",
    ),
    (r"os\.(sched_|SCHED_|nice)", "the scheduler", "os.sched_setaffinity(0, {1})"),
    (
        r"resource\.RLIM",
        "limits: which there are, how large, and whom they bind",
        "resource.setrlimit(resource.RLIMIT_AS, (1, 1))",
    ),
    (
        r"os\.posix_spawnp?\((resetids|scheduler|setpgroup|setsid|setsigdef|setsigmask)\)",
        "posix_spawn(3): which attributes there are",
        "os.posix_spawn('/x', [], {}, setsid=True)",
    ),
    (
        r"os\.(memfd_|pidfd_|P_PIDFD|eventfd|timerfd|splice|sendfile|copy_file_range|getrandom"
        r"|posix_f|\w*xattr|unshare|setns|l?chflags|lchmod|plock)",
        "calls of one kernel only, or with other arguments",
        "os.memfd_create('x')",
    ),
    (
        r"os\.(closerange|sysconf|confstr|f?pathconf)$",
        "how many descriptors there may be, and other limits",
        "os.sysconf('SC_OPEN_MAX')",
    ),
    (
        r"os\.O_(?!(RDONLY|WRONLY|RDWR|CREAT|EXCL|TRUNC|APPEND|NONBLOCK|CLOEXEC|NOCTTY)$)",
        "flags of open(2): which there are; with O_NOFOLLOW, FreeBSD's error is EMLINK, not ELOOP",
        "os.open('/x', os.O_PATH)",
    ),
    (
        r"fcntl\.(F_|flock|lockf|fcntl|ioctl)",
        "locks: FreeBSD's flock(2) and fcntl(2) see each other's, Linux's do not",
        "fcntl.fcntl(3, fcntl.F_SETPIPE_SZ)",
    ),
    (
        r"os\.(getlogin|\w+groups|\w+res[ug]id)$",
        "who we are: getlogin(2) is the session's; before 15, the first group is the effective one",
        "os.getgroups()",
    ),
    (
        r"grp\b|'(nobody|nogroup|wheel)'$|6553[34]$",
        "users and groups: nobody's group is nobody, not nogroup",
        "os.setgid(65534)",
    ),
    (
        r"locale\b|sys\.getfilesystemencoding$|'(LC_[A-Z]+|LANG|[a-z]{2}_[A-Z]{2}.*|C\..*)'$",
        "locales: their names, and what the names of files are in",
        "{'LANG': 'C.UTF-8'}",
    ),
    (r"time\.(CLOCK_|clock_)", "clocks: which there are", "time.CLOCK_BOOTTIME"),
    (
        r"sys\.platform$|os\.(uname|name)$|platform\b",
        "the system's name: who asks for it does different things",
        "sys.platform == 'linux'",
    ),
    (
        r"[\w.]*\.st_(birthtime|flags|gen|rsize|blocks|blksize|rdev)",
        "stat(2): what it tells",
        "os.stat('/').st_flags",
    ),
    (r"multiprocessing\b", "how processes are started", "import multiprocessing"),
    (r"dbm\b", "which databases dbm(3) can read", "import dbm"),
)

# The file and the use; why it is right on both, and where that was seen or is written.
ALLOWED = {
    "dtcpauth.py: b'\\x00'": "no address: the end of a password in a database",
    "dtcpauth.py: dbm": "whatever this Python can read; FreeBSD's ndbm(3) appends .db by itself",
    "dtcpauth.py: dbm.error": "as above",
    "dtcpauth.py: dbm.open": "as above",
    "dtcpc.py: 'nobody'": "its group is asked for (passwd(5)), not assumed",
    "dtcpc.py: errno.EADDRNOTAVAIL": "made by ourselves, for a message",
    "dtcpc.py: os.getlogin": "may fail, then passwd(5) is asked (getlogin(2))",
    "dtcpc.py: os.strerror": "shown, never compared",
    "dtcpc.py: socket.EAI_AGAIN": "no name server has answered, on both (getaddrinfo(3))",
    "dtcpc.py: socket.EAI_FAIL": "made by ourselves",
    "dtcpc.py: socket.IPPROTO_ICMPV6": "the kernel computes the check sum (RFC 3542 section 3.1)",
    "dtcpc.py: socket.IPV6_MULTICAST_LOOP": "off, we hear no answer of our own (seen on 15.1)",
    "dtcpc.py: socket.SOCK_RAW": "open to root (seen on 15.1)",
    "dtcpc.py: socket.if_nametoindex": "FreeBSD gives a free number again, so that an interface"
    " is known by its marks as well",
    "dtcps.py: resource.RLIMIT_NOFILE": "from the soft limit to the hard one, whatever that is",
    "dtcps.py: resource.RLIM_INFINITY": "as above; FreeBSD has kern.maxfilesperproc in its place",
    "dtcps.py: selectors.DefaultSelector": "a kqueue(2) is not inherited: made behind the fork(2)",
    "dtcps.py: self._listener.accept": "by accept4(2) in Python on both, and set not to block then",
    "dtcps.py: socket.SO_KEEPALIVE": "as in lib/dtcp/speaker.py",
    "dtcps.py: socket.SO_REUSEADDR": "for the port of one that has just ended; FreeBSD also lets us"
    " stand beside who has that port at other addresses (setsockopt(2))",
    "lib/dtcp/daemon.py: 'SIGINFO'": "used where it is (signal(3))",
    "lib/dtcp/daemon.py: errno.ELOOP": "Linux's for a symbolic link (open(2))",
    "lib/dtcp/daemon.py: errno.EMLINK": "FreeBSD's for the same (open(2))",
    "lib/dtcp/daemon.py: fcntl.flock": "as pidfile(3) does; nobody uses fcntl(2) on that file",
    "lib/dtcp/daemon.py: os.O_NOFOLLOW": "both errors are known",
    "lib/dtcp/daemon.py: resource.RLIMIT_CORE": "0: no core, on both (core(5))",
    "lib/dtcp/daemon.py: select.select": "a handful of descriptors; 1024 on both (select(2))",
    "lib/dtcp/daemon.py: signal.pthread_sigmask": "POSIX's, with signals of POSIX (sigprocmask(2))",
    "lib/dtcp/daemon.py: signal.set_wakeup_fd": "a pipe that does not block, on both",
    "lib/dtcp/inquiries.py: listener.accept": "as in dtcps.py",
    "lib/dtcp/ledger.py: os.O_NOFOLLOW": "any error, and then a look whether it is a link",
    "lib/dtcp/password.py: '/dev/tty'": "the terminal, on both (tty(4), seen on 15.1)",
    "lib/dtcp/password.py: os.O_NOFOLLOW": "any error, and then a look whether it is a link",
    "lib/dtcp/password.py: sys.getfilesystemencoding": "the terminal's; UTF-8 by default on both",
    "lib/dtcp/settings.py: '\\x00'": "no address: refused in a path",
    "lib/dtcp/run.py: 'LC_ALL'": "C, which both have",
    "lib/dtcp/shell.py: select.poll": "a pipe's end is POLLHUP or POLLIN: read either way",
    "lib/dtcp/speaker.py: errno.EINPROGRESS": "connect(2) of both; done at once is taken too",
    "lib/dtcp/speaker.py: errno.ETIMEDOUT": "made by ourselves, for a message",
    "lib/dtcp/speaker.py: os.closerange": "beyond the last one: close_range(2) on both",
    "lib/dtcp/speaker.py: os.setgroups": "none; setgid(2) comes behind it (seen on 15.1 and 14.0)",
    "lib/dtcp/speaker.py: os.strerror": "shown, never compared",
    "lib/dtcp/speaker.py: os.sysconf": "the limit; -1, for no limit, is less than what we close",
    "lib/dtcp/speaker.py: resource.RLIMIT_CORE": "0, on both",
    "lib/dtcp/speaker.py: resource.RLIMIT_FSIZE": "0: files only, not sockets (seen on 15.1)",
    "lib/dtcp/speaker.py: resource.RLIMIT_NOFILE": "3: a socket can be opened (seen on 15.1)",
    "lib/dtcp/speaker.py: resource.RLIMIT_NPROC": "0, as nobody: no fork(2) (seen on 15.1)",
    "lib/dtcp/speaker.py: select.select": "two descriptors, to read, or to see a connection",
    "lib/dtcp/speaker.py: signal.set_wakeup_fd": "none any more",
    "lib/dtcp/speaker.py: socket.SO_ERROR": "what came of a connect(2), on both (getsockopt(2))",
    "lib/dtcp/speaker.py: socket.SO_KEEPALIVE": "on or off, with the system's own times (tcp(4))",
    "lib/dtcp/store.py: os.O_NOFOLLOW": "beside O_EXCL, which refuses a link on both (open(2))",
    "lib/dtcp/system.py: os.posix_spawn(setpgroup)": "POSIX's (seen on 15.1 and 14.0)",
    "lib/dtcp/system.py: os.posix_spawn(setsigdef)": "as above",
    "lib/dtcp/wire.py: b'\\x00'": "no address: refused in a line",
}


def uses(source: str) -> Iterator[str]:
    """What a program uses: names in full, constants, comparisons (`== ...`), arguments by name."""
    tree = ast.parse(source)
    docstrings = set()
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            docstrings.add(node.value)
        elif isinstance(node, ast.Import):
            modules |= {each.asname: each.name for each in node.names if each.asname}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (each.name for each in names)
            case ast.ImportFrom(module, names):
                yield from (f"{module}.{each.name}" for each in names)
            case ast.Constant(str() | bytes() | int()) if node not in docstrings:
                yield repr(node.value)
            case ast.Attribute(of, name):
                owner = ast.unparse(of)
                yield f"{modules.get(owner, owner)}.{name}".rpartition(")")[2]
            case ast.Call(ast.Name("getattr"), [of, ast.Constant(str(name)), *_]):
                yield f"{ast.unparse(of)}.{name}"
            case ast.Call(func, keywords=keywords):
                yield from (f"{ast.unparse(func)}({each.arg})" for each in keywords)
            case ast.Compare() if any(isinstance(each, ast.Constant) for each in ast.walk(node)):
                yield f"== {ast.unparse(node)}"


def differing(source: str) -> dict[str, str]:
    """The uses that differ, and what it is that does."""
    return {
        use: what
        for use in set(uses(source))
        for pattern, what, _ in RULES
        if re.match(pattern, use)
    }


@pytest.mark.parametrize(("pattern", "what", "example"), RULES)
def test_what_differs_is_found(pattern: str, what: str, example: str) -> None:
    assert what in differing(example).values()


@pytest.mark.parametrize(
    "example",
    [
        "import socket as s\ns.SO_PEERCRED",
        "from os import sched_yield",
        "getattr(os, 'pidfd_open')(1)",
        "if hasattr(signal, 'SIGRTMIN'): pass",
        "os.posix_spawn('/x', [], {}, file_actions=[], setsigmask=[1])",
    ],
)
def test_it_cannot_be_hidden(example: str) -> None:
    assert differing(example)


@pytest.mark.parametrize(
    "example",
    [
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).bind(('::1', 0))",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "os.open('/var/run/x.pid', os.O_RDWR | os.O_CREAT)",
        "'''Not /proc, nor ctypes.'''",
        "print(error.strerror)",
    ],
)
def test_what_is_the_same_is_not_found(example: str) -> None:
    assert differing(example) == {}


def test_each_use_in_the_programs_is_right_on_both() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {use}": what
        for path in PROGRAMS
        for use, what in differing(path.read_text()).items()
    }
    assert {use: found[use] for use in found.keys() - ALLOWED.keys()} == {}, "not listed"
    assert ALLOWED.keys() - found.keys() == set(), "listed, and not there any more"


def test_a_link_in_place_of_the_state_is_called_one(tmp_path: Path) -> None:
    """FreeBSD's own words for it are `Too many links`."""
    path = tmp_path / "dtcpc.state"
    path.symlink_to("elsewhere")
    with pytest.raises(LedgerError, match=r"dtcpc\.state: is a symbolic link$"):
        Ledger(str(path)).left()
