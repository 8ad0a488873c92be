"""TLS as bytes, and the words that lead to it: who is trusted, and what counts as said before."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import pytest
from dtcp import tls, wire
from dtcp.tls import Tls, TlsError, Untrusted
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.certificates import NAME, Authority, Certificate, self_signed

CHALLENGE = "0B1517C87D516A5FA65BED722D51A04F"
GREETING = f"+OK {CHALLENGE} dtcps 9.9 tunnel server STLS\r\n".encode()
BEGIN = b"+OK begin TLS\r\n"


class Certificates(NamedTuple):
    good: Certificate
    expired: Certificate
    early: Certificate  # not yet valid
    other: Certificate  # for another name
    address: Certificate
    own: Certificate  # self-signed


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificates]:
    """Of an authority that is all that the system trusts."""
    directory = tmp_path_factory.mktemp("certificates")
    authority = Authority(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority.store))
        patch.setenv("SSL_CERT_DIR", str(directory / "none"))
        yield Certificates(
            authority.certificate(),
            authority.certificate(ends="20210101000000Z"),
            authority.certificate(begins="20900101000000Z"),
            authority.certificate("other.example.org"),
            authority.certificate("192.0.2.1"),
            self_signed(directory),
        )


def serve(certificate: Certificate) -> Tls:
    context = tls.for_server(str(certificate.path), str(certificate.key))
    return Tls(context, server_side=True)


def client(name: str | None = NAME, pinned: str | None = None) -> Tls:
    return Tls(tls.for_client(pinned=pinned is not None), name=name, pinned=pinned)


def exchange(one: Tls, other: Tls) -> tuple[bytes, bytes]:
    """Carry bytes until there are no more; what each has said to the other, decrypted."""
    heard = [b"", b""]
    while said := (one.take(), other.take()):
        if said == (b"", b""):
            break
        for place, (end, data) in enumerate(((other, said[0]), (one, said[1]))):
            if data:
                heard[place] += end.receive(data)
    return heard[0], heard[1]


# --- who is trusted -----------------------------------------------------------------------------


def test_a_certificate_of_the_store_with_the_right_name(certificates: Certificates) -> None:
    one, other = client(), serve(certificates.good)
    exchange(one, other)
    assert one.done
    assert other.done
    assert one.protocol == "TLSv1.3"
    assert one.cipher.startswith("TLS_")
    assert tls.fingerprint(one.certificate) == certificates.good.fingerprint
    one.send(b"tunnel")
    other.send(b"+OK")
    assert exchange(one, other) == (b"tunnel", b"+OK")
    one.close()
    exchange(one, other)
    assert other.closed


def test_a_certificate_for_an_address(certificates: Certificates) -> None:
    one, other = client("192.0.2.1"), serve(certificates.address)
    exchange(one, other)
    assert one.done


@pytest.mark.parametrize("kind", ["own", "expired", "other"])
def test_for_a_pinned_certificate_nothing_else_counts(
    certificates: Certificates, kind: str
) -> None:
    certificate: Certificate = getattr(certificates, kind)
    one, other = client(None, certificate.fingerprint), serve(certificate)
    exchange(one, other)
    assert one.done


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("expired", "certificate has expired"),
        ("early", "certificate is not yet valid"),
        ("other", f"Hostname mismatch, certificate is not valid for '{NAME}'"),
        ("address", f"Hostname mismatch, certificate is not valid for '{NAME}'"),
        ("own", "self-signed certificate"),
    ],
)
def test_any_other_is_refused_and_shown(certificates: Certificates, kind: str, why: str) -> None:
    certificate: Certificate = getattr(certificates, kind)
    one, other = client(), serve(certificate)
    with pytest.raises(Untrusted) as refused:
        exchange(one, other)
    known = certificate.fingerprint
    text = f"the server's certificate is refused: {why}; its fingerprint is {known}"
    # OpenSSL 1.1.1 writes "self signed".
    assert str(refused.value).replace("self signed", "self-signed") == text
    assert not one.done


def test_another_than_the_pinned_one_is_refused_before_our_end_of_the_handshake(
    certificates: Certificates,
) -> None:
    one, other = client(None, certificates.good.fingerprint), serve(certificates.own)
    with pytest.raises(Untrusted, match="not that of --tls-fingerprint") as refused:
        exchange(one, other)
    assert certificates.own.fingerprint in str(refused.value)
    assert one.take() == b""
    one.send(b"tunnel")
    one.close()
    assert one.take() == b""
    assert not other.done


def test_a_directory_of_certificates_is_read_as_well(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.symlink(os.environ["SSL_CERT_FILE"], tmp_path / "0123abcd.0")
    (tmp_path / "89abcdef.0").write_text("nothing that anybody can use")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    one, other = client(), serve(certificates.good)
    exchange(one, other)
    assert one.done


# --- what may arrive ----------------------------------------------------------------------------


def test_bytes_may_arrive_in_any_pieces(certificates: Certificates) -> None:
    one, other = client(), serve(certificates.good)
    for _ in range(10):
        for end, data in ((other, one.take()), (one, other.take())):
            for at in range(len(data)):
                end.receive(data[at : at + 1])
    assert one.done
    assert other.done


def test_an_early_end_is_an_end(certificates: Certificates) -> None:
    one, other = client(), serve(certificates.good)
    other.receive(one.take())
    one.receive(other.take()[:100])
    assert one.receive(b"") == b""
    assert one.closed
    assert not one.done


def test_an_end_without_a_word_is_an_end(certificates: Certificates) -> None:
    one, other = client(), serve(certificates.good)
    exchange(one, other)
    assert one.receive(b"") == b""
    assert one.closed


@given(garbage=st.binary(min_size=1, max_size=200))
@settings(deadline=None)
def test_garbage_is_an_error_or_not_enough(garbage: bytes) -> None:
    one = Tls(tls.for_client(pinned=True), pinned=f"sha256:{'0' * 64}")
    with contextlib.suppress(TlsError):
        one.receive(garbage)
        one.receive(b"")
    assert not one.done


def test_a_record_that_was_changed_on_the_way_is_an_error(certificates: Certificates) -> None:
    one, other = client(), serve(certificates.good)
    exchange(one, other)
    one.send(b"tunnel")
    record = bytearray(one.take())
    record[-1] ^= 1
    with pytest.raises(TlsError, match="TLS has failed"):
        other.receive(bytes(record))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_resumed(certificates: Certificates, version: ssl.TLSVersion) -> None:
    context = tls.for_client(pinned=False)
    context.maximum_version = version
    server = tls.for_server(str(certificates.good.path), str(certificates.good.key))
    session = None
    for _ in range(2):
        arrived, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        one = context.wrap_bio(arrived, to_send, server_hostname=NAME, session=session)
        other = Tls(server, server_side=True)
        while not (_is_done(one) and other.done):
            if data := to_send.read():
                other.receive(data)
            arrived.write(other.take())
        assert not one.session_reused
        session = one.session


def _is_done(one: ssl.SSLObject) -> bool:
    try:
        one.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def test_nobody_negotiates_anew(certificates: Certificates) -> None:
    """A server of TLS 1.2 that asks for it gets an alert, and no second handshake."""
    words = ["openssl", "s_server", "-tls1_2", "-accept", "127.0.0.1:0", "-naccept", "1"]
    words += ["-cert", str(certificates.good.path), "-key", str(certificates.good.key)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = 0
        while not port:
            found = re.search(rb"ACCEPT .*:([0-9]+)", server.stdout.readline())
            port = int(found[1]) if found else 0
        one = client()
        with socket.create_connection(("127.0.0.1", port), 15) as wire:
            wire.sendall(one.take())
            while not one.done:
                one.receive(wire.recv(4096))
                wire.sendall(one.take())
            assert one.protocol == "TLSv1.2"
            server.stdin.write(b"R\n")
            server.stdin.flush()
            with contextlib.suppress(TlsError):
                one.receive(wire.recv(4096))
            answer = one.take()
        assert answer[:1] == b"\x15"  # alert, in RFC 5246, section 6.2.1; 22 would be a handshake
        server.kill()


# --- certificates -------------------------------------------------------------------------------


def test_until_when_a_certificate_is_valid(certificates: Certificates) -> None:
    """As UTCTime until 2049, as GeneralizedTime from then on."""
    for certificate in certificates:
        words = ["openssl", "x509", "-in", str(certificate.path), "-noout", "-enddate"]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        until = datetime.strptime(said, "notAfter=%b %d %H:%M:%S %Y GMT")
        certified = tls.of_file(str(certificate.path))
        assert tls.valid_until(certified) == until.replace(tzinfo=timezone.utc).timestamp()


@given(data=st.binary(max_size=300))
def test_what_is_no_certificate_is_valid_until_never(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        tls.valid_until(data)


@given(at=st.integers(0, 250), octet=st.integers(0, 255))
@settings(deadline=None)
def test_nor_is_one_that_was_changed(certificates: Certificates, at: int, octet: int) -> None:
    changed = bytearray(tls.of_file(str(certificates.good.path)))
    changed[at] = octet
    with contextlib.suppress(ValueError):
        tls.valid_until(bytes(changed))


def test_files_that_are_no_use(certificates: Certificates, tmp_path: Path) -> None:
    good, own = certificates.good, certificates.own
    none, text, locked = (str(tmp_path / each) for each in ("none.pem", "text", "locked.key"))
    Path(text).write_text("nothing of that kind")
    words = ["pkey", "-in", str(good.key), "-aes256", "-passout", "pass:x", "-out", locked]
    subprocess.run(["openssl", *words], check=True)
    for certificate, key, why in (
        (none, str(good.key), f"{none}: No such file or directory"),
        (str(good.path), none, f"{none}: No such file or directory"),
        (text, str(good.key), f"{text}, {good.key}: no certificate and key in PEM"),
        (str(good.path), text, f"{good.path}, {text}: no certificate and key in PEM"),
        (str(good.path), str(own.key), f"{own.key}: not the key of {good.path}"),
        (str(good.path), locked, f"{locked}: the key must not be encrypted"),
    ):
        with pytest.raises(TlsError, match=f"^{re.escape(why)}$"):
            tls.for_server(certificate, key)
    with pytest.raises(TlsError, match="no certificate in PEM"):
        tls.of_file(text)


# --- the words that lead to it ------------------------------------------------------------------


def insisting() -> wire.Client:
    return wire.Client("itojun", "host", 0.0, tls=True)


@pytest.mark.parametrize("size", [1, 1000])
def test_the_client_says_stls_and_nothing_else(size: int) -> None:
    end = insisting()
    events = []
    for data in (GREETING, BEGIN):
        for at in range(0, len(data), size):
            events += end.receive(data[at : at + size], 1.0)
    assert events == [wire.StartTls()]
    end.quit()
    assert end.take() == b"stls\r\n"
    assert end.receive(b"+OK anything\r\n", 2.0) == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (GREETING.replace(b" STLS", b""), "the server offers no TLS, on which --tls insists"),
        (GREETING.replace(b"STLS", b"XSTLS"), "the server offers no TLS, on which --tls insists"),
        (GREETING + b"-ERR no\x1b\r\n", None),
        (b"-ERR busy\r\n", None),
    ],
)
def test_without_an_offer_nothing_is_said(data: bytes, why: str | None) -> None:
    end = insisting()
    [event] = end.receive(data, 1.0)
    assert event == wire.Insecure(why) if why else isinstance(event, wire.Refused)
    assert end.take() == b""


def test_a_refusal_is_the_end() -> None:
    end = insisting()
    end.receive(GREETING, 1.0)
    reason = "the server refuses TLS: invalid\\x1b command"
    assert end.receive(b"-ERR invalid\x1b command\r\n", 1.0) == [wire.Insecure(reason)]
    assert end.take() == b"stls\r\n"


def test_a_server_that_is_busy_may_take_stls_another_time() -> None:
    end = insisting()
    end.receive(GREETING, 1.0)
    [event] = end.receive(b"-ERR server is going down\r\n", 1.0)
    assert event == wire.Refused("server is going down", at_greeting=False)
    assert event.temporary
    assert end.take() == b"stls\r\n"


@pytest.mark.parametrize("injected", [b"+", b"\x16\x03\x03", GREETING])
def test_what_comes_before_the_handshake_ends_it(injected: bytes) -> None:
    """Or somebody on the way could have us take his words for the server's (CVE-2011-0411)."""
    end = insisting()
    end.receive(GREETING, 1.0)
    with pytest.raises(wire.ProtocolError, match="unexpected data before the TLS handshake"):
        end.receive(BEGIN + injected, 1.0)
    assert end.take() == b"stls\r\n"


def test_no_answer_to_stls() -> None:
    end = insisting()
    end.receive(GREETING, 1.0)
    assert end.tick(29.0) == []
    reason = "no answer: the reply to stls did not come within 30 s"
    assert end.tick(30.0) == [wire.Lost(reason)]


def test_who_does_not_ask_for_it_says_what_he_always_said() -> None:
    end = wire.Client("itojun", "host", 0.0)
    assert end.receive(GREETING, 1.0) == [wire.Challenged(CHALLENGE)]
    assert end.hands_over
    assert end.take() == b""
    end.answer("F" * 32)
    assert end.take() == f"tunnel itojun {'F' * 32} host\r\n".encode()
