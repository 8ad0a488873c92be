"""Running one command: words and a limit in, its exit status and what it said out.

FreeBSD's network commands exit 0 when they failed (`ifconfig IF tunnel`), complain on standard
output (`route`), or succeed whatever happened (`rtsol`).  So a command is believed only when it
exits 0 and writes nothing to standard error (`Commands`); dtcp.system sees whether it did what it
should.

Commands are lists of words, never a shell's string; they get an environment of ours and a time
limit.  The client runs each through one sh.Command (`run`).  The server has a runner of its own,
dtcp.server.shell, which starts its sh(1) here: nothing else imports `sh`.

What was tried with `sh` 2.2.0 to 2.4.0, and decides how it is called here: of its own ways to wait
with a limit `_timeout` costs 100 ms a command, wait(timeout) 15 ms, and `_done` is sometimes never
called; what a command says it keeps without a bound, twice.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from dtcp import lean
from dtcp.errors import CommandFailed, Error, NotRun

# Bytes that a command may say, on each of its two outputs.  Ten thousand interfaces are 6 MB of
# ifconfig(8), every route of the IPv6 internet 25 MB of netstat(1).
MOST = 64 << 20

LOOK = 0.2  # seconds between two looks at the limit, which may have moved

LIMIT = 5.0  # seconds that a command may take
HURRY = 9.0  # seconds for all that is left to be run once we were told to stop
LEAST = 0.1  # of them for each command, so that every undo is tried

# Where the commands are; behind the PATH we were started with, which may be none at all.
_PATH = "/sbin:/bin:/usr/sbin:/usr/bin"


class NoOutput(Error):
    """A command could not be run, or had to be ended; the text says why."""


class Output(NamedTuple):
    status: int
    out: str
    err: str


class Runner(Protocol):
    """Runs one command.

    The first word is a path.  `left` tells how many seconds the command still has, and may change
    its mind.  `input` is what it reads, `environment` what it gets besides ours.  A command that
    takes longer, or says more than MOST, is killed with all that it has started.  Raises NoOutput.
    """

    def __call__(
        self,
        words: tuple[str, ...],
        left: Callable[[], float],
        *,
        input: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Output: ...


def path() -> str:
    """The PATH of commands."""
    own = os.environ.get("PATH")
    return f"{own}:{_PATH}" if own else _PATH


def usual_environment() -> dict[str, str]:
    """The environment of commands."""
    return {"PATH": path(), "LC_ALL": "C"}


def which(name: str) -> str | None:
    """Where that command is, as execvp(3) would find it."""
    # shutil.which brings the whole of shutil along, archives and all.
    for directory in [""] if "/" in name else path().split(":"):
        file = os.path.join(directory, name)
        if os.path.isfile(file) and os.access(file, os.X_OK):
            return file
    return None


class Commands:
    """Runs commands, one after the other, each within its limit, and all within that of `hurry`.

    `log` gets each command as a person would type it, before `runner` runs it.
    """

    def __init__(self, log: Callable[[str], None], runner: Runner) -> None:
        self.log = log
        self._runner = runner
        self.deadline = math.inf  # when everything must be over, by the monotonic clock
        self.ahead = 1  # commands that are to be run before it

    def hurry(self, ahead: int) -> None:
        """We are to stop: the commands ahead, the one that runs included, get HURRY s in all."""
        if self.deadline == math.inf:
            self.deadline = time.monotonic() + HURRY
            self.ahead = ahead

    def run(self, words: tuple[str, ...], *, limit: float | None = None, input: str = "") -> str:
        """Run one command; its standard output.  Raises CommandFailed.

        `limit` in seconds, LIMIT when None; `input` is what it reads.
        """
        output = self._output(words, LIMIT if limit is None else limit, input, {})
        if output.status == 0 and not output.err:
            return output.out
        # Standard error says why; where it is empty (route(8) of 13.2), standard output does.
        lines = (output.err or output.out).strip().splitlines()
        reason = lines[0].removeprefix(f"{words[0]}: ") if lines else f"exit status {output.status}"
        raise CommandFailed(words, reason)

    def hook(self, words: tuple[str, ...], environment: dict[str, str], limit: float) -> None:
        """Run the administrator's script; it may say what it likes.  Raises CommandFailed."""
        output = self._output(words, limit, "", environment)
        if output.status:
            raise CommandFailed(words, f"exit status {output.status}")

    def _output(
        self, words: tuple[str, ...], limit: float, input: str, environment: dict[str, str]
    ) -> Output:
        self.log(shlex.join(words))
        program = which(words[0])
        if program is None:
            raise NotRun(words, f"no such command in {path()}")
        begun = time.monotonic()

        def left() -> float:
            # `hurry` may come while the command runs.
            share = max(LEAST, (self.deadline - begun) / max(1, self.ahead))
            return begun + min(limit, share) - time.monotonic()

        try:
            return self._runner((program, *words[1:]), left, input=input, environment=environment)
        except NoOutput as why:
            raise NotRun(words, str(why)) from None
        finally:
            self.ahead -= 1


