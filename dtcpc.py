#!/usr/bin/env python3
"""dtcpc: the client of DTCP, the Dynamic Tunnel Configuration Protocol.

Read from the top, this is the life of a tunnel: the options; the password; the way to the server
and the login; the plan and its steps; the keeping; the taking down.  What the words on the wire
mean is in dtcp.wire, what a server may grant in dtcp.grant, what is done to the host in dtcp.plan,
and how in dtcp.system.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple, NoReturn, TypeVar

_lib = os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib")
if os.path.isdir(_lib):  # in a checkout
    sys.path.insert(0, _lib)

from dtcp import __version__, daemon, grant, password, plan, system, wire  # noqa: E402
from dtcp.ledger import Ledger, LedgerError  # noqa: E402

AUTH_FILE = "/usr/local/etc/dtcpc.auth"
PID_FILE = "/var/run/dtcpc.pid"

# The exit status says what a script should do next.  64 to 77 are those of sysexits(3).
OK, FAILED, USAGE, TRY_AGAIN, NOT_ALLOWED = 0, 1, 64, 75, 77

CONNECT_TIME = 10.0  # seconds for one address of the server
RESOLVE_TIME = 30.0
QUIT_TIME = 2.0  # seconds that a server has for answering to our `quit`


class Failure(Exception):
    """Why we end, in one line, and with which status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


class Stopped(Exception):
    """We were told to end."""


# --- the options ------------------------------------------------------------------------------


class Delegation(NamedTuple):
    """One part of -P: the interface, and what it gets of the delegated prefix."""

    interface: str
    sla: int
    identifier: int | None  # the low 64 bits; None: EUI-64
    length: int


Value = TypeVar("Value")


def _listed(one: Callable[[str], Value]) -> Callable[[str], tuple[Value, ...]]:
    return lambda text: tuple(one(part.strip()) for part in text.split(","))


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not pattern.fullmatch(text):
            raise argparse.ArgumentTypeError(f"{text!a} is no {what}")
        return text

    return parse


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!a} is not a number from {least} to {most}")
        return int(text)

    return parse


def _server(text: str) -> str:
    if ":" in text:
        raise argparse.ArgumentTypeError(
            f"{text!a}: give a name or an IPv4 address; DTCP is spoken over IPv4"
        )
    if re.fullmatch(r"[0-9.]+", text):
        try:
            return str(IPv4Address(text))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!a} is no IPv4 address") from None
    return _matching(plan.HOST, "name of a host")(text)


def _with_length(text: str) -> tuple[str, int | None]:
    """`X`, `X/len`, and the manual's `X prefixlen len` and `X -prefixlen len`."""
    found = re.fullmatch(r"([^\s/]+)(?:(?:/|\s+-?prefixlen\s+)([0-9]{1,3}))?", text)
    if not found or (found[2] and int(found[2]) > 128):
        raise argparse.ArgumentTypeError(f"{text!a} is no IPv6 address with a prefix length")
    return found[1], int(found[2]) if found[2] else None


def _ipv6(text: str) -> IPv6Address:
    try:
        if "%" not in text:
            return IPv6Address(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!a} is no IPv6 address")


def _address(text: str) -> IPv6Interface:
    word, length = _with_length(text)
    address = _ipv6(word)
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise argparse.ArgumentTypeError(f"{word} cannot be an interface's address")
    if length == 0:
        raise argparse.ArgumentTypeError(f"{text!a}: the prefix length is not 1 to 128")
    return IPv6Interface((address, 128 if length is None else length))


def _destination(text: str) -> IPv6Network:
    if text == "default":
        return plan.ANYWHERE
    word, length = _with_length(text)
    return IPv6Network((_ipv6(word), 128 if length is None else length), strict=False)


def _delegation(text: str) -> Delegation:
    interface, sla, identifier, length, *more = (*text.split("/"), "", "", "")
    if any(more) or not plan.NAME.fullmatch(interface):
        raise argparse.ArgumentTypeError(f"{text!a} is not interface/sla[/id[/length]]")
    if not re.fullmatch(r"[0-9A-Fa-f]{1,4}", sla):
        raise argparse.ArgumentTypeError(f"{text!a}: the SLA ID is not one to four hex digits")
    # The low half of an address: `0:0:0:1`, or `::1`.
    low = identifier if "::" in identifier or not identifier else f"::{identifier}"
    if low and (_ipv6(low) >= IPv6Address("::1:0:0:0:0") or _ipv6(low).is_unspecified):
        raise argparse.ArgumentTypeError(
            f"{text!a}: the interface identifier has 64 bits, not all 0"
        )
    return Delegation(
        interface,
        int(sla, 16),
        int(_ipv6(low)) if low else None,
        _number(64, 128)(length) if length else 64,
    )


