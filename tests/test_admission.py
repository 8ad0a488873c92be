"""Who may be connected, and who must wait: the server's connections, without tunnels."""

from __future__ import annotations

import argparse
import contextlib
import math
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from dtcp import daemon, tls, wire
from dtcp.grant import Grant
from dtcp.server import admission, limits, presence, sessions, store
from dtcp.server.admission import GRACE, STRANGERS, STRANGERS_HERE, Admission
from dtcp.server.counts import Counts
from dtcp.server.limits import Quiet
from dtcp.server.presence import Question
from dtcp.server.sessions import Peer, Sessions
from dtcp.server.settings import Settings
from dtcp.server.store import Store, User
from hypothesis import example, given
from hypothesis import strategies as st

from lab import SLOW
from tests.certificates import self_signed

# --- who is there -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Somebody:
    address: IPv4Address
    number: int


def _come(there: Admission[Somebody], number: int, address: int) -> Somebody:
    """One more; who has to go for it goes."""
    while (oldest := there.in_the_way(IPv4Address(address))) is not None:
        there.gone(oldest)
    there.is_stranger(each := Somebody(IPv4Address(address), number), float(number))
    return each


@pytest.mark.hazard(69)
def test_the_oldest_stranger_makes_room() -> None:
    there: Admission[Somebody] = Admission()
    for number in range(100):
        _come(there, number, 1)
    assert [each.number for each in there.all()] == list(range(100 - STRANGERS_HERE, 100))
    for number in range(1000):
        _come(there, number, 2 + number)
    assert len(there) == STRANGERS
    assert {each.number for each in there.all()} == set(range(1000 - STRANGERS, 1000))


@pytest.mark.hazard(69)
def test_who_has_many_addresses_keeps_nobody_out() -> None:
    """Who is alone at his own stays, however long he needs, while others come from a few dozen."""
    there: Admission[Somebody] = Admission()
    crowd = STRANGERS // STRANGERS_HERE
    for number in range(STRANGERS - 1):
        _come(there, number, number % crowd)
    slow = _come(there, STRANGERS, crowd)
    assert there.room_at() == GRACE, "whoever is to go had his moment, not whoever is oldest"
    for number in range(2000):
        _come(there, STRANGERS + 1 + number, number % crowd)
    assert slow in there
    assert len(there) == STRANGERS
    assert there.room_at() > slow.number + GRACE


@pytest.mark.hazard(69)
def test_nobody_who_has_logged_in_makes_room() -> None:
    there: Admission[Somebody] = Admission()
    there.most = there.most_here = 1000
    members = {_come(there, number, 1) for number in range(STRANGERS_HERE)}
    for each in members:
        there.is_member(each)
    for number in range(2000):
        _come(there, 100 + number, number % 300)
    assert members <= {*there.all()}
    assert len(there) == STRANGERS + len(members)
    for each in there.all():
        there.gone(each)
    assert not there._strangers_here
    assert not there._members_here


def test_each_stranger_has_a_moment_for_its_login() -> None:
    there: Admission[Somebody] = Admission()
    there.most_strangers = 2
    first = _come(there, 10, 1)
    assert there.room_at() == -math.inf
    _come(there, 20, 2)
    assert there.room_at() == 10 + GRACE
    for number in range(STRANGERS_HERE):
        assert not there.is_crowded(IPv4Address(9), 40.0)
        there.is_stranger(Somebody(IPv4Address(9), number), 40.0 + number)
    assert there.is_crowded(IPv4Address(9), 40.0)
    assert not there.is_crowded(IPv4Address(9), 40.0 + GRACE)
    assert not there.is_crowded(IPv4Address(8), 40.0)
    for number in range(STRANGERS_HERE):
        there.gone(Somebody(IPv4Address(9), number))
    there.gone(first)
    assert there.room_at() == -math.inf
    _come(there, 30, 3)
    assert there.room_at() == 20 + GRACE


