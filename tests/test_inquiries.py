"""Questions to the server in a flood, and over HTTP from where they should not come."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator

import pytest
from dtcp.server import inquiries
from dtcp.server.inquiries import MOST, Inquiries

GOOD = b"GET /metrics HTTP/1.1\r\nHost: localhost:9123\r\n\r\n"


class Asked:
    """A listening socket, and what is written for those who ask there."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.written = 0
        self.takes = 0.0  # seconds, for writing one
        self.now = 1000.0
        self.inquiries = Inquiries(self.selector, self._write)
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = listener.getsockname()
        self.inquiries.listen(listener, over_http=True)
        self.clients: list[socket.socket] = []

    def _write(self, over_http: bool) -> str:
        assert over_http
        self.written += 1
        self.now += self.takes
        return f"numbers {self.written}"

    def turn(self) -> None:
        while ready := self.selector.select(0.01):
            for key, mask in ready:
                key.data(mask)

    def ask(self, request: bytes = GOOD) -> socket.socket:
        sock = socket.create_connection(self.address, 10)
        self.clients.append(sock)
        sock.sendall(request)
        self.turn()
        return sock


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    asked = Asked()
    monkeypatch.setattr(time, "monotonic", lambda: asked.now)
    yield asked
    for sock in asked.clients:
        sock.close()
    asked.turn()
    asked.inquiries.close()
    asked.selector.close()


def _hear(sock: socket.socket) -> str:
    with sock.makefile("rb") as file:
        return file.read().decode()


@pytest.mark.hazard(79)
def test_in_a_flood_the_last_answer_is_given_again(asked: Asked) -> None:
    """So that writing them takes a tenth of the time at most."""
    asked.takes = 0.05
    for _ in range(20):
        assert _hear(asked.ask()).endswith("\r\n\r\nnumbers 1")
        asked.now += 0.02
    asked.now += 0.2
    assert _hear(asked.ask()).endswith("\r\n\r\nnumbers 2")
    asked.takes = 0.0
    asked.now += 10
    for number in range(3, 6):  # which costs nothing: it is always the latest
        assert _hear(asked.ask()).endswith(f"\r\n\r\nnumbers {number}")


@pytest.mark.hazard(79)
def test_a_flood_is_bounded_and_who_is_silent_goes_first(asked: Asked) -> None:
    first = asked.ask(b"GET /metrics HTTP/1.1\r\n")
    for _ in range(10 * MOST):
        asked.ask(b"GET /me")
    assert len(asked.inquiries._open) == MOST
    assert asked.written == 0
    first.close()


def test_an_answer_that_failed_is_none_and_the_next_is_one(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(asked.inquiries, "_write", {}.__getitem__)
        with pytest.raises(KeyError):
            asked.ask()
        assert _hear(asked.clients[-1]) == ""
    assert _hear(asked.ask()).endswith("\r\n\r\nnumbers 1")


@pytest.mark.hazard(79)
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /metrics?x=y HTTP/1.1\r\nhOST:127.0.0.1:9123\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: [::1]:9123\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.0\n\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: attacker.example.org:9123\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost.example.org\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1.example.org\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.0\r\nHost: example.org\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nHost:\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: example.org\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)
def test_only_who_asks_for_this_host_gets_numbers(
    asked: Asked, request_: bytes, status: int
) -> None:
    sock = asked.ask(request_)
    assert asked.written == (status == 200), "a refusal costs no work"
    assert (answer := _hear(sock)).startswith(f"HTTP/1.1 {status} ")
    assert answer.endswith("numbers 1") == (status == 200)


def test_an_endless_request_ends(asked: Asked) -> None:
    asked.ask(b"x" * inquiries.REQUEST * 3)
    asked.turn()
    assert not asked.inquiries._open
