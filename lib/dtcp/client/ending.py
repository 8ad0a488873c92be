"""The end of a connection: our half is closed, and its peer's is read until it ends as well.

Whoever closes both halves at once has the peer's next word answered by a reset.  A thread of KAME's
server dies of that, and leaves its end of the tunnel behind.  It also takes the tunnel down behind
its last word, and ends the connection last: a login before that gets a tunnel that cannot work.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time

MOST = 65536  # bytes that are thrown away; there is no need to be polite to who says more


class Ending:
    """A connection that comes to its end.

    `last_words` are sent if they can be sent at once; `socket` is closed when `is_over` says so, or
    by `close`.
    """

    def __init__(self, sock: socket.socket, last_words: bytes = b"") -> None:
        self.socket = sock
        self.since = time.monotonic()  # by when the end is due is a question of who waits
        self._left = MOST
        with contextlib.suppress(OSError):
            sock.send(last_words)
        # On FreeBSD there is no half to close (ENOTCONN) when the peer has gone already.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    def expect_nothing(self) -> None:
        """Nobody has to wait: nothing can come back."""
        self.since = -math.inf

    def is_over(self) -> bool:
        """Throw away what has come; whether that was all."""
        try:
            data = self.socket.recv(4096)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._left -= len(data)
        if data and self._left > 0:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Have done with it, whatever is still to come."""
        self.socket.close()
