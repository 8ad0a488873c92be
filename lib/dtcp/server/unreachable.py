"""Routes that make unreachable what nobody uses of our prefixes.

Else such packets would go back and forth between us and our router.  The store knows which routes
are ours; where somebody else has one for the same prefix, it stays as it is.
"""

from __future__ import annotations

import contextlib
from ipaddress import IPv6Network

from dtcp import plan
from dtcp.errors import CommandFailed
from dtcp.server.settings import Settings
from dtcp.server.store import Store
from dtcp.system import System


def prefixes(settings: Settings) -> list[IPv6Network]:
    """The prefixes that are to have such routes."""
    given = [pool.prefix for pool in (*settings.prefix, *settings.delegate)]
    return list(dict.fromkeys([*given, *settings.unreachable]))


def change(wanted: list[IPv6Network], host: System, store: Store, fib: int | None) -> None:
    """Have these, in place of those that there were.  Raises CommandFailed, StoreError."""
    known = store.unreachable()
    if not (known or wanted):
        return
    there = {each for each in {*known, *wanted} if host.look.has_route(each, fib)}
    before = there.intersection(known)
    ours = [each for each in wanted if each in before or each not in there]
    store.set_unreachable([*ours, *(before - set(ours))])
    standing = plan.unreachable(before, fib)
    host.resume(standing, "")
    try:
        host.change(plan.unreachable(ours, fib))
    except CommandFailed:
        # Now all are gone, which is worse than what there was.
        with contextlib.suppress(CommandFailed):
            gone = (step for step in standing.steps if not set(step.undo) & set(host.left))
            host.up(plan.Plan(None, tuple(gone)))
        raise
    store.set_unreachable(ours)


def remove(host: System, store: Store, fib: int | None) -> list[CommandFailed]:
    """Have none any more; what could not be undone.  Raises StoreError."""
    host.resume(plan.unreachable(store.unreachable(), fib), "")
    failures = host.down()
    if not failures:
        store.set_unreachable(())
    return failures
