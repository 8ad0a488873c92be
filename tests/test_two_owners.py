"""Client and server against each other, with the connection lost at any moment.

The two owners (dtcpc and dtcps) are played by a model: each connection is two streams of bytes that
arrive in pieces of any size, a worker that takes its time for each request, and two ends that may
close, or see the other close, at any moment.  Both speak the protocol, so nothing they do
to each other may be a protocol error, and each must always know its state.
"""

from __future__ import annotations

import pytest
from dtcp import wire
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.knowing import Client
from tests.trust import Figure

USERS = {"itojun": "correct horse", "jun": "x:y"}
GRANT = "203.0.113.7 192.0.2.1 2001:db8:1::6 2001:db8:1::5"


class Connection:
    """One connection: both ends, and what is on its way between them."""

    def __init__(self, user: str, password: str, udp: int | None, challenge: str, now: float):
        self.client = Client(user, password, "host", now, udp=udp)
        self.session = wire.Session("dtcps", challenge, USERS.get, now)
        self.knows = USERS[user] == password
        self.up, self.down = bytearray(), bytearray()
        self.client_closed = self.server_closed = False  # by its owner, or because it heard so
        self.down_heard = self.up_heard = 0  # bytes that have arrived
        self.asked: wire.Asked | None = None  # what the worker is at
        self.granted = 0  # by the server
        self.told_client: list[wire.ClientEvent] = []
        self.told_server: list[wire.SessionEvent] = []

    def settle(self) -> None:
        """Both owners send what there is to be sent, unless they have closed."""
        out, back = self.client.take(), self.session.take()
        if not self.client_closed:
            self.up += out
        if not self.server_closed:
            self.down += back

    def client_hears(self, events: list[wire.ClientEvent]) -> None:
        self.told_client += events
        self.settle()
        if any(isinstance(event, wire.Refused | wire.Lost) for event in events):
            self.client.quit()
            self.settle()
            self.client_closed = True

    def server_hears(self, events: list[wire.SessionEvent]) -> None:
        self.told_server += events
        self.settle()
        for event in events:
            if isinstance(event, wire.Asked):
                assert self.asked is None, "one request at a time"
                self.asked = event
            else:
                self.server_closed = True


