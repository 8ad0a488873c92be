"""What is known of each user's tunnel, and what may become of it.

dtcp.server.tunnels says what the states mean, and takes a tunnel from one to the next.
"""

from __future__ import annotations

import math
from collections import Counter
from enum import Enum
from ipaddress import IPv4Address

from dtcp.server.sessions import Peer
from dtcp.server.store import Made
from dtcp.server.traffic import Traffic
from dtcp.server.workers import Event

Outer = tuple[IPv4Address, IPv4Address] | int  # the outer pair, ours first; or our UDP port


class State(Enum):
    """Of a user's tunnel."""

    FREE = "free"
    MAKING = "making"
    HEARING = "hearing"
    UP = "up"
    ORPHAN = "orphan"
    LEAVING = "leaving"
    BROKEN = "broken"


# What may follow upon a state.
TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.FREE: (State.MAKING, State.HEARING, State.ORPHAN),  # at a login, over UDP, at the start
    State.HEARING: (State.MAKING, State.FREE),  # the packet has come, or the holder has left
    State.MAKING: (State.UP, State.FREE, State.BROKEN),
    State.UP: (State.UP, State.MAKING, State.LEAVING),  # to a later login; made anew; taken down
    State.ORPHAN: (State.UP, State.LEAVING),
    State.LEAVING: (State.FREE, State.BROKEN),
    State.BROKEN: (State.LEAVING,),
}
HELD = (State.MAKING, State.HEARING, State.UP)  # the states in which a tunnel has a holder
STANDING = (State.UP, State.ORPHAN)


class Tunnel:
    """One user's record."""

    __slots__ = (
        "_census", "changed", "holder", "look_at", "look_every", "looking", "made", "missing",
        "outer", "state", "traffic", "user",
    )  # fmt: skip

    def __init__(self, user: str, census: Counter[State]) -> None:
        """`census` counts those in each state but `free`."""
        self._census = census
        self.user = user
        self.state = State.FREE
        self.changed = Event()  # of the state, or of `looking`
        self.holder: Peer | None = None  # whose it is, in the states of HELD
        self.made: Made | None = None  # what stands, or is left
        self.outer: Outer | None = None  # what it owns
        self.looking = False  # a worker looks at it, and puts back what is missing
        self.look_at = math.inf  # when it is to be looked at, by the monotonic clock
        self.look_every = 0.0  # seconds
        self.missing: list[str] = []  # what the last look has put back
        self.traffic: Traffic | None = None  # through it, as far as that was seen

    def become(self, state: State, holder: Peer | None = None) -> None:
        """Go to another state; in those of HELD it is this one's."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self.user}: {self.state.value} cannot become {state.value}")
        self._census[self.state] -= 1
        self._census[state] += 1
        self.state = state
        self.holder = holder if state in HELD else None
        if state not in STANDING:
            self.look_at = math.inf
        if state is State.FREE:
            self.made = self.outer = self.traffic = None
        self.changed.happen()
