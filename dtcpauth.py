#!/usr/bin/env python3
"""dtcpauth: the users of a tunnel server, and what each of them may have.

Each command is one transaction on the store (dtcp.server.store): it happens whole or not at all,
and a running dtcps takes notice of it by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from datetime import date
from ipaddress import IPv6Address, IPv6Network
from typing import Any, NoReturn

_lib = os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib")
if os.path.isdir(_lib):  # in a checkout
    sys.path.insert(0, _lib)

from dtcp import __version__, cli, daemon, password  # noqa: E402
from dtcp.cli import Failure, Invalid, Parser  # noqa: E402
from dtcp.errors import FAILED, OK, USAGE, Error  # noqa: E402
from dtcp.server import imports, listing, store, words  # noqa: E402
from dtcp.server.database import StoreError  # noqa: E402
from dtcp.server.pools import Span  # noqa: E402
from dtcp.server.store import Store, Use, User  # noqa: E402

SHORT = 12  # letters of a password that is not weak
FEW = 5  # different ones among them
KICK_TIME = 15.0  # seconds to wait for the server to end a tunnel; it looks every 5

# What the old dtcpauth(8) was told with letters.
_OLD = {
    **dict.fromkeys(("-d", "--delete"), "delete"),
    **dict.fromkeys(("-l", "--list"), "list"),
    **dict.fromkeys(("-u", "--user"), "password"),
    **dict.fromkeys(("-i", "--init"), "init"),
}


# --- the options ------------------------------------------------------------------------------


def _types(text: str) -> tuple[str, ...]:
    if text == "all":
        return store.TYPES
    kinds = [words.kind(word) for word in text.split(",")]
    return tuple(kind for kind in store.TYPES if kind in kinds)


def _prefixes(text: str) -> tuple[IPv6Network, ...]:
    return () if text == "pool" else tuple(map(words.prefix, text.split(",")))


def _address(text: str) -> IPv6Address | None:
    return None if text == "pool" else words.address(text)


def _day(text: str) -> date | None:
    return None if text == "never" else words.day(text)


class _Parser(Parser):
    """Says what is wrong, and where to read on, in one line, as our other errors do."""

    def error(self, message: str) -> NoReturn:
        where = ": ".join(self.prog.split())
        what = message.removeprefix("argument ").replace("with argument", "with")
        _warn(f"{where}: {what}; see {self.prog} --help".removeprefix("dtcpauth: "))
        raise SystemExit(USAGE)


# fmt: off
def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = _Parser(
        prog="dtcpauth",
        usage="dtcpauth [--store file] command ...",
        description="Keep the users of dtcps.",
        allow_abbrev=False,
        epilog="dtcpauth COMMAND --help tells more of a command.",
    )
    p.add_argument("--store", metavar="file", default=store.PATH, help=f"({store.PATH})")
    p.add_argument("--version", action="version", version=f"dtcpauth {__version__}")
    q: argparse.ArgumentParser = p
    commands = p.add_subparsers(dest="command", metavar="command", prog="dtcpauth", required=True)

    def command(name: str, usage: str, what: str) -> Callable[..., Any]:
        nonlocal q
        q = commands.add_parser(
            name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False,
            usage=f"dtcpauth {name} {usage}",
        )
        return q.add_argument

    def facts(a: Callable[..., Any]) -> None:
        a("-t", dest="types", metavar="type[,type]", type=_types,
          default=argparse.SUPPRESS,
          help="types of tunnel that the user may have; all")
        a("-P", dest="prefixes", metavar="prefix[,prefix]", type=_prefixes,
          default=argparse.SUPPRESS,
          help="prefixes that are routed to the user; pool: one out of the server's pool")
        a("-A", dest="address", metavar="address", type=_address,
          default=argparse.SUPPRESS,
          help="the client's address in tunnels of type host; pool: out of the server's pool")
        a("-e", dest="expires", metavar="date", type=_day,
          default=argparse.SUPPRESS,
          help="the last day, as in 2031-12-31; never")

    def disable(a: Callable[..., Any]) -> None:
        a("--disable", dest="disabled", action="store_true",
          default=argparse.SUPPRESS, help="no tunnels for this user for now")

    def random(a: Callable[..., Any]) -> None:
        a("--random", action="store_true", help="make a password, and print it")

    a = command("add", "[-A address] [-e date] [-P prefix[,prefix]] [-t type[,type]] [--disable]"
                " [--random] user", "add a user; asks for the password")
    facts(a)
    disable(a)
    random(a)
    a("user", type=words.user)
    a = command("change", "[-p | --random] [-A address] [-e date] [-P prefix[,prefix]]"
                " [-t type[,type]] [--disable | --enable] user",
                "change what is said, and nothing else")
    facts(a)
    either = q.add_mutually_exclusive_group().add_argument
    disable(either)
    either("--enable", dest="disabled", action="store_false",
           default=argparse.SUPPRESS, help="undo --disable")
    either = q.add_mutually_exclusive_group().add_argument
    either("-p", dest="password", action="store_true", help="ask for a new password")
    random(either)
    a("user", type=words.user)
    a = command("delete", "user ...", "delete users")
    a("users", metavar="user", nargs="+", type=words.user)
    a = command("kick", "user", "end a user's tunnel; the client may log in again")
    a("user", type=words.user)
    a = command("list", "[--json] [user ...]", "list users and what they have")
    a("--json", action="store_true", help="for machines")
    a("users", metavar="user", nargs="*", type=words.user)
    a = command("check", "[user ...]", "name weak passwords and what else is odd")
    a("users", metavar="user", nargs="*", type=words.user)
    a = command("import", "[--random] [--replace] csv | json | pop | routes | users file",
                "take users or prefixes from a file")
    a("--random", action="store_true",
      help="make a password for each new user without, and print it")
    a("--replace", action="store_true", help="what the file says goes before what is there")
    a("format", choices=tuple(imports.KINDS))
    a("file", help="- is standard input, except for pop")
    a = command("export", "[--leases] [csv | json]",
                "write all users, passwords included, for import; as json")
    a("--leases", action="store_true", help="and what they have out of the server's pools")
    a("format", nargs="?", choices=imports.DESCRIBING, default="json")
    a = command("backup", "file", "copy the store to a new file, for restore")
    a("file")
    a = command("restore", "file", "put what backup has written in the store's place")
    a("file")
    return p
# fmt: on


_BEFORE = ("--store", "--version", "--help", "-h")  # a command


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line, checked as a whole.  Raises Failure, or ends with USAGE."""
    if argv and argv[0][:1] == "-" and argv[0].partition("=")[0] not in _BEFORE:
        # argparse would take the next word for a command.
        raise Failure(f"unrecognized arguments: {argv[0]}; see dtcpauth --help", USAGE)
    options, more = parser().parse_known_args(argv)
    wrong, describing = "", imports.DESCRIBING
    if more:
        wrong = f"unrecognized arguments: {' '.join(more)}"
    elif options.command == "change" and not (
        _told_by(options) or options.password or options.random
    ):
        wrong = "nothing to change"
    elif options.command == "import" and options.random and options.format not in describing:
        wrong = f"--random goes with {' and '.join(describing)}"
    if wrong:
        raise Failure(f"{options.command}: {wrong}; see dtcpauth {options.command} --help", USAGE)
    return options


