#!/usr/bin/env python3
"""dtcpc: the client of DTCP, the Dynamic Tunnel Configuration Protocol.

Read from the top, this is the life of a tunnel: the options; the password; the way to the server
and the login; the tunnel, as granted; the keeping; the taking down.  What the words on the wire
mean is in dtcp.wire, what a server may grant in dtcp.grant, what is done to the host in dtcp.plan,
how in dtcp.system; and what else only a client has is in dtcp.client.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address

_lib = os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib")
if os.path.isdir(_lib):  # in a checkout
    sys.path.insert(0, _lib)

from dtcp import cli, daemon, plan, run, status, wire  # noqa: E402
from dtcp.cli import Failure  # noqa: E402
from dtcp.client import credentials  # noqa: E402
from dtcp.client import options as command_line  # noqa: E402
from dtcp.client.backoff import BackOff  # noqa: E402
from dtcp.client.conversation import Login  # noqa: E402
from dtcp.client.network import Monitor, is_here, is_news, own_address, resolve  # noqa: E402
from dtcp.client.news import News  # noqa: E402
from dtcp.client.probe import Probe  # noqa: E402
from dtcp.client.speaker import Speaker  # noqa: E402
from dtcp.client.survey import Survey, Unusable  # noqa: E402
from dtcp.client.transport import Transport  # noqa: E402
from dtcp.client.tunnel import LocalEnd  # noqa: E402
from dtcp.daemon import Stopped  # noqa: E402
from dtcp.errors import (  # noqa: E402
    FAILED,
    NOT_ALLOWED,
    OK,
    TRY_AGAIN,
    CommandFailed,
    Error,
    NotRun,
)
from dtcp.grant import BehindNat  # noqa: E402
from dtcp.ledger import Ledger  # noqa: E402
from dtcp.status import Facts  # noqa: E402
from dtcp.system import Interrupted, System  # noqa: E402

# Seconds.
LOOK_TIME = 60.0  # between two looks at the network, when nobody tells us of changes
LOOK_SELDOM = 600.0  # when the monitor does, in case it missed one
LOOK_PAUSE = 1.0  # between two, at least
LOOK_AGAIN = 3.0  # after one that an event has caused: it comes before what it tells of is done
RECONCILE_PAUSE = 2.0  # between two that run commands, at least
LOOK_FIRST = 2.0  # in which the monitor has begun

# Of -l, in seconds.
CALM_TIME = 5.0  # between two attempts for which nothing has to be waited for
GIVE_UP_TIME = 600.0  # without a server, until what is configured is taken down
GONE_TIME = 10.0  # without our address, likewise: a new one may be on its way


class Changed(Failure):
    """The host has changed under the tunnel: with -l nothing has to be waited for."""


class NothingBack(Failure):
    """No packet has come back through the tunnel; another transport may do better."""


def main(argv: list[str] | None = None) -> int:
    """Run dtcpc; its exit status."""
    daemon.settle()
    options = command_line.parse(argv)
    log = daemon.Log("dtcpc", verbose=options.debug)
    daemon.stop_at_once()  # until there are daemon.Signals
    try:
        if options.status:
            from dtcp.client.inquiry import show_status

            return show_status(options)
        if options.check:
            credentials.check(options)
            return OK
        is_root = os.geteuid() == 0
        if not (is_root or options.dry_run):
            raise Failure("must be root to make a tunnel", NOT_ALLOWED)
        # Now, while there is nothing yet that it must not know.
        account = options.account if is_root else None
        speaker = Speaker(
            account, log.debug, _remarks(log), trust=options.trust, detaches=options.daemon
        )
        try:
            life = dry_run if options.dry_run else test if options.test else keep_tunnel
            return life(options, log, speaker)
        finally:
            speaker.end()
    except Stopped:
        return OK
    except Error as error:
        log.error(str(error))
        return error.status
    except OSError as error:  # too few descriptors, or processes, for a start
        log.error(error.strerror or str(error))
        return FAILED
    finally:
        daemon.ignore_signals()


def _remarks(log: daemon.Log) -> Callable[[str], None]:
    """Where remarks about a grant go."""
    return lambda text: (log.info if text.startswith("ignored") else log.notice)(text)


# --- the life of a tunnel ---------------------------------------------------------------------


def keep_tunnel(options: argparse.Namespace, log: daemon.Log, speaker: Speaker) -> int:
    """Bring the tunnel up, keep it, take it down; the exit status.  Raises Error, Stopped."""
    pid_file = daemon.PidFile(options.pid_file)
    ledger = Ledger(options.files + ".state", readers=options.status_group)
    try:
        pid_file.write()
        host = System(log.command, run.run, ledger)
        recover(ledger, host, log)
        survey = Survey(options, host)
        if options.daemon or survey.names_something():
            try:
                survey.begin()
            except NotRun as failed:  # with -l
                log.error(str(failed))
        secret = credentials.find(options)
        if options.test:
            from dtcp.client.trial import Trial

            return Trial(options, log, speaker, host, survey, ledger).run(secret)
        if options.daemon:
            ready = daemon.detach()
            log.to_syslog()
            pid_file.write()
            ready()
        return Keeper(options, log, speaker, host, survey, ledger).run(secret)
    finally:
        ledger.close()
        pid_file.remove()


def recover(ledger: Ledger, host: System, log: daemon.Log) -> None:
    """Undo what an instance that was killed has left.  Raises Failure, LedgerError, Stopped."""
    left = ledger.left()
    if left is None:
        return
    log.notice(f"undoing what a killed dtcpc has left ({left.tunnel or left.mark})")
    # A signal has it finished in a hurry, instead of half done.
    told: list[int] = []

    def finish(number: int, frame: object) -> None:
        told.append(number)
        host.hurry()

    before = {n: signal.signal(n, finish) for n in (*daemon.ENDING, signal.SIGHUP)}
    failures = host.undo_left(left)
    for number, handler in before.items():
        signal.signal(number, handler)
    if failures:
        raise Failure(
            f"what a killed dtcpc has left cannot be undone: {failures[0]}; mend that, and"
            f" remove {ledger.path}"
        )
    if told:
        raise Stopped


def test(options: argparse.Namespace, log: daemon.Log, speaker: Speaker) -> int:
    """--test: try the running instance's tunnel, or one that lasts no longer than the test.

    Raises Error.
    """
    try:
        pid = daemon.running(options.pid_file)
        if pid is None:
            return keep_tunnel(options, log, speaker)
        from dtcp.client.trial import Beside

        return Beside(pid, Ledger(options.files + ".state").facts(), log).run()
    except Stopped:
        return FAILED  # not passed


def dry_run(options: argparse.Namespace, log: daemon.Log, speaker: Speaker) -> int:
    """--dry-run: log in, print what would be done, and log out.  Raises Error, Stopped."""
    pid = daemon.locked_by(options.pid_file)
    if pid is not None:
        raise Failure(
            f"dtcpc is running as pid {pid or '?'}, and the server would end its tunnel for"
            " ours; stop it first"
        )
    host = System(log.command, run.run)
    survey = Survey(options, host)
    survey.make()
    secret = credentials.find(options)
    wanted = Keeper(options, log, speaker, host, survey, None).plan_only(secret)
    cli.show("\n".join(plan.script(wanted)))
    return OK


def _is_gone(address: IPv4Address) -> bool:
    """Whether this host is known not to have that address any more."""
    try:
        return not is_here(address)
    except OSError:
        return False  # we are blind, not sure


class Keeper:
    """Keeps one tunnel, from the login to its end; with -l through many logins."""

    def __init__(
        self,
        options: argparse.Namespace,
        log: daemon.Log,
        speaker: Speaker,
        host: System,
        survey: Survey,
        ledger: Ledger | None,
    ) -> None:
        self._options, self._log, self._speaker = options, log, speaker
        self._host, self._survey = host, survey
        self._signals = daemon.Signals()
        facts = Facts(
            "connecting", os.getpid(), options.server, options.user, options.type, options.mtu
        )
        self._news = News(facts, options.script, host, ledger, log)
        self._end = LocalEnd(options, survey, host, self._news, log)
        self._monitor: Monitor | None = None
        self._transport = Transport(options)
        self._back_off = BackOff()
        self._begun = time.monotonic()  # this attempt
        self._lost_at: float | None = None
        self._gone_at = math.inf  # when our address was first missed, if it is gone
        self._address_before: IPv4Address | None = None  # ours, when the attempt began
        self._server: IPv4Address | None = None  # the address that answered last
        self._avoided: IPv4Address | None = None  # the same, where it granted nothing
        self._hurried_at = -math.inf  # when we last tried again without waiting
        self._is_silent = False  # the last tunnel was lost because nothing came back through it
        self._passed_to: IPv4Address | None = None  # that end answered, since the tunnel was made
        self._reconciled_at = -math.inf  # when we last saw that the tunnel is as it was made
        self._was_told = False  # to log in again, by SIGHUP

    def run(self, secret: str) -> int:
        """Log in and keep the tunnel; take it down in the end.  The exit status."""
        self._signals.on_stop = self._host.hurry
        try:
            while True:
                try:
                    if self._was_told:
                        self._was_told = False
                        secret = credentials.again(self._options, secret, self._log)
                    self._one_login(secret)
                    delay = self._delay_when_told()
                except Error as error:
                    delay = self._delay_after(error)
                except OSError as error:
                    delay = self._delay_after(Failure(str(error)))
                self._wait_for_attempt(delay)
        except (Stopped, Interrupted):
            self._log.notice("ending as asked")
            return self._finish()
        except Error as error:
            self._log.error(str(error))
            self._finish()
            return error.status
        except BaseException as error:  # whatever it is, it must not leave a tunnel behind
            self._log.error(f"internal error, shutting down: {error!r}")
            self._finish()
            raise

    def plan_only(self, secret: str) -> plan.Plan:
        """Log in and out; what would be done for the grant.  Raises Error, Stopped."""
        self._connect(secret)
        wanted = self._end.plan_for(self._speaker.granted(), self._server)
        self._speaker.quit()
        self._speaker.wait_for_end()
        return wanted

    # --- one login ----------------------------------------------------------------------------

    def _one_login(self, secret: str) -> None:
        """Log in, make the tunnel as granted, keep it until we are told to log in again.

        Raises Error, OSError, Stopped, Interrupted.
        """
        self._begun = time.monotonic()
        self._address_before = own_address(self._server)
        self._connect(secret)
        self._address_before = self._speaker.own
        self._avoided = self._server
        event = self._end.make(self._speaker.granted(), self._server, self._signals)
        self._avoided = None
        self._lost_at = None
        self._back_off.up()
        self._log.notice(f"up after {time.monotonic() - self._begun:.1f} s")
        before = self._news.facts
        facts = before._replace(
            state="up",
            data="unproven",
            rtt_ms=None,
            transport=self._transport.name,
            # Those that failed do not count.
            reconnects=before.reconnects + (before.since is not None),
        )
        self._news.tell(facts._replace(since=time.monotonic()) if event else facts)
        if event:
            self._news.run_script(event)
        self._watch()
        with contextlib.ExitStack() as stack:
            if event == "up":
                self._passed_to = None
            probe = self._probe()
            if probe is not None:
                stack.callback(probe.close)
            self._keep(probe)

    def _probe(self) -> Probe | None:
        granted = self._end.granted
        assert granted is not None
        # In a FIB of its own, only the link is sure to be found from here.
        peer = granted.peer if self._options.fib is None else None
        try:
            return Probe(
                self._end.interface,
                granted.inner,
                peer,
                time.monotonic(),
                key=granted.key or b"",
                keep_alive=self._options.udp,
                # A login that came too early may have got a tunnel that does not work.
                expected=granted.remote == self._passed_to,
                limit=self._transport.limit,
            )
        except OSError as error:
            self._log.error(f"whether packets pass cannot be seen: {error.strerror}")
            return None

    def _connect(self, secret: str) -> None:
        """Connect to the first address of the server that answers.  Raises Failure, Stopped."""
        options, failures = self._options, []
        addresses = resolve(options.server, self._signals)
        # One that takes connections and grants nothing must not stand before the others for ever.
        for address in sorted(addresses, key=lambda each: each == self._avoided):
            name = f"{options.server} ({address}) port {options.port}"
            self._log.notice(f"logging in to {name} as {options.user}")
            login = Login.of(options, address, passing=self._passed_to is not None)
            failure = self._speaker.connect(
                login, secret, name, self._signals, meanwhile=self._look_around
            )
            if failure is None:
                self._server = address
                return
            failures.append(f"{name}: {failure}")
        raise Failure("; ".join(failures), TRY_AGAIN)

    def _look_around(self) -> None:
        """What can be seen to while the connection is under way.  Raises Unusable, Stopped."""
        try:
            self._survey.begin()
        except Error:
            self._signals.check()  # the looks were given no more time
            raise
        self._survey.look_at_routes()

    # --- keeping ------------------------------------------------------------------------------

    def _keep(self, probe: Probe | None) -> None:
        """Keep the tunnel until we are told to log in again.  Raises Failure, Stopped."""
        next_look = time.monotonic() + LOOK_FIRST
        looked_at, told = -math.inf, False
        while True:
            pings = self._speaker.pings
            self._speaker.look()
            if probe is not None:
                self._tend(probe, was_pinged=self._speaker.pings != pings)
            until = min(probe.due if probe else math.inf, next_look, self._speaker.deadline)
            readers = [each.fileno() for each in (self._speaker, probe) if each is not None]
            changed = self._wait(until - time.monotonic(), [fd for fd in readers if fd >= 0])
            now = time.monotonic()
            if self._signals.reload:
                self._signals.reload = False
                self._was_told = True
                self._transport.anew()
                return
            if changed:  # again and again, on a busy network
                told = True
                next_look = min(next_look, max(now, looked_at + LOOK_PAUSE))
            if next_look <= now:
                looked_at = now
                usual = LOOK_TIME if self._monitor is None else LOOK_SELDOM
                next_look = now + (LOOK_AGAIN if told else usual)
                told = False
                self._look(now)

    def _look(self, moment: float) -> None:
        """See that the tunnel, and what it stands on, is still there.  Raises Failure."""
        if not self._host.is_whole():
            self._end.take_down(f"{self._end.interface} has been removed")
            raise Changed("lost: somebody has removed the tunnel", TRY_AGAIN)
        before, now = self._speaker.own, own_address(self._server)
        # For a moment without a route, but with the address: not our business.
        if now != before and (now is not None or not is_here(before)):
            self._address_before = now
            self._transport.anew()
            raise Changed(f"lost: our address was {before} and is {now or 'gone'}", TRY_AGAIN)
        if moment >= self._reconciled_at + RECONCILE_PAUSE:
            self._reconciled_at = moment
            self._end.reconcile(self._signals)

    def _tend(self, probe: Probe, *, was_pinged: bool) -> None:
        """See whether packets pass, and say so.  Raises Failure."""
        now = time.monotonic()
        if self._options.udp and (was_pinged or probe.due <= now):
            try:
                self._end.mend()
            except CommandFailed as failed:
                raise Failure(f"lost: {failed}", TRY_AGAIN) from None
            now = time.monotonic()  # or that would count as the packet's time
        news = probe.on_ping(now) if was_pinged else probe.on_time(now)
        if not news:
            return
        rtt_ms = None if probe.rtt is None else probe.rtt * 1000
        self._news.tell(self._news.facts._replace(data=probe.data, rtt_ms=rtt_ms))
        if news == "passing":
            self._is_silent = False
            self._transport.passes()
            self._passed_to = self._end.granted.remote if self._end.granted else None
            self._log.notice(f"packets pass{'' if rtt_ms is None else f' ({rtt_ms:.0f} ms)'}")
        elif news == "unproven":
            granted = self._end.granted
            way = f"UDP port {granted.ports[1]}" if granted and granted.ports else "protocol 41"
            nothing = f"nothing has come back through the tunnel: is {way} open on the way?"
            if self._transport.has_other:
                raise NothingBack(nothing)
            self._log.error(nothing)
        else:
            if self._is_silent:  # to log in again has changed nothing
                self._is_silent = False
                self._end.take_down("nothing comes back through it")
                raise NothingBack("lost: nothing comes back through the tunnel", TRY_AGAIN)
            self._is_silent = True
            raise Failure("lost: nothing comes back through the tunnel", TRY_AGAIN)

    def _wait(self, seconds: float, readers: list[int]) -> bool:
        """Wait for whatever happens, `seconds` at most.  Whether the network changed.

        Raises Stopped.
        """
        watched = [self._monitor.fileno()] if self._monitor else []
        if self._signals.stopping or self._signals.reload or self._signals.report:
            seconds = 0.0  # it came while we waited for something else
        ready = self._signals.wait([*readers, *watched], seconds)
        self._signals.check()
        if self._signals.report:
            self._signals.report = False
            self._log.notice(status.as_text(self._news.facts)[0])
        if not set(watched) & set(ready):
            return False
        assert self._monitor is not None
        said = self._monitor.read()
        if not said:
            self._log.info("route monitor has ended")
            self._stop_monitor()
        return is_news(said)

    def _watch(self) -> None:
        """Have the network watched, so that changes of our address are noticed at once."""
        if self._monitor is None:
            try:
                self._monitor = Monitor(self._log.command)
            except (Error, OSError) as error:  # then we look once a minute
                self._log.error(f"the network cannot be watched: {error}")

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.end()
        self._monitor = None

    # --- between two logins -------------------------------------------------------------------

    def _delay_when_told(self) -> float:
        """Seconds to the next attempt, which we were told to make: none.

        Nothing is said to the server: it may hand the tunnel over as it is.
        """
        self._lost_at = self._hurried_at = time.monotonic()
        return self._announce("told to log in again", 0.0, self._log.notice)

    def _delay_after(self, error: Error) -> float:
        """What comes of an error: the seconds to the next attempt.  Raises it, without -l."""
        self._speaker.leave()
        if self._calls_for_other(error):
            self._end.take_down(str(error))
            self._transport.change()
            other = "UDP" if self._options.udp else "protocol 41"
            return self._announce(f"{error}; {other} may do better", 0.0, self._log.error)
        if isinstance(error, Unusable) or not self._options.loop:
            raise error
        now = time.monotonic()
        refused = error.status == NOT_ALLOWED
        if self._lost_at is None:
            self._lost_at = now
        granted = self._end.granted
        if granted is not None:
            self._gone_at = min(self._gone_at, now) if _is_gone(granted.local) else math.inf
            if refused:
                self._end.take_down("the server refuses us")
            elif now - self._gone_at >= GONE_TIME:
                self._end.take_down(f"our address {granted.local} is gone")
            elif now - self._lost_at >= GIVE_UP_TIME:
                self._end.take_down(f"no server for {GIVE_UP_TIME / 60:.0f} minutes")
        if isinstance(error, Changed) and now - self._hurried_at >= CALM_TIME:
            self._hurried_at = now
            delay = 0.0
        else:
            delay = self._back_off.next(now, most=refused)
        sooner = ", or on SIGHUP (service dtcpc reload)" if refused else ""
        return self._announce(str(error), delay, self._log.error, sooner)

    def _calls_for_other(self, error: Error) -> bool:
        """Whether another transport may be the remedy."""
        if self._transport.on_trial and error.status != TRY_AGAIN:
            return True  # there is no such transport here, or there
        return self._transport.has_other and (
            isinstance(error, (NothingBack, BehindNat)) or wire.OTHERS.format("") in str(error)
        )

    def _announce(
        self, reason: str, delay: float, log: Callable[[str], None], sooner: str = ""
    ) -> float:
        """Say when we try again, or what makes it `sooner`, and why; that delay."""
        log(f"{reason}; trying again {f'in {delay:.0f} s' if delay >= 1 else 'at once'}{sooner}")
        facts = self._news.facts
        self._news.tell(
            facts._replace(
                state="waiting",
                last_reason=reason,
                next_attempt=time.monotonic() + delay,
                data="silent" if self._is_silent else None,
            )
        )
        return delay

    def _wait_for_attempt(self, seconds: float) -> None:
        """Wait for the next attempt; a change of the network or SIGHUP is a reason to go now."""
        self._watch()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            # The network may have come back while the last attempt was still waiting.
            now = own_address(self._server)
            if now != self._address_before:
                self._address_before = now  # the same one that comes back is a change as well
                if now is not None:
                    self._gone_at = math.inf
                    self._back_off.anew()
                    self._transport.anew()
                    return
            self._wait(left, [])
            if self._signals.reload:
                self._was_told = True
                break
        self._signals.reload = False

    # --- the end ------------------------------------------------------------------------------

    def _finish(self) -> int:
        """Say goodbye, and take everything down.  The exit status."""
        self._speaker.quit()
        self._stop_monitor()
        had_tunnel = self._host.stands
        is_clean = self._end.end()
        self._speaker.wait_for_end()
        if had_tunnel:
            self._log.notice("down")
        return OK if is_clean else FAILED


if __name__ == "__main__":
    sys.exit(main())
