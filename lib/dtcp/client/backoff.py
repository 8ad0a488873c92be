"""How long to wait before the server is tried again (-l)."""

from __future__ import annotations

import os
import time

# Seconds.
LONGEST = 300.0  # wait between two attempts
STABLE_TIME = 60.0  # up for so long, the waits begin anew
SOON = 12.0  # after a loss, in which the waits stay at 2 s at most


class BackOff:
    """How long to wait before each attempt: nothing, then 1 s doubling to 300 s, with jitter.

    In the first seconds after a loss the steps stay small: a server that is restarted should find
    us back at once.  After the tunnel has been up for a minute it begins anew.
    """

    def __init__(self) -> None:
        self._attempts = 0
        self._lost_at = 0.0
        self._up_at: float | None = None

    def up(self) -> None:
        """The tunnel is up."""
        self._up_at = time.monotonic()

    def anew(self) -> None:
        """The network has changed: what was tried before means nothing."""
        self._attempts = 0

    def next(self, now: float, *, most: bool = False) -> float:
        """Seconds to the next attempt; `most`: the longest wait, because we were refused."""
        if self._up_at is not None and now - self._up_at >= STABLE_TIME:
            self._attempts = 0
        self._up_at = None
        if most:
            return LONGEST
        if self._attempts == 0:
            self._lost_at = now
        self._attempts += 1
        if self._attempts == 1:
            return 0.0
        if now - self._lost_at < SOON:
            self._attempts = min(self._attempts, 3)  # or the first wait after that were minutes
        delay = min(LONGEST, 2.0 ** min(self._attempts - 2, 16))
        # Up to a quarter less, so that a server's clients do not come back all at once.
        return delay * (1 - int.from_bytes(os.urandom(2), "big") / 65536 / 4)