def test_there_is_room_for_who_is_there_already() -> None:
    there: Admission[Somebody] = Admission()
    there.most, there.most_here = 3, 2
    one, two, other = (_come(there, number, 1) for number in range(3))
    there.is_member(one)
    assert there.why_not(two, None, 0) == ""
    assert there.why_not(two, None, 2) == "3 connections are open"
    there.is_member(two)
    assert there.why_not(other, None, 0) == "2 connections from there are open"
    assert there.why_not(other, one, 0) == ""
    assert there.why_not(other, None, 1) == "3 connections are open"
    assert there.why_not(other, one, 1) == ""
    assert there.why_not(other, Somebody(IPv4Address(9), 9), 0) != "", "it is elsewhere"
    there.is_stranger(one, 0.0)
    assert there.why_not(other, None, 0) == ""


# --- real connections -------------------------------------------------------------------------


class Bench:
    """Sessions on a loopback port, and clients that say they come from anywhere."""

    def __init__(self, path: str) -> None:
        self.store = Store(path, create=True)
        for name in ("itojun", "jun"):
            self.store.put(User(name), f"{name}'s secret")
        self.log = daemon.Log("dtcps")
        self.selector = selectors.DefaultSelector()
        self.left: list[Peer] = []
        self.asked: Callable[[Peer, wire.Asked], None] = self.grant
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self.sessions = Sessions(
            argparse.Namespace(announced=None, debug=False),
            listener,
            self.selector,
            self.store,
            Settings(),
            Quiet(self.log),
            Counts(),
            lambda peer, asked: self.asked(peer, asked),
            self.left.append,
            (),
        )
        self.clients: list[Client] = []

    def grant(self, peer: Peer, asked: wire.Asked) -> None:
        self.sessions.logged_in(peer, asked.user)
        self.sessions.accept(peer, Grant(peer.address, peer.own))

    def turn(self) -> None:
        """All that is to be done now."""
        while ready := self.selector.select(0.01):
            for key, mask in ready:
                if isinstance(key.data, Peer):
                    self.sessions.on_ready(key.data, mask)
                else:
                    key.data(mask)

    def come(self, address: str, monkeypatch: pytest.MonkeyPatch) -> Client:
        """A client, as if it came from that address."""
        greet = self.sessions._greet
        with monkeypatch.context() as patch:
            patch.setattr(self.sessions, "_greet", lambda sock, _, port: greet(sock, address, port))
            return self.connect()

    def connect(self) -> Client:
        """A client that says where it comes from."""
        sock = socket.create_connection(("127.0.0.1", self.port), 10)
        self.turn()
        client = Client(self, sock)
        self.clients.append(client)
        return client


class Client:
    def __init__(self, bench: Bench, sock: socket.socket) -> None:
        self._bench, self._socket = bench, sock
        self._file = sock.makefile("rb")
        self.greeting = self.hear()

    def hear(self) -> str:
        """A line, or nothing at the end."""
        with contextlib.suppress(ConnectionError):
            return self._file.readline().decode().rstrip()
        return ""

    def send(self, text: str) -> None:
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(f"{text}\r\n".encode())

    def send_login(self, user: str, password: str = "") -> None:
        answer = wire.digest(user, self.greeting.split()[1], password or f"{user}'s secret")
        self.send(f"tunnel {user} {answer} tunnelonly")

    def say(self, text: str) -> str:
        """What is answered to one line."""
        self.send(text)
        self._bench.turn()
        return self.hear()

    def log_in(self, user: str, password: str = "") -> str:
        self.send_login(user, password)
        self._bench.turn()
        return self.hear()

    def close(self) -> None:
        self._file.close()
        self._socket.close()
        self._bench.turn()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    tmp_path.chmod(0o700)
    bench = Bench(str(tmp_path / "dtcps.db"))
    yield bench
    for client in bench.clients:
        client.close()
    bench.sessions.send_all_away("", "")
    bench.sessions.close()
    bench.selector.close()
    bench.store.close()


HOME, NAT, ELSEWHERE = "203.0.113.7", "203.0.113.8", "203.0.113.9"
WRONG, WAIT = f"-ERR {wire.BAD_LOGIN}", f"-ERR {wire.BUSY}"


