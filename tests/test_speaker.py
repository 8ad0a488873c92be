"""The server's replies are parsed without privileges, and root trusts none of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NoReturn

import pytest
from dtcp import grant, wire
from dtcp.client import conversation, speaker
from dtcp.client.conversation import Login
from dtcp.client.speaker import Event, Nonsense, Speaker

from lab.internet import Internet
from lab.snapshot import difference
from tests.running import SERVER, Program, login, ping, serve, set_users, wait_until
from tests.trust import Figure

OWN, THERE = IPv4Address("127.0.0.1"), IPv4Address("192.0.2.1")
PAIR = f"{OWN} {THERE}"
CHALLENGE = "0B1517C87D516A5FA65BED722D51A04F"
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
            int(pid)
            for pid in children
            if re.search(r"dtcpc|dtcp.client import", _of_process(int(pid), "cmdline"))
        ]
        return len(found) == 1

    wait_until("one child that is dtcpc", alone)
    return found[0]


def _of_process(pid: int, name: str) -> str:
    """A file of proc(5); nothing if the process has gone: commands come and go at any time."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def status_of(pid: int) -> dict[str, list[str]]:
    """What proc_pid_status(5) tells of a process; nothing if it has gone."""
    lines = _of_process(pid, "status").splitlines()
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


@pytest.mark.hazard(64)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_no_generation_of_it_has_the_password(net: Internet) -> None:
    """Neither the first one nor one that was started when root had it already."""
    with serve(net):
        net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER}:itojun:the-secret\n")
        set_users(net.server, "itojun:the-secret\n")
        with login(net.client, "-l", "-t", "host") as client:
            for generation in range(3):
                wait_until("up", lambda: ups(client) == generation + 1)  # noqa: B023
                pid = child_of(client)
                assert holds(client.pid, b"the-secret")
                assert not holds(pid, b"the-secret")
                assert holds(pid, b"itojun")
                os.kill(pid, signal.SIGKILL)
            assert client.end() == 0


def ups(client: Program) -> int:
    """How often its tunnel has come up."""
    return sum("up after" in line for line in client.lines)


def holds(pid: int, needle: bytes) -> bool:
    """Whether a process has these bytes anywhere in its memory."""
    page = os.sysconf("SC_PAGESIZE")
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, modes, *_ = line.split()
            if modes.startswith("rw"):
                begin, end = (int(word, 16) for word in span.split("-"))
                pages = []
                for at in range(begin, end, page):
                    with contextlib.suppress(OSError):  # some can be written only
                        memory.seek(at)
                        pages.append(memory.read(page))
                if needle in b"".join(pages):
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
            wait_until("back", lambda: ups(client) == 2)
            second = child_of(client)
            assert second != first
            # What was started later may do no more than what was there from the start.
            assert status_of(second)["Uid"] == [str(NOBODY)] * 4
            assert Path(f"/proc/{second}/environ").read_bytes() == b""
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(63)
@pytest.mark.parametrize("stage", ["at the login", "in the tunnel"])
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_one_that_is_stopped_is_replaced(net: Internet, stage: str) -> None:
    words = (
        "client.speaker.SILENCE=3",
        "client.conversation.CONNECT_TIME=1",
        "wire.PING_INTERVAL=1",
        "dtcpc",
    )
    with serve(net):
        before = net.client.snapshot()
        with Program(
            net.client, "tests/hasty", *words, "-dlu", "itojun", "-t", "host", SERVER
        ) as client:
            client.wait_for("up after")
            first = child_of(client)
            # As long as it says something, nothing happens.
            wait_until("pings", lambda: sum(">> ping" in line for line in client.lines) > 4)
            os.kill(first, signal.SIGSTOP)
            if stage == "at the login":
                client.send(signal.SIGHUP)
            client.wait_for("no answer from the process that speaks with it; trying again at once")
            wait_until("back", lambda: ups(client) == 2)
            assert child_of(client) != first
            wait_until("its end", lambda: not Path(f"/proc/{first}").exists())
            assert client.end() == 0
        assert difference(before, net.client.snapshot()) == []


@pytest.mark.hazard(63, 65)
@pytest.mark.parametrize("words", [(), ("-D",)])
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_a_stopped_one_does_not_keep_us_from_ending(net: Internet, words: tuple[str, ...]) -> None:
    """Nor does it outlive us.

    It is our child, a daemon's too: until we have waited for it, its number is nobody else's, and
    who is killed by that number is it.
    """
    with serve(net):
        before = net.client.snapshot()
        with Program(net.client, "dtcpc", *words, "-u", "itojun", "-t", "host", SERVER) as client:
            wait_until("up", lambda: ping(net.client))
            daemon = int(net.client.read("/run/dtcpc.pid"))
            [speaker] = [
                pid
                for pid in net.client.processes()
                if status_of(pid).get("Uid", [""])[0] == str(NOBODY)
            ]
            parent = net.client.run(["ps", "-o", "ppid=", "-p", str(speaker)]).stdout
            assert int(parent) == daemon
            os.kill(speaker, signal.SIGSTOP)
            os.kill(daemon, signal.SIGTERM)
            assert client.status() == 0
            wait_until("the end of both", lambda: not (_lives(speaker) or _lives(daemon)))
        assert difference(before, net.client.snapshot()) == []


