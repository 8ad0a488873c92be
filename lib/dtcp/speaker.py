"""Speaks DTCP with the server, in a process that may do nothing else.

What a server says is read here, and not by root.  The client (`Speaker`) says where to connect and
what to ask for.  The process has no privileges and no file open but its two sockets, and can fork
nothing.  It tells the client what comes of a login, a line each, with the number of the login:

    1 connected 203.0.113.7                from this address of ours
    1 challenge 0B1517C87D516A5FA65BED722D51A04F
    1 trace << +OK 0B1517C87D516A5FA65BED722D51A04F KAME tunnel server
    1 remark the server delegates no prefix
    1 granted 203.0.113.7 192.0.2.1 2001:db8:1::6 2001:db8:1::5
    1 nat 198.51.100.7                     the server sees us there
    1 refused busy, try again later        at the greeting
    1 denied authentication failed.        the login
    1 nonsense this is no DTCP server
    1 alive                                as often as it pings
    1 lost no answer to two pings          or that there is no connection, or not any more

The password stays with the client, which answers one challenge for each connection.  What the
process tells is believed as little as the server itself: an address must be one of this host; a
grant is taken only in the one spelling that it can have, and goes through all its checks again;
text ends in messages, made visible and capped; and a process that says too much, or nothing for
too long, is ended and replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any, NamedTuple, NoReturn

from dtcp import grant, network, wire
from dtcp.wire import Lost, Refused

CONNECT_TIME = 10.0  # seconds for one address of the server
QUIT_TIME = 2.0  # seconds that a server has for answering to our `quit`
PATIENCE = 2.0  # seconds that we wait for the process beyond its own limits
SILENCE = 110.0  # seconds without a word of it, though it should ping every minute
ENDING_TIME = 1.0  # seconds that the process has for its end
TOLD_AT_ONCE, TOLD_PER_SECOND = 500, 10  # lines that it may tell, and how many more with time
LINE_LIMIT = 4 * wire.LINE_LIMIT  # of what is told: addresses may be longer than they came


class Request(NamedTuple):
    """What is to be asked for, and of whom."""

    server: IPv4Address
    tcp_port: int
    user: str
    type: str
    nat: bool  # the server may see us under another address
    port: int | None  # of ours, for a tunnel over UDP
    announced: int | None  # what the server is told of it
    verbose: bool  # trace what keeps the conversation alive, too


def _flag(word: str) -> bool:
    return word == "True"


def _port(word: str) -> int | None:
    return None if word == "None" else int(word)


# How each of its words is read.
_READ: tuple[Callable[[str], Any], ...]
_READ = (IPv4Address, int, str, str, _flag, _port, _port, _flag)


class Nonsense(NamedTuple):
    """The server said what no DTCP server says, or granted what makes no sense."""

    text: str


# Connected, from that address; granted; or the end of it.
Event = IPv4Address | grant.Grant | grant.BehindNat | Refused | Lost | Nonsense


class Speaker:
    """The client's end: one process, for one login after the other.

    `account` is the user and group that the process changes to; None: it stays who we are.
    `trace` gets lines of the conversation, `remark` what is to be said about a grant.

    The first process is forked early, before there is a password or anything else that it must not
    know: that costs no time.  If it dies or hangs, another one takes its place for the next login;
    that one is a Python started anew, so that it has nothing of what root's memory holds by then.
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
        self._password = ""
        self._own: IPv4Address  # our end of the connection
        self._stage = "over"  # -> connecting -> greeting -> login -> up -> over
        self._may_tell, self._may_tell_at = float(TOLD_AT_ONCE), 0.0
        self.deadline = float("inf")  # when `event` must be called, by the monotonic clock
        self._socket: socket.socket | None = None
        self._start()

    def _start(self) -> None:
        """Have a new process.  Raises OSError."""
        self._lines = wire.LineBuffer(LINE_LIMIT)
        ours, its = socket.socketpair()
        ours.setblocking(False)
        with its, contextlib.ExitStack() as failing:
            failing.callback(ours.close)
            if self._number == 0:
                self.pid = os.fork()
                if self.pid == 0:
                    _run(its, self._account)
            else:
                library = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
                words = [sys.executable, "-ISBc", _AGAIN, library, *map(str, self._account or ())]
                as_input = (os.POSIX_SPAWN_DUP2, its.fileno(), 0)
                self.pid = os.posix_spawn(words[0], words, {}, file_actions=[as_input])
            failing.pop_all()
        self._socket = ours

    def fileno(self) -> int:
        """Becomes readable when there is something to be told (-1: not any more)."""
        return self._socket.fileno() if self._socket is not None else -1

    def login(self, request: Request, password: str) -> None:
        """Have it connect and log in.  What went before is over.  Raises OSError."""
        self._number += 1
        self._request, self._password = request, password
        if self._socket is None:  # whatever befell it: the tunnel has to come back
            self._start()
        self._may_tell, self._may_tell_at = float(TOLD_AT_ONCE), time.monotonic()
        self._go_on("connecting", CONNECT_TIME + PATIENCE)
        self._say(" ".join(map(str, ("login", self._number, *request))))

    def _go_on(self, stage: str, limit: float = float("inf")) -> None:
        """Begin a stage, in which it must say something within that many seconds."""
        self._stage = stage
        self.deadline = time.monotonic() + limit

    def quit(self) -> None:
        """Have it say goodbye: `Lost` comes when that has been heard, or has taken too long."""
        self._say("quit")

    def leave(self) -> None:
        """Have it say goodbye, and hear no more of it."""
        self._go_on("over")
        self._say("quit")

    def end(self) -> None:
        """End the process, and see it gone."""
        if self._socket is None:
            return
        end = time.monotonic() + ENDING_TIME
        holds = True
        with contextlib.suppress(OSError):
            # It ends when it reads the end, and we read the end when it has ended.
            self._socket.shutdown(socket.SHUT_WR)
            while holds and (left := end - time.monotonic()) > 0:
                self._socket.settimeout(left)
                holds = self._socket.recv(4096) != b""
        self._close(holds)

    def _say(self, line: str) -> None:
        if self._socket is not None:
            # Lines are few and short: one that does not fit means that it hangs, or has died, and
            # `event` tells that.
            with contextlib.suppress(OSError):
                self._socket.send(f"{line}\n".encode())

    def _close(self, holds: bool) -> None:
        """Have done with the process, which may still hold its end of the sockets."""
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        # A daemon's first process is a child of init(8), which knows whether the number is still
        # its own; what holds its end of the sockets lives.
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if holds or os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                os.kill(self.pid, signal.SIGKILL)
            end = time.monotonic() + ENDING_TIME
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0 and time.monotonic() < end:
                time.sleep(0.005)

    def event(self) -> Event | None:
        """The next thing that it has told about the last login, or that time has brought; or None.

        To be called until there is none, for `fileno` tells of what is still to be read only.
        """
        try:
            self._read()
            while (line := self._lines.next_line()) is not None:
                self._allow()
                number, word, text = (*line.split(" ", 2), "", "")[:3]
                # Not of a login that is over.
                if number == str(self._number) and self._stage != "over":
                    event = self._event(word, text)
                    if event is not None:
                        return event
        except (wire.ProtocolError, grant.GrantError, ValueError) as error:
            self._lines = wire.LineBuffer(LINE_LIMIT)
            self._close(holds=True)
            return self._over(Nonsense(f"the process that speaks with it told nonsense: {error}"))
        if self._socket is None and self._stage != "over":
            return self._over(Lost("the process that speaks with it has died"))
        if time.monotonic() >= self.deadline:
            self._close(holds=True)
            return self._over(Lost("no answer from the process that speaks with it"))
        return None

    def _read(self) -> None:
        try:
            data = self._socket.recv(4096) if self._socket is not None else b""
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._lines.feed(data)
        else:
            self._close(holds=False)

    def _allow(self) -> None:
        """Count a line that it has told.  Raises ValueError when there are too many."""
        now = time.monotonic()
        more = TOLD_PER_SECOND * (now - self._may_tell_at)
        self._may_tell = min(float(TOLD_AT_ONCE), self._may_tell + more) - 1
        self._may_tell_at = now
        if self._may_tell < 0:
            raise ValueError("too much of it")

    def _over(self, event: Event) -> Event:
        self._go_on("over")
        return event

    def _event(self, word: str, text: str) -> Event | None:
        shown = wire.visible(text)
        if self._stage == "up":
            self._go_on("up", SILENCE)
        match self._stage, word:
            case _, "trace":
                self._trace(shown)
            case "login", "remark":
                self._remark(shown)
            case "up", "alive":
                pass
            case "connecting", "connected":
                self._own = IPv4Address(text)
                if not network.is_here(self._own):
                    raise ValueError(f"{self._own} is no address of this host")
                self._go_on("greeting", wire.LOGIN_TIME + PATIENCE)
                return self._own
            case "greeting", "challenge":
                if not wire.is_challenge(text):
                    raise ValueError(f"{shown!a} is no challenge")
                self._stage = "login"
                digest = wire.digest(self._request.user, text, self._password)
                self._say(f"digest {self._number} {digest}")
            case "greeting" | "login", "refused" | "denied":
                return self._over(Refused(shown, at_greeting=word == "refused"))
            case "login", "nat":
                udp = self._request.port is not None
                return self._over(grant.BehindNat(self._own, IPv4Address(text), udp=udp))
            case "login", "granted":
                asked, own = self._request, self._own
                self._go_on("up", SILENCE)
                return grant.accept(text, asked.type, own=own, server=asked.server, port=asked.port)
            case _, "lost":
                return self._over(Lost(shown))
            case _, "nonsense":
                return self._over(Nonsense(shown))
            case _:
                raise ValueError(f"{word!a} out of place")
        return None


