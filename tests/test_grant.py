"""What a server's grant yields: checked facts, or one line that says why not."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
from dtcp import wire
from dtcp.grant import BehindNat, Grant, GrantError, accept, parse
from hypothesis import assume, given, settings
from hypothesis import strategies as st

OWN, SERVER = IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1")
PAIR = "203.0.113.7 192.0.2.1"


def read(
    reply: str,
    tunnel_type: str,
    *,
    own: IPv4Address = OWN,
    server: IPv4Address = SERVER,
    nat: bool = False,
    port: int | None = None,
) -> tuple[Grant, list[str]]:
    return parse(reply.split(), tunnel_type, own=own, server=server, nat=nat, port=port)


def granted(*inner: str, prefixes: tuple[str, ...] = (), remote: IPv4Address = SERVER) -> Grant:
    mine, peer = (*map(IPv6Address, inner), None, None)[:2]
    return Grant(OWN, remote, mine, peer, tuple(map(IPv6Network, prefixes)))


# --- grants -----------------------------------------------------------------------------------

# type, what stands behind +OK, what it means, what is remarked
GRANTS: list[tuple[str, str, Grant, list[str]]] = [
    # KAME, 2001
    ("tunnelonly", PAIR, granted(), []),
    (
        "host",
        f"{PAIR} 2001:db8:1::0006 2001:db8:1::0005",
        granted("2001:db8:1::6", "2001:db8:1::5"),
        [],
    ),
    # Feel6
    ("network", f"{PAIR} 2001:0db8:03c3::/48", granted(prefixes=("2001:db8:3c3::/48",)), []),
    ("tunnelroute", f"{PAIR} 2001:0db8:03c3::/48", granted(prefixes=("2001:db8:3c3::/48",)), []),
    # ume's dtcps with peer addresses, as far as is known
    (
        "network",
        f"{PAIR} 2001:db8:1::6 2001:db8:1::5 2001:db8:3c3::/48",
        granted("2001:db8:1::6", "2001:db8:1::5", prefixes=("2001:db8:3c3::/48",)),
        [],
    ),
    # several prefixes, as words and as a list
    (
        "network",
        f"{PAIR} 2001:db8:3c3::/48 2001:db8:4::/64",
        granted(prefixes=("2001:db8:3c3::/48", "2001:db8:4::/64")),
        [],
    ),
    (
        "network",
        f"{PAIR} 2001:db8:3c3::/48,2001:db8:4::/64,",
        granted(prefixes=("2001:db8:3c3::/48", "2001:db8:4::/64")),
        [],
    ),
    (
        "network",
        f"{PAIR} 2001:db8:3c3::/48 2001:db8:3c3:0::/48",
        granted(prefixes=("2001:db8:3c3::/48",)),
        [],
    ),
    ("network", f"{PAIR} 2000::/16", granted(prefixes=("2000::/16",)), []),
    (
        "network",
        f"{PAIR} 2001:db8:3c3::1/48",
        granted(prefixes=("2001:db8:3c3::/48",)),
        ["'2001:db8:3c3::1/48' has bits set behind its length: taken as 2001:db8:3c3::/48"],
    ),
    ("network", PAIR, granted(), ["the server delegates no prefix"]),
    # an address with /128 is an address
    (
        "host",
        f"{PAIR} 2001:db8:1::6/128 2001:db8:1::5/128",
        granted("2001:db8:1::6", "2001:db8:1::5"),
        [],
    ),
    ("host", f"{PAIR} 2001:db8:1::6,2001:db8:1::5", granted("2001:db8:1::6", "2001:db8:1::5"), []),
    ("host", f"{PAIR} 2001:DB8:1:0:0:0:0:6", granted("2001:db8:1::6"), []),
    (
        "host",
        f"{PAIR} 2001:db8:1::6 2001:db8:1::5 2001:db8:1::6 2001:db8:1::5",
        granted("2001:db8:1::6", "2001:db8:1::5"),
        [],
    ),
    ("host", f"{PAIR} fd00::6 fd00::5", granted("fd00::6", "fd00::5"), []),
    # words that a later server may add
    ("tunnelonly", f"{PAIR} 1280", granted(), ["ignored: '1280'"]),
    (
        "host",
        f"{PAIR} 2001:db8:1::6 2001:db8:1::5 mtu=1480 \x1b[2J $(reboot)",
        granted("2001:db8:1::6", "2001:db8:1::5"),
        ["ignored: 'mtu=1480'", "ignored: '\\x1b[2J'", "ignored: '$(reboot)'"],
    ),
    (
        "network",
        f"{PAIR} 2001:db8:3c3::/48 welcome",
        granted(prefixes=("2001:db8:3c3::/48",)),
        ["ignored: 'welcome'"],
    ),
    ("tunnelonly", f"{PAIR} {'x' * 400}", granted(), [f"ignored: '{'x' * 60}...'"]),
    (
        "tunnelonly",
        f"{PAIR} 2001:db8:1::6 2001:db8:1::5",
        granted(),
        ["ignored: inner addresses or prefixes, which were not asked for"],
    ),
    # another end than where we logged in
    (
        "tunnelonly",
        "203.0.113.7 192.0.2.9",
        granted(remote=IPv4Address("192.0.2.9")),
        ["the tunnel ends at 192.0.2.9, not at 192.0.2.1 where we logged in"],
    ),
    *(
        (
            "tunnelonly",
            f"203.0.113.7 {private}",
            granted(),
            [f"the server calls itself {private} (behind a NAT?): using 192.0.2.1"],
        )
        for private in ("10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "169.254.0.1")
    ),
]


@pytest.mark.parametrize(
    ("tunnel_type", "reply", "expected", "remarks"),
    GRANTS,
    ids=[f"{tunnel_type}: {reply[:70]!a}" for tunnel_type, reply, *_ in GRANTS],
)
def test_every_dialect_is_understood(
    tunnel_type: str, reply: str, expected: Grant, remarks: list[str]
) -> None:
    assert read(reply, tunnel_type) == (expected, remarks)


def test_the_other_end_has_the_pairs_turned_round() -> None:
    grant = granted("2001:db8:1::6", "2001:db8:1::5", prefixes=("2001:db8:3c3::/48",))
    other = Grant(
        SERVER,
        OWN,
        IPv6Address("2001:db8:1::5"),
        IPv6Address("2001:db8:1::6"),
        (IPv6Network("2001:db8:3c3::/48"),),
    )
    assert grant.turned() == other
    assert other.turned() == grant


def test_both_ends_may_be_on_loopback_where_the_server_is() -> None:
    loopback = IPv4Address("127.0.0.1")
    grant, remarks = read("127.0.0.1 127.0.0.1", "tunnelonly", own=loopback, server=loopback)
    assert grant == Grant(loopback, loopback)
    assert remarks == []


# --- over UDP ---------------------------------------------------------------------------------

KEY = "00112233445566778899aabbccddeeff"


@pytest.mark.hazard(70)
@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("udp=4029", None),  # an older server of ours
        (f"udp=4029 key={KEY}", bytes.fromhex(KEY)),
        (f"key={KEY.upper()},udp=4029", bytes.fromhex(KEY)),
    ],
)
def test_a_grant_over_udp_may_carry_a_key(words: str, key: bytes | None) -> None:
    grant, remarks = read(f"{PAIR} {words}", "tunnelonly", port=4028)
    assert grant == granted()._replace(ports=(4028, 4029), key=key)
    assert remarks == []
    assert grant.turned().turned() == grant


@pytest.mark.hazard(70)
@pytest.mark.parametrize(
    "words",
    [
        "key=",
        f"key={KEY[1:]}",
        f"key={KEY}0",
        f"key={KEY[1:]}g",
        f"key={KEY[1:]}\u0661",
        f"key={KEY} key={KEY}",
        f"key={KEY},key={KEY.upper()}",
        f"key={KEY} key=",
    ],
)
def test_an_odd_key_is_refused_and_not_shown(words: str) -> None:
    with pytest.raises(GrantError, match=r"^the key is not one of 32 hexadecimal digits$"):
        read(f"{PAIR} udp=4029 {words}", "tunnelonly", port=4028)


@pytest.mark.hazard(70)
def test_a_key_that_was_not_asked_for_is_ignored_and_not_shown() -> None:
    remarks = ["ignored: 'udp=4029'", "ignored: 'key=********'"]
    assert read(f"{PAIR} udp=4029 key={KEY}", "tunnelonly") == (granted(), remarks)
    with pytest.raises(GrantError, match=r"^'key=\*{8}' stands where an address is due$"):
        read(f"{PAIR} key={KEY}", "host")
    with pytest.raises(GrantError, match="no UDP port"):  # and nothing without a port
        read(f"{PAIR} key={KEY}", "tunnelonly", port=4028)


@pytest.mark.hazard(63, 70)
@pytest.mark.parametrize(
    ("words", "port"),
    [
        (f" key={KEY}", None),
        (f" udp=4029 key={KEY}", None),
        (f" key={KEY}", 4028),
        (f" key={KEY} udp=4029", 4028),
        (f" udp=4029 key={KEY.upper()}", 4028),
        (f" udp=4029 key={KEY} key={KEY}", 4028),
        (f" udp=4029 key={KEY[1:]}", 4028),
        (f" udp=4029 key={KEY} ", 4028),
        (f" udp=4029  key={KEY}", 4028),
    ],
)
def test_root_takes_a_key_in_one_spelling_and_does_not_show_it(
    words: str, port: int | None
) -> None:
    right = f"{PAIR} udp=4029 key={KEY}"
    assert accept(right, "tunnelonly", own=OWN, server=SERVER, port=4028).reply() == right
    with pytest.raises(GrantError) as caught:
        accept(f"{PAIR}{words}", "tunnelonly", own=OWN, server=SERVER, port=port)
    assert KEY[1:-1] not in str(caught.value).lower()


# --- NAT --------------------------------------------------------------------------------------


@pytest.mark.hazard(14, "K3")
def test_a_nat_is_told_in_one_message_with_both_addresses_and_the_ways_out() -> None:
    with pytest.raises(BehindNat) as caught:
        read("198.51.100.9 192.0.2.1", "tunnelonly")
    assert str(caught.value) == (
        "our address is 203.0.113.7, but the server sees 198.51.100.9: there is a NAT between;"
        " use -U -n (-n alone, if it passes protocol 41)"
    )


def test_behind_a_1_to_1_nat_the_outer_source_is_still_our_own() -> None:
    assert read("198.51.100.9 192.0.2.1", "tunnelonly", nat=True) == (granted(), [])
    own = IPv4Address("10.0.0.7")
    grant, _ = read("198.51.100.9 192.0.2.1", "tunnelonly", nat=True, own=own)
    assert (grant.local, grant.remote) == (own, SERVER)


def test_a_nat_excuses_no_nonsense() -> None:
    for nat in (True, False):
        with pytest.raises(GrantError):
            read("198.51.100.9 224.0.0.1", "tunnelonly", nat=nat)


# --- nonsense ---------------------------------------------------------------------------------

NO_PAIR = "the reply lacks the two IPv4 addresses"
NO_OTHER_END = "{} cannot be the other end of a tunnel"
NO_INNER = "{} cannot be an address of a tunnel"

# type, what stands behind +OK, what is said
REFUSED: list[tuple[str, str, str]] = [
    ("tunnelonly", "", NO_PAIR),
    ("host", "203.0.113.7", NO_PAIR),
    # hazard 8: words that are no addresses
    *(
        ("tunnelonly", f"{word} 192.0.2.1", f"{word!a} is no IPv4 address")
        for word in (
            *("tunnel.example.org", "$(reboot)", "`id`", "-alias", ";", "gif0", "203.0.113", "::1"),
            *("203.0.113.007", "0313.0.113.7", "0xcb.0.113.7", "3405803783", "203.0.113.7/32"),
            *("203.0.113.7:80", "\u00b2.0.0.1", "\x1b[2J", "203.0.113.256", "::ffff:203.0.113.7"),
        )
    ),
    *(
        ("tunnelonly", f"203.0.113.7 {word}", f"{word!a} is no IPv4 address")
        for word in ("2001:db8::1", "192.0.2.1;reboot", "192.0.2", "x" * 60)
    ),
    ("tunnelonly", f"203.0.113.7 {'x' * 61}", f"'{'x' * 60}...' is no IPv4 address"),
    *(
        ("host", f"{PAIR} {word} 2001:db8:1::5", f"{word!a} stands where an address is due")
        for word in (
            *("router.example.org", "$(reboot)", "-alias", ";", "gif0", "fe80::1%em0", "alias"),
            *("2001:db8:1::6%gif0", "prefixlen", "1280", "2001:db8:1::6;reboot", "\x1b[2J"),
        )
    ),
    (
        "host",
        f"{PAIR} 2001:db8:1::6 -alias",
        "'-alias' stands where an address is due",
    ),
    *(
        ("network", f"{PAIR} {word}", f"{word!a} stands where an address is due")
        for word in ("$(reboot)", "-alias", "default", "2001:db8::%em0/48", "2001:db8::/x")
    ),
    *(
        (tunnel_type, f"{PAIR} {word}", f"{word!a} is no IPv6 address or prefix")
        for tunnel_type in ("host", "network", "tunnelonly")
        for word in (
            *("2001:db8:1", "2001:db8::1::2", "2001:db8:::", "12345::", "2001:db8::/129", "1.2.3"),
            *("2001:db8::/", "/48", "2001:db8::/48/48", "2001:db8::/ffff:ffff::", "203.0.113.0/24"),
            *("203.0.113.7", ":", ".", "/"),
        )
    ),
    # hazard 7: too little, too much
    ("host", PAIR, "no inner addresses, though type host was asked for"),
    (
        "host",
        f"{PAIR} 2001:db8:3c3::/48",
        "no inner addresses, though type host was asked for",
    ),
    *(
        (tunnel_type, f"{PAIR} {words}", "more than one pair of inner addresses")
        for tunnel_type in ("host", "network")
        for words in (
            "2001:db8:1::6 2001:db8:1::5 2001:db8:2::6 2001:db8:2::5",
            "2001:db8:1::6 2001:db8:1::5 2001:db8:1::5 2001:db8:1::6",
            "2001:db8:1::6 2001:db8:1::5 2001:db8:1::7",
        )
    ),
    ("host", f"{PAIR} 2001:db8:1::6 2001:db8:1::6", "both inner addresses are 2001:db8:1::6"),
    # hazard 9: the other end
    *(
        ("tunnelonly", f"203.0.113.7 {address}", NO_OTHER_END.format(address))
        for address in (
            *("0.0.0.0", "0.0.0.1", "127.0.0.1", "127.255.255.254", "224.0.0.1", "239.255.255.255"),
            *("240.0.0.1", "255.255.255.255", "203.0.113.7"),
        )
    ),
    # hazard 10: the inner pair
    *(
        ("host", f"{PAIR} {words}", NO_INNER.format(address))
        for address in (
            *("::", "::1", "::2", "ff02::1", "ff0e::1", "fe80::1", "febf::1", "::192.0.2.1"),
            *("::ffff:192.0.2.1", "64:ff9b::c000:201"),
        )
        for words in (f"{address} 2001:db8:1::5", f"2001:db8:1::6 {address}", f"{address}/128")
    ),
    # hazard 11: the prefix
    *(
        ("network", f"{PAIR} {prefix}", f"{prefix} cannot be delegated: its length is not 16 to 64")
        for prefix in ("::/0", "2000::/3", "2000::/15", "2001:db8::/65", "2001:db8::/127")
    ),
    *(
        ("network", f"{PAIR} {prefix}", f"{prefix} cannot be delegated: it is not global unicast")
        for prefix in (
            *("fe80::/16", "fe80::/64", "ff00::/16", "ff02::/64", "fc00::/16", "fd00:1:2::/48"),
            *("::/16", "4000::/16", "64:ff9b::/48"),
        )
    ),
    (
        "network",
        f"{PAIR} 2001:db8:3c3::/48 ff02::/64",
        "ff02::/64 cannot be delegated: it is not global unicast",
    ),
]


@pytest.mark.hazard(7, 8, 9, 10, 11)
@pytest.mark.parametrize(
    ("tunnel_type", "reply", "message"),
    REFUSED,
    ids=[f"{tunnel_type}: {reply[:70]!a}" for tunnel_type, reply, _ in REFUSED],
)
def test_nonsense_is_refused_and_named(tunnel_type: str, reply: str, message: str) -> None:
    # NAT or not: then the first address does not matter, but it must be one.
    for nat in (True, False):
        with pytest.raises(GrantError) as caught:
            read(reply, tunnel_type, nat=nat)
        said = str(caught.value)
        assert said == _canonical(message)
        assert said.isprintable()


def _canonical(message: str) -> str:
    """A message as it stands when its address is written as `ipaddress` does."""
    word, _, rest = message.partition(" ")
    try:
        return f"{IPv6Address(word)} {rest}"
    except ValueError:
        return message


def test_an_end_that_is_ours_is_refused_behind_a_nat_too() -> None:
    own, server = IPv4Address("10.0.0.7"), IPv4Address("10.0.0.1")
    with pytest.raises(GrantError, match=r"^10\.0\.0\.7 cannot be the other end of a tunnel$"):
        read("198.51.100.9 10.0.0.7", "tunnelonly", own=own, server=server)


# --- whatever comes ---------------------------------------------------------------------------

types = st.sampled_from(wire.TYPES)
# Words that lead deep into the grammar, and any others; a line of the wire is Latin-1.
words = st.one_of(
    st.sampled_from(
        [
            *("203.0.113.7", "192.0.2.1", "2001:db8:1::6", "2001:db8:1::5", "2001:db8::/48"),
            *("2001:db8:1::6,2001:db8:1::5", "fe80::1%em0", "::/0", "gif0", ",", "-alias", "1.2.3"),
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=40),
    st.text("0123456789abcdef:./,%", max_size=40),
    st.ip_addresses().map(str),
)


@pytest.mark.hazard(8, "K2")
@settings(max_examples=200, deadline=None)
@given(st.lists(words, max_size=12), types, st.booleans())
def test_only_addresses_ever_come_out(said: list[str], tunnel_type: str, nat: bool) -> None:
    try:
        grant, remarks = read(" ".join(["203.0.113.7", "192.0.2.1", *said]), tunnel_type, nat=nat)
    except (GrantError, BehindNat) as error:
        remarks = [str(error)]
    else:
        assert type(grant.local) is type(grant.remote) is IPv4Address
        for inner in (grant.inner, grant.peer):
            assert inner is None or type(inner) is IPv6Address
            assert inner is None or (inner.scope_id is None and not inner.is_link_local)
        assert all(type(prefix) is IPv6Network for prefix in grant.prefixes)
        assert grant.local == OWN
    assert all(remark.isprintable() and len(remark) < 300 for remark in remarks)


@settings(max_examples=200, deadline=None)
@given(st.lists(words, max_size=4), types)
def test_any_words_are_a_grant_or_a_refusal(said: list[str], tunnel_type: str) -> None:
    try:
        grant, _ = parse(said, tunnel_type, own=OWN, server=SERVER, nat=False)
    except (GrantError, BehindNat):
        return
    assert grant.local == OWN


inner_addresses = st.ip_addresses(v=6, network="2000::/3").map(
    lambda address: IPv6Address(int(address))
)


@st.composite
def grants(draw: st.DrawFn, tunnel_type: str) -> Grant:
    """What a sane server may grant for a type."""
    inner: tuple[IPv6Address | None, ...] = (None, None)
    prefixes: list[IPv6Network] = []
    if tunnel_type == "host" or (tunnel_type != "tunnelonly" and draw(st.booleans())):
        inner = (draw(inner_addresses), draw(st.none() | inner_addresses))
        assume(inner[0] != inner[1])
    if tunnel_type in ("network", "tunnelroute"):
        networks = st.tuples(inner_addresses, st.integers(16, 64)).map(
            lambda each: IPv6Network(each, strict=False)
        )
        prefixes = draw(st.lists(networks, max_size=4, unique=True))
    ports = draw(st.none() | st.tuples(st.just(4028), st.integers(1, 65535)))
    key = draw(st.none() | st.binary(min_size=16, max_size=16)) if ports else None
    return Grant(OWN, SERVER, inner[0], inner[1], tuple(prefixes), ports, key)


@settings(max_examples=200, deadline=None)
@given(types.flatmap(lambda each: st.tuples(st.just(each), grants(each))))
def test_what_our_server_grants_our_client_reads(case: tuple[str, Grant]) -> None:
    tunnel_type, grant = case
    port = grant.ports and grant.ports[0]
    assert read(grant.reply(), tunnel_type, port=port)[0] == grant
    assert accept(grant.reply(), tunnel_type, own=OWN, server=SERVER, port=port) == grant
