"""Things that go wrong on purpose with a command.

/run/freebsd/faults is a JSON list of rules such as::

    {"command": "ifconfig", "match": ["inet6", "alias"], "nth": 1, "do": "exit1"}

``match`` are words which all must be among the arguments, and without ``command`` any command
counts that ends by itself; the ``nth`` such command (1 if not given) goes wrong, once. What it
does:

    exit1           fails with a message
    error-exit0     prints the message but exits 0
    garbage         exits 0 having printed nonsense
    hang            never ends
    late            does what it was to do, and then fails with a message
    kill            kills whoever called it (by ``pid_file``, else dtcpc's), and fails
    kill-first      the same, and then does what it was to do
    kill-late       does what it was to do, and then kills who called it

Of these only the last three and "late" do what the command was to do, or may.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from . import as_json
from .process import SIGKILL

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FILE = "/run/freebsd/faults"
PID_FILE = "/var/run/dtcpc.pid"
MESSAGE = "something went wrong, as the lab was told"


def strike(command: str, arguments: list[str], work: Callable[[], int]) -> int:
    """The exit status of a command whose work is ``work``, if nothing is to go wrong with it."""
    rule = due(command, arguments)
    return go_wrong(rule["do"], command, work, rule.get("pid_file", PID_FILE)) if rule else work()


def due(command: str, arguments: list[str]) -> dict[str, Any] | None:
    """The rule by which this command is to go wrong."""
    try:
        descriptor = os.open(FILE, os.O_RDWR)
    except (FileNotFoundError, PermissionError):
        return None
    watches = arguments[-1:] == ["monitor"]
    with os.fdopen(descriptor, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rules = as_json.loads(file.read())
        fit = [
            rule
            for rule in rules
            if rule.get("command", "" if watches else command) == command
            and set(rule.get("match", [])) <= set(arguments)
        ]
        for rule in fit:
            # The count is kept in the rule itself: 0 is now, below that is over.
            rule["nth"] = rule.get("nth", 1) - 1
        file.seek(0)
        file.truncate()
        file.write(as_json.dumps(rules))
    return next((rule for rule in fit if rule["nth"] == 0), None)


def go_wrong(what: str, command: str, work: Callable[[], int], pid_file: str = PID_FILE) -> int:
    """The exit status of a command with which this goes wrong."""
    if what in ("kill", "kill-first"):
        _kill(pid_file)
    if what == "hang":
        while True:
            time.sleep(3600)
    if what == "garbage":
        sys.stdout.buffer.write(b"\x00\xff\xfe not what you expect\n")
        return 0
    itself = os.getpid()
    status = work() if what in ("late", "kill-first", "kill-late") else 1
    if os.getpid() != itself:
        return status  # a daemon, at the end of its life
    if what == "kill-late":
        _kill(pid_file)
    if what.startswith("kill"):
        return status
    print(f"{command}: {MESSAGE}", file=sys.stderr)
    return 0 if what == "error-exit0" else 1


def _kill(pid_file: str) -> None:
    with open(pid_file) as file:
        os.kill(int(file.read()), SIGKILL)
