"""The model between two commands: /run/freebsd/state.json, one command at a time."""

from __future__ import annotations

import fcntl
import os

from . import as_json
from .model import Address, Host, Interface, Route

HERE = "/run/freebsd"

_lock = -1  # its descriptor, while we hold it


class Lock:
    """Commands follow each other. Who is not root may read, and needs no lock for that."""

    def __enter__(self) -> None:
        global _lock
        if os.geteuid() == 0:
            os.makedirs(HERE, exist_ok=True)
            _lock = os.open(f"{HERE}/lock", os.O_WRONLY | os.O_CREAT, 0o644)
            fcntl.flock(_lock, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        unlock()


def unlock() -> None:
    """For commands that have done their part and now wait, or stay as daemons."""
    global _lock
    if _lock != -1:
        os.close(_lock)
        _lock = -1


def read(name: str) -> str:
    """The text of one of our files.

    Raises:
        FileNotFoundError: it is not there.
    """
    with open(f"{HERE}/{name}") as file:
        return file.read()


def write(name: str, text: str) -> None:
    """Replace the text of one of our files."""
    with open(f"{HERE}/{name}.new", "w") as file:
        file.write(text)
    os.replace(f"{HERE}/{name}.new", f"{HERE}/{name}")


def word(name: str, otherwise: str) -> str:
    """What somebody wrote into one of the small files."""
    try:
        return read(name).strip() or otherwise
    except FileNotFoundError:
        return otherwise


def load() -> Host:
    host = Host(word("release", "15.1"), word("jail", ""), word("lacks", "").split())
    try:
        kept = as_json.loads(read("state.json"))
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
        about = os.stat(f"{HERE}/state.json")
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
    write("state.json", as_json.dumps(vars(host)))


def note_refusal(text: str) -> None:
    with open(f"{HERE}/refused", "a") as file:
        file.write(text)
