"""The allowed outcomes of a conversation with anybody: played from pieces of bytes, and checked.

A wrong outcome is an AssertionError, or whatever else was raised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from dtcp import grant, wire

from tests.conversations import OWN, SERVER, TYPES, USERS, Piece
from tests.knowing import Client

HEX = re.compile(r"[0-9A-Fa-f]{32}")
UDP_PORT = 4028


def _short(text: object) -> str:
    """A text for a person, which may have words of the peer in it."""
    assert str(text).isprintable()
    assert len(str(text)) < 300
    return str(text)


# --- the client -------------------------------------------------------------------------------


def of_client(pieces: Iterable[Piece], tunnel_type: str, udp: int | None, nat: bool) -> str:
    """What a client and its owner make of what a server says, in some words."""
    trace: list[str] = []
    client = Client("itojun", USERS["itojun"], tunnel_type, 0, udp=udp, trace=trace.append)
    sent = bytearray()
    now, came = 0.0, ""
    try:
        for data, seconds in pieces:
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
                came += ", " * bool(came) + _outcome(event, tunnel_type, udp, nat)
    except wire.ProtocolError as error:
        came += f"{', ' * bool(came)}protocol: {re.split('[:;]', _short(error))[0]}"
    client.quit()
    sent += client.take()
    _check_sent(bytes(sent), udp)
    for line in trace:
        assert line.isprintable()
        assert "horse" not in line
        assert not re.search(r"\bkey=[0-9A-Za-z]", line)
        assert not re.match(r">> tunnel itojun (?!\*{8} )", line)
    return came or "nothing"


def _outcome(event: object, tunnel_type: str, udp: int | None, nat: bool) -> str:
    if isinstance(event, wire.Refused):
        _short(event.text)
        return "refused for now" if event.temporary else "refused"
    if isinstance(event, wire.Lost):
        _short(event.reason)
        return "lost"
    assert isinstance(event, wire.Granted), event
    own, server = IPv4Address(OWN), IPv4Address(SERVER)
    port = None if udp is None else UDP_PORT
    try:
        made, remarks = grant.parse(
            event.words, tunnel_type, own=own, server=server, nat=nat, port=port
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
    # In this spelling it goes to root, who takes no other.
    told = made.reply()
    assert grant.accept(told, tunnel_type, own=own, server=server, port=port) == made
    return "granted"


def _check_sent(sent: bytes, udp: int | None) -> None:
    """One login, or with UDP perhaps a second; pings; a goodbye.  Nothing of the server's."""
    login = rb"tunnel itojun [0-9A-F]{32} [a-z]+"
    both = login + (rb"( udp=%d)\r\n(%b\r\n)?" % (udp, login) if udp is not None else rb"\r\n")
    assert re.fullmatch(rb"(%b(ping\r\n)*(quit\r\n)?)?" % both, sent), sent


# --- the server -------------------------------------------------------------------------------


def of_session(pieces: Iterable[Piece], challenge: str, answer: Callable[[], str]) -> str:
    """What a session and its owner make of what a client says, in some words.

    `answer` says what the owner does with a request: "accept", "refuse", or "wait".
    """
    trace: list[str] = []
    asked_for: list[str] = []

    def password_of(user: str) -> str | None:
        asked_for.append(user)
        return USERS.get(user)

    session = wire.Session("dtcps", challenge, password_of, 0, trace=trace.append)
    now, came, grants, largest = 0.0, "", 0, 0
    waiting = False  # our answer to what was asked: a worker is at it
    for data, seconds in pieces:
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
            if not waiting or came or (does := answer()) == "wait":
                break
            waiting = False
            if does == "accept":
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
    assert all(re.fullmatch(wire.USER, user) for user in asked_for)
    for line in trace:
        assert line.isprintable()
        assert line.startswith(">> ") or not HEX.search(re.sub(r"\\x..", "?", line))
    return came or ("open, with a tunnel" if grants else "open")


REPLIES = {
    *(f"+OK {text}" for text in (wire.BYE, wire.PONG, wire.HELP)),
    *(f"-ERR {text}" for text in (wire.BAD_LOGIN, wire.BAD_COMMAND, wire.SOLD_OUT)),
    *(f"-ERR {text}" for text in (wire.TIMED_OUT, wire.HAVE_TUNNEL, wire.BAD_PORT)),
    f"-ERR {wire.TOO_MUCH_TALK}",
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
