"""On which interface a tunnel goes: one that is there (-c, -o), or a new one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from dtcp import plan
from dtcp.look import Interface, Look


class Place(NamedTuple):
    """Where a tunnel is to go."""

    name: str = ""  # empty: on a new interface of any name
    is_there: bool = False  # otherwise it is new


class Interfaces:
    """Names and interfaces that are free, as far as we know: whoever uses one looks at it first.

    `wanted` is what -i says: with `no_cloning` (-c) a pattern, else the lowest name; `wanted_udp`
    what -I says.  With `keep` (-o) interfaces are left when their tunnels go.
    """

    def __init__(
        self, wanted: str | None, wanted_udp: str | None, *, no_cloning: bool, keep: bool
    ) -> None:
        self._wanted, self._wanted_udp = wanted, wanted_udp
        self._no_cloning, self._keep = no_cloning, keep
        self.stay = no_cloning or keep  # when their tunnels go
        self._names: set[str] = set()  # which cannot be used for another tunnel
        self._free: dict[str, None] = {}  # those that stay, in their order

    def find(self, look: Look, taken: Iterable[str]) -> None:
        """What there is at the start, but for what is taken.  Raises CommandFailed."""
        self._names = set(taken)
        names = []
        if self._no_cloning:
            wanted = self._wanted or "gif[0-9]+"
            names = [each for each in look.members("gif") if re.fullmatch(wanted, each)]
        elif self._keep:
            names = look.members(plan.GROUP)
        self._free = dict.fromkeys(each for each in names if each not in self._names)

    def take(self, *, udp: bool) -> Place | None:
        """A place for a tunnel; None: there is none left."""
        if not udp and self._free:
            name = next(iter(self._free))
            del self._free[name]
            return Place(name, is_there=True)
        if not udp and self._no_cloning:
            return None
        lowest = self._wanted_udp if udp else self._wanted
        if lowest is None:
            return Place()
        kind = lowest.rstrip("0123456789")
        number = int(lowest[len(kind) :])
        while f"{kind}{number}" in self._names:
            number += 1
        self.taken(f"{kind}{number}")
        return Place(f"{kind}{number}")

    def taken(self, name: str) -> None:
        """A tunnel has this one now."""
        self._names.add(name)

    def give_back(self, place: Place) -> None:
        """Nothing came of it."""
        if place.is_there:
            self.is_free(place.name)
        else:
            self._names.discard(place.name)

    def left(self, name: str, *, borrowed: bool) -> None:
        """The tunnel on that interface has gone."""
        self._names.discard(name)
        if borrowed and name:
            self.is_free(name)

    def is_free(self, name: str) -> None:
        """An interface that stays has no tunnel any more."""
        self._free[name] = None


def as_it_was(name: str, *, keep: bool) -> Interface:
    """A borrowed interface without its tunnel."""
    return Interface(name, groups=(plan.GROUP,) if keep else ())
