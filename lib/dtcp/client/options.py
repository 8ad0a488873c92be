"""The command line of dtcpc: its options, their converters, and the checks of all together."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from typing import TypeVar

from dtcp import __version__, plan, private, wire
from dtcp.cli import Invalid, Parser, complain, in_range, ipv4, ipv6, matching
from dtcp.client import conversation
from dtcp.look import NAME

AUTH_FILE = "/usr/local/etc/dtcpc.auth"
PID_FILE = "/var/run/dtcpc.pid"
UDP_PORT = 4028
WHEEL = 0  # the group's number; only its name differs between systems

Value = TypeVar("Value")


def _listed(one: Callable[[str], Value]) -> Callable[[str], tuple[Value, ...]]:
    return lambda text: tuple(one(part.strip()) for part in text.split(","))


_user = matching(wire.USER, "DTCP user name")


def _server(text: str) -> str:
    if ":" in text:
        raise Invalid(f"{text!a}: DTCP runs over IPv4; give a host name or an IPv4 address")
    if re.fullmatch(r"[0-9.]+", text):
        return str(ipv4(text))
    return matching(plan.HOST, "host name")(text)


def _fingerprint(text: str) -> str:
    """As `dtcps --fingerprint` and openssl-x509(1) print it, in one spelling."""
    found = re.fullmatch("sha256:((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", text.lower())
    if not found:
        raise Invalid(f"{text!a}: expected sha256: and 64 hex digits")
    return f"sha256:{found[1].replace(':', '')}"


def _with_length(text: str) -> tuple[str, int | None]:
    """`X`, `X/len`, and the manual's `X prefixlen len` and `X -prefixlen len`."""
    found = re.fullmatch(r"([^\s/]+)(?:(?:/|\s+-?prefixlen\s+)([0-9]{1,3}))?", text)
    if not found or (found[2] and int(found[2]) > 128):
        raise Invalid(f"invalid IPv6 address or prefix length: {text!a}")
    return found[1], int(found[2]) if found[2] else None


def _unicast(word: str) -> IPv6Address:
    address = ipv6(word)
    if address.is_multicast or address in IPv6Network("::/8"):
        raise Invalid(f"{word} cannot be an interface's address")
    return address


def _alias(text: str) -> plan.Alias:
    """`X`, `X/len` and so on, or `X PEER prefixlen 128`: what ifconfig(8) takes."""
    found = re.fullmatch(r"([^\s/]+)\s+([^\s/]*:.*)", text)
    if found:  # with the other end of the link
        peer, length = _with_length(found[2])
        if length != 128:
            raise Invalid(f"{text!a}: with two addresses the prefix length must be 128")
        return plan.Alias(IPv6Interface((_unicast(found[1]), 128)), _unicast(peer))
    word, length = _with_length(text)
    address = _unicast(word)
    if length == 0:
        raise Invalid(f"{text!a}: the prefix length must be 1 to 128")
    return plan.Alias(IPv6Interface((address, 64 if length is None else length)))


def _destination(text: str) -> IPv6Network:
    """What route(8) takes: `default`, `X`, `X/len` and so on, after `-net` or `-host` if at all."""
    kind, rest = "", text
    if text.startswith(("-net ", "-host ")):
        kind, rest = text.split(maxsplit=1)
    if rest in ("default", "::"):
        return plan.ANYWHERE
    word, length = _with_length(rest)
    if kind == "-host" and length not in (None, 128):
        raise Invalid(f"{text!a}: a host has no prefix length")
    return IPv6Network((ipv6(word), 128 if length is None else length), strict=False)


def _delegation(text: str) -> plan.Delegation:
    interface, sla, identifier, length, *more = (*text.split("/"), "", "", "")
    if any(more) or not re.fullmatch(NAME, interface):
        raise Invalid(f"{text!a}: expected interface/sla[/id[/length]]")
    if not re.fullmatch(r"[0-9A-Fa-f]{1,4}", sla):
        raise Invalid(f"{text!a}: the SLA ID must be one to four hex digits")
    # The low half of an address: `0:0:0:1`, or `::1`.
    low = identifier if "::" in identifier or not identifier else f"::{identifier}"
    number = int(ipv6(low)) if low else None
    if number is not None and not 0 < number < 1 << 64:
        raise Invalid(f"{text!a}: the interface identifier must have 64 bits, not all 0")
    return plan.Delegation(
        interface, int(sla, 16), number, in_range(64, 128)(length) if length else 64
    )


