"""Does a plan to the host, and undoes it.

A step is believed only when its effect was seen.  Before a command runs, what undoes it is armed,
and on disk (dtcp.ledger): the next start finds it there, should we be killed.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from dtcp import daemon, plan
from dtcp.errors import CommandFailed, NotRun
from dtcp.ledger import Ledger, LedgerError, Left
from dtcp.look import NAME, Interface, Look, name_of, number_of
from dtcp.plan import LINK_LOCAL, TUNNEL, EndDaemon, Holds, Make, Plan, Shows, Step, Undo, Words
from dtcp.run import Commands, Runner

STARTING = 2.0  # seconds in which a daemon must have its pid file
HEARING = 2.0  # seconds in which it must give that up, once told to end
FAREWELL = 8.0  # seconds that rtadvd(8) lives on after SIGTERM, saying three times that it leaves
AFTER_FAREWELL = 3.0  # of run.HURRY, for what has to be undone when rtadvd has ended

# route(8) refuses a route that is there already: then it is somebody else's.
_TAKEN = r"already in table|File exists"

# An undo that fails with one of these has nothing left to undo.
_GONE = (
    r"does not exist|not in table|has not been found|shutdown: No such file or directory"
    r"|can't create node: Protocol not supported"  # a kernel without netgraph(4) has no nodes
)
_NO_ADDRESS = "Can't assign requested address"  # of -alias; of `tunnel` it is a failure


class Interrupted(Exception):
    """We were told to stop in the middle of a plan; what was done of it has been undone."""


class Reconciled(NamedTuple):
    """What was missing, as the looks say it; and what could not be put back, and why."""

    put_back: list[str]
    lost: list[str]


class _Done(NamedTuple):
    """What stands of a plan."""

    make: Make | None = None
    steps: tuple[Step, ...] = ()
    left: tuple[Undo, ...] = ()  # of an earlier plan: what could not be undone
    mark: str = ""  # of the interface that `left` is about
    whole: bool = False  # the plan has been done to its end

    @property
    def known_by(self) -> str:
        return self.make.mark if self.make else self.mark

    def undos(self) -> list[Undo]:
        """What undoes it, in the order to run it.

        With an interface that we have made, all that is on it goes.
        """
        make = self.make
        if make is None:
            last: tuple[Undo, ...] = ()
        else:
            last = make.leave if self.whole and make.leave is not None else make.undo
        goes_along = make is not None and make.mark and last is make.undo
        found = [undo for step in reversed(self.steps) for undo in step.undo]
        if goes_along:
            found = [undo for undo in found if not _names_tunnel(undo)]
        return [*found, *last, *self.left]


class System:
    """Runs plans on this host.

    `log` gets each command as a person would type it, before `runner` runs it.  One `System` holds
    one tunnel, whose interface is `tunnel`, once it is known.

    Its class is long because doing, undoing, changing and putting back all work on one state: what
    stands of the plan, on the host and in the ledger.
    """

    def __init__(
        self, log: Callable[[str], None], runner: Runner, ledger: Ledger | None = None
    ) -> None:
        self.commands = Commands(log, runner)
        self.look = Look(self.commands.run)
        self.tunnel: str | None = None
        self.on_step: Callable[[Step], None] = lambda step: None  # called before each is done
        self.number = 0  # by which the kernel knows that interface, if we have made it
        self._done = _Done()
        self._searches = True  # for an interface in all of our group, in which thousands may be
        self._ledger = ledger

    @property
    def stands(self) -> bool:
        """Whether something has been done, or is left, that has to be undone."""
        return bool(self._done.make or self._done.steps or self._done.left)

    @property
    def left(self) -> tuple[Undo, ...]:
        """What could not be undone."""
        return self._done.left

    def hurry(self) -> None:
        """We are to stop: what still has to be run, hanging commands included, gets run.HURRY s."""
        self.commands.hurry(2 + len(self._done.undos()))

    # --- forwards -----------------------------------------------------------------------------

    def up(self, new: Plan, stop: Callable[[], bool] = lambda: False) -> None:
        """Do a plan, in its order; when something fails, undo all that was done, in reverse.

        `stop` is asked before each step.  Raises CommandFailed, LedgerError or Interrupted.
        """
        with self._undone_if_it_fails():
            seeing: list[Holds] = []
            if new.make is not None:
                self._make(new.make, stop)
                seeing += [new.make.holds] if new.make.holds else []
            self._do_all(new.steps, stop, seeing)
            self._done = self._done._replace(whole=True)

    def change(
        self, new: Plan, stop: Callable[[], bool] = lambda: False, *, farewell: bool = True
    ) -> bool:
        """Make of the plan that was done another one: only what differs is undone and done.

        Without `farewell` a daemon that has to end does not tell the LAN that the router leaves.
        Whether anything differed.  When something fails, all is undone, as in `up`.
        """
        make, done = self._done.make, self._done.steps
        gone = [step for step in done if step not in new.steps]
        if make == new.make and not gone and len(new.steps) == len(done):
            return False
        with self._undone_if_it_fails():
            ends, shown = (new.make.ends, new.make.holds) if new.make else ((), None)
            if make is not None and make._replace(ends=ends, holds=shown) != new.make:
                raise RuntimeError("another interface is another tunnel")
            for step in reversed(gone):
                _stop_if(stop())
                failures = [failure for undo in step.undo for failure in self._undo(undo, farewell)]
                if failures:
                    raise failures[0]
            kept = tuple(step for step in done if step in new.steps)
            self._done = self._done._replace(make=new.make, steps=kept, whole=False)
            self._record()
            seeing: list[Holds] = []
            if new.make is not None and make != new.make:
                self.commands.run(self._expanded(("ifconfig", TUNNEL, *ends))[0])
                seeing += [new.make.holds] if new.make.holds else []
            new_ones = [step for step in new.steps if step not in kept]
            self._do_all([step for step in new_ones if step.vital], stop, seeing)
            for step in new_ones:
                if not step.vital:  # `reconcile` tries again, and says when it cannot
                    with contextlib.suppress(CommandFailed):
                        self._do_all([step], stop, [])
            # In the order of the plan, which matters when it is undone; without what turned out to
            # be somebody else's.
            steps = tuple(step for step in new.steps if step in self._done.steps)
            self._done = self._done._replace(steps=steps, whole=True)
            self._record()
        return True

    def resume(self, standing: Plan, tunnel: str, number: int = 0) -> None:
        """Take over a plan that was done before; `down` sees whose interface `tunnel` is.

        `number`: the kernel's, if this process has seen that the interface was ours.  Only one that
        has no name here is searched for.
        """
        self._done = _Done(standing.make, standing.steps, whole=True)
        self.tunnel, self.number = tunnel or None, number
        self._searches = not tunnel

    def reconcile(self, stop: Callable[[], bool] = lambda: False) -> Reconciled:
        """See that the plan still holds, and do again what does not, in the plan's order.

        Raises CommandFailed when something vital cannot be put back, NotRun when it is not known
        whether it can, or Interrupted; what stands then has still to be undone.
        """
        found = Reconciled([], [])
        seen: dict[Words, list[str]] = {}  # the looks, until something has been done
        for part in (self._done.make, *self._done.steps):
            if part is None or part.holds is None:
                continue
            _stop_if(stop())
            try:
                self._see([part.holds], seen)
            except NotRun:
                pass  # we are blind, not sure
            except CommandFailed as missing:
                _stop_if(stop())
                try:
                    self._do_again(part)
                    found.put_back.append(str(missing))
                except CommandFailed as failed:
                    if part.vital:
                        raise
                    found.lost.append(str(failed))
                seen.clear()
        return found

    def mend(self) -> bool:
        """The same for what can break by itself; whether it was broken.  Raises CommandFailed.

        An ng_ksocket(4) loses its peer when an ICMP unreachable arrives, and sends nothing until it
        is connected again.
        """
        broken = False
        for step in self._done.steps:
            if step.mend and step.holds is not None:
                try:
                    self._see([step.holds])
                except NotRun:
                    pass  # as above
                except CommandFailed:
                    self._do_again(step)
                    broken = True
        return broken

    def _do_again(self, part: Make | Step) -> None:
        """Make a part of the plan hold again, touching as little as can be."""
        assert part.holds is not None
        ways: list[tuple[Undo, ...]]
        if isinstance(part, Make):
            # Twice: gif(4) does not run while its outer address is away for a moment.
            ways = [(part.again,), (part.again,)]
        else:
            if part.mend:
                try:
                    self.commands.run(part.mend)
                    return  # whether it lasts is the far end's business
                except NotRun:
                    raise
                except CommandFailed:
                    pass
            # What undoes a step on another interface may put that down: not while it is in use.
            ways = [(part.do,), (*part.undo, part.do)] if part.vital else [(part.do,)]
        for number, way in enumerate(ways, 1):
            try:
                for each in way:
                    if each in part.undo:
                        self._undo(each)  # what of it is there
                        continue
                    for words in self._expanded(each):
                        if isinstance(part, Step) and each == part.do:
                            self.commands.run(words, limit=part.limit, input=part.input)
                        else:
                            self.commands.run(words)
                self._see([part.holds])
                return
            except CommandFailed:
                if number == len(ways):
                    raise

    @contextlib.contextmanager
    def _undone_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except CommandFailed as failed:
            failed.not_undone = self.down()
            raise
        except BaseException:
            self.down()
            raise

    def _make(self, make: Make, stop: Callable[[], bool]) -> None:
        _stop_if(stop())
        before = self._done
        self._done = before._replace(make=make)
        # One that was there before has no mark to be found by.
        self.tunnel = make.name if make.name and not make.mark else None
        self._record_or(before)
        words = self._expanded(make.command)[0]
        said = self.commands.run(words, input=make.input)
        # Until its name is known, `down` finds it by its mark.
        self.tunnel = make.name or _named(words, said, make.prints)
        if make.rename:
            _stop_if(stop())
            words = self._expanded(plan.renamed(make))[0]
            self.tunnel = None
            self.tunnel = _named(words, self.commands.run(words), re.escape(make.rename))
        self.number = number_of(self.tunnel)

    def is_whole(self) -> bool:
        """Whether the tunnel interface is still there, whatever else was done to it."""
        name = self.tunnel
        try:
            if (mark := self._done.known_by).endswith(":"):
                return name is not None and self._of_node(mark) == name
            shown = self.look.interface(name) if name else None
        except CommandFailed:
            return True  # we are blind, not sure
        return shown is not None and self._is_ours(shown)

    def _is_ours(self, shown: Interface) -> bool:
        """Whether an interface is the one that this process has made.

        It is known by its mark, and else by its number, so that its description and group are the
        administrator's to change.  But FreeBSD gives the number of one that was destroyed to the
        next that is made; that has nothing of ours, and ours loses it all only when somebody is
        bent on it.
        """
        make = self._done.make
        if make is not None and shown.description == make.description != "":
            return True
        if plan.is_mark(shown.description) or not self.number:
            return False  # the next one was of our making too
        pair = ("tunnel", *map(str, shown.outer)) if shown.outer else ()
        has_pair = make is not None and pair == make.ends != ()
        return number_of(shown.name) == self.number and (plan.GROUP in shown.groups or has_pair)

    def _do_all(self, steps: Iterable[Step], stop: Callable[[], bool], seeing: list[Holds]) -> None:
        """Do the steps, and see that they, and what is to be seen before, hold."""
        for step in steps:
            # One look serves all in a row that want it.
            if seeing and _look(step.holds) != _look(seeing[0]):
                self._see(seeing)
                seeing.clear()
            _stop_if(stop())
            self._do(step)
            if step.holds is not None:
                seeing.append(step.holds)
        self._see(seeing)

    def _do(self, step: Step) -> None:
        self.on_step(step)
        before = self._done
        self._done = before._replace(steps=(*before.steps, step))
        self._record_or(before)
        for words in self._expanded(step.do):
            try:
                self.commands.run(words, limit=step.limit, input=step.input)
            except CommandFailed as failed:
                if words[0] == "route" and re.search(_TAKEN, failed.reason):
                    self._done = before  # not ours to take away
                raise

    # --- seeing -------------------------------------------------------------------------------

    def _see(self, holds: list[Holds], seen: dict[Words, list[str]] | None = None) -> None:
        """See that what shows in the same look holds.  Raises CommandFailed.

        `seen` keeps what looks have shown, for others that want them.
        """
        seen = {} if seen is None else seen
        match holds:
            case []:
                return
            case [plan.DaemonRuns(pid_file), *_]:
                _await_daemon(pid_file)
                return
        wanted = [each for each in holds if isinstance(each, Shows)]
        look = self._expanded(wanted[0].look)[0]
        otherwise = next((each.otherwise for each in wanted if each.otherwise), "")
        try:
            if look not in seen:
                seen[look] = _words(self.commands.run(look))
            for each in wanted:
                shows, lacks = (
                    [self._with_name(phrase) for phrase in phrases]
                    for phrases in (each.shows, each.lacks)
                )
                if why := _is_wrong(seen[look], shows, lacks):
                    raise CommandFailed(look, why)
        except CommandFailed as failed:
            if otherwise:
                raise type(failed)(look, f"{failed.reason}: {otherwise}") from None
            raise

    # --- backwards ----------------------------------------------------------------------------

    def down(self) -> list[CommandFailed]:
        """Undo what was done, in reverse, whatever fails; the failures.

        What could not be undone is left for the next time, in the ledger too.
        """
        undos = self._done.undos()
        self.commands.ahead = 2 + len(undos)
        mark = self._done.known_by
        try:
            if self._done.whole or self._done.left or mark:
                self._find_ours(mark, undos)
        except CommandFailed as blind:
            # Not there is one thing, not seen another.  A name that we know will do, but not one
            # of an earlier process.
            if self.tunnel is None or self._done.left:
                return [blind]
        failures: list[CommandFailed] = []
        left: list[Undo] = []
        while undos:
            self._done = _Done(left=(*undos, *left), mark=mark)
            with contextlib.suppress(LedgerError):  # a full disk must not stop us here
                self._record()
            undo = undos.pop(0)
            if failed := self._undo(undo):
                failures += failed
                left.append(undo)
        self._done = _Done(left=tuple(left), mark=mark) if left else _Done()
        if not left:
            self.tunnel = None
        with contextlib.suppress(LedgerError):
            self._record()
        return failures

    def undo_left(self, left: Left) -> list[CommandFailed]:
        """Undo what an earlier run left, by its ledger; the failures."""
        self._done, self.tunnel = _Done(left=left.undo, mark=left.mark), left.tunnel
        return self.down()

    def _find_ours(self, mark: str, undos: Iterable[Undo]) -> None:
        """See to it that `tunnel` is ours, or None.  Raises CommandFailed.

        By its name alone an interface is not known: somebody may have removed ours, and made
        another under that name.  What is done to ours went away with it.
        """
        if mark.endswith(":"):  # a netgraph node
            self.tunnel = self._of_node(mark)
        elif mark:
            shown = self.look.interface(self.tunnel) if self.tunnel else None
            if shown is None or not (shown.description == mark or self._is_ours(shown)):
                ours = (each.name for each in self._others() if each.description == mark)
                self.tunnel = next(ours, None)
        # Not made by us, but in our group since, and until UNGROUP was done.
        elif self.tunnel and (self._done.whole or plan.UNGROUP in undos):
            shown = self.look.interface(self.tunnel)
            if shown is None or not (plan.GROUP in shown.groups or self._is_ours(shown)):
                self.tunnel = None

    def _others(self) -> list[Interface]:
        """Where our interface may be, if not under its name.  Raises CommandFailed."""
        if self._searches:
            return self.look.group(plan.GROUP)
        name = name_of(self.number)
        found = self.look.interface(name) if name else None
        return [] if found is None else [found]

    def _of_node(self, node: str) -> str | None:
        """The interface of a netgraph node; None: there is no such node.  Raises CommandFailed."""
        words = ("ngctl", "msg", node, "getifname")
        try:
            return _named(words, self.commands.run(words), NAME)
        except CommandFailed as failed:
            if "No such file or directory" not in failed.reason and not _is_gone(failed):
                raise
            return None

    def _undo(self, undo: Undo, farewell: bool = True) -> list[CommandFailed]:
        if isinstance(undo, EndDaemon):
            _end_daemon(self.commands, undo.pid_file, farewell)
            return []
        failures = []
        try:
            for words in self._expanded(undo):
                try:
                    said = self.commands.run(words)
                    # But for route(8) none has anything to say.
                    if said.strip() and not (words[0] == "route" and said.startswith("delete ")):
                        raise CommandFailed(words, f"says {said.strip()!a:.60}")
                except CommandFailed as failed:
                    failures.append(failed)
        except CommandFailed as failed:  # the look for link-local addresses
            failures.append(failed)
        return [failed for failed in failures if not _is_gone(failed)]

    # --- the ledger and the variables ---------------------------------------------------------

    def _record(self) -> None:
        """Put on disk what is to be undone from here on.  Raises LedgerError."""
        if self._ledger is not None:
            undos = self._done._replace(whole=False).undos()
            self._ledger.record(undos, self.tunnel, self._done.known_by)

    def _record_or(self, before: _Done) -> None:
        """The same; when it fails, nothing has been done, so there is nothing to undo."""
        try:
            self._record()
        except BaseException:
            self._done = before
            raise

    def _expanded(self, words: Words) -> list[Words]:
        """A command with its variables replaced: one for each value, none where there is none.

        Raises CommandFailed.
        """
        if _names_tunnel(words) and self.tunnel is None:
            return []
        named = tuple(map(self._with_name, words))
        if LINK_LOCAL not in named:
            return [named]
        return [
            tuple(address if word == LINK_LOCAL else word for word in named)
            for address in self.look.link_locals(named[1])
        ]

    def _with_name(self, text: str) -> str:
        return text.replace(TUNNEL, self.tunnel) if self.tunnel else text


def _stop_if(stopping: bool) -> None:
    if stopping:
        raise Interrupted


def _names_tunnel(undo: Undo) -> bool:
    return any(TUNNEL in word for word in undo)


def _is_wrong(seen: list[str], shows: Iterable[str], lacks: Iterable[str]) -> str:
    """What is wrong with what a look has shown, or nothing."""
    for phrase in shows:
        if not _has(seen, phrase):
            return f'does not show "{phrase}"'
    for phrase in lacks:
        if _has(seen, phrase):
            return f'still shows "{phrase}"'
    return ""


def _await_daemon(pid_file: str) -> None:
    """Wait until a daemon has locked its pid file.  Raises CommandFailed."""
    end = time.monotonic() + STARTING
    while not daemon.locked_by(pid_file):
        if time.monotonic() > end:
            raise CommandFailed(("rtadvd",), f"has not locked its pid file {pid_file}")
        time.sleep(0.02)


def _end_daemon(commands: Commands, pid_file: str, farewell: bool) -> None:
    """End a daemon by its pid file, and wait until it has gone."""
    end = time.monotonic() + STARTING
    while (pid := daemon.locked_by(pid_file)) == 0 and time.monotonic() < end:
        time.sleep(0.02)  # it has only just begun
    if pid:  # otherwise it ended by itself, and the number may be another's by now
        commands.log(f"kill {'' if farewell else '-KILL '}{pid}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if farewell else signal.SIGKILL)
            begun = time.monotonic()
            end = begun + FAREWELL
            while time.monotonic() < min(end, commands.deadline - AFTER_FAREWELL):
                os.kill(pid, 0)
                # One that heard us gives up its pid file at once, and may then take its time.
                if time.monotonic() > begun + HEARING and daemon.locked_by(pid_file) == pid:
                    commands.log(f"kill -KILL {pid}")
                    os.kill(pid, signal.SIGKILL)
                    begun = math.inf
                time.sleep(0.05)
    if daemon.locked_by(pid_file) in (None, pid):
        # It removes its files itself, unless it was killed.
        for file in (pid_file, pid_file.removesuffix("pid") + "sock"):
            with contextlib.suppress(OSError):
                os.unlink(file)


def _is_gone(failed: CommandFailed) -> bool:
    """Whether an undo failed because what it was to undo is not there any more."""
    no_address = failed.words[-1] == "-alias" and _NO_ADDRESS in failed.reason
    return no_address or re.search(_GONE, failed.reason) is not None


def _named(words: Words, said: str, pattern: str) -> str:
    """The name of the interface that a command has printed.  Raises CommandFailed.

    ifconfig(8) prints it alone on its line, ngctl(8) in quotes at the end of what it says.
    """
    found = re.fullmatch(rf"({pattern})\n|.*\"({pattern})\"\n", said, re.DOTALL)
    if found is None:
        raise CommandFailed(words, f"no name of an interface in its output: {said!a}")
    return found[1] or found[2]


def _look(holds: Holds | None) -> Words | None:
    """The command that shows whether it holds."""
    return holds.look if isinstance(holds, Shows) else None


def _words(output: str) -> list[str]:
    return [word for word in re.split(r"[\s<>,=]+", output) if word]


def _has(words: list[str], phrase: str) -> bool:
    wanted = _words(phrase)
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1))
