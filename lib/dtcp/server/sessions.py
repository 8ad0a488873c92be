"""The connections of clients: how many there may be, what is said on them, and how they end.

Who has logged in gets a tunnel elsewhere (dtcp.server.tunnels), which answers with `accept` or
`refuse`, and is told when a connection has gone.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import resource
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sized
from functools import partial
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from dtcp import __version__, wire
from dtcp.cli import Failure
from dtcp.errors import Error
from dtcp.grant import Grant
from dtcp.server.admission import STRANGERS, Admission
from dtcp.server.counts import Counts
from dtcp.server.database import StoreError
from dtcp.server.limits import Penalties, Quiet
from dtcp.server.presence import Question
from dtcp.server.settings import Settings
from dtcp.server.store import Store
from dtcp.server.timers import Timers
from dtcp.server.workers import Event

if TYPE_CHECKING:  # where it is used it is there already (dtcp.server.certificate)
    import ssl

    from dtcp.tls import Tls

GREETING = wire.GREETING.format(__version__)
DESCRIPTORS = 60  # that are kept free of clients, for the commands and ourselves
AT_ONCE = 64  # connections that are accepted in turns with what else there is to do
SHAKING_TIME = 0.05  # seconds for handshakes, in turns with what else there is to do
UNREAD = 4096  # bytes of replies that a client may leave unread
TLS_BEFORE_LOGIN = 16384  # bytes that a client may send from `stls` to its login


class Peer:
    """One client: its socket, and its end of the conversation."""

    __slots__ = (
        "address", "ending", "name", "own", "question", "session", "sock", "tls", "tls_heard",
        "unsent", "user", "writing",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, host: str, port: int) -> None:
        """`host` and `port` are the client's.  Raises OSError: it has gone already."""
        self.sock = sock
        self.name = f"{host}:{port}"
        self.address = IPv4Address(host)
        self.own = IPv4Address(sock.getsockname()[0])
        self.session: wire.Session
        self.tls: Tls | None = None  # from `stls` on
        self.tls_heard = 0  # bytes, before it has a tunnel
        self.user = ""  # once the login is good
        self.unsent = b""
        self.writing = False  # we wait until more can be sent
        self.ending = ""  # why, once the conversation is over
        self.question: Question | None = None  # whether it is there

    @property
    def shakes_hands(self) -> bool:
        """Whether the handshake of TLS has begun, and is not done."""
        return self.tls is not None and not self.tls.done

    def flush(self) -> None:
        """Send what can be sent now."""
        said = self.session.take()
        if self.tls is not None:
            self.tls.send(said)
            if self.ending:
                self.tls.close()
            said = self.tls.take()
        self.unsent += said
        try:
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent = b""  # reading will tell what happened
        if len(self.unsent) > UNREAD and not self.ending:
            self.ending = "it does not read what we say"


