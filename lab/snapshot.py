"""The whole state of a host, in a form in which differences are easy to read."""

import difflib
import re
import subprocess
from typing import Protocol

from lab.machine import machine

Snapshot = dict[str, list[str]]
"""What was looked at -> the lines seen."""

# The headings are the keys of the snapshot; the commands' output lines are its lines.
_FREEBSD_LOOKS = {
    "ifconfig -a": "ifconfig -a",
    "netstat -rn": "netstat -rn",
}
# Numbers of interfaces, ip's own line breaks, what changes as time goes by, and what Linux gives a
# link when that is up for the first time.
_VOLATILE = re.compile(
    r"^\d+: +(?=[a-z])|\\ +(valid_lft \S+ preferred_lft \S+)?| tentative| expires \d+sec"
    r"| pltime \d+ vltime \d+| qdisc \S+"
)


class _Run(Protocol):
    def __call__(self, words: list[str], *, check: bool) -> subprocess.CompletedProcess[str]: ...


def snapshot(run: _Run, *, freebsd: bool) -> Snapshot:
    """Look at a host.

    Args:
        run: runs a command in it.
        freebsd: whether it has FreeBSD's commands, whose view is then included.
    """
    looks = {**machine.LOOKS, **(_FREEBSD_LOOKS if freebsd else {})}
    # One shell for all of them: entering a host takes time.
    script = "\n".join(f"( {command}\n) 2>&1; printf '\\0'" for command in looks.values())
    answers = run(["sh", "-c", script], check=False).stdout.split("\0")
    return {
        name: _in_order(name, [_VOLATILE.sub(" ", line).rstrip() for line in text.splitlines()])
        for name, text in zip(looks, answers, strict=False)
    }


def _in_order(name: str, lines: list[str]) -> list[str]:
    """FreeBSD's lists are compared as a whole; in the others, order does not matter."""
    return lines if name in _FREEBSD_LOOKS else sorted(line.strip() for line in lines)


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """What changed between two snapshots, one readable line each; empty: nothing."""
    said = {"- ": "gone", "+ ": "new"}
    return [
        f"{name}: {said[line[:2]]}: {line[2:].strip()}"
        for name in before | after
        for line in difflib.ndiff(before.get(name, []), after.get(name, []))
        if line[:2] in said
    ]