_USAGE = """\
dtcpc [-acdDlnoU] [-A addr[,addr]] [-b port] [-B port] [-f file] [-F fib]
             [-i if] [-m mtu] [-p port] [-P if/sla[/id[/len]][,...]]
             [-r static|solicit] [-R dest[,dest]] [-s script] [-t type] [-u user]
             [--auth-file file] [--dry-run] server
       dtcpc --status [--json] [-f file]
       dtcpc --help | --version"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message.removeprefix('argument ')}\n")
        self.print_usage(sys.stderr)
        raise SystemExit(USAGE)


# fmt: off
def parser() -> argparse.ArgumentParser:
    """The command line; its letters are those that the users know since 2004."""
    port = _number(1, 65535)
    p = _Parser(
        prog="dtcpc",
        usage=_USAGE,
        description="Get an IPv6 tunnel from a DTCP server, and keep it.",
        epilog="Exit status: 0 ended as asked, 64 usage, 75 worth trying again, 77 not allowed,"
               " 1 anything else.",
        allow_abbrev=False,
    )
    a = p.add_argument
    a("server", nargs="?", type=_server, help="name or IPv4 address of the server")
    a("-a", dest="advertise", action="store_false", help="with -P: start no rtadvd")
    a("-A", dest="addresses", metavar="addr[,addr]", type=_listed(_address), default=(),
      help="more addresses for the tunnel interface")
    a("-b", dest="udp_port", metavar="port", type=port, help="with -U: the port to bind (4028)")
    a("-B", dest="nat_port", metavar="port", type=port, help="with -U: the port to announce")
    a("-c", dest="create", action="store_false", help="use the interface of -i (gif0) as it is")
    a("-d", dest="debug", action="store_true", help="show the conversation and each command")
    a("-D", dest="daemon", action="store_true", help="become a daemon")
    a("-f", dest="pid_file", metavar="file", default=PID_FILE, help=f"pid file ({PID_FILE})")
    a("-F", dest="fib", metavar="fib", type=_number(0, 65535), help="FIB of the interface")
    a("-i", dest="interface", metavar="if", type=_matching(plan.NAME, "name of an interface"),
      help="name of the tunnel interface")
    a("-l", dest="loop", action="store_true", help="never give up: reconnect for ever")
    a("-m", dest="mtu", metavar="mtu", type=_number(plan.MTU_LEAST, plan.MTU_MOST),
      default=plan.MTU_LEAST, help=f"MTU of the tunnel ({plan.MTU_LEAST})")
    a("-n", dest="nat", action="store_true", help="the server may see us under another address")
    a("-o", dest="keep", action="store_true", help="leave the bare interface at the end")
    a("-p", dest="port", metavar="port", type=port, default=wire.PORT,
      help=f"TCP port of the server ({wire.PORT})")
    a("-P", dest="delegations", metavar="if/sla[/id[/len]][,...]", type=_listed(_delegation),
      default=(), help="what LAN interfaces get of the delegated prefix")
    a("-r", dest="routing", metavar="static|solicit", choices=("static", "solicit"),
      default="static", help="how the default route is made (static)")
    a("-R", dest="destinations", metavar="dest[,dest]", type=_listed(_destination),
      help="routes through the tunnel, instead of the default route")
    a("-s", dest="script", metavar="script", help="run at up, down and change")
    a("-t", dest="type", metavar="type", choices=wire.TYPES, default="tunnelonly",
      help=f"{', '.join(wire.TYPES)} (tunnelonly)")
    a("-u", dest="user", metavar="user", type=_matching(wire.USER, "DTCP user name"),
      help="DTCP user name (the login name)")
    a("-U", dest="udp", action="store_true", help="tunnel over UDP")
    a("--auth-file", metavar="file", help=f"password file ({AUTH_FILE})")
    a("--dry-run", action="store_true", help="log in, print the commands, change nothing")
    a("--status", action="store_true", help="show the state of the running instance")
    a("--json", action="store_true", help="with --status: for machines")
    a("--version", action="version", version=f"dtcpc {__version__}")
    return p
# fmt: on


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked against each other.  Exits with USAGE and a line that says why."""
    p = parser()
    options = p.parse_args(argv)
    for option, given in (
        ("-b", options.udp_port),
        ("-B", options.nat_port),
        ("-D", options.daemon),
        ("-F", options.fib is not None),
        ("-l", options.loop),
        ("-P", options.delegations),
        ("-r solicit", options.routing == "solicit"),
        ("-s", options.script),
        ("-U", options.udp),
        ("--status", options.status or options.json),
    ):
        if given:
            p.error(f"{option}: not available yet")
    if options.server is None:
        p.error("no server given")
    if not options.advertise:
        p.error("-a: makes sense with -P only")
    if not options.create and options.keep:
        p.error("-c: never destroys the interface; leave out -o")
    if options.user is None:
        try:
            options.user = _matching(wire.USER, "DTCP user name")(_login_name())
        except argparse.ArgumentTypeError as error:
            p.error(f"{error}; give one with -u")
    if options.destinations is None:
        options.destinations = (plan.ANYWHERE,)
    return options


