"""DTCP servers to try the client with, written from records of real ones.

They share no code with the programs under test, and make no tunnels: its far end is for whoever
starts them to set up.

    servers.py kame --user itojun --password secret [--prefix 2001:db8:1::] [--round-trip 0.02]
    servers.py feel6 --user itojun --password secret --prefix 2001:0db8:03c3::/48
    servers.py hostile '{"20301": [["say", "+OK nonsense\\r\\n"], ["hear"], ["reset"]]}'

On standard error they say `ready`, then each line that they hear, `PORT heard 'TEXT'`, and each
connection's end, `PORT end`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import socket
import struct
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
            line = self._file.readline().decode("latin-1")
            if line:
                say(f"{self._port} heard {line!a}")
                return line
        return None

    def say(self, text: str) -> None:
        time.sleep(self._round_trip)
        self.socket.sendall(text.encode("latin-1"))

    def end(self, *, reset: bool = False) -> None:
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self._file.close()
            self.socket.close()
        say(f"{self._port} end")


class Kame:
    """KAME's dtcps of 2001, as it behaved when it was run: word for word, faults included."""

    AUTH_TIMEOUT, TUNNEL_TIMEOUT = 60, 300

    def __init__(self, user: str, password: str, prefix: str | None, unit: int = 0) -> None:
        self._user, self._password = user, password
        self._prefix, self._unit = prefix, unit

    def talk(self, wire: Wire) -> None:
        challenge = hashlib.md5(f"{time.ctime()}{os.getpid()}".encode()).hexdigest().upper()
        wire.say(f"+OK {challenge} KAME tunnel server\r\n")
        up = failed = False
        while True:
            wire.socket.settimeout(self.TUNNEL_TIMEOUT if up else self.AUTH_TIMEOUT)
            try:
                line = wire.hear()
            except TimeoutError:
                wire.say("-ERR connection timed out, disconnecting\r\n")
                break
            if line is None:
                break
            # Every CR and LF goes, wherever it stands; the rest is cut at single blanks.
            text = line.replace("\r", "").replace("\n", "")
            words = text.split(" ")
            while words and not words[-1]:
                words.pop()
            if text and not words:
                return  # the thread dies of nothing but blanks; the connection stays
            verb = words[0].lower() if words else ""
            if verb == "tunnel":
                reply = self._tunnel(wire, challenge, words)
                up = up or reply.startswith("+OK")
                failed = failed or reply.startswith("-ERR unsupported")
                wire.say(reply)
            elif verb == "ping":
                wire.say("+OK hi, happy to hear from you\r\n")
            elif verb == "help":
                wire.say("+OK valid commands are: TUNNEL PING QUIT\r\n")
            elif verb == "quit":
                wire.say("+OK see you soon.\r\n")
                if failed:
                    return  # here too: no end of the connection
                wire.socket.shutdown(socket.SHUT_WR)
                wire.hear()
                break
            else:
                wire.say("-ERR invalid command\r\n")
        wire.end()

    def _tunnel(self, wire: Wire, challenge: str, words: list[str]) -> str:
        proof = hashlib.md5((self._user + challenge + self._password).encode()).hexdigest()
        # Letter by letter: nothing but exactly four fields and capitals will do.
        if len(words) != 4 or words[1:3] != [self._user, proof.upper()]:
            return "-ERR authentication failed.\r\n"
        ends = f"{wire.socket.getpeername()[0]} {wire.socket.getsockname()[0]}"
        if words[3] == "tunnelonly":
            return f"+OK {ends}\r\n"
        if words[3] == "host" and self._prefix:
            first = (self._unit + 1) * 4
            return f"+OK {ends} {self._prefix}{first + 2:04x} {self._prefix}{first + 1:04x}\r\n"
        return f"-ERR unsupported tunnel type {words[3]}\r\n"


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
    kinds.add_parser("hostile").add_argument("scenes", type=json.loads)
    given = parser.parse_args(argv)
    if given.kind == "kame":
        server = Kame(given.user, given.password, given.prefix)
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
