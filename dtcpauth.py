#!/usr/bin/env python3
"""dtcpauth: the users of a tunnel server, and what each of them may have.

Each command is one transaction on the store (dtcp.store): it happens whole or not at all, and a
running dtcps takes notice of it by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import date
from ipaddress import IPv6Address, IPv6Network
from typing import Any

_lib = os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib")
if os.path.isdir(_lib):  # in a checkout
    sys.path.insert(0, _lib)

from dtcp import __version__, cli, daemon, password, pools, store, wire  # noqa: E402
from dtcp.cli import FAILED, NOT_ALLOWED, OK, USAGE, Failure, Parser  # noqa: E402
from dtcp.store import Store, User  # noqa: E402

SHORT = 12  # letters of a password that is not weak
FEW = 5  # different ones among them
LARGEST = 1 << 28  # bytes of a file that is imported

# What the old dtcpauth(8) was told with letters.
_OLD = {
    **dict.fromkeys(("-d", "--delete"), "delete"),
    **dict.fromkeys(("-l", "--list"), "list"),
    **dict.fromkeys(("-u", "--user"), "password"),
    **dict.fromkeys(("-i", "--init"), "init"),
}


# --- the options ------------------------------------------------------------------------------


def _user(text: str) -> str:
    if not wire.USER.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!a} is no user name: at most 64 letters, digits and ._@+-"
        )
    return text


def _types(text: str) -> tuple[str, ...]:
    if text == "all":
        return store.TYPES
    # The one is another name of the other.
    words = ["network" if word == "tunnelroute" else word for word in text.split(",")]
    for word in words:
        if word not in store.TYPES:
            raise argparse.ArgumentTypeError(
                f"{word!a} is no type of tunnel: {', '.join(store.TYPES)}, or all"
            )
    return tuple(kind for kind in store.TYPES if kind in words)


def _prefixes(text: str) -> tuple[IPv6Network, ...]:
    if text == "pool":
        return ()
    try:
        return tuple(pools.delegable(word) for word in text.split(","))
    except pools.PoolError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _address(text: str) -> IPv6Address | None:
    if text == "pool":
        return None
    try:
        address = IPv6Address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!a} is no IPv6 address") from None
    if address.is_unspecified or address.is_loopback or address.is_multicast:
        raise argparse.ArgumentTypeError(f"{text!a} is no address for a tunnel")
    if address.is_link_local or address.scope_id is not None:
        raise argparse.ArgumentTypeError(f"{text!a} is no address for a tunnel")
    return address


def _day(text: str) -> date | None:
    if text == "never":
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!a} is no date such as 2031-12-31") from None


# fmt: off
def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="dtcpauth",
        usage="dtcpauth [--store file] command ...",
        description="Keep the users of dtcps.",
        allow_abbrev=False,
        epilog="dtcpauth COMMAND --help tells more of a command.",
    )
    p.add_argument("--store", metavar="file", default=store.PATH, help=f"({store.PATH})")
    p.add_argument("--version", action="version", version=f"dtcpauth {__version__}")
    commands = p.add_subparsers(dest="command", metavar="command", prog="dtcpauth", required=True)

    def command(name: str, usage: str, what: str) -> Callable[..., Any]:
        q = commands.add_parser(
            name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False,
            usage=f"dtcpauth {name} {usage}",
        )
        return q.add_argument

    def facts(a: Callable[..., Any]) -> None:
        a("-t", dest="types", metavar="type[,type]", type=_types,
          help="types of tunnel that the user may have; all")
        a("-P", dest="prefixes", metavar="prefix[,prefix]", type=_prefixes,
          help="prefixes that are routed to the user; pool: one out of the server's pool")
        a("-A", dest="address", metavar="address", type=_address, default=False,
          help="the client's address in tunnels of type host; pool: out of the server's pool")
        a("-e", dest="expires", metavar="date", type=_day, default=False,
          help="the last day, as in 2031-12-31; never")
        a("--disable", dest="disabled", action="store_true", default=None,
          help="no tunnels for this user for now")
        a("--random", action="store_true", help="make a password, and print it")

    a = command("add", "[-A address] [-e date] [-P prefix[,prefix]] [-t type[,type]] [--disable]"
                " [--random] user", "add a user; asks for the password")
    facts(a)
    a("user", type=_user)
    a = command("change", "[-p] [-A address] [-e date] [-P prefix[,prefix]] [-t type[,type]]"
                " [--disable | --enable] [--random] user", "change what is said, and nothing else")
    facts(a)
    a("--enable", dest="disabled", action="store_false", default=None, help="undo --disable")
    a("-p", dest="password", action="store_true", help="ask for a new password")
    a("user", type=_user)
    a = command("delete", "user ...", "delete users")
    a("users", metavar="user", nargs="+", type=_user)
    a = command("list", "[--json] [user ...]", "list users and what they have")
    a("--json", action="store_true", help="for machines")
    a("users", metavar="user", nargs="*", type=_user)
    a = command("check", "[user ...]", "name weak passwords and what else is odd")
    a("users", metavar="user", nargs="*", type=_user)
    a = command("import", "[--replace] pop | users | routes | json file",
                "take users or prefixes from a file")
    a("--replace", action="store_true", help="what the file says goes before what is there")
    a("format", choices=("pop", "users", "routes", "json"))
    a("file", help="- is standard input, except for pop")
    command("export", "", "write all users, passwords included, for import json")
    return p
# fmt: on


def in_new_words(argv: list[str]) -> list[str]:
    """The command line of the old dtcpauth(8) in the words of this one.  Raises Failure."""
    verb = _OLD.get(argv[0]) if argv else None
    if verb is None:
        return argv
    if verb == "init":
        raise Failure("-i: nothing has to be prepared: dtcpauth add makes the store", USAGE)
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
        secret = password.from_terminal(f"Password of {user}: ")
        if password.from_terminal("Again: ") != secret:
            raise password.PasswordError("the two are not the same")
    else:
        line = sys.stdin.buffer.readline(4096)
        secret = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    if not secret:
        raise password.PasswordError("no password given")
    if any(letter in secret for letter in "\r\n\0"):
        raise password.PasswordError("a password cannot have a line's end or a NUL in it")
    return secret


def _new_password(options: argparse.Namespace) -> str:
    import secrets

    if options.random:
        return secrets.token_urlsafe(15)  # 120 bits, 20 letters
    return ask(options.user)


def _warn(text: str) -> None:
    cli.complain(f"dtcpauth: {text}")


def _warn_of_weak(user: str, secret: str) -> None:
    why = weakness(user, secret)
    if why:
        _warn(f"{user}: weak password: {why}")


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
    return OK


def _as_told(user: User, options: argparse.Namespace) -> User:
    """The user with what the options say; None and False are what they do not say."""
    if options.types is not None:
        user = user._replace(types=options.types)
    if options.prefixes is not None:
        user = user._replace(prefixes=options.prefixes)
    if options.address is not False:
        user = user._replace(address=options.address)
    if options.expires is not False:
        user = user._replace(expires=options.expires)
    if options.disabled is not None:
        user = user._replace(disabled=options.disabled)
    return user


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


def list_users(db: Store, options: argparse.Namespace) -> int:
    users, leases = _chosen(db, options.users), db.leases()
    told = [_told(user, [each for each in leases if each.user == user.name]) for user in users]
    if options.json:
        import json

        cli.show(json.dumps(told, indent=1))
        return OK
    lines = [("USER", "TYPES", "ADDRESS", "PREFIXES", "EXPIRES", "STATE")]
    lines += [
        (
            each["user"],
            "all" if tuple(each["types"]) == store.TYPES else ",".join(each["types"]),
            each["address"] or _of_pool(each["leased_address"]),
            ",".join(each["prefixes"] or map(_of_pool, each["leased_prefixes"])) or "-",
            each["expires"] or "never",
            each["state"],
        )
        for each in told
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [
        [f"{word:<{width}}" for word, width in zip(line, widths, strict=True)] for line in lines
    ]
    cli.show("\n".join("  ".join(line).rstrip() for line in cells))
    return OK


def _of_pool(text: str | None) -> str:
    return f"{text} (pool)" if text else "-"


def _told(user: User, leases: list[store.Lease]) -> dict[str, Any]:
    """What is told of a user; never the password."""
    leased = {kind: [each.span for each in leases if each.kind == kind] for kind in _KINDS}
    return {
        "user": user.name,
        "types": list(user.types),
        "address": str(user.address) if user.address else None,
        "prefixes": list(map(str, user.prefixes)),
        "leased_address": next((str(span.client) for span in leased["pair"]), None),
        "leased_prefixes": [str(span.network) for span in leased["prefix"]],
        "expires": user.expires.isoformat() if user.expires else None,
        "disabled": user.disabled,
        "state": "disabled" if user.disabled else "expired" if _is_over(user) else "ok",
    }


_KINDS = ("pair", "prefix")


def _is_over(user: User) -> bool:
    return user.expires is not None and date.today() > user.expires


def check(db: Store, options: argparse.Namespace) -> int:
    """Name what is odd on standard output; FAILED when anything is."""
    odd = []
    for user in _chosen(db, options.users):
        remarks = []
        if why := weakness(user.name, db.password(user.name) or ""):
            remarks.append(f"weak password: {why}")
        if _is_over(user):
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
    """All of a file, or nothing of it."""
    read = {"pop": read_pop, "users": read_users, "routes": read_routes, "json": read_json}
    # All of it before the store is touched: whoever feeds us may be slow, or never come to an end.
    found = list(read[options.format](options.file))
    seen: set[str] = set()
    secrets: list[tuple[str, str]] = []
    with db.transaction():
        there = {user.name: user for user in db.users()}
        if options.format == "json" and options.replace:
            # A copy of another store: who is not in it goes.
            wanted = {user.name: user for _, user, _ in found}
            for name, user in there.items():
                if name not in wanted:
                    db.delete(name)
                elif user != wanted[name]:  # nobody's old prefix is to be in another's way
                    db.put(user._replace(prefixes=(), address=None))
        for where, user, secret in found:
            if user.name in seen:
                raise Failure(f"{where}: {user.name} is there already")
            seen.add(user.name)
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
                if options.format != "json":
                    user = known  # such a file knows passwords only
            if user == known and secret in (None, db.password(user.name)):
                continue  # no change, so no server has to look at him
            try:
                db.put(user, secret)
            except store.StoreError as error:
                raise Failure(f"{where}: {error}") from None
            if secret is not None:
                secrets.append((user.name, secret))
    for name, secret in secrets:
        _warn_of_weak(name, secret)
    cli.show(f"{len(seen)} users")
    return OK


Found = tuple[str, User, str | None]  # where, what, and the password


def read_users(path: str) -> Iterator[Found]:
    """Lines `user:password`."""
    for where, line in _lines(path):
        name, colon, secret = line.partition(":")
        if not (colon and secret and wire.USER.fullmatch(name)):
            raise Failure(f"{where} is not user:password")
        yield where, User(name), secret


def read_routes(path: str) -> Iterator[Found]:
    """Lines `user prefix[,prefix]`, blanks allowed around the commas."""
    for where, line in _lines(path):
        name, *rest = line.split()
        try:
            prefixes = tuple(map(pools.delegable, filter(None, ",".join(rest).split(","))))
            if not prefixes:
                raise pools.PoolError
        except pools.PoolError:
            raise Failure(f"{where} is not: user prefix[,prefix]") from None
        if not wire.USER.fullmatch(name):
            raise Failure(f"{where}: {name!a} is no user name")
        yield where, User(name, prefixes=prefixes), None


def read_json(path: str) -> Iterator[Found]:
    """What `export` has written."""
    import json

    try:
        for number, each in enumerate(json.loads(_text(path)), 1):
            where = f"{path}: user {number}"
            yield (
                where,
                User(
                    _user(each["user"]),
                    _types(",".join(each["types"])),
                    _address(each["address"]) if each["address"] else None,
                    tuple(map(pools.delegable, each["prefixes"])),
                    _day(each["expires"]) if each["expires"] else None,
                    bool(each["disabled"]),
                ),
                str(each["password"]),
            )
    except (ValueError, KeyError, TypeError, AttributeError, argparse.ArgumentTypeError) as error:
        raise Failure(f"{path}: not written by dtcpauth export: {error}") from None


def read_pop(path: str) -> Iterator[Found]:
    """The database of qpopper and of KAME's dtcps: a dbm(3) file, or a dump of one."""
    number = 0
    dump = _dump(path)
    for key, value in _dbm(path) if dump is None else dump:
        number += 1
        name = key.rstrip(b"\0").decode("ascii", "replace")
        # Each byte is the complement of the password's; one or two NULs end it.
        secret = bytes(byte ^ 0xFF for byte in value.rstrip(b"\0"))
        where = f"{path}: entry {number}"
        if not wire.USER.fullmatch(name):
            raise Failure(f"{where}: {name!a} is no user name")
        if not secret or b"\n" in secret:
            raise Failure(f"{where}: no password of {name} can be read")
        yield where, User(name), secret.decode("utf-8", "surrogateescape")
    if not number:
        raise Failure(f"{path}: no users in it")


