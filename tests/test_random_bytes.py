"""A hundred thousand conversations with each end, in which anything may be wrong.

Whatever is said, and however it is cut: what comes of it is documented, nothing else is raised,
nothing piles up.  `SEED=word` in the environment makes other conversations than the usual ones.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
from dtcp import grant, wire

from tests.conversations import OWN, SEED, SERVER, TYPES, USERS, chance, client_says, server_says
from tests.trust import Figure

CONVERSATIONS = 100_000
SHARES = 10  # so that workers can share the work

HEX = re.compile(r"[0-9A-Fa-f]{32}")


def converse(name: str, share: int, one: Callable[[str, int], str]) -> Counter[str]:
    """Have a share of the conversations; how often each thing came of one."""
    each = CONVERSATIONS // SHARES
    seen: Counter[str] = Counter()
    before = None
    for number in range(share * each, (share + 1) * each):
        try:
            seen[one(name, number)] += 1
        except Exception as error:
            raise AssertionError(f"in conversation {number} of SEED={SEED}: {error!r}") from error
        if number == share * each + each // 10:  # everything that is kept once is there now
            before = _kept()
    assert before is not None
    blocks, descriptors = _kept()
    assert descriptors == before[1]
    assert blocks - before[0] < each // 10, f"{blocks - before[0]} blocks of memory more"
    return seen


def _kept() -> tuple[int, int]:
    """Blocks of memory and descriptors in use."""
    gc.collect()
    return sys.getallocatedblocks(), len(os.listdir("/dev/fd"))


def _short(text: object) -> str:
    """A text for a person, which may have words of the peer in it."""
    assert str(text).isprintable()
    assert len(str(text)) < 300
    return str(text)


# --- the client -------------------------------------------------------------------------------


def with_client(name: str, number: int) -> str:
    """One conversation with a client and its owner; what came of it, in a word."""
    r = chance(name, number)
    tunnel_type = r.choice(TYPES)
    udp = r.choice((None, None, 4028, 0))
    trace: list[str] = []
    client = wire.Client("itojun", USERS["itojun"], tunnel_type, 0, udp=udp, trace=trace.append)
    sent = bytearray()
    now, came = 0.0, ""
    try:
        for data, seconds in server_says(r):
            events = client.receive(data, now)
            assert came or events or len(client._lines) <= wire.LINE_LIMIT + 1
            sent += client.take()
            now += seconds
            events += client.tick(now)
            sent += client.take()
            for event in events:
                if came.startswith(("grant:", "behind")):
                    break  # its owner has closed the connection
                assert came in ("", "granted"), f"{event} after {came}"
                came += ", " * bool(came) + _outcome(event, tunnel_type, udp, nat=r.random() < 0.2)
    except wire.ProtocolError as error:
        came += f"{', ' * bool(came)}protocol: {re.split('[:;]', _short(error))[0]}"
    client.quit()
    sent += client.take()
    _check_sent(bytes(sent), udp, may_quit=True)
    for line in trace:
        assert line.isprintable()
        assert "horse" not in line
        assert not re.match(r">> tunnel itojun (?!\*{8} )", line)
    return came or "nothing"


def _outcome(event: object, tunnel_type: str, udp: int | None, *, nat: bool) -> str:
    if isinstance(event, wire.Refused):
        _short(event.text)
        return "refused for now" if event.temporary else "refused"
    if isinstance(event, wire.Lost):
        _short(event.reason)
        return "lost"
    assert isinstance(event, wire.Granted), event
    own, server = IPv4Address(OWN), IPv4Address(SERVER)
    try:
        made, remarks = grant.parse(
            event.words, tunnel_type, own=own, server=server, nat=nat, port=udp
        )
    except grant.GrantError as error:
        return f"grant: {_short(error).split(' ', 1)[1][:22]}"
    except grant.BehindNat as error:
        return "behind a NAT" if OWN in _short(error) else "?"
    for remark in remarks:
        _short(remark)
    assert made.local == own
    assert isinstance(made.remote, IPv4Address)
    assert all(isinstance(each, IPv6Address) for each in (made.inner, made.peer) if each)
    assert all(isinstance(each, IPv6Network) and each.prefixlen <= 64 for each in made.prefixes)
    assert (made.ports is None) == (udp is None)
    return "granted"


def _check_sent(sent: bytes, udp: int | None, *, may_quit: bool) -> None:
    """One login, or with UDP perhaps a second; pings; a goodbye.  Nothing of the server's."""
    login = rb"tunnel itojun [0-9A-F]{32} [a-z]+"
    both = login + (rb"( udp=%d)\r\n(%b\r\n)?" % (udp, login) if udp is not None else rb"\r\n")
    assert re.fullmatch(rb"(%b(ping\r\n)*(quit\r\n)?)?" % both, sent), sent


PROMISE = "Whatever bytes come, what comes of them is documented, and nothing piles up"

