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
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network
from typing import NoReturn, TypeVar, cast

_lib = os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib")
if os.path.isdir(_lib):  # in a checkout
    sys.path.insert(0, _lib)

from dtcp import __version__, cli, daemon, grant, password, plan, run, speaker, system, wire  # noqa: E402
from dtcp.cli import FAILED, NOT_ALLOWED, OK, TRY_AGAIN, Parser, in_range  # noqa: E402
from dtcp.ledger import Ledger, LedgerError  # noqa: E402
from dtcp.network import is_here, own_address  # noqa: E402
from dtcp.speaker import Request, Speaker  # noqa: E402

AUTH_FILE = "/usr/local/etc/dtcpc.auth"
PID_FILE = "/var/run/dtcpc.pid"
UDP_PORT = 4028

RESOLVE_TIME = 30.0
LOOK_TIME = 60.0  # seconds between two looks at the network, when nobody tells us of changes
LOOK_SELDOM = 600.0  # when somebody does, in case he missed one
LOOK_PAUSE = 1.0  # between two, at least
LOOK_AGAIN = 3.0  # after one that an event has caused: it comes before what it tells of is done
LOOK_FIRST = 2.0  # seconds in which he has begun
SCRIPT_TIME = 10.0  # seconds that the script of -s may take

# Of -U: a NAT may forget a UDP flow after 30 s (RFC 4787 section 4.3 asks for 2 minutes).
HEARTBEAT = 20.0  # seconds
HEARTBEATS_MISSED = 4

# Of -l, in seconds.
LONGEST = 300.0  # wait between two attempts
STABLE_TIME = 60.0  # up for so long, the waits begin anew
SOON = 12.0  # after a loss, in which the waits stay at 2 s at most
CALM_TIME = 5.0  # between two attempts for which nothing has to be waited for
GIVE_UP_TIME = 600.0  # without a server, until what is configured is taken down
GONE_TIME = 10.0  # without our address, likewise: a new one may be on its way


class Failure(cli.Failure):
    """Why we end, or begin again, in one line, and with which status."""

    def __init__(
        self,
        text: str,
        status: int = FAILED,
        *,
        at_once: bool = False,
        asked: bool = False,
        final: bool = False,
    ) -> None:
        super().__init__(text, status)
        self.final = final  # with -l too: it would be the same the next time
        self.at_once = at_once or asked  # with -l: nothing has to be waited for
        self.asked = asked  # it is no failure: we were told to log in again


class Stopped(Exception):
    """We were told to end."""


# --- the options ------------------------------------------------------------------------------


Value = TypeVar("Value")


def _listed(one: Callable[[str], Value]) -> Callable[[str], tuple[Value, ...]]:
    return lambda text: tuple(one(part.strip()) for part in text.split(","))


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not pattern.fullmatch(text):
            raise argparse.ArgumentTypeError(f"{text!a} is no {what}")
        return text

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
    if address.is_multicast or address in IPv6Network("::/8"):
        raise argparse.ArgumentTypeError(f"{word} cannot be an interface's address")
    if length == 0:
        raise argparse.ArgumentTypeError(f"{text!a}: the prefix length is not 1 to 128")
    return IPv6Interface((address, 128 if length is None else length))


def _destination(text: str) -> IPv6Network:
    if text == "default":
        return plan.ANYWHERE
    word, length = _with_length(text)
    return IPv6Network((_ipv6(word), 128 if length is None else length), strict=False)


def _delegation(text: str) -> plan.Delegation:
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
    return plan.Delegation(
        interface,
        int(sla, 16),
        int(_ipv6(low)) if low else None,
        in_range(64, 128)(length) if length else 64,
    )


def _account(name: str) -> tuple[int, int]:
    """The numbers of a user and of its group."""
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{name!a}: no such user on this host") from None
    if entry.pw_uid == 0:
        raise argparse.ArgumentTypeError(f"{name!a} is root, who is to be kept out of it")
    return entry.pw_uid, entry.pw_gid


_USAGE = """\
dtcpc [-acdDlnoU] [-A addr[,addr]] [-b port] [-B port] [-f file] [-F fib]
             [-i if] [-m mtu] [-p port] [-P if/sla[/id[/len]][,...]]
             [-r static|solicit] [-R dest[,dest]] [-s script] [-t type] [-u user]
             [--auth-file file] [--check | --dry-run] [--run-as user] server
       dtcpc --status [--json] [-f file]
       dtcpc --help | --version"""


