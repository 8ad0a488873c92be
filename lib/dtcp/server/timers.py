"""What is due, and when: for ten thousand things of which one is due now and then.  No I/O."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Timers(Generic[T]):
    """Things with a deadline that moves, mostly further away.

    `deadline_of` tells when a thing is due, math.inf for never.  A deadline that moves away costs
    nothing: it is noticed when the old one comes.  One that comes nearer must be told (`watch`).
    """

    def __init__(self, deadline_of: Callable[[T], float]) -> None:
        self._deadline_of = deadline_of
        self._heap: list[tuple[float, int]] = []  # when, and the number of the entry
        self._things: dict[int, T] = {}  # of the entries that count
        self._next: dict[T, tuple[float, int]] = {}  # and which one that is for each thing
        self._count = 0  # of entries ever

    def watch(self, thing: T) -> None:
        """A new thing, or one whose deadline has come nearer."""
        due = self._deadline_of(thing)
        if due < self._next.get(thing, (math.inf, 0))[0]:
            self.forget(thing)
            self._push(thing, due)

    def forget(self, thing: T) -> None:
        """It has gone; nothing of it stays here."""
        entry = self._next.pop(thing, None)
        if entry is not None:
            del self._things[entry[1]]

    def due(self, now: float) -> Iterator[T]:
        """The things whose time has come, each once."""
        while self._heap and self._heap[0][0] <= now:
            thing = self._things.get(heapq.heappop(self._heap)[1])
            if thing is None:
                continue
            self.forget(thing)
            due = self._deadline_of(thing)
            if due <= now:
                yield thing
                due = self._deadline_of(thing)  # it may have a new one now
                if due <= now:
                    continue
            if due < math.inf and thing not in self._next:
                self._push(thing, due)

    def first(self) -> float:
        """When to look again; never later than something is due."""
        while self._heap and self._heap[0][1] not in self._things:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def _push(self, thing: T, due: float) -> None:
        self._count += 1
        self._next[thing] = entry = due, self._count
        self._things[self._count] = thing
        heapq.heappush(self._heap, entry)
