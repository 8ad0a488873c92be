"""Whether a client is still there, asked without a word of DTCP, in which a server only answers.

It is the client's kernel that answers, to TCP's keep-alive.  We ask a few times, at a pace at which
neither system gives up: FreeBSD ends a connection by the time since it has heard anything, before
it has asked even once, Linux by the number of questions.  Then, for a moment, both may give up: who
has answered has been heard of a moment ago, and stays.
"""

from __future__ import annotations

import math
import socket

from dtcp.server.workers import Event

PACE = 1.5  # seconds between two questions: the kernel asks a second after it is told to
QUESTIONS = 3
VERDICT = 2.5  # seconds in which the kernel ends a connection that has not answered
TIME = QUESTIONS * PACE + VERDICT

# Seconds of silence before a question, seconds to the next, and how many without an answer are the
# end.  To ask: more than 300 s, in which a client must say something, and all that Linux takes.
_ASK = {socket.TCP_KEEPINTVL: 3, socket.TCP_KEEPCNT: 127, socket.TCP_KEEPIDLE: 1}
# To judge: longer ago than the last question by now, but not as long as the first.
_JUDGE = {socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3, socket.TCP_KEEPIDLE: 1}


class Question:
    """Is the client at the other end of this socket still there?  If not, the socket breaks.

    Call `go_on` when `due` has come (by the monotonic clock).
    """

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.answered = Event()  # or the socket is broken
        self.due = now
        self._sock = sock
        self._usual: dict[int, int] = {}
        self._asked = 0

    def go_on(self, now: float) -> None:
        """Ask, or see what has come of it.  Raises OSError: the socket is broken already."""
        if not self._usual:
            for each in _ASK:
                self._usual[each] = self._sock.getsockopt(socket.IPPROTO_TCP, each)
        if self._asked < QUESTIONS:
            self._asked += 1
            self.due = now + PACE
            self._set(_ASK)
        elif self._asked == QUESTIONS:
            self._asked += 1
            self.due = now + VERDICT
            self._set(_JUDGE)
        else:
            self.due = math.inf
            self._set(self._usual)
            self.answered.happen()

    def _set(self, options: dict[int, int]) -> None:
        for option, value in options.items():
            self._sock.setsockopt(socket.IPPROTO_TCP, option, value)