def in_new_words(argv: list[str]) -> list[str]:
    """The command line of the old dtcpauth(8) in the words of this one.  Raises Failure."""
    verb = _OLD.get(argv[0]) if argv else None
    if verb is None:
        return argv
    if verb == "init":
        raise Failure("-i: nothing has to be prepared: dtcpauth add makes the store", USAGE)
    if verb == "password" and len(argv) < 2:
        raise Failure("-u: the user is missing", USAGE)
    if verb == "password" and len(argv) > 2:
        raise Failure(
            "-u: a password on the command line is for everybody to see; leave it out", USAGE
        )
    return [verb, *(word for word in argv[1:] if (verb, word) != ("list", "ALL"))]


# --- passwords --------------------------------------------------------------------------------


def weakness(user: str, secret: str) -> str:
    """Why a password is weak, or nothing.  Who listens to a login can try passwords at leisure."""
    plain = secret.lower()
    if len(secret) < SHORT:
        return f"it has fewer than {SHORT} letters"
    if user.lower() in plain or user.lower() in plain[::-1]:
        return "the user name is in it"
    if secret.isdigit():
        return "it is a number"
    if len(set(secret)) < FEW:
        return f"it has fewer than {FEW} different letters"
    return ""


def ask(user: str) -> str:
    """A password: from the terminal, twice, or the first line of standard input.

    Raises PasswordError.
    """
    if sys.stdin.isatty():
        instead = "write it to standard input"
        secret = password.from_terminal(f"Password of {user}: ", instead)
        if password.from_terminal("Again: ", instead) != secret:
            raise password.PasswordError("the two are not the same")
    else:
        line = sys.stdin.buffer.readline(4096)
        secret = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    try:
        return words.secret(secret)
    except Invalid as error:
        raise password.PasswordError(str(error)) from None


def _new_password(options: argparse.Namespace) -> str:
    return _random() if options.random else ask(options.user)


def _random() -> str:
    import secrets

    return secrets.token_urlsafe(15)  # 120 bits, 20 letters


def _warn(text: str) -> None:
    cli.complain(f"dtcpauth: {text}")


def _warn_of_weak(user: str, secret: str) -> None:
    why = weakness(user, secret)
    if why:
        _warn(f"{user}: weak password, taken all the same: {why}")


