"""Run a command in namespaces of its own that end with it.

An enclosure has its own processes, network, mounts and host name, an empty
/run and an empty directory for temporary files. Everything made in it is gone
when the run ends, and that includes ``kill -9`` of any process involved:

    supervisor --- setpriv, then unshare --- process 1 (init.py) --- command
                   killed by the kernel      killed by the kernel
                   when the supervisor dies  when unshare dies
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

_INIT = Path(__file__).resolve().with_name("init.py")
_PR_SET_CHILD_SUBREAPER = 36

OUTSIDE = "the lab runs only in an enclosure: use `make test` or `python -m lab run pytest ...`"


class _Signalled(Exception):
    """A signal asks for the end of the run."""

    def __init__(self, number: int) -> None:
        self.number = number


def inside() -> bool:
    """Whether this process runs in an enclosure."""
    words = Path("/proc/1/cmdline").read_bytes().split(b"\0")
    return words[1:3] == [b"-I", b"-S"] and words[3].endswith(b"/lab/init.py")


def run(command: Sequence[str]) -> int:
    """Run ``command`` in an enclosure and wait until nothing is left of it.

    Returns its exit status, 128 + n when it or the run was ended by signal n,
    126 or 127 when it could not be started, 77 when we are not root.
    """
    if os.geteuid() != 0:
        print("lab: must be root: namespaces, interfaces and mounts are made", file=sys.stderr)
        return 77
    # Not everyone who is root has the administrator's directories in PATH.
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin"
    # The first process of the enclosure becomes our child when the one between
    # us is killed, and it can be waited for: it ends last of all in there.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        # What our own caller ignores (nohup, a job in the background) stays so.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)
    lifeline, held = os.pipe()  # `held` is closed by our end, whatever it is
    child = None
    try:
        child = subprocess.Popen(_words(lifeline, command), pass_fds=[lifeline])
        os.close(lifeline)
        status = child.wait()
        return status if status >= 0 else 128 - status
    except _Signalled as signalled:
        return 128 + signalled.number
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


def _raise(number: int, frame: FrameType | None) -> None:
    for other in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(other, signal.SIG_IGN)
    raise _Signalled(number)


def _reap() -> None:
    """Wait for every child, adopted ones included."""
    with suppress(ChildProcessError):
        while True:
            os.wait()
