"""What a daemon needs of the system around it: descriptors, signals, the pid file, the log."""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
import os
import re
import resource
import select
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from dtcp import private
from dtcp.errors import Error

# What would end us by default, and means nothing, or not yet.
_HARMLESS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)  # the signals that end us


_ERROR, _NOTICE, _INFO, _DEBUG = 3, 5, 6, 7  # of syslog(3)

READING_TIME = 1.0  # seconds that whoever reads standard error has for it
PIECE = 512  # bytes that a pipe takes at once when it is writable: PIPE_BUF on FreeBSD


_inherited: list[int] = []  # descriptors of a lock, a pipe, whatever else our parent had open


class Stopped(Exception):
    """We were told to end: that is no error."""


class PidFileError(Error):
    """Another instance runs, or the pid file cannot be had."""


def settle() -> None:
    """Undo what a careless parent may have left us with.

    Descriptors 0 to 2 closed, others inherited, SIGCHLD ignored (then no command's exit status
    could be had), a file mode mask that opens what we write.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor is this one
    sys.stdout = sys.stdout or os.fdopen(1, "w")  # Python has None for it then
    # Without a buffer: what a full disk does not take would be found there again when Python ends,
    # and make its exit status 120.
    if sys.stderr is sys.__stderr__:
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, "w", closefd=False), errors="backslashreplace", write_through=True
        )
    for fd in range(3, 256):
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
            _inherited.append(fd)
    # There may be a million of them, too many to ask for each; and no one there is meant for us.
    os.closerange(256, max(65536, os.sysconf("SC_OPEN_MAX")))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold the password


class Log:
    """Lines for whoever looks after us: on standard error, and later to syslogd(8).

    notice: up, down, and why; info: commands; debug: protocol lines.  Standard error gets the last
    two only when `verbose`; for syslogd, syslog.conf(5) decides.
    """

    def __init__(self, program: str, *, verbose: bool = False) -> None:
        self._program = program
        self._verbose = verbose
        self._is_unread = False  # standard error, so that lines are lost
        self._syslog: Callable[[int, str], None] | None = None

    def to_syslog(self) -> None:
        """From here on to syslogd(8), facility daemon."""
        import syslog

        syslog.openlog(self._program, syslog.LOG_PID | syslog.LOG_NDELAY, syslog.LOG_DAEMON)
        self._syslog = syslog.syslog

    def error(self, text: str) -> None:
        self._write(_ERROR, text)

    def notice(self, text: str) -> None:
        self._write(_NOTICE, text)

    def info(self, text: str) -> None:
        self._write(_INFO, text)

    def command(self, line: str) -> None:
        """A command that is about to run, as a person would type it as root."""
        self.info(f"# {line}")

    def debug(self, text: str) -> None:
        self._write(_DEBUG, text)

    def _write(self, level: int, text: str) -> None:
        if self._syslog is not None:
            self._syslog(level, text)
        elif level <= _NOTICE or self._verbose:
            # A full disk or a closed terminal is no reason to lose the tunnel, nor is a pipe or a
            # terminal (^S) that nobody reads.
            line = f"{self._program}: {text}\n".encode(errors="backslashreplace")
            with contextlib.suppress(OSError, ValueError):
                for start in range(0, len(line), PIECE):
                    patience = 0.0 if self._is_unread else READING_TIME
                    self._is_unread = not select.select([], [2], [], patience)[1]
                    if self._is_unread:
                        break
                    os.write(2, line[start : start + PIECE])


def stop_at_once() -> None:
    """Have the first signal that ends us raise Stopped, wherever we are, and others do nothing.

    SIGHUP is one of them.  This holds until there are `Signals`.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        # A second one must not disturb what the first began.  SIG_IGN would have Python complain of
        # one that has come already.
        for each in (*ENDING, signal.SIGHUP):
            signal.signal(each, lambda number, frame: None)
        raise Stopped

    for number in (*ENDING, signal.SIGHUP):
        signal.signal(number, stop)
    for number in _HARMLESS:
        signal.signal(number, lambda number, frame: None)


