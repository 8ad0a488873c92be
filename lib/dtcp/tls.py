"""TLS as bytes, for both ends of a conversation: what follows `stls` (see dtcp.wire).

As POP3 has it (RFC 2595): the connection begins in the clear, and once the server has taken `stls`
everything goes through TLS, with a fresh greeting first.  Nothing here knows a socket: the owner
of a `Tls` feeds it the bytes that arrived, and sends what `take()` returns.

Importing this takes time and memory (the ssl module, OpenSSL), so it is imported where TLS is used.
"""

from __future__ import annotations

import calendar
import contextlib
import hashlib
import os
import re
import ssl

from dtcp.errors import Error

# Files of a directory of certificates, as openssl-rehash(1) names them; others are not looked at.
_HASHED = r"[0-9a-f]{8}\.[0-9]+"


class TlsError(Error):
    """The handshake, or the encrypted connection, has failed."""


class Untrusted(TlsError):
    """The peer is not who it must be; the text says why, and which certificate it has."""


# --- certificates -----------------------------------------------------------------------------


def fingerprint(certificate: bytes) -> str:
    """What identifies a certificate (DER): `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(certificate).hexdigest()}"


def valid_until(certificate: bytes) -> float:
    """When a certificate (DER) expires, in seconds since the Epoch (RFC 5280, section 4.1).

    Raises ValueError: it is no certificate.
    """
    # Certificate and TBSCertificate are sequences; version (which may be missing), serial number,
    # signature and issuer come before the validity, whose second element is what we look for.
    _, at, end = _element(certificate, 0)
    _, at, end = _element(certificate, at)
    tag, _, after = _element(certificate, at)
    at = after if tag == 0xA0 else at
    for _ in range(3):
        _, _, at = _element(certificate, at)
    _, at, end = _element(certificate, at)
    _, _, at = _element(certificate, at)
    tag, start, end = _element(certificate, at)
    text = certificate[start:end].decode("ascii")
    if tag == 0x17:  # UTCTime, with two digits of the year: 1950 to 2049
        text = ("19" if text >= "5" else "20") + text
    found = re.fullmatch(r"([0-9]{4})" + 5 * "([0-9]{2})" + "Z", text)
    if not found:
        raise ValueError(f"{text!a} is no time")
    return float(calendar.timegm(tuple(map(int, found.groups()))))


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """An element of DER (X.690, section 8.1): its tag, and where its contents begin and end."""
    try:
        tag, length, start = der[at], der[at + 1], at + 2
    except IndexError:
        raise ValueError("cut short") from None
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(der[start : start + count], "big"), start + count
    if start + length > len(der):
        raise ValueError("cut short")
    return tag, start, start + length


# --- contexts ---------------------------------------------------------------------------------


def for_client(*, pinned: bool) -> ssl.SSLContext:
    """What a client needs: the system's store of certificates, or none for a `pinned` one.

    The store is read as a whole here and now, while there are the privileges and descriptors for
    it.  SSL_CERT_FILE and SSL_CERT_DIR are what openssl-env(7) says.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if pinned:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # `Tls` compares
        return context
    paths = ssl.get_default_verify_paths()
    files = [paths.cafile] if paths.cafile else []
    with contextlib.suppress(OSError):
        names = os.listdir(paths.capath) if paths.capath else []
        files += [f"{paths.capath}/{each}" for each in names if re.fullmatch(_HASHED, each)]
    for each in files:
        with contextlib.suppress(OSError):  # ssl.SSLError is one: nothing in it that we can use
            context.load_verify_locations(each)
    return context


def for_server(certificate: str, key: str) -> ssl.SSLContext:
    """What a server needs, from two PEM files.  Raises TlsError."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    # Nobody comes back often enough to resume a session: in TLS 1.3, and before.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    for path in (certificate, key):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise TlsError(f"{path}: {error.strerror}") from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _Encrypted:
        raise TlsError(f"{key}: the key must not be encrypted") from None
    except ssl.SSLError as error:
        # The key of another kind, or of the same kind.
        if error.reason in ("NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH", "KEY_VALUES_MISMATCH"):
            raise TlsError(f"{key}: not the key of {certificate}") from None
        if error.reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"):
            raise TlsError(f"{certificate}: too weak: {_spoken(error)}") from None
        raise TlsError(f"{certificate}, {key}: no certificate and key in PEM") from None
    return context


def of_file(path: str) -> bytes:
    """The first certificate of a PEM file, as DER.  Raises TlsError."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read(1 << 20)
    except OSError as error:
        raise TlsError(f"{path}: {error.strerror}") from None
    found = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    try:
        if found:
            return ssl.PEM_cert_to_DER_cert(found[0])
    except ValueError:
        pass
    raise TlsError(f"{path}: no certificate in PEM")


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