def start(words: tuple[str, ...], environment: Mapping[str, str], **options: Any) -> Any:
    """Start a command by sh.Command; its sh.RunningCommand.  Raises NoOutput."""
    try:
        sh = lean.load()
    except ImportError as error:
        raise NoOutput(f"cannot be run: {error}") from None
    try:
        return sh.Command(words[0])(
            *words[1:],
            _bg=True,
            _bg_exc=False,
            _return_cmd=True,
            # Of its own: so the terminal's ^C does not reach it, and all of it can be killed.
            _new_session=True,
            _close_fds=False,  # would want /dev/fd; Python's are closed on exec anyway
            _tty_in=False,
            _tty_out=False,
            _env=dict(environment),
            **options,
        )
    except (sh.ForkException, sh.CommandNotFound, OSError, RuntimeError) as error:
        raise NoOutput(f"cannot be run: {error}") from None


def kill(command: Any) -> None:
    """Kill a command, and whatever it has started in its process group."""
    # By its own number: `sh` would ask for the group of a process that may have been waited for.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(command.pid, signal.SIGKILL)


def text(output: bytes | bytearray) -> str:
    """What a command has said."""
    return output.decode("utf-8", "replace")


def too_long(begun: float) -> NoOutput:
    """It did not end, and has been running since then."""
    return NoOutput(f"did not end in {time.monotonic() - begun:.1f} s")


def too_much() -> NoOutput:
    """It said more than it may."""
    return NoOutput(f"says more than {MOST >> 20} MiB")


class _Said:
    """Takes what a command says on one of its outputs, in place of what `sh` would keep."""

    def __init__(self, over: threading.Event) -> None:
        self.data = bytearray()
        self.too_much = False
        self._over = over

    def write(self, chunk: bytes) -> None:
        if self.too_much or len(self.data) + len(chunk) > MOST:
            self.too_much = True
            self._over.set()
        else:
            self.data += chunk


def run(
    words: tuple[str, ...],
    left: Callable[[], float],
    *,
    input: str = "",
    environment: Mapping[str, str] | None = None,
) -> Output:
    """Run one command with one sh.Command: a Runner."""
    over = threading.Event()  # it has ended, or has said too much
    out, err = _Said(over), _Said(over)

    def wait() -> None:
        try:
            command.wait()
        except lean.load().ErrorReturnCode:
            pass  # the status says it
        finally:
            over.set()

    with contextlib.ExitStack() as stack:
        try:
            nothing = stack.enter_context(open(os.devnull, "rb"))
        except OSError as error:  # no more descriptors for now
            raise NoOutput(f"cannot be run: {error}") from None
        command = start(
            words,
            {**usual_environment(), **(environment or {})},
            _in=input or nothing,
            _out=out,
            _err=err,
            _out_bufsize=65536,  # otherwise sh goes through what is said line by line
            _err_bufsize=65536,
            _no_pipe=True,
        )
    begun = time.monotonic()
    try:
        try:
            threading.Thread(target=wait, daemon=True).start()
        except RuntimeError as error:  # no more threads for now
            raise NoOutput(f"cannot be run: {error}") from None
        while not over.wait(min(LOOK, max(0.0, left()))):
            if left() <= 0:
                raise too_long(begun)
        if out.too_much or err.too_much:
            raise too_much()
    except BaseException:  # a signal's handler may take us out of the wait
        kill(command)
        raise
    return Output(command.exit_code, text(out.data), text(err.data))