def _unprivileged(name: str) -> tuple[int, int]:
    """The numbers of a user and of its group."""
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise Invalid(f"{name!a}: no such user on this host") from None
    if entry.pw_uid == 0:
        raise Invalid(f"{name!a}: must not be root")
    return entry.pw_uid, entry.pw_gid


def _group(name: str) -> int:
    """The number of a group."""
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise Invalid(f"{name!a}: no such group on this host") from None


_USAGE = """\
dtcpc [-acdDlnoU] [-A addr[,addr]] [-b port] [-B port] [-f file]
             [-F fib] [-i if] [-m mtu] [-p port] [-P if/sla[/id[/len]][,...]]
             [-r static|solicit] [-R dest[,dest]] [-s script] [-t type]
             [-u user] [--auth-file file] [--check | --dry-run | --test]
             [--run-as user] [--status-group group] [--tls]
             [--tls-fingerprint sha256:hex] [--transport auto|gif|udp] server
       dtcpc --status [--json | --prometheus] [-f file]
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
        add_help=False,  # it is one of a group
    )
    a = p.add_argument_group("the server").add_argument
    a("server", nargs="?", type=_server, help="name or IPv4 address of the server")
    a("-p", dest="port", metavar="port", type=port, default=wire.PORT,
      help=f"TCP port of the server ({wire.PORT})")
    a("-u", dest="user", metavar="user", type=_user, help="DTCP user name (the login name)")
    a("--auth-file", metavar="file", help=f"password file ({AUTH_FILE})")
    a("--tls", action="store_true", help="insist on TLS, with a certificate for that name")
    a("--tls-fingerprint", metavar="sha256:hex", type=_fingerprint,
      help="insist on TLS, with this very certificate")

    a = p.add_argument_group("the tunnel").add_argument
    a("-A", dest="aliases", metavar="addr[,addr]", type=_listed(_alias), default=(),
      help="more addresses for the tunnel interface")
    a("-c", dest="create", action="store_false", help="use the interface of -i (gif0) as it is")
    a("-F", dest="fib", metavar="fib", type=in_range(0, 65535), help="FIB of the interface")
    a("-i", dest="interface", metavar="if", type=matching(NAME, "interface name"),
      help="name of the tunnel interface")
    a("-m", dest="mtu", metavar="mtu", type=in_range(plan.MTU_LEAST, plan.MTU_MOST),
      default=plan.MTU_LEAST, help=f"MTU of the tunnel ({plan.MTU_LEAST})")
    a("-o", dest="keep", action="store_true", help="leave the bare interface at the end")
    a("-r", dest="routing", metavar="static|solicit", choices=("static", "solicit"),
      default="static", help="how the default route is made (static)")
    a("-R", dest="destinations", metavar="dest[,dest]", type=_listed(_destination),
      help="routes through the tunnel, instead of the default route")
    a("-t", dest="type", metavar="type", choices=wire.TYPES, default="tunnelonly",
      help=f"{', '.join(wire.TYPES)} (tunnelonly)")

    a = p.add_argument_group("the LAN").add_argument
    a("-a", dest="advertise", action="store_false", help="with -P: start no rtadvd")
    a("-P", dest="delegations", metavar="if/sla[/id[/len]][,...]", type=_listed(_delegation),
      default=(), help="what LAN interfaces get of the delegated prefix")

    a = p.add_argument_group("over UDP").add_argument
    a("-b", dest="udp_port", metavar="port", type=port, help="with -U: the port to bind (4028)")
    a("-B", dest="nat_port", metavar="port", type=port, help="with -U: the port to announce")
    a("-n", dest="nat", action="store_true", help="the server may see us under another address")
    a("-U", dest="udp", action="store_true", help="tunnel over UDP (--transport udp)")
    a("--transport", metavar="auto|gif|udp", choices=("auto", "gif", "udp"),
      help="what carries the packets: protocol 41 (gif), UDP, or whichever passes (gif)")

    a = p.add_argument_group("running").add_argument
    a("-d", dest="debug", action="store_true", help="show the conversation and each command")
    a("-D", dest="daemon", action="store_true", help="become a daemon")
    a("-f", dest="pid_file", metavar="file", default=PID_FILE, help=f"pid file ({PID_FILE})")
    a("-l", dest="loop", action="store_true", help="never give up: reconnect for ever")
    a("-s", dest="script", metavar="script", help="run at up, down and change")
    a("--run-as", dest="account", metavar="user", type=_unprivileged, default="nobody",
      help="who speaks with the server, instead of root (nobody)")
    a("--status-group", metavar="group", type=_group, default=WHEEL,
      help="who may use --status beside root (wheel)")

    a = p.add_argument_group("looking, instead").add_argument
    a("--check", action="store_true", help="check all this and the password file, do no more")
    a("--dry-run", action="store_true", help="log in, print the commands, change nothing")
    a("--status", action="store_true", help="show the state of the running instance")
    a("--json", action="store_true", help="with --status: for machines")
    a("--prometheus", action="store_true", help="with --status: as metrics")
    a("--test", action="store_true", help="test the whole way, stage by stage")
    a("-h", "--help", action="help", help="show this help and exit")
    a("--version", action="version", version=f"dtcpc {__version__}",
      help="show the version and exit")
    return p
# fmt: on


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked against each other.  Exits with USAGE and a line that says why.

    Beside what is on the command line there are `announced`, the UDP port for the server to send to
    (0: it must find out; None: not over UDP), `files`, what the names of our files begin with, and
    `trust`, what a certificate is held against (see dtcp.client.conversation).
    """
    p = parser()
    options = p.parse_args(_attached(sys.argv[1:] if argv is None else argv))
    ignored = _forgive(options)
    _check(p, options)
    if options.script:
        options.script = os.path.abspath(options.script)
        if wrong := _is_no_script(options.script):
            p.error(f"-s: {options.script}: {wrong}")
    if options.test:  # with the line that is for every day: from here, and nothing stays
        options.daemon = options.keep = False
    options.udp_port = options.udp_port or UDP_PORT
    options.announced = None
    if options.udp:
        options.announced = options.nat_port or (0 if options.nat else options.udp_port)
    if not options.check:
        for option, why in ignored:
            complain(f"dtcpc: {option} is ignored {why}")
    # A daemon's working directory is /.
    options.pid_file = os.path.abspath(options.pid_file)
    if options.auth_file:
        options.auth_file = os.path.abspath(options.auth_file)
    options.files = options.pid_file.removesuffix(".pid")
    if options.status:
        return options
    options.tls = options.tls or options.tls_fingerprint is not None
    options.trust = ""
    if options.tls:
        options.trust = conversation.PINNED if options.tls_fingerprint else conversation.STORE
    if options.user is None:
        try:
            options.user = _user(_login_name())
        except Invalid as error:
            p.error(f"{error}; give one with -u")
    if options.destinations is None:
        options.destinations = (plan.ANYWHERE,)
    return options