# --- the commands -----------------------------------------------------------------------------


def add(db: Store, options: argparse.Namespace) -> int:
    if db.user(options.user) is not None:
        raise Failure(f"{options.user}: is there already; dtcpauth change changes it")
    secret = _new_password(options)
    with db.transaction():
        if db.user(options.user) is not None:  # somebody else was quicker
            raise Failure(f"{options.user}: is there already; dtcpauth change changes it")
        db.put(_as_told(User(options.user), options), secret)
        _tell(options, secret)
    _warn_of_past(options)
    return OK


def change(db: Store, options: argparse.Namespace) -> int:
    if db.user(options.user) is None:
        raise Failure(f"{options.user}: no such user")
    secret = _new_password(options) if options.password or options.random else None
    with db.transaction():
        user = db.user(options.user)
        if user is None:
            raise Failure(f"{options.user}: no such user")
        db.put(_as_told(user, options), secret)
        if secret is not None:
            _tell(options, secret)
    _warn_of_past(options)
    return OK


def _as_told(user: User, options: argparse.Namespace) -> User:
    return user._replace(**_told_by(options))


def _told_by(options: argparse.Namespace) -> dict[str, Any]:
    """What the options say of a user, and nothing else."""
    return {key: value for key, value in vars(options).items() if key in User._fields}


def _warn_of_past(options: argparse.Namespace) -> None:
    day = _told_by(options).get("expires")
    if day is not None and day < date.today():
        _warn(f"{options.user}: {day} is past, so this user cannot log in")


def _tell(options: argparse.Namespace, secret: str) -> None:
    if options.random:
        cli.show(secret, needed=True)  # or nobody would ever know it
    else:
        _warn_of_weak(options.user, secret)


def delete(db: Store, options: argparse.Namespace) -> int:
    with db.transaction():
        for name in dict.fromkeys(options.users):
            db.delete(name)
    return OK


def kick(db: Store, options: argparse.Namespace) -> int:
    """Have the running server end a tunnel, and wait until it has."""
    from dtcp.server import inquiries

    name = options.user
    if not db.kick(name):
        raise Failure(f"{name}: {'no such user' if db.user(name) is None else 'has no tunnel'}")
    end = time.monotonic() + KICK_TIME
    try:
        if not inquiries.somebody_listens(inquiries.SOCKET):
            raise Failure(f"{name}: no dtcps is running that could end the tunnel")
        while db.is_kicked(name):
            if time.monotonic() > end:
                why = f"no dtcps has ended the tunnel within {KICK_TIME:.0f} s"
                raise Failure(f"{name}: {why}; see dtcps --status")
            time.sleep(0.2)
    except BaseException:
        db.kick(name, False)  # it is not to happen at any later time
        raise
    return OK


def list_users(db: Store, options: argparse.Namespace) -> int:
    users = _chosen(db, options.users)
    leases: dict[str, list[store.Lease]] = {user.name: [] for user in users}
    for each in db.leases():
        if each.user in leases:
            leases[each.user].append(each)
    use = db.use()
    told = [listing.told(user, leases[user.name], use.get(user.name, Use())) for user in users]
    cli.show(listing.as_json(told) if options.json else listing.as_table(told))
    return OK


def check(db: Store, options: argparse.Namespace) -> int:
    """Name what is odd on standard output; FAILED when anything is."""
    odd = []
    for user in _chosen(db, options.users):
        remarks = []
        if why := weakness(user.name, db.password(user.name) or ""):
            remarks.append(f"weak password: {why}")
        if user.is_over(date.today()):
            remarks.append(f"expired on {user.expires}")
        if user.prefixes and "network" not in user.types:
            remarks.append("has prefixes, but may not have tunnels of type network")
        if user.address and "host" not in user.types:
            remarks.append("has an address, but may not have tunnels of type host")
        odd += [f"{user.name}: {remark}" for remark in remarks]
    if odd:
        cli.show("\n".join(odd))
    return FAILED if odd else OK


def _chosen(db: Store, names: list[str]) -> list[User]:
    if not names:
        return db.users()
    users = []
    for name in dict.fromkeys(names):
        user = db.user(name)
        if user is None:
            raise Failure(f"{name}: no such user")
        users.append(user)
    return users


# --- import and export ------------------------------------------------------------------------