def _login_name() -> str:
    """Who we are, as getlogin(2) or the password database has it."""
    try:
        return os.getlogin()
    except OSError:  # no terminal: from rc(8) or cron(8)
        import pwd

        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return str(os.getuid())


# --- before anything is sent ------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run dtcpc; its exit status."""
    options = parse(argv)
    daemon.settle()
    log = daemon.Log("dtcpc", verbose=options.debug)
    for number in daemon.ENDING:
        signal.signal(number, _raise_stopped)
    try:
        if options.dry_run:
            return Client(options, log, None).dry_run()
        if os.geteuid() != 0:
            raise Failure("must be root to make a tunnel", NOT_ALLOWED)
        pid_file = daemon.PidFile(options.pid_file)
        try:
            pid_file.write()
            ledger = Ledger(re.sub(r"(\.pid)?$", ".state", options.pid_file, count=1))
            return Client(options, log, ledger).run()
        finally:
            pid_file.remove()
    except Stopped:
        return OK
    except Failure as failure:
        log.error(str(failure))
        return failure.status
    except (
        daemon.PidFileError,
        LedgerError,
        password.PasswordError,
        plan.PlanError,
        system.CommandFailed,
    ) as error:
        log.error(str(error))
        return FAILED


def _raise_stopped(number: int, frame: object) -> NoReturn:
    raise Stopped


def find_password(options: argparse.Namespace) -> str:
    """The password, from the password file or the terminal.  Raises PasswordError, Stopped."""
    path = options.auth_file or AUTH_FILE
    try:
        found = password.from_file(path, options.server, options.user)
    except FileNotFoundError:
        if options.auth_file:
            raise Failure(f"{path}: no such file") from None
        found = None
    if found is None:
        found = password.from_terminal(f"Password of {options.user} at {options.server}: ")
    return found


# --- the life of a tunnel ---------------------------------------------------------------------


