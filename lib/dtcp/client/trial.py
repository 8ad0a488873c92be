"""--test: a tunnel is made, tried, and taken down; or one that stands is tried, and left alone."""

from __future__ import annotations

import argparse
import os
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network

from dtcp import daemon, grant, plan, run, status, wire
from dtcp.cli import Failure
from dtcp.client import remedies
from dtcp.client.conversation import Login
from dtcp.client.network import resolve
from dtcp.client.news import News
from dtcp.client.passage import Passage, Way
from dtcp.client.speaker import Speaker
from dtcp.client.stages import StageFailed, Stages
from dtcp.client.survey import Survey
from dtcp.client.transport import Transport
from dtcp.client.tunnel import LocalEnd
from dtcp.daemon import Stopped
from dtcp.errors import FAILED, OK, TRY_AGAIN, Error
from dtcp.ledger import Ledger
from dtcp.look import Interface
from dtcp.status import Facts
from dtcp.system import Interrupted, System

_SERVER = "server"  # what errors call it; the lines say which it is


class _Quiet(daemon.Log):
    """What the lines of the stages say as well is for -d only."""

    def notice(self, text: str) -> None:
        self.info(text)


class Trial:
    """The whole way of one tunnel, from the server's name to packets that come back through it."""

    def __init__(
        self,
        options: argparse.Namespace,
        log: daemon.Log,
        speaker: Speaker,
        host: System,
        survey: Survey,
        ledger: Ledger,
    ) -> None:
        self._options, self._log, self._speaker = options, log, speaker
        self._host, self._survey = host, survey
        self._signals = daemon.Signals()
        facts = Facts(
            "testing", os.getpid(), options.server, options.user, options.type, options.mtu
        )
        quiet = _Quiet("dtcpc", verbose=options.debug)
        self._news = News(facts, options.script, host, ledger, quiet)
        self._end = LocalEnd(options, survey, host, self._news, quiet)
        self._stages = Stages()
        self._transport = Transport(options)
        self._granted: grant.Grant
        self._said = ""  # by the server, last
        self._routes: list[str] = []  # through the tunnel

    def run(self, secret: str) -> int:
        """Go the whole way, and take everything down; the exit status.  Raises Error."""
        self._signals.on_stop = self._host.hurry
        self._speaker.trace = self._traced
        self._host.on_step = self._stepped
        result, is_clean = FAILED, False
        try:
            self._survey.begin()
            result = self._try(secret)
            if result != OK and self._transport.has_other and self._is_blocked():
                self._speaker.leave()
                self._end.end()
                self._transport.change()
                result = self._try(secret)
        except (Stopped, Interrupted):
            self._log.notice("ending as asked")
        except Error:
            self._signals.check()  # a look was given no more time
            raise
        finally:
            self._speaker.quit()
            is_clean = self._end.end()
            self._speaker.wait_for_end()
        return result if is_clean else FAILED

    def _try(self, secret: str) -> int:
        """Go the whole way once, over one transport; the exit status.  Raises as `_go`."""
        self._news.tell(self._news.facts._replace(transport=self._transport.name))
        self._routes.clear()
        return self._stages.run(
            lambda: self._go(secret),
            lambda stage, error: remedies.remedy(self._options, stage, error),
        )

    def _is_blocked(self) -> bool:
        """Whether the tunnel has failed for what carries its packets."""
        error = self._stages.error
        return (
            self._stages.name == "packets back"
            or isinstance(error, grant.BehindNat)
            or wire.OTHERS.format("") in str(error)
        )

    def _go(self, secret: str) -> None:
        """Go from one stage to the next.  Raises Error, OSError, Stopped, Interrupted."""
        stages = self._stages
        stages.begin("name")
        addresses = resolve(self._options.server, self._signals)
        stages.passed(f"{self._options.server} is {', '.join(map(str, addresses))}")
        try:
            server = self._connect(addresses, secret)
            self._granted = granted = self._speaker.granted()
        except Failure as failure:
            text = str(failure).removeprefix(f"{_SERVER}: ")
            if "no DTCP server" in text:
                text += f': it says "{self._said}"'
            raise Failure(text, failure.status) from None
        udp = " over UDP" if granted.ports else ""
        inner = [] if granted.inner is None else [granted.inner]
        what = "".join(f", {each}" for each in (*inner, *granted.prefixes))
        stages.passed(f"granted: type {self._options.type}{udp}{what}")
        stages.begin("interface")
        self._end.make(granted, server, self._signals)
        stages.passed(self._made())
        for hint in self._end.hints:
            stages.remark(hint)
        self._news.run_script("up")
        way = Way(
            self._end.interface,
            self._options.mtu,
            granted.inner,
            # In a FIB of its own, only the link is sure to be found from here.
            granted.peer if self._options.fib is None else None,
            str(granted.remote),
            granted.ports is not None,
            granted.ports and granted.ports[1],
            granted.key or b"",
        )
        Passage(way, stages, self._host.look, self._wait, self._host.mend).run()

    # --- with the server ----------------------------------------------------------------------

    def _connect(self, addresses: list[IPv4Address], secret: str) -> IPv4Address:
        """Connect to the first address that answers; which it is.  Raises Failure, Stopped."""
        options, stages = self._options, self._stages
        for address in addresses:
            stages.begin("TCP")
            login = Login.of(options, address, passing=False)
            failure = self._speaker.connect(login, secret, _SERVER, self._signals, lambda: None)
            where = f"{address} port {options.port}"
            if failure is None:
                stages.passed(f"connected to {where} from {self._speaker.own}")
                stages.begin("greeting")
                return address
            text = f"{where}: {failure}"
            if address != addresses[-1]:
                stages.failed(text)
        raise Failure(text, TRY_AGAIN)

    def _traced(self, line: str) -> None:
        """Hear what passes between us and the server: its greeting is over when we log in."""
        self._log.debug(line)
        way, _, text = line.partition(" ")
        if way == "<<":
            self._said = text
        elif self._stages.name == "greeting" and text.startswith(("stls", "tunnel ")):
            self._stages.passed(f'"{" ".join(self._said.split(" ")[2:])}"')
            self._stages.begin("TLS" if text == "stls" else "login")
        elif self._stages.name == "TLS" and text.startswith("tunnel "):
            self._stages.passed(self._speaker.security)
            self._stages.begin("login")

    # --- on this host -------------------------------------------------------------------------

    def _stepped(self, step: plan.Step) -> None:
        """A step is about to be done: see whether a stage ends with what was done before."""
        stage = _stage(step.do)
        if stage != self._stages.name:
            self._stages.passed(self._made())
            self._stages.begin(stage)
        self._routes += plan.routes(plan.Plan(None, (step,)))

    def _made(self) -> str:
        """What has been made in the stage under way."""
        match self._stages.name:
            case "interface":
                return self._end.described(self._granted)
            case "routes":
                routes = ", ".join(self._routes) or "default, as advertised,"
                return f"{routes} through {self._end.interface}"
        return "; ".join(self._news.facts.lines[2:][: len(self._granted.prefixes)])

    def _wait(self, reader: int, seconds: float) -> None:
        """Wait until that is readable.  Raises Failure when the server ends, and Stopped."""
        self._signals.wait([fd for fd in (reader, self._speaker.fileno()) if fd >= 0], seconds)
        self._signals.check()
        self._speaker.look()


