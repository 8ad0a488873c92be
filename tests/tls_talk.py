"""A DTCP client that speaks TLS by Python's ssl, and does what it is told, to try the server with.

`tls_talk.py SERVER FROM WORD...` prints what comes of each word, a line each:

    greeting          read a line, and keep its challenge
    line              read a line, whatever it is
    say=TEXT          send TEXT as a line
    login=USER:PASSWORD:TYPE   answer the challenge, and print the reply
    stls              say it, read the reply, and shake hands: print the version of TLS
    old               from here on: TLS 1.2 at most
    raw=HEX           send these bytes past TLS
    hello             send what a handshake begins with
    half              send the first half of that
    fingerprint       print the server's certificate's
    renegotiate       have openssl(1) speak TLS 1.2, and begin another handshake once it is greeted
    end               wait until the server ends the connection
    close             end the connection, without a word of TLS

More words may come on its standard input, a line each; it stays until that ends.  It shares no code
with the programs under test.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import socket
import ssl
import subprocess
import sys
import threading


class Talk:
    """One connection."""

    def __init__(self, server: str, source: str) -> None:
        self._sock = socket.create_connection((server, 20200), 30, (source, 0))
        self._secured: ssl.SSLObject | None = None
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._heard = b""
        self._challenge = ""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE

    def do(self, word: str) -> str | None:
        """What there is to print."""
        verb, _, text = word.partition("=")
        if verb == "greeting":
            line = self._line()
            self._challenge = line.split()[1]
            return line
        if verb == "line":
            return self._line()
        if verb == "renegotiate":
            _openssl(self._sock)
            return "renegotiated"
        if verb == "say":
            self._say(f"{text}\r\n".encode())
        elif verb == "login":
            user, password, tunnel_type = text.split(":")
            proof = hashlib.md5((user + self._challenge + password).encode()).hexdigest().upper()
            self._say(f"tunnel {user} {proof} {tunnel_type}\r\n".encode())
            return self._line()
        elif verb == "stls":
            self._say(b"stls\r\n")
            answer = self._line()
            return self._shake_hands() if answer.startswith("+OK") else answer
        elif verb == "old":
            self._context.maximum_version = ssl.TLSVersion.TLSv1_2
        elif verb == "raw":
            self._sock.sendall(bytes.fromhex(text))
        elif verb in ("hello", "half"):
            hello = self._hello()
            self._sock.sendall(hello if verb == "hello" else hello[: len(hello) // 2])
        elif verb == "fingerprint":
            assert self._secured is not None
            certificate = self._secured.getpeercert(binary_form=True)
            assert certificate is not None
            return hashlib.sha256(certificate).hexdigest()
        elif verb == "end":
            while self._read():
                pass
            return "end"
        else:
            assert verb == "close", word
            self._sock.close()
        return None

    def _hello(self) -> bytes:
        secured = self._context.wrap_bio(self._in, self._out)
        with contextlib.suppress(ssl.SSLWantReadError):
            secured.do_handshake()
        return self._out.read()

    def _shake_hands(self) -> str:
        self._secured = self._context.wrap_bio(self._in, self._out)
        while True:
            try:
                self._secured.do_handshake()
                self._sock.sendall(self._out.read())
                return str(self._secured.version())
            except ssl.SSLWantReadError:
                self._sock.sendall(self._out.read())
                self._in.write(self._sock.recv(4096))

    def _say(self, data: bytes) -> None:
        if self._secured is not None:
            self._secured.write(data)
            data = self._out.read()
        self._sock.sendall(data)

    def _read(self) -> bytes:
        """What comes; nothing at its end."""
        while self._secured is not None:
            try:
                return self._secured.read(4096)
            except ssl.SSLWantReadError:
                data = self._sock.recv(4096)
                if not data:
                    raise ConnectionError("it ends without a word of TLS") from None
                self._in.write(data)
        try:
            return self._sock.recv(4096)
        except ConnectionResetError:
            return b""

    def _line(self) -> str:
        while b"\n" not in self._heard:
            data = self._read()
            if not data:
                return "end"
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode("latin-1").rstrip()


def _openssl(server: socket.socket) -> None:
    """Hand the connection over to openssl(1), and wait for its end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = "{}:{}".format(*listener.getsockname())
        process = subprocess.Popen(
            ["openssl", "s_client", "-tls1_2", "-connect", where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        client, _ = listener.accept()
    for one, other in ((server, client), (client, server)):
        threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()
    assert process.stdin is not None
    assert process.stdout is not None
    while b"tunnel server" not in process.stdout.readline():
        pass
    process.stdin.write(b"R\n")
    process.stdin.flush()
    process.stdout.read()


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(4096):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


def main(server: str, source: str, *words: str) -> None:
    talk = Talk(server, source)
    for word in itertools.chain(words, sys.stdin):
        said = talk.do(word.rstrip("\n"))
        if said is not None:
            print(said, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
