"""What workers do for one tunnel: make it, look after it, take it down.

All that is known when one of these is called comes in its arguments, and what came of it goes back;
what it means for the user's record is decided elsewhere (dtcp.server.tunnels).
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from dtcp import plan
from dtcp.daemon import Log
from dtcp.errors import CommandFailed, Error, NotRun
from dtcp.grant import Grant
from dtcp.look import Interface, number_of
from dtcp.server.database import Busy, StoreError
from dtcp.server.interfaces import Place, as_it_was
from dtcp.server.store import Made, Shared
from dtcp.server.usage import Usage
from dtcp.system import System


class NotMade(Error):
    """A tunnel could not be made; when that could not be undone either, `made` is what is left."""

    def __init__(self, why: str, made: Made, failures: list[CommandFailed]) -> None:
        super().__init__(why)
        self.made, self.failures = made, failures


class Removed(NamedTuple):
    """What has come of taking a tunnel down."""

    failures: list[CommandFailed]  # what could not be undone
    traffic: tuple[int, int] | None  # the bytes that it has received and sent, if that is known


class Builder:
    """Makes tunnels of this MTU, in this FIB; with `keep`, interfaces stay when tunnels go."""

    def __init__(self, log: Log, shared: Shared, mtu: int, fib: int | None, *, keep: bool) -> None:
        self.mtu = mtu
        self.usage = Usage()
        self._log, self._shared, self._fib, self._keep = log, shared, fib, keep
        # What could not be written down when it happened (Busy); None: a tunnel has gone.
        self._late: dict[str, Made | None] = {}

    def _plan(
        self, made: Made, existing: Interface | None, *, name: str = "", keep: bool = False
    ) -> plan.Plan:
        """The plan of a tunnel, on an interface that is there, or on a new one of that name."""
        options = plan.Options(
            interface=name or None, mtu=self.mtu, fib=self._fib, keep=keep, node=made.node
        )
        return plan.server(made.grant.turned(), options, made.mark, existing)

    def make(
        self, user: str, kind: str, grant: Grant, place: Place, host: System
    ) -> tuple[Made, list[str]] | None:
        """Make a tunnel, and write it down; None: that place is not to be had any more.

        And the users whose tunnels' interfaces must have gone, for this one has the name of theirs.
        Raises NotMade.
        """
        over_udp = grant.ports is not None
        made = Made(
            user,
            kind,
            grant,
            interface=place.name if place.is_there else "",
            mark=plan.mark("dtcps", user, str(grant.local), os.getpid()),
            node=f"dtcps{os.getpid()}u{grant.ports[1]}" if grant.ports else "",
            borrowed=place.is_there,
            since=time.monotonic(),
        )
        try:
            # Followed by other words, `create` takes what is there already, whosever it is; and one
            # that stays (-c, -o) may be in use, or have gone, or be somebody else's.
            existing = host.look.interface(place.name) if place.name else None
            if place.is_there != (existing is not None):
                return None
            if existing is not None and (existing.up or existing.outer or existing.description):
                return None
            host.up(self._plan(made, existing, name=place.name, keep=self._keep))
        except CommandFailed as failed:
            why = f"{user}: the tunnel could not be made: {failed}"
            made = made._replace(interface=host.tunnel or "")
            raise NotMade(why, made, failed.not_undone) from None
        except Exception as error:  # a fault of ours, which must not leave anything either
            why = f"{user}: the tunnel could not be made: {error!r}"
            made = made._replace(interface=host.tunnel or "")
            raise NotMade(why, made, host.down()) from error
        assert host.tunnel is not None
        made = made._replace(
            interface=host.tunnel,
            number=host.number,
            borrowed=place.is_there or (self._keep and not over_udp),
            since=time.monotonic(),
        )
        if place.is_there:  # which other tunnels have had
            made = made._replace(counted=self.count(made, host) or (0, 0))
        try:
            return made, self._record(user, made)
        except Exception as error:
            why = str(error) if isinstance(error, StoreError) else f"{user}: {error!r}"
            raise NotMade(why, made, host.down()) from error

    def remove(self, made: Made, host: System) -> Removed:
        """Take a tunnel down, whichever process has made it."""
        try:
            made = self._known(made, host) or made._replace(interface="", mark="")
        except NotRun as blind:  # by its name alone it is not known
            return Removed([blind], None)
        self._resume(made, host)
        traffic = self.count(made, host)
        failures = host.down()
        if not failures:
            if traffic is not None:
                self.usage.ended(made.user, *traffic)
            try:
                self._record(made.user, None)
            except StoreError as error:
                self._log.error(str(error))
        return Removed(failures, traffic)

    def count(self, made: Made, host: System) -> tuple[int, int] | None:
        """The bytes that a tunnel has received and sent, or None: nobody knows."""
        if not made.interface or number_of(made.interface) != made.number:
            return None  # it is another one of that name by now
        try:
            received, sent = host.look.traffic(made.interface)
        except CommandFailed:
            return None
        return received - made.counted[0], sent - made.counted[1]

    def _record(self, user: str, made: Made | None) -> list[str]:
        """Write down a user's tunnel, or that it has gone; see Store.remember.  Raises StoreError.

        No login fails because somebody else takes long to write, or has filled the disk: then it is
        done later.
        """
        with self._shared() as store:
            try:
                losers = [] if made is None else store.remember(made)
                if made is None:
                    store.forget(user)
            except Busy as error:
                self._log.error(f"{user}: recorded later: {error}")
                self._late[user] = made
                return []
            self._late.pop(user, None)
            return losers

    @property
    def is_late(self) -> bool:
        """Whether there is something for `catch_up`."""
        return bool(self._late or self.usage)

    def catch_up(self) -> None:
        """Write down what was not when it happened, as far as that goes now."""
        for user in list(self._late):
            with self._shared() as store:  # in which nobody else changes what is late
                try:
                    if (made := self._late.get(user)) is not None:
                        store.remember(made)
                    elif user in self._late:
                        store.forget(user)
                except Busy:
                    return
                except StoreError as error:  # it is another's now, and ends for that reason
                    self._log.error(str(error))
                self._late.pop(user, None)
        try:
            self.usage.write(self._shared)
        except Busy:
            pass
        except StoreError as error:
            self._log.error(str(error))

    def look(self, made: Made, host: System) -> tuple[Made, list[str]]:
        """See that a tunnel is as it was made, and put back what is missing; what that was.

        And the tunnel, as it is known from now on.  Raises CommandFailed: it cannot be put back;
        NotRun: nobody knows.
        """
        known = self._known(made, host)
        if known is not None:
            self._resume(known, host)
        if known is None or (known is made and not host.is_whole()):
            raise CommandFailed(("ifconfig", made.interface), "not there any more")
        return known, host.reconcile().put_back

    def _known(self, made: Made, host: System) -> Made | None:
        """A tunnel with the number of its interface, also if a server before us has left it.

        None: the interface is not there.  Raises NotRun: nobody knows.
        """
        if made.number or not made.interface:
            return made
        try:
            there = host.look.interface(made.interface)
        except CommandFailed as failed:
            raise NotRun(failed.words, failed.reason) from None
        if there is None or there.description != made.mark:
            return None
        return made._replace(number=number_of(made.interface))

    def _resume(self, made: Made, host: System) -> None:
        existing = as_it_was(made.interface, keep=self._keep) if made.borrowed else None
        host.resume(self._plan(made, existing), made.interface, made.number)
