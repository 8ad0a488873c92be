"""The model between two commands: /run/freebsd/state.json, one command at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .model import Address, Host, Interface, Route

HERE = Path("/run/freebsd")

_held: IO[str] | None = None


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Commands follow each other. Who is not root may read, and needs no lock for that."""
    global _held
    if os.geteuid():
        yield
        return
    HERE.mkdir(exist_ok=True)
    with open(HERE / "lock", "w") as _held:
        fcntl.flock(_held, fcntl.LOCK_EX)
        yield


def unlock() -> None:
    """For commands that have done their part and now wait, or stay as daemons."""
    if _held:
        _held.close()


def word(name: str, otherwise: str) -> str:
    """What somebody wrote into one of the small files."""
    try:
        return (HERE / name).read_text().strip() or otherwise
    except FileNotFoundError:
        return otherwise


def load() -> Host:
    host = Host(word("release", "15.1"), word("jail", ""), word("lacks", "").split())
    try:
        kept = json.loads((HERE / "state.json").read_text())
    except FileNotFoundError:
        # As if hashed from the host's name and uuid.
        host.hostid = word("hostid", os.urandom(8).hex(":", 2))
        return host
    host.hostid, host.sysctl = kept["hostid"], kept["sysctl"]
    host.routes = [Route(**r) for r in kept["routes"]]
    for name, values in kept["interfaces"].items():
        values["addresses"] = [Address(**a) for a in values["addresses"]]
        host.interfaces[name] = Interface(**values)
    return host


def version() -> tuple[int, int]:
    """Another one after each command that changed something."""
    try:
        about = (HERE / "state.json").stat()
    except FileNotFoundError:
        return 0, 0
    return about.st_ino, about.st_mtime_ns


def save(host: Host) -> None:
    """What Linux tells us each time is left out: what is undone leaves no trace."""
    for interface in host.interfaces.values():
        interface.addresses = [a for a in interface.addresses if not a.lifetimes]
        interface.carrier = True
        for address in interface.addresses:
            address.state = ""
    host.routes = [r for r in host.routes if not r.learned]
    new = HERE / "state.json.new"
    new.write_text(json.dumps(vars(host), default=vars, indent=1))
    new.replace(HERE / "state.json")


def note_refusal(text: str) -> None:
    with open(HERE / "refused", "a") as file:
        file.write(text)
