"""dtcpc --tls: with the right server the tunnel comes up; with any other, nothing is said to it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lab.capture import Capture
from lab.internet import SERVER4, SERVER_NAME, Internet
from lab.snapshot import Snapshot, difference
from tests.certificates import Authority, Certificate, self_signed, that_ends_never
from tests.running import (
    ROOT,
    SERVER,
    Program,
    identity,
    ping,
    serve,
    wait_until,
)
from tests.test_speaker import NOBODY, child_of, status_of

pytestmark = pytest.mark.lab

CONFIG = "/usr/local/etc/dtcps.conf"
FAILED, TRY_AGAIN, NOT_ALLOWED = 1, 75, 77


@pytest.fixture
def good(net: Internet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certificate:
    """What the server has; the client's system trusts who has signed it, and nobody else."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.store))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    certificate = authority.certificate()
    give(net, certificate)
    return certificate


def give(net: Internet, certificate: Certificate, more: str = "") -> None:
    text = f"tls-certificate = {certificate.path}\ntls-key = {certificate.key}\n{more}"
    net.server.write(CONFIG, text)


def login(net: Internet, *words: str) -> Program:
    return Program(net.client, "dtcpc", "-d", "-u", "itojun", "-t", "host", *words, SERVER)


def _logins(client: Program) -> int:
    """How many have come to a tunnel."""
    return sum("up after" in line for line in client.lines)


# --- with the right server ----------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.parametrize("is_pinned", [False, True])
def test_the_tunnel_comes_up(net: Internet, good: Certificate, is_pinned: bool) -> None:
    words = ("--tls-fingerprint", good.fingerprint) if is_pinned else ("--tls",)
    with serve(net) as server:
        before = net.client.snapshot()
        with login(net, *words) as client:
            client.wait_for("packets pass")
            assert ping(net.client)
            assert client.end() == 0
        server.wait_for("itojun: down: the client said quit")
    said = [line for line in client.lines if " >> " in line or "TLS" in line or "+OK" in line]
    assert [line.partition(": ")[2][:7] for line in said] == [
        "<< +OK ",
        ">> stls",
        "<< +OK ",
        "TLSv1.3",
        "<< +OK ",
        ">> tunn",
        "<< +OK ",
        ">> quit",
    ]
    assert difference(before, net.client.snapshot()) == []


def test_nothing_of_the_login_is_in_the_clear(net: Internet, good: Certificate) -> None:
    with serve(net), net.router.capture("eth0", "tcp") as capture:
        with login(net, "--tls") as client:
            client.wait_for("up after")
            assert client.end() == 0
        wait_until("what went by", lambda: b"STLS" in _payload(capture))
    assert b"itojun" not in _payload(capture)
    assert b"2001:db8:1::6" not in _payload(capture)


def _payload(capture: Capture) -> bytes:
    return b"".join(packet.payload for packet in capture.packets)


@pytest.mark.hazard(63)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_the_process_has_no_more_than_without(net: Internet, good: Certificate) -> None:
    """Nor has one that takes the first one's place, which reads the store of certificates anew."""
    with serve(net), login(net, "--tls", "-l") as client:
        client.wait_for("up after")
        first = child_of(client)
        for _ in range(2):
            speaker = child_of(client)
            status = status_of(speaker)
            assert set(status["Uid"]) == {str(NOBODY)}
            assert int(status["CapEff"][0], 16) == 0
            assert sorted(each.name for each in Path(f"/proc/{speaker}/fd").iterdir()) == ["0", "1"]
            if speaker == first:
                net.client.run(["kill", "-9", str(first)])
                wait_until("the next login", lambda: _logins(client) == 2)
        assert speaker != first
        assert client.end() == 0


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_without_it_nothing_of_it_is_in_memory(net: Internet, good: Certificate) -> None:
    with serve(net), login(net) as client:
        client.wait_for("up after")
        pids = (client.pid, child_of(client))
        assert not [pid for pid in pids if "libssl" in Path(f"/proc/{pid}/maps").read_text()]
        assert client.end() == 0


def test_a_tunnel_is_handed_over_to_the_next_login(net: Internet, good: Certificate) -> None:
    with serve(net), login(net, "--tls", "-l") as client:
        client.wait_for("packets pass")
        before = identity(net.client, "gif0")
        client.send(signal.SIGHUP)
        wait_until("the next login", lambda: _logins(client) == 2)
        assert identity(net.client, "gif0") == before
        assert ping(net.client)
        assert client.end() == 0


