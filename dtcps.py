#!/usr/bin/env python3
"""dtcps: the server of DTCP, the Dynamic Tunnel Configuration Protocol.

One thread waits on all sockets and speaks the protocol (dtcp.wire); a few workers run the commands
(dtcp.plan, dtcp.system), so that a slow one for one user keeps nobody else waiting.  A tunnel lives
as long as its control connection does, and, when it is the server that goes, for a minute more:
the store (dtcp.server.store) remembers it, and the next server takes it over when its client comes
back.

Here are options, start, loop, signals and end; the rest is in dtcp.server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial

_lib = os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib")
if os.path.isdir(_lib):  # in a checkout
    sys.path.insert(0, _lib)

from dtcp import __version__, cli, daemon, wire  # noqa: E402
from dtcp.cli import Failure, Invalid, Parser, in_range, ipv4, matching  # noqa: E402
from dtcp.errors import FAILED, NOT_ALLOWED, OK, CommandFailed, Error  # noqa: E402
from dtcp.server import (  # noqa: E402
    certificate,
    inquiries,
    leases,
    pools,
    recovery,
    report,
    sessions,
    settings,
    traffic,
    udp,
    unreachable,
)
from dtcp.server.building import Builder  # noqa: E402
from dtcp.server.certificate import Certificate  # noqa: E402
from dtcp.server.counts import Counts  # noqa: E402
from dtcp.server.database import StoreError  # noqa: E402
from dtcp.server.interfaces import Interfaces  # noqa: E402
from dtcp.server.limits import Quiet  # noqa: E402
from dtcp.server.pools import Pool  # noqa: E402
from dtcp.server.records import HELD, State  # noqa: E402
from dtcp.server.sessions import AT_ONCE, Peer, Sessions  # noqa: E402
from dtcp.server.settings import Settings, SettingsError  # noqa: E402
from dtcp.server.shell import Shell  # noqa: E402
from dtcp.server.store import Shared, Store  # noqa: E402
from dtcp.server.tunnels import Tunnels  # noqa: E402
from dtcp.server.workers import Aside, Flow, Workers  # noqa: E402
from dtcp.system import System  # noqa: E402

CONFIG_FILE = settings.PATH
PID_FILE = "/var/run/dtcps.pid"
SOCKET = inquiries.SOCKET
UDP_PORT = 4028

BACKLOG = 4096  # connections that wait to be accepted; the kernel's own limit is mostly lower
CHANGES_INTERVAL = 5.0  # seconds between two looks for users that have changed
RELOAD_TIME = 60.0  # seconds that --reload waits, as a command may hang
ENDING_TIME = 10.0  # seconds for taking all tunnels down at the end, for the first hundred


# --- the options ------------------------------------------------------------------------------


def _prefix(text: str) -> Pool:
    try:
        return pools.pairs(text)
    except pools.PoolError as error:
        raise Invalid(str(error)) from None


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise Invalid(f"{text!a} is not a regular expression: {error}") from None


_udp_interface = matching(r"ng(0|[1-9][0-9]{0,4})", "name of a UDP interface (ng10, for example)")


# fmt: off
def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="dtcps",
        usage="dtcps [-cdDoU] [-b udp-port] [-F fib] [-g address] [-i interfaces]\n"
              "             [-I udp-interface] [-p port] [--config file] [prefix]\n"
              "       dtcps --check | --fingerprint | --reload | --status [--json]",
        description="Give IPv6 tunnels to DTCP clients.",
        allow_abbrev=False,
        add_help=False,  # it is one of a group
    )
    a = p.add_argument_group("the tunnels").add_argument
    a("prefix", nargs="?", type=_prefix,
      help="addresses of tunnels of type host come out of this")
    a("-c", dest="no_cloning", action="store_true",
      help="create no interfaces: use those there are")
    a("-F", dest="fib", metavar="fib", type=in_range(0, 65535),
      help="FIB of the tunnel interfaces and of their routes")
    a("-i", dest="interfaces", metavar="interfaces", type=_pattern,
      help="the lowest interface to create, such as gif10; with -c: which ones to use")
    a("-o", dest="keep", action="store_true", help="do not destroy interfaces, use them again")

    a = p.add_argument_group("tunnels over UDP").add_argument
    a("-b", dest="udp_port", metavar="udp-port", type=in_range(1, 65535), default=UDP_PORT,
      help=f"with -U: the lowest port of ours ({UDP_PORT})")
    a("-I", dest="udp_interface", metavar="udp-interface", type=_udp_interface,
      help="with -U: the lowest interface, such as ng10")
    a("-U", dest="udp", action="store_true", help="allow tunnels over UDP")

    a = p.add_argument_group("running").add_argument
    a("-d", dest="debug", action="store_true",
      help="stay in the foreground, show each conversation and command")
    a("-D", dest="foreground", action="store_true", help="do not become a daemon")
    a("-g", dest="announced", metavar="address", type=ipv4,
      help="tell clients this address of ours, instead of the one they have connected to")
    a("-p", dest="port", metavar="port", type=in_range(1, 65535), default=wire.PORT,
      help=f"TCP port ({wire.PORT})")
    a("--config", metavar="file", help=f"configuration ({CONFIG_FILE})")

    a = p.add_argument_group("looking, instead").add_argument
    a("--check", action="store_true", help="check options, configuration and store, and exit")
    a("--fingerprint", action="store_true",
      help="print the fingerprint of our certificate, for dtcpc --tls-fingerprint")
    a("--reload", action="store_true",
      help="have the running server reload its configuration, and see that it does")
    a("--status", action="store_true", help="show the tunnels of the running server")
    a("--json", action="store_true", help="with --status: for machines")
    a("-h", "--help", action="help", help="show this help and exit")
    a("--version", action="version", version=f"dtcps {__version__}",
      help="show the version and exit")
    return p
# fmt: on


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as a whole; ends with USAGE."""
    p = parser()
    options = p.parse_args(argv)
    if options.json and not options.status:
        p.error("--json goes with --status")
    if options.config:  # a daemon's working directory is /
        options.config = os.path.abspath(options.config)
    name = options.interfaces.pattern if options.interfaces else None
    if name and not options.no_cloning and not re.fullmatch(r"gif(0|[1-9][0-9]{0,4})", name):
        p.error("-i: without -c it is the name of the lowest interface, such as gif10")
    if options.no_cloning and options.keep:
        p.error("-o goes without -c, which keeps all interfaces")
    return options


