"""Every command of a plan fails once, in every way: `fault_table.py PLAN quick|hang|kill DUE`.

Runs inside a host of the lab; tests/test_faults.py starts it.  The points are not listed anywhere:
a plan is run once without faults, and each command that this took, including looks, is a point.
Then there is a run for each point and each fault, after which the host must be as before.  On
standard output: a line of JSON for each case that went wrong, and finally one with how many cases
there are and how many were due (DUE is a `rows.Due` in JSON).

A plan's commands run as its program runs them: the client's through `sh`, the server's in a sh(1)
that is fed lines.  For speed, those of the client run in the process that `sh` has forked,
instead of in a new Python: their code is the same, and so is all of ours.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "lib")]

import sh  # noqa: E402
from dtcp import plan, run, system  # noqa: E402
from dtcp.errors import CommandFailed  # noqa: E402
from dtcp.grant import Grant  # noqa: E402
from dtcp.ledger import Ledger, LedgerError  # noqa: E402
from dtcp.plan import Alias, Delegation, Options  # noqa: E402
from dtcp.server import shell  # noqa: E402

from lab.freebsd import faults, store  # noqa: E402
from tests.rows import Due  # noqa: E402

GRANT = Grant(IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"))
HOST = GRANT._replace(inner=IPv6Address("2001:db8:1::6"), peer=IPv6Address("2001:db8:1::5"))
NETWORK = GRANT._replace(prefixes=(IPv6Network("2001:db8:3c3::/48"),))
WHOLE = GRANT._replace(prefixes=(IPv6Network("2001:db8:3c3:1::/64"),))
SERVER = HOST._replace(prefixes=NETWORK.prefixes).turned()._replace(local=GRANT.local)
SERVER = SERVER._replace(remote=GRANT.remote)
MARK = plan.mark("dtcpc", "itojun", "tunnel.example.org", 7)

UDP = (4028, 4028)
DIR = "/var/run"
PID_FILE = f"{DIR}/killed.pid"
USUAL, SHORT = run.LIMIT, 1.0  # seconds that a command may take, and that one which hangs has


class Case(NamedTuple):
    """A plan, or with `then` the change from one to another."""

    grant: Grant
    options: Options = Options()
    then: Grant | None = None
    server: bool = False
    prepare: tuple[str, ...] = ()  # commands of the administrator's, before


def _p(*delegations: tuple[str, int, int | None, int], **options: Any) -> Options:
    given = tuple(Delegation(*each) for each in delegations)
    return Options(delegations=given, files=f"{DIR}/dtcpc", **options)


ALONE = ("ifconfig em1 inet6 ifdisabled", "sysctl net.inet6.ip6.forwarding=1")
OTHERS_DEFAULT = (
    "ifconfig em0 inet6 2001:db8:f::7 prefixlen 64 alias",
    "route -n add -inet6 default 2001:db8:f::1",
)
THERE = (
    "ifconfig gif0 create mtu 1300 description mine",
    "ifconfig gif0 tunnel 203.0.113.7 198.51.100.99",
)
CASES = {
    "tunnelonly": Case(GRANT),
    "host": Case(HOST),
    "network": Case(NETWORK),
    "-A": Case(
        HOST,
        Options(
            aliases=(
                Alias(IPv6Interface("2001:db8::7/128"), IPv6Address("2001:db8::8")),
                Alias(IPv6Interface("fe80::7/64")),
            )
        ),
    ),
    "-F": Case(HOST, Options(fib=1), prepare=("sysctl net.fibs=2",)),
    "-i gif7 -m": Case(HOST, Options(interface="gif7", mtu=1400)),
    "-i dtcp0": Case(HOST, Options(interface="dtcp0")),
    "-R": Case(HOST, Options(destinations=tuple(map(IPv6Network, ("2001:db8::/32", "::5/128"))))),
    "halves": Case(HOST, prepare=OTHERS_DEFAULT),
    "-c": Case(HOST, Options(mtu=1400), prepare=("ifconfig gif0 create",)),
    "-c, used before": Case(HOST, prepare=(*THERE, "ifconfig gif0 up")),
    "-o": Case(HOST, Options(keep=True, mtu=1400)),
    "-r solicit": Case(HOST, Options(solicit=True)),
    "-P id": Case(NETWORK, _p(("em1", 1, 1, 64)), prepare=ALONE),
    "-P EUI-64 -a": Case(NETWORK, _p(("em1", 1, None, 64), advertise=False), prepare=ALONE),
    "-P several": Case(
        NETWORK, _p(("em1", 1, 1, 64), ("em1", 2, 2, 128), ("em0", 3, 3, 64)), prepare=ALONE
    ),
    "-P /128": Case(NETWORK, _p(("em1", 1, 5, 128)), prepare=ALONE),
    "-P whole": Case(WHOLE, _p(("em1", 0, 1, 64)), prepare=ALONE),
    "-P, foreign rtadvd": Case(
        NETWORK, _p(("em1", 1, 1, 64)), prepare=(*ALONE[1:], "rtadvd em1", "rtadvctl show")
    ),
    "-U": Case(HOST._replace(ports=UDP)),
    "-U -n -i -F": Case(
        NETWORK._replace(ports=(4028, 4999)),
        Options(interface="dtcp0", fib=1),
        prepare=("sysctl net.fibs=2",),
    ),
    "server": Case(SERVER, server=True),
    "server, UDP": Case(SERVER._replace(ports=UDP), server=True),
    "change of host": Case(HOST, then=HOST._replace(inner=IPv6Address("2001:db8:1::a"))),
    "change of outer": Case(HOST, then=HOST._replace(remote=IPv4Address("192.0.2.9"))),
    "change of prefix": Case(
        NETWORK,
        _p(("em1", 1, 1, 64)),
        then=NETWORK._replace(prefixes=(IPv6Network("2001:db8:4c4::/48"),)),
        prepare=ALONE,
    ),
}
# By what they cost: hangs can wait side by side with others.
KINDS = {
    "quick": ("exit1", "error-exit0", "garbage", "missing", "late"),
    "hang": ("hang",),
    "kill": ("kill", "kill-late"),
}
SHARE = 5  # of the faults of an undo, one


# --- running ----------------------------------------------------------------------------------

_COMMAND = sh.Command
_fault: str | None = None  # of the command that is about to run


class Forked(_COMMAND):
    """A command of the lab that runs in the process which sh has forked for it."""

    def __call__(self, *words: str, **options: Any) -> Any:
        name = os.path.basename(self._path)
        return super().__call__(*words, _preexec_fn=partial(_run, name, list(words)), **options)


def _run(name: str, words: list[str]) -> NoReturn:
    status = 70
    try:
        os.closerange(3, 256)  # on its end sh waits for the program to begin

        def work() -> int:
            with store.Lock():
                return int(MODULES[name].main(words))

        status = faults.go_wrong(_fault, name, work, PID_FILE) if _fault else work()
        sys.stdout.flush()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


PATH = str(ROOT / "lab/freebsd/bin")
WITH_PYTHON = f"{PATH}:{os.path.dirname(sys.executable)}"  # for those that are not Forked
MODULES = {name: importlib.import_module(f"lab.freebsd.{name}") for name in os.listdir(PATH)}


@contextlib.contextmanager
def way(case: Case) -> Iterator[run.Runner]:
    """How the program that has this plan runs its commands."""
    if case.server:
        with contextlib.closing(shell.Shell()) as own:
            yield own.run
    else:
        yield run.run


class Runner:
    """A System whose commands are counted, and one of which goes wrong."""

    def __init__(self, case: Case, at: int, fault: str) -> None:
        self.ran: list[str] = []
        self._open = contextlib.ExitStack()
        self.ledger = Ledger(f"{DIR}/dtcpc.state")
        self._open.callback(self.ledger.close)
        own = self._open.enter_context(way(case))
        self.system = system.System(self._about_to_run, own, self.ledger)
        self._server = case.server
        self._at, self._fault = at, fault
        self._limit_the_next()

    def close(self) -> None:
        self._open.close()

    def _limit_the_next(self) -> None:
        hangs = self._fault == "hang" and len(self.ran) == self._at
        run.LIMIT = SHORT if hangs else USUAL

    def _about_to_run(self, line: str) -> None:
        global _fault
        due = len(self.ran) == self._at
        self.ran.append(line)
        os.environ["PATH"] = "/nowhere" if due and self._fault == "missing" else WITH_PYTHON
        _fault = self._fault if due else None
        if self._server and due and self._fault != "missing":
            rule = {"do": self._fault, "pid_file": PID_FILE}
            Path(faults.FILE).write_text(json.dumps([rule]))
        self._limit_the_next()

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        global _fault
        self._at, _fault = -1, None
        self._limit_the_next()
        os.environ["PATH"] = WITH_PYTHON

    @property
    def struck(self) -> str:
        return self.ran[self._at]


class Bench:
    """The host, and what a case comes to on it."""

    def __init__(self, case: Case, name: str) -> None:
        self.case = case
        host = system.System(lambda line: None, run.run)
        existing = host.look.interface("gif0") if name.startswith("-c") else None
        lan = [
            found
            for each in dict.fromkeys(d.interface for d in case.options.delegations)
            if (found := host.look.interface(each)) is not None
        ]
        surveyed = plan.Host(
            existing,
            default_route=plan.ANYWHERE in host.look.ipv6_routes(case.options.fib),
            lan=tuple(lan),
            advertised=host.look.advertised() if lan else (),
        )
        options = case.options._replace(node="dtcpc7")
        if case.server:
            self.plan = plan.server(case.grant, plan.Options(node="dtcps7u4028"), MARK)
        else:
            self.plan = plan.client(case.grant, options, surveyed, MARK)
        self.then = plan.client(case.then, options, surveyed, MARK) if case.then else None
        self.before = state()

    def runner(self, at: int = -1, fault: str = "") -> Runner:
        return Runner(self.case, at, fault)

    def up(self, runner: Runner) -> None:
        runner.system.up(self.plan)

    def after_keeping(self) -> None:
        """Take the interface away that -o leaves."""
        if self.case.options.keep:
            with contextlib.suppress(CommandFailed):  # it was never made
                host = system.System(lambda line: None, run.run)
                host.commands.run(("ifconfig", "gif0", "destroy"))


def state() -> dict[str, object]:
    """What is compared after each case: the model, the files, the processes."""
    kept = vars(store.load())
    interfaces = {
        name: {
            key: sorted(map(repr, value)) if isinstance(value, list) else repr(value)
            for key, value in vars(each).items()
            if not key.startswith("relay")
        }
        for name, each in kept["interfaces"].items()
    }
    try:
        graph = json.loads(store.read("netgraph.json"))["nodes"]
    except FileNotFoundError:
        graph = []
    net = os.readlink("/proc/self/ns/net")
    processes = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/net") == net and int(pid) != os.getpid():
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if words[3:4] == ["dtcp"]:
                    del words[4:]  # the shell's mark, which no other has
                # Which Python it is does not matter, and the numbers are of descriptors.
                processes.append(" ".join(word for word in words[1:] if not word.isdecimal()))
        except OSError:
            pass  # it has just ended
    return {
        "interfaces": interfaces,
        "routes": sorted(map(repr, kept["routes"])),
        "settings": kept["sysctl"],
        "netgraph": [[node[key] for key in ("type", "name", "driver")] for node in graph],
        "files": sorted(f for f in os.listdir(DIR) if f != "freebsd"),
        "processes": sorted(p for p in processes if p),
    }


def differs(was: dict[str, object], now: dict[str, object]) -> list[str]:
    def flat(value: object) -> list[str]:
        if isinstance(value, dict):
            return [f"{key}: {line}" for key in value for line in flat(value[key])]
        return [f"{each}" for each in value] if isinstance(value, list) else [f"{value}"]

    before, after = flat(was), flat(now)
    gone = [f"gone: {line}" for line in before if line not in after]
    return gone + [f"new: {line}" for line in after if line not in before]


def settled(was: dict[str, object]) -> list[str]:
    """What differs, when the last processes have had the time to go."""
    for _ in range(200):
        found = differs(was, state())
        if not found or not all(": processes: " in line for line in found):
            break
        time.sleep(0.02)
    return found


# --- the table --------------------------------------------------------------------------------


Run = Callable[[], list[str]]  # what is wrong after a case


def cases(bench: Bench, kinds: tuple[str, ...]) -> Iterator[tuple[str, Run]]:
    """Each case by its name, which no other has."""
    clean = bench.runner()
    bench.up(clean)
    made, is_up = len(clean.ran), state()
    if bench.then:
        clean.system.change(bench.then)
        changed, is_changed = clean.ran[made:], state()
        clean.system.change(bench.plan)
        to_and_fro = settled(is_up)
        yield "to and fro", lambda: to_and_fro
    taken = len(clean.ran)
    as_it_should_be = [*map(str, clean.system.down())]
    clean.close()
    as_it_should_be += kept(bench)
    yield "as it should be", lambda: as_it_should_be
    if bench.then:
        for at, line in enumerate(changed):
            for kind in kinds if not line.startswith("kill ") else ():
                yield (
                    f"change {at}, {kind}: {line}",
                    partial(rise, bench, made + at, kind, is_changed),
                )
        return
    for at, line in enumerate(clean.ran[:made]):
        # What comes of a look that fails is the same whatever the way.
        for kind in kinds if not is_look(line) else kinds[1:][at % 4 :][:1]:
            yield f"up {at}, {kind}: {line}", partial(rise, bench, at, kind, is_up)
    if "exit1" in kinds:
        for at in range(1 + len(bench.plan.steps)):
            kind = ("told to stop", "no ledger")[at % 2]
            yield f"up, {kind} before step {at}", partial(interrupted, bench, at, kind)
    undone = clean.ran[taken:]
    for at, line in enumerate(undone):
        if line.startswith("kill "):
            continue  # no command of the system: tests/test_signals.py
        for number, kind in enumerate(kinds):
            # Not every way each time: a bring-up and two take-downs cost the most.
            if (at + number) % SHARE == 0 or len(kinds) == 1:
                yield f"down {at}, {kind}: {line}", partial(down, bench, made, at, kind, undone)


def kept(bench: Bench) -> list[str]:
    bench.after_keeping()
    return settled(bench.before)


def is_look(line: str) -> bool:
    """Whether a command changes nothing."""
    return bool(re.match(r"ifconfig (-g )?\S+$|route -n get |ngctl msg \S+ get|kill ", line))


def rise(bench: Bench, at: int, kind: str, is_up: dict[str, object]) -> list[str]:
    """A bring-up, and the change if there is one, in which a command fails."""
    runner = bench.runner(at, kind)
    wrong = []
    try:
        bench.up(runner)
        if bench.then:
            runner.system.change(bench.then)
    except CommandFailed as failed:
        wrong += says(failed, runner, kind)
        wrong += [f"not undone: {each}" for each in failed.not_undone]
    else:
        # Nonsense in place of what had been done already: then all is as it should be.  And what
        # is not vital costs a change nothing: the next look puts it back.
        if bench.then:
            wrong += runner.system.reconcile().lost
        elif kind != "garbage":
            wrong.append("nothing was noticed")
        wrong += [f"though up, {each}" for each in settled(is_up)]
        wrong += map(str, runner.system.down())
        bench.after_keeping()
    runner.close()
    return wrong + settled(bench.before)


def says(failed: CommandFailed, runner: Runner, kind: str) -> list[str]:
    """What is wrong with what is said of a failure: it is one line with the command and why."""
    text = str(failed)
    why = {
        "exit1": faults.MESSAGE,
        "late": faults.MESSAGE,
        "error-exit0": faults.MESSAGE,
        "missing": "no such command in /nowhere",
        "hang": "did not end in",
        "garbage": "",
    }[kind]
    wrong = [] if text.count("\n") == 0 and text.isprintable() else [f"says {text!r}"]
    if kind != "garbage" and not text.startswith(f"{runner.struck}: {why}"):
        wrong.append(f"says {text!r} of {runner.struck!r}")
    return wrong


def interrupted(bench: Bench, at: int, kind: str) -> list[str]:
    runner = bench.runner()
    asked = itertools.count()
    broken = f"{DIR}/dtcpc.state.new"

    def stop() -> bool:
        if next(asked) == at:
            if kind == "told to stop":
                return True
            os.mkdir(broken)
        return False

    wrong = []
    try:
        runner.system.up(bench.plan, stop)
        wrong.append("nothing was noticed")
    except (system.Interrupted, LedgerError):
        pass
    if kind == "no ledger":
        os.rmdir(broken)
    runner.system.down()
    runner.close()
    if os.path.exists(f"{DIR}/dtcpc.state"):
        # It could not be written when all had been undone; the next start finds nothing to undo.
        wrong += next_start(bench.case)
    return wrong + settled(bench.before)


def next_start(case: Case) -> list[str]:
    """What a start finds, and undoes: whether something of it fails."""
    ledger = Ledger(f"{DIR}/dtcpc.state")
    left = ledger.left()
    with way(case) as own:
        host = system.System(lambda line: None, own, ledger)
        failures = host.undo_left(left) if left else []
    if not left:
        ledger.record([], None, "")
    ledger.close()
    return list(map(str, failures))


def down(bench: Bench, made: int, at: int, kind: str, ran: list[str]) -> list[str]:
    runner = bench.runner(made + at, kind)
    bench.up(runner)
    failures = runner.system.down()
    undos = [line for line in ran if not is_look(line)]
    wrong = [
        f"not tried: {line}"
        for line in undos
        if line not in runner.ran[made:] and not (is_look(ran[at]) and "fe80::" in line)
    ]
    struck = [str(failure).startswith(runner.struck) for failure in failures]
    if not is_look(ran[at]) and struck != [True]:
        wrong.append(f"said: {list(map(str, failures))}")
    runner.clear()
    # What is left, the same instance undoes or the next.
    if at % 2:
        wrong += map(str, runner.system.down())
        runner.close()
    else:
        runner.close()
        if os.path.exists(f"{DIR}/dtcpc.state"):
            wrong += next_start(bench.case)
    bench.after_keeping()
    return wrong + settled(bench.before)


def kills(bench: Bench, kinds: tuple[str, ...]) -> Iterator[tuple[str, Run]]:
    """We are killed in each command of a bring-up, a change and a take-down."""
    clean = bench.runner()
    live(bench, clean)
    clean.close()
    yield "as it should be", partial(kept, bench)
    points = [(at, line) for at, line in enumerate(clean.ran) if not is_look(line)]
    for at, line in points:
        # After one command or before the next: nearly the same, so turn by turn, but for the first.
        for kind in kinds if at == points[0][0] else (kinds[at % len(kinds)],):
            yield f"{at}, {kind}: {line}", partial(killed, bench, at, kind)


def live(bench: Bench, runner: Runner) -> None:
    bench.up(runner)
    if bench.then:
        runner.system.change(bench.then)
    runner.system.down()


def killed(bench: Bench, at: int, kind: str) -> list[str]:
    child = os.fork()
    if not child:
        Path(PID_FILE).write_text(f"{os.getpid()}\n")
        live(bench, bench.runner(at, kind))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    os.unlink(PID_FILE)
    wrong = [] if os.WIFSIGNALED(status) else [f"ended with {status}"]
    wrong += next_start(bench.case)
    bench.after_keeping()
    return wrong + settled(bench.before)


def main(name: str, what: str, due: Due) -> None:
    run._PATH = "/nowhere"  # Linux has some of these names as well
    os.environ["PATH"] = WITH_PYTHON
    if not CASES[name].server:
        sh.Command = Forked  # type: ignore[misc, assignment]
    if what == "hang":
        plan.RTSOL_TIME = USUAL
    bench = Bench(CASES[name], name)
    table = dict((kills if what == "kill" else cases)(bench, KINDS[what]))
    chosen = due.among(list(table))
    for told in chosen:
        if wrong := table[told]():
            print(json.dumps([told, wrong]), flush=True)
    print(json.dumps([len(table), len(chosen)]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Due(*json.loads(sys.argv[3])))
