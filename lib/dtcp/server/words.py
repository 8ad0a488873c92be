"""What a user may have, in words: of a command line, or of a file.  Each raises Invalid."""

from __future__ import annotations

import re
from datetime import date
from ipaddress import IPv6Address, IPv6Network

from dtcp import wire
from dtcp.cli import Invalid, ipv6, matching
from dtcp.server import pools, store

user = matching(wire.USER, "user name (at most 64 letters, digits and ._@+-)")


def kind(text: str) -> str:
    """A type of tunnel by its first name."""
    word = "network" if text == "tunnelroute" else text  # the one is another name of the other
    if word not in store.TYPES:
        raise Invalid(f"{text!a} is not a type of tunnel: {', '.join(store.TYPES)}, or all")
    return word


def prefix(text: str) -> IPv6Network:
    """A prefix that can be delegated."""
    try:
        return pools.delegable(text)
    except pools.PoolError as error:
        raise Invalid(str(error)) from None


def address(text: str) -> IPv6Address:
    """The address of a client in a tunnel."""
    found = ipv6(text)
    if found.is_unspecified or found.is_loopback or found.is_multicast or found.is_link_local:
        raise Invalid(f"{text!a} cannot be an address of a tunnel")
    return found


def day(text: str) -> date:
    """A date such as 2031-12-31, in no other spelling."""
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise Invalid(f"{text!a} is not a date such as 2031-12-31")


def secret(text: str) -> str:
    """A password; what is no UTF-8 in it is escaped with surrogates."""
    if not text:
        raise Invalid("no password given")
    if any(letter in text for letter in "\r\n\0"):
        raise Invalid("a password cannot have a line's end or a NUL in it")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Invalid("a password cannot have half a character in it") from None
    return text
