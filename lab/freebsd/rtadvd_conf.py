"""rtadvd.conf(5): entries as in termcap(5), one per interface.

    em1:\\
        :mtu#1280:rltime#600:addr="2001:db8:5:3::":prefixlen#64:

What cannot be understood is passed over, as rtadvd(8) does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from .ndp import Prefix

FIELD = re.compile(r'(?:[^:"]|"[^"]*")+')  # colons part fields, but not within quotes
SETTING = re.compile(r'\s*(\w+?)(\d*)(?:#(\d+)|="?([^"]*)"?)?\s*')


@dataclass
class Settings:
    max_interval: int = 600
    lifetime: int = 1800
    mtu: int = 0  # 0: not said
    own_mtu: bool = False  # say that of the interface
    prefixes: list[Prefix] = field(default_factory=list)
    follow: bool = True  # advertise the prefixes which the interface has

    @property
    def min_interval(self) -> int:
        return self.max_interval // 3


def read(path: str, interface: str) -> Settings:
    try:
        text = Path(path).read_text()
    except OSError:
        return Settings()
    for line in text.replace("\\\n", "").splitlines():
        names, *fields = FIELD.findall(line) or [""]
        if interface in names.split("|"):
            return settings(fields)
    return Settings()


def settings(fields: list[str]) -> Settings:
    known: dict[str, str] = {}
    prefixes: dict[str, dict[str, str]] = {}  # by the number after addr and the like
    for text in fields:
        match = SETTING.fullmatch(text)
        if not match:
            continue
        name, number, digits, word = match.groups()
        if name in ("addr", "prefixlen", "vltime", "pltime"):
            prefixes.setdefault(number, {})[name] = digits or word or ""
        else:
            known[name] = digits or word or ""
    made = Settings()
    made.max_interval = int(known.get("maxinterval") or made.max_interval)
    made.lifetime = int(known.get("rltime") or 3 * made.max_interval)
    made.own_mtu = known.get("mtu") == "auto"
    made.mtu = 0 if made.own_mtu else int(known.get("mtu") or 0)
    made.prefixes = [prefix(words) for words in prefixes.values() if "addr" in words]
    made.follow = not made.prefixes and "noifprefix" not in known
    return made


def prefix(words: dict[str, str]) -> Prefix:
    made = Prefix(words["addr"], int(words.get("prefixlen") or 64))
    made.valid = int(words.get("vltime") or made.valid)
    made.preferred = int(words.get("pltime") or made.preferred)
    return made
