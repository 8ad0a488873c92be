"""DTCP servers to try the client with, written from records of real ones.

They share no code with the programs under test, and create no tunnels, except for KAME's with
`--gifs`: the caller must set up the far end.

    servers.py kame --user itojun --password secret [--prefix 2001:db8:1::] [--round-trip 0.02]
                    [--gifs 4 [--cleaning 0.5]] [--tls CERTIFICATE KEY]
    servers.py feel6 --user itojun --password secret --prefix 2001:0db8:03c3::/48
    servers.py hostile '{"20301": [["say", "+OK nonsense\\r\\n"], ["hear"], ["reset"]]}'

On standard error they print `ready`, then each line they receive, `PORT heard 'TEXT'`, and the end
of each connection, `PORT end`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PORT = 20200


def say(text: str) -> None:
    os.write(2, f"{text}\n".encode())


class Wire:
    """One connection of a client."""

    def __init__(self, sock: socket.socket, port: int, round_trip: float) -> None:
        self.socket = sock
        self._round_trip = round_trip
        self._file = sock.makefile("rb")
        self._port = port

    def hear(self) -> str | None:
        """The next line with its ending; None at the end, whether it came in order or not."""
        with contextlib.suppress(ConnectionError):
            return self.read()
        return None

    def read(self) -> str | None:
        """The same; but an end that is out of order raises ConnectionError."""
        line = self._file.readline().decode("latin-1")
        if line:
            say(f"{self._port} heard {line!a}")
        return line or None

    def say(self, text: str) -> None:
        time.sleep(self._round_trip)
        self.socket.sendall(text.encode("latin-1"))

    def say_in_segments(self, text: str) -> None:
        """A segment for each word, and one for the end of the line."""
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for word in text.replace("\r\n", " \r\n").split(" "):
            self.say(word if word == "\r\n" else f"{word} ")
            time.sleep(0.005)

    def begin_tls(self, certificate: str, key: str, count: int) -> None:
        """Send so many bytes of our end of the handshake, or have all of it (-1)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if count < 0:
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self._file = self.socket.makefile("rb")
            return
        arrived, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(arrived, to_send, server_side=True)
        while not to_send.pending:
            arrived.write(self.socket.recv(4096))
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
        self.socket.sendall(to_send.read()[:count])

    def end(self, *, reset: bool = False) -> None:
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self._file.close()
            self.socket.close()
        say(f"{self._port} end")


class Gifs:
    """So many gif(4) interfaces as KAME's server found them in its kernel, and what it did to them.

    It looked at nothing that came of its commands.
    """

    def __init__(self, count: int, cleaning: float) -> None:
        self._cleaning = cleaning  # seconds before it begins to clean up
        self._mutex = threading.Lock()
        self._free = set(range(count))
        for unit in range(count):
            self._ifconfig(unit, "create")
            self._ifconfig(unit, "inet6", "-ifdisabled")

    def _ifconfig(self, unit: int, *words: str) -> None:
        subprocess.run(["ifconfig", f"gif{unit}", *words], check=False)

    def take(self) -> int | None:
        """The first that is free."""
        with self._mutex:
            unit = min(self._free, default=None)
            self._free.discard(-1 if unit is None else unit)
            return unit

    def configure(self, unit: int, own: str, client: str, pair: list[str]) -> None:
        self._ifconfig(unit, "tunnel", own, client)
        self._ifconfig(unit, "up")
        if pair:
            self._ifconfig(unit, "inet6", *pair, "prefixlen", "128", "alias")
        say(f"gif{unit} configured")

    def clean_up(self, unit: int, pair: list[str]) -> None:
        time.sleep(self._cleaning)
        if pair:
            self._ifconfig(unit, "inet6", pair[0], "-alias")
        self._ifconfig(unit, "deletetunnel")
        self._ifconfig(unit, "down")
        with self._mutex:
            self._free.add(unit)
        say(f"gif{unit} cleaned up")