class Client:
    """One tunnel, from the login to its end."""

    def __init__(self, options: argparse.Namespace, log: daemon.Log, ledger: Ledger | None) -> None:
        self._options = options
        self._log = log
        self._ledger = ledger
        self._system = system.System(log.command, ledger)
        self._started = time.monotonic()

    def run(self) -> int:
        """Bring the tunnel up, keep it, take it down.  Raises Failure, Stopped and others."""
        self._refuse_plain_jail()
        self._recover()
        existing = self._existing()
        secret = find_password(self._options)
        signals = daemon.Signals()
        signals.on_stop = self._system.hurry
        with Connection.open(self._options, secret, signals, self._log) as connection:
            granted = self._login(connection)
            try:
                self._bring_up(granted, existing, signals)
                self._keep(connection)
            except (Stopped, system.Interrupted):
                self._log.notice("ending as asked")
                return self._take_down(connection)
            except Failure as failure:
                self._log.error(str(failure))
                self._take_down(connection)
                return failure.status

    def dry_run(self) -> int:
        """Log in, print what would be done, and log out."""
        existing = self._existing()
        secret = find_password(self._options)
        with Connection.open(self._options, secret, daemon.Signals(), self._log) as connection:
            steps = self._plan(self._login(connection), existing)
            connection.quit()
            connection.wait_for_end()
        print("\n".join(plan.script(steps, existing.name if existing else None)))
        return OK

    def _refuse_plain_jail(self) -> None:
        try:
            answer = self._system.run(
                ("sysctl", "-n", "security.jail.jailed", "security.jail.vnet")
            )
        except system.CommandFailed:
            return  # no FreeBSD, then; what follows will tell
        if answer.split() == ["1", "0"]:
            raise Failure(
                "this jail has no network stack of its own, so no tunnel can be made in it;"
                " give it one (vnet in jail.conf), or run dtcpc on the host",
                NOT_ALLOWED,
            )

    def _recover(self) -> None:
        """Undo what an instance that was killed has left."""
        left = self._ledger.read() if self._ledger else None
        if left is None:
            return
        self._log.notice(f"undoing what a killed dtcpc has left ({left.tunnel or left.mark})")
        failures = self._system.undo_left(left)
        if failures:
            raise Failure(f"what a killed dtcpc has left cannot be undone: {failures[0]}")

    def _existing(self) -> plan.Interface | None:
        """The interface that is there already and is to be used, if any."""
        name = self._options.interface
        if not self._options.create:
            found = self._system.interface(name or "gif0")
            if found is None:
                raise Failure(f"{name or 'gif0'}: no such interface; create it, or leave out -c")
            return found
        if name is None:
            return next(filter(_is_kept, self._system.ours()), None)
        found = self._system.interface(name)
        if found is not None and not _is_kept(found):
            raise Failure(f"{name}: is there already; use it as it is with -c, or name another")
        return found

    def _login(self, connection: Connection) -> grant.Grant:
        words = connection.login()
        try:
            granted, remarks = grant.parse(
                words,
                self._options.type,
                own=connection.own,
                server=connection.address,
                nat=self._options.nat,
            )
        except grant.GrantError as error:
            raise Failure(
                f"{connection.name}: the server's grant makes no sense: {error}"
            ) from None
        except grant.BehindNat as error:
            connection.quit()
            raise Failure(str(error), NOT_ALLOWED) from None
        for remark in remarks:
            self._log.info(remark)
        return granted

    def _plan(self, granted: grant.Grant, existing: plan.Interface | None) -> list[plan.Step]:
        options = self._options
        wanted = plan.Options(
            options.interface, options.keep, options.mtu, options.addresses, options.destinations
        )
        has_default = plan.ANYWHERE in options.destinations and self._system.default_route()
        mark = plan.mark("dtcpc", options.user, options.server, os.getpid())
        return plan.client(granted, wanted, plan.Host(existing, has_default), mark)

    def _bring_up(
        self, granted: grant.Grant, existing: plan.Interface | None, signals: daemon.Signals
    ) -> None:
        steps = self._plan(granted, existing)
        self._system.tunnel = existing.name if existing else None
        try:
            self._system.up(steps, stop=lambda: signals.stopping)
        except system.CommandFailed as failed:
            if signals.stopping:  # it was given no more time
                raise Stopped from None
            raise Failure(f"the tunnel could not be made: {failed}") from None
        name = self._system.tunnel
        inner = f", {granted.inner}" if granted.inner else ""
        inner += f" --> {granted.peer}" if granted.peer else ""
        self._log.notice(
            f"{name}: {granted.local} --> {granted.remote}{inner}, mtu {self._options.mtu}"
        )
        routes = [step.do[4] for step in steps if step.do[5:] == ("-interface", plan.TUNNEL)]
        self._log.notice(f"routes: {', '.join(routes)} through {name}")
        for prefix in granted.prefixes:
            self._log.notice(f"{prefix} delegated")
        self._log.notice(f"up after {time.monotonic() - self._started:.1f} s")

    def _keep(self, connection: Connection) -> NoReturn:
        while True:
            for event in connection.events():
                if isinstance(event, wire.Lost):
                    raise Failure(f"lost: {event.reason}", TRY_AGAIN)

    def _take_down(self, connection: Connection) -> int:
        connection.quit()
        had_tunnel = bool(self._system.done)
        failures = self._system.down()
        for failure in failures:
            self._log.error(f"could not be undone: {failure}")
        connection.wait_for_end()
        if had_tunnel:
            self._log.notice("down")
        return FAILED if failures else OK


def _is_kept(interface: plan.Interface) -> bool:
    """Whether an interface is one that an earlier run left with -o: in our group, and bare."""
    return plan.GROUP in interface.groups and not (
        interface.outer or interface.description or interface.up
    )


# --- the way to the server --------------------------------------------------------------------


