"""The tunnels of all users: the state of each, what may follow upon what, and what makes it so.

THEORY OF OPERATION

Each user has one record here, a `Tunnel`, and may have one tunnel.  The record is in one of these
states at any time:

free      There is nothing: no interface, no route, no outer pair or UDP port of this user's.

making    Workers run the commands that make the tunnel, or make it anew.  Its client, the holder,
          waits for an answer, or, over UDP or if it is made anew, has had it already.  Whether the
          holder is still there is looked at when the commands are through: to stop them half-way
          would save nothing.

hearing   Over UDP.  The holder was told our port and a key, and we wait for its first packet there,
          which shows the key: only that tells where it is (dtcp.server.udp).

up        The tunnel stands, and the holder's connection with it.

orphan    The tunnel stands, as a server before us has left it, and its client has not come back.
          It has `adopt-time` for that.

leaving   Workers take the tunnel down.

broken    That failed, or making the tunnel did and could not be undone: something is left on the
          host.  Each login that needs it out of its way has it tried once more.

In every state but `free` a tunnel owns what no two can have: its outer pair, or over UDP its port.
What stands (`up`, `orphan`) is known by `made`, as it is to the store, so that the next server can
take it over; in `leaving` and `broken`, `made` is what is left.

A login wants its user's record and its outer pair for itself.  A tunnel that stands and is what the
login asks for is handed over: from an older connection of the user, which is half open, for its
client has restarted; or from nobody (`orphan`).  Otherwise what is in the way has to go: the user's
older connection is sent away, an orphan of his is taken down.  But where another user's client
holds a tunnel to the same address, and is still there when it is asked (dtcp.server.presence), or
may come back to an orphan, it is the login that is refused: gif(4) cannot have two with the same
ends.  The login waits *at the record that is in its way*, and looks again whenever the state of
that one has changed.  So nothing is retried but what has a chance, and nobody looks through a list
of all who wait.

That a tunnel is up is seen, not remembered.  Each is looked at when it is handed over, before the
client has its answer; and now and then, one after the other and by the worker that serves no
logins, so that however many there are nobody waits for it.  (Then it is also seen whether its user
may still have it.)  What is missing is put back.  A tunnel that cannot be put back goes from `up`
to `making`, with its holder, its grant and what it owns: it is removed and made anew, and the
client sees a packet lost.  If that fails as well, the client is sent away, to log in again.  An
orphan is what the store says, until it is looked at like all others; one that cannot be put back
is removed.

Everything happens in the main thread, between two yields of a flow (dtcp.server.workers): while a
flow waits for a worker the state says so (`making`, `leaving`), and all others see it.
"""

from __future__ import annotations

import contextlib
import hmac
import math
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from dtcp import wire
from dtcp.errors import CommandFailed, NotRun
from dtcp.grant import Grant
from dtcp.server.building import Builder, NotMade, Removed
from dtcp.server.counts import Counts
from dtcp.server.database import InvalidRow, StoreError
from dtcp.server.interfaces import Interfaces
from dtcp.server.leases import Denied, Leases, kind_of
from dtcp.server.limits import Quiet
from dtcp.server.records import STANDING, Outer, State, Tunnel
from dtcp.server.sessions import Peer, Sessions
from dtcp.server.store import Made
from dtcp.server.timers import Timers
from dtcp.server.traffic import Traffic
from dtcp.server.udp import KEY, Ears
from dtcp.server.workers import Aside, Flow, Workers
from dtcp.text import size

LOOK = 300.0  # seconds between two looks at a tunnel
# The same over UDP: a new one's other end may not be ready for a moment, which costs us our peer.
# The time between two looks doubles from the first to the second.
SOON, OFTEN = 1.0, 20.0