def _lives(pid: int) -> bool:
    return status_of(pid).get("State", ["Z"])[0] != "Z"


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

    def run(
        play: Play, *, port: int | None = None, tunnel_type: str = "host", tls: str = ""
    ) -> list[Event]:
        def instead(client: socket.socket, *_: object) -> NoReturn:
            try:
                client.recv(4096)
                play(client)
            finally:
                os._exit(0)

        patch = pytest.MonkeyPatch()
        patch.setattr(conversation, "run", instead)
        made = Speaker(None, said.append, said.append)
        patch.undo()
        ended.append(made)
        made.login(
            Login(THERE, 20200, "itojun", tunnel_type, False, port, port, False, False, tls),
            "secret",
        )
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
        if isinstance(event, (wire.Lost, wire.Refused, wire.Insecure, Nonsense, grant.BehindNat)):
            return
    raise AssertionError("nothing ends it")


def says(*lines: str) -> Play:
    return lambda client: client.sendall("".join(f"{line}\n" for line in lines).encode("latin-1"))


DIED = wire.Lost("the process that speaks with it has died")
CONNECTED = f"1 connected {OWN}"
BEGUN = (CONNECTED, f"1 challenge {CHALLENGE}")


def test_a_grant_arrives_as_it_was(told: Callable[..., list[Event]]) -> None:
    pair = IPv6Address("2001:db8:1::6"), IPv6Address("2001:db8:1::5")
    expected = [OWN, grant.Grant(OWN, THERE, *pair), DIED]
    assert told(says(*BEGUN, f"1 {GRANTED}")) == expected


def test_its_challenge_is_answered_and_no_other(told: Callable[..., list[Event]]) -> None:
    answers: list[bytes] = []

    def play(client: socket.socket) -> None:
        says(*BEGUN)(client)
        digest = wire.digest("itojun", CHALLENGE, "secret")
        if client.recv(4096) == f"digest 1 {digest}\n".encode():
            says("1 refused as it should be")(client)
        says(f"1 challenge {CHALLENGE}")(client)
        answers.append(client.recv(4096))

    assert told(play) == [OWN, wire.Refused("as it should be", at_greeting=True)]


def test_what_belongs_to_an_earlier_login_is_nothing(told: Callable[..., list[Event]]) -> None:
    assert told(says("0 connected 127.0.0.1", "7 lost x")) == [DIED]


# What is told, and at which point: before there is a connection, after it, behind the challenge.
LIES = {
    "no number": (*BEGUN, GRANTED),
    "no word": (*BEGUN, "1"),
    "an unknown word": (*BEGUN, "1 run reboot"),
    "a connection from nowhere": ("1 connected",),
    "a connection from a name": ("1 connected localhost",),
    "a connection over IPv6": ("1 connected ::1",),
    "a second connection": (*BEGUN, CONNECTED),
    "a challenge before there is a connection": (f"1 challenge {CHALLENGE}",),
    "a second challenge": (*BEGUN, f"1 challenge {CHALLENGE}"),
    "a short challenge": (CONNECTED, f"1 challenge {CHALLENGE[1:]}"),
    "a long challenge": (CONNECTED, f"1 challenge {CHALLENGE}0"),
    "a challenge that is no number": (CONNECTED, f"1 challenge {CHALLENGE[1:]}G"),
    "a challenge with something behind": (CONNECTED, f"1 challenge {CHALLENGE} KAME"),
    "a grant before the challenge": (CONNECTED, f"1 {GRANTED}"),
    "life before the login": (CONNECTED, "1 alive"),
    "no grant": (*BEGUN, "1 granted"),
    "words that end in a shell": (*BEGUN, f"1 granted {PAIR} 2001:db8:1::6;reboot 2001:db8:1::5"),
    "an option": (*BEGUN, f"1 granted {PAIR} -alias"),
    "another spelling": (*BEGUN, f"1 granted {PAIR} 2001:DB8:1::6 2001:db8:1::5"),
    "blanks": (*BEGUN, f"1 granted {OWN}  {THERE} 2001:db8:1::6 2001:db8:1::5"),
    "a word more": (*BEGUN, f"1 {GRANTED} welcome"),
    "three addresses": (*BEGUN, f"1 {GRANTED} 2001:db8:1::7"),
    "another source": (*BEGUN, f"1 granted 203.0.113.8 {THERE} 2001:db8:1::6 2001:db8:1::5"),
    "ourselves": (*BEGUN, f"1 granted {OWN} {OWN} 2001:db8:1::6 2001:db8:1::5"),
    "nowhere": (*BEGUN, f"1 granted {OWN} 0.0.0.0 2001:db8:1::6 2001:db8:1::5"),
    "no inner pair": (*BEGUN, f"1 granted {PAIR}"),
    "an inner address that is none": (*BEGUN, f"1 granted {PAIR} ::1 2001:db8:1::5"),
    "a prefix that cannot be": (*BEGUN, f"1 {GRANTED} fe80::/64"),
    "a port nobody asked for": (*BEGUN, f"1 {GRANTED} udp=4028"),
    "a key nobody asked for": (*BEGUN, f"1 {GRANTED} key={'0' * 32}"),
    "no address": (*BEGUN, "1 nat 2001:db8::1"),
    "a scope": (*BEGUN, f"1 granted {PAIR} 2001:db8:1::6%;reboot 2001:db8:1::5"),
    "a scope of a prefix": (*BEGUN, f"1 {GRANTED} 2001:db8:3c3::%x/48"),
    "a scope that is no ASCII": (*BEGUN, f"1 granted {PAIR} 2001:db8:1::6%\xe9 2001:db8:1::5"),
    "a carriage return": (*BEGUN, "1 trace a\rb"),
    "a long line": (*BEGUN, f"1 trace {'x' * 5000}"),
}