class TwoOwners(RuleBasedStateMachine):
    """Many connections, one after the other; time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.number = 0
        self.link: Connection

    @initialize(user=st.sampled_from([*USERS]), right=st.booleans(), udp=st.sampled_from([None, 0]))
    def first(self, user: str, right: bool, udp: int | None) -> None:
        self._connect(user, right, udp)

    def _connect(self, user: str, right: bool, udp: int | None) -> None:
        self.number += 1
        password = USERS[user] if right else "wrong"
        self.link = Connection(user, password, udp, f"{self.number:032X}", self.now)
        self.link.settle()

    def _is_over(self) -> bool:
        return self.link.client_closed and self.link.server_closed

    # --- what may happen --------------------------------------------------------------------

    @precondition(lambda self: self.link.down and not self.link.client_closed)
    @rule(size=st.integers(1, 80))
    def bytes_reach_the_client(self, size: int) -> None:
        link = self.link
        data = bytes(link.down[:size])
        del link.down[:size]
        link.client_hears(link.client.receive(data, self.now))

    @precondition(lambda self: self.link.up and not self.link.server_closed)
    @rule(size=st.integers(1, 80))
    def bytes_reach_the_server(self, size: int) -> None:
        link = self.link
        data = bytes(link.up[:size])
        del link.up[:size]
        link.server_hears(link.session.receive(data, self.now))

    @precondition(lambda self: not self.link.client_closed)
    @rule(hears_all=st.booleans())
    def the_client_hears_the_end(self, hears_all: bool) -> None:
        """In order, behind all that was sent; or the connection broke, and the rest is lost."""
        link = self.link
        if hears_all and (link.down or not link.server_closed):
            return
        link.client_hears(link.client.receive(b"", self.now))
        assert link.client_closed

    @precondition(lambda self: not self.link.server_closed)
    @rule(hears_all=st.booleans())
    def the_server_hears_the_end(self, hears_all: bool) -> None:
        link = self.link
        if hears_all and (link.up or not link.client_closed):
            return
        link.server_hears(link.session.receive(b"", self.now))
        assert link.server_closed

    @precondition(lambda self: self.link.asked and not self.link.server_closed)
    @rule(text=st.sampled_from(["", wire.SOLD_OUT, wire.BUSY, wire.INTERNAL]))
    def the_worker_is_ready(self, text: str) -> None:
        link = self.link
        link.asked = None
        if text:
            link.server_hears(link.session.refuse(text, self.now))
        else:
            link.granted += 1
            link.server_hears(link.session.accept(GRANT, self.now))

    @precondition(lambda self: not self.link.client_closed)
    @rule()
    def the_client_says_goodbye(self) -> None:
        self.link.client.quit()
        self.link.settle()
        self.link.client_closed = True

    @precondition(lambda self: not self.link.server_closed)
    @rule()
    def the_server_goes_down(self) -> None:
        self.link.session.close(wire.STOPPING)
        self.link.settle()
        self.link.server_closed = True

    @rule(seconds=st.sampled_from([0.1, 14.0, 15.0, 30.0, 60.0, 61.0, 300.0]))
    def time_passes(self, seconds: float) -> None:
        """Both owners call `tick` when it is due."""
        link, end = self.link, self.now + seconds
        while not self._is_over():
            due = [link.client.deadline] * (not link.client_closed)
            # While a worker is at it, its owner does not look at the clock.
            due += [link.session.deadline] * (not link.server_closed and link.asked is None)
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            if not link.client_closed:
                link.client_hears(link.client.tick(self.now))
            if not link.server_closed and link.asked is None:
                link.server_hears(link.session.tick(self.now))
        self.now = end

    @rule()
    def all_arrives(self) -> None:
        """A network and two owners that are quick: this is how far a login gets at once."""
        link = self.link
        while True:
            if link.down and not link.client_closed:
                self.bytes_reach_the_client(len(link.down))
            elif link.up and not link.server_closed:
                self.bytes_reach_the_server(len(link.up))
            elif link.asked and not link.server_closed:
                self.the_worker_is_ready("")
            else:
                return

    @precondition(lambda self: self._is_over())
    @rule(user=st.sampled_from([*USERS]), right=st.booleans(), udp=st.sampled_from([None, 0]))
    def another_connection(self, user: str, right: bool, udp: int | None) -> None:
        self._connect(user, right, udp)

    # --- what must always hold --------------------------------------------------------------

    @invariant()
    def nobody_is_told_twice(self) -> None:
        for told, lasting in (
            (self.link.told_client, wire.Granted),
            (self.link.told_server, wire.Asked),
        ):
            endings = [event for event in told if not isinstance(event, lasting)]
            assert len(endings) <= 1
            assert endings == told[len(told) - len(endings) :], "nothing comes after the end"

    @invariant()
    def a_tunnel_of_the_client_is_one_of_the_server(self) -> None:
        link = self.link
        granted = [event for event in link.told_client if isinstance(event, wire.Granted)]
        assert len(granted) <= link.granted <= 1
        assert all(event.words == GRANT.split() for event in granted)

    @invariant()
    def who_does_not_know_the_password_gets_nothing(self) -> None:
        if not self.link.knows:
            assert not self.link.granted
            assert not any(isinstance(event, wire.Asked) for event in self.link.told_server)
            refusals = [each for each in self.link.told_client if isinstance(each, wire.Refused)]
            assert all(each.text == wire.BAD_LOGIN or each.temporary for each in refusals)

    @invariant()
    def an_open_end_has_a_deadline_ahead(self) -> None:
        """Or its owner would wait for ever, or not at all."""
        link = self.link
        if not link.client_closed:
            assert self.now <= link.client.deadline <= self.now + wire.PING_INTERVAL + 15
        if not link.server_closed and link.asked is None:
            assert self.now <= link.session.deadline <= self.now + wire.IDLE_TIME


RUNS, STEPS = 400, 60


@pytest.mark.long
def test_both_ends_know_where_they_stand_whenever_the_connection_is_lost(figure: Figure) -> None:
    run = settings(max_examples=RUNS, stateful_step_count=STEPS, deadline=None)
    run_state_machine_as_test(TwoOwners, settings=run)
    promise = "Client and server know where they stand, whenever the connection is lost"
    figure(promise, f"histories of up to {STEPS} events", RUNS)
