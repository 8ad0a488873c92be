"""The process that speaks with the server, and may do nothing else.

What a server says is read here, and not by root.  The process has no privileges and no file open
but its sockets, and can fork nothing.  The client (dtcp.client.speaker) says where to connect and
what to ask for.  The process tells it what comes of a login, a line each, with the number of the
login:

    1 connected 203.0.113.7                from this address of ours
    1 secured TLSv1.3 TLS_AES_256_GCM_SHA384 1795780800    until then the certificate is valid
    1 challenge 0B1517C87D516A5FA65BED722D51A04F
    1 trace << +OK 0B1517C87D516A5FA65BED722D51A04F KAME tunnel server
    1 remark the server delegates no prefix
    1 granted 203.0.113.7 192.0.2.1 2001:db8:1::6 2001:db8:1::5
    1 nat 198.51.100.7                     the server sees us there
    1 refused busy, try again later        at the greeting
    1 denied authentication failed.        the login
    1 nonsense this is no DTCP server
    1 insecure the server offers no TLS    or its certificate is not the right one
    1 alive                                as often as it pings
    1 lost no answer to two pings          or that there is no connection, or not any more

Every conversation ends as dtcp.client.ending has it, and the next one begins when that is over, or
has taken too long.  But a server of ours hands a tunnel over to a second login of its user, as it
is, and takes it down when the first connection ends: that one is kept until the second is granted.

TLS (dtcp.tls) is all in the process.  What that needs of the system's files, it reads before it
gives up its privileges.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from dtcp import grant, wire
from dtcp.client.ending import Ending
from dtcp.wire import Lost, Refused

if TYPE_CHECKING:  # without TLS, nobody waits for it or has it in memory
    import ssl

    from dtcp.tls import Tls

CONNECT_TIME = 10.0  # seconds for one address of the server
END_TIME = 3.0  # seconds that an old connection has for its end, before the next login
QUIT_TIME = 2.0  # the same, when nothing will follow


class Login(NamedTuple):
    """What is to be asked for, and of whom."""

    server: IPv4Address
    tcp_port: int
    user: str
    type: str
    nat: bool  # the server may see us under another address
    port: int | None  # of ours, for a tunnel over UDP
    announced: int | None  # what the server is told of it
    verbose: bool  # trace what keeps the conversation alive, too
    passing: bool  # through the tunnel of the last login
    # Insist on it, with a certificate for this name, or with this fingerprint; or nothing.
    tls: str = ""

    @classmethod
    def of(cls, options: argparse.Namespace, server: IPv4Address, *, passing: bool) -> Login:
        """What the command line asks for, of that server."""
        return cls(
            server,
            options.port,
            options.user,
            options.type,
            nat=options.nat,
            port=options.udp_port if options.udp else None,
            announced=options.announced,
            verbose=options.debug,
            passing=passing,
            # A name may end in a dot, and those in certificates do not.
            tls=(options.tls_fingerprint or options.server.rstrip(".")) if options.tls else "",
        )


def _flag(word: str) -> bool:
    return word == "True"


def _port(word: str) -> int | None:
    return None if word == "None" else int(word)


# How each of its words is read.
_READ: tuple[Callable[[str], Any], ...]
_READ = (IPv4Address, int, str, str, _flag, _port, _port, _flag, _flag, str)


def run(client: socket.socket, account: tuple[int, int] | None, trust: str = "") -> NoReturn:
    """What the process does; it never returns.

    `client` is the socket to its client; `account` the user and group that it changes to, if any;
    `trust` what certificates are held against: STORE, PINNED, or nothing without TLS.
    """
    try:
        context = _context(trust) if trust else None
        _give_up_privileges(client, account)
        _Conversations(socket.socket(fileno=0), context).run()
    finally:
        os._exit(0)


STORE, PINNED = "store", "pinned"


def _context(trust: str) -> ssl.SSLContext | None:
    """What TLS needs; None: this Python has none."""
    try:
        from dtcp import tls
    except ImportError:
        return None
    return tls.for_client(pinned=trust == PINNED)


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
    # Room for the server's socket, and for an older one that has not ended yet.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    for what in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(what, (0, 0))


class _Conversations:
    """One conversation with a server after the other, as the client wants them."""

    def __init__(self, client: socket.socket, context: ssl.SSLContext | None) -> None:
        self._client: socket.socket | None = client  # None: it has ended
        self._context = context
        self._asked = b""  # what the client says, as far as it has been read
        self._server: socket.socket | None = None
        self._number = 0
        self._wanted: Login
        self._connect_by = 0.0  # 0: it is connected
        self._begun = 0.0  # when it was connected
        self._dtcp: wire.Client
        self._tls: Tls | None = None
        self._unsent = b""
        self._up = False
        # The connection before, which has the tunnel until this one is granted it.
        self._kept: tuple[socket.socket, wire.Client, Tls | None] | None = None
        self._key: bytes | None = None  # of the last tunnel that was granted
        self._endings: list[Ending] = []
        # What waits for these, and how many seconds after they have begun it waits no longer.
        self._then: Callable[[], None] | None = None
        self._patience = 0.0

    def run(self) -> None:
        """Until the client ends, and what was said to the server has come to its end."""
        while self._client is not None or self._then is not None:
            readers = [each.socket for each in self._endings]
            writers: list[socket.socket] = []
            due = self._may_go_on_at() if self._then is not None else math.inf
            if self._client is not None:
                readers.append(self._client)
            if self._server is not None:
                readers += [self._server] if not self._connect_by else []
                writers += [self._server] if self._connect_by or self._unsent else []
                due = min(due, self._connect_by or self._dtcp.deadline)
            timeout = None if due == math.inf else max(0.0, due - time.monotonic())
            ready, writable, _ = select.select(readers, writers, [], timeout)
            try:
                self._endings = [
                    each for each in self._endings if each.socket not in ready or not each.is_over()
                ]
                if self._client is not None and self._client in ready:
                    self._hear_client(self._client)
                if self._then is not None and time.monotonic() >= self._may_go_on_at():
                    then, self._then = self._then, None
                    then()
                elif self._server is not None and self._connect_by:
                    self._look_at_connection(self._server, self._server in writable)
                elif self._server is not None:
                    self._go_on(self._server, self._server in ready)
            except wire.ProtocolError as error:
                self._over("nonsense", str(error))
            except Exception as error:  # nobody else would hear of it
                self._over("lost", f"internal error: {error!r}")

    def _may_go_on_at(self) -> float:
        """When nobody waits for the ends of old connections any more."""
        return max((each.since for each in self._endings), default=-math.inf) + self._patience

    def _wait_for_ends(self, patience: float, then: Callable[[], None]) -> None:
        self._patience, self._then = patience, then

    def _hear_client(self, client: socket.socket) -> None:
        """Do what the client says, or notice that it has ended."""
        try:
            data = client.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._client = None
            self._leave_all()
            self._wait_for_ends(QUIT_TIME, lambda: None)
            return
        *lines, self._asked = (self._asked + data).split(b"\n")
        for line in lines:
            match line.decode().split(" "):
                case ["login", number, *words]:
                    self._login(int(number), words)
                case ["digest", number, answer]:
                    if number == str(self._number) and self._server and not self._connect_by:
                        self._dtcp.answer(answer)
                case ["leave"]:
                    self._leave_all()
                case ["drop"]:
                    self._leave_all()
                    for each in self._endings:
                        each.expect_nothing()
                case ["quit"]:
                    self._leave_all()
                    self._wait_for_ends(
                        QUIT_TIME, lambda: self._tell("lost", "the goodbye is said")
                    )

    def _login(self, number: int, words: list[str]) -> None:
        """Begin with the next conversation, once the last one has ended."""
        self._number = number
        if self._server is not None and self._up and self._dtcp.hands_over:
            self._kept = self._server, self._dtcp, self._tls
            self._server = None
        self._leave()
        self._up = False
        self._wanted = Login(*(read(word) for read, word in zip(_READ, words, strict=True)))
        self._wait_for_ends(END_TIME, self._connect)

    def _connect(self) -> None:
        """Begin to connect."""
        while len(self._endings) + (self._kept is not None) > 1:
            self._endings.pop(0).close()
        if self._wanted.tls and self._context is None:
            self._over("insecure", "this Python has no TLS, on which --tls insists")
            return
        self._unsent, self._tls = b"", None
        self._connect_by = time.monotonic() + CONNECT_TIME
        self._server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._server.setblocking(False)
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        error = self._server.connect_ex((str(self._wanted.server), self._wanted.tcp_port))
        if error not in (0, errno.EINPROGRESS):
            self._over("lost", os.strerror(error))

    def _look_at_connection(self, server: socket.socket, ready: bool) -> None:
        """See what has become of connect(2), and begin to speak."""
        now = time.monotonic()
        error = server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if ready else 0
        if not ready and now >= self._connect_by:
            error = errno.ETIMEDOUT
        if error == errno.ETIMEDOUT:
            why = f"{os.strerror(error)}; does a packet filter on the way drop it?"
            self._over("lost", why)
        elif error:
            self._over("lost", os.strerror(error))
        elif ready:
            self._connect_by = 0.0
            self._own = IPv4Address(server.getsockname()[0])
            self._tell("connected", str(self._own))
            self._begun = now
            self._dtcp = self._conversation(tls=bool(self._wanted.tls))

    def _conversation(self, *, tls: bool) -> wire.Client:
        asked = self._wanted
        key = self._key if self._kept is not None and asked.passing else None
        return wire.Client(
            *(asked.user, asked.type, self._begun),
            udp=asked.announced,
            key=key,
            tls=tls,
            trace=self._traced,
        )

    def _traced(self, line: str) -> None:
        if self._wanted.verbose or not self._up:
            self._tell("trace", line)

    def _go_on(self, server: socket.socket, readable: bool) -> None:
        """Hear the server, look at the clock, and say what is to be said."""
        now = time.monotonic()
        events: list[wire.ClientEvent] = []
        if readable:
            try:
                events = self._received(server.recv(4096), now)
            except BlockingIOError:
                pass
            except OSError as error:
                events = [Lost(error.strerror or "the connection broke")]
        late = self._dtcp.tick(now)
        if late and self._tls is not None and not self._tls.done:
            late = [Lost("no answer: the TLS handshake was not over in time")]
        events += late
        if self._flush() and self._up:
            self._tell("alive")
        for event in events:
            match event:
                case wire.Challenged(challenge):
                    self._tell("challenge", challenge)
                case wire.Granted(words):
                    self._granted(words)
                case Refused(text, at_greeting):
                    self._over("refused" if at_greeting else "denied", text)
                case wire.StartTls():
                    self._start_tls()
                case wire.Insecure(reason):
                    self._over("insecure", reason)
                case Lost(reason):
                    self._over("lost", reason)

    def _received(self, data: bytes, now: float) -> list[wire.ClientEvent]:
        """What comes of bytes from the server.  Raises OSError, ProtocolError."""
        if self._tls is None:
            return self._dtcp.receive(data, now)
        from dtcp import tls

        was_done = self._tls.done
        try:
            data = self._tls.receive(data)
            if self._tls.done and not was_done:
                until = int(tls.valid_until(self._tls.certificate))
                self._tell("secured", self._tls.protocol, self._tls.cipher, str(until))
        except tls.Untrusted as error:
            return [wire.Insecure(str(error))]
        except tls.TlsError as error:
            raise wire.ProtocolError(str(error)) from None
        except ValueError as error:  # a pinned one counts whatever it says, if it can be read
            reason = f"the TLS handshake has failed: the certificate makes no sense: {error}"
            raise wire.ProtocolError(reason) from None
        if self._tls.closed and not self._tls.done:
            return [Lost("no answer: the TLS handshake was closed by the server")]
        events = self._dtcp.receive(data, now) if data else []
        return events + (self._dtcp.receive(b"", now) if self._tls.closed else [])

    def _start_tls(self) -> None:
        """Begin the handshake.  The conversation behind it counts, with the same time in all."""
        from dtcp.tls import Tls

        assert self._context is not None
        trusted = self._wanted.tls
        if ":" in trusted:
            self._tls = Tls(self._context, pinned=trusted)
        else:
            self._tls = Tls(self._context, name=trusted)
        self._dtcp = self._conversation(tls=False)
        self._flush()

    def _granted(self, words: list[str]) -> None:
        asked, own = self._wanted, self._own
        try:
            granted, remarks = grant.parse(
                words, asked.type, own=own, server=asked.server, nat=asked.nat, port=asked.port
            )
        except grant.GrantError as error:
            self._over("nonsense", f"the server's grant makes no sense: {error}")
        except grant.BehindNat as error:
            self._over("nat", str(error.seen))
        else:
            for remark in remarks:
                self._tell("remark", remark)
            self._tell("granted", granted.reply())
            self._up, self._key = True, granted.key
            if self._kept is not None:  # the server has ended it, or will when it reads our end
                server, *_ = self._kept
                self._kept = None
                self._endings.append(Ending(server))

    def _tell(self, *words: str) -> None:
        if self._client is None:
            return
        line = " ".join((str(self._number), *words))
        with contextlib.suppress(OSError):  # the client has ended; we shall read that
            self._client.sendall(f"{line}\n".encode("ascii", "replace"))

    def _flush(self) -> bool:
        """Send what is to be sent, as far as that goes.  Whether there was anything new."""
        assert self._server is not None
        new = self._dtcp.take()
        self._unsent += _as_sent(new, self._tls)
        try:
            while self._unsent:
                self._unsent = self._unsent[self._server.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""  # reading will tell what happened
        return bool(new)

    def _over(self, *words: str) -> None:
        """The conversation is over: close it, and tell."""
        self._leave()
        self._tell(*words)

    def _leave(self) -> None:
        """End the conversation, with a goodbye where one is due."""
        self._then = None
        if self._server is None:
            return
        server, self._server = self._server, None
        if self._connect_by:
            server.close()
        else:
            self._endings.append(_ended(server, self._dtcp, self._tls, self._unsent))

    def _leave_all(self) -> None:
        """End the one before as well, if it has not been."""
        self._leave()
        if self._kept is not None:
            self._endings.append(_ended(*self._kept))
            self._kept = None


def _as_sent(words: bytes, tls: Tls | None) -> bytes:
    """What goes on the wire for what is said, and what else TLS has to say."""
    if tls is None:
        return words
    tls.send(words)
    return tls.take()


def _ended(
    server: socket.socket, dtcp: wire.Client, tls: Tls | None, unsent: bytes = b""
) -> Ending:
    dtcp.quit()
    last = _as_sent(dtcp.take(), tls)
    if tls is not None:
        tls.close()
        last += tls.take()
    return Ending(server, unsent + last)
