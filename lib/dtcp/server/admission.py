"""Who may be connected: those who have not logged in yet, few of them, and those who have.

Where strangers are many, those go whose address has the most of them: whoever has a few dozen
addresses must not keep out who is alone at his own, and needs longer than the others for his login.
"""

from __future__ import annotations

import math
from collections import Counter
from ipaddress import IPv4Address
from typing import Generic, Protocol, TypeVar

STRANGERS, STRANGERS_HERE = 256, 8  # connections without a login, in all and from one address
GRACE = 0.25  # seconds that each has for its login before it makes room


class Connection(Protocol):
    """What is to be known of one."""

    @property
    def address(self) -> IPv4Address:
        """From where it comes."""


C = TypeVar("C", bound=Connection)


class Admission(Generic[C]):
    """All connections: strangers, of which one makes room for the next, and members."""

    def __init__(self) -> None:
        self.most_strangers = STRANGERS
        self.most = self.most_here = 1  # members, in all and from one address
        self._strangers: dict[C, float] = {}  # since when; the oldest first, as below
        self._strangers_here: dict[IPv4Address, dict[C, None]] = {}
        self._members: set[C] = set()
        self._members_here: Counter[IPv4Address] = Counter()

    def __len__(self) -> int:
        return len(self._strangers) + len(self._members)

    def __contains__(self, each: C) -> bool:
        return each in self._strangers or each in self._members

    def all(self) -> list[C]:
        """All of them."""
        return [*self._strangers, *self._members]

    def room_at(self) -> float:
        """When there is room for one more stranger: whoever comes earlier waits in the kernel.

        Else a flood of connections would drive away whoever is about to log in.
        """
        if len(self._strangers) < self.most_strangers:
            return -math.inf
        return self._strangers[self._first_to_go()] + GRACE

    def _first_to_go(self) -> C:
        """The oldest stranger at the addresses that have the most."""
        most = max(map(len, self._strangers_here.values()))
        return next(
            each for each in self._strangers if len(self._strangers_here[each.address]) == most
        )

    def is_crowded(self, address: IPv4Address, now: float) -> bool:
        """Whether one more from this address goes at once: the others there have only just come."""
        here = self._strangers_here.get(address, {})
        return len(here) >= STRANGERS_HERE and now < self._strangers[next(iter(here))] + GRACE

    def in_the_way(self, address: IPv4Address) -> C | None:
        """The stranger who has to go before one more can come from this address."""
        here = self._strangers_here.get(address, {})
        if len(here) >= STRANGERS_HERE:
            return next(iter(here))
        if len(self._strangers) >= self.most_strangers:
            return self._first_to_go()
        return None

    def why_not(self, each: C, before: C | None, others: int) -> str:
        """Why a stranger cannot become a member, or nothing.

        `before` is a connection of the same user, which will go: a user must not be kept out by
        himself.  `others` are what else takes as much as a member.
        """
        count = len(self._members) + others
        if count - (before is not None) >= self.most:
            return f"{count} connections are open"
        here = self._members_here[each.address]
        if here - (before is not None and before.address == each.address) >= self.most_here:
            return f"{here} connections from there are open"
        return ""

    def is_stranger(self, each: C, now: float) -> None:
        """One has come, or its login was good and is refused all the same."""
        self.gone(each)
        self._strangers[each] = now
        self._strangers_here.setdefault(each.address, {})[each] = None

    def is_member(self, each: C) -> None:
        """Its login was good."""
        self.gone(each)
        self._members.add(each)
        self._members_here[each.address] += 1

    def gone(self, each: C) -> None:
        """It is neither any more, if it was."""
        if each in self._strangers:
            del self._strangers[each]
            here = self._strangers_here[each.address]
            del here[each]
            if not here:
                del self._strangers_here[each.address]
        elif each in self._members:
            self._members.discard(each)
            self._members_here[each.address] -= 1
            if not self._members_here[each.address]:
                del self._members_here[each.address]
