"""How the programs run a command: the client through sh (run), the server in a sh(1) (shell)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dtcp import run
from dtcp.server.shell import Shell

pytestmark = [
    # It is what `sh` does, in a process that has threads by then.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

ENOUGH = 20.0  # seconds for what takes far less
SHORT = 0.5


@pytest.fixture(params=["run", "shell"])
def runner(request: pytest.FixtureRequest) -> Iterator[run.Runner]:
    if request.param == "run":
        yield run.run
        return
    with contextlib.closing(Shell()) as shell:
        yield shell.run


def seconds(limit: float) -> Callable[[], float]:
    end = time.monotonic() + limit
    return lambda: end - time.monotonic()


class Held:
    """A pipe that a command opens for writing by `words`."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.words = f"exec 9>{path}; echo >&9"

    def wait_until_free(self) -> None:
        """Wait until all that had it open have ended."""
        limit = seconds(ENOUGH)
        while select.select([self._reader], [], [], max(0.0, limit()))[0]:
            if not os.read(self._reader, 100):
                return
        raise AssertionError("somebody still has it open")

    def close(self) -> None:
        os.close(self._reader)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    with contextlib.closing(Held(tmp_path / "fifo")) as made:
        yield made


def script(text: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", text)


def descriptors() -> list[int]:
    """Those that are open in this process."""
    found = []
    for number in range(256):
        with contextlib.suppress(OSError):
            os.fstat(number)
            found.append(number)
    return found


def test_status_output_and_errors(runner: run.Runner) -> None:
    for status in (0, 3, 0):
        got = runner(script(f"echo one; echo two >&2; exit {status}"), seconds(ENOUGH))
        assert got == (status, "one\n", "two\n")


def test_words_arrive_as_they_are(runner: run.Runner) -> None:
    words = ("$(echo no)", "a b", "'", '"', "\\", "", "*", ";", "end\n", "é")
    got = runner(("/usr/bin/printf", "<%s>", *words), seconds(ENOUGH))
    assert got.out == "".join(f"<{word}>" for word in words)


def test_long_words_and_long_output(runner: run.Runner) -> None:
    """More than a pipe takes at once: the input is written, and the output read, in parts."""
    words = ("x" * 100_000, "y" * 100_000)
    assert runner(("/bin/echo", *words), seconds(ENOUGH)).out == " ".join(words) + "\n"
    got = runner(script("head -c 9000000 /dev/zero; echo done >&2"), seconds(ENOUGH))
    assert (len(got.out), got.err) == (9_000_000, "done\n")


def test_input_and_environment(runner: run.Runner) -> None:
    assert runner(("/bin/cat",), seconds(ENOUGH), input="a\nb\n").out == "a\nb\n"
    assert runner(("/bin/cat",), seconds(ENOUGH)).out == ""
    show = script('echo "$LC_ALL $EXTRA $PATH"')
    given = runner(show, seconds(ENOUGH), environment={"EXTRA": "more"})
    assert given.out == f"C more {run.path()}\n"
    assert runner(show, seconds(ENOUGH)).out == f"C  {run.path()}\n"


def test_what_does_not_exist(runner: run.Runner, tmp_path: Path) -> None:
    """`sh` refuses it, sh(1) has an exit status for it: both are failures."""
    with contextlib.suppress(run.NoOutput):
        assert runner((str(tmp_path / "none"),), seconds(ENOUGH)).status == 127
    assert runner(script("echo still here"), seconds(ENOUGH)).out == "still here\n"


@pytest.mark.hazard(67)
@pytest.mark.parametrize("redirection", ["", ">&2"])
def test_one_that_never_stops_writing(runner: run.Runner, redirection: str, held: Held) -> None:
    """Slowly and for ever, and deaf to TERM: ended at its limit, with all that it has started."""
    writes = f"trap '' TERM; while :; do echo more {redirection}; sleep 0.01; done"
    with pytest.raises(run.NoOutput, match=r"^did not end in [0-9]\.[0-9] s$"):
        runner(script(f"{held.words}; ({writes}) & {writes}"), seconds(SHORT))
    held.wait_until_free()
    assert runner(script("echo still here"), seconds(ENOUGH)).out == "still here\n"


@pytest.mark.hazard(67)
@pytest.mark.parametrize("redirection", ["", ">&2"])
def test_one_that_floods_us(
    runner: run.Runner, redirection: str, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended when it has said more than it may; what it has said is not kept."""
    monkeypatch.setattr(run, "MOST", 1 << 20)
    runner(script("true"), seconds(ENOUGH))
    tracemalloc.start()
    try:
        with pytest.raises(run.NoOutput, match=r"^says more than 1 MiB$"):
            runner(script(f"{held.words}; exec yes {redirection}"), seconds(ENOUGH))
        held.wait_until_free()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_limit_may_move(runner: run.Runner) -> None:
    """As it does when we are told to end while a command runs."""
    looks = iter([60.0, 60.0, 60.0])
    begun = time.monotonic()
    with pytest.raises(run.NoOutput, match=r"^did not end in"):
        runner(script("exec sleep 60"), lambda: next(looks, 0.0))
    assert time.monotonic() < begun + ENOUGH


def test_a_signals_handler_ends_it(runner: run.Runner, held: Held) -> None:
    """What the handler raises comes out, and the command has ended."""
    looks = iter([1.0, 1.0, 1.0])

    def left() -> float:
        if (seconds := next(looks, 0.0)) == 0.0:
            raise KeyboardInterrupt
        return seconds

    with pytest.raises(KeyboardInterrupt):
        runner(script(f"{held.words}; exec sleep 60"), left)
    held.wait_until_free()
    assert runner(script("echo still here"), seconds(ENOUGH)).out == "still here\n"


# --- the sh(1) --------------------------------------------------------------------------------


@pytest.fixture
def shell() -> Iterator[Shell]:
    with contextlib.closing(Shell()) as own:
        yield own


def test_a_shell_that_somebody_killed_is_started_anew(shell: Shell) -> None:
    pids = [shell.run(script("echo $PPID"), seconds(ENOUGH)).out for _ in range(2)]
    assert pids[0] == pids[1]
    os.kill(int(pids[0]), signal.SIGKILL)
    for _ in range(100):  # what was told it just before that may be lost, which is said
        with contextlib.suppress(run.NoOutput):
            assert shell.run(script("echo $PPID"), seconds(ENOUGH)).out != pids[0]
            break
    with pytest.raises(run.NoOutput, match=r"^cannot be run: the shell was killed$"):
        shell.run(script("kill -9 $PPID"), seconds(ENOUGH))
    assert shell.run(script("echo here"), seconds(ENOUGH)).out == "here\n"


def test_closing_leaves_no_descriptor(shell: Shell) -> None:
    before = descriptors()
    for _ in range(3):
        shell.run(script("true"), seconds(ENOUGH))
        assert len(descriptors()) == len(before) + 3
        shell.close()
        assert descriptors() == before
    shell.close()


@pytest.mark.parametrize("fails", ["first pipe", "third pipe", "sh"])
def test_a_start_that_fails_leaves_no_descriptor(
    shell: Shell, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, pipes = os.pipe, iter(range(3))

    def no_pipe() -> tuple[int, int]:
        if next(pipes) == {"first pipe": 0, "third pipe": 2}.get(fails):
            raise OSError(24, "Too many open files")
        return pipe()

    def no_start(*_: object, **__: object) -> None:
        raise run.NoOutput("cannot be run: no more processes")

    before = descriptors()
    with monkeypatch.context() as patch:
        if fails == "sh":
            patch.setattr(run, "start", no_start)
        else:
            patch.setattr(os, "pipe", no_pipe)
        with pytest.raises(run.NoOutput, match=r"^cannot be run: "):
            shell.run(script("true"), seconds(ENOUGH))
    assert descriptors() == before
    assert shell.run(script("echo here"), seconds(ENOUGH)).out == "here\n"
