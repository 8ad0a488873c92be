"""What is told of users: in a table, in JSON, or in CSV."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any

from dtcp.server import imports, store
from dtcp.server.store import Lease, Use, User
from dtcp.text import size, table

Told = dict[str, Any]


def told(user: User, leases: Iterable[Lease], use: Use) -> Told:
    """What is told of a user; never the password."""
    leased: dict[str, list[str]] = {"pair": [], "prefix": []}
    for each in leases:
        leased[each.kind].append(store.called(each.kind, each.span))
    return {
        "user": user.name,
        "types": list(user.types),
        "address": str(user.address) if user.address else None,
        "prefixes": list(map(str, user.prefixes)),
        "leased_address": next(iter(leased["pair"]), None),
        "leased_prefixes": leased["prefix"],
        "expires": user.expires.isoformat() if user.expires else None,
        "disabled": user.disabled,
        "state": "disabled" if user.disabled else "expired" if user.is_over(date.today()) else "ok",
        "last_login": use.login,
        "received": use.received,
        "sent": use.sent,
    }


def as_table(users: Iterable[Told]) -> str:
    """A line of titles, and one for each user."""
    lines = [("USER", "TYPES", "ADDRESS", "PREFIXES", "EXPIRES", "STATE", "LOGIN", "IN", "OUT")]
    lines += [
        (
            each["user"],
            "all" if tuple(each["types"]) == store.TYPES else ",".join(each["types"]),
            each["address"] or _of_pool(each["leased_address"]),
            ",".join(each["prefixes"] or map(_of_pool, each["leased_prefixes"])) or "-",
            each["expires"] or "never",
            each["state"],
            _moment(each["last_login"]),
            size(each["received"]),
            size(each["sent"]),
        )
        for each in users
    ]
    return "\n".join(table(lines))


def _of_pool(text: str | None) -> str:
    return f"{text} (pool)" if text else "-"


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    try:
        return datetime.fromtimestamp(seconds).isoformat(timespec="minutes")  # a word, for awk(1)
    except (ValueError, OverflowError, OSError):
        return "?"


def as_json(users: Sequence[Told]) -> str:
    """A list of objects."""
    import json

    return json.dumps(users, indent=1)


def as_csv(users: Sequence[Told]) -> str:
    """A line with the names of the columns, and one for each user.

    Standard output takes it afterwards, whatever a password is made of.
    """
    import csv
    import io

    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # as files are read
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(users[0] if users else imports.KEYS)
    rows.writerows(map(_cell, each.values()) for each in users)
    return text.getvalue().removesuffix("\n")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(value) if isinstance(value, list) else str(value or "")
