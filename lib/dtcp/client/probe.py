"""Whether packets pass through the tunnel: echo requests (RFC 4443 section 4.1), and the answers.

They go to the server's end of the tunnel or, where that has no address that we know, to all nodes
on the link; our own answer does not count.  At first they are sent often, then only when the
control connection's ping wakes us anyway, and the answer is read at the next one: while all is
well, a probe costs no wake-up.  One that is missing is followed by a few more at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections import deque
from ipaddress import IPv6Address

FIRST = (0.0, 1.0, 2.0, 4.0, 8.0)  # seconds after the start, in which they are sent
FIRST_LIMIT = 15.0  # seconds after which the tunnel counts as unproven
AGAIN, AGAIN_INTERVAL = 5, 2.0  # requests after a missing answer, and the seconds between them
# Over UDP a NAT may forget a flow after 30 s (RFC 4787 section 4.3 asks for 2 minutes).
KEEP_ALIVE = 20.0  # seconds

ECHO_REQUEST, ECHO_REPLY = 128, 129
LEAST = 48  # bytes of a packet with a request and no data: IPv6's header and ICMPv6's

ROOM = 1 << 17  # bytes, in a socket that sends larger ones
MEMORY = 32  # requests that may still be answered


class Echo:
    """Requests through one interface, and which of them were answered.

    They go to `peer` from `inner`; without a peer to all nodes on the link, but for ourselves.
    Their data begins with `key`, by which a server knows them.
    """

    def __init__(
        self,
        interface: str,
        inner: IPv6Address | None,
        peer: IPv6Address | None,
        *,
        key: bytes = b"",
        largest: int = LEAST,
    ) -> None:
        """`largest`: bytes of the largest packet that will be asked for.  Raises OSError."""
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        try:
            self._socket.setblocking(False)
            # Otherwise we would hear ourselves answer.
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
            index = socket.if_nametoindex(interface)
            if largest > LEAST:
                self._take_large()
        except OSError:
            self._socket.close()
            raise
        self._to = (str(peer), 0, 0, 0) if peer else ("ff02::1", 0, 0, index)
        # From another address of ours an answer might come back beside the tunnel.
        self._bind_to = str(inner) if inner and peer else ""
        # The identifier of our requests, and what is added to their numbers.  Whoever does not see
        # them must guess both to answer in the place of the other end.
        self._word, self._first = os.urandom(2), int.from_bytes(os.urandom(2), "big")
        self._asked: deque[int] = deque(maxlen=MEMORY)
        self._key = key

    def _take_large(self) -> None:
        """Make room for a few large packets, and have them sent whole or not at all."""
        for room in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, room, ROOM)
        for option, value in (
            (getattr(socket, "IPV6_DONTFRAG", None), 1),
            # FreeBSD cuts packets for a multicast address to 1280 bytes otherwise.
            (getattr(socket, "IPV6_USE_MIN_MTU", None), 0),
        ):
            if option is not None:
                self._socket.setsockopt(socket.IPPROTO_IPV6, option, value)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def ask(self, number: int, size: int = LEAST) -> None:
        """Send request `number` (16 bits) in a packet of `size` bytes, or what the key takes.

        Raises OSError.
        """
        if self._bind_to:  # not before: it may be tentative for a second
            self._socket.bind((self._bind_to, 0))
            self._bind_to = ""
        rest = max(0, size - LEAST - len(self._key))
        # The kernel fills in the check sum (RFC 3542 section 3.1).
        shown = (number + self._first) % 65536
        request = bytes((ECHO_REQUEST, 0, 0, 0)) + self._word + shown.to_bytes(2, "big")
        self._socket.sendto(request + self._key + bytes(rest), self._to)
        self._asked.append(number)

    def answered(self) -> list[int]:
        """The numbers of the requests that were answered since the last call, as it came."""
        found = []
        with contextlib.suppress(OSError):
            while True:
                answer = self._socket.recv(64)
                if answer[:1] == bytes((ECHO_REPLY,)) and answer[4:6] == self._word:
                    number = (int.from_bytes(answer[6:8], "big") - self._first) % 65536
                    if number in self._asked:  # and no more than once
                        self._asked.remove(number)
                        found.append(number)
        return found


class Probe:
    """`data` says what is known: `unproven`, `passing` or `silent`; `rtt` is in seconds.

    `expected`: packets passed before, so that silence at the start counts as well.  `limit` is how
    long the first answer may take, in seconds.
    """

    def __init__(
        self,
        interface: str,
        inner: IPv6Address | None,
        peer: IPv6Address | None,
        now: float,
        *,
        key: bytes = b"",
        keep_alive: bool = False,
        expected: bool = False,
        limit: float = FIRST_LIMIT,
    ) -> None:
        """Raises OSError."""
        self._echo = Echo(interface, inner, peer, key=key)
        self._keep_alive, self._expected = keep_alive, expected
        self._number, self._sent_at, self._is_answered = 0, now, True
        self._due = [now + each for each in FIRST if each < limit]  # requests
        self._judge_at = now + limit  # with no answer by then
        self.data = "unproven"
        self.rtt: float | None = None

    @property
    def due(self) -> float:
        """When `on_time` must be called, by the monotonic clock."""
        return min([*self._due, self._judge_at])

    def fileno(self) -> int:
        """Becomes readable with an answer, while one is urgent; -1 at other times."""
        return self._echo.fileno() if self._judge_at < math.inf else -1

    def close(self) -> None:
        self._echo.close()

    def on_time(self, now: float) -> str:
        """Read what has come, and send what is due.

        The news: `passing`, `unproven` or `silent`, or nothing.
        """
        before = self.data
        self._read(now)
        if self._judge_at <= now:
            is_silent = self.data == "passing" or self._expected
            self.data = "silent" if is_silent else "unproven"
            # Over UDP, only the next one tells a server that waits for it where we are.
            self._due = [now + KEEP_ALIVE] if self._keep_alive else []
            self._judge_at = math.inf
            return self.data
        if self._due and self._due[0] <= now:
            self._due.pop(0)
            self._ask(now)
        if self._keep_alive and not self._due:
            self._due = [now + KEEP_ALIVE]
        return self.data if self.data != before else ""

    def on_ping(self, now: float) -> str:
        """The same at a ping of the control connection, when we are awake anyway."""
        news = self.on_time(now)
        if self._judge_at == math.inf:
            self._ask(now)
        return news

    def _ask(self, now: float) -> None:
        """Send a request; when the last one has no answer, a few more will follow."""
        if self.data == "passing" and not self._is_answered and self._judge_at == math.inf:
            self._judge_at = now + AGAIN * AGAIN_INTERVAL
            self._due = [now + count * AGAIN_INTERVAL for count in range(1, AGAIN)]
        self._number = (self._number + 1) % 65536
        self._sent_at, self._is_answered = now, False
        # Our own address may be tentative for a second, and the first packets may find no taker.
        with contextlib.suppress(OSError):
            self._echo.ask(self._number)

    def _read(self, now: float) -> None:
        for number in self._echo.answered():
            if self._judge_at < math.inf and number == self._number:
                self.rtt = now - self._sent_at
            self._is_answered = True
            if self._judge_at < math.inf:
                self._due, self._judge_at = [], math.inf
            self.data = "passing"