@pytest.mark.hazard(68)
def test_guesses_are_few_whatever_else_comes_from_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for number in range(40):
        with contextlib.closing(bench.come(NAT, monkeypatch)) as client:
            answers.append(client.log_in("itojun", f"guess {number}"))
        with contextlib.closing(bench.come(NAT, monkeypatch)) as client:
            assert client.log_in("jun").startswith("+OK")
    assert 2 <= answers.count(WRONG) < 10
    assert answers.count(WRONG) + answers.count(WAIT) == 40


@pytest.mark.hazard(68)
def test_a_stale_neighbor_and_strangers_keep_nobody_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(10):
        for address, user in ((NAT, "jun"), (ELSEWHERE, "itojun"), (HOME, "itojun")):
            with contextlib.closing(bench.come(address, monkeypatch)) as client:
                assert client.log_in(user, "stale") in (WRONG, WAIT)
    with contextlib.closing(bench.come(NAT, monkeypatch)) as client:
        assert client.log_in("itojun").startswith("+OK")


@pytest.mark.hazard(68)
@pytest.mark.parametrize("seen", ["now", "yesterday", "long ago"])
def test_who_has_been_here_gets_in_where_everybody_guesses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    """And nobody learns from the answers who that is."""
    for number in range(limits.FAILURES):
        with contextlib.closing(bench.come(NAT, monkeypatch)) as client:
            assert client.log_in(f"user{number}", "x") == WRONG
    with bench.store.transaction():
        bench.store._see("itojun")
        ago = {"now": 0.0, "yesterday": 0.9, "long ago": 1.1}[seen] * store.DAY
        bench.store._db.execute("UPDATE seen SET last = ?", (time.time() - ago,))
    for user in ("itojun", "jun", "nobody"):
        with contextlib.closing(bench.come(NAT, monkeypatch)) as client:
            assert client.log_in(user, "wrong") == WAIT
    with contextlib.closing(bench.come(NAT, monkeypatch)) as client:
        assert client.log_in("jun") == WAIT
    with contextlib.closing(bench.come(NAT, monkeypatch)) as client:
        assert client.log_in("itojun").startswith(WAIT if seen == "long ago" else "+OK")


