"""Questions to a running server: over a local socket (--status), and over HTTP (Prometheus).

The caller's loop waits; here is what to do when something can be read or written.  Whoever asks
gets the answer at once, and is closed.  However many ask, and how often, writing answers takes no
more than a tenth of our time: until then the last one is given again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from typing import Any

from dtcp.cli import Failure
from dtcp.errors import NOT_ALLOWED
from dtcp.server import sessions

SOCKET = "/var/run/dtcps.sock"
MOST = 16  # of each kind that are open at a time; the oldest makes room
_LOCAL = rb"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?"  # what we are asked for
REQUEST = 8192  # bytes of a request that is looked at
PATIENCE = 10.0  # seconds that --status waits for its answer
SHARE = 0.1  # of our time, for each kind of answer


class Inquiry:
    """One question, and its answer."""

    def __init__(self, sock: socket.socket, over_http: bool) -> None:
        self.socket = sock
        self.over_http = over_http
        self.asked = b""
        self.unsent = b""


class Inquiries:
    """Listens for questions; `write(over_http)` writes the answer."""

    def __init__(self, selector: selectors.BaseSelector, write: Callable[[bool], str]) -> None:
        self._selector = selector
        self._write = write
        self._told: dict[bool, tuple[float, str]] = {}  # until when, and what
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
        there = [each for each in self._open.values() if each.over_http == over_http]
        if len(there) >= MOST:  # who says nothing goes before who waits for us
            silent = (each for each in there if over_http and not _is_whole(each.asked))
            self._drop(next(silent, there[0]))
        inquiry = self._open[sock] = Inquiry(sock, over_http)
        self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._on(inquiry, mask))
        if not over_http:
            self._answer(inquiry)

    def _answer(self, inquiry: Inquiry) -> None:
        until, text = self._told.get(inquiry.over_http, (0.0, ""))
        if (now := time.monotonic()) >= until:
            try:
                text = self._write(inquiry.over_http)
            except Exception:
                self._drop(inquiry)
                raise
            until = now + (time.monotonic() - now) / SHARE
            self._told[inquiry.over_http] = until, text
        if inquiry.over_http:
            self._say(inquiry, _http(inquiry.asked, "200 OK", text))
        else:
            self._say(inquiry, text.encode())

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
        if not data or _is_whole(inquiry.asked) or len(inquiry.asked) > REQUEST:
            self._drop(inquiry)
            return
        if inquiry.over_http:
            inquiry.asked += data
            if _is_whole(inquiry.asked):
                if (refusal := _refusal(inquiry.asked)) is not None:
                    self._say(inquiry, _http(inquiry.asked, *refusal))
                else:
                    self._answer(inquiry)

    def _say(self, inquiry: Inquiry, data: bytes) -> None:
        inquiry.unsent = data
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


def _is_whole(request: bytes) -> bool:
    return b"\r\n\r\n" in request or b"\n\n" in request


def _refusal(request: bytes) -> tuple[str, str] | None:
    """The status and text for a request that gets no numbers (RFC 9112, as far as it matters)."""
    first, *fields = request.splitlines()
    words = first.split(b" ")
    hosts = [field[5:].strip() for field in fields if field.lower().startswith(b"host:")]
    if len(words) != 3 or (len(hosts) != 1 and (hosts or words[2] != b"HTTP/1.0")):
        return "400 Bad Request", "not HTTP/1.1\n"
    if hosts and not re.fullmatch(_LOCAL, hosts[0], re.IGNORECASE):
        # A page somewhere else, whose name its owner has made one of ours, in somebody's browser.
        return "421 Misdirected Request", "ask for localhost\n"
    if words[0] not in (b"GET", b"HEAD"):
        return "405 Method Not Allowed", "GET it\n"
    if words[1].partition(b"?")[0] != b"/metrics":
        return "404 Not Found", "see /metrics\n"
    return None


def _http(request: bytes, status: str, text: str) -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if request.startswith(b"HEAD ") else body)


def local(path: str) -> socket.socket:
    """A listening socket at that path, for its owner alone.  Raises Failure."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock.bind(path)  # the umask is 077, so nobody else can connect, not even for a moment
        os.chmod(path, 0o600)
        sock.listen(MOST)
    except OSError as error:
        sock.close()
        raise Failure(f"{path}: {error.strerror}") from None
    return sock


def metrics(wanted: tuple[IPv4Address, int] | None) -> socket.socket | None:
    """A listening socket for Prometheus, if it is wanted.  Raises Failure."""
    if wanted is None:
        return None
    try:
        sock = sessions.listener(*wanted)
    except Failure as failure:
        raise Failure(f"metrics: {failure}") from None
    sock.listen(MOST)
    return sock


def somebody_listens(path: str) -> bool:
    """Whether a server runs; so it may, if we are not allowed to know."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            pass
    return True


def ask(path: str) -> Mapping[str, Any] | None:
    """What the server at that path tells of itself; None: there is none.  Raises Failure."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        answer = b""
        try:
            sock.connect(path)
            while data := sock.recv(65536):
                answer += data
            told: Mapping[str, Any] = json.loads(answer)
        except PermissionError:
            raise Failure(f"{path}: not allowed; become root", NOT_ALLOWED) from None
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise Failure(f"{path}: {error.strerror or error}") from None
        except ValueError:
            raise Failure(f"{path}: it answered nothing") from None
    return told
