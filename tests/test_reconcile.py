"""Putting back what a plan has lost: what is done, and what is left alone, command by command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Network
from typing import Any

import pytest
from dtcp import plan
from dtcp.client.network import is_news
from dtcp.errors import CommandFailed, NotRun
from dtcp.grant import Grant
from dtcp.look import Interface
from dtcp.run import NoOutput, Output
from dtcp.system import System

GRANT = Grant(
    IPv4Address("203.0.113.7"),
    IPv4Address("192.0.2.1"),
    prefixes=(IPv6Network("2001:db8:3c3::/48"),),
)
GIF = """gif0: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> metric 0 mtu 1280
\ttunnel inet 203.0.113.7 --> 192.0.2.1
\tgroups: gif dtcp
\tnd6 options=21<PERFORMNUD,AUTO_LINKLOCAL>
"""
ROUTE = "destination: {}\n  interface: gif0\n flags: <UP,{}>\n"


class Answers:
    """Answers commands by their words, and remembers those that change something."""

    def __init__(self) -> None:
        self.gif, self.unreachable = GIF, True
        self.blind, self.refused = False, "nothing"
        self.changes: list[str] = []

    def __call__(
        self,
        words: tuple[str, ...],
        left: Callable[[], float],
        *,
        input: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Output:
        if self.blind or (self.refused and self.refused in words):
            raise NoOutput("cannot be run: no more processes")
        line = " ".join(words[1:])
        if "getpeername" in words:
            return Output(71, "", "ngctl: send msg: Socket is not connected")
        if line == "gif0":
            return Output(0, self.gif, "")
        if line.startswith("-n get"):
            if line.endswith("::/48"):
                flags = "REJECT" if self.unreachable else "DONE"
                return Output(0, ROUTE.format("2001:db8:3c3::", flags), "")
            return Output(0, ROUTE.format("::", "DONE"), "")
        self.changes.append(line)
        return Output(0, "", "")


@pytest.fixture
def answers(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Answers:
    monkeypatch.setattr("dtcp.run.which", lambda name: f"/sbin/{name}")
    return Answers()


def standing(answers: Answers) -> System:
    host = System(lambda line: None, answers)
    wanted = plan.client(GRANT, plan.Options(), plan.Host(Interface("gif0")), "mark")
    host.resume(wanted, "gif0")
    return host


def test_what_holds_is_left_alone(answers: Answers) -> None:
    assert standing(answers).reconcile() == ([], [])
    assert answers.changes == []


def test_what_cannot_be_seen_is_left_alone(answers: Answers) -> None:
    """Too few processes for a look say nothing about the tunnel."""
    answers.blind = True
    assert standing(answers).reconcile() == ([], [])
    assert answers.changes == []


def test_what_is_vital_and_cannot_be_put_back_is_a_failure(answers: Answers) -> None:
    answers.gif = GIF.replace("UP,", "")
    with pytest.raises(CommandFailed, match='does not show "UP"') as told:
        standing(answers).reconcile()
    assert not isinstance(told.value, NotRun)
    again = "gif0 group dtcp description mark mtu 1280 up tunnel 203.0.113.7 192.0.2.1"
    assert answers.changes == [again] * 2


def test_an_interface_that_does_not_run_for_a_moment_is_tried_twice(answers: Answers) -> None:
    """Its outer address was away, and is back by then."""
    looks = iter([GIF.replace("RUNNING,", "")] * 2 + [GIF] * 9)

    class Momentary(Answers):
        def __call__(self, words: tuple[str, ...], *rest: Any, **more: Any) -> Output:
            if words[1:] == ("gif0",):
                self.gif = next(looks)
            return super().__call__(words, *rest, **more)

    momentary = Momentary()
    (told,), lost = standing(momentary).reconcile()
    assert told.endswith('does not show "RUNNING"')
    assert lost == []
    assert len(momentary.changes) == 2


def test_what_is_not_vital_is_named_and_the_tunnel_stays(answers: Answers) -> None:
    """Nor is it undone before it is done again: on a LAN that could put an interface down."""
    answers.unreachable = False
    put_back, lost = standing(answers).reconcile()
    assert put_back == []
    (text,) = lost
    assert text.endswith('does not show "REJECT"')
    assert answers.changes == ["-n add -inet6 2001:db8:3c3::/48 ::1 -reject"]


def test_what_is_not_vital_costs_a_change_nothing(answers: Answers) -> None:
    """A LAN interface that came, and has gone again before it got its address."""
    host = standing(answers)
    lan = Interface("ue0", up=True)
    options = plan.Options(delegations=(plan.Delegation("ue0", 1, 1, 64),), advertise=False)
    wanted = plan.client(GRANT, options, plan.Host(Interface("gif0"), lan=(lan,)), "mark")
    answers.refused = "ue0"
    assert host.change(wanted)
    assert host.stands
    put_back, lost = host.reconcile()
    assert put_back == []
    assert lost == []  # nobody can tell
    answers.refused = ""
    assert host.reconcile().lost != []  # it is not there
    assert "ue0 inet6 2001:db8:3c3:1::1 prefixlen 64 alias" in answers.changes


def test_a_socket_is_connected_again_and_left_alone_when_that_cannot_be_run(
    answers: Answers,
) -> None:
    """It is not shut down and made again for want of a process."""
    host = System(lambda line: None, answers)
    over_udp = GRANT._replace(ports=(4028, 4028))
    host.resume(plan.client(over_udp, plan.Options(node="dtcpc7"), plan.Host(), "mark"), "ng0")
    answers.refused = "connect"
    with pytest.raises(NotRun):
        host.mend()
    assert answers.changes == []
    answers.refused = ""
    assert host.mend()
    assert answers.changes == ["msg dtcpc7:inet6 connect inet/192.0.2.1:4028"]


@pytest.mark.hazard(49)
@pytest.mark.parametrize(
    ("described", "groups", "number", "is_ours"),
    [
        ("dtcps itojun@203.0.113.7 pid 7", "gif dtcp", 3, True),
        ("mine", "gif dtcp", 3, True),
        ("mine", "gif", 3, True),  # it has our pair
        ("dtcps itojun@203.0.113.7 pid 7", "gif dtcp", 4, True),
        ("mine", "gif dtcp", 4, False),
        ("dtcps jun@203.0.113.9 pid 7", "gif dtcp", 3, False),
    ],
)
def test_an_interface_is_known_by_its_mark_or_its_number(
    answers: Answers,
    monkeypatch: pytest.MonkeyPatch,
    described: str,
    groups: str,
    number: int,
    is_ours: bool,
) -> None:
    """FreeBSD gives the number of an interface that was destroyed to the next one."""
    monkeypatch.setattr("dtcp.system.number_of", lambda name: number)
    shown = GIF.replace("gif dtcp", groups)
    answers.gif = shown + f"\tdescription: {described}\n"
    host = System(lambda line: None, answers)
    for existing in (None, Interface("gif0")):
        made = plan.server(GRANT, plan.Options(), "dtcps itojun@203.0.113.7 pid 7", existing)
        host.resume(made, "gif0", 3)
        assert host.is_whole() is is_ours


@pytest.mark.parametrize(
    ("said", "news"),
    [
        (b"got message of size 200\nRTM_GET: Report Metrics: len 200, pid: 7\n", False),
        (b"got message of size 96\nRTM_NEWADDR: address being added to iface\n", True),
        (b"RTM_GET: Report Metrics\nRTM_DELETE: Delete Route\n", True),
        (b"12:00:00.123 PID 319 add/repl addr 10.99.0.9/24 iface vtnet0\n", True),
        (b"", True),
    ],
)
def test_our_own_looks_are_no_news(said: bytes, news: bool) -> None:
    """route(4) of 13.2 tells everybody of each `route get`."""
    assert is_news(said) is news
