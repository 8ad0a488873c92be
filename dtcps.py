#!/usr/bin/env python3
"""dtcps: the server of DTCP, the Dynamic Tunnel Configuration Protocol.

One thread waits on all sockets and speaks the protocol (dtcp.wire); a few workers run the commands
(dtcp.plan, dtcp.system), so that a slow one for one user keeps nobody else waiting.  A tunnel lives
as long as its control connection does.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import math
import os
import re
import resource
import secrets
import selectors
import socket
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from ipaddress import IPv4Address

_lib = os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib")
if os.path.isdir(_lib):  # in a checkout
    sys.path.insert(0, _lib)

from dtcp import __version__, daemon, plan, pools, store, system, wire  # noqa: E402
from dtcp.cli import FAILED, NOT_ALLOWED, OK, Failure, Parser, in_range  # noqa: E402
from dtcp.grant import Grant  # noqa: E402
from dtcp.pools import Pool, Span  # noqa: E402
from dtcp.store import Store  # noqa: E402

PID_FILE = "/var/run/dtcps.pid"
UDP_PORT = 4028
GREETING = f"dtcps {__version__} tunnel server"

CONNECTIONS = 200
DESCRIPTORS = 60  # that are kept free of clients, for the commands and ourselves
UNREAD = 4096  # bytes of replies that a client may leave unread
WORKERS = 4  # commands that run at the same time
LOOK_INTERVAL = 20.0  # seconds between two looks at the sockets of tunnels over UDP
ENDING_TIME = 10.0  # seconds for taking all tunnels down at the end


# --- the options and files --------------------------------------------------------------------


def _prefix(text: str) -> Pool:
    try:
        return pools.pairs(text)
    except pools.PoolError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# fmt: off
def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="dtcps",
        usage="dtcps [-dDU] [-b udp-port] [-p port] [prefix]",
        description="Give IPv6 tunnels to DTCP clients.",
        allow_abbrev=False,
    )
    a = p.add_argument
    a("prefix", nargs="?", type=_prefix,
      help="addresses of tunnels of type host come out of this; without it there are none")
    a("-d", dest="debug", action="store_true",
      help="stay in the foreground, show each conversation and command")
    a("-D", dest="foreground", action="store_true", help="do not become a daemon")
    a("-p", dest="port", metavar="port", type=in_range(1, 65535), default=wire.PORT,
      help=f"TCP port ({wire.PORT})")
    a("-U", dest="udp", action="store_true", help="allow tunnels over UDP")
    a("-b", dest="udp_port", metavar="udp-port", type=in_range(1, 65535), default=UDP_PORT,
      help=f"with -U: the lowest port of ours ({UDP_PORT})")
    a("--version", action="version", version=f"dtcps {__version__}")
    return p
# fmt: on


# --- one client -------------------------------------------------------------------------------


class Peer:
    """One client: its socket, its end of the conversation, and its tunnel."""

    def __init__(
        self,
        sock: socket.socket,
        session: wire.Session,
        host: system.System,
    ) -> None:
        self.socket = sock
        self.session = session
        self.system = host
        self.address = IPv4Address(sock.getpeername()[0])
        self.own = IPv4Address(sock.getsockname()[0])
        self.user = ""
        self.unsent = b""
        self.ending = ""  # why, once the conversation is over
        self.work: concurrent.futures.Future[None] | None = None
        self.leaving = False  # the work is the taking down
        self.port: int | None = None  # of ours, for a tunnel over UDP
        self.waiting: Grant | None = None  # for the client's first packet over UDP,
        self.ear: socket.socket | None = None  # which this hears

    def flush(self) -> None:
        """Send what can be sent now."""
        self.unsent += self.session.take()
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent = b""  # reading will tell what happened
        if len(self.unsent) > UNREAD and not self.ending:
            self.ending = "it does not read what we say"


Finish = Callable[[], None]  # what the main thread does when a worker has finished


# --- the server -------------------------------------------------------------------------------


class Server:
    """All clients, on one listening socket."""

    def __init__(self, options: argparse.Namespace, log: daemon.Log) -> None:
        self._log = log
        self._prefix: Pool | None = options.prefix
        Store(store.PATH).close()  # it is there, and sound; to be opened behind fork(2)
        self._store: Store
        self._udp_port: int | None = options.udp_port if options.udp else None
        self._peers: set[Peer] = set()
        self._selector: selectors.BaseSelector
        self._signals: daemon.Signals
        self._workers = concurrent.futures.ThreadPoolExecutor(WORKERS, "command")
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(1, min(CONNECTIONS, (descriptors - DESCRIPTORS) // 2))
        self._broken: list[system.System] = []  # whose tunnels could not be taken down
        self._done: list[tuple[Peer, Finish]] = []
        self._next_look = math.inf  # at the sockets of tunnels over UDP
        self._look_interval = LOOK_INTERVAL
        self._listener = _listen(options.port)
        self._finished, self._finish = os.pipe()
        os.set_blocking(self._finished, False)

    def serve(self, ready: Callable[[], None]) -> int:
        """Serve until we are told to end; `ready` is called when we do.  The exit status."""
        # Made here, for a kqueue(2) does not survive the fork(2) of a daemon.
        self._selector = selectors.DefaultSelector()
        self._store = Store(store.PATH)
        self._signals = daemon.Signals()
        ready()
        self._log.notice(f"listening on port {self._listener.getsockname()[1]}")
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._signals.woken, selectors.EVENT_READ, self._signals.drain)
        self._selector.register(self._finished, selectors.EVENT_READ, self._collect)
        try:
            while not self._signals.stopping:
                self._turn(self._until())
        except BaseException:  # whatever it is, it must not leave tunnels behind
            self._end()
            raise
        return self._end()

    def _turn(self, timeout: float | None) -> None:
        """Wait for something to happen, once, and let come of it what must."""
        for key, mask in self._selector.select(timeout):
            if isinstance(key.data, Peer):
                if mask & selectors.EVENT_WRITE:
                    self._settle(key.data, [])
                if mask & selectors.EVENT_READ:
                    self._receive(key.data)
            else:
                key.data()
        now = time.monotonic()
        for peer in [each for each in self._peers if each.session.deadline <= now]:
            self._settle(peer, peer.session.tick(now))
        if self._next_look <= now:
            self._look_at_sockets()

    def _until(self) -> float | None:
        """Seconds to the next thing that time brings, or None."""
        due = [peer.session.deadline for peer in self._peers if not peer.ending and not peer.work]
        first = min([*due, self._next_look])
        return None if first == math.inf else max(0.0, first - time.monotonic())

    def sweep(self) -> None:
        """Remove the tunnels of a killed instance: by the pid file's lock there is no other."""
        host = system.System(self._log.command)
        for interface in host.ours():
            if interface.description.startswith("dtcps "):
                self._log.notice(f"removing {interface.name}, which a killed dtcps has left")
                if not interface.name.startswith("ng"):
                    host.run(("ifconfig", interface.name, "destroy"))
        if self._udp_port is not None:
            nodes = re.findall(r"Name: (dtcps[0-9]+u[0-9]+) ", host.run(("ngctl", "list")))
            for node in nodes:
                host.run(("ngctl", "shutdown", f"{node}:"))

    # --- connections --------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, (address, port) = self._listener.accept()
        except OSError:  # gone again, or no descriptor free
            return
        if len(self._peers) >= self._most:
            with contextlib.suppress(OSError):
                sock.send(f"-ERR {wire.BUSY}\r\n".encode())
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

        def trace(line: str) -> None:
            self._log.debug(f"{address}:{port} {line}")

        # 128 bits, from a secure source, for this connection only.
        challenge = secrets.token_hex(16).upper()
        session = wire.Session(
            GREETING, challenge, self._store.password, time.monotonic(), trace=trace
        )
        try:
            peer = Peer(sock, session, system.System(self._log.command))
        except OSError:  # the client has gone already
            sock.close()
            return
        self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, peer)
        self._settle(peer, [])

    def _receive(self, peer: Peer) -> None:
        if peer.ending:
            return
        try:
            data = peer.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._settle(peer, [wire.Ended(error.strerror or "the connection broke")])
            return
        try:
            events = peer.session.receive(data, time.monotonic())
        except wire.ProtocolError as error:
            peer.session.close(wire.BAD_COMMAND)
            events = [wire.Ended(f"protocol error: {error}")]
        self._settle(peer, events)

    def _settle(self, peer: Peer, events: list[wire.SessionEvent]) -> None:
        """Act on what a session says, send what it has to say, and end it when it is over."""
        for event in events:
            if isinstance(event, wire.Asked):
                self._asked(peer, event)
            else:
                peer.ending = event.reason
        peer.flush()
        if peer.ending:
            self._leave(peer)
        else:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
            self._selector.modify(peer.socket, wanted, peer)

    def _leave(self, peer: Peer) -> None:
        """Close a connection; its tunnel goes with it."""
        if peer.socket.fileno() >= 0:
            self._selector.unregister(peer.socket)
            peer.socket.close()
        self._stop_listening(peer)
        if peer.work is not None:
            return  # and come back here when it is finished
        if peer.system.done:
            peer.leaving = True
            self._submit(peer, lambda: self._take_down(peer))
        else:
            self._peers.discard(peer)

    # --- tunnels ------------------------------------------------------------------------------

    def _asked(self, peer: Peer, asked: wire.Asked) -> None:
        """Refuse what a user asks for, or set a worker to it."""
        now = time.monotonic()
        if asked.udp is not None and self._udp_port is None:
            self._settle(peer, peer.session.refuse(wire.NO_UDP, now))
            return
        user = self._store.user(asked.user)
        kind = "network" if asked.type == "tunnelroute" else asked.type
        why = "" if user is None else user.barred(date.today())
        if user is None or why:
            self._settle(peer, peer.session.refuse(why or wire.BAD_LOGIN, now))
            return
        if kind not in user.types:
            self._settle(peer, peer.session.refuse(wire.NOT_THIS_TYPE.format(asked.type), now))
            return
        if kind == "network" and not user.prefixes:
            self._settle(peer, peer.session.refuse(wire.NO_ROUTE, now))
            return
        if kind == "host" and user.address is None and self._prefix is None:
            self._settle(peer, peer.session.refuse(wire.BAD_TYPE.format(asked.type), now))
            return
        others = [other for other in self._peers if other is not peer and other.user]
        ends = (peer.own, peer.address)
        rivals = [other for other in others if other.user == asked.user]
        if any(each.work and not each.leaving for each in rivals) or any(
            asked.udp is None
            and each.port is None
            and (each.own, each.address) == ends
            and each not in rivals
            for each in others
        ):
            # gif(4) cannot have two tunnels with the same ends.
            self._settle(peer, peer.session.refuse(wire.BUSY, now))
            return
        pair: Span | None = None
        if kind == "host":
            pair = self._pair(user)
            if pair is None:
                self._settle(peer, peer.session.refuse(wire.SOLD_OUT, now))
                return
        peer.user = asked.user
        prefixes = user.prefixes if kind == "network" else ()
        granted = Grant(peer.address, peer.own, prefixes=prefixes)
        if pair is not None:
            granted = granted._replace(inner=pair.client, peer=pair.server)
        if asked.udp is not None:
            # Who comes back gets the port he had, so that nothing has to change at his end.
            peer.port = next((each.port for each in rivals if each.port), self._udp_port)
        for other in rivals:
            # Its connection is half open, and its client has restarted; or it is leaving anyway.
            if not other.leaving:
                other.ending = f"logged in again from {peer.address}"
                other.session.close(other.ending)
                other.flush()
                self._leave(other)
        leaving = [other.work for other in rivals if other.work]
        broken, self._broken = self._broken, []
        self._submit(peer, lambda: self._clear_the_way(peer, asked, granted, leaving, broken))

    def _pair(self, user: store.User) -> Span | None:
        """The inner addresses of a user's tunnel, or None when there are none left."""
        if user.address is not None:
            return pools.pair(user.address)
        assert self._prefix is not None
        return self._store.lease(user.name, [self._prefix])

    def _clear_the_way(
        self,
        peer: Peer,
        asked: wire.Asked,
        granted: Grant,
        leaving: list[concurrent.futures.Future[None]],
        broken: list[system.System],
    ) -> Finish:
        """Have done with what may stand in the way of a new tunnel, and go on to make it."""
        # Those were submitted before us, so they have a worker already.
        concurrent.futures.wait(leaving)
        self._broken += [host for host in broken if host.down()]
        if asked.udp is not None:
            return partial(self._listen_for, peer, granted, asked.udp)
        return self._bring_up(peer, granted)

    def _listen_for(self, peer: Peer, granted: Grant, announced: int) -> None:
        """Grant a tunnel over UDP, and wait for the client's first packet before it is made.

        What we sent before the client is ready would be answered with an ICMP unreachable, which
        disconnects our ng_ksocket(4); and from behind a NAT only a packet tells where the client
        is.  So a socket of our own, on the same port, hears that first packet.
        """
        assert peer.port is not None
        assert self._udp_port is not None
        taken = {each.port for each in self._peers if each is not peer and not each.leaving}
        for port in (peer.port, *range(self._udp_port, 65536)):
            peer.port = port
            if port not in taken and self._open_ear(peer, port):
                break
        else:
            self._refused(peer, wire.SOLD_OUT)
            return
        granted = granted._replace(ports=(announced, peer.port))
        peer.waiting = granted
        self._settle(peer, peer.session.accept(granted.reply(), time.monotonic()))

    def _open_ear(self, peer: Peer, port: int) -> bool:
        """Listen on that UDP port, if nobody else does."""
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            ear.setblocking(False)
            ear.bind((str(peer.own), port))
        except OSError:
            ear.close()
            return False
        peer.ear = ear
        self._selector.register(ear, selectors.EVENT_READ, partial(self._hear, peer))
        return True

    def _hear(self, peer: Peer) -> None:
        """The first packet of a client: now it is ready, and we know where it is."""
        if peer.ear is None or peer.waiting is None:
            return  # it left in the same turn
        try:
            packet, (address, port) = peer.ear.recvfrom(65535)
        except OSError:
            return
        # Anybody can send here.  It must come from where the client logged in, and be what the
        # client would send: one whole IPv6 packet.
        if address != str(peer.address) or not _is_ipv6(packet):
            return
        assert peer.waiting.ports is not None
        announced, own = peer.waiting.ports
        granted = peer.waiting._replace(ports=(announced or port, own))
        self._stop_listening(peer)
        self._submit(peer, lambda: self._bring_up(peer, granted))

    def _stop_listening(self, peer: Peer) -> None:
        if peer.ear is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(peer.ear)
            peer.ear.close()
        peer.ear = peer.waiting = None

    def _submit(self, peer: Peer, work: Callable[[], Finish]) -> None:
        """Set a worker to something for a peer; what it returns is done by the main thread."""

        def run() -> None:
            try:
                finish = work()
            except Exception as error:  # a worker must not die silently with a peer in its hands
                self._log.error(f"{peer.user or peer.address}: {error!r}")
                finish = partial(self._refused, peer)
            self._done.append((peer, finish))
            os.write(self._finish, b".")

        peer.work = self._workers.submit(run)

    def _collect(self) -> None:
        """Take over from the workers."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._finished, 1024)
        while self._done:
            peer, finish = self._done.pop(0)
            peer.work = None
            if peer.leaving:
                self._peers.discard(peer)
                if peer.system.done:
                    self._broken.append(peer.system)
            elif peer.ending:
                self._leave(peer)  # it went while we were at work for it
            else:
                finish()

    def _bring_up(self, peer: Peer, granted: Grant) -> Finish:
        mark = plan.mark("dtcps", peer.user, str(peer.address), os.getpid())
        try:
            node = f"dtcps{os.getpid()}u{peer.port}"
            peer.system.up(plan.server(granted.turned(), mark, node))
        except system.CommandFailed as failed:
            # The details are for our log only.
            self._log.error(f"{peer.user}: the tunnel could not be made: {failed}")
            return partial(self._refused, peer)
        self._log.notice(f"{peer.user}: up: {peer.system.tunnel} to {peer.address}")
        return partial(self._granted, peer, granted)

    def _granted(self, peer: Peer, granted: Grant) -> None:
        if granted.ports is not None:
            self._look_interval = 1.0  # the other end may not be ready, for a moment
            self._next_look = min(self._next_look, time.monotonic() + self._look_interval)
        else:  # over UDP it has had its answer long since
            self._settle(peer, peer.session.accept(granted.reply(), time.monotonic()))

    def _refused(self, peer: Peer, text: str = wire.INTERNAL) -> None:
        if peer.session.granted:
            peer.session.close(text)
            self._settle(peer, [wire.Ended("its tunnel is broken")])
        else:
            peer.user, peer.port = "", None
            self._settle(peer, peer.session.refuse(text, time.monotonic()))

    def _take_down(self, peer: Peer) -> Finish:
        for failure in peer.system.down():
            self._log.error(f"{peer.user}: could not be undone: {failure}")
        self._log.notice(f"{peer.user}: down: {peer.ending}")
        return _nothing

    def _look_at_sockets(self) -> None:
        """See that the tunnels over UDP can send: an ICMP unreachable disconnects their sockets."""
        over_udp = [peer for peer in self._peers if peer.port and peer.system.done]
        self._look_interval = min(LOOK_INTERVAL, 2 * self._look_interval)
        self._next_look = time.monotonic() + self._look_interval if over_udp else math.inf
        for peer in over_udp:
            if not peer.work:
                self._submit(peer, partial(self._mend, peer))

    def _mend(self, peer: Peer) -> Finish:
        if peer.system.mend():
            self._log.info(f"{peer.user}: the UDP socket had lost its peer: connected again")
        return _nothing

    def _end(self) -> int:
        """Take all tunnels down."""
        self._log.notice(f"ending as asked, with {len(self._peers)} connections")
        self._selector.unregister(self._listener)
        self._listener.close()
        for peer in list(self._peers):
            peer.system.hurry()
            if not peer.ending:
                peer.session.close(wire.STOPPING)
                self._settle(peer, [wire.Ended("the server ends")])
        end = time.monotonic() + ENDING_TIME
        while self._peers and (left := end - time.monotonic()) > 0:
            self._turn(left)
        self._workers.shutdown(wait=False, cancel_futures=True)
        return FAILED if self._peers else OK


def _nothing() -> None:
    pass


def _is_ipv6(packet: bytes) -> bool:
    """Whether this is one whole IPv6 packet (RFC 8200 section 3)."""
    return (
        len(packet) >= 40
        and packet[0] >> 4 == 6
        and len(packet) == 40 + int.from_bytes(packet[4:6], "big")
    )


def _listen(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("", port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise Failure(f"port {port}: {error.strerror}") from None
    sock.setblocking(False)
    return sock


def main(argv: list[str] | None = None) -> int:
    """Run dtcps; its exit status."""
    daemon.settle()
    options = parser().parse_args(argv)
    log = daemon.Log("dtcps", verbose=options.debug)
    try:
        if os.geteuid() != 0:
            raise Failure("must be root to make tunnels", NOT_ALLOWED)
        pid_file = daemon.PidFile(PID_FILE)
        try:
            server = Server(options, log)
            server.sweep()
            ready = _nothing
            if not (options.debug or options.foreground):
                ready = daemon.detach()
                log.to_syslog()
            pid_file.write()
            return server.serve(ready)
        finally:
            pid_file.remove()
    except Failure as failure:
        log.error(str(failure))
        return failure.status
    except (daemon.PidFileError, store.StoreError, system.CommandFailed) as error:
        log.error(str(error))
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