# fmt: off
def parser() -> argparse.ArgumentParser:
    """The command line; its letters are those that the users know since 2004."""
    port = in_range(1, 65535)
    p = Parser(
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
    a("-F", dest="fib", metavar="fib", type=in_range(0, 65535), help="FIB of the interface")
    a("-i", dest="interface", metavar="if", type=_matching(plan.NAME, "name of an interface"),
      help="name of the tunnel interface")
    a("-l", dest="loop", action="store_true", help="never give up: reconnect for ever")
    a("-m", dest="mtu", metavar="mtu", type=in_range(plan.MTU_LEAST, plan.MTU_MOST),
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
    a("--run-as", dest="account", metavar="user", type=_account, default="nobody",
      help="who speaks with the server, instead of root (nobody)")
    a("--check", action="store_true", help="check all this and the password file, do no more")
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
    for option, given in (("-b", options.udp_port), ("-B", options.nat_port)):
        if given and not options.udp:
            p.error(f"{option}: makes sense with -U only")
    for option, given in (("-c", not options.create), ("-o", options.keep)):
        if given and options.udp:
            p.error(f"{option}: a tunnel over UDP has an interface of its own; leave out -U")
    if options.json and not options.status:
        p.error("--json: makes sense with --status only")
    if options.server is None and not options.status:
        p.error("no server given")
    if options.delegations and options.type not in ("network", "tunnelroute"):
        p.error(f"-P: type {options.type} has no delegated prefix; use -t network")
    if not options.advertise and not options.delegations:
        p.error("-a: makes sense with -P only")
    if not options.create and options.keep:
        p.error("-c: never destroys the interface; leave out -o")
    if options.destinations and options.routing == "solicit":
        p.error("-R: makes sense with -r static only")
    for option, given in (("-c", not options.create), ("-o", options.keep)):
        if given and options.routing == "solicit":
            # What the server advertises stays on an interface until that is destroyed.
            p.error(f"{option}: makes sense with -r static only")
    if options.dry_run and (options.daemon or options.loop):
        p.error("--dry-run: ends by itself; leave out -D and -l")
    if options.check and (options.dry_run or options.status):
        p.error("--check: does no more than that; leave out --dry-run and --status")
    if options.check and options.daemon and options.debug:
        p.error("-d: stays in the foreground, in spite of -D; leave one of them out")
    seen = [(each.interface, each.sla) for each in options.delegations]
    if len(set(seen)) < len(seen):
        p.error("-P: the same SLA ID twice on the same interface")
    for option, path in (("-s", options.script), ("--auth-file", options.auth_file)):
        if path and "\n" in path:
            p.error(f"{option}: {path!a} is no file name")
    if options.script:
        options.script = os.path.abspath(options.script)
        if not (os.path.isfile(options.script) and os.access(options.script, os.X_OK)):
            p.error(f"-s: {options.script}: not an executable file")
    options.udp_port = options.udp_port or UDP_PORT
    # A daemon's working directory is /.
    options.pid_file = os.path.abspath(options.pid_file)
    options.files = options.pid_file.removesuffix(".pid")
    if options.status:
        return options
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
    daemon.settle()
    options = parse(argv)
    log = daemon.Log("dtcpc", verbose=options.debug)
    for number in (*daemon.ENDING, signal.SIGHUP):
        signal.signal(number, _raise_stopped)  # until there are daemon.Signals
    try:
        if options.status:
            return show_status(options)
        if options.check:
            return check_password(options)
        is_root = os.geteuid() == 0
        if not (is_root or options.dry_run):
            raise Failure("must be root to make a tunnel", NOT_ALLOWED)
        # Now, while there is nothing yet that it must not know.
        spokesman = Speaker(options.account if is_root else None, log.debug, _remarks(log))
        try:
            if options.dry_run:
                return Client(options, log, spokesman, None).dry_run()
            pid_file = daemon.PidFile(options.pid_file)
            ledger = Ledger(options.files + ".state")
            try:
                pid_file.write()
                return Client(options, log, spokesman, ledger).run(pid_file)
            finally:
                ledger.close()
                pid_file.remove()
        finally:
            spokesman.end()
    except Stopped:
        return OK
    except cli.Failure as failure:
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
    except OSError as error:  # too few descriptors, or processes, for a start
        log.error(error.strerror or str(error))
        return FAILED
    finally:
        # In Python's own end the default holds again, and one more signal would be our status.
        for number in (*daemon.ENDING, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def show(lines: list[str]) -> int:
    """Print what was asked for.  Raises cli.Failure."""
    cli.show("\n".join(lines))
    return OK


def _remarks(log: daemon.Log) -> Callable[[str], None]:
    """Where remarks about a grant go."""
    return lambda text: (log.info if text.startswith("ignored") else log.notice)(text)


def _raise_stopped(number: int, frame: object) -> NoReturn:
    # A second one must not disturb what the first began.  SIG_IGN would have Python complain of one
    # that has come already.
    for each in (*daemon.ENDING, signal.SIGHUP):
        signal.signal(each, lambda number, frame: None)
    raise Stopped


def find_password(options: argparse.Namespace) -> str:
    """The password, from the password file or the terminal.  Raises PasswordError, Stopped."""
    path = AUTH_FILE if options.auth_file is None else options.auth_file
    try:
        found = password.from_file(path, options.server, options.user)
    except FileNotFoundError:
        if options.auth_file is not None:
            raise Failure(f"{path}: no such file") from None
        found = None
    if found is None:
        found = password.from_terminal(f"Password of {options.user} at {options.server}: ")
    return found


def check_password(options: argparse.Namespace) -> int:
    """--check: see that nobody would be asked for the password.  Raises Failure, PasswordError."""
    path = AUTH_FILE if options.auth_file is None else options.auth_file
    line = f"{options.server}:{options.user}:PASSWORD"
    try:
        found = password.from_file(path, options.server, options.user)
    except FileNotFoundError:
        raise Failure(f"{path}: no such file; it needs mode 600, and a line {line}") from None
    if found is None:
        raise Failure(f"{path}: has no line {line}")
    return OK


# --- the life of a tunnel ---------------------------------------------------------------------


class Client:
    """One tunnel, from the login to its end; with -l through many logins."""

    def __init__(
        self,
        options: argparse.Namespace,
        log: daemon.Log,
        spokesman: Speaker,
        ledger: Ledger | None,
    ) -> None:
        self._options = options
        self._log = log
        self._speaker = spokesman
        self._ledger = ledger
        self._system = system.System(log.command, run.run, ledger)
        self._signals: daemon.Signals
        self._wanted = plan.Options(
            interface=options.interface,
            keep=options.keep,
            mtu=options.mtu,
            addresses=options.addresses,
            destinations=options.destinations,
            fib=options.fib,
            solicit=options.routing == "solicit",
            delegations=options.delegations,
            advertise=options.advertise,
            files=options.files,
        )
        self._host = plan.Host()  # as it was before we did anything to it
        self._granted: grant.Grant | None = None
        self._connection: Connection | None = None
        self._monitor: system.Monitor | None = None
        self._back_off = BackOff()
        self._begun = time.monotonic()  # this attempt
        self._lost_at: float | None = None
        self._facts: dict[str, object] = {}
        self._index = 0  # of the tunnel interface, in the kernel
        self._mark = ""  # its description
        self._script_told_up = False
        self._prepared = False
        self._routes: dict[IPv6Network, tuple[str, str]] | None = None  # seen at this login
        self._survey_is_fresh = False
        self._hinted = False
        self._address_before: IPv4Address | None = None  # ours, when the attempt began
        self._server_address: IPv4Address | None = None  # the one that answered last
        self._hurried_at = -math.inf  # when we last tried again without waiting

    def run(self, pid_file: daemon.PidFile) -> int:
        """Bring the tunnel up, keep it, take it down.  Raises Failure, Stopped and others."""
        self._recover()
        if self._options.daemon or self._names_something():
            self._prepare()
        secret = find_password(self._options)
        if self._options.daemon and not self._options.debug:
            ready = daemon.detach()
            self._log.to_syslog()
            pid_file.write()
            ready()
        self._signals = daemon.Signals()
        self._signals.on_stop = self._system.hurry
        self._tell(
            state="connecting",
            pid=os.getpid(),
            server=self._options.server,
            user=self._options.user,
            type=self._options.type,
            mtu=self._options.mtu,
            reconnects=0,
        )
        try:
            while True:
                try:
                    self._one_login(secret)
                except Failure as failure:
                    delay = self._delay_after(failure)
                except (LedgerError, system.CommandFailed, OSError) as error:
                    delay = self._delay_after(Failure(str(error)))
                self._rest(delay)
        except (Stopped, system.Interrupted):
            self._log.notice("ending as asked")
            return self._end()
        except Failure as failure:
            self._log.error(str(failure))
            self._end()
            return failure.status
        except BaseException as error:  # whatever it is, it must not leave a tunnel behind
            self._log.error(f"internal error: {error!r}")
            self._end()
            raise

    def dry_run(self) -> int:
        """Log in, print what would be done, and log out."""
        pid = daemon.locked_by(self._options.pid_file)
        if pid is not None:
            raise Failure(
                f"dtcpc is running as pid {pid or '?'}, and the server would end its tunnel for"
                " ours; stop it first"
            )
        self._survey()
        self._prepared = True  # enough for looking, in a jail of whatever kind
        secret = find_password(self._options)
        self._signals = daemon.Signals()
        with self._connect(secret) as connection:
            steps = self._plan(connection.login())
            connection.quit()
            connection.wait_for_end()
        existing = self._host.existing
        return show(plan.script(steps, existing.name if existing else None))

    # --- before the first login ---------------------------------------------------------------

    def _names_something(self) -> bool:
        """Whether the options name what this host must have: then nothing is sent if it has not."""
        wanted = self._wanted
        named = (wanted.interface, wanted.delegations, wanted.solicit, wanted.fib is not None)
        return any(named) or not self._options.create

    def _prepare(self) -> None:
        """Look at the host before the first login, once.  Raises Failure.

        Where nothing can be wrong with the options, this is done while the connection is under way:
        with a server that is far away, importing `sh` and looking cost no time.
        """
        if self._prepared:
            return
        try:
            self._refuse_plain_jail()
            self._survey()
        except Failure as failure:
            raise Failure(str(failure), failure.status, final=True) from None
        except system.CommandFailed as failed:
            raise Failure(str(failed), final=True) from None
        self._prepared = True

    def _refuse_plain_jail(self) -> None:
        try:
            answer = self._system.setting("security.jail.jailed", "security.jail.vnet")
        except system.CommandFailed:
            return  # no FreeBSD, then; what follows will tell
        if answer == ["1", "0"]:
            raise Failure(
                "this jail has no network stack of its own, so no tunnel can be made in it;"
                " give it one (vnet in jail.conf), or run dtcpc on the host",
                NOT_ALLOWED,
            )

    def _recover(self) -> None:
        """Undo what an instance that was killed has left."""
        left = self._ledger.left() if self._ledger else None
        if left is None:
            return
        self._log.notice(f"undoing what a killed dtcpc has left ({left.tunnel or left.mark})")
        # A signal has it finished in a hurry, instead of half done.
        told: list[int] = []

        def finish(number: int, frame: object) -> None:
            told.append(number)
            self._system.hurry()

        before = {n: signal.signal(n, finish) for n in (*daemon.ENDING, signal.SIGHUP)}
        failures = self._system.undo_left(left)
        for number, handler in before.items():
            signal.signal(number, handler)
        if told and not failures:
            raise Stopped
        if failures:
            raise Failure(
                f"what a killed dtcpc has left cannot be undone: {failures[0]}; mend that, and"
                f" remove {self._options.files}.state"
            )

    def _survey(self) -> None:
        """Look at what the options name on this host.  Raises Failure."""
        fib = self._wanted.fib
        if fib is not None and fib >= (count := int(self._system.setting("net.fibs")[0])):
            raise Failure(f"-F: {fib}: no such FIB; this host has {count} (sysctl net.fibs)")
        lan = []
        for name in dict.fromkeys(each.interface for each in self._options.delegations):
            interface = self._system.interface(name)
            if interface is None:
                raise Failure(f"-P: {name}: no such interface")
            lan.append(interface)
        forwards = False
        if lan or self._wanted.solicit:
            forwarding, despite = self._system.setting(
                "net.inet6.ip6.forwarding", "net.inet6.ip6.rfc6204w3"
            )
            # With rfc6204w3 a router takes a default route from an advertisement all the same.
            forwards = forwarding != "0" and not (self._wanted.solicit and despite != "0")
            if lan and not forwards and not self._hinted:
                self._hinted = True
                self._log.notice(
                    "this host does not forward IPv6, so its LAN will get no further than here:"
                    ' set ipv6_gateway_enable="YES" in /etc/rc.conf and run'
                    " `service routing restart`"
                )
        advertised = self._system.advertised() if lan and self._wanted.advertise else ()
        self._survey_is_fresh = True
        self._host = plan.Host(
            self._existing(), forwards=forwards, lan=tuple(lan), advertised=advertised
        )

    def _existing(self) -> plan.Interface | None:
        """The interface that is there already and is to be used, if any."""
        name = self._options.interface
        if not self._options.create:
            found = self._system.interface(name or "gif0")
            if found is None:
                raise Failure(f"{name or 'gif0'}: no such interface; create it, or leave out -c")
            if "gif" not in found.groups:
                raise Failure(f"{found.name}: no gif interface, so -c cannot use it")
            if found.outer is None and found.running:
                raise Failure(f"{found.name}: has an outer pair over IPv6; -c cannot use it")
            return found
        if self._options.udp:  # has an interface of its own
            if name is not None and self._system.interface(name) is not None:
                raise Failure(f"{name}: is there already; name another")
            return None
        if name is None:
            return next(filter(_is_kept, self._system.ours()), None)
        found = self._system.interface(name)
        if found is not None and not _is_kept(found):
            raise Failure(f"{name}: is there already; use it as it is with -c, or name another")
        return found

    # --- one login after the other ------------------------------------------------------------

    def _one_login(self, secret: str) -> NoReturn:
        """Log in, make the tunnel as granted, keep it.  Ends by Failure or Stopped."""
        self._begun = time.monotonic()
        self._address_before = own_address(self._server_address)
        with self._connect(secret) as connection:
            self._connection = connection
            self._address_before = connection.own
            self._apply(connection.login())
            self._keep(connection)

    def _connect(self, secret: str) -> Connection:
        connection = Connection.open(
            self._options, secret, self._speaker, self._signals, self._log, self._look_around
        )
        self._server_address = connection.address
        return connection

    def _look_around(self) -> None:
        """What can be seen to while the connection is under way.  Raises Failure, Stopped."""
        try:
            self._prepare()
        except Failure:
            if self._signals.stopping:  # the looks were given no more time
                raise Stopped from None
            raise
        self._routes = None
        if not self._system.done:
            with contextlib.suppress(system.CommandFailed):  # it will be tried again
                self._routes = self._system.ipv6_networks(self._wanted.fib)

    def _plan(self, granted: grant.Grant) -> list[plan.Step]:
        if not self._system.done and not self._survey_is_fresh:
            self._survey()
        self._survey_is_fresh = False
        if granted != self._granted:
            self._look_at_routes(granted)
        pid = os.getpid()
        self._mark = plan.mark("dtcpc", self._options.user, self._options.server, pid)
        wanted = self._wanted._replace(node=f"dtcpc{pid}")
        return plan.client(granted, wanted, self._host, self._mark)

    def _look_at_routes(self, granted: grant.Grant) -> None:
        """See that a grant takes nothing from this host.  Raises Failure, CommandFailed."""
        routes = self._routes
        if routes is None:
            routes = self._system.ipv6_networks(self._wanted.fib)
        if not self._system.done:
            self._host = self._host._replace(
                default_route=plan.ANYWHERE in routes,
                routed=tuple(each for each in granted.prefixes if each in routes),
            )
        existing = self._host.existing
        tunnel = existing.name if existing else self._system.tunnel
        ours: list[IPv6Network] = [*self._wanted.destinations]
        ours += [address.network for address in self._wanted.addresses]
        if self._granted is not None:
            addresses = (self._granted.inner, self._granted.peer)
            ours += [*self._granted.prefixes, *(IPv6Network(each) for each in addresses if each)]
        reached = [
            network
            for network, (flags, interface) in routes.items()
            if interface != tunnel
            and not {"R", "B"} & set(flags)
            and not any(network.subnet_of(each) for each in ours if each != plan.ANYWHERE)
        ]
        try:
            if not self._system.done:
                for address in (granted.inner, granted.peer):
                    if address is not None and is_here(address):
                        raise grant.GrantError(f"{address} is an address of this host already")
            grant.check_against(granted, reached)
            if granted.remote != self._server_address:
                grant.check_remote_against(granted.remote, self._system.ipv4_networks())
        except grant.GrantError as error:
            raise Failure(
                f"{self._options.server}: the server's grant makes no sense: {error}"
            ) from None

    def _apply(self, granted: grant.Grant) -> None:
        """Make the host as the grant has it: all of it, or what differs from before."""
        if self._granted is None and self._system.done:  # what could not be undone before
            failures = self._system.down()
            if failures:
                raise Failure(f"could not be undone: {failures[0]}")
        if self._granted is not None and not self._is_whole():
            self._give_up(f"{self._system.tunnel} has been removed")
        first = self._granted is None
        stop = partial(getattr, self._signals, "stopping")
        try:
            steps = self._plan(granted)
            if first:
                existing = self._host.existing
                self._system.tunnel = existing.name if existing else None
                self._refuse_taken_port(granted)
                self._system.up(steps, stop)
                self._index = socket.if_nametoindex(self._system.tunnel or "")
                event = "up"
            else:
                event = "change" if self._system.change(steps, stop) else ""
        except plan.PlanError as error:
            self._give_up(str(error))
            raise Failure(str(error)) from None
        except (system.Interrupted, LedgerError):
            self._is_down()
            raise
        except system.CommandFailed as failed:
            self._is_down()
            for failure in failed.undone_badly:
                self._log.error(f"could not be undone: {failure}")
            if self._signals.stopping:  # it was given no more time
                raise Stopped from None
            raise Failure(self._why_not(failed, granted)) from None
        self._granted = granted
        self._lost_at = None
        self._back_off.up()
        if event:
            self._say_what_is_up(granted, steps)
        self._log.notice(f"up after {time.monotonic() - self._begun:.1f} s")
        self._tell(state="up", **({"since": time.monotonic()} if event else {}))
        if event:
            self._script(event)

    def _refuse_taken_port(self, granted: grant.Grant) -> None:
        """See that our UDP port is free: netgraph's message would not say what is wrong."""
        if granted.ports is None:
            return
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind((str(granted.local), granted.ports[0]))
            except OSError as error:
                raise Failure(
                    f"UDP port {granted.ports[0]}: {error.strerror}; is another dtcpc using it?"
                    " give this one another with -b"
                ) from None

    def _why_not(self, failed: system.CommandFailed, granted: grant.Grant) -> str:
        """Why the tunnel could not be made, as far as looking tells more than the command did."""
        if "SIOCIFCREATE2" in failed.reason and "Invalid argument" in failed.reason:
            return "the kernel has no gif(4): kldload if_gif (for a jail, on its host)"
        if failed.words[0] == "ngctl" and failed.reason in (
            "can't create node: Protocol not supported",
            # To mkpeer: the kernel looks for a module of that name; in a jail it may not.
            "send msg: No such file or directory",
            "send msg: Operation not permitted",
        ):
            return (
                "the kernel has no netgraph: kldload ng_socket ng_iface ng_ksocket (for a jail,"
                " on its host)"
            )
        if failed.words[2:3] == ("tunnel",):
            with contextlib.suppress(system.CommandFailed):
                for each in self._system.interfaces():
                    if each.outer == (granted.local, granted.remote):
                        whose = f" ({each.description})" if each.description else ""
                        return (
                            f"{each.name}{whose} has the outer pair {granted.local} -->"
                            f" {granted.remote} already, and no two can have the same"
                        )
        return f"the tunnel could not be made: {failed}"

    def _say_what_is_up(self, granted: grant.Grant, steps: list[plan.Step]) -> None:
        name = self._system.tunnel
        inner = f", {granted.inner}" if granted.inner else ""
        inner += f" --> {granted.peer}" if granted.peer else ""
        ends = f"{name}: {granted.local} --> {granted.remote}{inner}, mtu {self._options.mtu}"
        routes = [step.do[4] for step in steps if step.do[5:7] == ("-interface", plan.TUNNEL)]
        if self._wanted.solicit:
            routes = ["default, as advertised,"]
        lines = [ends, f"routes: {', '.join(routes)} through {name}"]
        lan = [
            f"{interface.name} {address}"
            for interface, address in plan.lan_addresses(granted, self._wanted, self._host)
        ]
        says = any(step.do[0] == "rtadvd" for step in steps) or self._host.advertised
        for number, prefix in enumerate(granted.prefixes):
            to = f": {', '.join(lan)}{', advertised' if says else ''}" if lan and not number else ""
            lines.append(f"{prefix} delegated{to}")
        if self._options.delegations and not granted.prefixes:
            lines.append("the server delegates no prefix, so -P has nothing to give")
        for line in lines:
            self._log.notice(line)
        self._tell(
            lines=lines,
            interface=name,
            local=str(granted.local),
            remote=str(granted.remote),
            inner=str(granted.inner) if granted.inner else None,
            peer=str(granted.peer) if granted.peer else None,
            prefixes=list(map(str, granted.prefixes)),
            routes=routes,
            lan=lan,
        )

    def _keep(self, connection: Connection) -> NoReturn:
        """Keep the tunnel until there is a reason not to.  Ends by Failure or Stopped."""
        self._watch()
        heart = None
        if self._options.udp and self._granted is not None:
            heart = Heartbeat(self._system.tunnel or "", self._granted.peer)
        with contextlib.closing(heart) if heart else contextlib.nullcontext():
            self._keep_going(connection, heart)

    def _keep_going(self, connection: Connection, heart: Heartbeat | None) -> NoReturn:
        next_look = time.monotonic() + LOOK_FIRST
        looked_at, told = -math.inf, False
        while True:
            connection.look()
            until = min(heart.next if heart else math.inf, next_look, connection.deadline)
            changed = self._wait(until - time.monotonic(), connection)
            now = time.monotonic()
            if heart is not None and heart.next <= now:
                self._beat(heart)
            if self._signals.reload:
                self._signals.reload = False
                raise Failure("told to log in again", TRY_AGAIN, asked=True)
            if changed:  # again and again, on a busy network
                told = True
                next_look = min(next_look, max(now, looked_at + LOOK_PAUSE))
            if next_look <= now:
                looked_at = now
                usual = LOOK_TIME if self._monitor is None else LOOK_SELDOM
                next_look = now + (LOOK_AGAIN if told else usual)
                told = False
                self._look(connection)

    def _look(self, connection: Connection) -> None:
        """See that what the tunnel stands on is still there.  Raises Failure."""
        if not self._is_whole():
            self._give_up(f"{self._system.tunnel} has been removed")
            raise Failure("lost: somebody has removed the tunnel", TRY_AGAIN, at_once=True)
        now = own_address(connection.address)
        # For a moment without a route, but with the address: not our business.
        if now != connection.own and (now is not None or not is_here(connection.own)):
            raise Failure(
                f"lost: our address was {connection.own} and is {now or 'gone'}",
                TRY_AGAIN,
                at_once=True,
            )

    def _is_whole(self) -> bool:
        """Whether the tunnel interface is still the one that we have made."""
        name = self._system.tunnel or ""
        try:
            if socket.if_nametoindex(name) != self._index:
                return False
        except OSError:
            return False
        try:
            # FreeBSD gives the number of one that was destroyed to the next that is made; but that
            # has nothing of ours, and ours loses it all only when somebody is bent on it.
            shown = self._system.interface(name)
        except system.CommandFailed:
            return True  # we are blind, not sure
        if shown is None or self._granted is None:
            return False
        outer = (self._granted.local, self._granted.remote)
        return plan.GROUP in shown.groups or shown.outer == outer or self._mark == shown.description

    def _beat(self, heart: Heartbeat) -> None:
        """See that a tunnel over UDP still carries packets.  Raises Failure."""
        try:
            if self._system.mend():
                self._log.notice("the tunnel's UDP socket had lost its peer: connected again")
        except system.CommandFailed as failed:
            raise Failure(f"lost: {failed}", TRY_AGAIN) from None
        if not heart.beat(time.monotonic()) and self._options.nat:
            raise Failure("lost: nothing comes back through the tunnel", TRY_AGAIN)

    def _wait(self, seconds: float, connection: Connection | None = None) -> bool:
        """Wait for whatever happens, `seconds` at most.  Whether the network changed.

        Raises Stopped.
        """
        watched = self._monitor.fileno() if self._monitor else -1
        readers = [connection.fileno()] if connection else []
        if self._signals.stopping or self._signals.reload or self._signals.report:
            seconds = 0.0  # it came while we waited for something else
        ready, _ = self._signals.wait([*readers, *([watched] if self._monitor else [])], seconds)
        if self._signals.stopping:
            raise Stopped
        if self._signals.report:
            self._signals.report = False
            self._log.notice("\n".join(status_lines(self._facts)[:1]))
        if watched not in ready:
            return False
        if not os.read(watched, 65536):
            self._log.info("route monitor has ended")
            self._stop_monitor()
        return True

    def _watch(self) -> None:
        """Have the network watched, so that changes of our address are noticed at once."""
        if self._monitor is None:
            try:
                self._monitor = self._system.monitor()
            except (system.CommandFailed, OSError) as error:  # then we look once a minute
                self._log.error(f"the network cannot be watched: {error}")

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.end()
        self._monitor = None

    # --- between two logins -------------------------------------------------------------------

    def _delay_after(self, failure: Failure) -> float:
        """What comes of a failure: the seconds to the next attempt.  Raises it, without -l."""
        self._connection = None  # it is closed
        if failure.final or not (self._options.loop or failure.asked):
            raise failure
        now = time.monotonic()
        refused = failure.status == NOT_ALLOWED
        if self._lost_at is None:
            self._lost_at = now
        if self._granted is not None:
            if refused:
                self._give_up("the server refuses us")
            elif now - self._lost_at >= GONE_TIME and not is_here(self._granted.local):
                self._give_up(f"our address {self._granted.local} is gone")
            elif now - self._lost_at >= GIVE_UP_TIME:
                self._give_up(f"no server for {GIVE_UP_TIME / 60:.0f} minutes")
        hurry = failure.at_once and now - self._hurried_at >= CALM_TIME
        if failure.asked or hurry:
            self._hurried_at = now
            delay = 0.0
        else:
            delay = self._back_off.next(now, most=refused)
        when = f"in {delay:.0f} s" if delay >= 1 else "at once"
        self._log.error(f"{failure}; trying again {when}")
        self._tell(
            state="waiting",
            last_reason=str(failure),
            next_attempt=time.monotonic() + delay,
            reconnects=int(str(self._facts.get("reconnects", 0))) + 1,
        )
        return delay

    def _rest(self, seconds: float) -> None:
        """Wait for the next attempt; a change of the network or SIGHUP is a reason to go now."""
        self._watch()
        end = time.monotonic() + seconds
        before = self._address_before
        while (left := end - time.monotonic()) > 0:
            # The network may have come back while the last attempt was still waiting.
            now = own_address(self._server_address)
            if now is not None and now != before:
                return
            self._wait(left)
            if self._signals.reload:
                break
        self._signals.reload = False

    def _give_up(self, reason: str) -> None:
        """Take down what is configured, though we go on trying."""
        if self._system.done:
            self._log.notice(f"taking the tunnel down: {reason}")
            for failure in self._system.down():
                self._log.error(f"could not be undone: {failure}")
            self._is_down()

    def _is_down(self) -> None:
        """The tunnel has been taken down: whoever was told that it is up should know."""
        self._granted = None
        self._facts["lines"] = []
        if self._script_told_up:
            self._script("down")
        self._tell(interface=None, lines=[])

    def _end(self) -> int:
        """Say goodbye, and take everything down.  The exit status."""
        connection = self._connection
        if connection is not None:
            connection.quit()
        self._stop_monitor()
        had_tunnel = bool(self._system.done)
        failures = self._system.down()
        for failure in failures:
            self._log.error(f"could not be undone: {failure}")
        self._is_down()
        if connection is not None:
            connection.wait_for_end()
            connection.close()
        if had_tunnel:
            self._log.notice("down")
        return FAILED if failures else OK

    # --- telling ------------------------------------------------------------------------------

    def _tell(self, **facts: object) -> None:
        self._facts |= facts
        if self._ledger is not None:
            try:
                self._ledger.tell(**facts)
            except LedgerError as error:  # --status will be behind, the tunnel is not worse for it
                self._log.error(str(error))

    def _script(self, event: str) -> None:
        """Run the administrator's script (-s).  What comes of it is his business."""
        if not self._options.script:
            return
        self._script_told_up = event != "down"
        facts = {
            "DTCP_INTERFACE": self._facts.get("interface"),
            "DTCP_SERVER": self._options.server,
            "DTCP_USER": self._options.user,
            "DTCP_TYPE": self._options.type,
            "DTCP_LOCAL": self._facts.get("local"),
            "DTCP_REMOTE": self._facts.get("remote"),
            "DTCP_INNER": self._facts.get("inner"),
            "DTCP_PEER": self._facts.get("peer"),
            "DTCP_PREFIXES": " ".join(map(str, cast("list[str]", self._facts.get("prefixes", [])))),
            "DTCP_MTU": self._options.mtu,
        }
        environment = {name: str(value) for name, value in facts.items() if value is not None}
        try:
            self._system.hook((self._options.script, event), environment, SCRIPT_TIME)
        except system.CommandFailed as failed:
            self._log.error(str(failed))


def _is_kept(interface: plan.Interface) -> bool:
    """Whether an interface is one that an earlier run left with -o: in our group, and bare."""
    return plan.GROUP in interface.groups and not (
        interface.outer or interface.description or interface.up
    )


class BackOff:
    """How long to wait before each attempt: nothing, then 1 s doubling to 300 s, with jitter.

    In the first seconds after a loss the steps stay small: a server that is restarted should find
    us back at once.  After the tunnel has been up for a minute it begins anew.
    """

    def __init__(self) -> None:
        self._attempts = 0
        self._lost_at = 0.0
        self._up_at: float | None = None

    def up(self) -> None:
        """The tunnel is up."""
        self._up_at = time.monotonic()

    def next(self, now: float, *, most: bool = False) -> float:
        """Seconds to the next attempt; `most`: the longest wait, because we were refused."""
        if self._up_at is not None and now - self._up_at >= STABLE_TIME:
            self._attempts = 0
        self._up_at = None
        if most:
            return LONGEST
        if self._attempts == 0:
            self._lost_at = now
        self._attempts += 1
        if self._attempts == 1:
            return 0.0
        if now - self._lost_at < SOON:
            self._attempts = min(self._attempts, 3)  # or the first wait after that were minutes
        delay = min(LONGEST, 2.0 ** min(self._attempts - 2, 16))
        # Up to a quarter less, so that a server's clients do not come back all at once.
        return delay * (1 - int.from_bytes(os.urandom(2), "big") / 65536 / 4)


# --- the state of a running instance ----------------------------------------------------------


def show_status(options: argparse.Namespace) -> int:
    """--status: print what the running instance tells of itself; OK when its tunnel is up.

    Raises Failure, PidFileError.
    """
    import json

    try:
        pid = daemon.running(options.pid_file)
    except PermissionError:
        raise Failure(f"{options.pid_file}: not allowed; become root", NOT_ALLOWED) from None
    facts = Ledger(options.files + ".state").facts() if pid else {}
    if options.json:
        for name in {"since", "next_attempt"} & facts.keys():
            # Kept by the clock that nobody sets, which is the same for all processes of a host.
            facts[name] = time.time() - time.monotonic() + float(str(facts[name]))
        show([json.dumps({"state": "not running"} | facts, indent=1)])
    else:
        show(status_lines(facts))
    return OK if facts.get("state") == "up" else FAILED


def status_lines(facts: dict[str, object]) -> list[str]:
    """The state for people; the first line says the most."""
    now = time.monotonic()
    login = "{server} as {user}, type {type}".format_map(
        {name: facts.get(name) for name in ("server", "user", "type")}
    )
    match facts.get("state"):
        case "up":
            head = f"up for {_span(now - float(str(facts['since'])))}: {login}"
        case "waiting":
            wait = max(0.0, float(str(facts["next_attempt"])) - now)
            head = f"trying again in {_span(wait)}: {login}"
        case "connecting":
            head = f"logging in: {login}"
        case _:
            return ["not running"]
    lines = [head, *cast("list[str]", facts.get("lines", []))]
    if facts.get("reconnects"):
        lines.append(f"logged in again {facts['reconnects']} times, last: {facts['last_reason']}")
    return [*lines, f"pid {facts['pid']}"]


def _span(seconds: float) -> str:
    """A span of time in its two largest units."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    parts = [f"{n} {unit}" for n, unit in ((days, "d"), (h, "h"), (m, "min"), (s, "s")) if n]
    return " ".join(parts[:2]) or "0 s"


def announced(options: argparse.Namespace) -> int | None:
    """The UDP port for the server to send to; 0: it must find out; None: not over UDP."""
    if not options.udp:
        return None
    if options.nat:
        return int(options.nat_port or 0)
    return int(options.nat_port or options.udp_port)


class Heartbeat:
    """Small packets through a tunnel over UDP: they keep a NAT's entry alive, and show that the
    tunnel carries something.

    An echo request (RFC 4443 section 4.1) to the server's end of the tunnel, or, when that has no
    address that we know, to all nodes on the link.
    """

    def __init__(self, interface: str, peer: IPv6Address | None) -> None:
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        self._socket.setblocking(False)
        # Otherwise we would hear ourselves answer.
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        index = socket.if_nametoindex(interface)
        self._to = (str(peer), 0, 0, 0) if peer else ("ff02::1", 0, 0, index)
        self._packet = bytes((128, 0, 0, 0)) + os.urandom(4)  # the kernel fills in the check sum
        self._sent = self._unanswered = 0
        self._ever_answered = False
        self.next = time.monotonic()

    def beat(self, now: float) -> bool:
        """Send one.  False when the last ones were not answered, though one was before."""
        with contextlib.suppress(BlockingIOError):
            while True:
                answer = self._socket.recv(64)
                if answer[0] == 129 and answer[4:8] == self._packet[4:8]:
                    self._unanswered = 0
                    self._ever_answered = True
        # Its own address may be tentative for a second, and the first packets may find no taker.
        with contextlib.suppress(OSError):
            self._socket.sendto(self._packet, self._to)
        self._sent += 1
        self._unanswered += 1
        self.next = now + min(HEARTBEAT, 2.0 ** (self._sent - 1))
        return not self._ever_answered or self._unanswered <= HEARTBEATS_MISSED

    def close(self) -> None:
        self._socket.close()


# --- the way to the server --------------------------------------------------------------------


class Connection:
    """The control connection, which the speaker holds: it knows what is said on it."""

    def __init__(
        self, address: IPv4Address, name: str, spokesman: Speaker, signals: daemon.Signals
    ) -> None:
        self.address = address
        self.name = name  # for messages
        self.own: IPv4Address
        self._speaker = spokesman
        self._signals = signals
        self._end = math.inf  # of the goodbye

    @classmethod
    def open(
        cls,
        options: argparse.Namespace,
        secret: str,
        spokesman: Speaker,
        signals: daemon.Signals,
        log: daemon.Log,
        meanwhile: Callable[[], None],
    ) -> Connection:
        """Connect to the first address of the server that answers.

        `meanwhile` is called while that is under way.  Raises Failure, Stopped.
        """
        failures = []
        for address in resolve(options.server, signals):
            log.notice(
                f"logging in to {options.server} ({address}) port {options.port} as {options.user}"
            )
            name = f"{options.server} ({address}) port {options.port}"
            connection = cls(address, name, spokesman, signals)
            request = Request(
                address,
                options.port,
                options.user,
                options.type,
                nat=options.nat,
                port=options.udp_port if options.udp else None,
                announced=announced(options),
                verbose=options.debug,
            )
            try:
                spokesman.login(request, secret)
            except OSError as error:
                raise Failure(
                    "the process that speaks with the server cannot be started:"
                    f" {sys.executable}: {error.strerror}",
                    TRY_AGAIN,
                ) from None
            try:
                meanwhile()
                failure = connection._reach()
            except BaseException:
                spokesman.leave()
                raise
            if failure is None:
                return connection
            spokesman.leave()
            failures.append(f"{name}: {failure}")
        raise Failure("; ".join(failures), TRY_AGAIN)

    def _reach(self) -> str | None:
        """Wait for the connection; why there is none, or None.  Raises Failure, Stopped."""
        before = own_address(self.address)
        while True:
            match self._speaker.event():
                case IPv4Address() as own:
                    self.own = own
                    return None
                case wire.Lost(reason):
                    return reason
                case speaker.Nonsense(text):
                    raise Failure(f"{self.name}: {text}")
            if self._signals.stopping:
                raise Stopped
            # Now and then a look at our own address: from one that has gone there is no answer.
            self._signals.wait([self.fileno()], min(0.5, self.deadline - time.monotonic()))
            if own_address(self.address) != before:
                return os.strerror(errno.EADDRNOTAVAIL)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Told to stop: who takes the tunnel down says goodbye too, and waits for the answer.
        if not isinstance(error, (Stopped, system.Interrupted)):
            self.close()

    def fileno(self) -> int:
        return self._speaker.fileno()

    @property
    def deadline(self) -> float:
        """When there must be a look at the latest, by the monotonic clock."""
        return self._speaker.deadline

    def login(self) -> grant.Grant:
        """The server's grant.  Raises Failure, Stopped."""
        while True:
            match self._speaker.event():
                case None:
                    # It may have come while we were connecting, and ended that wait.
                    if self._signals.stopping:
                        raise Stopped
                    self._signals.wait([self.fileno()], self.deadline - time.monotonic())
                case grant.Grant() as granted:
                    return granted
                case wire.Refused(text) as refused:
                    status = TRY_AGAIN if refused.temporary else NOT_ALLOWED
                    raise Failure(f"{self.name}: the server refuses: {text}", status)
                case wire.Lost(reason):
                    raise Failure(f"{self.name}: {reason}", TRY_AGAIN)
                case speaker.Nonsense(text):
                    raise Failure(f"{self.name}: {text}")
                case grant.BehindNat() as nat:
                    raise Failure(str(nat), NOT_ALLOWED)

    def look(self) -> None:
        """See that the conversation is still alive.  Raises Failure."""
        while (event := self._speaker.event()) is not None:
            match event:
                case wire.Lost(reason):
                    raise Failure(f"lost: {reason}", TRY_AGAIN)
                case speaker.Nonsense(text):
                    raise Failure(f"{self.name}: {text}")

    def quit(self) -> None:
        """Say goodbye; the answer is for `wait_for_end`."""
        self._speaker.quit()
        self._end = time.monotonic() + speaker.QUIT_TIME + speaker.PATIENCE

    def wait_for_end(self) -> None:
        """Wait until the server has taken our goodbye, but not long."""
        while time.monotonic() < self._end and self.fileno() >= 0:
            if self._speaker.event() is not None:
                return
            self._signals.wait([self.fileno()], self._end - time.monotonic())

    def close(self) -> None:
        """Close it, with a goodbye that nobody waits for."""
        self._speaker.leave()


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
        except Exception as error:  # nobody else would hear of it
            answers.append(socket.gaierror(socket.EAI_FAIL, str(error)))
        finally:
            os.close(finish)

    try:
        threading.Thread(target=ask, daemon=True).start()
    except RuntimeError as error:  # no more threads for now
        os.close(done)
        os.close(finish)
        raise Failure(f"{server}: {error}", TRY_AGAIN) from None
    end = time.monotonic() + RESOLVE_TIME
    while not answers and (left := end - time.monotonic()) > 0:
        if signals.stopping:
            raise Stopped
        signals.wait([done], left)
    os.close(done)
    if not answers:
        raise Failure(f"{server}: no answer from the name service", TRY_AGAIN)
    answer = answers[0]
    if isinstance(answer, socket.gaierror):
        temporary = answer.errno == socket.EAI_AGAIN
        raise Failure(f"{server}: {answer.strerror}", TRY_AGAIN if temporary else FAILED)
    return answer


if __name__ == "__main__":
    sys.exit(main())
