"""How much has gone through a tunnel, and whether anything comes back.  No I/O."""

from __future__ import annotations

from typing import NamedTuple

ROUND = 60.0  # seconds from one round of looks at the counters to the next, or twice what it took
# Seconds without a byte from the client after which it is silent.  Ours sends a packet a minute.
SILENCE = 180.0


class Traffic(NamedTuple):
    """By the counters of its interface, as they were seen now and then; times are monotonic."""

    received: int  # bytes from the client
    sent: int
    since: float  # when they were first seen
    at: float  # when they were last seen
    grew: float | None = None  # when more had been received than the time before

    def then(self, received: int, sent: int, now: float) -> Traffic:
        """The same after another look."""
        grew = now if received > self.received else self.grew
        return Traffic(received, sent, self.since, now, grew)

    @property
    def data(self) -> str | None:
        """`passing`, `silent`, or `unproven` if nothing has ever come; None: not known yet."""
        if not self.received:
            return "unproven" if self.at > self.since else None
        quiet = self.at - (self.since if self.grew is None else self.grew)
        if quiet >= SILENCE:
            return "silent"
        return None if self.grew is None else "passing"
