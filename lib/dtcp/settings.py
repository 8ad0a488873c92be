"""The server's configuration file, dtcps.conf(5): lines `key = value`, every one of them checked.

A file is taken whole or not at all; an error names its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Network
from typing import Any, NamedTuple

from dtcp import plan, pools, wire
from dtcp.pools import Pool

PATH = "/usr/local/etc/dtcps.conf"
LARGEST = 1 << 20  # bytes


class SettingsError(Exception):
    """The file cannot be read, or a line of it is wrong.  Fit for a terminal."""


class _Wrong(ValueError):
    """A value is none; what is right."""


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
    logins_per_connection: int = wire.LOGIN_FAILURES
    line_length: int = wire.LINE_LIMIT
    login_time: int = int(wire.AUTH_TIME)
    idle_time: int = int(wire.IDLE_TIME)
    adopt_time: int = 60
    penalty: int = 1
    penalty_most: int = 300
    log_lines: int = 5
    metrics: tuple[IPv4Address, int] | None = None


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise _Wrong(f"{text!a} is not a number from {least} to {most}")
        return int(text)

    return parse


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise _Wrong(f"{text!a} is no IPv4 address") from None


def _path(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise _Wrong(f"{text!a} is not an absolute path")
    return text


def _loopback(text: str) -> tuple[IPv4Address, int]:
    host, colon, port = text.partition(":")
    address = _address(host)
    if not colon or not address.is_loopback:
        raise _Wrong(f"{text!a} is not: loopback-address:port")
    return address, _number(1, 65535)(port)


_KEYS: dict[str, Callable[[str], Any]] = {
    "prefix": pools.pairs,
    "delegate": pools.prefixes,
    "unreachable": pools.delegable,
    "listen": _address,
    "store": _path,
    "mtu": _number(plan.MTU_LEAST, plan.MTU_MOST),
    "connections": _number(1, 1000000),
    "connections-per-address": _number(1, 1000000),
    "logins-per-connection": _number(1, 100),
    "line-length": _number(128, 65536),
    "login-time": _number(1, 3600),
    "idle-time": _number(90, 86400),  # clients ask once a minute
    "adopt-time": _number(0, 3600),
    "penalty": _number(0, 3600),
    "penalty-most": _number(0, 86400),
    "log-lines": _number(1, 1000),
    "metrics": _loopback,
}
_SEVERAL = ("prefix", "delegate", "unreachable")  # these may stand there more than once


def parse(text: str, path: str) -> Settings:
    """The settings in the text of a file.  Raises SettingsError."""
    values: dict[str, Any] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        where = f"{path}:{number}"
        if not (key and equals and value):
            raise SettingsError(f"{where}: not: key = value")
        if key not in _KEYS:
            raise SettingsError(f"{where}: no such key: {key!a}")
        name = key.replace("-", "_")
        if name in values and key not in _SEVERAL:
            raise SettingsError(f"{where}: {key} is there already")
        try:
            found = _KEYS[key](value)
            if key in _SEVERAL:
                found = _among(values.get(name, ()), found)
        except ValueError as error:
            raise SettingsError(f"{where}: {error}") from None
        values[name] = found
    return Settings(**values)


def _among(others: tuple[Any, ...], one: Any) -> tuple[Any, ...]:
    """One more of a kind, which must not overlap the others."""
    network = one.prefix if isinstance(one, Pool) else one
    for other in others:
        there = other.prefix if isinstance(other, Pool) else other
        if network.overlaps(there):
            raise _Wrong(f"{network} overlaps {there}")
    return (*others, one)


def check(settings: Settings, where: str) -> None:
    """What no line alone can get wrong.  Raises SettingsError."""
    given = [pool.prefix for pool in (*settings.prefix, *settings.delegate)]
    for number, one in enumerate(given):
        for other in given[:number]:
            if one.overlaps(other):
                raise SettingsError(f"{where}: {one} overlaps {other}")


def read(path: str, *, needed: bool) -> Settings:
    """The settings in a file; the defaults, if there is none and it is not `needed`.

    Raises SettingsError.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            text = file.read(LARGEST)
    except FileNotFoundError:
        if needed:
            raise SettingsError(f"{path}: no such file") from None
        return Settings()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    return parse(text, path)