class Kame:
    """KAME's dtcps of 2001, as it behaved when it was run: word for word, faults included.

    With `tls`, a certificate and its key, it offers what KAME's never did.  With gifs it makes
    tunnels, the way it did: it says +OK whether that worked or not; it answers `quit` at once,
    cleans up behind that, and ends the connection last; and a connection that breaks kills its
    thread, which cleans up nothing.
    """

    AUTH_TIMEOUT, TUNNEL_TIMEOUT = 60, 300

    def __init__(
        self,
        user: str,
        password: str,
        prefix: str | None,
        gifs: Gifs | None = None,
        tls: tuple[str, str] | None = None,
    ) -> None:
        self._user, self._password = user, password
        self._prefix, self._gifs, self._tls = prefix, gifs, tls

    def talk(self, wire: Wire) -> None:
        tunnel: dict[int, list[str]] = {}  # by unit, the inner pair: ours, and the client's
        try:
            ends = self._session(wire, tunnel, self._tls)
        except ConnectionError:
            say("a thread died")
            return
        if self._gifs is not None:
            for unit, pair in tunnel.items():
                self._gifs.clean_up(unit, pair)
        if ends:
            wire.end()

    def _session(
        self, wire: Wire, tunnel: dict[int, list[str]], tls: tuple[str, str] | None = None
    ) -> bool:
        """All that is said.  Whether the server ends the connection."""
        answer = wire.say_in_segments if self._gifs else wire.say
        challenge = hashlib.md5(f"{time.ctime()}{os.getpid()}".encode()).hexdigest().upper()
        answer(f"+OK {challenge} KAME tunnel server{' STLS' if tls else ''}\r\n")
        up = failed = False
        while True:
            wire.socket.settimeout(self.TUNNEL_TIMEOUT if up else self.AUTH_TIMEOUT)
            try:
                line = wire.read()
            except TimeoutError:
                answer("-ERR connection timed out, disconnecting\r\n")
                return True
            if line is None:
                return True
            # Every CR and LF goes, wherever it stands; the rest is cut at single blanks.
            text = line.replace("\r", "").replace("\n", "")
            words = text.split(" ")
            while words and not words[-1]:
                words.pop()
            if text and not words:
                return False  # the thread dies of nothing but blanks; the connection stays
            verb = words[0].lower() if words else ""
            if verb == "tunnel":
                reply = self._tunnel(wire, challenge, words, tunnel)
                up = up or reply.startswith("+OK")
                failed = failed or reply.startswith("-ERR unsupported")
                answer(reply)
            elif verb == "stls" and tls:
                answer("+OK begin TLS\r\n")
                wire.begin_tls(tls[0], tls[1], -1)
                return self._session(wire, tunnel)
            elif verb == "ping":
                answer("+OK hi, happy to hear from you\r\n")
            elif verb == "help":
                answer("+OK valid commands are: TUNNEL PING QUIT\r\n")
            elif verb == "quit":
                answer("+OK see you soon.\r\n")
                return not failed  # here too: no end of the connection
            else:
                answer("-ERR invalid command\r\n")

    def _tunnel(
        self, wire: Wire, challenge: str, words: list[str], tunnel: dict[int, list[str]]
    ) -> str:
        proof = hashlib.md5((self._user + challenge + self._password).encode()).hexdigest()
        # Letter by letter: nothing but exactly four fields and capitals will do.
        if len(words) != 4 or words[1:3] != [self._user, proof.upper()]:
            return "-ERR authentication failed.\r\n"
        if words[3] != "tunnelonly" and not (words[3] == "host" and self._prefix):
            return f"-ERR unsupported tunnel type {words[3]}\r\n"
        unit = self._gifs.take() if self._gifs else 0
        if unit is None:
            return "-ERR tunnel interface sold out\r\n"
        client, own = wire.socket.getpeername()[0], wire.socket.getsockname()[0]
        first = (unit + 1) * 4
        pair = [f"{self._prefix}{first + number:04x}" for number in (1, 2)]
        pair = pair if words[3] == "host" else []
        if self._gifs is not None:
            self._gifs.configure(unit, own, client, pair)
            tunnel[unit] = pair
        return " ".join(["+OK", client, own, *reversed(pair)]) + "\r\n"


