"""A sh(1) that runs one command after the other: for the server, which has many to run.

Starting a command through `sh` means a fork(2) of all of Python and several threads, which takes
longer than most commands do.  Here that is done once, and again after a command had to be killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Mapping
from typing import Any

from dtcp import run
from dtcp.run import Output

# Runs what it is told on its input: how many words, then the words, one a line.  It never parses
# them, and this program never changes.  $1 marks the end of what a command says.
_PROGRAM = (
    'while read -r count; do set -- "$1"; while [ "$count" -gt 0 ]; do'
    ' IFS= read -r word; set -- "$@" "$word"; count=$((count - 1)); done;'
    ' end=$1; shift; "$@" </dev/null;'
    ' printf "\\n%s %d\\n" "$end" $?; printf "\\n%s\\n" "$end" >&2; set -- "$end"; done'
)


class Shell:
    """One sh(1), started when the first command is due.  For one thread at a time."""

    def __init__(self) -> None:
        self._process: Any = None
        self._end = b""
        self._in = self._out = self._err = -1

    def run(
        self,
        words: tuple[str, ...],
        left: Callable[[], float],
        *,
        input: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Output:
        """Run one command in it: a run.Runner."""
        if input or environment or any("\n" in word for word in words):
            # Lines of words cannot say that.
            return run.run(words, left, input=input, environment=environment)
        told = "\n".join((str(len(words)), *words, "")).encode()
        try:
            try:
                return self._run(told, left)
            except BrokenPipeError:  # somebody has killed it before it had read all
                self.close()
                return self._run(told, left)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise run.NoOutput(f"cannot be run: {error}") from None
            raise

    def _run(self, told: bytes, left: Callable[[], float]) -> Output:
        """Raises OSError, NoOutput."""
        if self._process is None:
            self.start()
        begun = time.monotonic()
        said = {self._out: bytearray(), self._err: bytearray()}
        waiting = select.poll()
        waiting.register(self._in, select.POLLOUT)
        for pipe in said:
            waiting.register(pipe, select.POLLIN)
        while not self._is_over(*said.values()):
            if (seconds := left()) <= 0:
                raise run.too_long(begun)
            for pipe, _ in waiting.poll(min(run.LOOK, seconds) * 1000):
                if pipe == self._in:
                    told = told[os.write(pipe, told) :]
                    if not told:
                        waiting.unregister(pipe)
                    continue
                data = os.read(pipe, 65536)
                if not data:
                    raise BrokenPipeError if told else OSError("the shell was killed")
                said[pipe] += data
                if len(said[pipe]) > run.MOST:
                    raise run.too_much()
        out, err = said.values()
        at = out.rindex(self._end)
        status = int(out[at + len(self._end) :])
        return Output(status, run.text(out[:at]), run.text(err[: -len(self._end) - 1]))

    def _is_over(self, out: bytearray, err: bytearray) -> bool:
        at = out.rfind(self._end, -80)
        return at >= 0 and out.endswith(b"\n") and err.endswith(self._end + b"\n")

    def start(self) -> None:
        """Have it ready.  Raises OSError, NoOutput."""
        token = os.urandom(16).hex()
        with contextlib.ExitStack() as ours:
            pipes = []
            for _ in range(3):
                pipes.append(os.pipe())
                for end in pipes[-1]:
                    ours.callback(os.close, end)
            (stdin, tell), (hear, stdout), (hear_errors, stderr) = pipes
            os.set_blocking(tell, False)
            self._process = run.start(
                ("/bin/sh", "-c", _PROGRAM, "dtcp", token),
                run.usual_environment(),
                _in=stdin,
                _out=stdout,
                _err=stderr,
            )
            ours.pop_all()
        for end in (stdin, stdout, stderr):
            os.close(end)
        self._in, self._out, self._err = tell, hear, hear_errors
        self._end = f"\n{token}".encode()

    def close(self) -> None:
        """End it, and whatever it runs; the next command has a new one."""
        if self._process is None:
            return
        run.kill(self._process)
        for end in (self._in, self._out, self._err):
            os.close(end)
        self._process = None