def configuration(
    options: argparse.Namespace, before: Settings | None = None
) -> tuple[Settings, Certificate | None, list[str]]:
    """What the file and the command line say, if we can serve with it, and remarks on it.

    `before` is what we serve with now.  Raises SettingsError, StoreError.
    """
    path, needed = options.config or CONFIG_FILE, options.config is not None
    config, remarks = settings.read(path, needed=needed, given=options.prefix)
    for key in ("listen", "store"):
        if before is not None and getattr(before, key) != getattr(config, key):
            raise SettingsError(f"{key} cannot change while we run: restart")
    ours, more = certificate.read(config, time.time())
    with contextlib.closing(Store(config.store)) as store:
        leases.check(config, store)
    return config, ours, remarks + more


# --- the server -------------------------------------------------------------------------------


class Server:
    """A server that runs.

    It is made behind the fork(2) of a daemon, which neither a kqueue(2), nor SQLite, nor a thread
    survives.  The sockets are opened before, so that a failure is seen by who starts us.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        log: daemon.Log,
        config: Settings,
        ours: Certificate | None,
        listener: socket.socket,
        interfaces: Interfaces,
        left: recovery.Left,
    ) -> None:
        self._options, self._log, self._settings = options, log, config
        self._certificate = ours
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._signals = daemon.Signals()
        self._restarting = False
        signal.signal(signal.SIGUSR2, self._restart)
        self._quiet = Quiet(log)
        self._counts = Counts()
        self._store, self._shared = Store(config.store), Shared(config.store)
        self._workers = Workers(log)
        self._leases = leases.Leases(
            self._store, self._shared, config, self._quiet, udp=options.udp
        )
        self._builder = Builder(log, self._shared, config.mtu, options.fib, keep=options.keep)
        ears = udp.Ears(self._selector, options.udp_port)
        self._tunnels = Tunnels(
            self._quiet, self._counts, self._workers, self._leases, self._builder, interfaces, ears
        )
        self._sessions = Sessions(
            options,
            listener,
            self._selector,
            self._store,
            config,
            self._quiet,
            self._counts,
            self._tunnels.asked,
            self._tunnels.left,
            ears,
        )
        self._sessions.offer_tls(ours.context if ours else None, insist=config.tls_required)
        self._tunnels.sessions = self._sessions
        self._tunnels.found(left.tunnels)
        self._interfaces = interfaces
        self._inquiries = inquiries.Inquiries(self._selector, self._answer)
        self._adopt_until = time.monotonic() + config.adopt_time
        self._next_changes = self._next_count = 0.0
        self._change: int | None = self._store.changes()[0]  # the latest that was looked at
        self._today = date.today()
        self._selector.register(self._signals.woken, selectors.EVENT_READ, self._on_signal)
        self._selector.register(self._workers.woken, selectors.EVENT_READ, self._workers.collect)
        self._start(self._tidy(left))

    def serve(
        self,
        ready: Callable[[], None] | None,
        local: socket.socket,
        metrics: socket.socket | None,
    ) -> int:
        """Serve until we are told to end; `ready` is called when we do.  The exit status."""
        try:
            self._inquiries.listen(local, over_http=False)
            if metrics is not None:
                self._inquiries.listen(metrics, over_http=True)
            # Only now: who connects before anybody can answer would wait in a queue, which
            # overflows when all clients come back at once.
            self._listener.listen(BACKLOG)
            if ready is not None:
                ready()
            if orphans := self._tunnels.count(State.ORPHAN):
                self._log.notice(f"{orphans} tunnels wait for their clients to come back")
            self._log.notice(f"listening on port {self._listener.getsockname()[1]}")
            while not self._signals.stopping:
                self._turn()
        except BaseException as error:  # whatever it is, it must not leave tunnels behind
            self._log.error(f"internal error, shutting down: {error!r}")
            self._end("ending")
            raise
        return self._end("ending as asked")

    # --- the loop -----------------------------------------------------------------------------

    def _turn(self, most: float = math.inf) -> None:
        """Wait for something to happen, once, and let come of it what must."""
        self._survive(self._workers.turn)
        due = min(self._sessions.due, self._tunnels.due)
        due = min(due, self._next_changes, self._next_count, self._adopt_until, most)
        left = 0.0 if self._workers.can_go_on else max(0.0, due - time.monotonic())
        handshakes: list[tuple[Peer, int]] = []
        for count, (key, mask) in enumerate(self._selector.select(left), 1):
            if not count % AT_ONCE and not self._signals.stopping:
                self._sessions.greet()  # thousands may be behind us, and more in the kernel's queue
            if not isinstance(key.data, Peer):
                self._survive(partial(key.data, mask))
            elif key.data.shakes_hands:
                handshakes.append((key.data, mask))
            else:
                self._sessions.on_ready(key.data, mask)
        self._sessions.shake_hands(handshakes)
        self._survive(self._on_time)

    def _survive(self, what: Callable[[], None]) -> None:
        """Whatever goes wrong with one thing, everything else goes on."""
        try:
            what()
        except Exception as error:
            self._quiet.error("fault", f"internal error: {error!r}")

    def _on_time(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        self._sessions.on_time(now)
        if self._tunnels.due <= now:
            self._tunnels.look()
        if self._next_changes <= now:
            self._next_changes = now + CHANGES_INTERVAL
            self._look_for_changes()
        if self._adopt_until <= now:
            self._adopt_until = math.inf
            self._start(self._tunnels.give_up_orphans("its client did not come back"))
        if self._next_count <= now:
            self._next_count = math.inf
            self._start(self._count())

    def _look_for_changes(self) -> None:
        """See what dtcpauth(8) has done, and whether a day has ended for somebody."""
        self._quiet.catch_up()
        if self._builder.is_late:
            self._start(self._record())
        try:
            if self._shared.follow(self._store):
                self._log.notice("the store was replaced; everybody's tunnel is checked")
                self._change = None
            other = self._change is None
            self._change, names = self._store.changes(self._change)
        except StoreError as error:
            self._log.error(str(error))
            return
        self._tunnels.check([each.user for each in self._tunnels.there()] if other else names)
        if self._today != date.today():
            self._today = date.today()
            self._tunnels.look_at_all()
            if self._certificate is not None and (
                warning := certificate.of_expiry(self._certificate.expires, time.time())
            ):
                self._log.notice(warning)

    def _record(self) -> Flow[None]:
        yield Aside(lambda host: self._builder.catch_up())

    def _count(self) -> Flow[None]:
        """See how much has gone through the tunnels, with half of a worker's time at most."""
        begun = time.monotonic()
        try:
            yield from self._tunnels.count_bytes()
        finally:
            took = time.monotonic() - begun
            self._next_count = begun + max(traffic.ROUND, 2 * took)

    def _tidy(self, left: recovery.Left) -> Flow[None]:
        """Remove what else a server before us has left, one after the other."""
        stay = self._interfaces.stay
        for name in left.names:
            try:
                tidy = partial(recovery.tidy, self._log, name, destroy=not stay)
                if (yield Aside(tidy)):
                    self._interfaces.left(name, borrowed=stay)
            except CommandFailed as failed:
                self._log.error(str(failed))
        for node in left.nodes:
            try:
                yield Aside(partial(recovery.shut_down, self._log, node))
            except CommandFailed as failed:
                self._log.error(str(failed))

    # --- signals ------------------------------------------------------------------------------

    def _restart(self, number: int, frame: object) -> None:
        self._restarting = self._signals.stopping = True

    def _on_signal(self, mask: int) -> None:
        self._signals.drain()
        if self._signals.reload and not self._counts.reloading:
            self._start(self._reload())
        if self._signals.report:
            self._signals.report = False
            self._log.notice(
                f"{self._tunnels.count(*HELD)} tunnels, {len(self._sessions)} connections,"
                f" {self._counts.logins} logins, {self._counts.refused} refused"
            )

    def _start(self, flow: Flow[None]) -> None:
        self._workers.start(flow, lambda error: self._quiet.error("fault", repr(error)))

    def _reload(self) -> Flow[None]:
        """Take the configuration anew, and once more if we are told so meanwhile."""
        self._counts.reloading = True
        try:
            while self._signals.reload:
                self._signals.reload = False
                self._counts.not_taken = "internal error; see the log"
                try:
                    self._counts.not_taken = yield from self._take_anew()
                finally:
                    self._counts.reloads += 1
                self._tunnels.look_at_all()
        finally:
            self._counts.reloading = False

    def _take_anew(self) -> Flow[str]:
        """Whole or not at all, and then why not; what is checked is what is taken."""
        self._look_for_changes()  # or the check would have the new store's file, and we the old one
        before, metrics = self._settings, None
        try:
            after, ours, remarks = yield Aside(lambda host: configuration(self._options, before))
            for remark in remarks:
                self._log.notice(remark)
            if after.metrics != before.metrics:
                metrics = inquiries.metrics(after.metrics)
            yield Aside(partial(self._change_routes, after))
        except Error as error:
            self._log.error(f"nothing was changed: {error}")
            if metrics is not None:
                metrics.close()
            return str(error)
        if after.metrics != before.metrics:
            self._inquiries.close(over_http=True)
            if metrics is not None:
                self._inquiries.listen(metrics, over_http=True)
        self._settings = self._leases.settings = after
        self._builder.mtu = after.mtu
        self._sessions.limit(after)
        self._certificate = ours
        self._sessions.offer_tls(ours.context if ours else None, insist=after.tls_required)
        self._log.notice("the configuration was read again")
        return ""

    def _change_routes(self, after: Settings, host: System) -> None:
        with contextlib.closing(Store(after.store)) as store:
            unreachable.change(unreachable.prefixes(after), host, store, self._options.fib)

    # --- telling ------------------------------------------------------------------------------

    def _answer(self, over_http: bool) -> str:
        """Tell what is known; nobody looks for more, which may take long."""
        self._counts.connections = len(self._sessions)
        ours = self._certificate
        self._counts.certificate_expires = ours.expires if ours else None
        self._counts.unclaimed = self._tunnels.count(State.ORPHAN)
        write = report.prometheus if over_http else report.as_json
        return write(self._counts, self._tunnels.there())

    # --- the end ------------------------------------------------------------------------------

    def _end(self, how: str) -> int:
        """Take all tunnels down; or leave them to the next server, which will be there soon."""
        if self._restarting:
            how = "leaving the tunnels to the next one"
        self._log.notice(f"{how}, with {len(self._sessions)} connections")
        self._sessions.close()
        self._inquiries.close()
        with contextlib.suppress(OSError):
            os.unlink(SOCKET)
        self._tunnels.look_no_more()
        self._next_changes = self._next_count = self._adopt_until = math.inf
        if self._restarting:
            # What is under way is finished.
            self._turn_while(lambda: self._tunnels.count(State.MAKING, State.LEAVING), ENDING_TIME)
            self._sessions.drop_all()
            self._workers.hurry()
            self._workers.stop()
            self._builder.catch_up()
            return OK
        self._workers.hurry()
        standing = self._tunnels.count(*HELD, State.ORPHAN)
        self._tunnels.remove_orphans("the server ends")
        self._sessions.send_all_away(wire.STOPPING, "the server ends")
        limit = ENDING_TIME * max(1.0, standing / 100)
        self._turn_while(lambda: self._tunnels.count(*HELD, State.LEAVING), limit)
        self._workers.stop()
        self._builder.catch_up()
        is_clean = self._remove_routes()
        return (
            OK
            if is_clean and not self._tunnels.count(*HELD, State.LEAVING, State.BROKEN)
            else FAILED
        )

    def _turn_while(self, busy: Callable[[], int], limit: float) -> None:
        end = time.monotonic() + limit
        while busy() and time.monotonic() < end:
            self._turn(end)

    def _remove_routes(self) -> bool:
        """Remove the unreachable routes; whether nothing is left of them."""
        host = System(self._log.command, Shell().run)
        host.hurry()
        try:
            with self._shared() as store:
                failures = unreachable.remove(host, store, self._options.fib)
        except StoreError as error:
            self._log.error(str(error))
            return False
        for failure in failures:
            self._log.error(f"could not be undone: {failure}")
        return not failures


