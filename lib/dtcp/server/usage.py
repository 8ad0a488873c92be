"""What users do, until it is written down: when they have logged in, and bytes.

It is written now and then, for all at once, so that no login or end costs a write of its own.  A
server that is killed loses what has come since.
"""

from __future__ import annotations

import threading
import time

from dtcp.server.database import Busy
from dtcp.server.store import Shared, Use


class Usage:
    """For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._new: dict[str, Use] = {}

    def __bool__(self) -> bool:
        """Whether there is something to write."""
        return bool(self._new)

    def logged_in(self, user: str) -> None:
        """A login of this user was good."""
        self._add(user, Use(time.time()))

    def ended(self, user: str, received: int, sent: int) -> None:
        """So many bytes have gone through a tunnel of this user's that is no more."""
        self._add(user, Use(None, received, sent))

    def _add(self, user: str, use: Use) -> None:
        with self._lock:
            old = self._new.get(user, Use())
            login = max(filter(None, (use.login, old.login)), default=None)
            self._new[user] = Use(login, old.received + use.received, old.sent + use.sent)

    def write(self, shared: Shared) -> None:
        """Write it down; what cannot be written now is kept for the next time.

        Raises StoreError.
        """
        with self._lock:
            new, self._new = self._new, {}
        if not new:
            return
        try:
            with shared() as store:
                store.add_use(new)
        except Busy:
            for user, use in new.items():
                self._add(user, use)
            raise