class Feel6:
    """Feel6's server, as far as sessions with it were recorded."""

    def __init__(self, user: str, password: str, prefix: str) -> None:
        self._user, self._password, self._prefix = user, password, prefix

    def talk(self, wire: Wire) -> None:
        challenge = os.urandom(16).hex()
        wire.say(f"+OK {challenge} FBDC TunnelBroker (version 0.2) Ready. <870363>:4096\r\n")
        while (line := wire.hear()) is not None:
            verb, *words = line.split()
            if verb == "tunnel":
                wire.say(self._tunnel(wire, challenge, words))
            elif verb == "ping":
                wire.say("+OK pong\r\n")
            elif verb == "quit":
                wire.say("+OK tunnel server quitting\r\n")
                break
        wire.end()

    def _tunnel(self, wire: Wire, challenge: str, words: list[str]) -> str:
        proof = hashlib.md5((self._user + challenge + self._password).encode()).hexdigest()
        user, answer, tunnel_type = words
        if (user, answer.lower()) != (self._user, proof):
            return "-ERR authentication failed.\r\n"
        if tunnel_type != "network":
            return f"-ERR unsupported tunnel type {tunnel_type}\r\n"
        ends = f"{wire.socket.getpeername()[0]} {wire.socket.getsockname()[0]}"
        return f"+OK {ends} {self._prefix}\r\n"


class Hostile:
    """A server that plays a scene, whatever it hears.  Its steps:

    ["say", TEXT]             the characters of TEXT as bytes
    ["drip", TEXT, SECONDS]   the same, one every SECONDS
    ["hear"]                  wait for a line
    ["tls", CERTIFICATE, KEY, BYTES]    begin with TLS, as a server that has heard `stls`, and send
                              no more than so many bytes of its end of the handshake; -1: all of it,
                              and what is said from then on goes through it
    ["end"], ["reset"]        close the connection, in order or not
    ["silent"]                say nothing more, until the client goes: this is the last step
    """

    def __init__(self, scene: list[list[Any]]) -> None:
        self._scene = scene

    def talk(self, wire: Wire) -> None:
        for step, *words in self._scene:
            if step == "say":
                wire.say(words[0])
            elif step == "drip":
                for character in words[0]:
                    wire.say(character)
                    time.sleep(words[1])
            elif step == "hear":
                wire.hear()
            elif step == "tls":
                wire.begin_tls(*words)
            elif step in ("end", "reset"):
                wire.end(reset=step == "reset")
                return
        while wire.hear() is not None:
            pass
        wire.end()


def listen(port: int, talk: Callable[[Wire], None], round_trip: float = 0.0) -> None:
    """Talk to every client that comes, each in a thread, without end.

    With a `round_trip` (seconds) it is as if the client were that far away: every answer comes so
    much later, and the greeting twice, for it is behind TCP's handshake.
    """
    listener = socket.create_server(("", port))
    kept = []  # what a dead thread leaves open stays open

    def talk_to(wire: Wire) -> None:
        try:
            time.sleep(round_trip)
            talk(wire)
        except OSError:  # the client has gone in the middle of our words
            wire.end()

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            kept.append(wire := Wire(sock, port, round_trip))
            threading.Thread(target=talk_to, args=(wire,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="servers.py")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("kame", "feel6"):
        options = kinds.add_parser(kind)
        options.add_argument("--port", type=int, default=PORT)
        options.add_argument("--user", required=True)
        options.add_argument("--password", required=True)
        options.add_argument("--prefix")
        options.add_argument("--round-trip", type=float, default=0.0)
        options.add_argument("--gifs", type=int)
        options.add_argument("--tls", nargs=2)
        options.add_argument("--cleaning", type=float, default=0.5)
    kinds.add_parser("hostile").add_argument("scenes", type=json.loads)
    given = parser.parse_args(argv)
    if given.kind == "kame":
        gifs = Gifs(given.gifs, given.cleaning) if given.gifs else None
        server = Kame(
            given.user, given.password, given.prefix, gifs, given.tls and tuple(given.tls)
        )
        listen(given.port, server.talk, given.round_trip)
    elif given.kind == "feel6":
        listen(given.port, Feel6(given.user, given.password, given.prefix).talk, given.round_trip)
    else:
        for port, scene in given.scenes.items():
            listen(int(port), Hostile(scene).talk)
    say("ready")
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
