"""The one door to the system: runs the commands, and knows when they lie.

FreeBSD's network commands exit 0 when they failed (`ifconfig IF tunnel`), complain on standard
output (`route`), or succeed whatever happened (`rtsol`).  So a command is believed only when it
exits 0 AND writes nothing to standard error, and a step only when its effect was seen.

Commands are lists of words, never a shell's string; they get an environment of ours and a time
limit.  What runs them is given: dtcp.run in the client, dtcp.shell in the server.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from dtcp import daemon, plan
from dtcp.ledger import Ledger, LedgerError, Left
from dtcp.plan import LINK_LOCAL, TUNNEL, Check, Interface, Step, Words
from dtcp.run import NoOutput, Output, Runner, path, usual_environment, which

LIMIT = 5.0  # seconds that a command may take
LONG = 30.0  # for a look at everything there is, which may be ten thousand tunnels
HURRY = 9.0  # seconds for all that is left to be run once we were told to stop
LEAST = 0.1  # of them for each command, so that every undo is tried
STARTING = 2.0  # seconds in which a daemon must have its pid file
HEARING = 2.0  # seconds in which it must give that up, once told to end
AFTER_FAREWELL = 3.0  # of HURRY, for what has to be undone when rtadvd has ended
FAREWELL = 8.0  # seconds that rtadvd(8) lives on after SIGTERM, saying three times that it leaves

# route(8) refuses a route that is there already: then it is somebody else's.
_TAKEN = re.compile(r"already in table|File exists")

# An undo that fails with one of these has nothing left to undo.
_GONE = re.compile(
    r"does not exist|not in table|has not been found|shutdown: No such file or directory"
    r"|can't create node: Protocol not supported"  # a kernel without netgraph(4) has no nodes
)
_NO_ADDRESS = "Can't assign requested address"  # of -alias; of `tunnel` it is a failure


class CommandFailed(Exception):
    """A command failed, or said that it worked and did not."""

    def __init__(self, words: Words, reason: str, status: int | None = None) -> None:
        self.words, self.reason, self.status = words, reason, status
        self.undone_badly: list[CommandFailed] = []  # what the roll-back could not undo
        super().__init__(f"{plan.spelled(words)}: {reason}")


class Interrupted(Exception):
    """We were told to stop in the middle of a plan; what was done of it has been undone."""


class Monitor:
    """`route -n monitor`, whose output means that it is time to look again.

    What it says differs wholly between releases.
    """

    # By hand, for subprocess is large, and would stay in memory for this alone.
    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        """Start it; `words` begin with its path.  Raises OSError."""
        self._output, output = os.pipe()
        try:
            self._pid = os.posix_spawn(
                words[0],
                words,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 2),
                ],
                setpgroup=0,  # away from the terminal's ^C
                setsigdef=[signal.SIGPIPE],  # which Python ignores
            )
        except OSError:
            os.close(self._output)
            raise
        finally:
            os.close(output)

    def fileno(self) -> int:
        """Becomes readable when it has said something, or has ended."""
        return self._output

    def end(self) -> None:
        """End it, and see it gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._output)


