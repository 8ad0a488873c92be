"""Things that go wrong on purpose, before a command begins.

/run/freebsd/faults is a JSON list of rules such as::

    {"command": "ifconfig", "match": ["inet6", "alias"], "nth": 1, "do": "exit1"}

``match`` are words which all must be among the arguments; the ``nth`` such command (1 if not
given) goes wrong, once. What it does: "exit1" fails with a message, "error-exit0" prints the
message but exits 0, "hang" never ends, "garbage" exits 0 having printed nonsense. None of them
does what the command was to do.
"""

from __future__ import annotations

import fcntl
import json
import signal
import sys
from pathlib import Path

FILE = Path("/run/freebsd/faults")
MESSAGE = "something went wrong, as the lab was told"


def strike(command: str, arguments: list[str]) -> int | None:
    """The exit status of a command that goes wrong, None for all others."""
    try:
        file = FILE.open("r+")
    except (FileNotFoundError, PermissionError):
        return None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rules = json.load(file)
        for rule in rules:
            if rule["command"] == command and set(rule.get("match", [])) <= set(arguments):
                # The count is kept in the rule itself: 0 is now, below that is over.
                rule["nth"] = rule.get("nth", 1) - 1
        file.seek(0)
        file.truncate()
        json.dump(rules, file)
        due = [
            rule["do"]
            for rule in rules
            if rule.get("nth") == 0
            and rule["command"] == command
            and set(rule.get("match", [])) <= set(arguments)
        ]
    if not due:
        return None
    if due[0] == "hang":
        signal.pause()
    if due[0] == "garbage":
        sys.stdout.buffer.write(b"\x00\xff\xfe not what you expect\n")
        return 0
    print(f"{command}: {MESSAGE}", file=sys.stderr)
    return 1 if due[0] == "exit1" else 0
