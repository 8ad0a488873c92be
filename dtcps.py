#!/usr/bin/env python3
"""dtcps: the server of DTCP, the Dynamic Tunnel Configuration Protocol.

One thread waits on all sockets and speaks the protocol (dtcp.wire); a few workers run the commands
(dtcp.plan, dtcp.system), so that a slow one for one user keeps nobody else waiting.  A tunnel lives
as long as its control connection does, and, when it is the server that goes, for a minute more:
the store (dtcp.store) remembers it, and the next server takes it over when its client comes back.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import math
import os
import queue
import re
import resource
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from functools import partial
from ipaddress import IPv4Address, IPv6Network
from typing import Any, NamedTuple

_lib = os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib")
if os.path.isdir(_lib):  # in a checkout
    sys.path.insert(0, _lib)

from dtcp import (  # noqa: E402
    __version__,
    cli,
    daemon,
    inquiries,
    plan,
    pools,
    report,
    settings,
    store,
    system,
    wire,
)
from dtcp.cli import FAILED, NOT_ALLOWED, OK, Failure, Parser, in_range  # noqa: E402
from dtcp.grant import Grant  # noqa: E402
from dtcp.limits import Penalties, Quiet  # noqa: E402
from dtcp.plan import Interface  # noqa: E402
from dtcp.pools import Pool  # noqa: E402
from dtcp.settings import Settings  # noqa: E402
from dtcp.shell import Shell  # noqa: E402
from dtcp.store import Store, Tunnel, User  # noqa: E402
from dtcp.timers import Timers  # noqa: E402

CONFIG_FILE = settings.PATH
PID_FILE = "/var/run/dtcps.pid"
SOCKET = "/var/run/dtcps.sock"
UDP_PORT = 4028
GREETING = f"dtcps {__version__} tunnel server"

DESCRIPTORS = 60  # that are kept free of clients, for the commands and ourselves
BACKLOG = 4096  # connections that wait to be accepted; the kernel's own limit is mostly lower
AT_ONCE = 64  # connections that are accepted, and others looked after, in turns
UNREAD = 4096  # bytes of replies that a client may leave unread
WORKERS = 4  # commands that run at the same time
LOOK_INTERVAL = 20.0  # seconds between two looks at the sockets of tunnels over UDP
CHANGES_INTERVAL = 5.0  # seconds between two looks for users that have changed
ENDING_TIME = 10.0  # seconds for taking all tunnels down at the end, for the first hundred


# --- the options ------------------------------------------------------------------------------


def _prefix(text: str) -> Pool:
    try:
        return pools.pairs(text)
    except pools.PoolError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!a} is no IPv4 address") from None


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!a} is no regular expression: {error}") from None


def _udp_interface(text: str) -> str:
    if not re.fullmatch(r"ng(0|[1-9][0-9]{0,4})", text):
        raise argparse.ArgumentTypeError(f"{text!a} is not the name of an interface such as ng10")
    return text


# fmt: off
def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="dtcps",
        usage="dtcps [-cdDoU] [-b udp-port] [-F fib] [-g address] [-i interfaces]\n"
              "             [-I udp-interface] [-p port] [--config file] [prefix]\n"
              "       dtcps --check | --status [--json]",
        description="Give IPv6 tunnels to DTCP clients.",
        allow_abbrev=False,
    )
    a = p.add_argument
    a("prefix", nargs="?", type=_prefix,
      help="addresses of tunnels of type host come out of this")
    a("-b", dest="udp_port", metavar="udp-port", type=in_range(1, 65535), default=UDP_PORT,
      help=f"with -U: the lowest port of ours ({UDP_PORT})")
    a("-c", dest="no_cloning", action="store_true",
      help="create no interfaces: use those there are")
    a("-d", dest="debug", action="store_true",
      help="stay in the foreground, show each conversation and command")
    a("-D", dest="foreground", action="store_true", help="do not become a daemon")
    a("-F", dest="fib", metavar="fib", type=in_range(0, 65535),
      help="FIB of the tunnel interfaces and of their routes")
    a("-g", dest="announced", metavar="address", type=_ipv4,
      help="tell clients this address of ours, instead of the one they have connected to")
    a("-i", dest="interfaces", metavar="interfaces", type=_pattern,
      help="the lowest interface to create, such as gif10; with -c: which ones to use")
    a("-I", dest="udp_interface", metavar="udp-interface", type=_udp_interface,
      help="with -U: the lowest interface, such as ng10")
    a("-o", dest="keep", action="store_true", help="do not destroy interfaces, use them again")
    a("-p", dest="port", metavar="port", type=in_range(1, 65535), default=wire.PORT,
      help=f"TCP port ({wire.PORT})")
    a("-U", dest="udp", action="store_true", help="allow tunnels over UDP")
    a("--check", action="store_true", help="check options, configuration and store, and exit")
    a("--config", metavar="file", help=f"({CONFIG_FILE})")
    a("--json", action="store_true", help="with --status: for machines")
    a("--status", action="store_true", help="show the tunnels of the running server")
    a("--version", action="version", version=f"dtcps {__version__}")
    return p
# fmt: on


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as a whole; ends with USAGE."""
    p = parser()
    options = p.parse_args(argv)
    if options.json and not options.status:
        p.error("--json goes with --status")
    name = options.interfaces.pattern if options.interfaces else None
    if name and not options.no_cloning and not re.fullmatch(r"gif(0|[1-9][0-9]{0,4})", name):
        p.error("-i: without -c it is the name of the lowest interface, such as gif10")
    if options.no_cloning and options.keep:
        p.error("-o goes without -c, which keeps all interfaces")
    return options


def configuration(options: argparse.Namespace) -> Settings:
    """What the file says, and the prefix on the command line.  Raises SettingsError."""
    path = options.config or CONFIG_FILE
    read = settings.read(path, needed=options.config is not None)
    if options.prefix is not None:
        read = read._replace(prefix=(options.prefix, *read.prefix))
    settings.check(read, path)
    return read


# --- one client -------------------------------------------------------------------------------


class Peer:
    """One client: its socket, its end of the conversation, and its tunnel."""

    __slots__ = (
        *("address", "ear", "ending", "made", "name", "own", "session", "socket", "unsent"),
        *("user", "waiting", "working", "writing"),
    )

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.name = "{}:{}".format(*sock.getpeername())
        self.address = IPv4Address(self.name.partition(":")[0])
        self.own = IPv4Address(sock.getsockname()[0])
        self.session: wire.Session
        self.user = ""
        self.made: Tunnel | None = None
        self.unsent = b""
        self.writing = False  # we wait until more can be sent
        self.ending = ""  # why, once the conversation is over
        self.working = False  # a worker has it in its hands
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


