"""Conversations with a peer that may be broken or malicious, based on real ones.

Pure noise hardly ever gets past the first line.  So each conversation starts from a realistic one,
of which a little or a lot is then corrupted: words, bytes, lines, their order and their endings;
finally it is cut anywhere, or not at all, and time passes between the pieces.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from typing import NamedTuple

# What a failing run names; with it the same conversations come again.
SEED = os.environ.get("SEED", "20240601")

USERS = {"itojun": "correct horse", "jun": "x:y", "foo": "p\udcff\udcfe"}
TYPES = ("tunnelonly", "host", "network", "tunnelroute")
OWN, SERVER = "203.0.113.7", "192.0.2.1"

_GREETINGS = (
    "+OK {0} KAME tunnel server",
    "+OK {0} FBDC TunnelBroker (version 0.2) Ready. <870363>:4096",
    "+OK {0} dtcps 0.1.0 tunnel server",
    "+OK {0}",
    "-ERR busy, try again later",
)
_REPLIES = (
    f"+OK {OWN} {SERVER}",
    f"+OK {OWN} {SERVER} 2001:db8:1::6 2001:db8:1::5",
    f"+OK {OWN} {SERVER} 2001:0db8:03c3::/48",
    f"+OK {OWN} {SERVER} 2001:db8:1::6 2001:db8:1::5 2001:db8:3c3::/48 2001:db8:4::/64",
    f"+OK {OWN} {SERVER} 2001:db8:1::6 2001:db8:1::5 udp=4028",
    f"+OK {OWN} {SERVER} 2001:db8:1::6 2001:db8:1::5 udp=4028 key={'5' * 32}",
    f"+OK 198.51.100.9 {SERVER} 2001:db8:1::6 2001:db8:1::5 2001:db8:3c3::/48",
    "-ERR authentication failed.",
    "-ERR unsupported tunnel type host",
    "-ERR tunnel interface sold out",
    "-ERR server is going down",
)
_LATER = (
    "+OK hi, happy to hear from you",
    "+OK pong",
    "-ERR connection timed out, disconnecting",
    "+OK see you soon.",
)
_ADDRESSES = (
    *("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.1.2.3", OWN, SERVER),
    *("192.0.2.001", "192.0.2.9", "1.2.3", "0x7f000001", "2001:db8::%em0", "::ffff:192.0.2.1"),
    *("::", "::1", "fe80::1", "ff02::1", "2001:db8:5::1", "2001:db8:5::/48", "2001:db8:5::1/48"),
    *("2000::/3", "2001:db8::/65", "::/0", "fc00::/32", "2001:db8::1/128", "2001:db8::/129"),
)
_WORDS = (
    *("+OK", "-ERR", "+ok", "OK", "tunnel", "TUNNEL", "ping", "quit", "help", "", " ", "\t"),
    *TYPES,
    *("udp=4028", "udp=0", "udp=65536", "udp=", "udp=1,udp=2", "key=value", "4028", "-1"),
    *(f"key={'5' * 32}", f"key={'5' * 31}", f"key={'C' * 33}", "key="),
    *("$(reboot)", "-alias", ";", "gif0", "../x", "root;", "\x1b[2J", "%s%n", "{0}", "\\"),
    *("é", "\xff" * 9, "\x00", "\r", "0" * 32, "F" * 32, "0" * 31, "f" * 33, "x" * 600),
    *_ADDRESSES,
)
_ENDINGS = (b"\r\n", b"\n")
_ODD_ENDINGS = (b"", b"\r", b"\r\r\n", b"\0\n", b"\n\n", b"\r\n\r\n")
# Just before, at, and long after each of the time limits.
PAUSES = (0.0, 0.1, 0.5, 14.9, 15.0, 29.9, 30.1, 60.0, 299.0, 300.0, 86_400.0)


class Piece(NamedTuple):
    """Bytes that arrive at once, none at the end of the connection; and the quiet after them."""

    data: bytes
    seconds: float


def chance(name: str, number: int) -> random.Random:
    """The source of everything by chance in one conversation."""
    return random.Random(f"{SEED} {name} {number}")


def server_says(r: random.Random) -> list[Piece]:
    """What a client may hear."""
    lines = [
        r.choice(_GREETINGS[: 4 if r.random() < 0.9 else 5]).format(r.randbytes(16).hex()),
        r.choice(_REPLIES[: 6 if r.random() < 0.8 else None]),
        *(r.choice(_LATER[: 2 if r.random() < 0.9 else None]) for _ in range(r.randrange(4))),
    ]
    return _pieces(r, lines, together=0.1)


def client_says(r: random.Random, challenge: str) -> list[Piece]:
    """What a server may hear that greeted with this challenge."""
    lines = [r.choice(("ping", "help", "PING")) for _ in range(r.randrange(3))]
    for _ in range(r.choice((1, 1, 1, 2, 4))):
        user = r.choice(("itojun", "jun", "foo", "nobody"))
        known = user.encode() + challenge.encode()
        known += USERS.get(user, "").encode("utf-8", "surrogateescape")
        digest = hashlib.md5(known if r.random() < 0.9 else r.randbytes(8)).hexdigest()
        words = ["tunnel", user, r.choice((digest, digest.upper())), r.choice(TYPES)]
        words += [r.choice(("udp=4028", "udp=0", "key=value"))] * (r.random() < 0.2)
        lines.append(" ".join(words))
        lines += [r.choice(("ping", "help", "what", "quit"))] * r.choice((0, 1, 1, 6))
    return _pieces(r, lines, together=0.5)


def _pieces(r: random.Random, lines: list[str], together: float) -> list[Piece]:
    """Lines as bytes, with faults or without, whole, cut at random, or each for itself."""
    for _ in range(r.choice((0, 0, 1, 1, 2, 5))):
        _spoil(r, lines)
    ends = _ENDINGS if r.random() < 0.9 else (*_ENDINGS, *_ODD_ENDINGS)
    said = [line.encode("latin-1", "replace") + r.choice(ends) for line in lines]
    if r.random() < 0.2:
        said = [spoilt(r, b"".join(said))]
    elif r.random() < together:
        said = [b"".join(said)]
    if r.random() < 0.4:
        said = [part for data in said for part in _cut(r, data)]
    if r.random() < 0.05:
        said.insert(r.randrange(len(said) + 1), r.randbytes(r.randrange(1, 3000)))
    # Mostly there is an answer within a moment, and from time to time a minute for a ping.
    pieces = [
        Piece(data, r.choice(PAUSES) if r.random() < 0.05 else r.choice((0.0, 0.1, 60.0)))
        for data in said
        if data
    ]
    if r.random() < 0.5:
        pieces.insert(r.randrange(len(pieces), 2 * len(pieces) + 2), Piece(b"", 0.0))
    return pieces


def _spoil(r: random.Random, lines: list[str]) -> None:
    at = r.randrange(len(lines))
    kind = r.randrange(8)
    words = lines[at].split(" ")
    where = r.randrange(len(words))
    if kind == 0:
        words[where] = r.choice(_WORDS)
    elif kind == 1:
        words.insert(where, r.choice(_WORDS))
    elif kind == 2:
        del words[where]
    elif kind == 3:
        words[where] = r.choice(_ADDRESSES)
    elif kind == 4:
        words *= r.choice((2, 2, 20))
    elif kind == 5:
        lines.insert(r.randrange(len(lines)), lines[at])
        return
    elif kind == 6:
        other = r.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
        return
    else:
        lines.insert(at, " ".join(r.choices(_WORDS, k=r.randrange(6))))
        return
    lines[at] = r.choice((" ", " ", " ", "  ", "\t")).join(words)


def spoilt(r: random.Random, data: bytes) -> bytes:
    """Some bytes changed, lost, or doubled."""
    made = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 20))):
        at = r.randrange(len(made) + 1)
        end = at + r.choice((1, 1, 4, 64))
        made[at:end] = r.choice((b"", r.randbytes(1), bytes(made[at:end]) * 2, b"\n", b"\x80"))
    return bytes(made)


def _cut(r: random.Random, data: bytes) -> Sequence[bytes]:
    if r.random() < 0.1:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(r.randrange(len(data) + 1) for _ in range(r.randrange(6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