SECURED = "1 secured TLSv1.3 TLS_AES_256_GCM_SHA384"


def test_with_tls_a_challenge_counts_behind_it_only(told: Callable[..., list[Event]]) -> None:
    secured = f"{SECURED} {int(time.time()) + 86400 * 9 + 60}"
    said.clear()
    lines = (CONNECTED, secured, f"1 challenge {CHALLENGE}", f"1 {GRANTED}")
    _, granted, _ = told(says(*lines), tls=SERVER)
    assert isinstance(granted, grant.Grant)
    assert said == ["TLSv1.3, TLS_AES_256_GCM_SHA384, certificate valid for 9 days"]
    *_, last = told(says(*BEGUN), tls=SERVER)
    assert isinstance(last, Nonsense)


def test_a_pinned_certificate_may_have_expired_long_ago(
    told: Callable[..., list[Event]],
) -> None:
    told(says(CONNECTED, f"{SECURED} -86400"), tls=SERVER)
    assert re.search("certificate expired 2[0-9]{4} days ago$", said[-1])


@pytest.mark.parametrize(
    ("secured", "tls"),
    [
        (f"{SECURED} {'9' * 12}", ""),  # nobody has asked for it
        (f"{SECURED} {'9' * 400}", SERVER),
        (f"{SECURED} --1", SERVER),
        (f"{SECURED}", SERVER),
        (f"{SECURED} 1795780800 more", SERVER),
    ],
)
def test_what_is_no_word_of_tls_ends_it(
    told: Callable[..., list[Event]], secured: str, tls: str
) -> None:
    *_, last = told(says(CONNECTED, secured, f"1 challenge {CHALLENGE}"), tls=tls)
    assert isinstance(last, Nonsense)


def test_what_is_not_secure_is_told(told: Callable[..., list[Event]]) -> None:
    reason = "the server offers no TLS, on which --tls insists"
    lines = (CONNECTED, f"1 insecure {reason}")
    assert told(says(*lines), tls=SERVER) == [OWN, wire.Insecure(reason)]
    name = f"{'long.' * 50}org"
    reason = "the server's certificate is refused: Hostname mismatch, certificate is not valid for"
    reason += f" '{name}'; its fingerprint is sha256:{'0123456789abcdef' * 4}"
    assert told(says(CONNECTED, f"1 insecure {reason}"), tls=SERVER) == [OWN, wire.Insecure(reason)]
    [event] = told(says("1 insecure this Python has no TLS"), tls=SERVER)
    assert event == wire.Insecure("this Python has no TLS")


@pytest.mark.hazard(63)
def test_a_connection_from_an_address_that_is_not_ours_is_no_connection(
    told: Callable[..., list[Event]],
) -> None:
    """A lie, or an address that has gone in that moment; neither is used."""
    assert told(says("1 connected 198.51.100.77")) == [
        wire.Lost("our address 198.51.100.77 is gone")
    ]


@pytest.mark.parametrize("lines", LIES.values(), ids=LIES)
def test_what_cannot_be_meant_ends_it(
    told: Callable[..., list[Event]], lines: tuple[str, ...], figure: Figure
) -> None:
    figure("What a server says is read without privileges, and not believed", "lies", 1)
    *before, last = told(says(*lines))
    assert before == [OWN] * (lines[0] == CONNECTED)
    if lines[-1].startswith("1"):
        assert isinstance(last, Nonsense)
    else:
        assert last == DIED