class Sessions:
    """All clients, on one listening socket.

    `asked` is called for each good login, `left` when a connection has gone; `others` are what else
    takes a descriptor each.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        store: Store,
        settings: Settings,
        quiet: Quiet,
        counts: Counts,
        asked: Callable[[Peer, wire.Asked], None],
        left: Callable[[Peer], None],
        others: Sized,
    ) -> None:
        self._announced: IPv4Address | None = options.announced
        self._traced: bool = options.debug
        self._listener, self._selector, self._store = listener, selector, store
        self._quiet, self._counts = quiet, counts
        self._asked, self._left, self._others = asked, left, others
        self._peers: Admission[Peer] = Admission()
        self._of: dict[str, Peer] = {}  # the latest connection of each user who is logged in
        self._penalties = Penalties(settings.penalty)
        self._timers: Timers[Peer] = Timers(lambda peer: peer.session.deadline)
        self._questions: Timers[Question] = Timers(lambda question: question.due)
        self._greets = True  # whoever comes; otherwise they wait in the kernel
        self._context: ssl.SSLContext | None = None  # for those to whom TLS is offered
        self._offers_tls = self._insists = False
        self._is_behind = False  # with handshakes
        self.limit(settings)
        selector.register(listener, selectors.EVENT_READ, self.greet)

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def due(self) -> float:
        """When somebody's time may be over, or there may be room for somebody."""
        somebody_waits = not self._greets and self._listener.fileno() >= 0
        room_at = self._peers.room_at() if somebody_waits else math.inf
        return min(self._timers.first(), self._questions.first(), room_at)

    def limit(self, settings: Settings) -> None:
        """Have these limits from here on, as far as the system allows it."""
        descriptors, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors != hard:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                descriptors = hard
        if descriptors == resource.RLIM_INFINITY:
            descriptors = 1 << 20
        free = max(2, descriptors - DESCRIPTORS)
        self._peers.most_strangers = min(STRANGERS, free // 2)
        self._peers.most = min(settings.connections, free - self._peers.most_strangers)
        self._peers.most_here = settings.connections_per_address
        self._penalties.least = settings.penalty

    def offer_tls(self, context: ssl.SSLContext | None, *, insist: bool) -> None:
        """Offer TLS to whoever comes from here on, or not any more; `insist`: to log in at all."""
        self._offers_tls, self._insists = context is not None, insist
        self._context = context or self._context  # to somebody it may have been offered

    def close(self) -> None:
        """Take no more connections."""
        if self._greets:
            self._greets = False
            self._selector.unregister(self._listener)
        self._listener.close()

    # --- coming -------------------------------------------------------------------------------

    def greet(self, mask: int = 0) -> None:
        """Take the connections that wait, some at a time."""
        for _ in range(AT_ONCE):
            if not self._may_greet(time.monotonic()):
                return
            try:
                sock, (host, port) = self._listener.accept()
            except OSError:  # nobody else, or gone again, or no descriptor free
                return
            try:
                self._greet(sock, host, port)
            except OSError:  # the client has gone already
                sock.close()
            except Exception as error:
                self._quiet.error("fault", f"{host}: {error!r}")
                sock.close()

    def _may_greet(self, now: float) -> bool:
        """Whether there is room for whoever comes; if not, we do not listen to them until then."""
        if self._listener.fileno() < 0:
            return False
        # Nobody is to make room for others because we are slow.
        there_is = not self._is_behind and self._peers.room_at() <= now
        if there_is and not self._greets:
            self._selector.register(self._listener, selectors.EVENT_READ, self.greet)
        elif self._greets and not there_is:
            self._selector.unregister(self._listener)
        self._greets = there_is
        return there_is

    def _greet(self, sock: socket.socket, host: str, port: int) -> None:
        # Whoever is greeted gets a challenge, and a refusal only in answer to a login: clients of
        # 2001 take the first word behind any greeting for a challenge, `-ERR busy,` too.
        now = time.monotonic()
        if self._peers.is_crowded(IPv4Address(host), now):
            self._turn_away(host, "there are many without a login")
            sock.close()  # an end without a word all clients understand
            return
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer = Peer(sock, host, port)
        peer.session = self._session(peer, now, offers_tls=self._offers_tls)
        while (oldest := self._peers.in_the_way(peer.address)) is not None:
            self.on_ready(oldest, selectors.EVENT_READ)  # its login may only wait to be read
            if self._peers.in_the_way(peer.address) is oldest:
                self._turn_away(oldest.address, "there are many without a login")
                self.send_away(oldest, wire.BUSY, "made room")
        self._selector.register(sock, selectors.EVENT_READ, peer)
        self._peers.is_stranger(peer, now)
        with self._for_itself(peer):
            self._timers.watch(peer)
            self._settle(peer, [])

    def _session(self, peer: Peer, since: float, *, offers_tls: bool) -> wire.Session:
        """A conversation with a client that has been here since then."""
        return wire.Session(
            GREETING,
            secrets.token_hex(16).upper(),  # 128 bits, for this conversation only
            self._password,
            since,
            limits=wire.Limits(
                wire.LINE_LIMIT, wire.AUTH_TIME, wire.IDLE_TIME, wire.LOGIN_FAILURES
            ),
            failed=partial(self._failed, peer.address),
            must_wait=partial(self._must_wait, peer.address),
            offers_tls=offers_tls,
            insists=offers_tls and self._insists,
            **({"trace": partial(self._trace, peer.name)} if self._traced else {}),
        )

    def _turn_away(self, address: object, why: str) -> None:
        self._counts.turned_away += 1
        self._quiet.notice("turned away", f"{address}: turned away: {why}")

    def _trace(self, name: str, line: str) -> None:
        self._quiet.log.debug(f"{name} {line}")

    # --- logging in ---------------------------------------------------------------------------

    def _password(self, user: str) -> str | None:
        try:
            return self._store.password(user)
        except StoreError as error:
            self._quiet.error("store", f"the store cannot be read: {error}")
            raise wire.Unavailable("the store cannot be read") from None

    def _failed(self, address: IPv4Address, user: str) -> str:
        """A login has failed, and this user must wait at this address; what to answer."""
        now = time.monotonic()
        self._counts.refused += 1
        name = _proper(user)
        # Nobody is to learn from what we say who has been here.
        answer = wire.BUSY if self._penalties.crowded(address, now) else wire.BAD_LOGIN
        wait = self._penalties.fail(address, name, now)
        told = f"; must wait {math.ceil(wait)} s" if wait else ""
        name = name or "a user without a proper name"
        self._quiet.notice("failed", f"{address}: login of {name} failed{told}")
        return answer

    def _must_wait(self, address: IPv4Address, user: str) -> bool:
        """Whether it is too early to look at a login.

        Too many failures at one address do not keep out who has been here: others made them.
        """
        now = time.monotonic()
        name = _proper(user)
        if self._penalties.left(address, name, now) > 0:
            return True
        if not self._penalties.crowded(address, now):
            return False
        try:
            return not self._store.has_been_here(name)
        except StoreError as error:
            self._quiet.error("store", f"the store cannot be read: {error}")
            raise wire.Unavailable("the store cannot be read") from None

    def _admit(self, peer: Peer, asked: wire.Asked) -> None:
        """A digest was right; that is not all, but here is the place for it."""
        why = self._peers.why_not(peer, self._of.get(asked.user), len(self._others))
        if why:
            self._turn_away(peer.address, why)
            self.refuse(peer, wire.BUSY)
            return
        self._peers.is_member(peer)
        self._asked(peer, asked)

    def logged_in(self, peer: Peer, user: str) -> Peer | None:
        """A login was good, and for something that this user may have; the user's one before."""
        before = self._of.get(user)
        peer.user = user
        self._of[user] = peer
        self._penalties.forgive(peer.address, user)
        self._counts.logins += 1
        return before

    def _log_out(self, peer: Peer) -> None:
        if self._of.get(peer.user) is peer:
            del self._of[peer.user]

    # --- talking ------------------------------------------------------------------------------

    def on_ready(self, peer: Peer, mask: int) -> None:
        """Something can be sent to a client, or has come from it."""
        with self._for_itself(peer):
            if mask & selectors.EVENT_WRITE:
                self._settle(peer, [])
            if mask & selectors.EVENT_READ and not peer.ending:
                self._receive(peer)

    def on_time(self, now: float) -> None:
        """Somebody's time may be over, or there may be room for somebody."""
        self._may_greet(now)
        for peer in self._timers.due(now):
            with self._for_itself(peer):
                self._heard(peer, peer.session.tick(now))
        for question in self._questions.due(now):
            try:
                question.go_on(now)
            except OSError:  # it has gone, as reading will tell
                question.due = math.inf
                question.answered.happen()

    @contextlib.contextmanager
    def _for_itself(self, peer: Peer) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.fault(peer, error)

    def fault(self, peer: Peer, error: Exception) -> None:
        """Whatever has gone wrong for one client, all others must not pay for it."""
        self._quiet.error("fault", f"{peer.name}: {error!r}")
        peer.ending = peer.ending or "internal error"
        self._leave(peer)

    def _receive(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._heard(peer, [wire.Ended(error.strerror or "the connection broke")])
            return
        if peer.tls is None:
            self._hear(peer, data)
        else:
            self._decrypt(peer, peer.tls, data)

    def _hear(self, peer: Peer, data: bytes) -> None:
        """Something was said in a conversation; nothing: it was ended."""
        try:
            events = peer.session.receive(data, time.monotonic())
        except wire.ProtocolError as error:
            peer.session.close(wire.BAD_COMMAND)
            events = [wire.Ended(f"protocol error: {error}")]
            if isinstance(error, wire.Injected):
                self._quiet.notice("tls", f"{peer.address}: {error}")
        self._heard(peer, events)

    def _heard(self, peer: Peer, events: list[wire.SessionEvent]) -> None:
        """The same, as events; or its time is over."""
        for event in events:
            if isinstance(event, wire.Ended) and peer.shakes_hands:
                text = f"the TLS handshake was not finished: {event.reason}"
                self._quiet.notice("tls", f"{peer.address}: {text}")
        self._settle(peer, events)

    # --- TLS ----------------------------------------------------------------------------------

    def shake_hands(self, ready: list[tuple[Peer, int]]) -> None:
        """As `on_ready`, for handshakes, of which each step takes as long as a hundred pings.

        Only for a while: whose turn does not come is ready the next time as well.
        """
        end = time.monotonic() + SHAKING_TIME if ready else 0.0
        self._is_behind = False
        for peer, mask in ready:
            if time.monotonic() > end:
                self._is_behind = True
                return
            self.on_ready(peer, mask)

    def _begin_tls(self, peer: Peer) -> None:
        """What comes from here on is encrypted, once both have shaken hands."""
        from dtcp.tls import Tls

        assert self._context is not None
        peer.unsent += peer.session.take()  # the last words in the clear
        peer.tls = Tls(self._context, server_side=True)
        self._has_come_further(peer)

    def _decrypt(self, peer: Peer, tls: Tls, data: bytes) -> None:
        """Go on with the handshake, or with what is said behind it."""
        is_new = not tls.done
        try:
            if not peer.session.granted:
                self._count(peer, data)
            clear = tls.receive(data)
        except Error as error:
            self._quiet.notice("tls", f"{peer.address}: {error}")
            self._settle(peer, [wire.Ended(str(error))])
            return
        if is_new and tls.done:
            self._begin_anew(peer, tls)
        if clear:
            self._hear(peer, clear)
        if tls.closed and not peer.ending:
            self._hear(peer, b"")
        elif not clear:
            self._settle(peer, [])

    def _count(self, peer: Peer, data: bytes) -> None:
        """See that nobody goes on for ever with what is no line, such as updates of keys.

        Each takes longer than a ping, and strangers may be many.  Raises ProtocolError.
        """
        peer.tls_heard += len(data)
        if peer.tls_heard > TLS_BEFORE_LOGIN:
            peer.session.close(wire.TOO_MUCH_TALK)
            raise wire.ProtocolError("TLS has failed: too much before the login")

    def _begin_anew(self, peer: Peer, tls: Tls) -> None:
        """Forget all that was said before the handshake, but not when the connection began."""
        if self._traced:
            self._trace(peer.name, f"{tls.protocol} {tls.cipher}")
        since = peer.session.deadline - wire.AUTH_TIME
        peer.session = self._session(peer, since, offers_tls=False)
        self._has_come_further(peer)

    def _has_come_further(self, peer: Peer) -> None:
        """Count it among those who have just come, as TLS takes more round trips than a login."""
        self._peers.is_stranger(peer, time.monotonic())

    def _settle(self, peer: Peer, events: list[wire.SessionEvent]) -> None:
        """Act on what a session says, send what it has to say, and end it when it is over."""
        for event in events:
            if isinstance(event, wire.Asked):
                self._admit(peer, event)
            elif isinstance(event, wire.StartTls):
                self._begin_tls(peer)
            else:
                peer.ending = event.reason
        if peer not in self._peers:
            return
        peer.flush()
        if peer.ending:
            self._leave(peer)
            return
        self._timers.watch(peer)
        if bool(peer.unsent) != peer.writing:
            peer.writing = bool(peer.unsent)
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.writing else 0)
            self._selector.modify(peer.sock, wanted, peer)

    def accept(self, peer: Peer, grant: Grant) -> None:
        """Grant what a client has asked for."""
        told = grant._replace(remote=self._announced) if self._announced else grant
        self._settle(peer, peer.session.accept(told.reply(), time.monotonic()))

    def refuse(self, peer: Peer, text: str) -> None:
        """Refuse it; or end the conversation, if it was granted already."""
        if peer.ending:
            return
        if peer.session.granted:
            self.send_away(peer, text, "its tunnel is broken")
        else:
            self._log_out(peer)
            peer.user = ""
            self._peers.is_stranger(peer, time.monotonic())
            self._settle(peer, peer.session.refuse(text, time.monotonic()))

    def send_away(self, peer: Peer, text: str, reason: str) -> None:
        """End a conversation from our side."""
        peer.session.close(text)
        self._settle(peer, [wire.Ended(reason)])

    def ask(self, peer: Peer) -> Event:
        """Ask whether a client is still there.

        It happens when that is known: one that is not has left by then.
        """
        if peer.question is None or peer.question.due == math.inf:
            peer.question = Question(peer.sock, time.monotonic())
            self._questions.watch(peer.question)
        return peer.question.answered

    # --- going --------------------------------------------------------------------------------

    def send_all_away(self, text: str, reason: str) -> None:
        """End all conversations."""
        for peer in self._peers.all():
            self.send_away(peer, text, reason)

    def drop_all(self) -> None:
        """Close all connections, and leave everything else as it is."""
        for peer in self._peers.all():
            peer.sock.close()

    def _leave(self, peer: Peer) -> None:
        if peer not in self._peers:
            return
        self._peers.gone(peer)
        self._timers.forget(peer)
        self._log_out(peer)
        if peer.question is not None:
            self._questions.forget(peer.question)
            peer.question.answered.happen()
        with contextlib.suppress(KeyError, ValueError):  # it broke before it was, or since
            self._selector.unregister(peer.sock)
        peer.sock.close()
        peer.tls = None
        self._left(peer)


def _proper(user: str) -> str:
    """A user's name, or nothing in the place of what cannot be one."""
    return user if re.fullmatch(wire.USER, user) else ""


def listener(address: IPv4Address, port: int) -> socket.socket:
    """A socket at that port, which does not listen yet.  Raises Failure."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((str(address), port))
    except OSError as error:
        sock.close()
        where = "" if address.is_unspecified else f"{address} "
        raise Failure(f"listen on {where}port {port}: {error.strerror}") from None
    sock.setblocking(False)
    return sock
