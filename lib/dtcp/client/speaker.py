"""Has an unprivileged process speak with the server, and believes nothing of what it tells.

The process is dtcp.client.conversation.  The password stays here: one challenge is answered for
each connection.  What the process tells is believed as little as the server itself: an address
must be one of this host; a grant is taken only in the one spelling that it can have, and goes
through all its checks again; text ends in messages, made visible and capped; and a process that
says too much, or nothing for too long, is ended and replaced.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import NamedTuple

from dtcp import daemon, grant, wire
from dtcp.cli import Failure
from dtcp.client import conversation
from dtcp.client.conversation import Login
from dtcp.client.network import is_here, own_address
from dtcp.errors import NOT_ALLOWED, TRY_AGAIN
from dtcp.wire import Insecure, Lost, Refused

PATIENCE = 2.0  # seconds that we wait for the process beyond its own limits
SILENCE = 110.0  # seconds without a ping of it, though there should be one every minute
ENDING_TIME = 1.0  # seconds that the process has for its end
ADDRESS_LOOK = 0.5  # seconds between two looks at our own address, until we are logged in
TOLD_AT_ONCE, TOLD_PER_SECOND = 500, 10  # lines that it may tell, and how many more with time
DAY = 86400  # seconds
LINE_LIMIT = 4 * wire.LINE_LIMIT  # of what is told: addresses may be longer than they came

# What a Python that is started anew runs: the process, found where our own library is.
_AGAIN = """\
import socket, sys
sys.path.insert(0, sys.argv[1])
from dtcp.client import conversation
account = tuple(map(int, sys.argv[3:])) or None
conversation.run(socket.socket(fileno=0), account, sys.argv[2])
"""
_LIBRARY = os.path.abspath(f"{__file__}/../../..")
_STORE_OF = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # another than the system's: openssl-env(7)


class Nonsense(NamedTuple):
    """The server said what no DTCP server says, or granted what makes no sense."""

    text: str


# Connected, from that address; granted; or the end of it.
Event = IPv4Address | grant.Grant | grant.BehindNat | Refused | Lost | Nonsense | Insecure


class Speaker:
    """The client's end: one process, for one login after the other.

    `account` is the user and group that the process changes to; None: it stays who we are.
    `trust` is what certificates are held against, as dtcp.client.conversation has it.
    `trace` gets lines of the conversation, `remark` what is to be said about a grant.

    The first process is forked early, before there is a password or anything else that it must not
    know: that costs no time.  If it dies or hangs, another one takes its place for the next login;
    that one is a Python started anew, so that it has nothing of what root's memory holds by then.

    Who `detaches` later has no such first process: it would be no child of the daemon, and only a
    child's number stays its own until we have waited for it.  Otherwise one that was taken over
    could die unseen, and we would kill whoever has that number next.
    """

    def __init__(
        self,
        account: tuple[int, int] | None,
        trace: Callable[[str], None],
        remark: Callable[[str], None],
        *,
        trust: str = "",
        detaches: bool = False,
    ) -> None:
        self._account, self.trace, self._remark = account, trace, remark
        self._trust = trust
        self._number = 0  # of the last login
        self._login: Login
        self._password = ""
        self._name = ""  # of the server, for messages
        self._signals: daemon.Signals
        self.own = IPv4Address(0)  # our end of the connection
        self.pings = 0  # so often it has sent one
        self.security = ""  # of the connection: what TLS it has
        self._stage = "over"  # -> connecting -> greeting -> login -> up -> quitting -> over
        self._may_tell, self._may_tell_at = float(TOLD_AT_ONCE), 0.0
        self.deadline = math.inf  # when `event` must be called, by the monotonic clock
        self._socket: socket.socket | None = None
        if not detaches:
            self._start()

    # --- a conversation -----------------------------------------------------------------------

    def connect(
        self,
        login: Login,
        password: str,
        name: str,
        signals: daemon.Signals,
        meanwhile: Callable[[], None],
    ) -> str | None:
        """Have it connect, and log in; why there is no connection, or None.

        `name` is the server's, for messages; `meanwhile` is called while the connection is under
        way.  Raises Failure, Stopped, and whatever `meanwhile` does.
        """
        self._name, self._signals = name, signals
        try:
            self.login(login, password)
        except OSError as error:
            raise Failure(
                "the process that speaks with the server cannot be started:"
                f" {sys.executable}: {error.strerror}",
                TRY_AGAIN,
            ) from None
        try:
            meanwhile()
            failure = self._reach(login.server)
        except BaseException:
            self.leave()
            raise
        if failure is not None:  # the next address may do better, and have a tunnel handed over
            self._over()
        return failure

    def _reach(self, server: IPv4Address) -> str | None:
        before = own_address(server)
        while True:
            match self.event():
                case IPv4Address():
                    return None
                case Insecure(reason):
                    raise Failure(f"{self._name}: {reason}", NOT_ALLOWED)
                case Lost(reason):
                    return reason
                case Nonsense(text):
                    raise Failure(f"{self._name}: {text}")
            self._signals.check()
            # Now and then a look at our own address: from one that has gone there is no answer.
            self._wait(min(self.deadline, time.monotonic() + ADDRESS_LOOK))
            if own_address(server) != before:
                return os.strerror(errno.EADDRNOTAVAIL)

    def _wait(self, end: float) -> None:
        self._signals.wait([self.fileno()], end - time.monotonic())

    def granted(self) -> grant.Grant:
        """Wait for the server's grant.  Raises Failure, BehindNat, Stopped."""
        while True:
            match self.event():
                case None:
                    # A signal may have come while we were connecting, and ended that wait.
                    self._signals.check()
                    self._wait(min(self.deadline, time.monotonic() + ADDRESS_LOOK))
                    if not is_here(self.own):
                        reason = f"our address {self.own} is gone"
                        raise Failure(f"{self._name}: {reason}", TRY_AGAIN)
                case grant.Grant() as granted:
                    return granted
                case Refused(text) as refused:
                    status = TRY_AGAIN if refused.temporary else NOT_ALLOWED
                    raise Failure(
                        f"{self._name}: the server refuses: {_without_full_stop(text)}", status
                    )
                case Insecure(reason):
                    raise Failure(f"{self._name}: {reason}", NOT_ALLOWED)
                case Lost(reason):
                    raise Failure(f"{self._name}: {reason}", TRY_AGAIN)
                case Nonsense(text):
                    raise Failure(f"{self._name}: {text}")
                case grant.BehindNat() as nat:
                    raise nat

    def look(self) -> None:
        """See that the conversation is still alive.  Raises Failure."""
        while (event := self.event()) is not None:
            match event:
                case Lost(reason):
                    raise Failure(f"lost: {reason}", TRY_AGAIN)
                case Nonsense(text):
                    raise Failure(f"{self._name}: {text}")

    def quit(self) -> None:
        """Say goodbye, if there is a conversation; `wait_for_end` waits for the answer."""
        if self._stage != "over":
            self._say("quit")
            self._go_on("quitting", conversation.QUIT_TIME + PATIENCE)

    def wait_for_end(self) -> None:
        """Wait until the server has taken our goodbye, but not long."""
        while self._stage != "over" and self.event() is None:
            self._wait(self.deadline)
        self._over()

    def leave(self) -> None:
        """End the conversation, and hear no more of it."""
        self._over()
        # To an address that we do not have any more nothing comes back.
        is_gone = self._number == 0 or own_address(self._login.server) != self.own
        self._say("drop" if is_gone else "leave")

    # --- the process --------------------------------------------------------------------------

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
                    conversation.run(its, self._account, self._trust)
            else:
                words = [sys.executable, "-ISBc", _AGAIN, _LIBRARY, self._trust]
                words += map(str, self._account or ())
                store = {each: os.environ[each] for each in _STORE_OF if each in os.environ}
                as_input = (os.POSIX_SPAWN_DUP2, its.fileno(), 0)
                self.pid = os.posix_spawn(
                    *(words[0], words, store if self._trust else {}), file_actions=[as_input]
                )
            failing.pop_all()
        self._socket = ours

    def fileno(self) -> int:
        """Becomes readable when there is something to be told (-1: not any more)."""
        return self._socket.fileno() if self._socket is not None else -1

    def login(self, login: Login, password: str) -> None:
        """Have it connect and log in.  What went before is over, or is handed over to this login.

        Raises OSError.
        """
        self._number += 1
        self._login, self._password, self.security = login, password, ""
        if self._socket is None:  # whatever befell it: the tunnel has to come back
            self._start()
        self._may_tell, self._may_tell_at = float(TOLD_AT_ONCE), time.monotonic()
        limit = conversation.END_TIME + conversation.CONNECT_TIME + PATIENCE
        self._go_on("connecting", limit)
        self._say(" ".join(map(str, ("login", self._number, *login))))

    def end(self) -> None:
        """End the process, and see it gone."""
        if self._socket is None:
            return
        # What it has said to the server comes to its end first.
        end = time.monotonic() + conversation.QUIT_TIME + ENDING_TIME
        with contextlib.suppress(OSError):
            # It ends when it reads the end, and we read the end when it has ended.
            self._socket.shutdown(socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv(4096):
                    break
        self._close()

    def _say(self, line: str) -> None:
        if self._socket is not None:
            # Lines are few and short: one that does not fit means that it hangs, or has died, and
            # `event` tells that.
            with contextlib.suppress(OSError):
                self._socket.send(f"{line}\n".encode())

    def _close(self) -> None:
        """Have done with the process, whatever it is at."""
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            os.kill(self.pid, signal.SIGKILL)
            end = time.monotonic() + ENDING_TIME
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0 and time.monotonic() < end:
                time.sleep(0.005)

    # --- what it tells ------------------------------------------------------------------------

    def event(self) -> Event | None:
        """The next thing that it has told about the last login, or that time has brought; or None.

        To be called until there is none, for `fileno` tells of what is still to be read only.
        """
        try:
            self._read()
            while (line := self._lines.next_line()) is not None:
                self._count_line()
                number, word, text = (*line.split(" ", 2), "", "")[:3]
                # Not of a login that is over.
                if number == str(self._number) and self._stage != "over":
                    event = self._event(word, text)
                    if event is not None:
                        return event
        except (wire.ProtocolError, grant.GrantError, ValueError) as error:
            self._lines = wire.LineBuffer(LINE_LIMIT)
            self._close()
            self._over()
            return Nonsense(f"the process that speaks with it told nonsense: {error}")
        if self._socket is None and self._stage != "over":
            self._over()
            return Lost("the process that speaks with it has died")
        if time.monotonic() >= self.deadline:
            self._close()
            self._over()
            return Lost("no answer from the process that speaks with it")
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
            self._close()

    def _count_line(self) -> None:
        """Count a line that it has told.  Raises ValueError when there are too many."""
        now = time.monotonic()
        more = TOLD_PER_SECOND * (now - self._may_tell_at)
        self._may_tell = min(float(TOLD_AT_ONCE), self._may_tell + more) - 1
        self._may_tell_at = now
        if self._may_tell < 0:
            raise ValueError("too much of it")

    def _go_on(self, stage: str, limit: float) -> None:
        """Begin a stage, in which it must say something within that many seconds."""
        self._stage = stage
        self.deadline = time.monotonic() + limit

    def _over(self) -> None:
        self._go_on("over", math.inf)

    def _event(self, word: str, text: str) -> Event | None:
        shown = wire.visible(text)
        match self._stage, word:
            case _, "trace":
                self.trace(shown)
            case _, "lost":
                self._over()
                return Lost(shown)
            case "quitting", _:
                pass  # told before our goodbye was heard
            case "login", "remark":
                self._remark(shown)
            case "up", "alive":  # nothing else counts: with no ping nobody sees what passes
                self.pings += 1
                self._go_on("up", SILENCE)
            case "connecting", "connected":
                self.own = IPv4Address(text)
                if not is_here(self.own):  # it may have gone since
                    self._over()
                    return Lost(f"our address {self.own} is gone")
                self._go_on("greeting", wire.LOGIN_TIME + PATIENCE)
                return self.own
            case "greeting", "secured":
                self.security = _security(shown)
                self.trace(self.security)
            case "greeting", "challenge":
                if not wire.is_challenge(text) or bool(self.security) != bool(self._login.tls):
                    raise ValueError(f"{shown!a} is not a challenge")
                self._stage = "login"
                digest = wire.digest(self._login.user, text, self._password)
                self._say(f"digest {self._number} {digest}")
            case "greeting" | "login", "refused" | "denied":
                self._over()
                return Refused(shown, at_greeting=word == "refused")
            case "login", "nat":
                self._over()
                udp = self._login.port is not None
                return grant.BehindNat(self.own, IPv4Address(text), udp=udp)
            case "login", "granted":
                self._go_on("up", SILENCE)
                wanted = self._login
                return grant.accept(
                    text, wanted.type, own=self.own, server=wanted.server, port=wanted.port
                )
            case "connecting" | "greeting", "insecure":
                self._over()
                # A name of any length, and behind it a fingerprint that is to be copied.
                return Insecure(wire.visible(text, wire.LINE_LIMIT))
            case _, "nonsense":
                self._over()
                return Nonsense(shown)
            case _:
                raise ValueError(f"{word!a} out of place")
        return None


def _security(text: str) -> str:
    """What is told of TLS, for people.  Raises ValueError."""
    found = re.fullmatch(r"(\S+) (\S+) (-?[0-9]{1,12})", text)
    if not found:
        raise ValueError(f"{text!a} says nothing of TLS")
    days = math.floor((int(found[3]) - time.time()) / DAY)
    until = f"valid for {days} days" if days >= 0 else f"expired {-days} days ago"
    return f"{found[1]}, {found[2]}, certificate {until}"


def _without_full_stop(text: str) -> str:
    """A sentence as a part of a line; three of them stand for what was left out."""
    return text[:-1] if text.endswith(".") and not text.endswith("..") else text