# --- the process ------------------------------------------------------------------------------

# What a Python that is started anew runs: this module, found where the client's own is.
_AGAIN = """\
import socket, sys
sys.path.insert(0, sys.argv[1])
from dtcp import speaker
speaker._run(socket.socket(fileno=0), tuple(map(int, sys.argv[2:])) or None)
"""


def _run(client: socket.socket, account: tuple[int, int] | None) -> NoReturn:
    """What the process does; it never returns."""
    try:
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
    # Room for the server's socket, and one more.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    for what in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(what, (0, 0))


class _Conversations:
    """One conversation with a server after the other, as the client wants them."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._asked = b""  # what the client says, as far as it has been read
        self._server: socket.socket | None = None
        self._number = 0
        self._request: Request
        self._connect_by = 0.0  # 0: it is connected
        self._dtcp: wire.Client
        self._unsent = b""
        self._up = False
        self._quit_at = 0.0  # when the goodbye has taken too long; 0: none was said

    def run(self) -> None:
        """Until the client ends."""
        while True:
            readers: list[socket.socket] = [self._client]
            writers: list[socket.socket] = []
            timeout = None
            if self._server is not None:
                readers += [self._server] if not self._connect_by else []
                writers += [self._server] if self._connect_by or self._unsent else []
                due = self._connect_by or self._quit_at or self._dtcp.deadline
                timeout = max(0.0, due - time.monotonic())
            ready, writable, _ = select.select(readers, writers, [], timeout)
            try:
                if self._client in ready and not self._hear_client():
                    return
                if self._server is not None and self._connect_by:
                    self._look_at_connection(self._server, self._server in writable)
                elif self._server is not None:
                    self._go_on(self._server, self._server in ready)
            except wire.ProtocolError as error:
                self._over("nonsense", str(error))
            except Exception as error:  # nobody else would hear of it
                self._over("lost", f"internal error: {error!r}")

    def _hear_client(self) -> bool:
        """Do what the client says.  False: it has ended."""
        try:
            data = self._client.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._leave()
            return False
        *lines, self._asked = (self._asked + data).split(b"\n")
        for line in lines:
            match line.decode().split(" "):
                case ["login", *words]:
                    self._login(*words)
                case ["digest", number, answer]:
                    if number == str(self._number) and self._server and not self._connect_by:
                        self._dtcp.answer(answer)
                case ["quit"] if self._server is None or self._connect_by:
                    self._over("lost", "not connected")
                case ["quit"]:
                    self._dtcp.quit()
                    self._flush()
                    self._quit_at = time.monotonic() + QUIT_TIME
        return True

    def _login(self, number: str, *words: str) -> None:
        """Begin to connect."""
        self._leave()
        self._number = int(number)
        self._request = Request(*(read(word) for read, word in zip(_READ, words, strict=True)))
        self._unsent, self._up, self._quit_at = b"", False, 0.0
        self._connect_by = time.monotonic() + CONNECT_TIME
        self._server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._server.setblocking(False)
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        error = self._server.connect_ex((str(self._request.server), self._request.tcp_port))
        if error not in (0, errno.EINPROGRESS):
            self._over("lost", os.strerror(error))

    def _look_at_connection(self, server: socket.socket, ready: bool) -> None:
        """See what has become of connect(2), and begin to speak."""
        now = time.monotonic()
        error = server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if ready else 0
        if not ready and now >= self._connect_by:
            error = errno.ETIMEDOUT
        if error:
            self._over("lost", os.strerror(error))
        elif ready:
            self._connect_by = 0.0
            self._own = IPv4Address(server.getsockname()[0])
            self._tell("connected", str(self._own))
            asked = self._request
            self._dtcp = wire.Client(
                asked.user, asked.type, now, udp=asked.announced, trace=self._traced
            )

    def _traced(self, line: str) -> None:
        if self._request.verbose or not self._up:
            self._tell("trace", line)

    def _go_on(self, server: socket.socket, readable: bool) -> None:
        """Hear the server, look at the clock, and say what is to be said."""
        now = time.monotonic()
        events: list[wire.ClientEvent] = []
        if readable:
            try:
                data = server.recv(4096)
                # Behind our goodbye: one line, or the end, whatever it says.  KAME's server does
                # not always close.
                events = self._dtcp.receive(data, now) if not self._quit_at else [Lost("")]
            except BlockingIOError:
                pass
            except OSError as error:
                events = [Lost(error.strerror or "the connection broke")]
        if self._quit_at:
            self._flush()
            if events or now >= self._quit_at:
                self._over("lost", "the goodbye is said")
            return
        events += self._dtcp.tick(now)
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
                case Lost(reason):
                    self._over("lost", reason)

    def _granted(self, words: list[str]) -> None:
        asked, own = self._request, self._own
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
            self._up = True

    def _tell(self, *words: str) -> None:
        line = " ".join((str(self._number), *words))
        with contextlib.suppress(OSError):  # the client has ended; we shall read that
            self._client.sendall(f"{line}\n".encode("ascii", "replace"))

    def _flush(self) -> bool:
        """Send what is to be sent, as far as that goes.  Whether there was anything new."""
        assert self._server is not None
        new = self._dtcp.take()
        self._unsent += new
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
        """Close the connection, with a goodbye that nobody waits for."""
        if self._server is not None:
            if not (self._quit_at or self._connect_by):
                self._dtcp.quit()
                self._flush()
            self._server.close()
            self._server = None
