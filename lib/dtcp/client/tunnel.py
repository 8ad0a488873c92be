"""Our end of the tunnel: made as the server grants it, changed, and taken down."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
from collections.abc import Callable
from ipaddress import IPv4Address

from dtcp import grant, plan
from dtcp.cli import Failure
from dtcp.client.network import is_here
from dtcp.client.news import News
from dtcp.client.options import of_plan
from dtcp.client.survey import Survey
from dtcp.daemon import Log, Signals
from dtcp.errors import TRY_AGAIN, CommandFailed, NotRun
from dtcp.ledger import LedgerError
from dtcp.system import Interrupted, System


class LocalEnd:
    """The tunnel interface, and what of this host depends on it.

    `granted` is what stands, or None; `hints` what keeps others from using it, a line each.
    """

    def __init__(
        self, options: argparse.Namespace, survey: Survey, system: System, news: News, log: Log
    ) -> None:
        self.granted: grant.Grant | None = None
        self._wanted = of_plan(options)
        self._system = system
        self._survey = survey
        self._news = news
        self._log = log
        self._lost: list[str] = []  # what could not be put back, though the tunnel is up
        self._refused = ""  # why something that came late was not taken in
        self.hints: list[str] = []
        self._mark = plan.mark("dtcpc", options.user, options.server, os.getpid())

    @property
    def interface(self) -> str:
        """The name of the interface; empty while there is none."""
        return self._system.tunnel or ""

    def plan_for(self, granted: grant.Grant, server: IPv4Address | None) -> plan.Plan:
        """What has to be done on this host for a grant of that server.

        Raises Failure, PlanError, CommandFailed.
        """
        self._survey.check(granted, self.granted, server)
        wanted = self._wanted._replace(node=f"dtcpc{os.getpid()}")
        return plan.client(granted, wanted, self._survey.host, self._mark)

    def make(self, granted: grant.Grant, server: IPv4Address | None, signals: Signals) -> str:
        """Make the host as the grant has it: all of it, or what differs from before.

        What has happened: `up`, `change`, or nothing.  Raises Error, OSError, Stopped, Interrupted.
        """
        if self.granted is not None and not self._system.is_whole():
            self.take_down(f"{self.interface} has been removed")
        if self.granted is None and self._system.stands:  # what could not be undone before
            failures = self._system.down()
            if failures:
                raise Failure(f"could not be undone: {failures[0]}")
        event = self._realize(granted, server, signals)
        if event != "up":  # something may have been lost meanwhile
            self.reconcile(signals)
        return event

    def _realize(
        self,
        granted: grant.Grant,
        server: IPv4Address | None,
        signals: Signals,
        *,
        farewell: bool = True,
    ) -> str:
        """Have on this host what the plan for a grant says; what has happened, as above."""
        try:
            wanted = self.plan_for(granted, server)
        except plan.PlanError as error:
            self.take_down(str(error))
            raise
        except CommandFailed as failed:  # a look: nothing has been touched
            signals.check()  # it was given no more time
            if self.granted is not None:
                raise Failure(f"lost: {failed}", TRY_AGAIN) from None
            raise Failure(self._survey.why_not(failed, granted)) from None
        try:
            event = self._carry_out(wanted, granted, lambda: signals.stopping, farewell)
        except (Interrupted, LedgerError):
            self._is_down()
            raise
        except CommandFailed as failed:
            self._is_down()
            for failure in failed.not_undone:
                self._log.error(f"could not be undone: {failure}")
            signals.check()  # it was given no more time
            raise Failure(self._survey.why_not(failed, granted)) from None
        self.granted = granted
        if event:
            self._look_for_hints()
            self._describe(wanted)
        return event

    def _carry_out(
        self, wanted: plan.Plan, granted: grant.Grant, stop: Callable[[], bool], farewell: bool
    ) -> str:
        if self.granted is not None:
            return "change" if self._system.change(wanted, stop, farewell=farewell) else ""
        _refuse_taken_port(granted)
        self._system.up(wanted, stop)
        return "up"

    def described(self, granted: grant.Grant) -> str:
        """The interface and its addresses, for people."""
        inner = f", {granted.inner}" if granted.inner else ""
        inner += f" --> {granted.peer}" if granted.peer else ""
        outer = f"{granted.local} --> {granted.remote}"
        return f"{self.interface}: {outer}{inner}, mtu {self._wanted.mtu}"

    def _describe(self, wanted: plan.Plan) -> None:
        """Say what is up."""
        granted, host, name = self.granted, self._survey.host, self.interface
        assert granted is not None
        routes = plan.routes(wanted)
        if self._wanted.solicit:
            routes = ["default, as advertised,"]
        lines = [self.described(granted), f"routes: {', '.join(routes)} through {name}"]
        lan = [
            f"{interface.name} {address}"
            for interface, address in plan.lan_addresses(granted, self._wanted, host)
        ]
        says = any(step.do[0] == "rtadvd" for step in wanted.steps) or host.advertised
        for number, prefix in enumerate(granted.prefixes):
            to = f": {', '.join(lan)}{', advertised' if says else ''}" if lan and not number else ""
            lines.append(f"{prefix} delegated{to}")
        if self._wanted.delegations and not granted.prefixes:
            lines.append("the server delegates no prefix, so -P has nothing to give")
        lines += self.hints
        for line in lines:
            self._log.notice(line)
        self._news.tell(
            self._news.facts._replace(
                lines=tuple(lines),
                interface=name,
                local=str(granted.local),
                remote=str(granted.remote),
                inner=str(granted.inner) if granted.inner else None,
                peer=str(granted.peer) if granted.peer else None,
                prefixes=tuple(map(str, granted.prefixes)),
                routes=tuple(routes),
                lan=tuple(lan),
            )
        )

    def reconcile(self, signals: Signals) -> None:
        """See that it is still as it was made, and put back what is missing.

        When that cannot be done, it is taken down.  Raises Failure, Stopped or Interrupted.
        """
        try:
            found = self._system.reconcile(lambda: signals.stopping)
        except NotRun as failed:
            signals.check()  # it was given no more time
            self._log.error(f"cannot look, or put back what is missing: {failed}")
            return
        except CommandFailed as failed:
            signals.check()
            if self.granted is not None and not is_here(own := self.granted.local):
                # That is all that is wrong, and a new login brings the new address.
                raise Failure(f"lost: our address was {own} and is gone", TRY_AGAIN) from None
            self.take_down("part of it cannot be put back")
            raise Failure(f"lost: {failed}", TRY_AGAIN) from None
        if found.put_back:
            self._log.notice(f"put back what was missing: {'; '.join(found.put_back)}")
        if found.lost != self._lost:  # said once
            self._lost = found.lost
            for text in found.lost:
                self._log.error(f"cannot be put back: {text}")
        signals.check()
        self._follow(signals)

    def _follow(self, signals: Signals) -> None:
        """Take in what has come or gone on this host since: a LAN interface, another's rtadvd."""
        granted, before, hints = self.granted, self._survey.host, self.hints
        assert granted is not None
        try:
            is_other = self._survey.refresh()
            self.plan_for(granted, None)
        except CommandFailed:
            return  # we are blind, not sure
        except (plan.PlanError, Failure) as error:  # what comes late must not cost the tunnel
            self._survey.host = before
            if str(error) != self._refused:  # said once
                self._refused = str(error)
                self._log.error(self._refused)
            return
        for name in self._survey.host.advertised:
            if name not in before.advertised:
                self._log.notice(f"{name}: another rtadvd serves it now; ours leaves it to that")
        # The router goes on, so nobody is told that it leaves.
        if is_other and self._realize(granted, None, signals, farewell=False):
            self._news.run_script("change")
        elif self._look_for_hints() != hints:
            self._describe(self.plan_for(granted, None))

    def _look_for_hints(self) -> list[str]:
        assert self.granted is not None
        with contextlib.suppress(CommandFailed):
            self.hints = self._survey.hints(self.granted)
        return self.hints

    def mend(self) -> None:
        """Mend what of it can break by itself.  Raises CommandFailed."""
        try:
            is_mended = self._system.mend()
        except NotRun as failed:
            self._log.error(f"cannot look, or put back what is missing: {failed}")
            return
        if is_mended:
            self._log.notice("the tunnel's UDP socket had lost its peer: connected again")

    def take_down(self, reason: str) -> None:
        """Take down what is configured, though we go on trying."""
        if self._system.stands:
            self._log.notice(f"taking the tunnel down: {reason}")
            self.end()

    def end(self) -> bool:
        """Take everything down, whatever fails.  Whether all of it could be undone."""
        failures = self._system.down()
        for failure in failures:
            self._log.error(f"could not be undone: {failure}")
        self._is_down()
        return not failures

    def _is_down(self) -> None:
        self.granted = None
        self._news.is_down()


def _refuse_taken_port(granted: grant.Grant) -> None:
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