def ignore_signals() -> None:
    """Ignore the signals that end us.

    In Python's own end the default holds again, and one more of them would be our exit status.
    """
    for number in (*ENDING, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class Signals:
    """Signals as facts to look at between two waits, instead of things that happen anywhere.

    Each of them ends the current `wait`.  Those of ENDING set `stopping`, HUP sets `reload`, INFO
    (^T, on FreeBSD) and USR1 set `report`; who acts on one of the last two clears it.
    """

    def __init__(self) -> None:
        self.stopping = self.reload = self.report = False
        self.on_stop: Callable[[], None] = lambda: None
        self.woken, wake = os.pipe()  # readable when a signal has come
        os.set_blocking(self.woken, False)
        os.set_blocking(wake, False)
        # What arrives between a look at a flag and the wait is in the pipe, and ends the wait.
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in ENDING:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._reload)
        for name in ("SIGUSR1", "SIGINFO"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._report)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        self.on_stop()

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self.reload = True

    def _report(self, number: int, frame: FrameType | None) -> None:
        self.report = True

    def check(self) -> None:
        """Raise Stopped, if we were told to end."""
        if self.stopping:
            raise Stopped

    def wait(self, readers: Sequence[int], timeout: float) -> list[int]:
        """Wait until one is readable, a signal came, or `timeout` seconds have passed."""
        limit = None if timeout == math.inf else max(0.0, timeout)
        ready, _, _ = select.select([*readers, self.woken], [], [], limit)
        if self.woken in ready:
            ready.remove(self.woken)
            self.drain()
        return ready

    def drain(self) -> None:
        """Make `woken` unreadable again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.woken, 1024)


def locked_by(path: str) -> int | None:
    """The pid in a pid file that its owner holds locked, as pidfile(3) has it; else None.

    It can be killed: nobody but root and us can have written or locked such a file.  0: it is
    locked, and who holds it cannot be told, not yet or not from this file.
    """
    try:
        pid, mode = _holder(path)
    except (PidFileError, PermissionError):
        return 0
    # Who may read it may lock it, and the pid may be an old one that is somebody else's by now.
    return 0 if pid and mode & private.ANYTHING else pid


def running(path: str) -> int | None:
    """The same for telling people; that of an earlier version, readable by others, counts as well.

    Raises PidFileError, or PermissionError: it is mostly for root to see.
    """
    return _holder(path)[0]


def _holder(path: str) -> tuple[int | None, int]:
    """The pid, as in `locked_by`, and the file's mode.  Raises PidFileError, PermissionError."""
    try:
        fd = private.open_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, 0
    except PermissionError:
        raise
    except OSError as error:
        raise PidFileError(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        _check_place(path)
        # It may have a second name: anybody may give it one elsewhere
        # (security.bsd.hardlink_check_uid is 0), and must not thereby keep what it names from being
        # ended.
        mode = private.check(path, fd, PidFileError).st_mode
        text = os.pread(fd, 20, 0).strip()
        return int(text) if text.isdigit() and 1 < int(text) < 1 << 31 else 0, mode
    else:
        # A ledger is replaced at each step: nobody may hold the lock of this one any more.
        return (None, 0) if _is_at_path(path, fd) else _holder(path)
    finally:
        os.close(fd)


def _is_at_path(path: str, fd: int) -> bool:
    """Whether an open file is still the one at that path."""
    try:
        there, here = os.lstat(path), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _check_place(path: str) -> None:
    """See that nobody but root and us can put a file there.  Raises PidFileError, or OSError."""
    directory = os.path.dirname(os.path.abspath(path))
    if private.openness(directory, sticky=False):  # others could be there first
        raise PidFileError(f"{path}: others can write to {directory}; choose another directory")


class PidFile:
    """A pid file that is locked for as long as we live, in the way of pidfile(3).

    Taking it is the first thing that an instance does; whoever holds the lock is the instance.
    Its mode is 0600: who may read it may lock it, and could keep us from starting.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = self._open()

    def _open(self) -> int:
        """Open and lock it.  Raises PidFileError."""
        while True:
            try:
                _check_place(self.path)
                fd = private.open_file(self.path, os.O_RDWR | os.O_CREAT)
            except OSError as error:
                raise PidFileError(f"{self.path}: {error.strerror}") from None
            try:
                info = private.check(self.path, fd, PidFileError)
                self._lock(fd)
                if _is_at_path(self.path, fd):
                    if os.fstat(fd).st_nlink > 1:  # what we write would be in another file
                        raise PidFileError(f"{self.path}: is a hard link; remove it")
                    # We write over it, and remove it: not what somebody has named by mistake.
                    if not re.fullmatch(rb"[0-9\s\0]{0,20}", os.pread(fd, 64, 0)):
                        raise PidFileError(f"{self.path}: not a pid file; choose another name")
                    if not info.st_mode & private.ANYTHING:
                        return fd
                    # Of an earlier version.  Others may have it open, so a new mode is not enough.
                    self._unlink()
                # Otherwise its last owner removed it between our open and our lock.
            except PidFileError:
                os.close(fd)
                raise
            os.close(fd)

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            raise PidFileError(f"{self.path}: already running as pid {pid or '?'}") from None

    def _unlink(self) -> None:
        try:
            os.unlink(self.path)
        except OSError as error:
            raise PidFileError(f"{self.path}: {error.strerror}") from None

    def write(self) -> None:
        """Say who we are; to be called again in the process that lives on.  Raises PidFileError."""
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise PidFileError(f"{self.path}: {error.strerror}") from None

    def remove(self) -> None:
        """Remove it, if it is still ours."""
        with contextlib.suppress(OSError):
            if _is_at_path(self.path, self._fd):
                os.unlink(self.path)
        os.close(self._fd)


def detach() -> Callable[[], None]:
    """Become a daemon: go on in a child without terminal, working directory and open files.

    The parent lives until the child calls what this returns, and ends with 0; or until the child
    has died, and ends with 1.
    """
    told, tell = os.pipe()
    if os.fork():
        # From here on signals are for the child: ours would undo what it is about to live with.
        signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, signal.SIGHUP})
        os.close(tell)
        os._exit(0 if os.read(told, 1) else 1)
    os.close(told)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
    for fd in _inherited:  # or its lock would be held, and its pipe open, for as long as we live
        with contextlib.suppress(OSError):
            os.close(fd)

    def ready() -> None:
        os.write(tell, b".")
        os.close(tell)

    return ready
