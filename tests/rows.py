"""The rows of a big table that a run must take; see `selection`.  For processes without pytest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


def is_due(place: int, parts: int, turn: int) -> bool:
    """Whether it is the turn of what has this place, if each is due every `parts` turns."""
    return place % parts == turn % parts


class Due(NamedTuple):
    """Which rows are due.  A row is known by its `str`."""

    turn: int
    parts: int  # turns that together take every row
    whole: bool = False  # all of them are due
    first: Sequence[str] = ()  # so are these, before the others: they failed last time
    only: str | None = None  # this one, and nothing else

    def among(self, table: Sequence[T]) -> list[T]:
        """The rows that are due, in the order in which they are."""
        if self.only is not None:
            return [row for row in table if str(row) == self.only]
        parts = min(self.parts, len(table))
        failed = [row for row in table if str(row) in self.first]
        return failed + [
            row
            for place, row in enumerate(table)
            if str(row) not in self.first and (self.whole or is_due(place, parts, self.turn))
        ]
