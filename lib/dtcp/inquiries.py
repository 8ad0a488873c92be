"""Questions to a running server: over a local socket (--status), and over HTTP (Prometheus).

The caller's loop waits; here is what to do when something can be read or written.  Whoever asks
gets the answer as soon as there is one, and is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Any

MOST = 16  # open at a time; the oldest makes room
REQUEST = 8192  # bytes of a request that is looked at
PATIENCE = 10.0  # seconds that --status waits for its answer


class Inquiry:
    """One question, and its answer."""

    def __init__(self, sock: socket.socket, over_http: bool) -> None:
        self.socket = sock
        self.over_http = over_http
        self.asked = b""
        self.unsent = b""


class Inquiries:
    """Listens for questions; `ask(inquiry)` is called for each, to call `answer` with the text."""

    def __init__(self, selector: selectors.BaseSelector, ask: Callable[[Inquiry], None]) -> None:
        self._selector = selector
        self._ask = ask
        self._listeners: list[socket.socket] = []
        self._open: dict[socket.socket, Inquiry] = {}

    def listen(self, sock: socket.socket, *, over_http: bool) -> None:
        """Take questions from this listening socket."""
        sock.setblocking(False)
        self._listeners.append(sock)
        self._selector.register(sock, selectors.EVENT_READ, lambda _: self._accept(sock, over_http))

    def close(self, *, over_http: bool | None = None) -> None:
        """Stop listening, over HTTP only or not at all any more."""
        for sock in list(self._listeners):
            if over_http in (None, sock.family == socket.AF_INET):
                self._listeners.remove(sock)
                self._selector.unregister(sock)
                sock.close()

    def _accept(self, listener: socket.socket, over_http: bool) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        if len(self._open) >= MOST:
            self._drop(next(iter(self._open.values())))
        inquiry = self._open[sock] = Inquiry(sock, over_http)
        self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._on(inquiry, mask))
        if not over_http:
            self._ask(inquiry)

    def _on(self, inquiry: Inquiry, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._send(inquiry)
            return
        try:
            data = inquiry.socket.recv(REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        complete = b"\r\n\r\n" in inquiry.asked or b"\n\n" in inquiry.asked
        if not data or complete or len(inquiry.asked) > REQUEST:
            self._drop(inquiry)
            return
        if inquiry.over_http:
            inquiry.asked += data
            if b"\r\n\r\n" in inquiry.asked or b"\n\n" in inquiry.asked:
                self._ask(inquiry)

    def answer(self, inquiry: Inquiry, text: str) -> None:
        """Send this, and close."""
        if inquiry.socket not in self._open:
            return
        inquiry.unsent = _http(inquiry.asked, text) if inquiry.over_http else text.encode()
        self._selector.modify(
            inquiry.socket, selectors.EVENT_WRITE, lambda mask: self._on(inquiry, mask)
        )
        self._send(inquiry)

    def _send(self, inquiry: Inquiry) -> None:
        try:
            while inquiry.unsent:
                inquiry.unsent = inquiry.unsent[inquiry.socket.send(inquiry.unsent[:65536]) :]
        except BlockingIOError:
            return
        except OSError:
            pass
        self._drop(inquiry)

    def _drop(self, inquiry: Inquiry) -> None:
        if self._open.pop(inquiry.socket, None) is not None:
            self._selector.unregister(inquiry.socket)
            inquiry.socket.close()


def _http(request: bytes, text: str) -> bytes:
    """The answer to a request, as far as RFC 9112 is needed here."""
    words = request.split(b"\r\n")[0].split(b" ")
    status, kind = "200 OK", "text/plain; version=0.0.4; charset=utf-8"
    if words[0] not in (b"GET", b"HEAD"):
        status, text = "405 Method Not Allowed", "GET it\n"
    elif len(words) < 2 or words[1].partition(b"?")[0] != b"/metrics":
        status, text = "404 Not Found", "see /metrics\n"
    body = text.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if words[0] == b"HEAD" else body)


def local(path: str) -> socket.socket:
    """A listening socket at that path, for its owner alone.  Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)  # the umask is 077, so nobody else can connect, not even for a moment
        os.chmod(path, 0o600)
        sock.listen(MOST)
    except OSError:
        sock.close()
        raise
    return sock


def ask(path: str) -> Mapping[str, Any]:
    """What the server at that path tells of itself.  Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(path)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    try:
        told = json.loads(answer)
    except ValueError:
        raise ConnectionResetError("it answered nothing") from None
    assert isinstance(told, dict)
    return told
