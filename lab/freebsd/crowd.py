"""Commands that look at everything take their time, as on a real one with very many interfaces.

/run/freebsd/crowd has the number of interfaces that there are to be.  The time grows with its
square, as it was seen on FreeBSD 15.1; what looks at one interface or route takes no longer, and
neither do the names of a group (`ifconfig -g`).
"""

from __future__ import annotations

import time

from . import store

# Seconds with 800 gifs.
AT_800 = {"ifconfig": 0.5, "netstat -i": 2.0, "netstat -r": 1.0}


def wait(command: str, arguments: list[str]) -> None:
    """Take as long as this command would."""
    count, look = int(store.word("crowd", "0")), _look(command, arguments)
    if count and look:
        time.sleep(takes(look, count))


def takes(look: str, count: int) -> float:
    """What a look at everything takes where there are so many interfaces."""
    return AT_800[look] * (count / 800) ** 2


def _look(command: str, arguments: list[str]) -> str:
    """Which look at everything this is, if it is one."""
    options = "".join(each[1:] for each in arguments if each.startswith("-"))
    if command == "netstat":
        return "netstat -r" if "r" in options else "netstat -i" if "I" not in options else ""
    return command if command == "ifconfig" and arguments in ([], ["-a"]) else ""
