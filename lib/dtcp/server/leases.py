"""Who may have what: out of the store, the pools, and the day."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date
from functools import partial
from ipaddress import IPv4Address

from dtcp import wire
from dtcp.grant import Grant
from dtcp.server import pools
from dtcp.server.limits import Quiet
from dtcp.server.pools import Pool, Span
from dtcp.server.settings import Settings, SettingsError
from dtcp.server.store import Made, Shared, Store, User
from dtcp.server.workers import Event, Flow
from dtcp.system import System

_Lease = Callable[[str, Iterable[Pool]], Span | None]  # what a user has out of these pools


class Denied(Exception):
    """A user cannot have what was asked for: the answer for the client, and why, for the log."""

    def __init__(self, answer: str, why: str = "") -> None:
        super().__init__(answer)
        self.answer, self.why = answer, why


class Leases:
    """What the settings and the store give to users.  Everything here raises StoreError."""

    def __init__(
        self, store: Store, shared: Shared, settings: Settings, quiet: Quiet, *, udp: bool
    ) -> None:
        self._store, self._shared, self._quiet, self._udp = store, shared, quiet, udp
        self.settings = settings
        self._leasing: dict[str, Event] = {}  # users for whom a worker is at it

    def user(self, asked: wire.Asked) -> User:
        """The user who asks, if this can be had at all.  Raises Denied."""
        user = self._store.user(asked.user)
        kind = kind_of(asked)
        if user is None:
            why = wire.BAD_LOGIN
        elif barred := user.barred(date.today()):
            why = barred
        elif asked.udp is not None and not self._udp:
            why = wire.NO_UDP
        elif kind not in user.types:
            why = wire.NOT_THIS_TYPE.format(asked.type)
        elif kind == "network" and not user.prefixes and not self.settings.delegate:
            why = wire.NO_ROUTE
        elif kind == "host" and user.address is None and not self.settings.prefix:
            why = wire.BAD_TYPE.format(asked.type)
        else:
            return user
        raise Denied(why, why)

    def grant(
        self, user: User, asked: wire.Asked, local: IPv4Address, remote: IPv4Address
    ) -> Flow[Grant]:
        """What a user gets; over UDP, our port is not known yet.  Raises Denied."""
        ports = None if asked.udp is None else (asked.udp, 0)
        ends = Grant(local, remote, ports=ports)
        kind = kind_of(asked)
        while (grant := self._out_of(self._store.leased, user, kind, ends)) is None:
            # The first time here: something out of a pool is due, and has to be written down.  One
            # login of a user is enough for that; it must not keep all workers from the others.
            if (another := self._leasing.get(user.name)) is not None:
                yield another
                continue
            done = self._leasing[user.name] = Event()
            try:
                grant = yield partial(self._lease, user, kind, ends)
            finally:
                del self._leasing[user.name]
                done.happen()
            break
        if grant is None:
            self._quiet.error("pool", f"{user.name}: the pool is empty")
            raise Denied(wire.SOLD_OUT)
        return grant

    def _lease(self, user: User, kind: str, ends: Grant, host: System) -> Grant | None:
        with self._shared() as store:
            return self._out_of(store.lease, user, kind, ends)

    def _out_of(self, lease: _Lease, user: User, kind: str, ends: Grant) -> Grant | None:
        """The whole grant, or None: out of the pools there is nothing for this user (yet)."""
        if kind == "host":
            fixed = pools.pair(user.address) if user.address else None
            pair = fixed or lease(user.name, self.settings.prefix)
            return pair and ends._replace(inner=pair.client, peer=pair.server)
        if kind == "network" and user.prefixes:
            return ends._replace(prefixes=user.prefixes)
        if kind == "network":
            span = lease(user.name, self.settings.delegate)
            return span and ends._replace(prefixes=(span.network,))
        return ends

    def objection(self, made: Made) -> str:
        """Why a user may not have a tunnel any more, or not like this; or nothing."""
        user = self._store.user(made.user)
        if user is None:
            return "this user was deleted"
        if barred := user.barred(date.today()):
            return barred
        if made.type not in user.types:
            return wire.NOT_THIS_TYPE.format(made.type)
        if self._out_of(self._store.leased, user, made.type, made.grant) != made.grant:
            return "what this user has was changed"
        if self._store.is_kicked(made.user):
            return "ended by the administrator"
        return ""


def kind_of(asked: wire.Asked) -> str:
    """The type of tunnel by its first name."""
    return "network" if asked.type == "tunnelroute" else asked.type


def check(settings: Settings, store: Store) -> None:
    """See that what belongs to users is in nobody's way.  Raises SettingsError."""
    for pool in settings.prefix:
        if (found := store.fixed(pools.whole(pool.prefix))) is not None:
            raise SettingsError(f"{found[0]} has {found[1]}, which overlaps prefix {pool}")
    # Fixed ones may lie in these, but not the other way round: the unreachable routes would be in
    # the place of the users' own, or go before them.
    inside = [("delegate", pool.prefix) for pool in settings.delegate]
    inside += [("unreachable", prefix) for prefix in settings.unreachable]
    for key, prefix in inside:
        start = prefix.network_address
        found = store.fixed(pools.Span(start, start))
        if found is not None and prefix.subnet_of(found[1]):
            raise SettingsError(f"{found[0]} has {found[1]}, and {key} {prefix} lies within it")