class System:
    """Runs plans on this host.

    `log` gets each command as a person would type it, before `runner` runs it.  One `System` holds
    one tunnel: its interface (`tunnel`) and the steps done for it, in order (`done`).
    """

    def __init__(
        self,
        log: Callable[[str], None],
        runner: Runner,
        ledger: Ledger | None = None,
        tunnel: str | None = None,
    ) -> None:
        self.tunnel = tunnel
        self.done: list[Step] = []
        self._log = log
        self._runner = runner
        self._ledger = ledger
        self._been_up = False
        self._deadline: float | None = None  # when everything must be over
        self._ahead = 1  # commands that are to be run before it

    # --- running ------------------------------------------------------------------------------

    def hurry(self) -> None:
        """We are to stop: what still has to be run, hanging commands included, gets HURRY s."""
        if self._deadline is None:
            self._deadline = time.monotonic() + HURRY
            self._ahead = 2 + sum(len(step.undo) for step in self.done)

    def run(
        self,
        words: Words,
        *,
        limit: float | None = None,
        input: str = "",
    ) -> str:
        """Run one command; its standard output.  Raises CommandFailed.

        `limit` in seconds, LIMIT when None; `input` is what it reads.
        """
        if words[0] == plan.STOP:
            return self._stop(words)
        if words[0] == plan.RUNNING:
            return self._is_running(words)
        output = self._output(words, limit or LIMIT, input, {})
        if output.status == 0 and not output.err:
            return output.out
        # Standard error says why; where it is empty (route(8) of 13.2), standard output does.
        lines = (output.err or output.out).strip().splitlines()
        reason = lines[0].removeprefix(f"{words[0]}: ") if lines else f"exit status {output.status}"
        raise CommandFailed(words, reason, output.status)

    def hook(self, words: Words, environment: dict[str, str], limit: float) -> None:
        """Run the administrator's script; it may say what it likes.  Raises CommandFailed."""
        output = self._output(words, limit, "", environment)
        if output.status:
            raise CommandFailed(words, f"exit status {output.status}", output.status)

    def _stop(self, words: Words) -> str:
        """End a daemon by its pid file (plan.STOP), and wait until it has gone."""
        pid_file = words[1]
        end = time.monotonic() + STARTING
        while (pid := daemon.locked_by(pid_file)) == 0 and time.monotonic() < end:
            time.sleep(0.02)  # it has only just begun
        if pid:  # otherwise it ended by itself, and the number may be somebody else's by now
            self._log(f"kill {pid}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                begun = time.monotonic()
                end = begun + FAREWELL
                while time.monotonic() < min(end, (self._deadline or math.inf) - AFTER_FAREWELL):
                    os.kill(pid, 0)
                    # One that heard us gives up its pid file at once, and may then take its time.
                    if time.monotonic() > begun + HEARING and daemon.locked_by(pid_file) == pid:
                        self._log(f"kill -KILL {pid}")
                        os.kill(pid, signal.SIGKILL)
                        begun = math.inf
                    time.sleep(0.05)
        if daemon.locked_by(pid_file) in (None, pid):
            # It removes its files itself, unless it was killed.
            for file in (pid_file, pid_file.removesuffix("pid") + "sock"):
                with contextlib.suppress(OSError):
                    os.unlink(file)
        return ""

    def _is_running(self, words: Words) -> str:
        """Wait until a daemon holds its pid file (plan.RUNNING): it writes it when it is ready."""
        end = time.monotonic() + STARTING
        while not daemon.locked_by(words[1]):
            if time.monotonic() > end:
                return ""
            time.sleep(0.02)
        return plan.RUNNING

    def _output(
        self, words: Words, limit: float, input: str, environment: dict[str, str]
    ) -> Output:
        self._log(plan.spelled(words))
        program = which(words[0])
        if program is None:
            raise CommandFailed(words, f"no such command in {path()}")
        begun = time.monotonic()

        def left() -> float:
            # `hurry` may come while the command runs.
            end = min(begun + limit, self._end_in_a_hurry(begun))
            return end - time.monotonic()

        command = (program, *words[1:])
        try:
            return self._runner(command, left, input=input, environment=environment)
        except NoOutput as why:
            raise CommandFailed(words, str(why)) from None
        finally:
            self._ahead -= 1

    def _end_in_a_hurry(self, start: float) -> float:
        """When a command begun at `start` must have ended, for the others to have their time."""
        if self._deadline is None:
            return math.inf
        return start + max(LEAST, (self._deadline - start) / max(1, self._ahead))

    # --- plans --------------------------------------------------------------------------------

    def up(self, steps: Iterable[Step], stop: Callable[[], bool] = lambda: False) -> None:
        """Do the steps, in order; when one fails, undo all that was done, in reverse.

        `stop` is asked before each step.  Raises CommandFailed or Interrupted.
        """
        unseen: list[Check] = []
        try:
            for step in steps:
                # One look serves all the checks in a row that want it.
                if unseen and (step.check is None or step.check.look != unseen[0].look):
                    self._see(unseen)
                    unseen.clear()
                if stop():
                    raise Interrupted
                self._do(step)
                if step.check is not None:
                    unseen.append(step.check)
            self._see(unseen)
            self._been_up = True
        except CommandFailed as failed:
            failed.undone_badly = self.down()
            raise
        except BaseException:
            self.down()
            raise

    def change(self, steps: list[Step], stop: Callable[[], bool] = lambda: False) -> bool:
        """Make of the plan that was done another one: only what differs is undone and done.

        Whether anything differed.  When a step fails, all is undone, as in `up`.
        """
        gone = [step for step in self.done if step not in steps]
        if not gone and len(steps) == len(self.done):
            return False
        kept = [step for step in self.done if step in steps]
        try:
            for step in reversed(gone):
                if stop():
                    raise Interrupted
                failures = [failure for words in step.undo for failure in self._undo(words)]
                if failures:
                    raise failures[0]
            self.done = kept
            self._record()
        except CommandFailed as failed:
            failed.undone_badly = self.down()
            raise
        except BaseException:
            self.down()
            raise
        self._been_up = False  # until it is whole again
        self.up([step for step in steps if step not in kept], stop)
        self.done.sort(key=steps.index)  # for the take-down, in which the order matters
        self._record()
        return True

    def resume(self, steps: list[Step], tunnel: str) -> None:
        """Take over a plan that was done before, by whomever; `down` sees whose `tunnel` is."""
        self.done, self.tunnel, self._been_up = steps, tunnel or None, True

    def down(self) -> list[CommandFailed]:
        """Undo what was done, in reverse, whatever fails; the failures.

        What could not be undone stays in `done`, and in the ledger.
        """
        failures: list[CommandFailed] = []
        left: list[Step] = []
        been_up, self._been_up = self._been_up, False
        self._ahead = 2 + sum(len(step.undo) for step in self.done)
        mark = next((step.mark for step in self.done if step.mark), "")
        leaves = been_up and any(step.leave is not None for step in self.done)
        try:
            if been_up or (mark and self.tunnel is None):
                self._find_ours(mark, [words for step in self.done for words in step.undo])
        except CommandFailed as blind:
            # Not there is one thing, not seen another.  A name that we know will do.
            if self.tunnel is None:
                return [blind]
        while self.done:
            with contextlib.suppress(LedgerError):  # a full disk must not stop us here
                self._record(left)
            step = self.done[-1]
            undo = step.leave if been_up and step.leave is not None else step.undo
            still: list[Words] = []
            for words in undo:
                failed = self._undo(words)
                failures += failed
                if failed:
                    still.append(words)
            if still:
                left.insert(0, step._replace(undo=tuple(still), leave=None))
            self.done.pop()
        if mark and not leaves and not any(step.mark for step in left):
            # With the interface all that was on it is gone.
            kept = [(step, [words for words in step.undo if TUNNEL not in words]) for step in left]
            left = [step._replace(undo=tuple(undo)) for step, undo in kept if undo]
        self.done = left
        self._been_up = bool(left)  # another try must not trust in the interface's name either
        if not left:
            self.tunnel = None
        with contextlib.suppress(LedgerError):
            self._record()
        return failures

    def undo_left(self, left: Left) -> list[CommandFailed]:
        """Undo what an earlier run left, by its ledger; the failures."""
        self.tunnel = left.tunnel
        self._ahead = 2 + len(left.undo)
        try:
            self._find_ours(left.mark, left.undo)
        except CommandFailed as blind:
            return [blind]
        failures = [failure for words in left.undo for failure in self._undo(words)]
        self.tunnel = None
        if not failures:
            self._record()
        return failures

    def _do(self, step: Step) -> None:
        # The undo is armed, and on disk, before the command runs: we may be killed in it.
        self.done.append(step)
        try:
            self._record()
        except BaseException:
            self.done.pop()  # nothing was done, so there is nothing to undo
            raise
        try:
            words = self._bound(step.do)
            out = self.run(words, limit=step.limit, input=step.input)
        except CommandFailed as failed:
            if step.names_tunnel or step.mark:
                self.tunnel = None  # `down` finds it by its mark
            elif step.do[0] == "route" and _TAKEN.search(failed.reason):
                self.done.pop()  # not ours to take away
            raise
        if step.names_tunnel:
            self.tunnel = _named(out, step.names_tunnel)
            if self.tunnel is None:  # `down` finds it by its mark
                raise CommandFailed(words, f"no name of an interface in its output: {out!a}")
        elif step.mark:
            self.tunnel = step.do[1]

    def _find_ours(self, mark: str, undo: Iterable[Words]) -> None:
        """See to it that `tunnel` is ours, or None.  Raises CommandFailed.

        By its name alone an interface is not known: somebody may have removed ours, and made
        another under that name.  What is done to ours went away with it.
        """
        if mark.endswith(":"):  # a netgraph node
            try:
                said = self.run(("ngctl", "msg", mark, "getifname"))
            except CommandFailed as failed:
                if "No such file or directory" not in failed.reason and not _is_gone(failed):
                    raise
                said = ""
            self.tunnel = _named(said, plan.NAME.pattern)
        elif mark:
            shown = self.interface(self.tunnel) if self.tunnel else None
            if shown is None or shown.description != mark:
                self.tunnel = self.marked(mark)
        elif self.tunnel and plan.UNGROUP in undo:  # not made by us, but in our group since
            shown = self.interface(self.tunnel)
            if shown is None or plan.GROUP not in shown.groups:
                self.tunnel = None

    def mend(self) -> bool:
        """See that what can break by itself is whole, and mend it.  Raises CommandFailed.

        Whether anything was broken: an ng_ksocket(4) loses its peer when an ICMP unreachable
        arrives, and sends nothing until it is connected again.
        """
        broken = False
        for step in self.done:
            if step.mend and step.check is not None:
                try:
                    self._see([step.check])
                except CommandFailed:
                    self.run(step.mend)
                    broken = True
        return broken

    def _undo(self, words: Words) -> list[CommandFailed]:
        if TUNNEL in words and self.tunnel is None:
            return []
        commands = [self._bound(words)]
        failures: list[CommandFailed] = []
        try:
            if LINK_LOCAL in words:
                commands = [
                    tuple(address if word == LINK_LOCAL else word for word in commands[0])
                    for address in self._link_locals(commands[0][1])
                ]
        except CommandFailed as failed:
            commands = []
            failures.append(failed)
        for command in commands:
            try:
                said = self.run(command)
                # But for route(8) none has anything to say.
                if said.strip() and not (command[0] == "route" and said.startswith("delete ")):
                    raise CommandFailed(command, f"says {said.strip()!a:.60}")
            except CommandFailed as failed:
                failures.append(failed)
        return [failed for failed in failures if not _is_gone(failed)]

    def _record(self, left: list[Step] | None = None) -> None:
        if self._ledger is None:
            return
        steps = [*self.done[::-1], *(left or [])[::-1]]
        mark = next((step.mark for step in steps if step.mark), "")
        undo = [words for step in steps for words in step.undo]
        self._ledger.record(undo, self.tunnel, mark)

    def _bound(self, words: Words) -> Words:
        return tuple(self._name(word) for word in words)

    def _name(self, text: str) -> str:
        return text.replace(TUNNEL, self.tunnel) if self.tunnel else text

    def _see(self, checks: list[Check]) -> None:
        if not checks:
            return
        look = self._bound(checks[0].look)
        otherwise = next((check.otherwise for check in checks if check.otherwise), "")
        try:
            seen = _words(self.run(look))
            for check in checks:
                for phrase in map(self._name, check.shows):
                    if not _has(seen, phrase):
                        raise CommandFailed(look, f'does not show "{phrase}"')
                for phrase in map(self._name, check.lacks):
                    if _has(seen, phrase):
                        raise CommandFailed(look, f'still shows "{phrase}"')
        except CommandFailed as failed:
            if otherwise:
                raise CommandFailed(look, f"{failed.reason}: {otherwise}") from None
            raise

    # --- looking ------------------------------------------------------------------------------

    def interface(self, name: str) -> Interface | None:
        """The interface of that name, or None."""
        try:
            shown = self._shown(name)
        except CommandFailed as failed:
            if "does not exist" in failed.reason:
                return None
            raise
        try:
            return _interface(name, shown)
        except ValueError as error:  # an address that is none
            raise CommandFailed(("ifconfig", name), str(error)) from None

    def _shown(self, name: str) -> str:
        """What ifconfig(8) shows of an interface.  Raises CommandFailed."""
        words = ("ifconfig", name)
        shown = self.run(words)
        if not shown.startswith(f"{name}: flags="):
            raise CommandFailed(words, f"says {shown.strip()!a:.60}")
        return shown

    def ours(self) -> list[Interface]:
        """The interfaces in our group (plan.GROUP), whoever put them there."""
        return self.interfaces(plan.GROUP)

    def interfaces(self, group: str = "gif") -> list[Interface]:
        """The interfaces in a group, by default all gif(4)."""
        names = self.run(("ifconfig", "-g", group)).split()
        return [
            interface
            for name in names
            if plan.NAME.fullmatch(name) and (interface := self.interface(name)) is not None
        ]

    def everything(self) -> dict[str, Interface]:
        """All interfaces by their names, with a single look."""
        blocks = re.split(r"^(?=\S+: flags=)", self.run(("ifconfig", "-a"), limit=LONG), flags=re.M)
        found = [_interface(block.partition(":")[0], block) for block in blocks if block]
        return {each.name: each for each in found if plan.NAME.fullmatch(each.name)}

    def routes(self, fib: int | None) -> dict[str, str]:
        """The IPv6 routes in that FIB: through which interface each destination goes."""
        return {to: interface for to, _, interface in self._table("inet6", fib)}

    def ipv6_networks(self, fib: int | None) -> dict[IPv6Network, tuple[str, str]]:
        """The networks that have a route in that FIB: its flags and its interface.

        Not those of one link, which have a scope.  Raises CommandFailed.
        """
        found = {}
        for to, flags, interface in self._table("inet6", fib):
            if "%" in to:
                continue
            with contextlib.suppress(ValueError):
                network = IPv6Network("::/0" if to == "default" else to, strict=False)
                found[network] = flags, interface
        return found

    def ipv4_networks(self) -> list[IPv4Network]:
        """The networks that have a route in our own FIB.  Raises CommandFailed."""
        found = []
        for to, _, _ in self._table("inet", None):
            with contextlib.suppress(ValueError):
                found.append(IPv4Network("0.0.0.0/0" if to == "default" else to, strict=False))
        return found

    def _table(self, family: str, fib: int | None) -> Iterator[tuple[str, str, str]]:
        """Destination, flags and interface of each route.  Raises CommandFailed."""
        table = () if fib is None else ("-F", str(fib))
        words = ("netstat", "-rnW", "-f", family, *table)
        shown = self.run(words, limit=LONG)
        if not shown.startswith("Routing tables"):
            raise CommandFailed(words, f"says {shown.strip()!a:.60}")
        head: list[str] = []
        for line in map(str.split, shown.splitlines()):
            if line[:1] == ["Destination"]:
                head = line
            elif head and len(line) >= len(head) - 1:  # Expire is mostly empty
                yield line[0], line[head.index("Flags")], line[head.index("Netif")]

    def traffic(self) -> dict[str, tuple[int, int]]:
        """Bytes received and sent by each interface."""
        # What stands left of the numbers may be missing or hold anything, so count from the right.
        shown = self.run(("netstat", "-i", "-b", "-n", "-W"), limit=LONG)
        head, *lines = (line.split() for line in shown.splitlines() if line.strip())
        received, sent = (head.index(each) - len(head) for each in ("Ibytes", "Obytes"))
        return {
            words[0]: (int(words[received]), int(words[sent]))
            for words in lines
            if len(words) > 2 and words[2].startswith("<Link#") and words[received].isdigit()
        }

    def marked(self, mark: str) -> str | None:
        """The name of the interface that carries this mark as its description, or None."""
        return next((each.name for each in self.ours() if each.description == mark), None)

    def setting(self, *names: str) -> list[str]:
        """The values of variables of sysctl(8), one word for each.  Raises CommandFailed."""
        words = ("sysctl", "-n", *names)
        said = self.run(words)
        if len(said.split()) != len(names):
            raise CommandFailed(words, f"says {said.strip()!a:.60}")
        return said.split()

    def advertised(self) -> tuple[str, ...]:
        """The interfaces that a running rtadvd(8), other than ours, serves."""
        try:
            shown = self.run(("rtadvctl", "show"))
        except CommandFailed:
            return ()  # none is running
        return tuple(re.findall(r"^([A-Za-z][A-Za-z0-9_.]*): flags=", shown, re.MULTILINE))

    def monitor(self) -> Monitor:
        """Start `route -n monitor`.  Raises CommandFailed, OSError.

        It runs for as long as we do, and sh would wake up once a second for that; so it is started
        without.
        """
        program = which("route")
        if program is None:
            raise CommandFailed(("route",), f"no such command in {path()}")
        self._log("route -n monitor")
        return Monitor([program, "-n", "monitor"], usual_environment())

    def _link_locals(self, interface: str) -> list[str]:
        return re.findall(r"^\s+inet6 (fe80:\S+)", self._shown(interface), re.MULTILINE)


def _is_gone(failed: CommandFailed) -> bool:
    """Whether an undo failed because what it was to undo is not there any more."""
    no_address = failed.words[-1] == "-alias" and _NO_ADDRESS in failed.reason
    return no_address or _GONE.search(failed.reason) is not None


def _named(said: str, pattern: str) -> str | None:
    """The name of the interface that a command has printed: ifconfig(8) alone on its line,
    ngctl(8) in quotes at the end of what it says.  None: it makes no sense.
    """
    found = re.fullmatch(rf"({pattern})\n|.*\"({pattern})\"\n", said, re.DOTALL)
    return (found[1] or found[2]) if found else None


def _words(output: str) -> list[str]:
    return [word for word in re.split(r"[\s<>,=]+", output) if word]


def _has(words: list[str], phrase: str) -> bool:
    wanted = _words(phrase)
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1))


