"""The states of the server's tunnels, with everything around them played by a model.

Logins of a few users from a few addresses come and go at any moment; the work for them is done, or
fails, or cannot be undone, in whatever order.  No two tunnels may ever have the same outer pair, no
login may be forgotten, and whoever is still there when all work is done must have an answer.
"""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator
from functools import partial
from ipaddress import IPv4Address
from typing import Any, cast

import pytest
from dtcp import daemon, wire
from dtcp.errors import CommandFailed, NotRun
from dtcp.grant import Grant
from dtcp.server import udp
from dtcp.server.building import Builder, NotMade, Removed
from dtcp.server.counts import Counts
from dtcp.server.interfaces import Interfaces
from dtcp.server.leases import Denied, Leases
from dtcp.server.limits import Quiet
from dtcp.server.records import HELD, STANDING, TRANSITIONS, State, Tunnel
from dtcp.server.sessions import Peer, Sessions
from dtcp.server.store import Made, User
from dtcp.server.tunnels import Tunnels
from dtcp.server.usage import Usage
from dtcp.server.workers import Event, Flow, Workers
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.trust import Figure

OWN = IPv4Address("192.0.2.1")
USERS = st.sampled_from(["itojun", "jun", "kazu"])
ADDRESSES = st.sampled_from([IPv4Address("203.0.113.7"), IPv4Address("203.0.113.8")])


class Jobs(deque[Any]):
    """A queue that can be looked into."""

    put = deque.append


class ByHand(Workers):
    """Workers that do one thing when they are told to."""

    def __init__(self) -> None:
        self._ready = deque()
        self._logins, self._others = cast(Any, Jobs()), cast(Any, Jobs())

    def jobs(self) -> list[Any]:
        return [work for work, _ in (*cast(Jobs, self._logins), *cast(Jobs, self._others))]

    def has_work(self) -> bool:
        return bool(self.jobs())

    def work(self, *, aside: bool = False) -> None:
        """Do what has waited longest, of logins or of what is done aside."""
        queues = [cast(Jobs, self._others), cast(Jobs, self._logins)]
        work, go_on = next(each for each in (queues if aside else queues[::-1]) if each).popleft()
        try:
            result = work(cast(Any, None))
        except Exception as error:
            go_on(error=error)
        else:
            go_on(result)


def outer(grant: Grant) -> object:
    """What no two tunnels can have."""
    return grant.ports[1] if grant.ports else (grant.remote, grant.local)


class Host(Builder):
    """Stands in for commands and store: what tunnels there are, and what goes wrong next."""

    def __init__(self) -> None:
        self.usage = Usage()
        self.standing: dict[object, str] = {}
        self.outcome = "done"

    def make(
        self, user: str, kind: str, grant: Grant, place: object, host: object
    ) -> tuple[Made, list[str]] | None:
        pair = outer(grant)
        assert pair not in self.standing, "two tunnels with the same ends"
        assert user not in self.standing.values(), "two tunnels of one user"
        made = Made(user, kind, grant, f"gif{len(self.standing)}", user, "", False, 0.0)
        if self.outcome == "fault":
            raise ZeroDivisionError
        if self.outcome == "stuck":
            self.standing[pair] = user
        if self.outcome != "done":
            failures = [CommandFailed(("x",), "y")] if self.outcome == "stuck" else []
            raise NotMade("no", made, failures)
        self.standing[pair] = user
        return made, []

    def remove(self, made: Made, host: object) -> Removed:
        if self.outcome == "fault":
            raise ZeroDivisionError
        if self.outcome != "done":
            return Removed([CommandFailed(("x",), "y")], None)
        del self.standing[outer(made.grant)]
        return Removed([], (1, 2))

    def count(self, made: Made, host: object) -> tuple[int, int] | None:
        if self.outcome == "fault":
            raise ZeroDivisionError
        return (1, 2) if self.outcome == "done" else None

    def look(self, made: Made, host: object) -> tuple[Made, list[str]]:
        assert self.standing[outer(made.grant)] == made.user, "a look at what is not there"
        if self.outcome == "fault":
            raise ZeroDivisionError
        if self.outcome == "failed":
            raise NotRun(("x",), "no more processes")
        if self.outcome == "gone":
            raise CommandFailed(("ifconfig", made.interface), "not there any more")
        return made._replace(number=1), ["x"] if self.outcome == "stuck" else []