def import_file(db: Store, options: argparse.Namespace) -> int:
    """All that was found in a file, or nothing of it."""
    found: list[imports.Found] = options.found
    secrets: list[tuple[str, str]] = []
    made: list[tuple[str, str]] = []
    deleted = 0
    with db.transaction():
        there = {user.name: user for user in db.users()}
        leases: dict[str, set[tuple[str, Span]]] = {name: set() for name in there}
        for each in db.leases():
            leases[each.user].add((each.kind, each.span))
        if options.format in imports.DESCRIBING and options.replace:
            deleted = _make_room(db, found, there, leases)
        for where, user, secret, lease in found:
            known = there.get(user.name)
            if options.format == "routes":
                if known is None:
                    raise Failure(f"{where}: {user.name}: no such user; import the users first")
                if known.prefixes and not options.replace:
                    raise Failure(f"{where}: {user.name} has prefixes already; see --replace")
                user = known._replace(prefixes=user.prefixes)
            elif known is not None:
                # An error of the file, even if both say the same.
                if not options.replace:
                    raise Failure(f"{where}: {user.name} is there already; see --replace")
                if options.format not in imports.DESCRIBING:
                    user = known  # such a file knows passwords only
            elif secret is None and not options.random:
                raise Failure(f"{where}: no password for {user.name}; --random makes one")
            elif secret is None:
                secret = _random()
                made.append((user.name, secret))
            has_leases = lease is None or leases.get(user.name) == {*lease}
            if user == known and secret in (None, db.password(user.name)) and has_leases:
                continue  # no change, so no server has to look at him
            try:
                db.put(user, secret)
                if lease is not None:
                    db.set_leases(user.name, lease)
            except StoreError as error:
                raise Failure(f"{where}: {error}") from None
            if secret is not None:
                secrets.append((user.name, secret))
        if made:  # or nobody would ever know them
            cli.show("\n".join(f"{name}:{secret}" for name, secret in made), needed=True)
    for name, secret in secrets:
        _warn_of_weak(name, secret)
    if not options.random:
        cli.show(f"{len(found)} users" + (f", {deleted} deleted" if deleted else ""))
    return OK


def _make_room(
    db: Store,
    found: list[imports.Found],
    there: dict[str, User],
    leases: dict[str, set[tuple[str, Span]]],
) -> int:
    """Before the store becomes a copy of another: who is not in it goes; how many that were.

    Nobody's old addresses are to be in another's way.
    """
    wanted = {each.user.name: each for each in found}
    for name, user in there.items():
        if name not in wanted:
            db.delete(name)
            continue
        _, wants, _, lease = wanted[name]
        if user != wants:
            db.put(user._replace(prefixes=(), address=None))
        if lease is not None and leases[name] != {*lease}:
            db.set_leases(name, ())
    return len(there.keys() - wanted.keys())


def export(db: Store, options: argparse.Namespace) -> int:
    if sys.stdout.isatty():
        _warn("these are the passwords")
    leases: dict[str, list[store.Lease]] = {}
    for each in db.leases():
        leases.setdefault(each.user, []).append(each)
    users = [
        {
            "user": user.name,
            "password": db.password(user.name),
            **{key: value for key, value in told.items() if key in imports.KEYS},
        }
        for user in db.users()
        for told in [listing.told(user, leases.get(user.name, []), Use())]
    ]
    if not options.leases:
        for told in users:
            del told["leased_address"], told["leased_prefixes"]
    cli.show(listing.as_csv(users) if options.format == "csv" else listing.as_json(users))
    return OK


def backup(db: Store, options: argparse.Namespace) -> int:
    from dtcp.server import copies

    copies.backup(db, options.file)
    return OK


def restore(options: argparse.Namespace) -> int:
    """Needs no store: it may be missing, or broken."""
    from dtcp.server import copies

    cli.show(f"{copies.restore(options.store, options.file)} users")
    return OK


def set_password(db: Store, name: str) -> int:
    """What -u did: a new password, for a new user if there is none of that name."""
    secret = ask(name)
    with db.transaction():
        db.put(db.user(name) or User(name), secret)
    _warn_of_weak(name, secret)
    return OK


_COMMANDS: dict[str, Callable[[Store, argparse.Namespace], int]] = {
    "add": add,
    "change": change,
    "delete": delete,
    "kick": kick,
    "list": list_users,
    "check": check,
    "import": import_file,
    "export": export,
    "backup": backup,
}


def main(argv: list[str] | None = None) -> int:
    """Run dtcpauth; its exit status."""
    daemon.settle()
    try:
        line = in_new_words(sys.argv[1:] if argv is None else argv)
        if line[:1] == ["password"] and len(line) == 2:
            name = words.user(line[1])
            with contextlib.closing(Store(store.PATH, create=True)) as db:
                return set_password(db, name)
        options = parse(line)
        if options.command == "restore":
            return restore(options)
        makes = options.command == "add"
        if options.command == "import":
            # Before there is a store: it may have mistakes, and whoever feeds us may be slow.
            options.found = imports.read(options.format, options.file)
            makes = options.format != "routes"
        with contextlib.closing(Store(options.store, create=makes)) as db:
            return _COMMANDS[options.command](db, options)
    except Error as error:
        _warn(str(error))
        return error.status
    except KeyboardInterrupt:
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