def _interface(name: str, shown: str) -> Interface:
    """What ifconfig(8) shows of an interface.  Lines are found by their words, in any order."""

    def first(pattern: str) -> str:
        found = re.search(pattern, shown, re.MULTILINE)
        return found[1] if found else ""

    flags = first(r"^\S+ flags=[0-9a-f]+<(.*?)>").split(",")
    pair = re.search(r"^\s+tunnel inet (\S+) --> (\S+)", shown, re.MULTILINE)
    addresses = re.findall(r"^\s+inet6 ([0-9a-f:.]+)", shown, re.MULTILINE)
    return Interface(
        name,
        mtu=int(first(r"\bmtu ([0-9]+)") or plan.MTU_LEAST),
        up="UP" in flags,
        running="RUNNING" in flags,
        outer=(IPv4Address(pair[1]), IPv4Address(pair[2])) if pair else None,
        description=first(r"^\s+description: (.*)$"),
        groups=tuple(first(r"^\s+groups: (.*)$").split()),
        inet6_disabled="IFDISABLED" in first(r"^\s+nd6 options=[0-9a-f]+<(.*?)>").split(","),
        link_local=next((IPv6Address(a) for a in addresses if a.startswith("fe80:")), None),
        addresses=tuple(IPv6Address(a) for a in addresses if not a.startswith("fe80:")),
        ether=first(r"^\s+ether ([0-9a-f:]{17})$"),
        fib=int(first(r"^\s+fib: ([0-9]+)$") or 0),
    )