def show_status(*, as_json: bool) -> int:
    """Print what the running server tells of itself; OK when there is one."""
    told = inquiries.ask(SOCKET)
    if told is None:
        cli.show("{}" if as_json else "not running")
        return FAILED
    cli.show(json.dumps(told, indent=1) if as_json else "\n".join(report.text(told, time.time())))
    return OK


def show_fingerprint(options: argparse.Namespace) -> int:
    """Print what identifies our certificate; OK.  Raises SettingsError, Failure."""
    path, needed = options.config or CONFIG_FILE, options.config is not None
    config, _ = settings.read(path, needed=needed, given=options.prefix)
    cli.show(certificate.fingerprint(config), needed=True)
    return OK


def reload() -> int:
    """Have the running server take its configuration anew; OK when it has.  Raises Failure."""
    before = now = inquiries.ask(SOCKET)
    if before is None:
        raise Failure("not running")
    if "reloads" not in before:
        raise Failure("the running dtcps is an earlier version; restart it")
    os.kill(before["pid"], signal.SIGHUP)
    end = time.monotonic() + RELOAD_TIME
    while now is not None and (now["reloading"] or now["reloads"] == before["reloads"]):
        if time.monotonic() > end:
            raise Failure(f"not reloaded within {RELOAD_TIME:.0f} s; the log may say why")
        time.sleep(0.1)
        now = inquiries.ask(SOCKET)
    if now is None:
        raise Failure("it has ended")
    if now["not_taken"]:
        raise Failure(f"nothing was changed: {now['not_taken']}")
    return OK