def _dbm(path: str) -> list[tuple[bytes, bytes]]:
    """What is in a dbm(3) file of a kind that this Python can read."""
    import dbm

    # ndbm(3) of FreeBSD appends .db to the name by itself.
    for name in (path, path.removesuffix(".db")):
        with contextlib.suppress(*dbm.error), dbm.open(name, "r") as database:
            return [(_octets(key), database[key]) for key in database.keys()]  # noqa: SIM118
    if not os.path.exists(path):
        raise Failure(f"{path}: no such file")
    raise Failure(f"{path}: not a database that this Python can read; see dtcpauth(8) on dumps")


def _octets(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def _dump(path: str) -> list[tuple[bytes, bytes]] | None:
    """What is in a dump as db_dump185(1) writes it, with or without -p; None if it is none."""
    try:
        with open(path, "rb") as file:
            if file.read(8) != b"VERSION=":
                return None
            head, _, body = file.read(LARGEST).partition(b"HEADER=END\n")
    except OSError:
        return None  # the name may lack a suffix
    decode = _unescaped if b"format=print" in head else lambda line: bytes.fromhex(line.decode())
    try:
        data = [decode(line[1:]) for line in body.split(b"DATA=END")[0].splitlines()]
        return list(zip(data[::2], data[1::2], strict=True))
    except ValueError:
        raise Failure(f"{path}: a dump that cannot be read") from None


def _unescaped(line: bytes) -> bytes:
    def octet(found: re.Match[bytes]) -> bytes:
        return b"\\" if found[1] == b"\\" else bytes.fromhex(found[1].decode())

    return re.sub(rb"\\(\\|[0-9a-fA-F]{2})", octet, line)


def _text(path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.buffer.read(LARGEST).decode("utf-8", "surrogateescape")
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return file.read()
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None


def _lines(path: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}: line {number}", line


def export(db: Store, options: argparse.Namespace) -> int:
    import json

    if sys.stdout.isatty():
        _warn("these are the passwords")
    users = [
        {
            "user": user.name,
            "password": db.password(user.name),
            "types": list(user.types),
            "address": str(user.address) if user.address else None,
            "prefixes": list(map(str, user.prefixes)),
            "expires": user.expires.isoformat() if user.expires else None,
            "disabled": user.disabled,
        }
        for user in db.users()
    ]
    cli.show(json.dumps(users, indent=1))
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
    "list": list_users,
    "check": check,
    "import": import_file,
    "export": export,
}


def main(argv: list[str] | None = None) -> int:
    """Run dtcpauth; its exit status."""
    daemon.settle()
    try:
        words = in_new_words(sys.argv[1:] if argv is None else argv)
        if words[:1] == ["password"] and len(words) == 2:
            with contextlib.closing(Store(store.PATH, create=True)) as db:
                return set_password(db, _user(words[1]))
        options = parser().parse_args(words)
        makes = options.command in ("add", "import")
        with contextlib.closing(Store(options.store, create=makes)) as db:
            return _COMMANDS[options.command](db, options)
    except Failure as failure:
        _warn(str(failure))
        return failure.status
    except store.NotAllowed as error:
        _warn(str(error))
        return NOT_ALLOWED
    except (store.StoreError, password.PasswordError, argparse.ArgumentTypeError) as error:
        _warn(str(error))
        return FAILED
    except KeyboardInterrupt:
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