def _attached(argv: list[str]) -> list[str]:
    """The words with `-R "-net X"` as one: argparse takes the second for an option."""
    words: list[str] = []
    for word in argv:
        if words[-1:] == ["-R"] and word.startswith(("-net ", "-host ")):
            words[-1] += word
        else:
            words.append(word)
    return words


def _forgive(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Take back what has no effect, as lines of rc.conf for net/dtcp have it: which, and why."""
    takes_prefix = options.type in ("network", "tunnelroute")
    is_gif = not options.udp and options.transport in (None, "gif")
    ignored = []
    for option, name, default, is_idle, why in (
        ("-P", "delegations", (), not takes_prefix, f"with -t {options.type}"),
        ("-a", "advertise", True, not (options.delegations and takes_prefix), "without -P"),
        ("-b", "udp_port", None, is_gif, "without -U"),
        ("-B", "nat_port", None, is_gif, "without -U"),
        ("-R", "destinations", None, options.routing == "solicit", "with -r solicit"),
        ("-d", "debug", False, options.daemon, "with -D"),
    ):
        if is_idle and getattr(options, name) != default:
            setattr(options, name, default)
            ignored.append((option, why))
    return ignored


def _check(p: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """See that the options go together."""
    existing, solicits = not options.create, options.routing == "solicit"
    if options.udp and options.transport not in (None, "udp"):
        p.error(f"-U excludes --transport {options.transport}")
    options.transport = options.transport or ("udp" if options.udp else "gif")
    options.udp = options.transport == "udp"
    may_be_udp = options.transport != "gif"
    for option, given, other, is_there in (
        ("--json", options.json, "--status", options.status),
        ("--prometheus", options.prometheus, "--status", options.status),
        # What the server advertises stays on an interface until that is destroyed.
        ("-c", existing, "-r static", not solicits),
        ("-o", options.keep, "-r static", not solicits),
    ):
        if given and not is_there:
            p.error(f"{option} requires {other}")
    if options.server is None and not options.status:
        p.error("no server given")
    other = "--transport auto" if options.transport == "auto" else "-U"
    for option, given in (("-c", existing), ("-o", options.keep)):
        if given and may_be_udp:
            p.error(f"{option} excludes {other}: a tunnel over UDP has an interface of its own")
    if existing and options.keep:
        p.error("-c excludes -o: it never destroys the interface")
    if options.dry_run and (options.daemon or options.loop):
        p.error("--dry-run excludes -D and -l")
    if options.json and options.prometheus:
        p.error("--json excludes --prometheus")
    if options.check and (options.dry_run or options.status):
        p.error("--check excludes --dry-run and --status")
    if options.test and (options.check or options.dry_run or options.status):
        p.error("--test excludes --check, --dry-run and --status")
    seen = [(each.interface, each.sla) for each in options.delegations]
    if len(set(seen)) < len(seen):
        p.error("-P: the same SLA ID twice on one interface")
    for option, path in (("-s", options.script), ("--auth-file", options.auth_file)):
        if path and "\n" in path:
            p.error(f"{option}: invalid file name: {path!a}")


def _is_no_script(path: str) -> str:
    """Why a file could not be run as a script, or should not be; or nothing."""
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        return "not an executable file"
    info = os.stat(path)
    if info.st_uid not in (0, os.geteuid()):
        return f"belongs to somebody else; chown root {path}"
    if info.st_mode & private.WRITING:
        return f"writable by others; chmod go-w {path}"
    for each in {path: None, os.path.realpath(path): None}:
        directory = os.path.dirname(each)
        if wrong := private.openness(directory):
            return f"{directory}: {wrong}"
    try:
        with open(path, "rb") as file:
            start = file.readline(256)
    except PermissionError:
        return ""  # whoever may run it may not look into it
    if start.startswith(b"\x7fELF"):
        return ""
    if not start.startswith(b"#!"):  # execve(2) refuses that
        return "does not begin with #!"
    if start.rstrip(b"\n").endswith(b"\r"):
        return "line 1 ends in a carriage return"
    interpreter = os.fsdecode(b"".join(start[2:].split()[:1]))
    return "" if os.access(interpreter, os.X_OK) else f"no interpreter {interpreter}"


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


def of_plan(options: argparse.Namespace) -> plan.Options:
    """What of the options a plan depends on."""
    return plan.Options(
        interface=options.interface,
        keep=options.keep,
        mtu=options.mtu,
        aliases=options.aliases,
        destinations=options.destinations,
        fib=options.fib,
        solicit=options.routing == "solicit",
        delegations=options.delegations,
        advertise=options.advertise,
        files=options.files,
    )
