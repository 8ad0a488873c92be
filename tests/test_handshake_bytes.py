"""Whatever bytes stand where a handshake should: it fails as documented, or goes on waiting."""

from __future__ import annotations

import ssl
from collections import Counter
from pathlib import Path

import pytest
from dtcp import tls, wire

from tests.certificates import self_signed
from tests.conversations import chance, client_says, spoilt

HANDSHAKES, CONVERSATIONS = 600, 3000


@pytest.mark.hazard(83)
def test_spoilt_handshakes(tmp_path: Path) -> None:
    ours = self_signed(tmp_path)
    context = tls.for_server(str(ours.path), str(ours.key))
    seen: Counter[str] = Counter()
    for number in range(HANDSHAKES):
        r = chance("handshake", number)
        client = tls.for_client(pinned=True)
        if r.random() < 0.5:
            client.maximum_version = ssl.TLSVersion.TLSv1_2
        there, here = tls.Tls(client), tls.Tls(context, server_side=True)
        try:
            for _ in range(4):
                data = there.take()
                if r.random() < 0.3:
                    data = spoilt(r, data)
                at = r.randrange(len(data) + 1)
                for part in filter(None, (data[:at], data[at:])):
                    assert here.receive(part) == b""
                if answer := here.take():
                    there.receive(answer)
            came = "done" if here.done else "waits"
        except tls.TlsError as error:
            came = str(error).partition(":")[0]
        seen[came] += 1
    assert set(seen) <= {"done", "waits", "the TLS handshake has failed", "TLS has failed"}
    assert len(seen) >= 3
    assert seen["done"] > HANDSHAKES / 10


@pytest.mark.hazard(83)
def test_a_session_that_offers_tls_says_nothing_in_the_clear_behind_it() -> None:
    seen: Counter[str] = Counter()
    for number in range(CONVERSATIONS):
        r = chance("stls", number)
        challenge = r.randbytes(16).hex().upper()
        session = wire.Session(
            "dtcps", challenge, lambda user: None, 0.0, offers_tls=True, insists=r.random() < 0.5
        )
        said = [piece.data for piece in client_says(r, challenge) if piece.data]
        said.insert(r.randrange(3), b"stls\r\n")
        if r.random() < 0.5:
            at = r.randrange(len(said))
            said[at:] = [b"".join(said[at:])]
        came = "open"
        for data in said:
            try:
                events = session.receive(data, 0.0)
            except wire.Injected:
                came = "injected"
            except wire.ProtocolError:
                came = "protocol"
            else:
                assert len(events) < 2
                came = type(events[0]).__name__ if events else came
            if came != "open":
                break
        seen[came] += 1
        said_last = session.take().decode().splitlines()[-1]
        begins = said_last == f"+OK {wire.BEGIN_TLS}"
        assert begins == (came == "StartTls")
        if begins:
            session.close(wire.BUSY)
            assert session.take() == b""
            assert session.tick(wire.AUTH_TIME) == []  # it is over
    assert {"open", "injected", "protocol", "StartTls", "Ended"} <= set(seen)
    assert "Asked" not in seen
