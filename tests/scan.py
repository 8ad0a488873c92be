"""Many broken conversations with a server on this host: `scan.py HOW-MANY FIRST`.

Those of tests/conversations.py, over real connections: each from a different loopback address,
whole or in pieces, and closed cleanly, by a reset, or not until the server closes.  The server's
replies are printed, each distinct line once, with the number of conversations.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.conversations import Piece, chance, client_says

TOGETHER = 20  # connections at a time
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class Conversation:
    """One connection, and what is still to be said on it."""

    def __init__(self, number: int) -> None:
        self._chance = chance("scan", number)
        self.socket = socket.socket()
        # Its own source each: the server may hold what one does against the next from there.
        source = f"127.{self._chance.randrange(1, 255)}.{number // 250 % 250}.{number % 250 + 1}"
        self.socket.bind((source, 0))
        self.socket.connect(("127.0.0.1", 20200))
        self._heard = b""
        self._pieces: list[Piece] | None = None

    def go_on(self) -> list[bytes] | None:
        """Hear, and say the next piece; the lines heard, or None at the end."""
        try:
            data = self.socket.recv(65536)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._heard = (self._heard + data).split(b"\r\n")
        if self._pieces is None and lines:
            words = lines[0].decode("ascii").split()
            challenge = words[1] if len(words) > 1 else ""
            # Few have the right password: a tunnel takes a second, and there are thousands.
            wrong = self._chance.random() < 0.97
            self._pieces = client_says(self._chance, "" if wrong else challenge)
        with contextlib.suppress(OSError):
            self._say()
        return lines

    def _say(self) -> None:
        for data, _ in self._pieces or ():
            if not data:
                break
            self.socket.send(data)
        self._pieces = []
        if self._chance.random() < 0.3:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.socket.close()
        else:
            self.socket.shutdown(socket.SHUT_WR)


def main(count: int, first: int) -> None:
    heard: set[str] = set()
    done = 0
    with selectors.DefaultSelector() as selector:
        numbers = iter(range(first, first + count))
        while done < count:
            while len(selector.get_map()) < TOGETHER:
                number = next(numbers, None)
                if number is None:
                    break
                conversation = Conversation(number)
                selector.register(conversation.socket, selectors.EVENT_READ, conversation)
            for key, _ in selector.select(10):
                lines = key.data.go_on()
                heard |= {line.decode("latin-1") for line in lines or ()}
                if lines is None or key.data.socket.fileno() < 0:
                    selector.unregister(key.fileobj)
                    key.data.socket.close()
                    done += 1
    for line in sorted(heard):
        print(line)
    print(f"{done} conversations")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