def test_a_second_answer_ends_it(told: Callable[..., list[Event]]) -> None:
    _, granted, after = told(says(*BEGUN, f"1 {GRANTED}", f"1 {GRANTED}"))
    assert isinstance(granted, grant.Grant)
    assert isinstance(after, Nonsense)


def test_too_much_of_it_ends_it(told: Callable[..., list[Event]]) -> None:
    said.clear()
    [event] = told(says(*["1 trace again"] * 2000))
    assert event == Nonsense("the process that speaks with it told nonsense: too much of it")
    assert len(said) < speaker.TOLD_AT_ONCE + 10 * speaker.TOLD_PER_SECOND


def test_text_of_it_is_made_visible(told: Callable[..., list[Event]]) -> None:
    said.clear()
    lines = ("1 trace \x1b[2J", "1 remark \x07" + "x" * 300, "1 denied \x1b[31mno")
    assert told(says(*BEGUN, *lines)) == [OWN, wire.Refused("\\x1b[31mno", at_greeting=False)]
    assert said == ["\\x1b[2J", "\\x07" + "x" * 196 + "..."]


def test_one_that_only_closes_its_end_is_ended(told: Callable[..., list[Event]]) -> None:
    def close(client: socket.socket) -> None:
        client.close()
        signal.pause()

    assert told(close) == [DIED]


@pytest.mark.parametrize("lines", [(), BEGUN, (*BEGUN, f"1 {GRANTED}", "1 alive")])
def test_one_that_hangs_is_ended(
    told: Callable[..., list[Event]], monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...]
) -> None:
    """Before the connection, at the login, and while the tunnel is up."""
    for module, name in (
        (speaker, "PATIENCE"),
        (speaker, "SILENCE"),
        (conversation, "CONNECT_TIME"),
        (wire, "LOGIN_TIME"),
    ):
        monkeypatch.setattr(module, name, 0.2)

    def hang(client: socket.socket) -> None:
        says(*lines)(client)
        signal.pause()

    *_, last = told(hang)
    assert last == wire.Lost("no answer from the process that speaks with it")


@pytest.mark.hazard(63)
def test_one_that_talks_and_does_not_ping_is_ended(
    told: Callable[..., list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each ping we see whether packets pass: without any nobody would notice that none do."""
    monkeypatch.setattr(speaker, "SILENCE", 0.5)

    def talk(client: socket.socket) -> None:
        says(*BEGUN, f"1 {GRANTED}", "1 alive")(client)
        while True:
            says("1 trace << +OK hi, happy to hear from you")(client)
            time.sleep(0.1)

    *_, last = told(talk)
    assert last == wire.Lost("no answer from the process that speaks with it")


# --- what it does -----------------------------------------------------------------------------


def test_a_request_arrives_as_it_was_and_the_password_never() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    here, port = server.getsockname()
    wanted = Login(IPv4Address(here), port, "itojun", "network", True, 4028, 0, False, False)
    made = Speaker(None, said.append, said.append)
    try:
        made.login(wanted, " a b:c\udcff " + "x" * 70_000)
        accepted, _ = server.accept()
        accepted.sendall(f"+OK {CHALLENGE} KAME tunnel server\r\n".encode())
        reader = accepted.makefile("rb")
        process = threading.Thread(target=lambda: said.append(str(next(events(made)))))
        assert next(events(made)) == IPv4Address(here)
        process.start()
        answer = wire.digest("itojun", CHALLENGE, " a b:c\udcff " + "x" * 70_000)
        assert reader.readline() == f"tunnel itojun {answer} network udp=0\r\n".encode()
        accepted.sendall(b"-ERR that will do\r\n")
        process.join()
        assert "that will do" in said[-1]
    finally:
        made.end()
        server.close()
        accepted.close()
        reader.close()


def test_a_python_that_has_gone_is_told_and_one_that_is_back_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As while a package is upgraded."""
    made = Speaker(None, said.append, said.append)
    wanted = Login(OWN, 1, "itojun", "host", False, None, None, False, False)
    made.end()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "python"))
        with pytest.raises(FileNotFoundError):
            made.login(wanted, "")
    made.login(wanted, "")
    assert list(events(made)) == [wire.Lost("Connection refused")]
    made.end()


@pytest.mark.parametrize("again", [False, True])
def test_a_server_that_is_not_there_is_told(again: bool) -> None:
    """By the first process, and by one that has taken its place."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here, port = server.getsockname()
    made = Speaker(None, said.append, said.append)
    try:
        if again:
            made.end()
        made.login(
            Login(IPv4Address(here), port, "itojun", "host", False, None, None, False, False), ""
        )
        assert list(events(made)) == [wire.Lost("Connection refused")]
    finally:
        made.end()
