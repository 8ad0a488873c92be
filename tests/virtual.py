"""A day in a minute: `virtual.py CLOCK PROGRAM WORD...` runs a program in virtual time.

The clock is a file that a coordinator (the test) has created and shares with us.  Under it,
`time.monotonic` and `time.time` return its time, and a `select.select` in the main thread waits on
it: until a descriptor is ready, or the coordinator has advanced the clock far enough.  It does so
only when every process here is waiting, has looked again and found nothing to do, so
nobody is ever too slow.  While anything runs, including commands, the clock stands still.

A process that we fork takes part from the start: its slot exists before it does.
"""

from __future__ import annotations

import mmap
import os
import runpy
import select
import struct
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

SLOTS = 64
STARTING = -1  # in place of the pid, until a child has written its own
RUNNING, WAITING = 0, 1

# Monotonic time, what to add for the time of day, and the number of the coordinator's question.
MONOTONIC, DAY, QUESTION = 0, 8, 16
_HEAD = 24
# Of each slot:
PID, STATE, TURNS, ANSWER, UNTIL = 0, 8, 16, 24, 32
_SLOT = 40
SIZE = _HEAD + SLOTS * _SLOT

POLL = 0.001  # seconds of real time between two looks


class Clock:
    """The shared clock, for the coordinator and for those who wait."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE)

    @classmethod
    def make(cls, path: str) -> Clock:
        """A new clock that shows the real time."""
        with open(path, "wb") as file:
            file.truncate(SIZE)
        clock = cls(path)
        now = time.monotonic()
        clock.set_time(MONOTONIC, now)
        clock.set_time(DAY, time.time() - now)
        return clock

    def time(self, at: int) -> float:
        return float(struct.unpack_from("d", self._map, at)[0])

    def set_time(self, at: int, value: float) -> None:
        struct.pack_into("d", self._map, at, value)

    def number(self, at: int) -> int:
        return int(struct.unpack_from("q", self._map, at)[0])

    def set_number(self, at: int, value: int) -> None:
        struct.pack_into("q", self._map, at, value)

    @property
    def now(self) -> float:
        return self.time(MONOTONIC)

    def slots(self) -> list[int]:
        """Where the slots that are in use begin."""
        places = range(_HEAD, SIZE, _SLOT)
        return [slot for slot in places if self.number(slot + PID)]

    def take_slot(self, pid: int) -> int:
        slot = next(at for at in range(_HEAD, SIZE, _SLOT) if not self.number(at + PID))
        for field in (STATE, TURNS, ANSWER):
            self.set_number(slot + field, 0)
        self.set_number(slot + PID, pid)
        return slot

    # --- for the coordinator ------------------------------------------------------------------

    def clear(self) -> None:
        """Free the slots of those who are no more."""
        for slot in self.slots():
            pid = self.number(slot + PID)
            if pid != STARTING and not _lives(pid):
                self.set_number(slot + PID, 0)

    def all_wait(self) -> bool:
        return all(self.number(slot + STATE) == WAITING for slot in self.slots())

    def ask(self) -> tuple[int, ...]:
        """Ask everybody to look once more; whom we have asked, and after how many turns."""
        self.set_number(QUESTION, self.number(QUESTION) + 1)
        return self._turns()

    def answered(self, asked: tuple[int, ...]) -> bool | None:
        """Whether all have found nothing to do; None: not all have looked yet."""
        if not self.all_wait() or self._turns() != asked:
            return False
        question = self.number(QUESTION)
        if any(self.number(slot + ANSWER) != question for slot in self.slots()):
            return None
        return self.all_wait() and self._turns() == asked

    def _turns(self) -> tuple[int, ...]:
        return tuple(n for slot in self.slots() for n in (slot, self.number(slot + TURNS)))

    def until(self) -> float:
        """When the first of those who wait wants to be woken."""
        return min((self.time(slot + UNTIL) for slot in self.slots()), default=0.0)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Participant:
    """This process, and those that it forks, in the time of a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._select = select.select
        self._slot = clock.take_slot(os.getpid())
        self._childs = 0

    def begin(self) -> None:
        os.register_at_fork(before=self._before_fork, after_in_child=self._born)
        clock = self._clock
        time.monotonic = lambda: clock.now
        time.time = lambda: clock.now + clock.time(DAY)
        select.select = self.select

    def _before_fork(self) -> None:
        self._childs = self._clock.take_slot(STARTING)

    def _born(self) -> None:
        self._slot = self._childs
        self._clock.set_number(self._slot + PID, os.getpid())

    def select(
        self,
        readers: Iterable[Any],
        writers: Iterable[Any],
        others: Iterable[Any],
        timeout: float | None = None,
        /,
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """select(2) in virtual time."""
        every = (list(readers), list(writers), list(others))
        if threading.current_thread() is not threading.main_thread():
            return self._select(*every, timeout)
        clock, slot = self._clock, self._slot
        end = float("inf") if timeout is None else clock.now + timeout
        clock.set_time(slot + UNTIL, end)
        clock.set_number(slot + STATE, WAITING)
        try:
            while True:
                question = clock.number(QUESTION)
                found = self._select(*every, 0 if clock.now >= end else POLL)
                if any(found) or clock.now >= end:
                    return found
                # A thread of ours at work (the resolver, a command) will want time to stand still.
                if threading.active_count() == 1:
                    clock.set_number(slot + ANSWER, question)
        finally:
            clock.set_number(slot + TURNS, clock.number(slot + TURNS) + 1)
            clock.set_number(slot + STATE, RUNNING)


if __name__ == "__main__":
    Participant(Clock(sys.argv[1])).begin()
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