@pytest.mark.hazard(38)
def test_nobody_learns_who_has_been_here(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever guesses, for however long: his answers are the same whether somebody has or not."""
    sessions, address = bench.sessions, IPv4Address(NAT)
    user = st.sampled_from(["itojun", "jun", *map(str, range(limits.FAILURES))])
    act = st.tuples(st.sampled_from([0.0, 0.0, 0.0, 1.0, 7.0, 30.0, 61.0]), user)

    def answers(acts: list[tuple[float, str]], been_here: str) -> Iterator[str]:
        sessions._penalties = limits.Penalties(1)
        now = 1000.0
        for gap, user in acts:
            now += gap
            with monkeypatch.context() as patch:
                patch.setattr(bench.store, "has_been_here", lambda name: name == been_here)
                patch.setattr(time, "monotonic", lambda: now)  # noqa: B023
                waits = sessions._must_wait(address, user)
                yield wire.BUSY if waits else sessions._failed(address, user)

    others = [(0.0, str(number)) for number in range(limits.FAILURES)]
    guesses = [(float(gap), "itojun") for gap in (0, 0, 1, 2, 4, 8, 16, 30)]

    @example([*others, *guesses])  # at the end he alone would have to wait
    @example([others[0], (30.0, "1"), *others[2:], (0.0, "itojun"), (31.0, "jun")])  # and here all
    @given(st.lists(act, min_size=20, max_size=80))
    def same(acts: list[tuple[float, str]]) -> None:
        assert list(answers(acts, "itojun")) == list(answers(acts, ""))

    same()


@pytest.mark.hazard(68)
def test_who_must_wait_gets_a_challenge_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(5):
        with contextlib.closing(bench.come(HOME, monkeypatch)) as client:
            assert wire.is_challenge(client.greeting.split()[1])
            said = client.log_in("itojun", "wrong")
    assert said == WAIT
    with contextlib.closing(bench.come(HOME, monkeypatch)) as client:
        assert client.log_in("itojun") == WAIT, "nor is a good password looked at"


@pytest.mark.hazard(69)
def test_silent_connections_make_room_and_users_stay(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    user = bench.come(NAT, monkeypatch)
    assert user.log_in("itojun").startswith("+OK")
    silent = [bench.come(NAT, monkeypatch) for _ in range(STRANGERS_HERE)]
    assert bench.come(NAT, monkeypatch).greeting == "", "the others have only just come"
    now += GRACE
    silent += [bench.come(NAT, monkeypatch) for _ in range(STRANGERS_HERE)]
    assert silent[0].hear() == WAIT
    assert silent[0].hear() == ""
    now += GRACE
    assert user.say("ping") == f"+OK {wire.PONG}"
    neighbor = bench.come(NAT, monkeypatch)
    assert neighbor.log_in("jun").startswith("+OK")
    assert silent[-1].say("ping") == f"+OK {wire.PONG}"
    assert len(bench.sessions) == 2 + STRANGERS_HERE - 1


@pytest.mark.hazard(69)
def test_a_flood_waits_for_those_who_log_in(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And for no longer than a moment, without any turns of the loop meanwhile."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bench.sessions._peers.most_strangers = 2
    one, two = (bench.come(address, monkeypatch) for address in (HOME, NAT))
    with socket.create_connection(("127.0.0.1", bench.port), 10) as late:
        bench.turn()
        assert bench.sessions.due == now + GRACE
        assert len(bench.sessions) == 2
        assert one.log_in("itojun").startswith("+OK")
        bench.sessions.on_time(now)
        bench.turn()
        assert late.recv(100).startswith(b"+OK")
        with socket.create_connection(("127.0.0.1", bench.port), 10) as later:
            bench.turn()
            monkeypatch.undo()
            now += GRACE
            bench.sessions.on_time(now)
            monkeypatch.setattr(time, "monotonic", lambda: now)
            bench.turn()
            assert later.recv(100).startswith(b"+OK")
            assert two.hear() == WAIT
        bench.turn()


def test_at_the_end_nothing_is_due_for_whoever_comes(bench: Bench) -> None:
    """Else the server would turn as fast as it can, while commands take the tunnels down."""
    bench.connect()
    bench.sessions.close()
    bench.sessions.on_time(time.monotonic())
    assert bench.sessions.due > time.monotonic()


@pytest.mark.hazard(69)
def test_who_has_said_his_login_makes_no_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands come back at once after a restart, and we are slower than they."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bench.sessions._peers.most_strangers = 1
    client = bench.come(HOME, monkeypatch)
    client.send_login("itojun")
    now += GRACE
    with socket.create_connection(("127.0.0.1", bench.port), 10) as other:
        bench.sessions.greet()  # before we read what the first one has said
        bench.turn()
        assert client.hear().startswith("+OK")
        assert other.recv(100).startswith(b"+OK")


@pytest.mark.hazard(69)
def test_few_lines_before_the_login(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    client = bench.come(NAT, monkeypatch)
    for _ in range(wire.LINES_BEFORE_LOGIN):
        assert client.say("ping") == f"+OK {wire.PONG}"
    assert client.say("ping") == f"-ERR {wire.TOO_MUCH_TALK}"
    assert client.hear() == ""
    client = bench.come(NAT, monkeypatch)
    for _ in range(wire.LINES_BEFORE_LOGIN - 1):
        client.say("ping")
    assert client.log_in("itojun").startswith("+OK")
    for _ in range(100):
        assert client.say("ping") == f"+OK {wire.PONG}"


def test_a_user_takes_over_where_no_other_could_come(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sessions.limit(Settings(connections_per_address=1))
    assert bench.come(NAT, monkeypatch).log_in("itojun").startswith("+OK")
    assert bench.come(NAT, monkeypatch).log_in("jun") == WAIT
    assert bench.come(NAT, monkeypatch).log_in("itojun").startswith("+OK")


# --- whatever goes wrong ----------------------------------------------------------------------


class Broken:
    """Stands in for something that raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, *args: object, **words: object) -> None:
        raise self._error


