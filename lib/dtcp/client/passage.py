"""Whether packets pass through a tunnel, how fast, and how large: the last stages of --test."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address
from typing import NamedTuple

from dtcp import plan
from dtcp.client.probe import FIRST, FIRST_LIMIT, LEAST, Echo
from dtcp.client.stages import StageFailed, Stages
from dtcp.errors import FAILED, TRY_AGAIN
from dtcp.look import Look

SETTLED = 9.0  # seconds, from the first request: by then the last has left, if any can
# Of packets of some size: how often each is sent, and the seconds that its answer has, which are
# some round trips, but neither fewer nor more than these.
ATTEMPTS, TRIPS, LEAST_TIME, MOST_TIME = 3, 4, 0.5, 2.0
SIZES = 8  # that are tried at once, to find the largest that passes


class Way(NamedTuple):
    """What the packets go through: the interface, its inner addresses, and what is around it."""

    interface: str
    mtu: int
    inner: IPv6Address | None
    peer: IPv6Address | None
    remote: str  # the outer address of the server
    udp: bool
    port: int | None = None  # over UDP: the server's, where it is known
    key: bytes = b""  # over UDP: what the requests carry for the server

    @property
    def outer(self) -> str:
        """What carries the packets."""
        if not self.udp:
            return "protocol 41"
        return f"UDP port {self.port}" if self.port else "UDP"

    @property
    def overhead(self) -> int:
        """Bytes of the headers in front of each packet: IPv4's, and UDP's."""
        return 28 if self.udp else 20


class Passage:
    """Sends packets along a way, and sees what comes back.

    `wait` waits until a descriptor is readable, or so many seconds, and raises what ends the test;
    `mend` is called before requests, and says whether the tunnel was broken.
    """

    def __init__(
        self,
        way: Way,
        stages: Stages,
        look: Look,
        wait: Callable[[int, float], None],
        mend: Callable[[], bool] = lambda: False,
    ) -> None:
        self._way, self._stages, self._look = way, stages, look
        self._wait, self._mend = wait, mend
        self._number = 0  # of the last request
        self._was_broken = False

    def run(self) -> None:
        """The stages: packets out, packets back, path MTU.  Raises Error, OSError."""
        way = self._way
        self._stages.begin("packets out")
        try:
            echo = Echo(way.interface, way.inner, way.peer, key=way.key, largest=way.mtu)
        except OSError as error:
            raise StageFailed(
                f"no raw socket: {error.strerror}", "in a jail: allow.raw_sockets in jail.conf(5)"
            ) from None
        with contextlib.closing(echo):
            rtt = self._out_and_back(echo)
            self._whole(echo, min(MOST_TIME, max(LEAST_TIME, TRIPS * rtt)))

    # --- out and back -------------------------------------------------------------------------

    def _out_and_back(self, echo: Echo) -> float:
        """See that a packet leaves, and one comes back; the seconds between.  Raises Error."""
        stages = self._stages
        before = self._counted()
        begun, due = time.monotonic(), list(FIRST)
        sent_at: dict[int, float] = {}
        why = ""
        while (now := time.monotonic()) < begun + FIRST_LIMIT:
            if due and now >= begun + due[0]:
                due.pop(0)
                self._was_broken |= self._mend()
                try:
                    sent_at[self._ask(echo)] = time.monotonic()
                except OSError as error:
                    why = error.strerror or str(error)
            next_one = begun + (due[0] if due else FIRST_LIMIT)
            self._wait(echo.fileno(), max(0.0, next_one - time.monotonic()))
            now = time.monotonic()
            back = [sent_at[each] for each in echo.answered() if each in sent_at]
            if stages.name == "packets out":
                counted = self._counted()[1] - before[1]
                if back or (sent_at and counted >= LEAST * len(sent_at)):
                    name = self._way.interface
                    stages.passed(f"{len(sent_at)} sent, {counted} bytes counted by {name}")
                    stages.begin("packets back")
                elif now >= begun + SETTLED:
                    raise self._none_left(why, len(sent_at))
            if back:
                stages.passed(f"from {self._way.peer or 'the other end'}", now - back[-1])
                return now - back[-1]
        raise self._none_back(self._counted()[0] - before[0])

    def _ask(self, echo: Echo, size: int = LEAST) -> int:
        """Send a request in a packet of that size; its number.  Raises OSError."""
        self._number += 1
        echo.ask(self._number, size)
        return self._number

    def _counted(self) -> tuple[int, int]:
        """The bytes that the interface has received and sent.  Raises CommandFailed."""
        return self._look.traffic(self._way.interface)

    def _none_left(self, why: str, sent: int) -> StageFailed:
        way = self._way
        return StageFailed(
            why or f"{sent} sent, and {way.interface} has counted none of them",
            f"is {way.interface} up and running, and does this host have its outer address?"
            f" Otherwise a packet filter here (ipfw, pf) must let IPv6 pass on {way.interface}",
        )

    def _none_back(self, received: int) -> StageFailed:
        way = self._way
        what = f"nothing has come back in {FIRST_LIMIT:.0f} s"
        if received > 0:
            remedy = (
                f"{way.interface} has received {received} bytes, but no answer: the server's end"
                " does not answer pings, or a packet filter here (ipfw, pf) drops what it says"
            )
        elif self._was_broken:
            remedy = (
                f"an ICMP message said that {way.outer} is closed: the server's end is gone, or a"
                " packet filter there or between rejects it"
            )
        elif way.udp:
            remedy = (
                f"is {way.outer} of {way.remote} open, both ways? A packet filter here, there or"
                " between may drop it"
            )
        else:
            remedy = (
                f"is {way.outer} to and from {way.remote} open? A packet filter or a NAT here,"
                " there or between may drop it: try -U -n, or --transport auto"
            )
        return StageFailed(what, remedy, TRY_AGAIN)

    # --- how large ----------------------------------------------------------------------------

    def _whole(self, echo: Echo, patience: float) -> None:
        """See that a packet as large as the MTU comes back, or which do.  Raises Error."""
        way = self._way
        self._stages.begin("path MTU")
        if self._pass(echo, [way.mtu], patience):
            self._stages.passed(f"{way.mtu} bytes pass")
            return
        most, too_large = LEAST, way.mtu
        while sizes := between(most, too_large):
            passing = self._pass(echo, sizes, patience)
            most = max([most, *passing])
            too_large = min(each for each in (*sizes, too_large) if each > most)
        if most >= plan.MTU_LEAST:
            remedy = f"use -m {most}, and have the server's end use no more either"
        else:
            remedy = (
                f"the way to {way.remote} must carry IPv4 packets of"
                f" {plan.MTU_LEAST + way.overhead} bytes, or their fragments: a packet filter here,"
                " there or between may drop these"
            )
        raise StageFailed(
            f"{most} bytes pass, {too_large} do not, and the MTU is {way.mtu}", remedy, FAILED
        )

    def _pass(self, echo: Echo, sizes: Iterable[int], patience: float) -> set[int]:
        """Which packets of these sizes come back."""
        left: set[int] = set(sizes)
        found: set[int] = set()
        size_of: dict[int, int] = {}
        for _ in range(ATTEMPTS):
            self._was_broken |= self._mend()
            for size in sorted(left):
                with contextlib.suppress(OSError):  # too large for what the kernel knows
                    size_of[self._ask(echo, size)] = size
            end = time.monotonic() + patience
            while left and (wait := end - time.monotonic()) > 0:
                self._wait(echo.fileno(), wait)
                found |= {size_of[each] for each in echo.answered() if each in size_of}
                left -= found
        return found


def between(most: int, too_large: int) -> list[int]:
    """Sizes to try between one that passes and one that does not; none, when there are none."""
    gap = too_large - most
    return sorted({most + gap * each // (SIZES + 1) for each in range(1, SIZES + 1)} - {most})