def test_the_way_is_tested_stage_by_stage(net: Internet, good: Certificate) -> None:
    words = ["-u", "itojun", "-t", "host", "--tls", "--test", SERVER]
    with serve(net):
        done = net.client.run([sys.executable, str(ROOT / "dtcpc.py"), *words], timeout=60)
    stages = {line.split()[0]: line for line in done.stdout.splitlines() if line[:1] != " "}
    assert list(stages)[:5] == ["name", "TCP", "greeting", "TLS", "login"]
    assert "TLSv1.3, TLS_" in stages["TLS"]
    assert "certificate valid for " in stages["TLS"]


def test_a_server_that_requires_it_tells_who_comes_without(
    net: Internet, good: Certificate
) -> None:
    give(net, good, "tls-required = yes\n")
    with serve(net):
        with login(net) as client:
            client.wait_for("the server refuses: TLS is required here; use --tls")
            assert client.status() == NOT_ALLOWED
        with login(net, "--tls") as client:
            client.wait_for("up after")
            assert client.end() == 0


def test_a_server_may_have_any_name(net: Internet, good: Certificate) -> None:
    net.client.run(["sh", "-c", f"echo {SERVER4} None >>/etc/hosts"])
    refusal = "the server's certificate is refused: Hostname mismatch, certificate is not valid for"
    with serve(net):
        net.client.write("/usr/local/etc/dtcpc.auth", "None:itojun:secret\n")
        with Program(net.client, "dtcpc", "-u", "itojun", "--tls", "None") as client:
            client.wait_for(f"{refusal} 'None'")
            assert client.status() == NOT_ALLOWED


# --- with any other -----------------------------------------------------------------------------

GREETING = f"+OK {'0' * 32} dtcps 9.9 tunnel server"
OFFER = [["say", f"{GREETING} STLS\r\n"], ["hear"]]
BEGUN = [*OFFER, ["say", "+OK begin TLS\r\n"]]
REFUSED = "the server's certificate is refused: "
SLOW = "no answer: the TLS handshake was not over in time"


class Case(NamedTuple):
    """What a server does, and what the user gets for it: a status, and the end of a line."""

    scene: list[list[Any]]
    status: int
    why: str
    words: tuple[str, ...] = ("--tls",)


def cases(directory: Path, authority: Authority) -> dict[str, Case]:
    good, own = authority.certificate(), self_signed(directory)
    expired = authority.certificate(ends="20210101000000Z")
    early = authority.certificate(begins="20900101000000Z")
    other = authority.certificate("other.example.org")
    never = that_ends_never(good)

    def tls(certificate: Certificate, count: int = -1) -> list[list[Any]]:
        return [*BEGUN, ["tls", str(certificate.path), str(certificate.key), count]]

    def refused(certificate: Certificate, why: str, *words: str) -> Case:
        why = f"{REFUSED}{why}; its fingerprint is {certificate.fingerprint}"
        scene = [*tls(certificate), ["silent"]]
        return Case(scene, NOT_ALLOWED, why, words or ("--tls",))

    return {
        "no offer": Case(
            [["say", f"{GREETING}\r\n"], ["silent"]],
            NOT_ALLOWED,
            "the server offers no TLS, on which --tls insists",
        ),
        "no": Case(
            [*OFFER, ["say", "-ERR invalid command\r\n"], ["silent"]],
            NOT_ALLOWED,
            "the server refuses TLS: invalid command",
        ),
        "busy": Case(
            [*OFFER, ["say", "-ERR server is going down\r\n"], ["silent"]],
            TRY_AGAIN,
            "the server refuses: server is going down",
        ),
        "wrong name": refused(
            other, f"Hostname mismatch, certificate is not valid for '{SERVER_NAME}'"
        ),
        "expired": refused(expired, "certificate has expired"),
        "not yet valid": refused(early, "certificate is not yet valid"),
        "self-signed": refused(own, "self-signed certificate"),
        "not the pinned one": refused(
            *(good, "not that of --tls-fingerprint", "--tls-fingerprint", own.fingerprint)
        ),
        "a pinned one without an end": Case(
            [*tls(never), ["silent"]],
            FAILED,
            "the TLS handshake has failed: the certificate makes no sense: "
            "'never!!!!!!!!!!' is no time",
            ("--tls-fingerprint", never.fingerprint),
        ),
        "injected": Case(
            [*OFFER, ["say", f"+OK begin TLS\r\n{GREETING}\r\n"], ["silent"]],
            FAILED,
            "unexpected data before the TLS handshake",
        ),
        # In answer to the client's first words: together with what comes before it was injected.
        "garbage": Case(
            [*tls(good, 0), ["say", "+OK no TLS at all\r\n"], ["silent"]],
            FAILED,
            "the TLS handshake has failed: wrong version number",
        ),
        "no greeting behind it": Case(
            [*tls(good), ["say", "hello\r\n"], ["silent"]], FAILED, "this is no DTCP server"
        ),
        "an end behind the handshake": Case(
            [*tls(good), ["end"]], TRY_AGAIN, "the server closed the connection"
        ),
        "an end before the handshake": Case(
            [*tls(good, 0), ["end"]],
            TRY_AGAIN,
            "no answer: the TLS handshake was closed by the server",
        ),
        "an end in the handshake": Case(
            [*tls(good, 100), ["end"]],
            TRY_AGAIN,
            "no answer: the TLS handshake was closed by the server",
        ),
        "a reset in the handshake": Case(
            [*tls(good, 100), ["reset"]], TRY_AGAIN, "Connection reset by peer"
        ),
        "no reply": Case(
            [*OFFER, ["silent"]],
            TRY_AGAIN,
            "no answer: the reply to stls did not come within 30 s",
        ),
        "no handshake": Case([*BEGUN, ["silent"]], TRY_AGAIN, SLOW),
        "a part of a handshake": Case([*tls(good, 100), ["silent"]], TRY_AGAIN, SLOW),
        "no greeting": Case(
            [*tls(good), ["silent"]],
            TRY_AGAIN,
            "no answer: the greeting did not come within 30 s",
        ),
    }


