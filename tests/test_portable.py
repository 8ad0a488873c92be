"""Nothing in the programs behaves differently on FreeBSD and Linux without our knowing.

The lab's commands are FreeBSD's; its kernel and libc are Linux's.  So the programs' syntax trees
are searched for everything known to differ between the two.  Each use is listed below (ALLOWED)
with the reason why it works on both; an unlisted use, or an entry that is no longer needed, is an
error.
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
    "lib/dtcp/server/imports.py: b'\\x00'": "no address: the end of a password in a database",
    "lib/dtcp/server/imports.py: dbm": "whatever can be read; FreeBSD's ndbm(3) appends .db",
    "lib/dtcp/server/imports.py: dbm.open": "as above",
    "dtcps.py: selectors.DefaultSelector": "a kqueue(2) is not inherited: made behind the fork(2)",
    "lib/dtcp/client/conversation.py: errno.EINPROGRESS": "connect(2) of both; done at once is"
    " taken too",
    "lib/dtcp/client/conversation.py: errno.ETIMEDOUT": "made by ourselves, for a message",
    "lib/dtcp/client/conversation.py: os.closerange": "beyond the last one: close_range(2) on both",
    "lib/dtcp/client/conversation.py: os.setgroups": "none; setgid(2) comes behind it (seen on"
    " 15.1 and 14.0)",
    "lib/dtcp/client/conversation.py: os.strerror": "shown, never compared",
    "lib/dtcp/client/conversation.py: os.sysconf": "the limit; -1, for no limit, is less than what"
    " we close",
    "lib/dtcp/client/conversation.py: resource.RLIMIT_CORE": "0, on both",
    "lib/dtcp/client/conversation.py: resource.RLIMIT_FSIZE": "0: files only, not sockets (seen on"
    " 15.1)",
    "lib/dtcp/client/conversation.py: resource.RLIMIT_NOFILE": "3: a socket can be opened (seen on"
    " 15.1)",
    "lib/dtcp/client/conversation.py: resource.RLIMIT_NPROC": "0, as nobody: no fork(2) (seen on"
    " 15.1)",
    "lib/dtcp/client/conversation.py: select.select": "two descriptors, to read, or to see a"
    " connection",
    "lib/dtcp/client/conversation.py: signal.set_wakeup_fd": "none any more",
    "lib/dtcp/client/conversation.py: socket.SO_ERROR": "what came of a connect(2), on both"
    " (getsockopt(2))",
    "lib/dtcp/client/conversation.py: socket.SO_KEEPALIVE": "on or off, with the system's own"
    " times (tcp(4))",
    "lib/dtcp/client/probe.py: socket.IPPROTO_ICMPV6": "the kernel computes the check sum (RFC"
    " 3542 section 3.1)",
    "lib/dtcp/client/probe.py: socket.IPV6_MULTICAST_LOOP": "off, we hear no answer of our own"
    " (seen on 15.1)",
    "lib/dtcp/client/probe.py: socket.IPV6_DONTFRAG": "RFC 3542's, on both (ip6(4)); where Python"
    " has it",
    "lib/dtcp/client/probe.py: socket.IPV6_USE_MIN_MTU": "FreeBSD's (ip6(4)): 0 for never; used"
    " where it is",
    "lib/dtcp/client/probe.py: socket.SO_RCVBUF": "room for a few packets; both have more than that"
    " to give (kern.ipc.maxsockbuf)",
    "lib/dtcp/client/probe.py: socket.SO_SNDBUF": "as above",
    "lib/dtcp/client/probe.py: socket.SOCK_RAW": "open to root (seen on 15.1)",
    "lib/dtcp/client/probe.py: socket.if_nametoindex": "for a packet that goes at once",
    "lib/dtcp/client/network.py: os.posix_spawn(setpgroup)": "POSIX's (seen on 15.1 and 14.0)",
    "lib/dtcp/client/network.py: os.posix_spawn(setsigdef)": "as setpgroup",
    "lib/dtcp/client/network.py: socket.EAI_AGAIN": "no name server has answered, on both"
    " (getaddrinfo(3))",
    "lib/dtcp/client/network.py: socket.EAI_FAIL": "made by ourselves",
    "lib/dtcp/client/network.py: socket.EAI_NONAME": "made by ourselves",
    "lib/dtcp/client/inquiry.py: grp": "group(5) is on both",
    "lib/dtcp/client/inquiry.py: grp.getgrgid": "the name of a file's group, shown",
    "lib/dtcp/client/options.py: grp": "as above",
    "lib/dtcp/client/options.py: grp.getgrnam": "the one asked for; wheel is 0 on FreeBSD,"
    " as root is elsewhere",
    "lib/dtcp/client/options.py: 'nobody'": "its group is asked for (passwd(5)), not assumed",
    "lib/dtcp/client/options.py: os.getlogin": "may fail, then passwd(5) is asked (getlogin(2))",
    "lib/dtcp/client/survey.py: '/proc/sys/|no such command'": "what Linux's sysctl(8) says",
    "lib/dtcp/client/speaker.py: errno.EADDRNOTAVAIL": "made by ourselves, for a message",
    "lib/dtcp/client/speaker.py: os.strerror": "shown, never compared",
    "lib/dtcp/look.py: socket.if_nametoindex": "FreeBSD gives a free number again, so"
    " that an interface is known by its marks as well",
    "lib/dtcp/look.py: socket.if_indextoname": "the name at this moment; a number that was given"
    " again is told by the marks",
    "lib/dtcp/daemon.py: 'SIGINFO'": "used where it is (signal(3))",
    "lib/dtcp/daemon.py: fcntl.flock": "as pidfile(3) does; nobody uses fcntl(2) on that file",
    "lib/dtcp/daemon.py: os.closerange": "as in conversation.py",
    "lib/dtcp/daemon.py: os.sysconf": "the same",
    "lib/dtcp/daemon.py: resource.RLIMIT_CORE": "0: no core, on both (core(5))",
    "lib/dtcp/daemon.py: select.select": "a handful of descriptors; 1024 on both (select(2))",
    "lib/dtcp/daemon.py: signal.pthread_sigmask": "POSIX's, with signals of POSIX (sigprocmask(2))",
    "lib/dtcp/daemon.py: signal.set_wakeup_fd": "a pipe that does not block, on both",
    "lib/dtcp/ledger.py: fcntl.flock": "of both sides the same flock(2)",
    "lib/dtcp/ledger.py: os.O_NOFOLLOW": "beside O_EXCL, which refuses a link on both (open(2))",
    "lib/dtcp/password.py: '/dev/tty'": "the terminal, on both (tty(4), seen on 15.1)",
    "lib/dtcp/password.py: sys.getfilesystemencoding": "the terminal's; UTF-8 by default on both",
    "lib/dtcp/private.py: errno.ELOOP": "Linux's for a symbolic link (open(2))",
    "lib/dtcp/private.py: errno.EMLINK": "FreeBSD's for the same (open(2))",
    "lib/dtcp/private.py: os.O_NOFOLLOW": "both errors are known",
    "lib/dtcp/run.py: 'LC_ALL'": "C, which both have",
    "lib/dtcp/server/database.py: os.O_NOFOLLOW": "beside O_EXCL, which refuses a link (open(2))",
    "lib/dtcp/server/inquiries.py: listener.accept": "as in sessions.py",
    "lib/dtcp/server/presence.py: socket.TCP_KEEPCNT": "questions of keep-alive, 127 at most on"
    " Linux; FreeBSD counts in time since the last segment, hence two steps (tcp(4))",
    "lib/dtcp/server/presence.py: socket.TCP_KEEPIDLE": "seconds, and it sets the timer anew, on"
    " both (tcp(4))",
    "lib/dtcp/server/presence.py: socket.TCP_KEEPINTVL": "seconds, on both (tcp(4))",
    "lib/dtcp/server/sessions.py: resource.RLIMIT_NOFILE": "from the soft limit to the hard one",
    "lib/dtcp/server/sessions.py: resource.RLIM_INFINITY": "as above; FreeBSD has"
    " kern.maxfilesperproc in its place",
    "lib/dtcp/server/sessions.py: self._listener.accept": "by accept4(2) in Python on both, and"
    " set not to block then",
    "lib/dtcp/server/sessions.py: socket.SO_KEEPALIVE": "as in lib/dtcp/client/conversation.py",
    "lib/dtcp/server/sessions.py: socket.SO_REUSEADDR": "for the port of one that has just ended;"
    " FreeBSD also lets us stand beside who has it at other addresses (setsockopt(2))",
    "lib/dtcp/server/settings.py: '\\x00'": "no address: refused in a path",
    "lib/dtcp/server/shell.py: select.poll": "a pipe's end is POLLHUP or POLLIN: read either way",
    "lib/dtcp/server/udp.py: errno.EADDRINUSE": "made by ourselves, for a message",
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