class Request(NamedTuple):
    """A tunnel that a user may have, as soon as nothing is in its way."""

    peer: Peer
    type: str
    grant: Grant
    tried: bool = False  # to remove a tunnel that resists


Finish = Callable[[], None]  # what the main thread does when a worker has finished


# --- the server -------------------------------------------------------------------------------


class Server:
    """All clients, on one listening socket."""

    def __init__(self, options: argparse.Namespace, log: daemon.Log) -> None:
        self._options = options
        self._log = log
        self._settings = configuration(options)
        self._udp_port: int | None = options.udp_port if options.udp else None
        self._store: Store  # for the main thread, which only reads,
        self._written: Store  # and for the workers, one at a time
        self._writing = threading.Lock()
        self._peers: set[Peer] = set()
        self._ears = 0  # sockets that wait for the first packet over UDP
        self._holders: dict[str, Peer] = {}  # who has a tunnel, or is about to
        self._unclaimed: dict[str, Tunnel] = {}  # of an earlier run, until its client comes back
        self._leaving: dict[str, Tunnel] = {}  # being taken down
        self._broken: dict[str, Tunnel] = {}  # could not be
        self._ends: dict[tuple[IPv4Address, IPv4Address], str] = {}  # whose outer pair it is
        self._blocked: list[Request] = []  # until something has gone
        self._per_address: dict[IPv4Address, int] = {}
        self._known: dict[str, IPv4Address] = {}  # from where a user has logged in
        self._names: set[str] = set()  # of interfaces, which cannot be used for another tunnel
        self._free: list[Interface] = []  # with -c and -o
        self._timers: Timers[Peer] = Timers(lambda peer: peer.session.deadline)
        self._selector: selectors.BaseSelector
        self._signals: daemon.Signals
        self._workers = concurrent.futures.ThreadPoolExecutor(WORKERS, "command")
        self._looker = concurrent.futures.ThreadPoolExecutor(1, "look")  # behind no login
        self._shell = Shell()  # of the main thread, at the start, the end, and in between
        self._look_shell = Shell()
        self._shells: queue.SimpleQueue[Shell] = queue.SimpleQueue()
        self._own = threading.local()  # of a worker: the shell that it has at the moment
        self._done: deque[tuple[Peer | None, Finish]] = deque()
        self._stopping = False
        self._restarting = False
        self._unreachable = system.System(log.command, self._shell.run)
        self._counts = report.Counts(time.time())
        self._next_look = math.inf  # at the sockets of tunnels over UDP
        self._look_interval = LOOK_INTERVAL
        self._next_changes = 0.0
        self._change = 0
        self._today = date.today()
        self._claim_until = math.inf
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._penalties = Penalties(self._settings.penalty, self._settings.penalty_most)
        self._quiet = Quiet(self._settings.log_lines)
        self._limit()
        self._inquiries: inquiries.Inquiries
        self._listener = _bound(self._settings.listen, options.port)
        self._local = _local_socket()
        self._metrics = _metrics_socket(self._settings)
        self._finished, self._finish = os.pipe()
        os.set_blocking(self._finished, False)

    def _limit(self) -> None:
        """The limits that the settings, and the system, have for us."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors == resource.RLIM_INFINITY:
            descriptors = 1 << 20
        self._most = max(1, min(self._settings.connections, descriptors - DESCRIPTORS))
        s = self._settings
        self._limits = wire.Limits(
            s.line_length, s.login_time, s.idle_time, s.logins_per_connection
        )
        self._penalties.least, self._penalties.most = s.penalty, s.penalty_most
        self._quiet.most = s.log_lines

    # --- before and after ---------------------------------------------------------------------

    def recover(self) -> None:
        """See what an earlier run has left: by the pid file's lock there is no other.

        Tunnels that still stand wait for their clients to come back, the rest is removed.
        """
        with contextlib.closing(self._shell):  # a daemon has another process, and so another one
            self._recover(system.System(self._log.command, self._shell.run))

    def _recover(self, host: system.System) -> None:
        fib = self._options.fib
        there = host.everything()
        with contextlib.closing(Store(self._settings.store)) as db:
            tunnels = db.tunnels()
            with_routes = any(tunnel.grant.prefixes for tunnel in tunnels) or db.unreachable()
            routes = host.routes(fib) if with_routes or self._prefixes() else {}
            for tunnel in tunnels:
                interface = there.get(tunnel.interface)
                if interface is None or not _stands(tunnel, interface, routes, fib):
                    db.forget(tunnel.user)
                else:
                    self._unclaimed[tunnel.user] = tunnel
                    if tunnel.grant.ports is None:
                        self._ends[_ends(tunnel.grant)] = tunnel.user
            self._refuse_unused(db, routes)
        kept = {tunnel.interface for tunnel in self._unclaimed.values()}
        nodes = {tunnel.node for tunnel in self._unclaimed.values()}
        cleaned = False
        for interface in there.values():
            if interface.name in kept or plan.GROUP not in interface.groups:
                continue
            if interface.description.startswith("dtcps "):
                self._log.notice(f"removing {interface.name}, which a killed dtcps has left")
                self._remove_left(host, interface)
                cleaned = True
            elif self._options.keep and not interface.description:
                self._free.append(Interface(interface.name, groups=interface.groups))
        if cleaned and (self._options.no_cloning or self._options.keep):
            there = host.everything()
            self._free = [
                Interface(each.name, groups=each.groups)
                for each in there.values()
                if each.name not in kept and plan.GROUP in each.groups and not each.description
            ]
        if self._udp_port is not None:
            for node in re.findall(r"Name: (dtcps[0-9]+u[0-9]+) ", host.run(("ngctl", "list"))):
                if node not in nodes:
                    host.run(("ngctl", "shutdown", f"{node}:"))
        self._names = set(there)
        if self._options.no_cloning:
            usable = self._options.interfaces or re.compile("gif[0-9]+")
            self._free = [
                each
                for each in there.values()
                if usable.fullmatch(each.name) and not (each.up or each.outer or each.description)
            ]

    def _remove_left(self, host: system.System, interface: Interface) -> None:
        if interface.name.startswith("ng"):
            return  # goes with its node
        if not self._options.no_cloning and not self._options.keep:
            host.run(("ifconfig", interface.name, "destroy"))
            return
        words: tuple[tuple[str, ...], ...] = (
            ("deletetunnel",),
            *(("inet6", str(address), "-alias") for address in interface.addresses),
            *(("inet6", "ifdisabled"), ("-description",), ("down",)),
        )
        for each in words:
            with contextlib.suppress(system.CommandFailed):
                host.run(("ifconfig", interface.name, *each))

    def _prefixes(self) -> list[IPv6Network]:
        s = self._settings
        given = [pool.prefix for pool in (*s.prefix, *s.delegate)]
        return list(dict.fromkeys([*given, *s.unreachable]))

    def _refuse_unused(self, db: Store, routes: dict[str, str]) -> None:
        """Make unreachable what of our prefixes nobody uses.  Raises CommandFailed."""
        before = {prefix for prefix in db.unreachable() if str(prefix) in routes}
        # Where somebody else has a route for the same prefix, it stays as it is.
        wanted = [each for each in self._prefixes() if each in before or str(each) not in routes]
        db.set_unreachable([*wanted, *(before - set(wanted))])
        fib = self._options.fib
        there = plan.unreachable(before, fib)
        self._unreachable.done = list(there)
        try:
            self._unreachable.change(plan.unreachable(wanted, fib))
        except system.CommandFailed:
            # Now all are gone, which is worse than what there was.
            with contextlib.suppress(system.CommandFailed):
                self._unreachable.up([s for s in there if s not in self._unreachable.done])
            raise
        db.set_unreachable(wanted)

    def serve(self, ready: Callable[[], None]) -> int:
        """Serve until we are told to end; `ready` is called when we do.  The exit status."""
        # Made here, for neither a kqueue(2) nor SQLite survives the fork(2) of a daemon.
        self._selector = selectors.DefaultSelector()
        self._store = Store(self._settings.store)
        self._written = Store(self._settings.store)
        self._signals = daemon.Signals()
        signal.signal(signal.SIGUSR2, self._restart)
        self._inquiries = inquiries.Inquiries(self._selector, self._answer)
        try:
            self._begin(ready)
            while not self._signals.stopping:
                self._turn(self._until())
        except BaseException as error:  # whatever it is, it must not leave tunnels behind
            self._log.error(f"ending, for something is wrong with us: {error!r}")
            self._end("ending")
            raise
        return self._end()

    def _begin(self, ready: Callable[[], None]) -> None:
        for _ in range(WORKERS):
            shell = Shell()
            shell.start()
            self._shells.put(shell)
        self._inquiries.listen(self._local, over_http=False)
        if self._metrics is not None:
            self._inquiries.listen(self._metrics, over_http=True)
        # Only now: who connects before anybody can answer would wait in a queue, which overflows
        # when all clients come back at once.
        self._listener.listen(BACKLOG)
        ready()
        if self._unclaimed:
            self._log.notice(f"{len(self._unclaimed)} tunnels wait for their clients to come back")
        self._log.notice(f"listening on port {self._listener.getsockname()[1]}")
        self._claim_until = time.monotonic() + self._settings.adopt_time
        self._change, _ = self._store.changes()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._signals.woken, selectors.EVENT_READ, self._on_signal)
        self._selector.register(self._finished, selectors.EVENT_READ, self._collect)

    def _restart(self, number: int, frame: object) -> None:
        self._restarting = self._signals.stopping = True

    def _on_signal(self, mask: int) -> None:
        self._signals.drain()
        if self._signals.reload:
            self._signals.reload = False
            self._reload()
        if self._signals.report:
            self._signals.report = False
            self._log.notice(
                f"{len(self._holders)} tunnels, {len(self._peers)} connections,"
                f" {self._counts.logins} logins, {self._counts.refused} refused"
            )

    def _turn(self, timeout: float | None) -> None:
        """Wait for something to happen, once, and let come of it what must."""
        for count, (key, mask) in enumerate(self._selector.select(timeout), 1):
            if not count % AT_ONCE and not self._signals.stopping:
                self._accept(0)  # thousands may be behind us, and more in the kernel's queue
            if isinstance(key.data, Peer):
                with self._for_itself(key.data):
                    if mask & selectors.EVENT_WRITE:
                        self._settle(key.data, [])
                    if mask & selectors.EVENT_READ:
                        self._receive(key.data)
            else:
                key.data(mask)
        now = time.monotonic()
        for peer in self._timers.due(now):
            with self._for_itself(peer):
                self._settle(peer, peer.session.tick(now))
        if self._next_look <= now:
            self._look_at_sockets()
        if self._next_changes <= now:
            self._look_for_changes(now)
        if self._claim_until <= now:
            self._claim_until = math.inf
            for tunnel in list(self._unclaimed.values()):
                self._remove(tunnel, "its client did not come back")

    @contextlib.contextmanager
    def _for_itself(self, peer: Peer | None) -> Iterator[None]:
        """Whatever goes wrong here, all others must not pay for it."""
        try:
            yield
        except Exception as error:
            self._say_error("fault", f"{peer.name if peer else 'fault'}: {error!r}")
            if peer is not None:
                peer.ending = peer.ending or "something is wrong with us"
                self._leave(peer)

    def _until(self) -> float:
        """Seconds to the next thing that time brings."""
        due = min(self._timers.first(), self._next_look, self._next_changes, self._claim_until)
        return max(0.0, due - time.monotonic())

    # --- connections --------------------------------------------------------------------------

    def _accept(self, mask: int) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, (host, _port) = self._listener.accept()
            except OSError:  # nobody else, or gone again, or no descriptor free
                return
            self._greet(sock, IPv4Address(host))

    def _greet(self, sock: socket.socket, address: IPv4Address) -> None:
        now = time.monotonic()
        here = self._per_address.get(address, 0)
        why = ""
        if len(self._peers) + self._ears >= self._most:
            why = f"{self._most} connections are open"
        elif here >= self._settings.connections_per_address:
            why = f"{here} connections from there are open"
        elif (left := self._penalties.left(address, now)) > 0:
            why = f"must wait {left:.0f} s more after failed logins"
        if why:
            self._counts = self._counts._replace(turned_away=self._counts.turned_away + 1)
            self._say("turned away", now, f"{address}: turned away: {why}")
            with contextlib.suppress(OSError):
                sock.send(f"-ERR {wire.BUSY}\r\n".encode())
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            peer = Peer(sock)
        except OSError:  # the client has gone already
            sock.close()
            return
        peer.session = wire.Session(
            GREETING,
            secrets.token_hex(16).upper(),  # 128 bits, for this connection only
            self._password,
            now,
            limits=self._limits,
            failed=partial(self._failed, address),
            must_wait=partial(self._must_wait, address),
            **({"trace": partial(self._trace, peer.name)} if self._options.debug else {}),
        )
        self._peers.add(peer)
        self._per_address[address] = here + 1
        self._selector.register(sock, selectors.EVENT_READ, peer)
        self._timers.watch(peer)
        self._settle(peer, [])

    def _trace(self, name: str, line: str) -> None:
        self._log.debug(f"{name} {line}")

    def _password(self, user: str) -> str | None:
        try:
            return self._store.password(user)
        except store.StoreError as error:
            self._say_error("store", f"the store cannot be read: {error}")
            raise wire.Unavailable("the store cannot be read") from None

    def _failed(self, address: IPv4Address, user: str) -> None:
        """A login has failed: address and user must wait."""
        now = time.monotonic()
        self._counts = self._counts._replace(refused=self._counts.refused + 1)
        user = user if wire.USER.fullmatch(user) else ""
        waits = [self._penalties.fail(address, now)]
        if user and self._known.get(user) != address:
            waits.append(self._penalties.fail(user, now))
        wait = f"; must wait {max(waits):.0f} s" if max(waits) else ""
        name = user or "a user without a proper name"
        self._say("failed", now, f"{address}: login of {name} failed{wait}")

    def _must_wait(self, address: IPv4Address, user: str) -> bool:
        """Whether it is too early to look at a login.

        Who tries passwords from elsewhere must not keep a user out of where he usually is.
        """
        now = time.monotonic()
        if self._penalties.left(address, now) > 0:
            return True
        return self._known.get(user) != address and self._penalties.left(user, now) > 0

    def _say(self, kind: str, now: float, text: str) -> None:
        """A line of a kind of which there may be many."""
        say, kept = self._quiet.say(kind, now)
        if say:
            self._log.notice(text + (f" (and {kept} more like this)" if kept else ""))

    def _say_error(self, kind: str, text: str) -> None:
        """The same of something that is wrong here."""
        say, kept = self._quiet.say(kind, time.monotonic())
        if say:
            self._log.error(text + (f" (and {kept} more like this)" if kept else ""))

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
        if peer not in self._peers:
            return
        peer.flush()
        if peer.ending:
            self._leave(peer)
            return
        self._timers.watch(peer)
        if bool(peer.unsent) != peer.writing:
            peer.writing = bool(peer.unsent)
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.writing else 0)
            self._selector.modify(peer.socket, wanted, peer)

    def _send_away(self, peer: Peer, text: str, reason: str) -> None:
        """End a conversation from our side."""
        peer.session.close(text)
        self._settle(peer, [wire.Ended(reason)])

    def _leave(self, peer: Peer) -> None:
        """Close a connection; its tunnel goes with it."""
        if peer in self._peers:
            self._peers.discard(peer)
            self._timers.forget(peer)
            self._selector.unregister(peer.socket)
            peer.socket.close()
            left = self._per_address.pop(peer.address) - 1
            if left:
                self._per_address[peer.address] = left
        self._stop_listening(peer)
        if peer.working:
            return  # and come back here when it is finished
        if self._holders.get(peer.user) is not peer:
            return
        del self._holders[peer.user]
        if peer.made is not None:
            self._remove(peer.made, peer.ending)
        else:
            self._disown(peer)
            self._retry()

    def _disown(self, peer: Peer) -> None:
        ends = (peer.own, peer.address)
        if self._ends.get(ends) == peer.user:
            del self._ends[ends]

    # --- who may have what --------------------------------------------------------------------

    def _asked(self, peer: Peer, asked: wire.Asked) -> None:
        """Refuse what a user asks for, or see that he gets it."""
        kind = "network" if asked.type == "tunnelroute" else asked.type
        try:
            user = self._store.user(asked.user)
            why = self._objection(user, kind, asked)
            if user is None or why:
                why = why or wire.BAD_LOGIN
                self._say("refused", time.monotonic(), f"{peer.address}: {asked.user}: {why}")
                self._refuse(peer, why)
                return
            grant = self._grant(self._store.leased, peer, user, kind)
        except store.StoreError as error:
            self._log.error(f"{asked.user}: {error}")
            self._refuse(peer, wire.INTERNAL)
            return
        peer.user = user.name
        self._penalties.forgive(peer.address)
        self._penalties.forgive(user.name)
        self._known[user.name] = peer.address
        self._counts = self._counts._replace(logins=self._counts.logins + 1)
        if grant is not None:
            self._offer(Request(peer, kind, _over(grant, asked.udp)))
            return
        # The first time here: something out of a pool is due, and has to be written down.
        self._submit(peer, partial(self._lease, peer, user, kind, asked.udp))

    def _objection(self, user: User | None, kind: str, asked: wire.Asked) -> str:
        """Why a user cannot have what he asks for, or nothing."""
        if user is None:
            return wire.BAD_LOGIN
        if why := user.barred(date.today()):
            return why
        if asked.udp is not None and self._udp_port is None:
            return wire.NO_UDP
        if kind not in user.types:
            return wire.NOT_THIS_TYPE.format(asked.type)
        if kind == "network" and not user.prefixes and not self._settings.delegate:
            return wire.NO_ROUTE
        if kind == "host" and user.address is None and not self._settings.prefix:
            return wire.BAD_TYPE.format(asked.type)
        return ""

    def _grant(
        self,
        lease: Callable[[str, Iterable[Pool]], pools.Span | None],
        peer: Peer,
        user: User,
        kind: str,
    ) -> Grant | None:
        """What a user gets, or None: out of the pools there is nothing for him (yet)."""
        grant = Grant(peer.address, peer.own)
        if kind == "host":
            pair = pools.pair(user.address) if user.address else None
            pair = pair or lease(user.name, self._settings.prefix)
            return pair and grant._replace(inner=pair.client, peer=pair.server)
        if kind == "network":
            if user.prefixes:
                return grant._replace(prefixes=user.prefixes)
            span = lease(user.name, self._settings.delegate)
            return span and grant._replace(prefixes=(span.network,))
        return grant

    def _lease(self, peer: Peer, user: User, kind: str, udp: int | None) -> Finish:
        try:
            with self._writing:
                grant = self._grant(self._written.lease, peer, user, kind)
        except store.StoreError as error:
            self._log.error(f"{user.name}: {error}")
            return partial(self._refuse, peer, wire.INTERNAL)
        if grant is None:
            self._say_error("pool", f"{user.name}: the pool is empty")
            return partial(self._refuse, peer, wire.SOLD_OUT)
        return partial(self._offer, Request(peer, kind, _over(grant, udp)))

    def _refuse(self, peer: Peer, text: str) -> None:
        if peer.session.granted:
            self._send_away(peer, text, "its tunnel is broken")
        else:
            if self._holders.get(peer.user) is peer:
                del self._holders[peer.user]
                self._disown(peer)
                self._retry()
            peer.user = ""
            self._settle(peer, peer.session.refuse(text, time.monotonic()))

    # --- tunnels ------------------------------------------------------------------------------

    def _offer(self, request: Request) -> None:
        """Make a user's tunnel, or hand over the one he has, once nothing is in the way."""
        peer, grant = request.peer, request.grant
        if peer.ending:
            return
        user, ends = peer.user, _ends(grant)
        holder = self._holders.get(user)
        if holder is not None and holder is not peer:
            # Its connection is half open, and its client has restarted.
            made, ready = holder.made, not holder.working and not holder.waiting
            if ready and made is not None and _same(made.grant, grant):
                holder.made = None
                del self._holders[user]
                self._send_away(holder, *(f"logged in again from {peer.address}",) * 2)
                self._log.notice(f"{user}: logged in again from {peer.address}")
                self._take_over(request, made)
                return
            self._blocked.append(request)
            if not holder.ending:
                self._send_away(holder, *(f"logged in again from {peer.address}",) * 2)
            return
        standing = self._unclaimed.get(user)
        if standing is not None and _same(standing.grant, grant):
            del self._unclaimed[user]
            self._counts = self._counts._replace(adopted=self._counts.adopted + 1)
            self._take_over(request, standing)
            return
        owner = self._ends.get(ends) if grant.ports is None else None
        for name in dict.fromkeys(filter(None, (user, owner))):
            tunnel = self._unclaimed.get(name) or self._broken.get(name)
            if tunnel is not None:
                if name in self._broken and request.tried:
                    self._refuse(peer, wire.INTERNAL)
                    return
                self._blocked.append(request._replace(tried=name in self._broken))
                self._remove(tunnel, f"{user} has logged in from {peer.address}")
                return
            if name in self._leaving:
                self._blocked.append(request)
                return
        if owner is not None and owner != user:
            # gif(4) cannot have two tunnels with the same ends.
            if (other := self._holders.get(owner)) is not None and other.ending:
                self._blocked.append(request)
            else:
                text = f"{peer.address}: {user}: {owner} has a tunnel to there"
                self._say("refused", time.monotonic(), text)
                self._refuse(peer, wire.BUSY)
            return
        self._holders[user] = peer
        if grant.ports is not None:
            self._listen_for(request)
            return
        self._ends[ends] = user
        self._submit(peer, partial(self._bring_up, request, self._place()))

    def _take_over(self, request: Request, tunnel: Tunnel) -> None:
        """A tunnel that stands already is this client's."""
        peer = request.peer
        self._holders[peer.user] = peer
        peer.made = tunnel
        if tunnel.grant.ports is None:
            self._ends[_ends(tunnel.grant)] = peer.user
        else:
            self._watch_sockets()
        self._log.notice(f"{peer.user}: up: {_told(tunnel)}, as it was")
        self._settle(peer, peer.session.accept(self._reply(tunnel.grant), time.monotonic()))

    def _reply(self, grant: Grant) -> str:
        announced: IPv4Address | None = self._options.announced
        return (grant._replace(remote=announced) if announced else grant).reply()

    def _place(self, *, udp: bool = False) -> Interface | str | None:
        """Where a tunnel goes: an interface that is there, the name of a new one, or None."""
        if udp:
            return self._next_name(self._options.udp_interface)
        if self._free:
            return self._free.pop(0)
        if self._options.no_cloning:
            return None
        lowest = self._options.interfaces
        return self._next_name(lowest.pattern if lowest else None)

    def _next_name(self, lowest: str | None) -> str:
        """The first name from there on that we know of nobody to have; without one, any."""
        if lowest is None:
            return ""
        kind, number = lowest.rstrip("0123456789"), int(lowest.lstrip("abcdefghijklmnopqrstuvwxyz"))
        while f"{kind}{number}" in self._names:
            number += 1
        name = f"{kind}{number}"
        self._names.add(name)
        return name

    def _bring_up(self, request: Request, place: Interface | str | None) -> Finish:
        """Make the tunnel; in a worker."""
        peer, grant = request.peer, request.grant
        if place is None:
            return partial(self._refuse, peer, wire.SOLD_OUT)
        mark = plan.mark("dtcps", peer.user, str(peer.address), os.getpid())
        node = f"dtcps{os.getpid()}u{grant.ports[1]}" if grant.ports else ""
        existing = place if isinstance(place, Interface) else None
        options = self._plan_options(node)
        if isinstance(place, str) and place:
            options = options._replace(interface=place)
        host = self._host()
        host.tunnel = existing.name if existing else None
        try:
            # Followed by other words, `create` takes what is there already, whosever it is.
            if options.interface and host.interface(options.interface) is not None:
                return partial(self._try_elsewhere, request)
            host.up(plan.server(grant.turned(), options, mark, existing))
            assert host.tunnel is not None
            kept = existing is not None or (options.keep and grant.ports is None)
            made = Tunnel(
                *(peer.user, request.type, grant, host.tunnel, mark, node, kept, time.time())
            )
        except system.CommandFailed as failed:
            # The details are for our log only.
            self._log.error(f"{peer.user}: the tunnel could not be made: {failed}")
            left = Tunnel(
                *(peer.user, request.type, grant, host.tunnel or "", mark, node),
                *(existing is not None, time.time()),
            )
            failures = failed.undone_badly
            return partial(self._not_made, request, place, left if failures else None, failures)
        try:
            with self._writing:
                losers = self._written.keep(made)
        except store.StoreError as error:
            self._log.error(str(error))
            failures = host.down()
            return partial(self._not_made, request, place, made if failures else None, failures)
        return partial(self._granted, request, made, losers)

    def _try_elsewhere(self, request: Request) -> None:
        if request.peer.ending:
            self._leave(request.peer)
            return
        udp = request.grant.ports is not None
        self._submit(request.peer, partial(self._bring_up, request, self._place(udp=udp)))

    def _not_made(
        self,
        request: Request,
        place: Interface | str,
        left: Tunnel | None,
        failures: list[system.CommandFailed],
    ) -> None:
        """Say so; what is `left` of it, for `failures`, is tried again at the user's next login."""
        user = request.peer.user
        for failure in failures:
            self._log.error(f"{user}: could not be undone: {failure}")
        if left is None:
            if isinstance(place, Interface):
                self._free.append(place)
            else:
                self._names.discard(place)
        else:
            self._broken[user] = left
        self._refuse(request.peer, wire.INTERNAL)
        if left is not None and left.grant.ports is None:
            self._ends.setdefault(_ends(left.grant), user)

    def _plan_options(self, node: str = "") -> plan.Options:
        options = self._options
        return plan.Options(mtu=self._settings.mtu, fib=options.fib, keep=options.keep, node=node)

    def _host(self) -> system.System:
        """What runs the commands of this worker."""
        host = system.System(self._log.command, self._own.shell.run)
        if self._stopping:
            host.hurry()
        return host

    def _granted(self, request: Request, made: Tunnel, losers: list[str]) -> None:
        peer = request.peer
        peer.made = made
        for name in losers:
            self._lose(name, made.interface)
        self._names.add(made.interface)
        self._log.notice(f"{peer.user}: up: {_told(made)}")
        if peer.ending:
            self._leave(peer)
        elif made.grant.ports is not None:  # over UDP it has had its answer long since
            self._watch_sockets()
        else:
            reply = self._reply(made.grant)
            self._settle(peer, peer.session.accept(reply, time.monotonic()))
        if self._holders.get(request.peer.user) is peer:
            # What was changed while it was being made was seen by nobody.
            self._check_users([peer.user])

    def _check_users(self, names: Iterable[str]) -> None:
        try:
            for name in names:
                self._see_user(name)
        except store.StoreError as error:
            self._say_error("store", f"the store cannot be read: {error}")

    def _lose(self, name: str, interface: str) -> None:
        """Somebody destroyed the interface of this user's tunnel: another one has that name now."""
        why = f"{interface} was destroyed behind our back"
        holder = self._holders.get(name)
        if holder is not None and holder.made is not None:
            holder.made = holder.made._replace(interface="")  # not to free a name that is in use
            self._send_away(holder, wire.INTERNAL, why)
        elif (tunnel := self._unclaimed.get(name) or self._broken.get(name)) is not None:
            self._remove(tunnel._replace(interface=""), why)

    def _remove(self, tunnel: Tunnel, reason: str) -> None:
        """Take down a tunnel that nobody holds any more."""
        self._unclaimed.pop(tunnel.user, None)
        self._broken.pop(tunnel.user, None)
        self._leaving[tunnel.user] = tunnel
        self._submit(None, partial(self._take_down, tunnel, reason))

    def _take_down(self, tunnel: Tunnel, reason: str) -> Finish:
        host = self._host()
        # The plan that made it tells how to undo it, whichever process that was.
        groups = (plan.GROUP,) if self._options.keep else ()
        existing = Interface(tunnel.interface, groups=groups) if tunnel.kept else None
        options = self._plan_options(tunnel.node)._replace(keep=False)
        steps = plan.server(tunnel.grant.turned(), options, tunnel.mark, existing)
        host.resume(steps, tunnel.interface)
        failures = host.down()
        for failure in failures:
            self._log.error(f"{tunnel.user}: could not be undone: {failure}")
        if not failures:
            try:
                with self._writing:
                    self._written.forget(tunnel.user)
            except store.StoreError as error:
                self._log.error(str(error))
        lasted = time.time() - tunnel.since
        what = tunnel.interface or "it"
        self._log.notice(f"{tunnel.user}: down: {reason}; {what} was up {lasted:.0f} s")
        return partial(self._gone, tunnel, bool(failures))

    def _gone(self, tunnel: Tunnel, resists: bool) -> None:
        self._leaving.pop(tunnel.user, None)
        if resists:
            self._broken[tunnel.user] = tunnel
        else:
            self._names.discard(tunnel.interface)
            if tunnel.kept:
                groups = (plan.GROUP,) if self._options.keep else ()
                self._free.append(Interface(tunnel.interface, groups=groups))
            ends = _ends(tunnel.grant)
            if tunnel.grant.ports is None and self._ends.get(ends) == tunnel.user:
                del self._ends[ends]
        self._retry()

    def _retry(self) -> None:
        """Something has gone: perhaps it was in somebody's way."""
        blocked, self._blocked = self._blocked, []
        for request in blocked:
            self._offer(request)

    # --- work ---------------------------------------------------------------------------------

    def _submit(
        self, peer: Peer | None, work: Callable[[], Finish], *, looks: bool = False
    ) -> None:
        """Set a worker to something; what it returns is done by the main thread.

        What only `looks` has a worker of its own.
        """

        def run() -> None:
            self._own.shell = self._look_shell if looks else self._shells.get()
            try:
                finish = work()
            except Exception as error:  # a worker must not die silently with a peer in its hands
                self._log.error(f"{peer.user if peer else 'taking down'}: {error!r}")
                finish = partial(self._refuse, peer, wire.INTERNAL) if peer else _nothing
            if not looks:
                self._shells.put(self._own.shell)
            self._done.append((peer, finish))
            os.write(self._finish, b".")

        if peer is not None:
            peer.working = True
        (self._looker if looks else self._workers).submit(run)

    def _finish_work(self, peer: Peer | None, finish: Finish) -> None:
        if peer is not None:
            peer.working = False
        finish()
        if peer is not None and peer.ending and not peer.working:
            self._leave(peer)  # it went while we were at work for it

    def _collect(self, mask: int) -> None:
        """Take over from the workers."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._finished, 4096)
        while self._done:  # to which workers add at any moment
            peer, finish = self._done.popleft()
            with self._for_itself(peer):
                self._finish_work(peer, finish)

    # --- over UDP -----------------------------------------------------------------------------

    def _listen_for(self, request: Request) -> None:
        """Grant a tunnel over UDP, and wait for the client's first packet before it is made.

        What we sent before the client is ready would be answered with an ICMP unreachable, which
        disconnects our ng_ksocket(4); and from behind a NAT only a packet tells where the client
        is.  So a socket of our own, on the same port, hears that first packet.
        """
        peer, grant = request.peer, request.grant
        assert grant.ports is not None
        everything = (*self._unclaimed.values(), *self._leaving.values(), *self._broken.values())
        made = [each.made for each in self._holders.values()]
        taken = {each.grant.ports[1] for each in (*everything, *made) if each and each.grant.ports}
        taken |= {
            each.waiting.ports[1]
            for each in self._holders.values()
            if each.waiting and each.waiting.ports
        }
        port = self._open_ear(request, taken)
        if port is None:
            self._refuse(peer, wire.SOLD_OUT)
            return
        peer.waiting = grant._replace(ports=(grant.ports[0], port))
        self._settle(peer, peer.session.accept(self._reply(peer.waiting), time.monotonic()))

    def _open_ear(self, request: Request, taken: set[int]) -> int | None:
        """Listen on the first UDP port that is not taken, and that nobody else listens on."""
        assert self._udp_port is not None
        try:
            ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        except OSError as error:
            self._say_error("ear", f"{request.peer.user}: no socket over UDP: {error.strerror}")
            return None
        ear.setblocking(False)
        for port in range(self._udp_port, 65536):
            if port in taken:
                continue
            with contextlib.suppress(OSError):
                ear.bind((str(request.peer.own), port))
                request.peer.ear = ear
                self._ears += 1
                self._selector.register(ear, selectors.EVENT_READ, partial(self._hear, request))
                return port
        ear.close()
        return None

    def _hear(self, request: Request, mask: int) -> None:
        """The first packet of a client: now it is ready, and we know where it is."""
        peer = request.peer
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
        grant = peer.waiting._replace(ports=(announced or port, own))
        self._stop_listening(peer)
        place = self._place(udp=True)
        self._submit(peer, partial(self._bring_up, request._replace(grant=grant), place))

    def _stop_listening(self, peer: Peer) -> None:
        if peer.ear is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(peer.ear)
            peer.ear.close()
            self._ears -= 1
        peer.ear = peer.waiting = None

    def _watch_sockets(self) -> None:
        self._look_interval = 1.0  # the other end may not be ready, for a moment
        self._next_look = min(self._next_look, time.monotonic() + self._look_interval)

    def _look_at_sockets(self) -> None:
        """See that the tunnels over UDP can send: an ICMP unreachable disconnects their sockets."""
        over_udp = [
            (peer, peer.made)
            for peer in self._holders.values()
            if peer.made is not None and peer.made.grant.ports is not None
        ]
        self._look_interval = min(LOOK_INTERVAL, 2 * self._look_interval)
        self._next_look = time.monotonic() + self._look_interval if over_udp else math.inf
        for peer, made in over_udp:
            if not peer.working:
                self._submit(peer, partial(self._mend, made))

    def _mend(self, tunnel: Tunnel) -> Finish:
        host = self._host()
        options = self._plan_options(tunnel.node)
        host.done = plan.server(tunnel.grant.turned(), options, tunnel.mark)
        host.tunnel = tunnel.interface
        try:
            if host.mend():
                self._log.info(f"{tunnel.user}: the UDP socket had lost its peer: connected again")
        except system.CommandFailed as failed:
            self._log.error(f"{tunnel.user}: the UDP socket cannot be mended: {failed}")
        return _nothing

    # --- changes ------------------------------------------------------------------------------

    def _look_for_changes(self, now: float) -> None:
        """See what dtcpauth(8) has done, and whether a day has ended for somebody."""
        self._next_changes = now + CHANGES_INTERVAL
        for kind, kept in self._quiet.kept(now):
            self._log.notice(f"{kind}: {kept} more")
        try:
            self._change, names = self._store.changes(self._change)
            if self._today != date.today():
                self._today = date.today()
                names = [*self._holders, *self._unclaimed]
            for name in names:
                self._see_user(name)
        except store.StoreError as error:
            self._log.error(str(error))

    def _see_user(self, name: str) -> None:
        """End a tunnel that its user may not have any more, or not like this."""
        holder = self._holders.get(name)
        tunnel = holder.made if holder is not None else self._unclaimed.get(name)
        if tunnel is None:
            return
        user = self._store.user(name)
        if user is None:
            why = "this user was deleted"
        elif not (why := user.barred(self._today)):
            if tunnel.type not in user.types:
                why = wire.NOT_THIS_TYPE.format(tunnel.type)
            elif not self._still_right(user, tunnel):
                why = "what this user has was changed"
        if not why:
            return
        if holder is not None:
            self._send_away(holder, why, why)
        else:
            self._remove(tunnel, why)

    def _still_right(self, user: User, tunnel: Tunnel) -> bool:
        """Whether the user would get the same again."""
        grant = tunnel.grant
        if tunnel.type == "host":
            if user.address is not None:
                return grant.inner == user.address
            span = self._store.leased(user.name, self._settings.prefix)
            return span is not None and span.client == grant.inner
        if tunnel.type == "network":
            if user.prefixes:
                return grant.prefixes == user.prefixes
            span = self._store.leased(user.name, self._settings.delegate)
            return span is not None and grant.prefixes == (span.network,)
        return True

    def _reload(self) -> None:
        """Take the configuration anew, whole or not at all."""
        before = self._settings
        try:
            after = configuration(self._options)
            for key in ("listen", "store"):
                if getattr(before, key) != getattr(after, key):
                    raise settings.SettingsError(f"{key} cannot change while we run: restart")
            check(self._options)
            self._settings = after
            metrics = None
            if after.metrics != before.metrics:
                metrics = _metrics_socket(after)
            host = system.System(self._log.command, self._shell.run)
            with contextlib.closing(Store(after.store)) as db, contextlib.closing(self._shell):
                if self._prefixes() or db.unreachable():
                    self._refuse_unused(db, host.routes(self._options.fib))
        except (
            *(Failure, settings.SettingsError, store.StoreError, system.CommandFailed),
        ) as error:
            self._settings = before
            self._log.error(f"nothing was changed: {error}")
            return
        if after.metrics != before.metrics:
            self._inquiries.close(over_http=True)
            if metrics is not None:
                self._inquiries.listen(metrics, over_http=True)
        if after != before:
            self._limit()
        self._log.notice("the configuration was read again")
        self._check_users([*self._holders, *self._unclaimed])

    # --- telling ------------------------------------------------------------------------------

    def _answer(self, inquiry: inquiries.Inquiry) -> None:
        """Tell what there is; how much went through the interfaces, a worker finds out."""
        tunnels = [each.made for each in self._holders.values() if each.made is not None]
        counts = self._counts._replace(connections=len(self._peers), unclaimed=len(self._unclaimed))

        def look() -> Finish:
            try:
                seen = self._host().traffic()
            except (system.CommandFailed, ValueError, IndexError):
                seen = {}
            traffic = {name: report.Traffic(*each) for name, each in seen.items()}
            if inquiry.over_http:
                text = "\n".join(report.prometheus(counts, tunnels, traffic)) + "\n"
            else:
                text = json.dumps(report.facts(counts, tunnels, traffic))
            return partial(self._inquiries.answer, inquiry, text)

        self._submit(None, look, looks=True)

    # --- the end ------------------------------------------------------------------------------

    def _end(self, how: str = "ending as asked") -> int:
        """Take all tunnels down; or leave them to the next server, which will be there soon."""
        if self._restarting:
            how = "leaving the tunnels to the next one"
        self._log.notice(f"{how}, with {len(self._peers)} connections")
        with contextlib.suppress(KeyError):  # when we have not got so far
            self._selector.unregister(self._listener)
        self._listener.close()
        self._inquiries.close()
        with contextlib.suppress(OSError):
            os.unlink(SOCKET)
        self._next_look = self._next_changes = self._claim_until = math.inf
        if self._restarting:
            return self._hand_over()
        self._stopping = True
        standing = len(self._holders) + len(self._unclaimed)
        for tunnel in list(self._unclaimed.values()):
            self._remove(tunnel, "the server ends")
        for peer in list(self._peers):
            self._send_away(peer, wire.STOPPING, "the server ends")
        end = time.monotonic() + ENDING_TIME * max(1.0, standing / 100)
        while (self._holders or self._leaving) and (left := end - time.monotonic()) > 0:
            self._turn(left)
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._looker.shutdown(wait=False, cancel_futures=True)
        self._unreachable.hurry()
        failures = self._unreachable.down()
        for failure in failures:
            self._log.error(f"could not be undone: {failure}")
        with contextlib.suppress(store.StoreError), self._writing:
            self._written.set_unreachable(each for each in self._prefixes() if failures and each)
        failed = self._holders or self._leaving or self._broken or failures
        return FAILED if failed else OK

    def _hand_over(self) -> int:
        """Finish what is under way, and close the connections; the tunnels stay."""
        end = time.monotonic() + ENDING_TIME
        while any(each.working for each in self._holders.values()) or self._leaving:
            if (left := end - time.monotonic()) <= 0:
                break
            self._turn(left)
        for peer in self._peers:
            peer.socket.close()
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._looker.shutdown(wait=False, cancel_futures=True)
        return OK


def _over(grant: Grant, udp: int | None) -> Grant:
    """The grant over UDP, if that was asked for; our port is not known yet."""
    return grant if udp is None else grant._replace(ports=(udp, 0))


def _same(made: Grant, wanted: Grant) -> bool:
    """Whether a tunnel that stands is the one that is wanted.

    Over UDP our port is what it was.  Who does not know his is behind a NAT, which may have given
    him another one since: that has to be learnt anew.
    """
    if made.ports is not None and wanted.ports is not None and wanted.ports[0] == made.ports[0]:
        wanted = wanted._replace(ports=made.ports)
    return made == wanted


def _ends(grant: Grant) -> tuple[IPv4Address, IPv4Address]:
    """The outer pair, ours first."""
    return grant.remote, grant.local


def _stands(tunnel: Tunnel, interface: Interface, routes: dict[str, str], fib: int | None) -> bool:
    """Whether a tunnel of an earlier run is what it was."""
    grant = tunnel.grant
    return (
        interface.description == tunnel.mark
        and plan.GROUP in interface.groups
        and interface.up
        and (fib is None or interface.fib == fib)
        and (grant.ports is not None or interface.outer == _ends(grant))
        and (grant.peer is None or grant.peer in interface.addresses)
        and all(routes.get(str(prefix)) == tunnel.interface for prefix in grant.prefixes)
    )


def _told(tunnel: Tunnel) -> str:
    grant = tunnel.grant
    has = [str(each) for each in (grant.inner, *grant.prefixes) if each is not None]
    return ", ".join((f"{tunnel.interface} to {grant.local}", tunnel.type, *has))


def _nothing() -> None:
    pass


def _is_ipv6(packet: bytes) -> bool:
    """Whether this is one whole IPv6 packet (RFC 8200 section 3)."""
    return (
        len(packet) >= 40
        and packet[0] >> 4 == 6
        and len(packet) == 40 + int.from_bytes(packet[4:6], "big")
    )


def _bound(address: IPv4Address, port: int) -> socket.socket:
    """A socket at that port, which does not listen yet.  Raises Failure."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((str(address), port))
    except OSError as error:
        sock.close()
        raise Failure(f"port {port}: {error.strerror}") from None
    sock.setblocking(False)
    return sock