# --- a connection -----------------------------------------------------------------------------


class Tls:
    """One end of an encrypted connection.

    `name` is that of the server; `pinned` the fingerprint that its certificate must have.
    """

    __slots__ = ("_arrived", "_object", "_pinned", "_to_send", "closed", "done")

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        name: str | None = None,
        pinned: str | None = None,
    ) -> None:
        self._arrived, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            *(self._arrived, self._to_send, server_side),
            # As bytes: for a str a codec is imported, which needs privileges by now.
            server_hostname=name.encode("ascii") if name else None,
        )
        self._pinned = pinned
        self.done = False  # the handshake
        self.closed = False  # by the peer, and nothing more will come
        if not server_side:
            self._shake_hands()

    @property
    def protocol(self) -> str:
        """Its version, such as TLSv1.3."""
        return self._object.version() or "?"

    @property
    def cipher(self) -> str:
        """The name of the cipher suite."""
        cipher = self._object.cipher()
        return cipher[0] if cipher else "?"

    @property
    def certificate(self) -> bytes:
        """The peer's, as DER; nothing, if it is not known."""
        if self.done:
            return self._object.getpeercert(binary_form=True) or b""
        # What was refused is known as well; since Python 3.13 officially.
        owner = self._object if hasattr(self._object, "get_unverified_chain") else None
        ask = getattr(owner or getattr(self._object, "_sslobj", None), "get_unverified_chain", None)
        first = (ask() or [b""])[0] if ask is not None else b""
        if isinstance(first, bytes):
            return first
        return ssl.PEM_cert_to_DER_cert(first.public_bytes())

    def take(self) -> bytes:
        """What is to be sent now."""
        return self._to_send.read()

    def send(self, data: bytes) -> None:
        """Encrypt.  Before the handshake is `done`, nothing may be sent."""
        if data and self.done and not self.closed:
            with contextlib.suppress(ssl.SSLError):  # the peer has ended it: reading tells
                self._object.write(data)

    def close(self) -> None:
        """Say that nothing more will come (RFC 8446, section 6.1)."""
        if self.done:
            with contextlib.suppress(ssl.SSLError):
                self._object.unwrap()

    def receive(self, data: bytes) -> bytes:
        """What comes of bytes from the peer, decrypted; no bytes mean that it has closed.

        Raises TlsError; what `take` has then is still for the peer.
        """
        if data:
            self._arrived.write(data)
        else:
            self._arrived.write_eof()
        self._shake_hands()
        return self._read() if self.done else b""

    def _shake_hands(self) -> None:
        if self.done:
            return
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLCertVerificationError as error:
            raise self._untrusted(_spoken(error)) from None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            self.closed = True
            return
        except (ssl.SSLError, ValueError) as error:
            raise TlsError(f"the TLS handshake has failed: {_spoken(error)}") from None
        self.done = True
        if self._pinned is not None and fingerprint(self.certificate) != self._pinned:
            self.done = False
            self.take()  # our end of the handshake: not for this one
            raise self._untrusted("not that of --tls-fingerprint")

    def _untrusted(self, why: str) -> Untrusted:
        certificate = self.certificate
        known = fingerprint(certificate) if certificate else "unknown"
        return Untrusted(f"the server's certificate is refused: {why}; its fingerprint is {known}")

    def _read(self) -> bytes:
        parts: list[bytes] = []
        unsent = self._to_send.pending
        try:
            while part := self._object.read(4096):
                parts.append(part)
            self.closed = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            self.closed = True
        except ssl.SSLError as error:
            raise TlsError(f"TLS has failed: {_spoken(error)}") from None
        # In TLS 1.2 there is one thing that we say while we read (RFC 5246, section 7.2.2).
        if self._to_send.pending != unsent and self.protocol == "TLSv1.2":
            raise TlsError("TLS has failed: no renegotiation")
        return b"".join(parts)


def _spoken(error: Exception) -> str:
    """What OpenSSL says of an error, as words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    reason = getattr(error, "reason", None)
    return reason.lower().replace("_", " ") if reason else "it makes no sense"
