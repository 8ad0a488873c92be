"""DTCP as bytes: lines, the login digest, and the state of both ends of a conversation.

A conversation is POP3-like.  The server speaks first; every command and every reply is one line:

    S: +OK 0B1517C87D516A5FA65BED722D51A04F KAME tunnel server
    C: tunnel itojun 5F7E...C3 host
    S: +OK 203.0.113.7 192.0.2.1 2001:db8:1::6 2001:db8:1::5
    C: ping                                        (once a minute, for the life of the tunnel)
    S: +OK hi, happy to hear from you
    C: quit
    S: +OK see you soon.

A server of ours may offer TLS, as POP3 does (RFC 2595): it says STLS behind its greeting, and takes
`stls` before a login.  After the handshake (dtcp.tls) everything begins anew, with another `Client`
and another `Session`: what came before it, anybody may have said.

Nothing here knows a socket or a clock.  The owner of a `Client` or a `Session` feeds it the bytes
that arrived (`receive`) and the time (`tick`, in seconds of any monotonic clock), sends what
`take()` returns, calls `tick` again no later than `deadline`, and acts on the events it gets.
Whatever the peer does wrong comes out of `receive` as `ProtocolError`, and nothing else does.

The module is long because both ends are in it: what one of them says, the other must understand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from dtcp.errors import Error

PORT = 20200
LINE_LIMIT = 512  # bytes of a line, its ending not counted

LOGIN_TIME = 30.0  # seconds from connecting to the reply to `tunnel`
PING_INTERVAL = 60.0
PING_TIME = 15.0  # seconds in which a `ping` must be answered
PINGS_MISSED = 2  # in a row: the server is gone

AUTH_TIME = 60.0  # the server's limits, with KAME's names and values
IDLE_TIME = 300.0
LOGIN_FAILURES = 3
BAD_COMMANDS = 5
LINES_BEFORE_LOGIN = 10

TYPES = ("tunnelonly", "host", "network", "tunnelroute")

# What may stand for a user on the wire and in an interface's description: nothing a shell, a path
# or a log reader could take for something else.
USER = r"[A-Za-z0-9._@+-]{1,64}"

MASK = "*" * 8  # in a trace, for a digest or a key

_HASH = r"[0-9A-Fa-f]{32}"  # a challenge, or a digest

GREETING = "dtcps {} tunnel server"  # of ours, with its version, behind the challenge
STLS = "STLS"  # behind that, when TLS is offered
# The replies of KAME's server of 2001, word for word: clients in the field may look at them.
BYE = "see you soon."
PONG = "hi, happy to hear from you"
HELP = "valid commands are: TUNNEL PING QUIT"
BAD_LOGIN = "authentication failed."
BAD_COMMAND = "invalid command"
BAD_TYPE = "unsupported tunnel type {}"
SOLD_OUT = "tunnel interface sold out"
TIMED_OUT = "connection timed out, disconnecting"
# Ours, where KAME's server had no such case.
HAVE_TUNNEL = "this connection has a tunnel already"
NO_ROUTE = "no route for this user"
NOT_THIS_TYPE = "no tunnels of type {} for this user"
BAD_PORT = "that is no UDP port"
NO_UDP = "no tunnels over UDP (-U) here"
INTERNAL = "internal error"
BUSY = "busy, try again later"
OTHERS = "{} has a tunnel of another user; use -U"  # that is the client's address
ITSELF = "no tunnel from {} to itself"
TOO_MUCH_TALK = "log in first"
STOPPING = "server is going down"
BEGIN_TLS = "begin TLS"
TLS_REQUIRED = "TLS is required here; use --tls"


class ProtocolError(Error):
    """The peer said what DTCP does not have."""


class Injected(ProtocolError):
    """Something that nobody encrypted stands where TLS is to begin."""


def masked(text: str) -> str:
    """A line, or a part of one, without the key of a tunnel over UDP."""
    return re.sub(r"\bkey=[^\s,]*", f"key={MASK}", text)


def visible(text: str, most: int = 200) -> str:
    """Text of the peer, with all but printable ASCII made visible, capped, and without a key."""
    shown = "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in masked(text[:LINE_LIMIT]))
    return shown if len(shown) <= most else shown[:most] + "..."


def digest(user: str, challenge: str, password: str) -> str:
    """The answer to a challenge: MD5 over user, challenge and password, upper-case hexadecimal.

    The challenge goes in as it came, the user first (unlike APOP of RFC 1939).  KAME's server
    compares letter by letter with upper case.
    """
    # Here, so that --help need not wait for it.  Python's own is small; hashlib's is that of
    # OpenSSL, which is not, and which a FIPS build refuses unless no security is expected of it.
    try:
        from _md5 import md5  # type: ignore[import-not-found]
    except ImportError:  # built without
        from hashlib import md5

    hashed = md5(usedforsecurity=False)
    for part in (user, challenge, password):
        hashed.update(part.encode("utf-8", "surrogateescape"))
    return str(hashed.hexdigest()).upper()


def is_port(word: str) -> bool:
    """Whether a word is the number of a port, or 0."""
    return re.fullmatch(r"[0-9]{1,5}", word) is not None and int(word) < 65536


class LineBuffer:
    """Bytes to lines: LF or CRLF ends one; a CR or NUL elsewhere, or a long line, is an error."""

    __slots__ = ("_limit", "_pending", "_searched")

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit  # bytes of a line, its ending not counted
        self._pending = bytearray()
        self._searched = 0  # where to look for the next LF: a slow peer must not cost O(n^2)

    def feed(self, data: bytes) -> None:
        self._pending += data

    def __len__(self) -> int:
        return len(self._pending)

    def first_byte(self) -> int | None:
        return self._pending[0] if self._pending else None

    def take_all(self, word: bytes) -> int:
        """Take what waits, if that is this word so many times over; otherwise 0 times."""
        times = len(self._pending) // len(word)
        if not times or self._pending != word * times:
            return 0
        self._pending, self._searched = bytearray(), 0
        return times

    def next_line(self) -> str | None:
        """The next line without its ending, or None while it is not complete."""
        end = self._pending.find(b"\n", self._searched, self._limit + 2)
        if end < 0:
            if len(self._pending) > self._limit + 1:
                raise ProtocolError(f"a line of more than {self._limit} bytes")
            self._searched = len(self._pending)
            return None
        line = bytes(self._pending[:end]).removesuffix(b"\r")
        del self._pending[: end + 1]
        if not self._pending:
            self._pending = bytearray()  # which, unlike one that was emptied, takes no memory
        self._searched = 0
        if len(line) > self._limit:
            raise ProtocolError(f"a line of more than {self._limit} bytes")
        if b"\r" in line or b"\0" in line:
            raise ProtocolError("a carriage return or NUL inside a line")
        return line.decode("latin-1")


class Reply(NamedTuple):
    ok: bool
    text: str


def parse_reply(line: str) -> Reply:
    """`+OK ...` or `-ERR ...`."""
    word, _, text = line.partition(" ")
    if word not in ("+OK", "-ERR"):
        raise ProtocolError(f'neither +OK nor -ERR: "{visible(line)}"')
    return Reply(word == "+OK", text.strip(" \t"))


def is_challenge(word: str) -> bool:
    """Whether a word is a challenge: 32 hexadecimal digits and nothing else.

    With one of its own choosing a false server could learn the password's first letters
    (CVE-2007-1558, for APOP).
    """
    return re.fullmatch(_HASH, word) is not None


def challenge_of(greeting: Reply) -> str:
    """The challenge of a greeting, as it came.  Raises ProtocolError."""
    word = greeting.text.split(" ")[0]
    if not is_challenge(word):
        raise ProtocolError(f'no challenge in the greeting: "{visible(greeting.text)}"')
    return word


_BANNERS = (
    (b"SSH-", "an SSH server"),
    (b"HTTP", "a web server"),
    (b"<", "a web server"),
    (b"220", "a mail or FTP server"),
    (b"\x15\x03", "a TLS server"),
    (b"\x16\x03", "a TLS server"),
)


def _not_dtcp(start: bytes) -> ProtocolError:
    looks = [f"; it looks like {name}" for prefix, name in _BANNERS if start.startswith(prefix)]
    return ProtocolError(f"this is no DTCP server{''.join(looks[:1])}")


# --- the client's end -------------------------------------------------------------------------


class Challenged(NamedTuple):
    """The server greets us with this challenge, 32 hexadecimal digits: `answer` it."""

    challenge: str


class Granted(NamedTuple):
    """The login was accepted; `words` are what stood behind `+OK`, unchecked."""

    words: list[str]


class Refused(NamedTuple):
    """The server said `-ERR`: at the greeting (`at_greeting`) or to our login."""

    text: str
    at_greeting: bool

    @property
    def temporary(self) -> bool:
        """Whether it makes sense to come back soon: the server is busy, not unwilling."""
        hints = ("sold out", "busy", "timed out", "try again", "going down", "internal error")
        return self.at_greeting or any(hint in self.text.lower() for hint in hints)


class Lost(NamedTuple):
    """The connection is of no use any more."""

    reason: str


class StartTls(NamedTuple):
    """From the next byte on it is TLS, and behind its handshake another conversation."""


class Insecure(NamedTuple):
    """TLS was asked for, and cannot be had; or not with the right server."""

    reason: str


ClientEvent = Challenged | Granted | Refused | Lost | StartTls | Insecure


_AWAITED = {"greeting": "the greeting", "stls": "the reply to stls"}


def _no_trace(line: str) -> None:
    pass


class Client:
    """The client's end of one connection.

    It never has the password: whoever has that answers the one `Challenged`.  `trace` gets every
    line as it goes (`>> `) or comes (`<< `), digest and key masked.  `udp` asks for a tunnel over
    UDP, from that port of ours; 0: from whatever port a NAT makes of it.  `key` is that of a tunnel
    of ours through which packets pass.  With `tls` nothing is said but `stls`.
    """

    def __init__(
        self,
        user: str,
        tunnel_type: str,
        now: float,
        *,
        udp: int | None = None,
        key: bytes | None = None,
        tls: bool = False,
        trace: Callable[[str], None] = _no_trace,
    ) -> None:
        self._user, self._type = user, tunnel_type
        self._udp, self._key = udp, key
        self._tls = tls
        self._trace = trace
        self._lines = LineBuffer()
        self._out = bytearray()
        # greeting -> challenged -> login (-> login without udp) -> up -> over
        # greeting -> stls -> over
        self._state = "greeting"
        self._digest = ""
        self._unanswered = 0  # pings sent and not answered yet
        self._silent = 0  # pings sent since the last answer, which may be to an earlier one
        self.deadline = now + LOGIN_TIME
        self.hands_over = False  # the server: a tunnel that stands to its user's next login

    def take(self) -> bytes:
        """What is to be sent now."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes, now: float) -> list[ClientEvent]:
        """What comes of bytes from the server; no bytes mean that it closed the connection."""
        if self._state == "over":
            return []
        if not data:
            return [self._over(Lost("the server closed the connection"))]
        self._lines.feed(data)
        first = self._lines.first_byte()
        if self._state == "greeting" and first is not None and first not in b"+-":
            self._trace(f"<< {visible(data.decode('latin-1').strip())}")
            raise _not_dtcp(data)
        events: list[ClientEvent] = []
        while self._state != "over" and (line := self._lines.next_line()) is not None:
            line = self._masked(line)
            self._trace(f"<< {visible(line)}")
            event = self._line(parse_reply(line), now)
            if event is not None:
                events.append(event)
        return events

    def _line(self, reply: Reply, now: float) -> ClientEvent | None:
        if self._state == "greeting":
            if not reply.ok:
                return self._over(Refused(visible(reply.text), at_greeting=True))
            challenge = challenge_of(reply)
            ours = r"\S+ " + GREETING.format(r"\S+") + f"( {STLS})?"
            self.hands_over = bool(re.fullmatch(ours, reply.text))
            is_taken_back = self._is_taken_back("before the login")
            self._state = "challenged"
            if not self._tls:
                return Challenged(challenge)
            if is_taken_back:
                return None
            if STLS not in reply.text.split():
                return self._over(Insecure("the server offers no TLS, on which --tls insists"))
            self._send("stls")
            self._state = "stls"
            return None
        if self._state == "stls":
            if not reply.ok:
                # It may say what it would have said to anybody, such as that it is going down.
                refused = Refused(visible(reply.text), at_greeting=False)
                if refused.temporary:
                    return self._over(refused)
                return self._over(Insecure(f"the server refuses TLS: {refused.text}"))
            if self._lines.first_byte() is not None:
                raise ProtocolError("unexpected data before the TLS handshake")
            return self._over(StartTls())
        if self._state == "challenged":
            if reply.ok:
                raise ProtocolError("unexpected data before the login")
            return self._over(Refused(visible(reply.text), at_greeting=True))
        if self._state == "login" and not reply.ok and self._udp is not None:
            # A server that does not know our extension counts five words instead of four, and says
            # what it says to a wrong password (KAME's).  With four words it tells which it was.
            if self._is_taken_back("behind the reply to the login"):
                return None
            if reply.text.lower().startswith("authentication failed"):
                self._send(f"tunnel {self._user} {self._digest} {self._type}")
                self._state = "login without udp"
                return None
        if self._state == "login without udp":
            text = NO_UDP if reply.ok else visible(reply.text)
            if reply.ok:
                self._send("quit")
            return self._over(Refused(text, at_greeting=False))
        if self._state == "login":
            if not reply.ok:
                return self._over(Refused(visible(reply.text), at_greeting=False))
            if self._is_taken_back("behind the reply to the login"):
                return None
            self._state = "up"
            self.deadline = now + PING_INTERVAL
            return Granted(reply.text.split())
        if not reply.ok:
            return self._over(Lost(f'the server says "{visible(reply.text)}"'))
        if not self._unanswered:
            raise ProtocolError(f'a reply nobody asked for: "{visible(reply.text)}"')
        self._unanswered -= 1
        self._silent = 0
        self.deadline = now + PING_INTERVAL
        return None

    def answer(self, digest: str) -> None:
        """Log in with the answer to the challenge (see `digest`).  Raises ProtocolError."""
        if self._state != "challenged":
            return  # the server has taken its greeting back
        self._digest = digest
        if self._is_taken_back("before the login"):
            return
        udp = "" if self._udp is None else f" udp={self._udp}"
        key = "" if self._udp is None or self._key is None else f" key={self._key.hex()}"
        self._send(f"tunnel {self._user} {self._digest} {self._type}{udp}{key}")
        self._state = "login"

    def tick(self, now: float) -> list[ClientEvent]:
        """What comes of the time; call it whenever `deadline` has passed."""
        if now < self.deadline or self._state == "over":
            return []
        if self._state != "up":
            what = _AWAITED.get(self._state, "the reply to the login")
            return [self._over(Lost(f"no answer: {what} did not come within {LOGIN_TIME:.0f} s"))]
        if self._silent == PINGS_MISSED:
            return [self._over(Lost("no answer to two pings"))]
        self._send("ping")
        self._unanswered += 1
        self._silent += 1
        self.deadline = now + PING_TIME
        return []

    def quit(self) -> None:
        """Say goodbye, if we have said anything before."""
        if self._state not in ("greeting", "challenged", "stls", "over"):
            self._send("quit")
        self._state = "over"

    def _send(self, line: str) -> None:
        self._trace(f">> {masked(self._masked(line))}")
        self._out += line.encode("ascii") + b"\r\n"

    def _masked(self, line: str) -> str:
        # A server that repeats our digest must not bring it into a log.
        return re.sub(self._digest, MASK, line, flags=re.IGNORECASE) if self._digest else line

    def _over(self, event: ClientEvent) -> ClientEvent:
        self._state = "over"
        return event

    def _is_taken_back(self, where: str) -> bool:
        """Whether an -ERR follows a reply at once: the server ends, and the next line says why.

        Nothing else can follow, for the server cannot have answered what it was not asked yet.
        """
        first = self._lines.first_byte()
        if first not in (None, ord("-")):
            raise ProtocolError(f"unexpected data {where}")
        return first is not None


