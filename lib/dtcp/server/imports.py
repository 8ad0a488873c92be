"""Users out of files: JSON and CSV, the text files of old, pop.auth or a dump of it.

Whatever a file holds, either all of it makes sense, or it is refused with the place and the reason.
The store is not looked at.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from dtcp import wire
from dtcp.cli import Failure, Invalid
from dtcp.server import pools, words
from dtcp.server.pools import Span
from dtcp.server.store import TYPES, User, called, spans

LARGEST = 1 << 28  # bytes of a file


class Found(NamedTuple):
    """A user in a file: where, what he may have, and what else is told there, if it is."""

    where: str
    user: User
    secret: str | None
    leases: tuple[tuple[str, Span], ...] | None = None  # the kind of each, and its addresses


def read(kind: str, path: str) -> list[Found]:
    """All that a file of this kind (of KINDS) holds; `-` is standard input.  Raises Failure."""
    found = []
    seen: set[str] = set()
    for each in KINDS[kind](path):
        if each.user.name in seen:
            raise Failure(f"{each.where}: {each.user.name} is there already")
        seen.add(each.user.name)
        found.append(each)
    _check_overlap(found)
    return found


def _check_overlap(found: list[Found]) -> None:
    # Of addresses themselves, comparing takes ten times as long.
    taken = sorted(
        (span.first.packed, span.last.packed, number, kind, span)
        for number, each in enumerate(found)
        for kind, span in (*spans(each.user), *(each.leases or ()))
    )
    for (_, last, first, _, _), (begin, _, second, kind, span) in pairwise(taken):
        if begin <= last:
            name = found[first].user.name
            what = called(kind, span)
            raise Failure(f"{found[second].where}: {what} overlaps what {name} has")


# --- text -------------------------------------------------------------------------------------


def _text(path: str) -> str:
    try:
        if path == "-":
            octets = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with open(path, "rb") as file:
                octets = file.read(LARGEST + 1)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None
    if len(octets) > LARGEST:
        raise Failure(f"{path}: larger than {LARGEST >> 20} MiB")
    return octets.decode("utf-8", "surrogateescape")


def _lines(path: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}: line {number}", line


def _users(path: str) -> Iterator[Found]:
    """Lines `user:password`."""
    for where, line in _lines(path):
        name, colon, secret = line.partition(":")
        if not (colon and secret and re.fullmatch(wire.USER, name)):
            raise Failure(f"{where} is not user:password")
        yield Found(where, User(name), _secret(where, secret))


def _secret(where: str, text: str) -> str:
    try:
        return words.secret(text)
    except Invalid as error:
        raise Failure(f"{where}: {error}") from None


def _routes(path: str) -> Iterator[Found]:
    """Lines `user prefix[,prefix]`, blanks allowed around the commas."""
    for where, line in _lines(path):
        name, *rest = line.split()
        try:
            prefixes = tuple(map(words.prefix, filter(None, ",".join(rest).split(","))))
        except Invalid:
            prefixes = ()
        if not prefixes:
            raise Failure(f"{where} is not: user prefix[,prefix]")
        if not re.fullmatch(wire.USER, name):
            raise Failure(f"{where}: {name!a} is not a user name")
        yield Found(where, User(name, prefixes=prefixes), None)


# --- JSON and CSV -----------------------------------------------------------------------------

# What can be told of a user; all but the first can be left out.
KEYS = (
    *("user", "password", "types", "address", "prefixes", "expires", "disabled"),
    *("leased_address", "leased_prefixes"),
)


def _json(path: str) -> Iterator[Found]:
    """A list of objects."""
    text = _text(path)
    for number, (line, value) in enumerate(_values(path, text), 1):
        where = f"{path}: line {line}: user {number}"
        if not isinstance(value, dict):
            raise Failure(f"{where}: it is not an object")
        yield _found(where, value)


def _values(path: str, text: str) -> Iterator[tuple[int, Any]]:
    """What is in a list in JSON, and on which line each begins."""
    import json

    try:
        told = json.loads(text)
    except ValueError as error:
        raise Failure(f"{path}: not JSON: {error}") from None
    except RecursionError:
        raise Failure(f"{path}: not JSON: it is nested too deeply") from None
    if not isinstance(told, list):
        raise Failure(f"{path}: it is not a list")
    decoder, line, at = json.JSONDecoder(), 1, text.index("[") + 1
    line += text.count("\n", 0, at)
    for value in told:
        while text[at] in " \t\r\n,":
            line += text[at] == "\n"
            at += 1
        yield line, value
        _, end = decoder.raw_decode(text, at)
        line += text.count("\n", at, end)
        at = end


def _csv(path: str) -> Iterator[Found]:
    """A line that names the columns, and one for each user; words as on the command line."""
    import csv
    import io

    rows = csv.reader(io.StringIO(_text(path).removeprefix("\ufeff"), newline=""), strict=True)
    try:
        keys = [key.strip() for key in next(rows, [])]
        where = f"{path}: line 1"
        for key in keys:
            if key not in KEYS:
                raise Failure(f"{where}: no such column: {key!a}")
            if keys.count(key) > 1:
                raise Failure(f"{where}: there are two columns {key!r}")
        if "user" not in keys:
            raise Failure(f"{where}: there is no column 'user'")
        for row in filter(None, rows):
            where = f"{path}: line {rows.line_num}"
            if len(row) != len(keys):
                raise Failure(f"{where}: {len(row)} values for {len(keys)} columns")
            yield _found(where, _facts(where, dict(zip(keys, row, strict=True))))
    except csv.Error as error:
        raise Failure(f"{path}: line {rows.line_num}: {error}") from None


# What stands for what is not told, as on the command line.
_DEFAULTS = {"types": "all", "address": "pool", "prefixes": "pool", "expires": "never"}


def _facts(where: str, row: dict[str, str]) -> dict[str, Any]:
    """A row of CSV in the words of JSON."""
    facts: dict[str, Any] = {}
    for key, cell in row.items():
        word = cell if key == "password" else cell.strip()
        if key == "leased_address":
            facts[key] = word or None
        elif key == "leased_prefixes":
            facts[key] = word.replace(",", " ").split()
        elif not word or word == _DEFAULTS.get(key):
            continue
        elif key in ("types", "prefixes"):
            facts[key] = word.replace(",", " ").split()
        elif key == "disabled":
            if word.lower() not in ("yes", "true", "no", "false"):
                raise Failure(f"{where}: {word!a} is not yes or no")
            facts[key] = word.lower() in ("yes", "true")
        else:
            facts[key] = word
    return facts


def _found(where: str, facts: dict[str, Any]) -> Found:
    try:
        for key in facts:
            if key not in KEYS:
                raise Invalid(f"no such key: {key!a}")
        user, secret = _user(facts), None
        if "password" in facts:
            secret = words.secret(_fact(facts, "password", str))
        return Found(where, user, secret, _leases(user, facts))
    except Invalid as error:
        raise Failure(f"{where}: {error}") from None


def _user(facts: dict[str, Any]) -> User:
    if "user" not in facts:
        raise Invalid("'user' is missing")
    types = {words.kind(word) for word in _list(facts, "types", TYPES)}
    if not types:
        raise Invalid("'types' is empty")
    address, expires = _fact(facts, "address", str, None), _fact(facts, "expires", str, None)
    return User(
        words.user(_fact(facts, "user", str)),
        tuple(kind for kind in TYPES if kind in types),
        None if address is None else words.address(address),
        tuple(map(words.prefix, _list(facts, "prefixes"))),
        None if expires is None else words.day(expires),
        bool(_fact(facts, "disabled", bool)),
    )


def _leases(user: User, facts: dict[str, Any]) -> tuple[tuple[str, Span], ...] | None:
    if not {"leased_address", "leased_prefixes"} & {*facts}:
        return None
    address = _fact(facts, "leased_address", str, None)
    prefixes = _list(facts, "leased_prefixes")
    if address and user.address:
        raise Invalid("'leased_address' goes without 'address'")
    if prefixes and user.prefixes:
        raise Invalid("'leased_prefixes' goes without 'prefixes'")
    pairs = [] if address is None else [("pair", pools.pair(words.address(address)))]
    return (*pairs, *(("prefix", pools.whole(words.prefix(each))) for each in prefixes))


def _fact(facts: dict[str, Any], key: str, *kinds: type | None) -> Any:
    """The value of a key, of one of these types; with None it may be null.  Raises Invalid.

    None as well when it is not told.
    """
    value = facts.get(key)
    right = any(value is None if kind is None else type(value) is kind for kind in kinds)
    if key in facts and not right:
        raise Invalid(f"{key!r} is of another type")
    return value


def _list(facts: dict[str, Any], key: str, default: Sequence[str] = ()) -> Sequence[str]:
    """A list of strings."""
    values = _fact(facts, key, list)
    if values is None:
        return default
    if not all(isinstance(value, str) for value in values):
        raise Invalid(f"{key!r} is of another type")
    assert isinstance(values, list)
    return values


# --- pop.auth ---------------------------------------------------------------------------------


def _pop(path: str) -> Iterator[Found]:
    """The database of qpopper and of KAME's dtcps: a dbm(3) file, or a dump of one."""
    dump = _dump(path)
    data = _dbm(path) if dump is None else dump
    if not data:
        raise Failure(f"{path}: no users in it")
    for number, (key, value) in enumerate(data, 1):
        where = f"{path}: entry {number}"
        name = key.rstrip(b"\0").decode("ascii", "replace")
        # Each byte is the complement of the password's; one or two NULs end it.
        secret = bytes(byte ^ 0xFF for byte in value.rstrip(b"\0"))
        if not re.fullmatch(wire.USER, name):
            raise Failure(f"{where}: {name!a} is not a user name")
        if not secret:
            raise Failure(f"{where}: no password of {name} can be read")
        yield Found(where, User(name), _secret(where, secret.decode("utf-8", "surrogateescape")))