# What must come of some conversations at least, or they do not go deep enough.
OF_CLIENT = {
    *("granted", "refused", "refused for now", "lost", "behind a NAT", "nothing"),
    *("protocol: this is no DTCP server", "protocol: no challenge in the greeting"),
    *("protocol: neither +OK nor -ERR", "granted, protocol: a reply nobody asked for"),
    *("protocol: unexpected data before the login", "protocol: a line of more than 512 bytes"),
    "protocol: unexpected data behind the reply to the login",
    *("protocol: a carriage return or NUL inside a line", "granted, lost"),
}


@pytest.mark.hazard(2, 3, 4, 6, 7, 8, 13)
@pytest.mark.parametrize("share", range(SHARES))
def test_a_client_makes_something_documented_of_any_server(share: int, figure: Figure) -> None:
    seen = converse("client", share, with_client)
    assert OF_CLIENT - set(seen) == set()
    assert (
        sum(n for came, n in seen.items() if came.startswith("granted")) > sum(seen.values()) / 20
    )
    assert len([each for each in seen if each.startswith("grant: ")]) > 5
    figure(PROMISE, "conversations with the client", sum(seen.values()))


# --- the server -------------------------------------------------------------------------------


def with_server(name: str, number: int) -> str:
    """One conversation with a server's session and its owner."""
    r = chance(name, number)
    challenge = r.randbytes(16).hex().upper()
    trace: list[str] = []
    asked_for: list[str] = []

    def password_of(user: str) -> str | None:
        asked_for.append(user)
        return USERS.get(user)

    session = wire.Session("dtcps", challenge, password_of, 0, trace=trace.append)
    now, came, grants, largest = 0.0, "", 0, 0
    waiting = False  # our answer to what was asked: a worker is at it
    for data, seconds in client_says(r, challenge):
        try:
            events = session.receive(data, now)
        except wire.ProtocolError as error:  # from nowhere else
            session.close(wire.BAD_COMMAND)
            came = f"protocol: {_short(error)}"
            break
        largest = max(largest, len(data))
        assert len(session._lines) <= 4 * wire.LINE_LIMIT + largest
        while True:
            for event in events:
                assert not came, f"{event} after {came}"
                if isinstance(event, wire.Ended):
                    came = f"ended: {_short(event.reason)}"
                else:
                    assert isinstance(event, wire.Asked), event
                    assert event.user in USERS
                    assert event.type in TYPES
                    assert event.udp is None or 0 <= event.udp < 65536
                    assert not waiting
                    waiting = True
            if not waiting or came or r.random() < 0.2:
                break
            waiting = False
            if r.random() < 0.7:
                grants += 1
                events = session.accept(f"{OWN} {SERVER}", now)
            else:
                events = session.refuse(wire.SOLD_OUT, now)
        now += seconds
        events = session.tick(now)
        if events and not came:
            (over,) = events
            assert over == wire.Ended("timed out")
            came = "ended: timed out"
    _check_replies(session.take(), challenge, grants)
    assert all(wire.USER.fullmatch(user) for user in asked_for)
    for line in trace:
        assert line.isprintable()
        assert line.startswith(">> ") or not HEX.search(re.sub(r"\\x..", "?", line))
    return came or ("open, with a tunnel" if grants else "open")


REPLIES = {
    *(f"+OK {text}" for text in (wire.BYE, wire.PONG, wire.HELP)),
    *(f"-ERR {text}" for text in (wire.BAD_LOGIN, wire.BAD_COMMAND, wire.SOLD_OUT)),
    *(f"-ERR {text}" for text in (wire.TIMED_OUT, wire.HAVE_TUNNEL, wire.BAD_PORT)),
}


def _check_replies(out: bytes, challenge: str, grants: int) -> None:
    greeting, *replies, rest = out.decode("ascii").split("\r\n")
    assert greeting == f"+OK {challenge} dtcps"
    assert rest == ""
    assert replies.count(f"+OK {OWN} {SERVER}") == grants <= 1
    assert replies.count(f"-ERR {wire.BAD_LOGIN}") <= wire.LOGIN_FAILURES
    for line in {*replies} - REPLIES - {f"+OK {OWN} {SERVER}"}:
        assert line.startswith("-ERR unsupported tunnel type "), line
        assert line.isprintable()
        assert len(line) <= wire.LINE_LIMIT


OF_SERVER = {
    *("open", "open, with a tunnel", "ended: the client closed the connection"),
    *("ended: the client said quit", "ended: timed out", "ended: too many failed logins"),
    *("ended: too many invalid commands", "protocol: a carriage return or NUL inside a line"),
    *("protocol: too much at once", "protocol: a line of more than 512 bytes"),
}


@pytest.mark.hazard(37, 38, 39, 40, 46, 47)
@pytest.mark.parametrize("share", range(SHARES))
def test_a_session_makes_something_documented_of_any_client(share: int, figure: Figure) -> None:
    seen = converse("server", share, with_server)
    assert OF_SERVER - set(seen) == set()
    assert seen["open, with a tunnel"] > sum(seen.values()) / 20
    figure(PROMISE, "conversations with the server", sum(seen.values()))
