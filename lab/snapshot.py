"""The whole state of a host, in a form in which a difference reads well."""

import difflib
import re
import subprocess
from typing import Protocol

Snapshot = dict[str, list[str]]
"""What was looked at -> the lines seen."""

# Headings are the keys of the snapshot; the commands' own words are the lines.
_LOOKS = {
    "interfaces": "ip -o link",
    "addresses": "ip -o address",
    "IPv4 routes": "ip -4 route show table all",
    "IPv6 routes": "ip -6 route show table all",
    "IPv4 rules": "ip -4 rule",
    "IPv6 rules": "ip -6 rule",
    "settings": """cd /proc/sys/net && grep . ipv4/ip_forward \
        ipv6/conf/*/forwarding ipv6/conf/*/accept_ra ipv6/conf/*/disable_ipv6""",
    # Type, mode, owner, size and, for files, a check sum of what is in them. What is in
    # /run/freebsd is the machinery behind FreeBSD's commands, whose view is compared itself.
    "files": """find /run /usr/local/etc -path /run/freebsd -prune -o ! -name '*.log' \
            ! -type f -printf '%M %u %p %l\\n'
        find /run /usr/local/etc -path /run/freebsd -prune -o ! -name '*.log' \
            -type f -printf '%M %u %s bytes ' -exec cksum {} ';'""",
}
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
        freebsd: whether it has FreeBSD's commands: then their view is included.
    """
    looks = _LOOKS | _FREEBSD_LOOKS if freebsd else _LOOKS
    # One shell for all of them: entering a host takes time.
    script = "\n".join(f"( {command}\n) 2>&1; printf '\\0'" for command in looks.values())
    answers = run(["sh", "-c", script], check=False).stdout.split("\0")
    return {
        name: _in_order(name, [_VOLATILE.sub(" ", line).rstrip() for line in text.splitlines()])
        for name, text in zip(looks, answers, strict=False)
    }


def _in_order(name: str, lines: list[str]) -> list[str]:
    """FreeBSD's lists are read as a whole; in the others the order means nothing."""
    return lines if name in _FREEBSD_LOOKS else sorted(line.strip() for line in lines)


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """What changed from one snapshot to another, a line for people each; empty: nothing."""
    said = {"- ": "gone", "+ ": "new"}
    return [
        f"{name}: {said[line[:2]]}: {line[2:].strip()}"
        for name in before | after
        for line in difflib.ndiff(before.get(name, []), after.get(name, []))
        if line[:2] in said
    ]
