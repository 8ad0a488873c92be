"""Work that takes its time, as code that reads straight on.

A *flow* is a generator of the main thread.  What it yields is done elsewhere, and it goes on when
that is done, while the main thread serves everybody else:

    routes = yield partial(look, fib)   # look(fib, host) runs in a worker; what comes of it,
                                        # an exception as well, comes back here
    text = yield Aside(tell)            # the same, behind no login, nor any login behind it
    yield tunnel.changed                # an Event: until it happens

So all state is the main thread's alone, and changes only between two yields.  A worker gets a
`System`, which runs commands in the worker's own shell (dtcp.server.shell).
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple, TypeVar

from dtcp.daemon import Log
from dtcp.server.shell import Shell
from dtcp.system import System

WORKERS = 4  # commands that run at the same time

T = TypeVar("T")
Work = Callable[[System], Any]


class Aside(NamedTuple):
    """Work for the one worker that serves no logins."""

    work: Work


class Event:
    """Something that flows wait for, once each."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def wait(self, go_on: Callable[[], None]) -> None:
        """Have this called when it happens."""
        self._waiting.append(go_on)

    def happen(self) -> None:
        """Whoever waits goes on, in the order in which they came."""
        waiting, self._waiting = self._waiting, []
        for go_on in waiting:
            go_on()


Flow = Generator[Work | Aside | Event, Any, T]
_Job = tuple[Work, Callable[..., None]]  # and what the main thread does with what comes of it


class Workers:
    """A few threads, each with a shell; and the flows that wait for them."""

    def __init__(self, log: Log) -> None:
        """Start them.  Raises OSError, NoOutput."""
        self._log = log
        self._hurried = False
        self._ready: deque[Callable[[], None]] = deque()  # flows that can go on
        self.woken, self._wake = os.pipe()  # readable when a worker has finished something
        os.set_blocking(self.woken, False)
        self._logins: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._others: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._queues = [*[self._logins] * WORKERS, self._others]  # of each worker
        self._hosts: list[System | None] = [None for _ in self._queues]  # what each is at
        self._threads = []
        for number in range(len(self._queues)):
            shell = Shell()
            shell.start()  # so that the first login need not wait for that
            thread = threading.Thread(target=self._serve, args=(number, shell), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, number: int, shell: Shell) -> None:
        while (job := self._queues[number].get()) is not None:
            work, go_on = job
            host = self._hosts[number] = System(self._log.command, shell.run)
            if self._hurried:
                host.hurry()
            try:
                outcome = partial(go_on, work(host))
            except Exception as error:  # what that means, the flow decides
                outcome = partial(go_on, error=error)
            self._hosts[number] = None
            self._ready.append(outcome)
            os.write(self._wake, b".")

    def start(self, flow: Flow[None], failed: Callable[[Exception], None]) -> None:
        """Begin a flow; `failed` is called with what it raises, which is a fault of ours."""
        self._go_on(flow, failed)

    def _go_on(
        self,
        flow: Flow[None],
        failed: Callable[[Exception], None],
        result: Any = None,
        error: Exception | None = None,
    ) -> None:
        try:
            awaited = flow.send(result) if error is None else flow.throw(error)
        except StopIteration:
            return
        except Exception as fault:
            failed(fault)
            return
        go_on = partial(self._go_on, flow, failed)
        if isinstance(awaited, Event):
            awaited.wait(partial(self._ready.append, go_on))
        elif isinstance(awaited, Aside):
            self._others.put((awaited.work, go_on))
        else:
            self._logins.put((awaited, go_on))

    @property
    def can_go_on(self) -> bool:
        """Whether there is something to do for `turn`."""
        return bool(self._ready)

    def collect(self, mask: int) -> None:
        """Take over what the workers have finished: to be called when `woken` is readable."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.woken, 4096)
        self.turn()

    def turn(self) -> None:
        """Go on with every flow that can."""
        while self._ready:  # to which workers add at any moment
            self._ready.popleft()()

    def hurry(self) -> None:
        """We end: what is still to be run, hanging commands included, gets a few seconds."""
        self._hurried = True
        for host in list(self._hosts):
            if host is not None:
                host.hurry()

    def stop(self) -> None:
        """Have the workers finish what they are at, and begin nothing else."""
        for jobs in self._queues:
            with contextlib.suppress(queue.Empty):
                while True:
                    jobs.get_nowait()
        for jobs in self._queues:
            jobs.put(None)
        for thread in self._threads:
            thread.join()