def _local_socket() -> socket.socket:
    try:
        return inquiries.local(SOCKET)
    except OSError as error:
        raise Failure(f"{SOCKET}: {error.strerror}") from None


def _metrics_socket(wanted: Settings) -> socket.socket | None:
    """Raises Failure."""
    if wanted.metrics is None:
        return None
    address, port = wanted.metrics
    try:
        sock = _bound(address, port)
    except Failure as failure:
        raise Failure(f"metrics: {failure}") from None
    sock.listen(inquiries.MOST)
    return sock


def show_status(*, as_json: bool) -> int:
    """Print what the running server tells of itself; OK when there is one."""
    try:
        told: Any = inquiries.ask(SOCKET)
    except PermissionError:
        raise Failure(f"{SOCKET}: not allowed; become root", NOT_ALLOWED) from None
    except (FileNotFoundError, ConnectionRefusedError):
        cli.show("{}" if as_json else "not running")
        return FAILED
    except OSError as error:
        raise Failure(f"{SOCKET}: {error.strerror or error}") from None
    cli.show(json.dumps(told, indent=1) if as_json else "\n".join(report.text(told, time.time())))
    return OK


def check(options: argparse.Namespace) -> Settings:
    """The configuration, if we could start with it.  Raises Failure, SettingsError, StoreError."""
    read = configuration(options)
    with contextlib.closing(Store(read.store)) as db:
        for pool in read.prefix:
            if (found := db.fixed(pools.whole(pool.prefix))) is not None:
                raise Failure(f"{found[0]} has {found[1]}, which overlaps prefix {pool}")
        # Fixed ones may lie in these, but not the other way round: the unreachable routes would be
        # in the place of the users' own, or go before them.
        for key, prefix in (
            *(("delegate", pool.prefix) for pool in read.delegate),
            *(("unreachable", prefix) for prefix in read.unreachable),
        ):
            start = prefix.network_address
            found = db.fixed(pools.Span(start, start))
            if found is not None and prefix.subnet_of(found[1]):
                raise Failure(f"{found[0]} has {found[1]}, and {key} {prefix} lies within it")
    return read


def main(argv: list[str] | None = None) -> int:
    """Run dtcps; its exit status."""
    daemon.settle()
    options = parse(argv)
    log = daemon.Log("dtcps", verbose=options.debug)
    try:
        if options.status:
            return show_status(as_json=options.json)
        if options.check:
            check(options)
            return OK
        if os.geteuid() != 0:
            raise Failure("must be root to make tunnels", NOT_ALLOWED)
        check(options)
        pid_file = daemon.PidFile(PID_FILE)
        try:
            server = Server(options, log)
            server.recover()
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
    except store.NotAllowed as error:
        log.error(str(error))
        return NOT_ALLOWED
    except (
        *(daemon.PidFileError, settings.SettingsError, store.StoreError, system.CommandFailed),
    ) as error:
        log.error(str(error))
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
