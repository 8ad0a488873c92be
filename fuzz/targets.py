"""What is fuzzed: a conversation with each end, made of bytes.

A first byte of choices; then pieces that arrive one after the other, a separator between them.  The
first byte of a piece says how much time passes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from tests.conversations import PAUSES, TYPES, Piece
from tests.outcomes import UDP_PORT, of_client, of_session

CORPUS = Path(__file__).resolve().parent / "corpus"
SEPARATOR = b"\xff\xff"
CHALLENGE = "0" * 32  # always the same, so that a digest once found stays right
_ANSWERS = ("accept", "refuse", "wait", "accept")


def unpacked(data: bytes) -> tuple[int, list[Piece]]:
    """The choices, and the pieces."""
    return (data[0] if data else 0), [
        Piece(part[1:], PAUSES[part[0] % len(PAUSES)]) for part in data[1:].split(SEPARATOR) if part
    ]


def packed(choices: int, pieces: Iterable[Piece]) -> bytes:
    """The other way round, as far as that goes."""
    parts = [
        bytes([PAUSES.index(each.seconds)]) + each.data.replace(SEPARATOR, b"") for each in pieces
    ]
    return bytes([choices]) + SEPARATOR.join(parts)


def client(data: bytes) -> str:
    """A server says that to a client; what came of it."""
    choices, pieces = unpacked(data)
    udp = (None, None, 0, UDP_PORT)[choices >> 2 & 3]
    return of_client(pieces, TYPES[choices & 3], udp, nat=bool(choices & 16))


def server(data: bytes) -> str:
    """A client says that to a server; what came of it."""
    choices, pieces = unpacked(data)
    number = choices

    def answer() -> str:
        nonlocal number
        number += 1
        return _ANSWERS[number & 3]

    return of_session(pieces, CHALLENGE, answer)


TARGETS: dict[str, Callable[[bytes], str]] = {"client": client, "server": server}
