"""Speaks DTCP with the server, in a process that may do nothing else.

What a server says is parsed here, and not by root.  The client (`Speaker`) connects, and hands the
socket over, with what is to be asked for.  The process it hands it to has no privileges, and no
file open but that socket and the one to the client, room for no more than the next such socket,
and can fork nothing.  It logs in, keeps the conversation alive, and tells the client what came of
it, a line each.  The number is that of the login:

    1 trace << +OK 0B1517C87D516A5FA65BED722D51A04F KAME tunnel server
    1 remark the server delegates no prefix
    1 granted 203.0.113.7 192.0.2.1 2001:db8:1::6 2001:db8:1::5
    1 nat 198.51.100.7                     the server sees us there
    1 refused busy, try again later        at the greeting
    1 denied authentication failed.        the login
    1 nonsense this is no DTCP server
    1 lost no answer to two pings
    1 gone                                 in answer to `quit`: the goodbye is said

What it tells is believed as little as the server itself: a grant is taken only in the one spelling
that it can have, and goes through all its checks again; an address through `ipaddress`; text ends
in messages, made visible and capped; and a process that says too much is ended.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import NamedTuple, NoReturn

from dtcp import grant, wire
from dtcp.wire import Lost, Refused

QUIT_TIME = 2.0  # seconds that a server has for answering to our `quit`
PATIENCE = 2.0  # seconds that we wait for the process beyond its own limits
ENDING_TIME = 1.0  # seconds that the process has for its end
TOLD_AT_ONCE, TOLD_PER_SECOND = 500, 10  # lines that it may tell, and how many more with time
LINE_LIMIT = 4 * wire.LINE_LIMIT  # of what is told: addresses may be longer than they came


class Request(NamedTuple):
    """What is to be asked for on a connection."""

    own: IPv4Address  # the ends of the connection, as they were when it was made
    server: IPv4Address
    user: str
    type: str
    nat: bool  # the server may see us under another address
    port: int | None  # of ours, for a tunnel over UDP
    announced: int | None  # what the server is told of it
    verbose: bool  # trace what keeps the conversation alive, too: that wakes both of us up
    password: str


class Granted(NamedTuple):
    """The login was accepted."""

    grant: grant.Grant


class Nonsense(NamedTuple):
    """The server said what no DTCP server says, or granted what makes no sense."""

    text: str


class Gone(NamedTuple):
    """The goodbye has been said."""


Event = Granted | Refused | Lost | Nonsense | Gone | grant.BehindNat


class Speaker:
    """The client's end: one process, for one login after the other.

    `account` is the user and group that the process changes to; None: it stays who we are.
    `trace` gets lines of the conversation, `remark` what is to be said about a grant.  The process
    is forked early, before there is a password or anything else that it must not know.  If it dies,
    another one takes its place for the next login, which is forked from what the client is by then.
    """

    def __init__(
        self,
        account: tuple[int, int] | None,
        trace: Callable[[str], None],
        remark: Callable[[str], None],
    ) -> None:
        self._account, self._trace, self._remark = account, trace, remark
        self._number = 0  # of the last login
        self._request: Request
        self._begun = 0.0
        self._may_tell, self._may_tell_at = float(TOLD_AT_ONCE), 0.0
        self._quitting = False
        self._waiting = False  # for what comes of a login
        self._listening = False  # for what comes of the conversation, its end included
        self._fork()

    def _fork(self) -> None:
        self._lines = wire.LineBuffer(LINE_LIMIT)
        ours, its = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            _run(its, self._account)
        its.close()
        ours.setblocking(False)
        self._socket: socket.socket | None = ours

    def fileno(self) -> int:
        """Becomes readable when there is something to be told (-1: not any more)."""
        return self._socket.fileno() if self._socket is not None else -1

    @property
    def deadline(self) -> float:
        """When `event` must be called at the latest, by the monotonic clock."""
        limit = wire.LOGIN_TIME + PATIENCE
        return self._begun + limit if self._waiting else float("inf")

    def login(self, sock: socket.socket, request: Request) -> None:
        """Have it log in on a connected socket, which is its own from now on."""
        if self._socket is None:  # whatever befell it: the tunnel has to come back
            self._fork()
        assert self._socket is not None
        self._number += 1
        self._request = request
        self._begun = self._may_tell_at = time.monotonic()
        self._may_tell = float(TOLD_AT_ONCE)
        self._quitting = False
        self._waiting = self._listening = True
        with sock:
            self._say(_packed(self._number, request), sock.fileno())

    def quit(self) -> None:
        """Have it say goodbye: `Gone` comes when that has been heard, or has taken too long."""
        self._quitting = True
        self._say(b"quit\n")

    def leave(self) -> None:
        """Have it say goodbye, and wait for nothing."""
        self._waiting = self._listening = False
        self._say(b"leave\n")

    def end(self) -> None:
        """End the process, and see it gone."""
        if self._socket is None:
            return
        end = time.monotonic() + ENDING_TIME
        with contextlib.suppress(OSError):
            # It ends when it reads the end, and we read the end when it has ended.
            self._socket.shutdown(socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv(4096):
                    break
        self._close()

    def _say(self, line: bytes, *descriptors: int) -> None:
        if self._socket is None:
            return
        self._socket.settimeout(PATIENCE)
        with contextlib.suppress(OSError):  # `event` tells when it has died, or hangs
            sent = socket.send_fds(self._socket, [line], descriptors)
            self._socket.sendall(line[sent:])
        self._socket.setblocking(False)

    def _close(self) -> None:
        """Have done with the process."""
        if self._socket is None:
            return
        holds = self._holds(self._socket)
        self._socket.close()
        self._socket = None
        with contextlib.suppress(ProcessLookupError):
            try:
                if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
            except ChildProcessError:
                # A daemon's is a child of init(8), which knows whether the number is still its own;
                # what holds its end of the sockets lives.
                if holds:
                    os.kill(self.pid, signal.SIGKILL)

    def _holds(self, sock: socket.socket) -> bool:
        """Whether the process holds its end of the sockets, so that it surely lives."""
        sock.setblocking(False)
        for _ in range(64):  # one that does not come to an end lives, too
            try:
                if not sock.recv(65536):
                    return False
            except BlockingIOError:
                return True
            except OSError:
                return False
        return True

    def event(self) -> Event | None:
        """The next thing that it has told about the last login, or that time has brought; or None.

        To be called until there is none, for `fileno` tells of what is still to be read only.
        """
        try:
            self._read()
            while (line := self._lines.next_line()) is not None:
                self._allow()
                number, word, text = (*line.split(" ", 2), "", "")[:3]
                if number == str(self._number):  # not of a login that is over
                    event = self._event(word, text)
                    if event is not None:
                        return event
        except (wire.ProtocolError, grant.GrantError, ValueError) as error:
            self._lines = wire.LineBuffer(LINE_LIMIT)
            self._close()
            return Nonsense(f"the process that speaks with it told nonsense: {error}")
        if self._socket is None and self._listening:
            return self._lost("the process that speaks with it has died")
        if time.monotonic() >= self.deadline:
            self._close()
            return self._lost("no answer from the process that speaks with it")
        return None

    def _allow(self) -> None:
        """Count a line that it has told.  Raises ValueError when there are too many."""
        now = time.monotonic()
        more = TOLD_PER_SECOND * (now - self._may_tell_at)
        self._may_tell = min(float(TOLD_AT_ONCE), self._may_tell + more) - 1
        self._may_tell_at = now
        if self._may_tell < 0:
            raise ValueError("too much of it")

    def _read(self) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(BlockingIOError):
            try:
                data = self._socket.recv(4096)
            except ConnectionError:
                data = b""
            if data:
                self._lines.feed(data)
            else:
                self._close()

    def _lost(self, reason: str) -> Lost:
        self._listening = self._waiting = False
        return Lost(reason)

    def _event(self, word: str, text: str) -> Event | None:
        shown = wire.visible(text)
        if word == "trace":
            self._trace(shown)
            return None
        if word == "gone" and self._quitting:
            return Gone()
        if word == "lost":
            return self._lost(shown)
        if word == "nonsense":
            return Nonsense(shown)
        if not self._waiting:
            raise ValueError(f"{word!a} out of place")
        if word == "remark":
            self._remark(shown)
            return None
        self._waiting = False
        if word in ("refused", "denied"):
            return Refused(shown, at_greeting=word == "refused")
        request = self._request
        if word == "nat":
            return grant.BehindNat(request.own, IPv4Address(text), udp=request.port is not None)
        if word == "granted":
            found = grant.accept(
                text, request.type, own=request.own, server=request.server, port=request.port
            )
            return Granted(found)
        raise ValueError(f"what is {word!a}?")


def _packed(number: int, request: Request) -> bytes:
    """A login as a line; the password, which may hold blanks, comes last."""
    return f"login {number} {' '.join(map(str, request))}\n".encode("utf-8", "surrogateescape")


def _unpacked(line: str) -> tuple[int, Request]:
    _, number, own, server, user, kind, nat, port, announced, verbose, password = line.split(
        " ", 10
    )
    request = Request(
        IPv4Address(own),
        IPv4Address(server),
        user,
        kind,
        nat == "True",
        _port(port),
        _port(announced),
        verbose == "True",
        password,
    )
    return int(number), request


def _port(word: str) -> int | None:
    return None if word == "None" else int(word)


# --- the process ------------------------------------------------------------------------------


def _run(client: socket.socket, account: tuple[int, int] | None) -> NoReturn:
    """What the process does; it never returns."""
    try:
        wire.digest("", "", "")  # imports what can be opened now only
        _give_up_privileges(client, account)
        _Conversations(socket.socket(fileno=0)).run()
    finally:
        os._exit(0)


def _give_up_privileges(client: socket.socket, account: tuple[int, int] | None) -> None:
    """Have nothing open but the client's socket, as descriptor 0, and no way to more."""
    os.setsid()  # the terminal's ^C is for the client, which lets us say goodbye
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # we end when the client does
    os.chdir("/")
    os.dup2(client.detach(), 0)
    os.closerange(1, max(65536, os.sysconf("SC_OPEN_MAX")))
    sys.stdin = sys.stdout = sys.stderr = None
    if account is not None:
        user, group = account
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    # Room for the server's socket, and for the next one while that is still open.
    for what, most in (
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


class _Conversations:
    """One conversation with a server after the other, as the client wants them."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._asked = b""  # what the client says, as far as it has been read
        self._next: socket.socket | None = None  # the server's, until its login is read
        self._server: socket.socket | None = None
        self._number = 0
        self._request: Request
        self._dtcp: wire.Client
        self._unsent = b""
        self._up = False
        self._quit_at = 0.0  # when the goodbye has taken too long; 0: none was said

    def run(self) -> None:
        """Until the client ends."""
        try:
            self._run()
        except Exception as error:  # nobody else would hear of it
            self._tell("lost", f"internal error: {error!r}")

    def _run(self) -> None:
        while True:
            readers: list[socket.socket] = [self._client]
            writers: list[socket.socket] = []
            timeout = None
            if self._server is not None:
                readers.append(self._server)
                writers += [self._server] if self._unsent else []
                timeout = max(0.0, (self._quit_at or self._dtcp.deadline) - time.monotonic())
            ready, _, _ = select.select(readers, writers, [], timeout)
            if self._client in ready and not self._hear_client():
                return
            if self._server is not None:
                self._go_on(self._server in ready)

    def _hear_client(self) -> bool:
        """Do what the client says.  False: it has ended."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._client, 4096, 1)
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._leave()
            return False
        for descriptor in descriptors:
            self._next = socket.socket(fileno=descriptor)
        *lines, self._asked = (self._asked + data).split(b"\n")
        for line in lines:
            if line == b"leave":
                self._leave()
            elif line == b"quit" and self._server is None:
                self._tell("gone")
            elif line == b"quit":
                self._dtcp.quit()
                self._quit_at = time.monotonic() + QUIT_TIME
            else:
                self._login(line.decode("utf-8", "surrogateescape"))
        return True

    def _login(self, line: str) -> None:
        self._leave()
        assert self._next is not None
        self._server, self._next = self._next, None
        self._server.setblocking(False)
        self._number, request = _unpacked(line)
        self._request = request
        self._unsent, self._up, self._quit_at = b"", False, 0.0
        self._dtcp = wire.Client(
            request.user,
            request.password,
            request.type,
            time.monotonic(),
            udp=request.announced,
            trace=self._traced,
        )

    def _traced(self, line: str) -> None:
        if self._request.verbose or not self._up:
            self._tell("trace", line)

    def _go_on(self, readable: bool) -> None:
        """Hear the server, look at the clock, and say what is to be said."""
        assert self._server is not None
        now = time.monotonic()
        events: list[wire.ClientEvent] = []
        if readable:
            try:
                data = self._server.recv(4096)
                # Behind our goodbye: one line, or the end, whatever it says.  KAME's server does
                # not always close.
                events = self._dtcp.receive(data, now) if not self._quit_at else [Lost("")]
            except BlockingIOError:
                pass
            except wire.ProtocolError as error:
                self._over("nonsense", str(error))
                return
            except OSError as error:
                events = [Lost(error.strerror or "the connection broke")]
        if self._quit_at:
            self._flush()
            if events or now >= self._quit_at:
                self._over("gone")
            return
        events += self._dtcp.tick(now)
        self._flush()
        for event in events:
            if isinstance(event, wire.Granted):
                self._granted(event.words)
            elif isinstance(event, Refused):
                self._over("refused" if event.at_greeting else "denied", event.text)
            else:
                self._over("lost", event.reason)

    def _granted(self, words: list[str]) -> None:
        request = self._request
        try:
            granted, remarks = grant.parse(
                words,
                request.type,
                own=request.own,
                server=request.server,
                nat=request.nat,
                port=request.port,
            )
        except grant.GrantError as error:
            self._over("nonsense", f"the server's grant makes no sense: {error}")
        except grant.BehindNat as error:
            self._over("nat", str(error.seen))
        else:
            for remark in remarks:
                self._tell("remark", remark)
            self._tell("granted", granted.reply())
            self._up = True

    def _tell(self, *words: str) -> None:
        line = " ".join((str(self._number), *words))
        with contextlib.suppress(OSError):  # the client has ended; we shall read that
            self._client.sendall(f"{line}\n".encode("ascii", "replace"))

    def _flush(self) -> None:
        assert self._server is not None
        self._unsent += self._dtcp.take()
        try:
            while self._unsent:
                self._unsent = self._unsent[self._server.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""  # reading will tell what happened

    def _over(self, *words: str) -> None:
        """The conversation is over: close it, and tell."""
        self._leave()
        self._tell(*words)

    def _leave(self) -> None:
        """Close the connection, with a goodbye that nobody waits for."""
        if self._server is not None:
            if not self._quit_at:
                self._dtcp.quit()
                self._flush()
            self._server.close()
            self._server = None
