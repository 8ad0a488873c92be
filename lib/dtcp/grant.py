"""What a server may grant: from the words of a reply to checked facts, and back.  No I/O.

The replies that are known (the client's view first in every pair):

    tunnelonly   203.0.113.7 192.0.2.1
    host         203.0.113.7 192.0.2.1 2001:db8:1::0006 2001:db8:1::0005     (KAME)
    network      203.0.113.7 192.0.2.1 2001:0db8:03c3::/48                   (Feel6)

Servers differ, so what follows the two IPv4 addresses is told apart by its form, not its place.
All of it is hostile until it has been through `ipaddress`; only objects of `ipaddress`, integers
and a key of a fixed length leave this module.

The process that reads replies (dtcp.client.conversation) passes a grant on to the one that acts on
it as a line, in the one spelling that `Grant.reply` has for it; `accept` takes no other, and checks
it all again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from dtcp.errors import NOT_ALLOWED, Error
from dtcp.wire import is_port, masked

_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291 section 2.4, as far as IANA has opened it
_NOT_ROUTED = tuple(
    IPv4Network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16")
)
_LONGEST, _SHORTEST = 64, 16  # of delegated prefixes
_MOST_PREFIXES = 8
_AS_DEFAULT = 3  # bits: a route so wide, as 2000::/3, stands for a default route

# Nothing but the letters of an address: such a word is one, or it is an error.
_ADDRESS_LIKE = r"(?=.*[.:/])[0-9A-Fa-f.:/]+"


class GrantError(Error):
    """The reply is no sensible grant; nothing of it may be used."""


class BehindNat(Error):
    """The server saw another address than our socket has."""

    status = NOT_ALLOWED

    def __init__(self, own: IPv4Address, seen: IPv4Address, *, udp: bool) -> None:
        self.seen = seen
        super().__init__(
            f"our address is {own}, but the server sees {seen}: there is a NAT between; use"
            f" {'-n as well' if udp else '-U -n (-n alone, if it passes protocol 41)'}"
        )


class Grant(NamedTuple):
    """A tunnel, as its client sees it.

    The server sees it with the pairs turned round (`turned`).
    """

    local: IPv4Address  # the outer pair
    remote: IPv4Address
    inner: IPv6Address | None = None  # the inner pair; a server may leave out its own
    peer: IPv6Address | None = None
    prefixes: tuple[IPv6Network, ...] = ()
    ports: tuple[int, int] | None = None  # over UDP: the ports of the outer pair
    key: bytes | None = None  # over UDP: what the client's first packet must show (docs/udp.md)

    def turned(self) -> Grant:
        """The same tunnel from its other end."""
        ports = self.ports and (self.ports[1], self.ports[0])
        return Grant(self.remote, self.local, self.peer, self.inner, self.prefixes, ports, self.key)

    def reply(self) -> str:
        """The words behind `+OK` that grant this."""
        udp = f"udp={self.ports[1]}" if self.ports is not None else None
        key = f"key={self.key.hex()}" if self.key is not None else None
        words = (self.local, self.remote, self.inner, self.peer, *self.prefixes, udp, key)
        return " ".join(str(word) for word in words if word is not None)


def parse(
    words: list[str],
    tunnel_type: str,
    *,
    own: IPv4Address,
    server: IPv4Address,
    nat: bool,
    port: int | None = None,
) -> tuple[Grant, list[str]]:
    """The grant in the words behind `+OK`, and remarks for the log.

    `own` and `server` are the two ends of the control connection; `nat` says that the server may
    see us under another address; `port` is the UDP port of ours with which a tunnel over UDP was
    asked for.  Raises GrantError, or BehindNat.
    """
    if len(words) < 2:
        raise GrantError("the reply lacks the two IPv4 addresses")
    seen, remote = _ipv4(words[0]), _ipv4(words[1])
    remarks: list[str] = []
    addresses: list[IPv6Address] = []
    prefixes: list[IPv6Network] = []
    ports: list[str] = []
    keys: list[str] = []
    for word in filter(None, ",".join(words[2:]).split(",")):
        if port is not None and word.startswith("udp="):
            ports.append(word[4:])
        elif port is not None and word.startswith("key="):
            keys.append(word[4:])
        elif re.fullmatch(_ADDRESS_LIKE, word):
            item = _ipv6(word)
            if isinstance(item, IPv6Address):
                addresses.append(item)
                continue
            if item.network_address != IPv6Address(word.partition("/")[0]):
                remarks.append(f"{_shown(word)} has bits set behind its length: taken as {item}")
            if item not in prefixes:
                prefixes.append(item)
        elif _is_due(tunnel_type, addresses, prefixes):
            raise GrantError(f"{_shown(word)} stands where an address is due")
        else:
            remarks.append(f"ignored: {_shown(word)}")
    if len(addresses) == 4 and addresses[:2] == addresses[2:]:
        del addresses[2:]
    if len(addresses) > 2:
        raise GrantError("more than one pair of inner addresses")
    if tunnel_type == "tunnelonly" and (addresses or prefixes):
        remarks.append("ignored: inner addresses or prefixes, which were not asked for")
        addresses, prefixes = [], []
    if tunnel_type in ("network", "tunnelroute") and not prefixes:
        remarks.append("the server delegates no prefix")
    if remote != server:
        if _is_private(remote) and not _is_private(server):
            remarks.append(f"the server calls itself {remote} (behind a NAT?): using {server}")
            remote = server
        else:
            remarks.append(f"the tunnel ends at {remote}, not at {server} where we logged in")
    both_ports = None
    if port is not None and len(ports) == 1 and is_port(ports[0]):
        both_ports = (port, int(ports[0]))
    inner, peer = (*addresses, None, None)[:2]
    # The outer source is our socket's own address, whatever the server saw: a packet with any
    # other would not leave this host.
    granted = Grant(own, remote, inner, peer, tuple(prefixes), both_ports, _key(keys))
    _check(granted, tunnel_type, own, server, udp=port is not None)
    # Last, for a grant that makes no sense is not mended by -n.
    if seen != own and not nat:
        raise BehindNat(own, seen, udp=port is not None)
    return granted, remarks


def accept(
    line: str, tunnel_type: str, *, own: IPv4Address, server: IPv4Address, port: int | None = None
) -> Grant:
    """The grant in a line of `Grant.reply`, checked as in `parse`.  Raises GrantError."""
    words = line.split(" ")
    ports = [word[4:] for word in words if word.startswith("udp=")]
    if len(words) < 2 or not all(map(is_port, ports)):
        raise GrantError(f"{_shown(line)} is no grant")
    keys = [word[4:] for word in words if word.startswith("key=")]
    items = [_ipv6(word) for word in words[2:] if not word.startswith(("udp=", "key="))]
    inner, peer = (*(item for item in items if isinstance(item, IPv6Address)), None, None)[:2]
    granted = Grant(
        _ipv4(words[0]),
        _ipv4(words[1]),
        inner,
        peer,
        tuple(item for item in items if isinstance(item, IPv6Network)),
        (port, int(ports[0])) if port is not None and ports else None,
        _key(keys) if port is not None else None,
    )
    if granted.reply() != line or granted.local != own:
        raise GrantError(f"{_shown(line)} is no grant for {own}")
    _check(granted, tunnel_type, own, server, udp=port is not None)
    return granted


def check_against(granted: Grant, reached: Iterable[IPv6Network]) -> None:
    """See that a host reaches afterwards what it reaches now.  Raises GrantError.

    `reached` are the networks that it reaches by an interface or by a route.  A prefix around such
    a network, or the same, does no harm: the longer route wins, and the same is not made.
    """
    addresses = [IPv6Network(each) for each in (granted.inner, granted.peer) if each]
    for network in reached:
        for item in (*addresses, *granted.prefixes):
            if network.prefixlen > _AS_DEFAULT and item.subnet_of(network):
                if item in addresses:
                    raise _taken(item.network_address, network)
                if item != network:
                    raise _taken(item, network)


def check_address_against(address: IPv6Address, reached: Iterable[IPv6Network]) -> None:
    """The same for an address of ours in a prefix around such a network.  Raises GrantError."""
    for network in reached:
        if network.prefixlen > _AS_DEFAULT and address in network:
            raise _taken(address, network)


def check_remote_against(remote: IPv4Address, reached: Iterable[IPv4Network]) -> None:
    """The same for an outer end that is not the server that we know.  Raises GrantError."""
    for network in reached:
        if network.prefixlen > 1 and remote in network:
            raise _taken(remote, network)


def _taken(item: object, network: object) -> GrantError:
    return GrantError(f"{item} lies in {network}, which this host reaches without the tunnel")


def _check(
    granted: Grant, tunnel_type: str, own: IPv4Address, server: IPv4Address, *, udp: bool
) -> None:
    """See that a grant makes sense.  Raises GrantError."""
    if tunnel_type == "host" and granted.inner is None:
        raise GrantError("no inner addresses, though type host was asked for")
    if tunnel_type == "tunnelonly" and (granted.inner is not None or granted.prefixes):
        raise GrantError("addresses or prefixes, though type tunnelonly was asked for")
    for address in (granted.inner, granted.peer):
        if address is not None:
            _check_inner(address)
    for prefix in granted.prefixes:
        _check_prefix(prefix)
    if len(granted.prefixes) > _MOST_PREFIXES:
        raise GrantError(f"more than {_MOST_PREFIXES} delegated prefixes")
    if granted.inner is not None and granted.inner == granted.peer:
        raise GrantError(f"both inner addresses are {granted.inner}")
    _check_remote(granted.remote, own, server)
    if udp and not (granted.ports and granted.ports[1]):
        raise GrantError("no UDP port, though a tunnel over UDP was asked for")


def _shown(word: str) -> str:
    """A word of the reply for messages: quoted, visible, short, and without a key."""
    word = masked(word)
    return ascii(word if len(word) <= 60 else f"{word[:60]}...")


def _key(words: list[str]) -> bytes | None:
    """The key in the only one of these words, if there is any.  Raises GrantError."""
    if not words:
        return None
    if len(words) > 1 or not re.fullmatch(r"[0-9A-Fa-f]{32}", words[0]):
        raise GrantError("the key is not one of 32 hexadecimal digits")
    return bytes.fromhex(words[0])


def _is_due(tunnel_type: str, addresses: list[IPv6Address], prefixes: list[IPv6Network]) -> bool:
    """Whether something without which the grant makes no sense has not come yet."""
    if tunnel_type == "host":
        return len(addresses) < 2
    return tunnel_type in ("network", "tunnelroute") and not prefixes


def _ipv4(word: str) -> IPv4Address:
    try:
        return IPv4Address(word)
    except ValueError:
        raise GrantError(f"{_shown(word)} is no IPv4 address") from None


def _ipv6(word: str) -> IPv6Address | IPv6Network:
    """An address, or a prefix; an address with /128 is an address."""
    try:
        if "%" in word:  # a scope, in which anything may stand
            raise ValueError
        if "/" not in word:
            return IPv6Address(word)
        network = IPv6Network(word, strict=False)
    except ValueError:
        raise GrantError(f"{_shown(word)} is no IPv6 address or prefix") from None
    return network.network_address if network.prefixlen == 128 else network


def _is_private(address: IPv4Address) -> bool:
    # Not is_private of ipaddress: that one holds the documentation prefixes for private too.
    return any(address in network for network in _NOT_ROUTED)


def _check_remote(remote: IPv4Address, own: IPv4Address, server: IPv4Address) -> None:
    # On loopback, where a server is tried out, both ends may well be 127.0.0.1.
    nonsense = (
        (remote == own and not server.is_loopback)
        or remote.is_unspecified
        or remote.is_multicast
        or remote.is_reserved  # 240/4, the broadcast address among them
        or remote in IPv4Network("0.0.0.0/8")
        or (remote.is_loopback and not server.is_loopback)
    )
    if nonsense:
        raise GrantError(f"{remote} cannot be the other end of a tunnel")


def _check_inner(address: IPv6Address) -> None:
    nonsense = (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or address in IPv6Network("::/8")  # mapped, compatible and other embedded IPv4
    )
    if nonsense:
        raise GrantError(f"{address} cannot be an address of a tunnel")


def _check_prefix(prefix: IPv6Network) -> None:
    if not _SHORTEST <= prefix.prefixlen <= _LONGEST:
        raise GrantError(
            f"{prefix} cannot be delegated: its length is not {_SHORTEST} to {_LONGEST}"
        )
    if not prefix.subnet_of(_GLOBAL_UNICAST):
        raise GrantError(f"{prefix} cannot be delegated: it is not global unicast")