NAMES = (
    "no offer", "no", "busy", "wrong name", "expired", "not yet valid", "self-signed",
    "not the pinned one", "a pinned one without an end", "injected", "garbage",
    "no greeting behind it", "an end behind the handshake", "an end before the handshake",
    "an end in the handshake", "a reset in the handshake", "no reply", "no handshake",
    "a part of a handshake", "no greeting",
)  # fmt: skip


class Lab(NamedTuple):
    """A client for each case, all at once: some need half a minute to give up."""

    net: Internet
    server: Program
    before: Snapshot
    cases: dict[str, Case]
    clients: dict[str, Program]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("certificates")
    authority = Authority(directory)
    all_cases = cases(directory, authority)
    assert tuple(all_cases) == NAMES
    scenes = {20301 + place: case.scene for place, case in enumerate(all_cases.values())}
    with Internet() as net, ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SSL_CERT_FILE", str(authority.store))
        patch.setenv("SSL_CERT_DIR", str(directory / "none"))
        net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:secret\n")
        server = Program(net.server, "tests/servers", "hostile", json.dumps(scenes))
        stack.enter_context(server).wait_for("^ready$")
        before = net.client.snapshot()
        clients = {}
        for port, (name, case) in zip(scenes, all_cases.items(), strict=True):
            words = ("-u", "itojun", "-t", "host", "-p", str(port), "-f", f"/run/{port}.pid")
            program = Program(net.client, "dtcpc", *words, *case.words, SERVER)
            clients[name] = stack.enter_context(program)
        yield Lab(net, server, before, all_cases, clients)


@pytest.mark.parametrize("name", NAMES)
def test_one_line_the_status_and_no_digest(lab: Lab, name: str) -> None:
    case, client = lab.cases[name], lab.clients[name]
    port = 20301 + NAMES.index(name)
    assert client.status(60) == case.status
    where = f"{SERVER_NAME} ({SERVER4}) port {port}"
    assert client.lines == [
        f"dtcpc: logging in to {where} as itojun",
        f"dtcpc: {where}: {case.why}",
    ]
    lab.server.wait_for(f"^{port} end$")
    assert not [
        x for x in lab.server.lines if x.startswith(f"{port} heard") and "tunnel itojun" in x
    ]


def test_and_none_of_them_has_changed_the_host(lab: Lab) -> None:
    for client in lab.clients.values():
        client.status(60)
    assert difference(lab.before, lab.net.client.snapshot()) == []
