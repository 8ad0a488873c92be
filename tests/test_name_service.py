"""A server's name, and every answer that a name service may give."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.internet import SERVER4, Internet
from lab.snapshot import difference
from tests.running import Program, names, ping, serve

pytestmark = [pytest.mark.lab, pytest.mark.hazard(27)]

NAMES = {
    "none.example.org": "NXDOMAIN",
    "broken.example.org": "SERVFAIL",
    "half.example.org": "SERVFAIL,2001:db8:0:ff::1",
    "silent.example.org": "",
    "six.example.org": "2001:db8:0:ff::1",
    # The router has no server, and refuses.
    "many.example.org": f"203.0.113.1,{SERVER4}",
    "both.example.org": f"2001:db8:0:ff::1,{SERVER4}",
    "dead.example.org": "203.0.113.1,203.0.113.1,192.0.2.254",
}
FAILED, TRY_AGAIN = 1, 75


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    """An internet with a server, and a resolver on the client that knows these names."""
    with Internet() as internet, serve(internet) as server:
        server.wait_for("listening")
        auth = "".join(f"{name}:itojun:secret\n" for name in NAMES)
        internet.client.write("/usr/local/etc/dtcpc.auth", auth)
        with names(internet.client, NAMES):
            before = internet.client.snapshot()
            yield internet
            assert difference(before, internet.client.snapshot()) == []


def _client(net: Internet, name: str, *words: str) -> Program:
    return Program(net.client, "dtcpc", "-u", "itojun", "-t", "host", *words, name)


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("none.example.org", FAILED, "Name or service not known"),
        ("six.example.org", FAILED, "has IPv6 addresses only; DTCP is spoken over IPv4"),
        ("broken.example.org", TRY_AGAIN, "Temporary failure in name resolution"),
        ("half.example.org", TRY_AGAIN, "Temporary failure in name resolution"),
        ("silent.example.org", TRY_AGAIN, "Temporary failure in name resolution"),
    ],
)
def test_what_will_pass_is_told_from_what_will_not(
    net: Internet, name: str, status: int, why: str
) -> None:
    with _client(net, name) as client:
        assert client.status() == status
        assert client.lines == [f"dtcpc: {name}: {why}"]


@pytest.mark.parametrize("name", ["many.example.org", "both.example.org"])
def test_every_address_is_tried_until_one_answers(net: Internet, name: str) -> None:
    with _client(net, name) as client:
        client.wait_for("up after")
        assert ping(net.client)
        assert client.end() == 0
    tried = [line for line in client.lines if "logging in" in line]
    addresses = NAMES[name].replace("2001:db8:0:ff::1,", "").split(",")
    assert {line.split("(")[1].split(")")[0] for line in tried} <= {*addresses}
    assert f"({SERVER4})" in tried[-1]


def test_one_that_answers_and_grants_nothing_does_not_keep_us_from_the_others(
    net: Internet,
) -> None:
    scenes = json.dumps({"20200": [["end"]]})
    with Program(net.router, "tests/servers", "hostile", scenes) as first:
        first.wait_for("^ready$")
        with _client(net, "many.example.org", "-l") as client:
            client.wait_for("the server closed the connection; trying again at once")
            client.wait_for("up after")
            assert client.end() == 0


def test_when_none_answers_each_is_named_once(net: Internet) -> None:
    with _client(net, "dead.example.org") as client:
        assert client.status() == TRY_AGAIN
    for address in ("203.0.113.1", "192.0.2.254"):
        assert client.lines[-1].count(f"({address}) port 20200: Connection refused") == 1


@pytest.mark.parametrize("name", ["none.example.org", "broken.example.org"])
def test_with_l_neither_is_the_end(net: Internet, name: str) -> None:
    with _client(net, name, "-l") as client:
        client.wait_for("trying again at once")
        client.wait_for("trying again in [12] s")
        assert client.end() == 0