class Lessor(Leases):
    """Gives everybody a tunnel, some after a while."""

    def __init__(self) -> None:
        self.barred: set[str] = set()

    def user(self, asked: wire.Asked) -> User:
        if asked.user in self.barred:
            raise Denied("barred", "barred")
        return User(asked.user)

    def grant(
        self, user: User, asked: wire.Asked, local: IPv4Address, remote: IPv4Address
    ) -> Flow[Grant]:
        if asked.type == "network":
            yield lambda host: None
        return Grant(local, remote, ports=None if asked.udp is None else (asked.udp, 0))

    def objection(self, made: Made) -> str:
        return "barred" if made.user in self.barred else ""


class Ears(udp.Ears):
    """Who waits for a first packet."""

    def __init__(self) -> None:
        self.waiting: dict[int, Callable[[int], None]] = {}

    def open(
        self,
        own: IPv4Address,
        client: IPv4Address,
        key: bytes,
        taken: Container[object],
        heard: Callable[[int], None],
    ) -> int:
        port = next(port for port in range(4028, 4100) if port not in taken)
        self.waiting[port] = heard
        return port

    def close(self, port: int) -> None:
        del self.waiting[port]


class Talk(Sessions):
    """What is said to whom."""

    def __init__(self) -> None:
        self.tunnels: Tunnels
        self.peers: dict[Peer, list[str]] = {}  # who is there, and the answers so far
        self.questions: dict[Peer, Event] = {}  # who is asked whether he is there

    def logged_in(self, peer: Peer, user: str) -> Peer | None:
        before = [each for each in self.peers if each.user == user]
        peer.user = user
        return before[-1] if before else None

    def accept(self, peer: Peer, grant: Grant) -> None:
        assert not peer.ending
        self.peers[peer].append("+OK")

    def refuse(self, peer: Peer, text: str) -> None:
        if not peer.ending and "+OK" in self.peers[peer]:
            self.send_away(peer, text, "its tunnel is broken")
        elif not peer.ending:
            peer.user = ""
            self.peers[peer].append("-ERR")

    def send_away(self, peer: Peer, text: str, reason: str) -> None:
        peer.ending = reason
        if self.peers.pop(peer, None) is not None:
            self.tunnels.left(peer)
        self.answer(peer)

    def ask(self, peer: Peer) -> Event:
        assert peer in self.peers
        return self.questions.setdefault(peer, Event())

    def answer(self, peer: Peer) -> None:
        """It is known whether this one is there."""
        if peer in self.questions:
            self.questions.pop(peer).happen()

    def fault(self, peer: Peer, error: Exception) -> None:
        raise AssertionError from error


class Silent(daemon.Log):
    def _write(self, level: int, text: str) -> None:
        assert "AssertionError" not in text  # here or in the server: that is not a fault it bears
        assert "cannot become" not in text