def _dbm(path: str) -> list[tuple[bytes, bytes]]:
    """What is in a dbm(3) file of a kind that this Python can read."""
    import dbm

    # ndbm(3) of FreeBSD appends .db to the name by itself.
    for name in (path, path.removesuffix(".db")):
        # Each of Python's modules for them has errors of its own, and more for files of nonsense.
        with contextlib.suppress(Exception), dbm.open(name, "r") as database:
            return [(_octets(key), database[key]) for key in database.keys()]  # noqa: SIM118
    if not os.path.exists(path):
        raise Failure(f"{path}: no such file")
    raise Failure(f"{path}: not a database that this Python can read; see dtcpauth(8) on dumps")


def _octets(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def _dump(path: str) -> list[tuple[bytes, bytes]] | None:
    """What is in a dump as db_dump185(1) or db_dump(1) writes it, with or without -p.

    None if it is none.  Raises Failure.
    """
    try:
        with open(path, "rb") as file:
            octets = file.read(8)
            if octets not in (b"VERSION=", b"format=p", b"format=b"):
                return None
            octets += file.read(LARGEST)
    except OSError:
        return None  # the name may lack a suffix
    head, end, body = octets.partition(b"\nHEADER=END\n")
    about = head.split(b"\n")
    lines = body.removesuffix(b"\n").split(b"\n") if body else []
    try:
        if not end or not {b"type=hash", b"type=btree"} & {*about}:
            raise ValueError
        if about[0].startswith(b"VERSION="):  # db_dump(1), which indents, and marks the end
            lines = [_unindented(line) for line in lines if line != b"DATA=END"]
        decode = _printable if b"format=print" in about else _hexadecimal
        data = list(map(decode, lines))
        return list(zip(data[::2], data[1::2], strict=True))
    except ValueError:
        raise Failure(f"{path}: a dump that cannot be read") from None


def _unindented(line: bytes) -> bytes:
    if not line.startswith(b" "):
        raise ValueError
    return line[1:]


def _hexadecimal(line: bytes) -> bytes:
    if not re.fullmatch(rb"[0-9a-fA-F]*", line):
        raise ValueError
    return bytes.fromhex(line.decode())


def _printable(line: bytes) -> bytes:
    def octet(found: re.Match[bytes]) -> bytes:
        return b"\\" if found[1] == b"\\" else bytes.fromhex(found[1].decode())

    if not re.fullmatch(rb"([^\\]|\\\\|\\[0-9a-fA-F]{2})*", line):
        raise ValueError
    return re.sub(rb"\\(\\|[0-9a-fA-F]{2})", octet, line)


KINDS: dict[str, Callable[[str], Iterator[Found]]] = {
    "csv": _csv,
    "json": _json,
    "pop": _pop,
    "routes": _routes,
    "users": _users,
}
DESCRIBING = ("csv", "json")  # all of a user, by KEYS