# --- the server's end -------------------------------------------------------------------------


class Asked(NamedTuple):
    """`user`, whose digest was right, asks for a tunnel: answer with `accept` or `refuse`."""

    user: str
    type: str
    udp: int | None = None  # over UDP, to this port; 0: to where the packets come from
    key: bytes | None = None  # over UDP: of the tunnel through which the client's packets pass


class Ended(NamedTuple):
    """The conversation is over; what is left in `take()` is still to be sent."""

    reason: str


SessionEvent = Asked | Ended | StartTls


class Unavailable(Exception):
    """Nobody can say at the moment whether a password is right; the text is for our log."""


class Limits(NamedTuple):
    """What a server bears from one connection; times in seconds."""

    line: int = LINE_LIMIT
    login_time: float = AUTH_TIME
    idle_time: float = IDLE_TIME
    failures: int = LOGIN_FAILURES
    lines: int = LINES_BEFORE_LOGIN


def _wrong(user: str) -> str:
    return BAD_LOGIN


class Session:
    """The server's end of one connection.

    `challenge` must come from a secure source and be used once.  `password_of` gives a user's
    password, or None, or raises Unavailable, which ends the conversation.  A login that fails
    costs the same, and reads the same, whoever it was; `failed` is told of it, and says what to
    answer.  Whoever `must_wait` says (it may raise the same) is told to come back later, unseen.

    vyatta's client sends its pings without a line end.  So with a tunnel, a bare `ping` behind
    which nothing has come yet is answered at once; what comes then and begins with a blank or a
    line end is the rest of that line, which has been answered.

    With `offers_tls` the client may say `stls` before its login; with `insists`, which goes with
    it, it must.
    """

    __slots__ = (
        "_ahead", "_auth_deadline", "_bad_commands", "_challenge", "_failed", "_failures",
        "_insists", "_limits", "_lines", "_lines_left", "_must_wait", "_offers_tls", "_out",
        "_password_of", "_state", "_trace", "deadline",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        challenge: str,
        password_of: Callable[[str], str | None],
        now: float,
        *,
        limits: Limits = Limits(),  # noqa: B008  # it cannot be changed
        failed: Callable[[str], str] = _wrong,
        must_wait: Callable[[str], bool] = lambda user: False,
        offers_tls: bool = False,
        insists: bool = False,
        trace: Callable[[str], None] = _no_trace,
    ) -> None:
        self._challenge = challenge
        self._offers_tls, self._insists = offers_tls, insists
        self._password_of = password_of
        self._limits, self._failed, self._must_wait = limits, failed, must_wait
        self._trace = trace
        self._lines = LineBuffer(limits.line)
        self._out = b""
        self._state = "login"  # -> asked -> login or up -> over; login -> handshake -> over
        self._failures = 0
        self._bad_commands = 0
        self._lines_left = limits.lines  # before the login
        self._ahead = False  # a ping was answered before its line had an end
        self._auth_deadline = now + limits.login_time  # nothing extends this one
        self.deadline = self._auth_deadline
        self._reply(f"+OK {challenge} {name}{f' {STLS}' if offers_tls else ''}")

    def take(self) -> bytes:
        """What is to be sent now."""
        data, self._out = self._out, b""
        return data

    def receive(self, data: bytes, now: float) -> list[SessionEvent]:
        """What comes of bytes from the client; no bytes mean that it closed the connection."""
        if self._state == "over":
            return []
        if not data:
            return [self._over("the client closed the connection")]
        self._lines.feed(data)
        events = self._work(now)
        if not events and len(self._lines) > 4 * self._limits.line:
            raise ProtocolError("too much at once")
        return events

    def accept(self, reply: str, now: float) -> list[SessionEvent]:
        """Grant what was asked: `reply` is what stands behind `+OK`."""
        self._state = "up"
        self._challenge = ""
        self.deadline = now + self._limits.idle_time
        self._reply(f"+OK {reply}")
        return self._go_on(now)

    @property
    def granted(self) -> bool:
        """Whether the client has its tunnel."""
        return self._state == "up"

    def refuse(self, text: str, now: float) -> list[SessionEvent]:
        """Refuse what was asked; the client may ask for something else."""
        self._state = "login"
        self.deadline = self._auth_deadline
        self._reply(f"-ERR {text}")
        return self._go_on(now)

    def tick(self, now: float) -> list[SessionEvent]:
        """What comes of the time; call it whenever `deadline` has passed."""
        if now < self.deadline or self._state in ("asked", "over"):
            return []
        if self._state == "handshake":  # nothing that we say would be understood
            return [self._over("timed out")]
        self._reply(f"-ERR {TIMED_OUT}")
        return [self._over("timed out")]

    def close(self, text: str) -> None:
        """End the conversation from our side."""
        if self._state not in ("handshake", "over"):
            self._reply(f"-ERR {text}")
        self._state = "over"

    def _go_on(self, now: float) -> list[SessionEvent]:
        """Go on with what waited behind a request.  An error in it is the end, for its cause is
        not the caller, who does not expect one from his own answer."""
        try:
            return self._work(now)
        except ProtocolError as error:
            self.close(BAD_COMMAND)
            return [Ended(f"protocol error: {error}")]

    def _work(self, now: float) -> list[SessionEvent]:
        # While a request is being worked on, what came behind it waits.
        while self._state in ("login", "up") and (line := self._lines.next_line()) is not None:
            ahead, self._ahead = self._ahead, False
            if ahead and line[:1] in ("", " ", "\t"):
                continue
            event = self._command(line, now)
            if event is not None:
                return [event]
        if self._state == "up":
            for _ in range(self._lines.take_all(b"ping")):
                self._ahead = True
                self._command("ping", now)
        return []

    def _command(self, line: str, now: float) -> SessionEvent | None:
        words = line.split()
        verb = words[0].lower() if words else ""
        shown = line
        if verb == "tunnel" and len(words) > 2:
            shown = " ".join([*words[:2], MASK, *words[3:]])
        # A broken client may have its digest in any other place.
        self._trace(f"<< {visible(re.sub(_HASH, MASK, shown))}")
        if self._state == "up":
            self.deadline = now + self._limits.idle_time
        elif not self._lines_left:
            self._reply(f"-ERR {TOO_MUCH_TALK}")
            return self._over("too much talk before the login")
        else:
            self._lines_left -= 1
        if verb == "quit":
            self._reply(f"+OK {BYE}")
            return self._over("the client said quit")
        if verb == "ping":
            self._reply(f"+OK {PONG}")
        elif verb == "help":
            self._reply(f"+OK {HELP}{f' {STLS}' if self._offers_tls else ''}")
        elif verb == "tunnel":
            return self._login(words[1:])
        elif verb == "stls" and len(words) == 1 and self._offers_tls and self._state == "login":
            # What lies behind the line would count as said under TLS (CVE-2011-0411).
            if len(self._lines):
                raise Injected("data before the TLS handshake")
            self._reply(f"+OK {BEGIN_TLS}")
            self._state = "handshake"
            return StartTls()
        else:
            self._reply(f"-ERR {BAD_COMMAND}")
            self._bad_commands += 1
            if self._bad_commands == BAD_COMMANDS:
                return self._over("too many invalid commands")
        return None

    def _login(self, words: list[str]) -> SessionEvent | None:
        if self._state == "up":
            self._reply(f"-ERR {HAVE_TUNNEL}")
            return None
        # Behind the classic three, words of the form key=value, for what may come.
        if self._insists:
            self._reply(f"-ERR {TLS_REQUIRED}")
            return self._one_more_failure()
        plain = len(words) >= 3 and all(re.fullmatch(r"[a-z]+=\S*", each) for each in words[3:])
        try:
            if words and self._must_wait(words[0]):
                self._reply(f"-ERR {BUSY}")
                return self._one_more_failure()
            known = plain and self._knows(words[0], words[1])
        except Unavailable as error:
            self._reply(f"-ERR {INTERNAL}")
            return self._over(str(error))
        if not known:
            self._reply(f"-ERR {self._failed(words[0] if words else '')}")
            return self._one_more_failure()
        if words[2] not in TYPES:
            self._reply(f"-ERR {BAD_TYPE.format(visible(words[2]))}")
            return None
        ports = [each[4:] for each in words[3:] if each.startswith("udp=")]
        if len(ports) > 1 or not all(map(is_port, ports)):
            self._reply(f"-ERR {BAD_PORT}")
            return None
        self._state = "asked"
        self.deadline = math.inf  # it is our turn
        if not ports:
            return Asked(words[0], words[2])
        keys = [each[4:] for each in words[3:] if re.fullmatch(f"key={_HASH}", each)]
        key = bytes.fromhex(keys[0]) if len(keys) == 1 else None
        return Asked(words[0], words[2], int(ports[0]), key)

    def _one_more_failure(self) -> Ended | None:
        self._failures += 1
        if self._failures < self._limits.failures:
            return None
        return self._over("too many failed logins")

    def _knows(self, user: str, answer: str) -> bool:
        import hmac

        known = self._password_of(user) if re.fullmatch(USER, user) else None
        # An unknown user takes the same way as a wrong password, to the last byte.
        expected = digest(user, self._challenge, "" if known is None else known)
        given = answer.upper() if re.fullmatch(_HASH, answer) else "0" * 32
        return hmac.compare_digest(expected, given) and known is not None

    def _reply(self, line: str) -> None:
        self._trace(f">> {masked(line)}")
        self._out += line.encode("ascii", "replace") + b"\r\n"

    def _over(self, reason: str) -> Ended:
        self._state = "over"
        return Ended(reason)
