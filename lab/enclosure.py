"""Run a command so that nothing it creates outlives it.

An enclosure has an empty directory for temporary files, and hosts can be
created in it. Everything created in it is gone when the run ends. On Linux it
consists of namespaces, so this holds even after ``kill -9`` of any process
involved (``linux``); on FreeBSD the next run clears what a killed one has left
(``jails``).
"""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from lab.machine import machine

OUTSIDE = "the lab runs only in an enclosure: use `make test` or `python -m lab run pytest ...`"

inside = machine.inside


class _Signalled(Exception):
    """A signal asks for the end of the run."""

    def __init__(self, number: int) -> None:
        self.number = number


def run(command: Sequence[str]) -> int:
    """Run ``command`` in an enclosure and wait until nothing is left of it.

    Returns its exit status, 128 + n if it or the run was ended by signal n,
    126 or 127 if it could not be started, 77 if we are not root, 69 if
    this machine does not support hosts.
    """
    if os.geteuid() != 0:
        print("lab: must be root: hosts, interfaces and mounts are made", file=sys.stderr)
        return 77
    # Not everyone who is root has the administrator's directories in PATH.
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin"
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        # What our own caller ignores (nohup, a background job) stays ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)
    try:
        with machine.enclosed(command) as child:
            status = child.wait()
            return status if status >= 0 else 128 - status
    except _Signalled as signalled:
        return 128 + signalled.number
    except OSError as error:
        print(f"lab: {error.filename or command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 69


def _raise(number: int, frame: FrameType | None) -> None:
    for other in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(other, signal.SIG_IGN)
    raise _Signalled(number)
