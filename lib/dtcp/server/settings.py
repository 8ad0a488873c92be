"""The server's configuration file, dtcps.conf(5): lines `key = value`, every one of them checked.

A file is taken whole or not at all; an error names its line.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Network
from typing import Any, NamedTuple

from dtcp import plan, wire
from dtcp.cli import Invalid, in_range, ipv4
from dtcp.errors import Error
from dtcp.server import limits, pools
from dtcp.server.pools import Pool

PATH = "/usr/local/etc/dtcps.conf"
LARGEST = 1 << 20  # bytes


class SettingsError(Error):
    """The file cannot be read, or a line of it is wrong."""


class Settings(NamedTuple):
    """What the file says, or does not say; times in seconds."""

    prefix: tuple[Pool, ...] = ()  # pools of pairs of addresses
    delegate: tuple[Pool, ...] = ()  # pools of prefixes
    unreachable: tuple[IPv6Network, ...] = ()  # beside the pools
    listen: IPv4Address = IPv4Address(0)
    store: str = "/var/db/dtcps/dtcps.db"
    mtu: int = plan.MTU_LEAST
    connections: int = 16384
    connections_per_address: int = 16
    adopt_time: int = 60
    penalty: int = 1
    metrics: tuple[IPv4Address, int] | None = None
    tls_certificate: str = ""  # paths, both or neither
    tls_key: str = ""
    tls_required: bool = False


def _path(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise Invalid(f"{text!a} is not an absolute path")
    return text


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise Invalid(f"{text!a} is neither yes nor no")
    return text == "yes"


def _loopback(text: str) -> tuple[IPv4Address, int]:
    host, colon, port = text.partition(":")
    address = ipv4(host)
    if not colon or not address.is_loopback:
        raise Invalid(f"{text!a} is not: loopback-address:port")
    return address, in_range(1, 65535)(port)


_KEYS: dict[str, Callable[[str], Any]] = {
    "prefix": pools.pairs,
    "delegate": pools.prefixes,
    "unreachable": pools.delegable,
    "listen": ipv4,
    "store": _path,
    "mtu": in_range(plan.MTU_LEAST, plan.MTU_MOST),
    "connections": in_range(1, 1000000),
    "connections-per-address": in_range(1, 1000000),
    "adopt-time": in_range(0, 3600),
    "penalty": in_range(0, 3600),
    "metrics": _loopback,
    "tls-certificate": _path,
    "tls-key": _path,
    "tls-required": _yes_or_no,
}
# Keys of earlier versions, and what holds in their place.
_FIXED: dict[str, float] = {
    "idle-time": wire.IDLE_TIME,
    "line-length": wire.LINE_LIMIT,
    "log-lines": limits.LINES,
    "login-time": wire.AUTH_TIME,
    "logins-per-connection": wire.LOGIN_FAILURES,
    "penalty-most": limits.LONGEST_PENALTY,
}
_POOLS = ("prefix", "delegate")
_SEVERAL = (*_POOLS, "unreachable")  # these may stand there more than once


def parse(text: str, path: str, given: Pool | None = None) -> tuple[Settings, list[str]]:
    """The settings in the text of a file, and remarks on it.  Raises SettingsError.

    `given` is the pool on the command line, which comes before those of the file.
    """
    values: dict[str, Any] = {} if given is None else {"prefix": (given,)}
    remarks: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        where = f"{path}:{number}"
        if not (key and equals and value):
            raise SettingsError(f"{where}: not: key = value")
        if key in _FIXED:
            remarks.append(f"{where}: {key} is now fixed at {_FIXED[key]:.0f}; remove this line")
            continue
        if key not in _KEYS:
            raise SettingsError(f"{where}: no such key: {key!a}")
        name = key.replace("-", "_")
        if name in values and key not in _SEVERAL:
            raise SettingsError(f"{where}: {key} is given twice")
        try:
            found = _KEYS[key](value)
            if key in _SEVERAL:
                _check_overlap(found, values, _POOLS if key in _POOLS else (key,))
                found = (*values.get(name, ()), found)
        except (Invalid, pools.PoolError) as error:
            raise SettingsError(f"{where}: {error}") from None
        values[name] = found
    settings = Settings(**values)
    _check_tls(settings, path)
    return settings, remarks


def _check_tls(settings: Settings, path: str) -> None:
    """See that what belongs together is there.  Raises SettingsError."""
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise SettingsError(f"{path}: tls-certificate and tls-key go together")
    if settings.tls_required and not settings.tls_certificate:
        raise SettingsError(f"{path}: tls-required goes with tls-certificate and tls-key")


def _check_overlap(one: Any, values: dict[str, Any], kinds: tuple[str, ...]) -> None:
    """See that a pool or prefix does not overlap others of these kinds.  Raises Invalid."""
    network = one.prefix if isinstance(one, Pool) else one
    for other in (each for kind in kinds for each in values.get(kind, ())):
        there = other.prefix if isinstance(other, Pool) else other
        if network.overlaps(there):
            raise Invalid(f"{network} overlaps {there}")


def read(path: str, *, needed: bool, given: Pool | None = None) -> tuple[Settings, list[str]]:
    """The same of a file, which need not exist unless it is `needed`.  Raises SettingsError."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            text = file.read(LARGEST)
    except FileNotFoundError:
        if needed:
            raise SettingsError(f"{path}: no such file") from None
        text = ""
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    return parse(text, path, given)
