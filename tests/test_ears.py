"""What opens a tunnel over UDP: the client's echo request with the key of its grant, no other."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from dtcp.server.udp import AT_ONCE, Ears

pytestmark = pytest.mark.hazard(70)

HERE, ELSEWHERE = IPv4Address("127.0.0.1"), IPv4Address("203.0.113.7")
KEY = bytes(range(16))


def packet(
    data: bytes = KEY, *, version: int = 6, length: int = 8, next: int = 58, kind: int = 128,
    code: int = 0,
) -> bytes:  # fmt: skip
    """An IPv6 packet with an echo request, or nearly."""
    head = bytes((version << 4, 0, 0, 0)) + (length + len(data)).to_bytes(2, "big")
    ends = socket.inet_pton(socket.AF_INET6, "2001:db8::6") + bytes((0xFF, 2, *bytes(13), 1))
    return head + bytes((next, 64)) + ends + bytes((kind, code, 1, 2, 0, 7, 0, 1)) + data


WRONG = {
    "nothing": b"",
    "a byte": b"\0",
    "a bare header": packet(b"", length=0)[:40],
    "no data": packet(b""),
    "zeros": packet(bytes(16)),
    "another key": packet(KEY[::-1]),
    "most of the key": packet(KEY[:15]),
    "the key and more": packet(KEY + b"\0"),
    "the key further on": packet(bytes(16) + KEY),
    "the key in digits": packet(KEY.hex().encode()),
    "the key alone": KEY,
    "cut off": packet()[:-1],
    "a byte too many": packet() + b"\0",
    "a length that is not its own": packet(length=9),
    "a large packet": packet(KEY + bytes(1400)),
    "IPv4": packet(version=4),
    "UDP": packet(next=17),
    "an answer": packet(kind=129),
    "another code": packet(code=1),
}


class Ear:
    """One that is open, on loopback."""

    def __init__(self, client: IPv4Address = HERE) -> None:
        self.selector = selectors.DefaultSelector()
        self.ears = Ears(self.selector, 4028)
        self.heard: list[int] = []
        self.port = self.ears.open(HERE, client, KEY, {4028}, self._hear)

    def _hear(self, port: int) -> None:
        self.heard.append(port)
        self.ears.close(self.port)

    def turn(self) -> None:
        """The server's loop turns once."""
        for key, mask in self.selector.select(0.05):
            key.data(mask)


@pytest.fixture
def ear() -> Iterator[Ear]:
    made = Ear()
    yield made
    made.ears.close(made.port)
    made.selector.close()


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((str(HERE), 0))
        yield made


@pytest.mark.parametrize("wrong", WRONG)
def test_a_stranger_behind_the_same_nat_opens_nothing(
    ear: Ear, sender: socket.socket, wrong: str
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(WRONG[wrong], (str(HERE), ear.port))
        ear.turn()
        assert ear.heard == []
        assert len(ear.ears) == 1
    sender.sendto(packet(), (str(HERE), ear.port))
    ear.turn()
    assert ear.heard == [sender.getsockname()[1]]
    assert len(ear.ears) == 0


def test_the_key_from_another_address_opens_nothing(sender: socket.socket) -> None:
    ear = Ear(ELSEWHERE)
    with contextlib.closing(ear.selector):
        sender.sendto(packet(), (str(HERE), ear.port))
        ear.turn()
        assert ear.heard == []
        ear.ears.close(ear.port)


def test_a_flood_does_not_crowd_out_the_client(ear: Ear, sender: socket.socket) -> None:
    """It costs a turn of the server's loop for every so many packets."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for _ in range(AT_ONCE + 5):
            stranger.sendto(b"", (str(HERE), ear.port))
    sender.sendto(packet(), (str(HERE), ear.port))
    ear.turn()
    assert ear.heard == []  # others have their turn
    ear.turn()
    assert ear.heard == [sender.getsockname()[1]]