def run(options: argparse.Namespace, log: daemon.Log) -> int:
    """Do what was asked for; the exit status."""
    if options.status:
        return show_status(as_json=options.json)
    if options.reload:
        return reload()
    if options.fingerprint:
        return show_fingerprint(options)
    if not options.check and os.geteuid() != 0:
        raise Failure("must be root to make tunnels", NOT_ALLOWED)
    config, ours, remarks = configuration(options)
    for remark in remarks:
        log.notice(remark)
    if options.check:
        return OK
    pid_file = daemon.PidFile(PID_FILE)
    try:
        listener = sessions.listener(config.listen, options.port)
        local, metrics = inquiries.local(SOCKET), inquiries.metrics(config.metrics)
        interfaces = Interfaces(
            options.interfaces.pattern if options.interfaces else None,
            options.udp_interface,
            no_cloning=options.no_cloning,
            keep=options.keep,
        )
        left = recovery.recover(log, config, interfaces, fib=options.fib, udp=options.udp)
        ready = None
        if not (options.debug or options.foreground):
            ready = daemon.detach()
            log.to_syslog()
        pid_file.write()
        server = Server(options, log, config, ours, listener, interfaces, left)
        return server.serve(ready, local, metrics)
    finally:
        pid_file.remove()


def main(argv: list[str] | None = None) -> int:
    """Run dtcps; its exit status."""
    daemon.settle()
    options = parse(argv)
    log = daemon.Log("dtcps", verbose=options.debug)
    try:
        return run(options, log)
    except Error as error:
        log.error(str(error))
        return error.status
    except OSError as error:  # too few descriptors, or processes, for a start
        log.error(error.strerror or str(error))
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
