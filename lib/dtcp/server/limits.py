"""What keeps one client from doing harm: penalties that grow, and a log that does not.

Memory is bounded: what has not mattered for a while is forgotten, and the tables have an end.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv4Address

from dtcp.daemon import Log

LARGEST = 20000  # entries of a table; the oldest go first
FORGET = 600.0  # seconds without a failure after which all is forgiven
LONGEST_PENALTY = 60.0  # seconds
FAILURES, PERIOD = 20, 60.0  # logins that may fail at one address in so many seconds
LINES = 5  # that are logged in a second, of each kind

# A user at an address; and, while that waits as a whole, when the first of its logins has failed.
_Pair = tuple[IPv4Address, str, float | None]


class Penalties:
    """Who has failed to log in must wait: a user at an address, and an address as a whole.

    A user at an address waits twice as long each time, from `least` seconds (0: nobody ever waits)
    to the longest.  An address at which too many logins have failed, whosever, waits until fewer
    have in the last PERIOD.  What fails elsewhere in a user's name is not held against him, or any
    stranger could keep him out.

    While an address waits as a whole, some are let in there all the same (dtcp.server.sessions).
    How often their logins fail counts for as long as that lasts, and for nothing else: or it could
    be seen afterwards who they are.
    """

    def __init__(self, least: float) -> None:
        self.least = least
        self._pairs: OrderedDict[_Pair, tuple[int, float]] = OrderedDict()
        self._addresses: OrderedDict[IPv4Address, list[float]] = OrderedDict()  # when they failed

    def __len__(self) -> int:
        return len(self._pairs) + len(self._addresses)

    def fail(self, address: IPv4Address, user: str, now: float) -> float:
        """One more failure; how long that user is to wait there now."""
        if not self.least:
            return 0.0
        crowd = self._crowd(address, now)
        count, last = self._pairs.pop((address, user, crowd), (0, now))
        if now - last > FORGET + self._wait(count):
            count = 0
        self._pairs[address, user, crowd] = (count + 1, now)
        if crowd is None:
            moments = self._addresses.pop(address, [])
            self._addresses[address] = [*moments[1 - FAILURES :], now]
        self._tidy(now)
        return self._wait(count + 1)

    def left(self, address: IPv4Address, user: str, now: float) -> float:
        """Seconds that this user is still to wait at this address, or 0."""
        left = 0.0
        for crowd in {None, self._crowd(address, now)}:
            count, last = self._pairs.get((address, user, crowd), (0, now))
            left = max(left, last + self._wait(count) - now)
        return left

    def crowded(self, address: IPv4Address, now: float) -> bool:
        """Whether too many logins have failed at an address of late."""
        return self._crowd(address, now) is not None

    def _crowd(self, address: IPv4Address, now: float) -> float | None:
        """When the first of them has failed."""
        moments = self._addresses.get(address, [])
        is_there = self.least > 0 and len(moments) == FAILURES and now - moments[0] < PERIOD
        return moments[0] if is_there else None

    def forgive(self, address: IPv4Address, user: str) -> None:
        """This user has logged in there.  That says nothing for others at the same address."""
        for crowd in (None, *self._addresses.get(address, [])[:1]):
            self._pairs.pop((address, user, crowd), None)

    def _wait(self, count: int) -> float:
        # The first failure is free: everybody mistypes once.
        if count < 2:
            return 0.0
        return min(max(LONGEST_PENALTY, self.least), self.least * 2.0 ** min(count - 2, 60))

    def _tidy(self, now: float) -> None:
        while self._pairs:
            count, last = next(iter(self._pairs.values()))
            if len(self._pairs) <= LARGEST and now - last <= FORGET + self._wait(count):
                break
            self._pairs.popitem(last=False)
        while self._addresses:
            moments = next(iter(self._addresses.values()))
            if len(self._addresses) <= LARGEST and now - moments[-1] < PERIOD:
                break
            self._addresses.popitem(last=False)


class Quiet:
    """A log that nobody can fill: LINES a second of each kind; the rest is counted, and told."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self.log, self._clock = log, clock
        self._second: dict[str, tuple[float, int, int]] = {}  # since when, said, suppressed

    def notice(self, kind: str, text: str) -> None:
        """A line of a kind of which there may be many."""
        self._say(self.log.notice, kind, text)

    def error(self, kind: str, text: str) -> None:
        """The same of something that is wrong here."""
        self._say(self.log.error, kind, text)

    def _say(self, say: Callable[[str], None], kind: str, text: str) -> None:
        now = self._clock()
        since, said, suppressed = self._second.get(kind, (now, 0, 0))
        if now - since >= 1.0:
            since, said = now, 0
        if said >= LINES:
            self._second[kind] = (since, said, suppressed + 1)
            return
        self._second[kind] = (since, said + 1, 0)
        say(text + (f" (and {suppressed} more like this)" if suppressed else ""))

    def catch_up(self) -> None:
        """Tell how many lines of each kind were suppressed."""
        now = self._clock()
        for kind, (since, _, suppressed) in list(self._second.items()):
            if suppressed and now - since >= 1.0:
                del self._second[kind]
                self.log.notice(f"{kind}: {suppressed} more")
