"""What keeps one client from doing harm: penalties that grow, and a log that does not.  No I/O.

Memory is bounded: what has not mattered for a while is forgotten, and the tables have an end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

LARGEST = 20000  # entries of a table; the oldest go first
FORGET = 600.0  # seconds without a failure after which all is forgiven


class Penalties:
    """Who has failed must wait, twice as long each time.  Times in seconds."""

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most
        self._failed: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failed)

    def fail(self, who: Hashable, now: float) -> float:
        """One more failure; how long to wait now."""
        count, last = self._failed.pop(who, (0, now))
        if now - last > FORGET + self._wait(count):
            count = 0
        self._failed[who] = (count + 1, now)
        self._tidy(now)
        return self._wait(count + 1)

    def left(self, who: Hashable, now: float) -> float:
        """Seconds that are still to be waited, or 0."""
        count, last = self._failed.get(who, (0, now))
        return max(0.0, last + self._wait(count) - now)

    def forgive(self, who: Hashable) -> None:
        """It has logged in."""
        self._failed.pop(who, None)

    def _wait(self, count: int) -> float:
        # The first failure is free: everybody mistypes once.
        return min(self.most, self.least * 2.0 ** min(count - 2, 60)) if count > 1 else 0.0

    def _tidy(self, now: float) -> None:
        while self._failed:
            count, last = next(iter(self._failed.values()))
            if len(self._failed) <= LARGEST and now - last <= FORGET + self._wait(count):
                return
            self._failed.popitem(last=False)


class Quiet:
    """At most so many lines a second of each kind; the rest is counted, and told."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._second: dict[str, tuple[float, int, int]] = {}  # since when, said, suppressed

    def say(self, kind: str, now: float) -> tuple[bool, int]:
        """Whether to say one more line of a kind, and how many were not said before it."""
        since, said, kept = self._second.get(kind, (now, 0, 0))
        if now - since >= 1.0:
            since, said = now, 0
        if said >= self.most:
            self._second[kind] = (since, said, kept + 1)
            return False, 0
        self._second[kind] = (since, said + 1, 0)
        return True, kept

    def kept(self, now: float) -> list[tuple[str, int]]:
        """What kinds have been kept back, and how many lines of each; told once."""
        found = [
            (kind, kept)
            for kind, (since, _, kept) in self._second.items()
            if kept and now - since >= 1.0
        ]
        for kind, _ in found:
            del self._second[kind]
        return found