class Tunnels:
    """One record for each user who has, or has had, a tunnel."""

    sessions: Sessions  # for the answers; these are told of us, so they come later

    def __init__(
        self,
        quiet: Quiet,
        counts: Counts,
        workers: Workers,
        leases: Leases,
        builder: Builder,
        interfaces: Interfaces,
        ears: Ears,
    ) -> None:
        self._quiet, self._log, self._counts, self._workers = quiet, quiet.log, counts, workers
        self._leases, self._builder = leases, builder
        self._interfaces, self._ears = interfaces, ears
        self._records: dict[str, Tunnel] = {}  # by user
        self._census: Counter[State] = Counter()
        self._owners: dict[Outer, Tunnel] = {}
        self._looks: Timers[Tunnel] = Timers(lambda tunnel: tunnel.look_at)
        self._looking = False  # at those whose time has come
        self._ends = False  # what is not urgent stays as it is

    # --- what there is ------------------------------------------------------------------------

    def _of(self, user: str) -> Tunnel:
        tunnel = self._records.get(user)
        if tunnel is None:
            tunnel = self._records[user] = Tunnel(user, self._census)
        return tunnel

    def _in(self, *states: State) -> list[Tunnel]:
        return [each for each in self._records.values() if each.state in states]

    def count(self, *states: State) -> int:
        """How many are in one of these states."""
        return sum(self._census[state] for state in states)

    def there(self) -> list[Tunnel]:
        """All that are not free."""
        return [each for each in self._records.values() if each.state is not State.FREE]

    def found(self, standing: Sequence[Made]) -> None:
        """What a server before us has left waits for its clients."""
        now = time.monotonic()
        for number, made in enumerate(standing, 1):
            tunnel = self._of(made.user)
            self._own(tunnel, _outer(made.grant))
            tunnel.made = made
            tunnel.become(State.ORPHAN)
            tunnel.look_every = LOOK
            self._look_by(tunnel, now + LOOK * number / len(standing))

    def _own(self, tunnel: Tunnel, outer: Outer) -> None:
        self._owners[outer], tunnel.outer = tunnel, outer

    def _free(self, tunnel: Tunnel) -> None:
        """Nothing is left of it."""
        if tunnel.outer is not None:
            del self._owners[tunnel.outer]
        tunnel.become(State.FREE)

    # --- logging in ---------------------------------------------------------------------------

    def asked(self, peer: Peer, asked: wire.Asked) -> None:
        """Whoever has logged in gets a tunnel, or is told why not."""
        self._workers.start(self._login(peer, asked), partial(self.sessions.fault, peer))

    def _login(self, peer: Peer, asked: wire.Asked) -> Flow[None]:
        with self._refused_if_it_fails(peer, asked.user):
            user = self._leases.user(asked)
            if asked.udp is None and peer.address == peer.own:  # what we sent would come back to us
                why = wire.ITSELF.format(peer.address)
                raise Denied(why, why)
            before = self.sessions.logged_in(peer, user.name)
            if before is not None and before is not self._of(user.name).holder:
                # Of a user's logins one is in work, the latest: else a single user could fill all
                # places at his address, and keep everybody else there out.
                self._replace(before, peer)
            self._builder.usage.logged_in(user.name)
            grant = yield from self._leases.grant(user, asked, peer.address, peer.own)
            grant = grant._replace(key=asked.key)  # so far it only tells what the client has
            yield from self._give(peer, kind_of(asked), grant)

    @contextlib.contextmanager
    def _refused_if_it_fails(self, peer: Peer, user: str) -> Iterator[None]:
        try:
            yield
        except Denied as denied:
            if denied.why:
                self._quiet.notice("refused", f"{peer.address}: {user}: {denied.why}")
            self.sessions.refuse(peer, denied.answer)
        except Exception as error:
            why = str(error) if isinstance(error, StoreError) else repr(error)
            self._log.error(f"{user}: {why}")
            self.sessions.refuse(peer, wire.INTERNAL)

    def _give(self, peer: Peer, kind: str, grant: Grant) -> Flow[None]:
        """Hand over the tunnel that stands, or make it, once nothing is in the way."""
        tunnel = self._of(peer.user)
        tried = False  # to remove what resists
        asked = False  # who has our place whether it is still there
        looked = False  # at what a server before us has left there
        while not peer.ending:
            if tunnel.state in STANDING and tunnel.made and _same(tunnel.made.grant, grant):
                yield from self._hand_over(tunnel, peer)
                return
            other = tunnel
            if tunnel.state is State.FREE:  # then the outer pair may still be another user's
                other = self._owners.get(_outer(grant), tunnel)
            if other.state is State.FREE:
                yield from self._make(tunnel, peer, kind, grant)
                return
            if other is not tunnel and other.state is State.ORPHAN:
                if looked:
                    raise Denied(wire.BUSY, f"{other.user} may come back to there")
                looked = True  # it may be gone, after a reboot for example
                yield from self._see_to(other)
                continue
            if other is not tunnel and other.holder is not None and not other.holder.ending:
                # gif(4) cannot have two tunnels with the same ends.  But addresses go from one to
                # another, and who had one before could not say goodbye.
                if not asked:
                    asked = True
                    yield self.sessions.ask(other.holder)
                    continue
                answer = wire.OTHERS.format(peer.address)
                raise Denied(answer, f"{other.user} has a tunnel to there")
            if other.state is State.BROKEN and tried:
                raise Denied(wire.INTERNAL)
            tried = tried or other.state is State.BROKEN
            if not self._make_way(other, peer):
                yield other.changed

    def _make_way(self, tunnel: Tunnel, peer: Peer) -> bool:
        """Begin to remove what is in the way of a login; whether it is gone already."""
        if tunnel.state in (State.ORPHAN, State.BROKEN):
            self._remove(tunnel, f"{peer.user} has logged in from {peer.address}")
        elif tunnel.holder is not None and not tunnel.holder.ending:
            self._replace(tunnel.holder, peer)
        return tunnel.state is State.FREE

    def _replace(self, before: Peer, peer: Peer) -> None:
        """Send away an older connection: it is half open, and its client has restarted."""
        again = f"logged in again from {peer.address}"
        self.sessions.send_away(before, again, again)

    def _hand_over(self, tunnel: Tunnel, peer: Peer) -> Flow[None]:
        """A tunnel that stands already is this client's, once we have seen it."""
        before = tunnel.holder
        if before is None:
            self._counts.adopted += 1
        tunnel.become(State.UP, peer)
        if before is not None:
            self._replace(before, peer)
            self._log.notice(f"{peer.user}: {before.ending}")
        was_whole = yield from self._see_to(tunnel)
        if tunnel.state is State.UP and tunnel.holder is peer and tunnel.made is not None:
            self._watch(tunnel)
            told = ", as it was" if was_whole else ""
            self._log.notice(f"{peer.user}: up: {_told(tunnel.made)}{told}")
            self.sessions.accept(peer, tunnel.made.grant)

    def _make(self, tunnel: Tunnel, peer: Peer, kind: str, grant: Grant) -> Flow[None]:
        """Make a tunnel for this client."""
        if grant.ports is None:
            self._own(tunnel, _outer(grant))
            tunnel.become(State.MAKING, peer)
        else:
            heard = yield from self._hear(tunnel, peer, grant, grant.ports[0])
            if heard is None:
                return
            grant = heard
        is_there = yield from self._build(tunnel, peer, kind, grant)
        if is_there:
            if grant.ports is None:  # over UDP it has had its answer long since
                self.sessions.accept(peer, grant)
            self.check([tunnel.user])  # what was changed meanwhile was seen by nobody

    def _build(self, tunnel: Tunnel, peer: Peer, kind: str, grant: Grant) -> Flow[bool]:
        """Have a tunnel that is `making` made; whether its client is still there."""
        try:
            made, losers = yield from self._try_places(tunnel, kind, grant)
        except Exception:
            if tunnel.state is State.MAKING:
                self._free(tunnel)
            raise
        tunnel.made = made
        now = time.monotonic()
        tunnel.traffic = Traffic(0, 0, now, now)
        tunnel.become(State.UP, peer)
        for name in losers:
            self._lose(name, made.interface)
        self._interfaces.taken(made.interface)
        self._watch(tunnel)
        self._log.notice(f"{peer.user}: up: {_told(made)}")
        if peer.ending:  # it went while we were at work for it
            self._remove(tunnel, peer.ending)
        return not peer.ending

    def _try_places(self, tunnel: Tunnel, kind: str, grant: Grant) -> Flow[tuple[Made, list[str]]]:
        """Have a worker make it, on the first interface that nobody else has."""
        while True:
            place = self._interfaces.take(udp=grant.ports is not None)
            if place is None:
                raise Denied(wire.SOLD_OUT)
            try:
                built: tuple[Made, list[str]] | None = yield partial(
                    self._builder.make, tunnel.user, kind, grant, place
                )
            except NotMade as failed:
                self._log.error(str(failed))  # the details are for our log only
                self._log_failures(tunnel.user, failed.failures)
                if failed.failures:
                    tunnel.made = failed.made
                    tunnel.become(State.BROKEN)
                else:
                    self._interfaces.give_back(place)
                raise Denied(wire.INTERNAL) from None
            if built is not None:
                return built

    def _hear(self, tunnel: Tunnel, peer: Peer, grant: Grant, announced: int) -> Flow[Grant | None]:
        """Grant a tunnel over UDP, and wait for the client's first packet.

        The grant with the client's port, or None: it has left.
        """
        heard: list[int] = []
        key = secrets.token_bytes(KEY)

        def hear(port: int) -> None:
            heard.append(port)
            self._ears.close(own)
            tunnel.become(State.MAKING, peer)

        try:
            own = self._ears.open(peer.own, peer.address, key, self._owners, hear)
        except OSError as error:
            self._quiet.error("ear", f"{peer.user}: no socket over UDP: {error.strerror}")
            raise Denied(wire.SOLD_OUT) from None
        self._own(tunnel, own)
        tunnel.become(State.HEARING, peer)
        grant = grant._replace(ports=(announced, own), key=key)
        self.sessions.accept(peer, grant)
        if tunnel.holder is peer:
            yield tunnel.changed
        return grant._replace(ports=(announced or heard[0], own)) if heard else None

    # --- going away ---------------------------------------------------------------------------

    def left(self, peer: Peer) -> None:
        """A client has gone, and its tunnel goes with it."""
        tunnel = self._records.get(peer.user)
        if tunnel is None or tunnel.holder is not peer:
            return
        if tunnel.state is State.UP:
            self._remove(tunnel, peer.ending)
        elif tunnel.state is State.HEARING:
            assert isinstance(tunnel.outer, int)
            self._ears.close(tunnel.outer)
            self._free(tunnel)

    def remove_orphans(self, reason: str) -> None:
        """Take down what waits for its client, all at once."""
        for tunnel in self._in(State.ORPHAN):
            self._remove(tunnel, reason)

    def give_up_orphans(self, reason: str) -> Flow[None]:
        """The same, one after the other: thousands must not keep others from their logins.

        Whoever comes back before it is his turn still finds his tunnel.
        """
        for tunnel in self._in(State.ORPHAN):
            if tunnel.state is State.ORPHAN and not self._ends:
                try:
                    yield from self._take_down(tunnel, reason, aside=True)
                except Exception as error:  # the others go all the same
                    self._fault(tunnel.user, error)

    def _lose(self, user: str, interface: str) -> None:
        """Somebody destroyed the interface of this user's tunnel: another one has that name now."""
        tunnel = self._of(user)
        if tunnel.made is not None and tunnel.state in (*STANDING, State.BROKEN):
            # Nothing of it is left on that name, which is in use, nor under another one.
            tunnel.made = tunnel.made._replace(interface="", mark="")
            if tunnel.state is State.UP:  # it gets another one
                self._look_by(tunnel, time.monotonic())
            else:
                self._remove(tunnel, f"{interface} was destroyed behind our back")

    def _end(self, tunnel: Tunnel, text: str, reason: str) -> None:
        """End a tunnel from our side; its client, if it has one, is told this text."""
        if tunnel.holder is not None:
            self.sessions.send_away(tunnel.holder, text, reason)
        else:
            self._remove(tunnel, reason)

    def _remove(self, tunnel: Tunnel, reason: str) -> None:
        self._workers.start(self._take_down(tunnel, reason), partial(self._fault, tunnel.user))

    def _take_down(self, tunnel: Tunnel, reason: str, *, aside: bool = False) -> Flow[None]:
        assert tunnel.made is not None
        # Of those without a client, thousands may go at a time.
        say = self._log.notice if tunnel.holder else partial(self._quiet.notice, "down")
        tunnel.become(State.LEAVING)
        while tunnel.looking:
            yield tunnel.changed
        made = tunnel.made
        removed = yield from self._undo(tunnel, made, aside=aside)
        lasted, what = time.monotonic() - made.since, made.interface or "it"
        told = f"{tunnel.user}: down: {reason}; {what} was up {lasted:.0f} s"
        if removed.traffic is not None:
            received, sent = map(size, removed.traffic)
            told += f", {received} bytes in, {sent} out"
        say(told)
        if not removed.failures:
            self._free(tunnel)

    def _undo(self, tunnel: Tunnel, made: Made, *, aside: bool = False) -> Flow[Removed]:
        """Have it removed; if something is left, it is broken."""
        work = partial(self._builder.remove, made)
        try:
            removed: Removed = yield Aside(work) if aside else work
        except Exception:
            tunnel.become(State.BROKEN)
            raise
        self._log_failures(tunnel.user, removed.failures)
        if removed.failures:
            tunnel.become(State.BROKEN)
        else:
            self._interfaces.left(made.interface, borrowed=made.borrowed)
        return removed

    def _log_failures(self, user: str, failures: list[CommandFailed]) -> None:
        for failure in failures:
            self._log.error(f"{user}: could not be undone: {failure}")

    def _fault(self, user: str, error: Exception) -> None:
        self._log.error(f"{user}: {error!r}")

    def count_bytes(self) -> Flow[None]:
        """See how much has gone through each that stands, one after the other."""
        for tunnel in self._in(*STANDING):
            made = tunnel.made
            if made is None or tunnel.state not in STANDING or self._ends:
                continue
            counted: tuple[int, int] | None = yield Aside(partial(self._builder.count, made))
            if counted is not None and tunnel.made is made:
                received, sent = counted
                now = time.monotonic()
                before = tunnel.traffic or Traffic(received, sent, now, now)
                tunnel.traffic = before.then(received, sent, now)

    # --- looking after them -------------------------------------------------------------------

    def check(self, users: Iterable[str]) -> None:
        """End the tunnels of these users that they may not have any more."""
        try:
            for name in users:
                tunnel = self._records.get(name)
                if tunnel is None or tunnel.made is None or tunnel.state not in STANDING:
                    continue
                try:
                    if why := self._leases.objection(tunnel.made):
                        self._end(tunnel, why, why)
                except InvalidRow as error:  # that is no word against anybody else
                    self._quiet.error("store", str(error))
                except StoreError:
                    raise
                except Exception as error:  # such as a row that makes no sense: it stays as it is
                    self._quiet.error("fault", f"{name}: {error!r}")
        except StoreError as error:
            self._quiet.error("store", f"the store cannot be read: {error}")

    @property
    def due(self) -> float:
        """When `look` is to be called; never while it is at work."""
        return math.inf if self._looking or self._ends else self._looks.first()

    def look(self) -> None:
        """See to the tunnels whose time has come, one after the other."""
        self._looking = True
        self._workers.start(self._look(), lambda error: self._log.error(repr(error)))

    def look_at_all(self) -> None:
        """Let the time have come for all that stand: what they are, or may be, has changed."""
        now = time.monotonic()
        for tunnel in self._in(*STANDING):
            self._look_by(tunnel, now)

    def look_no_more(self) -> None:
        """We end."""
        self._ends = True

    def _watch(self, tunnel: Tunnel) -> None:
        """It is up from now on."""
        tunnel.look_every = SOON if isinstance(tunnel.outer, int) else LOOK
        tunnel.missing = []
        self._look_by(tunnel, time.monotonic() + tunnel.look_every)

    def _look_by(self, tunnel: Tunnel, when: float) -> None:
        tunnel.look_at = when
        self._looks.watch(tunnel)

    def _look(self) -> Flow[None]:
        try:
            for tunnel in self._looks.due(time.monotonic()):
                if self._ends:
                    break
                most = OFTEN if isinstance(tunnel.outer, int) else LOOK
                tunnel.look_every = min(most, 2 * tunnel.look_every)
                tunnel.look_at = time.monotonic() + tunnel.look_every
                self.check([tunnel.user])
                try:
                    yield from self._see_to(tunnel, aside=True)
                except Exception as error:  # the others are looked at all the same
                    self._quiet.error("fault", f"{tunnel.user}: {error!r}")
        finally:
            self._looking = False

    def _see_to(self, tunnel: Tunnel, *, aside: bool = False) -> Flow[bool]:
        """See that a tunnel is whole, and if it is not, make it so; whether it was.

        What stands afterwards, and whose it is, is to be looked at anew.
        """
        holder = tunnel.holder
        while tunnel.looking or tunnel.state is State.MAKING:
            yield tunnel.changed
        made = tunnel.made
        if tunnel.state not in STANDING or made is None or tunnel.holder is not holder:
            return False  # who has taken it over since sees to it himself
        tunnel.looking = True
        lost, missing = "", list[str]()
        try:
            work = partial(self._builder.look, made)
            known, missing = yield Aside(work) if aside else work
            if tunnel.made is made:
                tunnel.made = known
        except NotRun as failed:
            self._quiet.error("blind", f"{tunnel.user}: cannot be looked at: {failed}")
        except CommandFailed as failed:
            lost = str(failed)
        except Exception as error:
            self._quiet.error("blind", f"{tunnel.user}: cannot be looked at: {error!r}")
        finally:
            tunnel.looking = False
            tunnel.changed.happen()
        if lost and tunnel.state is State.UP:
            self._quiet.notice("lost", f"{tunnel.user}: {lost}: making it anew")
            yield from self._make_anew(tunnel)
        elif lost and tunnel.state is State.ORPHAN:
            self._remove(tunnel, lost)
        elif missing:
            told = f"{tunnel.user}: put back what was missing: {'; '.join(missing)}"
            if missing == tunnel.missing:  # again and again, such as a socket that is refused
                self._log.info(told)
            else:
                self._quiet.notice("put back", told)
        tunnel.missing = missing
        return not (lost or missing)

    def _make_anew(self, tunnel: Tunnel) -> Flow[None]:
        """Remove what is left of a tunnel that is up, and make it again for its client."""
        peer, made = tunnel.holder, tunnel.made
        assert peer is not None
        assert made is not None
        tunnel.become(State.MAKING, peer)
        with self._refused_if_it_fails(peer, tunnel.user):
            removed = yield from self._undo(tunnel, made)
            if removed.failures:
                raise Denied(wire.INTERNAL)
            if (yield from self._build(tunnel, peer, made.type, made.grant)):
                self.check([tunnel.user])  # as in `_make`


def _outer(grant: Grant) -> Outer:
    """What two tunnels cannot have."""
    return (grant.remote, grant.local) if grant.ports is None else grant.ports[1]


def _same(made: Grant, wanted: Grant) -> bool:
    """Whether a tunnel that stands is the one that is wanted.

    Over UDP our port is what it was.  Who does not know the client's is behind a NAT, which may
    have given it another one since: that has to be learnt anew, unless the client says, by the
    key, that packets pass.
    """
    if made.ports is not None and wanted.ports is not None:
        passes = wanted.key is not None and hmac.compare_digest(made.key or b"", wanted.key)
        if wanted.ports[0] == made.ports[0] or (wanted.ports[0] == 0 and passes):
            wanted = wanted._replace(ports=made.ports)
    return made == wanted._replace(key=made.key)


def _told(made: Made) -> str:
    has = [str(each) for each in (made.grant.inner, *made.grant.prefixes) if each is not None]
    return ", ".join((f"{made.interface} to {made.grant.local}", made.type, *has))