class Server(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ears = Ears()
        self.workers, self.host, self.lessor, self.talk = ByHand(), Host(), Lessor(), Talk()
        self.tunnels = self.talk.tunnels = Tunnels(
            Quiet(Silent("dtcps")),
            Counts(),
            self.workers,
            self.lessor,
            self.host,
            Interfaces(None, None, no_cloning=False, keep=False),
            self.ears,
        )
        self.tunnels.sessions = self.talk

    def _records(self) -> Iterator[Tunnel]:
        return iter(self.tunnels._records.values())

    # --- what may happen ----------------------------------------------------------------------

    @initialize(left=st.dictionaries(USERS, ADDRESSES))
    def a_server_before_us_has_left(self, left: dict[str, IPv4Address]) -> None:
        whose = {address: user for user, address in left.items()}
        grants = {user: Grant(address, OWN) for address, user in whose.items()}
        self.host.standing = {outer(grant): user for user, grant in grants.items()}
        self.tunnels.found(
            [
                Made(user, "tunnelonly", grant, "gif0", user, "", False, 0.0)
                for user, grant in grants.items()
            ]
        )

    @rule()
    def the_time_of_orphans_is_over(self) -> None:
        self.workers.start(self.tunnels.give_up_orphans("nobody came back"), self._fault)

    @rule(
        user=USERS,
        address=ADDRESSES,
        kind=st.sampled_from(["tunnelonly", "network"]),
        udp=st.sampled_from([None, None, 0]),
    )
    def somebody_logs_in(
        self,
        user: str,
        address: IPv4Address,
        kind: str,
        udp: int | None,
        key: bytes | None = None,
    ) -> None:
        others = [each for each in self.talk.peers if each.user not in ("", user)]
        peer = Peer.__new__(Peer)
        peer.user, peer.address, peer.own, peer.ending = "", address, OWN, ""
        self.talk.peers[peer] = []
        self.tunnels.asked(peer, wire.Asked(user, kind, udp, key))
        assert self.talk.peers.keys() >= {*others}, "a login is nobody else's end"

    @precondition(lambda self: self.ears.waiting)
    @rule(which=st.integers(0, 9))
    def a_packet_comes(self, which: int) -> None:
        ports = list(self.ears.waiting)
        self.ears.waiting[ports[which % len(ports)]](4028)

    @precondition(lambda self: self.talk.peers)
    @rule(which=st.integers(0, 9))
    def somebody_leaves(self, which: int) -> None:
        peers = list(self.talk.peers)
        self.talk.send_away(peers[which % len(peers)], "", "the client said quit")

    @precondition(lambda self: self.talk.questions)
    @rule(which=st.integers(0, 9))
    def somebody_is_there_when_asked(self, which: int) -> None:
        asked = list(self.talk.questions)
        self.talk.answer(asked[which % len(asked)])

    @precondition(lambda self: self.workers.has_work())
    @rule(
        outcome=st.sampled_from(["done", "done", "failed", "stuck", "gone", "fault"]),
        aside=st.booleans(),
    )
    def a_worker_has_finished(self, outcome: str, aside: bool) -> None:
        self.host.outcome = outcome
        self.workers.work(aside=aside)

    @rule()
    def bytes_are_counted(self) -> None:
        self.workers.start(self.tunnels.count_bytes(), self._fault)

    def _fault(self, error: Exception) -> None:
        assert isinstance(error, ZeroDivisionError)

    @rule()
    def the_loop_turns(self) -> None:
        self.workers.turn()

    @rule()
    def the_time_for_a_look_has_come(self) -> None:
        self.tunnels.look_at_all()
        if self.tunnels.due < math.inf:
            self.tunnels.look()

    @rule(user=USERS)
    def a_user_is_barred_for_a_moment(self, user: str) -> None:
        self.lessor.barred.add(user)
        self.tunnels.check([user])
        self.lessor.barred.clear()

    @rule()
    def all_is_done(self) -> None:
        self.host.outcome = "done"
        while self.workers.has_work() or self.workers.can_go_on or self.talk.questions:
            self.workers.turn()
            for peer in list(self.talk.questions):
                self.talk.answer(peer)
            if self.workers.has_work():
                self.workers.work()
        # Who can be told something has been told, and has what it was told.
        for peer, answers in self.talk.peers.items():
            assert len(answers) == 1
            holds = [each for each in self._records() if each.holder is peer]
            assert len(holds) == (answers == ["+OK"])
        for tunnel in self._records():
            assert tunnel.state not in (State.MAKING, State.LEAVING)
            assert len(tunnel.changed._waiting) == (tunnel.state is State.HEARING)
            assert not tunnel.looking
            assert (tunnel.look_at < math.inf) == (tunnel.state in STANDING)
        assert not self.tunnels._looking

    # --- what must always hold ----------------------------------------------------------------

    @invariant()
    def who_holds_a_tunnel_is_there(self) -> None:
        for tunnel in self._records():
            assert (tunnel.holder is not None) == (tunnel.state in HELD)
            assert tunnel.state is not State.UP or tunnel.holder in self.talk.peers
            assert (tunnel.outer is None) == (tunnel.state is State.FREE)
            assert tunnel.made is not None or tunnel.state not in STANDING

    @invariant()
    def of_a_users_logins_one_is_in_work(self) -> None:
        """Beside who holds the tunnel: else one user could fill the server."""
        held = {each.holder for each in self._records()}
        waiting = [each.user for each in self.talk.peers if each.user and each not in held]
        assert len(waiting) == len(set(waiting))

    @invariant()
    def no_two_workers_are_at_the_same_tunnel(self) -> None:
        jobs = [job for job in self.workers.jobs() if isinstance(job, partial)]
        at = [job.args[0] for job in jobs if job.func != self.host.count]  # which only looks
        users = [each.user if isinstance(each, Made) else each for each in at]
        assert len(users) == len(set(users))

    @invariant()
    def they_are_counted(self) -> None:
        seen = Counter(each.state for each in self._records() if each.state is not State.FREE)
        for state in State:
            assert state is State.FREE or self.tunnels.count(state) == seen[state]
        assert {each.outer for each in self._records()} - {None} == set(self.tunnels._owners)


@pytest.mark.long
def test_whatever_happens_everybody_gets_an_answer_and_no_pair_is_given_twice(
    figure: Figure,
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    runs, steps = 150, 50
    run_state_machine_as_test(
        Server, settings=settings(max_examples=runs, stateful_step_count=steps, deadline=None)
    )
    figure("Logins wait for each other, and nobody for ever", f"histories of {steps} events", runs)


@pytest.mark.hazard(72)
@pytest.mark.parametrize("outcome", ["gone", "stuck", "failed", "fault", "done"])
def test_a_client_leaves_while_its_tunnel_is_looked_at(outcome: str) -> None:
    """The take-down waits for the look, and what that has found does not matter any more."""
    server = Server()
    server.somebody_logs_in("itojun", IPv4Address("203.0.113.7"), "tunnelonly", None)
    server.all_is_done()
    server.the_time_for_a_look_has_come()
    server.somebody_leaves(0)
    assert len(server.workers.jobs()) == 1
    server.a_worker_has_finished(outcome, aside=True)
    server.all_is_done()
    assert [each.state for each in server._records()] == [State.FREE]
    assert server.host.standing == {}


@pytest.mark.hazard(70)
@pytest.mark.parametrize("whose", ["its own", "another's", "none", "its own, and a port"])
def test_behind_a_nat_who_knows_the_key_has_the_tunnel_handed_over(whose: str) -> None:
    """Who does not may have another port there by now, and is heard anew, with another key."""
    server, address = Server(), IPv4Address("203.0.113.7")
    server.somebody_logs_in("itojun", address, "tunnelonly", 0)
    server.a_packet_comes(0)
    server.all_is_done()
    (tunnel,) = server._records()
    assert tunnel.made is not None
    before = tunnel.made.grant
    assert before.key is not None
    key = {"another's": before.key[::-1], "none": None}.get(whose, before.key)
    port = 4029 if "port" in whose else 0
    server.somebody_logs_in("itojun", address, "tunnelonly", port, key)
    server.all_is_done()
    if whose == "its own":
        assert tunnel.state is State.UP
        assert tunnel.made.grant == before
        return
    assert tunnel.state is State.HEARING
    server.a_packet_comes(0)
    server.all_is_done()
    assert tunnel.made.grant.ports == (port or 4028, 4028)
    assert tunnel.made.grant.key not in (None, before.key, key)


@pytest.mark.hazard(73)
@pytest.mark.parametrize("is_there", [True, False])
def test_who_is_at_an_address_that_another_user_wants_is_asked(is_there: bool) -> None:
    server = Server()
    address = IPv4Address("203.0.113.7")
    server.somebody_logs_in("itojun", address, "tunnelonly", None)
    server.all_is_done()
    (before,) = server.talk.peers
    server.somebody_logs_in("jun", address, "tunnelonly", None)
    server.the_loop_turns()
    *_, new = server.talk.peers
    assert list(server.talk.questions) == [before]
    assert server.talk.peers[new] == []
    if not is_there:
        server.talk.send_away(before, "", "the connection broke")
    server.all_is_done()
    assert server.talk.peers[new] == ["-ERR" if is_there else "+OK"]
    assert set(server.host.standing.values()) == {"itojun" if is_there else "jun"}


@pytest.mark.hazard(71)
def test_the_latest_of_a_users_logins_is_in_work() -> None:
    """However many there are, nobody else waits for more than one, at whatever they would wait."""
    server = Server()
    address = IPv4Address("203.0.113.7")
    server.somebody_logs_in("itojun", address, "tunnelonly", None)
    server.all_is_done()
    for _ in range(20):  # these have it handed over, one from the other
        server.somebody_logs_in("itojun", address, "tunnelonly", None)
    assert len(server.talk.peers) == 1
    looks = 0
    while server.workers.has_work():
        server.a_worker_has_finished("done", aside=False)
        server.the_loop_turns()
        looks += 1
    assert looks == 2  # for who came first, and for who is there
    for _ in range(20):  # and these wait for whoever has that address
        server.somebody_logs_in("jun", address, "tunnelonly", None)
    (holder, waiting) = server.talk.peers
    assert (holder.user, waiting.user) == ("itojun", "jun")
    server.all_is_done()
    assert server.talk.peers == {holder: ["+OK"], waiting: ["-ERR"]}


@pytest.mark.hazard(73)
def test_whose_client_may_come_back_loses_nothing_to_another_user() -> None:
    """Else who is quicker after a restart of the server takes the tunnel of his neighbor."""
    server, address = Server(), IPv4Address("203.0.113.7")
    server.a_server_before_us_has_left({"itojun": address, "kazu": address + 1})
    before = server.host.standing.copy()

    def answer(user: str, address: IPv4Address) -> list[str]:
        server.somebody_logs_in(user, address, "tunnelonly", None)
        *_, peer = server.talk.peers
        server.all_is_done()
        return server.talk.peers[peer]

    for place in (address, address + 1):
        assert answer("jun", place) == ["-ERR"]
    assert answer("itojun", address) == ["+OK"]
    assert server.host.standing == before
    server.the_time_of_orphans_is_over()
    assert answer("jun", address + 1) == ["+OK"]
    assert set(server.host.standing.values()) == {"itojun", "jun"}


def test_no_tunnel_leads_to_ourselves() -> None:
    """Each packet for its user would go round until its hop limit ends it."""
    server = Server()
    server.somebody_logs_in("itojun", OWN, "tunnelonly", None)
    server.all_is_done()
    assert list(server.talk.peers.values()) == [["-ERR"]]
    assert server.host.standing == {}


@pytest.mark.hazard(75)
def test_a_fault_while_it_is_made_leaves_the_user_free() -> None:
    server = Server()
    address = IPv4Address("203.0.113.7")
    server.somebody_logs_in("itojun", address, "tunnelonly", None)
    server.a_worker_has_finished("fault", aside=False)
    server.workers.turn()
    (peer,) = server.talk.peers
    assert server.talk.peers[peer] == ["-ERR"]
    assert [each.state for each in server._records()] == [State.FREE]
    server.somebody_leaves(0)
    server.somebody_logs_in("itojun", address, "tunnelonly", None)
    server.all_is_done()
    (peer,) = server.talk.peers
    assert server.talk.peers[peer] == ["+OK"]


@pytest.mark.hazard(75)
def test_a_user_whose_row_makes_no_sense_keeps_nobody_from_being_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    for number, user in enumerate(("itojun", "jun", "kazu")):
        server.somebody_logs_in(user, IPv4Address("203.0.113.7") + number, "tunnelonly", None)
    server.all_is_done()
    objection = server.lessor.objection

    def bad_row(made: Made) -> str:
        if made.user == "jun":
            raise ValueError("'text' is not a date")
        return objection(made)

    monkeypatch.setattr(server.lessor, "objection", bad_row)
    server.tunnels.check(["jun", "itojun"])
    server.the_time_for_a_look_has_come()
    server.all_is_done()
    assert [each.state for each in server._records()] == [State.UP] * 3
    assert len(server.talk.peers) == 3


@pytest.mark.hazard(72)
def test_who_cannot_have_it_back_is_sent_away() -> None:
    server = Server()
    server.somebody_logs_in("itojun", IPv4Address("203.0.113.7"), "tunnelonly", None)
    server.all_is_done()
    (peer,) = server.talk.peers
    server.the_time_for_a_look_has_come()
    server.a_worker_has_finished("gone", aside=True)
    assert [each.state for each in server._records()] == [State.MAKING]
    server.a_worker_has_finished("done", aside=False)  # what is left is removed
    server.workers.turn()
    server.a_worker_has_finished("failed", aside=False)  # but it cannot be made
    assert peer.ending == "its tunnel is broken"
    assert [each.state for each in server._records()] == [State.FREE]


def test_every_state_can_be_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(State)
    reached, new = set[State](), {State.FREE}
    while new:
        reached |= new
        new = {after for each in new for after in TRANSITIONS[each]} - reached
    assert reached == set(State)
    # And from each there is a way back to where there is nothing.
    home, new = set[State](), {State.FREE}
    while new:
        home |= new
        new = {each for each in State if set(TRANSITIONS[each]) & home} - home
    assert home == set(State)


def test_what_cannot_follow_is_a_fault() -> None:
    tunnel = Tunnel("itojun", Counter())
    with pytest.raises(RuntimeError, match="itojun: free cannot become up"):
        tunnel.become(State.UP)


# --- flows ------------------------------------------------------------------------------------


def test_what_a_worker_raises_comes_back_where_it_was_yielded() -> None:
    workers, seen = Workers(Silent("dtcps")), list[object]()
    happening = Event()

    def flow() -> Flow[None]:
        try:
            yield lambda host: 1 // 0
        except ZeroDivisionError as error:
            seen.append(str(error))
        seen.append((yield lambda host: host.commands.run(("echo", "hello"))))
        yield happening
        seen.append("happened")
        raise KeyError("a fault")

    try:
        workers.start(flow(), lambda error: seen.append(repr(error)))
        for _ in range(2):
            os.set_blocking(workers.woken, True)
            workers.collect(0)
        assert seen == ["integer division or modulo by zero", "hello\n"]
        happening.happen()
        assert len(seen) == 2  # not in the middle of what makes it happen
        workers.turn()
        assert seen[2:] == ["happened", "KeyError('a fault')"]
    finally:
        workers.stop()