def _stage(command: plan.Words) -> str:
    """The stage that a command of a plan belongs to."""
    match command:
        case ("route" | "rtsol", *_):
            return "routes"
        case ("rtadvd", *_):
            return "LAN"
        case ("ifconfig", name, *_) if name != plan.TUNNEL:
            return "LAN"
    return "interface"


# --- beside a running instance ------------------------------------------------------------------


class Beside:
    """The data path of the tunnel that a running instance has, by its facts.  Changes nothing."""

    def __init__(self, pid: int, facts: Facts | None, log: daemon.Log) -> None:
        self._pid, self._facts = pid, facts
        self._look = System(log.command, run.run).look
        self._signals = daemon.Signals()
        self._stages = Stages()

    def run(self) -> int:
        """See that it holds, and that packets pass; the exit status.  Raises Failure."""
        try:
            return self._stages.run(self._go, lambda stage, error: _PUT_BACK)
        except Stopped:
            return FAILED

    def _go(self) -> None:
        stages, facts = self._stages, self._facts
        stages.begin("running")
        head = f"pid {self._pid}: {status.as_text(facts)[0]}"
        if facts is None or facts.state != "up" or facts.interface is None:
            raise StageFailed(
                head, "it has no tunnel; to go the whole way, stop it first", TRY_AGAIN
            )
        stages.passed(head)
        stages.begin("interface")
        shown = self._shown(facts.interface)
        if wrong := _wrong(shown, facts):
            raise StageFailed(wrong, _PUT_BACK)
        stages.passed(facts.lines[0])
        stages.begin("routes")
        self._see_routes(shown, facts.routes)
        stages.passed(f"{', '.join(facts.routes)} through {shown.name}")
        if facts.lan:
            stages.begin("LAN")
            self._see_lan(facts.lan)
            stages.passed("; ".join(facts.lan))
        way = Way(
            shown.name,
            shown.mtu,
            _address(facts.inner),
            # As in Trial.
            None if shown.fib else _address(facts.peer),
            str(facts.remote),
            udp="gif" not in shown.groups,
        )
        Passage(way, stages, self._look, self._wait).run()

    def _shown(self, name: str) -> Interface:
        shown = self._look.interface(name)
        if shown is None:
            raise StageFailed(f"{name}: no such interface", _PUT_BACK)
        return shown

    def _see_routes(self, shown: Interface, routes: tuple[str, ...]) -> None:
        """See that these routes lead through the tunnel.  Raises Failure, CommandFailed."""
        found = self._look.ipv6_routes(shown.fib or None)
        for to in routes:
            network = plan.ANYWHERE if to.startswith("default") else IPv6Network(to)
            route = found.get(network)
            if route is None or route.interface != shown.name:
                through = f"leads through {route.interface}" if route else "is not there"
                raise StageFailed(f"the route to {to} {through}", _PUT_BACK)

    def _see_lan(self, lan: tuple[str, ...]) -> None:
        """See that the LAN's interfaces have their addresses.  Raises Failure, CommandFailed."""
        for each in lan:
            name, _, text = each.partition(" ")
            if IPv6Interface(text).ip not in self._shown(name).addresses:
                raise StageFailed(f"{name} does not have {text}", _PUT_BACK)

    def _wait(self, reader: int, seconds: float) -> None:
        self._signals.wait([reader], seconds)
        self._signals.check()


_PUT_BACK = (
    "the running dtcpc puts that back within seconds, if it can: its log says why not;"
    " `service dtcpc reload` has it look at once"
)


def _address(text: str | None) -> IPv6Address | None:
    return IPv6Address(text) if text else None


def _wrong(shown: Interface, facts: Facts) -> str:
    """What an interface lacks of what the facts say of it, or nothing."""
    inner = _address(facts.inner)
    if not shown.up:
        return f"{shown.name} is down"
    if shown.inet6_disabled:
        return f"IPv6 is off on {shown.name}"
    if inner is not None and inner not in shown.addresses:
        return f"{shown.name} does not have {inner}"
    if "gif" in shown.groups and shown.outer != (
        IPv4Address(str(facts.local)),
        IPv4Address(str(facts.remote)),
    ):
        return f"{shown.name} does not have the outer pair {facts.local} --> {facts.remote}"
    if not shown.running:
        return f"{shown.name} is not running: this host has no {facts.local} any more"
    return ""
