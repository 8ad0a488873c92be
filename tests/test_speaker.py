"""What the server says is parsed without privileges, and root believes none of it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NoReturn

import pytest
from dtcp import grant, speaker, wire
from dtcp.speaker import Event, Granted, Nonsense, Request, Speaker

from lab.internet import Internet
from lab.snapshot import difference
from tests.running import PREFIX, SERVER, Program, login, serve, wait_until
from tests.trust import Figure

OWN, THERE = IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1")
PAIR = f"{OWN} {THERE}"
GRANTED = f"granted {PAIR} 2001:db8:1::6 2001:db8:1::5"

NOBODY = 65534


# --- the process ------------------------------------------------------------------------------


def child_of(client: Program) -> int:
    """The process that speaks for a dtcpc, by its number."""
    found: list[int] = []

    def alone() -> bool:
        # Another one may just be about to become `route -n monitor`.
        children = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()
        found[:] = [
            int(pid) for pid in children if b"dtcpc.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        return len(found) == 1

    wait_until("one child that is dtcpc", alone)
    return found[0]


def status_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


@pytest.mark.parametrize(("words", "user"), [((), NOBODY), (("--run-as", "daemon"), 1)])
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_it_has_no_privileges_and_no_files(
    net: Internet, words: tuple[str, ...], user: int
) -> None:
    with serve(net), login(net.client, "-t", "host", *words) as client:
        client.wait_for("up after")
        pid = child_of(client)
        status = status_of(pid)
        assert set(status["Uid"]) == {str(user)}
        assert set(status["Gid"]) == {str(user)}
        assert status["Groups"] == []
        assert int(status["CapEff"][0], 16) == 0
        files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert [file.split(":")[0] for file in files] == ["socket"] * 2
        limits = {
            line[:26].strip(): line[26:].split()[:2]
            for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        }
        for name, most in (
            ("Max processes", "0"),
            ("Max open files", "3"),
            ("Max file size", "0"),
            ("Max core file size", "0"),
        ):
            assert limits[name] == [most, most]
        assert client.end() == 0
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_it_has_the_password_from_the_login_on_and_no_others(net: Internet) -> None:
    others = f"{SERVER}:jun:the-password-of-another\n"
    net.client.write("/usr/local/etc/dtcpc.auth", f"{others}{SERVER}:itojun:the-secret\n")
    with login(net.client, "-l", "-t", "host") as client:
        client.wait_for("Connection refused")
        pid = child_of(client)
        assert holds(client.pid, b"the-secret")
        assert not holds(pid, b"the-secret")
        words = (
            "tests/servers",
            "kame",
            "--user",
            "itojun",
            "--password",
            "the-secret",
            "--prefix",
            PREFIX,
        )
        with Program(net.server, *words):
            client.wait_for("up after")
            assert holds(pid, b"the-secret")
            assert not holds(pid, b"the-password-of-another")
            assert client.end() == 0


def holds(pid: int, needle: bytes) -> bool:
    """Whether a process has these bytes anywhere in its memory."""
    with open(f"/proc/{pid}/mem", "rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, modes, *_ = line.split()
            if modes.startswith("rw"):
                begin, end = (int(word, 16) for word in span.split("-"))
                memory.seek(begin)
                if needle in memory.read(end - begin):
                    return True
    return False


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_its_death_is_noticed_at_once_and_the_tunnel_comes_back(net: Internet) -> None:
    with serve(net):
        before = net.client.snapshot()
        with login(net.client, "-t", "host") as client:
            client.wait_for("up after")
            os.kill(child_of(client), signal.SIGKILL)
            assert client.status() == 75
            assert "dtcpc: lost: the process that speaks with it has died" in client.lines
        assert difference(before, net.client.snapshot()) == []
        with login(net.client, "-l", "-t", "host") as client:
            client.wait_for("up after")
            first = child_of(client)
            os.kill(first, signal.SIGKILL)
            client.wait_for("has died; trying again at once")
            wait_until("back", lambda: sum("up after" in line for line in client.lines) == 2)
            assert child_of(client) != first
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_it_says_goodbye_when_its_client_is_killed(net: Internet) -> None:
    with serve(net) as server, login(net.client, "-t", "host") as client:
        client.wait_for("up after")
        pid = child_of(client)
        client.end(signal.SIGKILL)
        server.wait_for("itojun: down: the client said quit")
        wait_until("its end", lambda: not Path(f"/proc/{pid}").exists())


# --- what it tells ----------------------------------------------------------------------------

Play = Callable[[socket.socket], None]


@pytest.fixture
def told() -> Iterator[Callable[..., list[Event]]]:
    """Plays the process, and gives what a login comes to; ends at the first event that ends it."""
    ended: list[Speaker] = []

    def run(play: Play, *, port: int | None = None, tunnel_type: str = "host") -> list[Event]:
        def instead(client: socket.socket, account: object) -> NoReturn:
            try:
                client.recv(4096)
                play(client)
            finally:
                os._exit(0)

        patch = pytest.MonkeyPatch()
        patch.setattr(speaker, "_run", instead)
        made = Speaker(None, said.append, said.append)
        patch.undo()
        ended.append(made)
        request = Request(OWN, THERE, "itojun", tunnel_type, False, port, port, False, "secret")
        made.login(socket.socket(), request)
        return list(events(made))

    yield run
    for each in ended:
        each.end()


said: list[str] = []


def events(made: Speaker) -> Iterator[Event]:
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        event = made.event()
        if event is not None:
            yield event
        if isinstance(event, (wire.Lost, Nonsense, speaker.Gone)):
            return
    raise AssertionError("nothing ends it")


def says(*lines: str) -> Play:
    return lambda client: client.sendall("".join(f"{line}\n" for line in lines).encode("latin-1"))


DIED = wire.Lost("the process that speaks with it has died")


def test_a_grant_arrives_as_it_was(told: Callable[..., list[Event]]) -> None:
    pair = IPv6Address("2001:db8:1::6"), IPv6Address("2001:db8:1::5")
    assert told(says(f"1 {GRANTED}")) == [Granted(grant.Grant(OWN, THERE, *pair)), DIED]


def test_what_belongs_to_an_earlier_login_is_nothing(told: Callable[..., list[Event]]) -> None:
    assert told(says(f"0 {GRANTED}", "7 lost x")) == [DIED]


LIES = {
    "no number": GRANTED,
    "no word": "1",
    "an unknown word": "1 run reboot",
    "no grant": "1 granted",
    "words that end in a shell": f"1 granted {PAIR} 2001:db8:1::6;reboot 2001:db8:1::5",
    "an option": f"1 granted {PAIR} -alias",
    "another spelling": f"1 granted {PAIR} 2001:DB8:1::6 2001:db8:1::5",
    "blanks": f"1 granted {OWN}  {THERE} 2001:db8:1::6 2001:db8:1::5",
    "a word more": f"1 {GRANTED} welcome",
    "three addresses": f"1 {GRANTED} 2001:db8:1::7",
    "another source than ours": f"1 granted 203.0.113.8 {THERE} 2001:db8:1::6 2001:db8:1::5",
    "ourselves": f"1 granted {OWN} {OWN} 2001:db8:1::6 2001:db8:1::5",
    "nowhere": f"1 granted {OWN} 0.0.0.0 2001:db8:1::6 2001:db8:1::5",
    "no inner pair": f"1 granted {PAIR}",
    "an inner address that is none": f"1 granted {PAIR} ::1 2001:db8:1::5",
    "a prefix that cannot be": f"1 {GRANTED} fe80::/64",
    "a port nobody asked for": f"1 {GRANTED} udp=4028",
    "no address": "1 nat 2001:db8::1",
    "a scope": f"1 granted {PAIR} 2001:db8:1::6%;reboot 2001:db8:1::5",
    "a scope of a prefix": f"1 {GRANTED} 2001:db8:3c3::%x/48",
    "a scope that is no ASCII": f"1 granted {PAIR} 2001:db8:1::6%\xe9 2001:db8:1::5",
    "a goodbye that nobody said": "1 gone",
    "a carriage return": "1 trace a\rb",
    "a long line": f"1 trace {'x' * 5000}",
}


@pytest.mark.parametrize("line", LIES.values(), ids=LIES)
def test_what_cannot_be_meant_ends_it(
    told: Callable[..., list[Event]], line: str, figure: Figure
) -> None:
    figure("What a server says is read without privileges, and not believed", "lies", 1)
    events = told(says(line))
    if line.startswith("1"):
        assert [type(event) for event in events] == [Nonsense]
    else:
        assert events == [DIED]


def test_a_second_answer_ends_it(told: Callable[..., list[Event]]) -> None:
    granted, after = told(says(f"1 {GRANTED}", f"1 {GRANTED}"))
    assert isinstance(granted, Granted)
    assert isinstance(after, Nonsense)


def test_too_much_of_it_ends_it(told: Callable[..., list[Event]]) -> None:
    said.clear()
    [event] = told(says(*["1 trace again"] * 2000))
    assert event == Nonsense("the process that speaks with it told nonsense: too much of it")
    assert len(said) < speaker.TOLD_AT_ONCE + 10 * speaker.TOLD_PER_SECOND


def test_text_of_it_is_made_visible(told: Callable[..., list[Event]]) -> None:
    said.clear()
    refused, _ = told(says("1 trace \x1b[2J", "1 remark \x07" + "x" * 300, "1 denied \x1b[31mno"))
    assert refused == wire.Refused("\\x1b[31mno", at_greeting=False)
    assert said == ["\\x1b[2J", "\\x07" + "x" * 196 + "..."]


def test_one_that_only_closes_its_end_is_ended(told: Callable[..., list[Event]]) -> None:
    def close(client: socket.socket) -> None:
        client.close()
        signal.pause()

    assert told(close) == [DIED]


def test_one_that_hangs_is_ended(
    told: Callable[..., list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speaker, "PATIENCE", 0.2)
    monkeypatch.setattr(wire, "LOGIN_TIME", 0.2)
    assert told(lambda client: signal.pause()) == [
        wire.Lost("no answer from the process that speaks with it")
    ]


def test_a_request_arrives_as_it_was() -> None:
    """In pieces, too: a password may be long."""
    secret = " a b:c\udcff " + "x" * 70_000
    request = Request(OWN, THERE, "itojun", "network", True, 4028, 0, False, secret)
    ours, its = socket.socketpair()
    server, accepted = socket.socketpair()
    line = speaker._packed(1, request)
    process = threading.Thread(target=speaker._Conversations(its).run)
    process.start()
    with ours, its, server:
        sent = socket.send_fds(ours, [line[:9]], [accepted.fileno()])
        ours.sendall(line[sent:])
        accepted.close()
        server.sendall(b"+OK 0B1517C87D516A5FA65BED722D51A04F KAME tunnel server\r\n")
        answer = wire.digest("itojun", "0B1517C87D516A5FA65BED722D51A04F", secret)
        expected = f"tunnel itojun {answer} network udp=0\r\n".encode()
        assert server.recv(len(expected), socket.MSG_WAITALL) == expected
        ours.shutdown(socket.SHUT_WR)
        process.join()