@pytest.mark.hazard(75)
@pytest.mark.parametrize(
    "broken", ["setsockopt", "Peer", "password", "has_been_here", "asked", "crowded", "bad row"]
)
@pytest.mark.parametrize(
    "error", [OSError(22, "no"), ZeroDivisionError("no")], ids=["system", "us"]
)
def test_what_goes_wrong_with_one_client_is_nobody_elses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, broken: str, error: Exception
) -> None:
    user = bench.come(HOME, monkeypatch)
    assert user.log_in("itojun").startswith("+OK")
    count = len(bench.sessions)
    with monkeypatch.context() as patch:
        if broken == "setsockopt":
            patch.setattr(socket, "SO_KEEPALIVE", 99999)
        elif broken == "Peer":
            patch.setattr(sessions, "Peer", Broken(error))
        elif broken == "asked":
            patch.setattr(bench, "asked", Broken(error))
        elif broken == "crowded":
            patch.setattr(limits.Penalties, "crowded", Broken(error))
        elif broken == "bad row":
            bench.store._db.execute("UPDATE user SET password = 'text' WHERE name = 'jun'")
        else:
            patch.setattr(Store, broken, Broken(error))
            patch.setattr(limits.Penalties, "crowded", lambda *_: broken == "has_been_here")
        client = bench.connect()
        assert not client.greeting or not client.log_in("jun").startswith("+OK")
    assert len(bench.sessions) == count
    assert user.say("ping") == f"+OK {wire.PONG}"
    if broken != "bad row":
        assert bench.come(HOME, monkeypatch).log_in("jun").startswith("+OK")


# --- is it there? -----------------------------------------------------------------------------