class Connection:
    """The control connection: a socket, and the client's end of the conversation on it."""

    def __init__(
        self, sock: socket.socket, name: str, client: wire.Client, signals: daemon.Signals
    ) -> None:
        self.name = name  # for messages
        self.own = IPv4Address(sock.getsockname()[0])
        self.address = IPv4Address(sock.getpeername()[0])
        self._socket = sock
        self._client = client
        self._signals = signals
        self._unsent = b""

    @classmethod
    def open(
        cls, options: argparse.Namespace, secret: str, signals: daemon.Signals, log: daemon.Log
    ) -> Connection:
        """Connect to the first address of the server that answers.  Raises Failure, Stopped."""
        failures = []
        for address in resolve(options.server, signals):
            log.notice(
                f"logging in to {options.server} ({address}) port {options.port} as {options.user}"
            )
            name = f"{options.server} ({address}) port {options.port}"
            begun = time.monotonic()
            try:
                sock = connect(address, options.port, signals)
            except OSError as error:
                failures.append(f"{name}: {error.strerror}")
                continue
            client = wire.Client(options.user, secret, options.type, begun, trace=log.debug)
            return cls(sock, name, client, signals)
        raise Failure("; ".join(failures), TRY_AGAIN)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def login(self) -> list[str]:
        """Log in; the words of the server's grant.  Raises Failure, Stopped."""
        while True:
            for event in self.events():
                if isinstance(event, wire.Granted):
                    return event.words
                if isinstance(event, wire.Lost):
                    raise Failure(f"{self.name}: {event.reason}", TRY_AGAIN)
                status = TRY_AGAIN if event.temporary else NOT_ALLOWED
                raise Failure(f"{self.name}: the server refuses: {event.text}", status)

    def events(self) -> list[wire.ClientEvent]:
        """Wait until something happens, and say what.  Raises Failure, Stopped."""
        while True:
            self._flush()
            if self._signals.stopping:
                raise Stopped
            fd = self._socket.fileno()
            ready, _ = self._signals.wait(
                [fd], self._client.deadline - time.monotonic(), [fd] if self._unsent else []
            )
            try:
                events = self._receive() if ready else []
            except wire.ProtocolError as error:
                raise Failure(f"{self.name}: {error}") from None
            events += self._client.tick(time.monotonic())
            if events:
                return events

    def quit(self) -> None:
        """Say goodbye; the answer is for `wait_for_end`."""
        self._client.quit()
        self._flush()
        self._end = time.monotonic() + QUIT_TIME

    def wait_for_end(self) -> None:
        """Wait until the server has taken our goodbye, but not long."""
        while (left := self._end - time.monotonic()) > 0:
            ready, _ = self._signals.wait([self._socket.fileno()], left)
            if ready:
                # One line, or the end, whatever it says: KAME's server does not always close.
                with contextlib.suppress(OSError):
                    self._socket.recv(4096)
                return

    def _receive(self) -> list[wire.ClientEvent]:
        try:
            data = self._socket.recv(4096)
        except BlockingIOError:
            return []
        except OSError as error:
            return [wire.Lost(error.strerror or "the connection broke")]
        return self._client.receive(data, time.monotonic())

    def _flush(self) -> None:
        self._unsent += self._client.take()
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""  # reading will tell what happened


def resolve(server: str, signals: daemon.Signals) -> list[IPv4Address]:
    """The IPv4 addresses of the server, in the resolver's order.  Raises Failure, Stopped."""
    try:
        return [IPv4Address(server)]
    except ValueError:
        pass
    # The resolver may take minutes and cannot be interrupted: it gets a thread of its own, which
    # tells us through a pipe that it has finished.
    answers: list[list[IPv4Address] | socket.gaierror] = []
    done, finish = os.pipe()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(server, None, socket.AF_INET, socket.SOCK_STREAM)
            answers.append(list(dict.fromkeys(IPv4Address(each[4][0]) for each in found)))
        except socket.gaierror as error:
            answers.append(error)
        finally:
            os.close(finish)

    threading.Thread(target=ask, daemon=True).start()
    end = time.monotonic() + RESOLVE_TIME
    while not answers and (left := end - time.monotonic()) > 0:
        signals.wait([done], left)
        if signals.stopping:
            raise Stopped
    os.close(done)
    if not answers:
        raise Failure(f"{server}: no answer from the name service", TRY_AGAIN)
    answer = answers[0]
    if isinstance(answer, socket.gaierror):
        temporary = answer.errno == socket.EAI_AGAIN
        raise Failure(f"{server}: {answer.strerror}", TRY_AGAIN if temporary else FAILED)
    return answer


def connect(address: IPv4Address, port: int, signals: daemon.Signals) -> socket.socket:
    """A connection to the server.  Raises OSError, Stopped."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        error = sock.connect_ex((str(address), port))
        end = time.monotonic() + CONNECT_TIME
        while error == errno.EINPROGRESS:
            if signals.stopping:
                raise Stopped
            _, writable = signals.wait([], end - time.monotonic(), [sock.fileno()])
            if writable:
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            elif time.monotonic() >= end:
                error = errno.ETIMEDOUT
        if error:
            raise OSError(error, os.strerror(error))
        return sock
    except BaseException:
        sock.close()
        raise


if __name__ == "__main__":
    sys.exit(main())
