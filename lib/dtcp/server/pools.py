"""Pools: a prefix cut into pieces that can be given to users, by number.  No I/O.

Two kinds: pairs of inner addresses, in the numbering of KAME's server, and prefixes to delegate.
What is whose is recorded elsewhere (dtcp.server.store); here is only the arithmetic.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, IPv6Network
from typing import NamedTuple

from dtcp.errors import Error

STEP = 4  # addresses from one pair to the next, as KAME's server counts
SMALLEST = 112  # length of the smallest prefix for pairs: room for 16383 of them
LONGEST, SHORTEST = 64, 16  # of prefixes that are delegated


class PoolError(Error):
    """A pool, or a prefix for one, is invalid."""


class Span(NamedTuple):
    """Addresses in a row: a pair (the server's, then the client's), or a prefix."""

    first: IPv6Address
    last: IPv6Address

    @property
    def client(self) -> IPv6Address:
        """Of a pair: the client's address."""
        return self.last

    @property
    def server(self) -> IPv6Address:
        """Of a pair: the server's address."""
        return self.first

    @property
    def network(self) -> IPv6Network:
        """Of a prefix: the prefix."""
        bits = (int(self.first) ^ int(self.last)).bit_length()
        return IPv6Network((self.first, 128 - bits))


def pair(client: IPv6Address) -> Span:
    """The pair of a client's address: the server has the one before, as in KAME's numbering."""
    return Span(client - 1, client)


def whole(prefix: IPv6Network) -> Span:
    """A prefix as a span."""
    return Span(prefix.network_address, prefix.broadcast_address)


class Pool(NamedTuple):
    """A prefix cut into pieces of one length, or, with None for it, into pairs of addresses."""

    prefix: IPv6Network
    length: int | None = None

    def __str__(self) -> str:
        return f"{self.prefix} /{self.length}" if self.length else f"{self.prefix}"

    @property
    def kind(self) -> str:
        """`pair` or `prefix`."""
        return "pair" if self.length is None else "prefix"

    @property
    def size(self) -> int:
        """How many pieces there are."""
        if self.length is None:
            return self.prefix.num_addresses // STEP - 1
        return 1 << (self.length - self.prefix.prefixlen)

    def piece(self, number: int) -> Span | None:
        """The piece of that number, from 0; None behind the last."""
        if number >= self.size:
            return None
        start = int(self.prefix.network_address)
        if self.length is None:
            # KAME's: the first interface, gif0, has ...:5 here and ...:6 there.
            return pair(IPv6Address(start + (number + 1) * STEP + 2))
        return whole(IPv6Network((start + (number << (128 - self.length)), self.length)))

    def behind(self, address: IPv6Address) -> int:
        """The number of the first piece that lies wholly behind an address of this prefix."""
        offset = int(address) - int(self.prefix.network_address)
        if self.length is None:
            return max(0, (offset - 1) // STEP)
        return (offset >> (128 - self.length)) + 1

    def reaching(self, address: IPv6Address) -> int:
        """The number of the first piece that ends at an address, or behind it."""
        number = self.behind(max(address, self.prefix.network_address))
        before = self.piece(number - 1) if number else None
        return number - 1 if before is not None and before.last >= address else number

    def number(self, span: Span) -> int | None:
        """The number of a piece; None for a span that is not a piece of this pool."""
        number = self.behind(span.last) - 1
        return number if number >= 0 and self.piece(number) == span else None


def _network(text: str, length: int = 128) -> IPv6Network:
    """The prefix; `length` is that of one without.  Raises PoolError."""
    try:
        network = IPv6Network(text if "/" in text else f"{text}/{length}", strict=False)
    except ValueError:
        raise PoolError(f"{text!a} is not an IPv6 prefix") from None
    if network.network_address != IPv6Address(text.partition("/")[0]):
        raise PoolError(f"{text} is an address in a prefix; the prefix is {network}")
    return network


def pairs(text: str) -> Pool:
    """`2001:db8:1::` as KAME's server has it (a /64), or with a length.  Raises PoolError."""
    prefix = _network(text, 64)
    if prefix.prefixlen > SMALLEST:
        raise PoolError(f"{text!a} is too small: /{SMALLEST} is the smallest")
    if prefix.prefixlen < SHORTEST:
        raise PoolError(f"{text!a} is too large: /{SHORTEST} is the largest")
    return Pool(prefix)


def prefixes(text: str) -> Pool:
    """`2001:db8:4000::/40 /48`: a prefix, and the length of the pieces.  Raises PoolError."""
    words = text.split()
    if len(words) != 2 or "/" not in words[0] or not re.fullmatch(r"/[0-9]{1,3}", words[1]):
        raise PoolError(f"{text!a} is not: prefix/length /length")
    prefix, length = delegable(words[0]), int(words[1][1:])
    # A piece as large as the whole would have the whole's unreachable route in its place.
    if not prefix.prefixlen < length <= LONGEST:
        raise PoolError(f"{text!a}: {prefix} cannot be cut into /{length}")
    return Pool(prefix, length)


def delegable(text: str) -> IPv6Network:
    """A prefix that can be delegated.  Raises PoolError."""
    prefix = _network(text)
    if not SHORTEST <= prefix.prefixlen <= LONGEST:
        raise PoolError(f"{text!a}: only /{SHORTEST} to /{LONGEST} can be delegated")
    return prefix