@pytest.mark.hazard(73)
def test_who_is_there_stays_when_asked() -> None:
    """However long ago it has last said something; and the socket is as it was."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        sock, _ = listener.accept()
    with client, sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        before = [sock.getsockopt(socket.IPPROTO_TCP, each) for each in options]
        question = Question(sock, time.monotonic())
        known: list[bool] = []
        question.answered.wait(lambda: known.append(True))
        sock.settimeout(0)
        end = time.monotonic() + 20 * SLOW
        while not known and time.monotonic() < end:
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_READ)
                assert not selector.select(max(0.0, question.due - time.monotonic())), "it broke"
            question.go_on(time.monotonic())
        assert known
        assert [sock.getsockopt(socket.IPPROTO_TCP, each) for each in options] == before


@pytest.mark.hazard(73)
def test_neither_system_gives_up_on_who_is_there() -> None:
    """FreeBSD gives up, without a question, after so many seconds in which it has heard nothing."""
    ask, judge = (
        each[socket.TCP_KEEPIDLE] + each[socket.TCP_KEEPINTVL] * each[socket.TCP_KEEPCNT]
        for each in (presence._ASK, presence._JUDGE)
    )
    assert ask > wire.IDLE_TIME
    assert presence._ASK[socket.TCP_KEEPCNT] <= 127, "Linux takes no more"
    assert presence._ASK[socket.TCP_KEEPIDLE] < presence.PACE, "or it never comes to a question"
    assert 2 * presence.PACE < judge <= presence.QUESTIONS * presence.PACE


@pytest.mark.hazard(73)
def test_who_has_gone_cannot_be_asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    client = bench.come(HOME, monkeypatch)
    assert client.log_in("itojun").startswith("+OK")
    (peer,) = bench.sessions._peers.all()
    told: list[bool] = []
    bench.sessions.ask(peer).wait(lambda: told.append(True))
    assert bench.sessions.ask(peer) is bench.sessions.ask(peer)
    client.close()
    assert told
    assert bench.left == [peer]
    assert not bench.sessions._of
    told.clear()
    peer.question = None
    bench.sessions.ask(peer).wait(lambda: told.append(True))
    bench.sessions.on_time(time.monotonic())
    assert told
    assert bench.sessions.due == float("inf")


def test_the_numbers_of_admission() -> None:
    assert (admission.STRANGERS, admission.STRANGERS_HERE) == (256, 8)


# --- handshakes of TLS ------------------------------------------------------------------------


@pytest.fixture
def secured(bench: Bench, tmp_path: Path) -> Bench:
    """One that offers TLS."""
    ours = self_signed(tmp_path)
    bench.sessions.offer_tls(tls.for_server(str(ours.path), str(ours.key)), insist=False)
    return bench


@pytest.mark.hazard(69, 83)
def test_handshakes_take_turns_and_nobody_makes_room_meanwhile(
    secured: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, many = secured.sessions, 3
    clients = [secured.come(f"203.0.113.{number}", monkeypatch) for number in range(many)]
    for client in clients:
        assert client.say("stls") == f"+OK {wire.BEGIN_TLS}"
    for client in clients:
        client.send("which is no handshake")
    ready = [(peer, selectors.EVENT_READ) for peer in there._peers.all()]
    assert all(peer.shakes_hands for peer, _ in ready)
    monkeypatch.setattr(sessions, "SHAKING_TIME", -1.0)
    there.shake_hands(ready)
    assert len(there) == many
    assert not there._may_greet(time.monotonic())
    monkeypatch.setattr(sessions, "SHAKING_TIME", 60.0)
    there.shake_hands(ready)
    assert not len(there)
    assert there._may_greet(time.monotonic())


@pytest.mark.hazard(69)
def test_each_step_of_tls_counts_as_just_come(
    secured: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = secured.come(HOME, monkeypatch)
    secured.come(NAT, monkeypatch)

    def strangers() -> list[str]:
        return [str(peer.address) for peer in secured.sessions._peers.all()]

    assert strangers() == [HOME, NAT]
    client.say("stls")
    assert strangers() == [NAT, HOME]
    secured.come(ELSEWHERE, monkeypatch)
    assert strangers() == [NAT, HOME, ELSEWHERE]
    theirs = tls.Tls(tls.for_client(pinned=True))
    while not theirs.done:
        client._socket.sendall(theirs.take())
        secured.turn()
        theirs.receive(client._socket.recv(8192))
    client._socket.sendall(theirs.take())
    secured.turn()
    assert strangers() == [NAT, ELSEWHERE, HOME]


def test_whoever_was_offered_tls_gets_it_also_when_it_is_offered_no_more(
    secured: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = secured.come(HOME, monkeypatch)
    secured.sessions.offer_tls(None, insist=False)
    assert not secured.come(NAT, monkeypatch).greeting.endswith(wire.STLS)
    assert before.say("stls") == f"+OK {wire.BEGIN_TLS}"


@pytest.mark.hazard(83)
def test_nobody_says_no_line_for_ever(secured: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under TLS much can be sent that is none: updates of keys, or records with one byte."""
    client = secured.come(HOME, monkeypatch)
    client.say("stls")
    theirs = tls.Tls(tls.for_client(pinned=True))
    while not theirs.done:
        client._socket.sendall(theirs.take())
        secured.turn()
        theirs.receive(client._socket.recv(8192))
    sent = 0
    for number in range(1, 4 * wire.LINE_LIMIT):
        theirs.send(b"x" if number % 400 else b"\n")  # neither a long line nor many
        sent += client._socket.send(theirs.take())
        secured.turn()
        if not len(secured.sessions):
            break
    assert sessions.TLS_BEFORE_LOGIN // 2 < sent <= sessions.TLS_BEFORE_LOGIN
    heard = b""
    while data := client._socket.recv(8192):
        heard += theirs.receive(data)
    assert heard.endswith(f"-ERR {wire.TOO_MUCH_TALK}\r\n".encode())
