"""How conversations end: read to their end, handed over, and never overtaken by the next login."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from dtcp import wire
from dtcp.client import conversation, ending, speaker
from dtcp.client.conversation import Login
from dtcp.client.ending import Ending
from dtcp.client.speaker import Speaker
from dtcp.grant import Grant

from lab.internet import FAR6, SERVER_NAME, Internet
from lab.machine import machine
from tests.running import FAR, PREFIX, Program, identity, login, ping, serve, wait_until

CHALLENGE = "0B1517C87D516A5FA65BED722D51A04F"
OWN, HERE = "127.0.0.1", "127.0.0.2"
KAME_SAYS, WE_SAY = "KAME tunnel server", "dtcps 0.1.0 tunnel server"
SOON = 2.0  # seconds, for what nobody waits for: less than any of the waits


class Server:
    """A server in this process, which the test plays itself."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HERE, 0))
        self._listener.settimeout(10)
        self._peers: list[Peer] = []
        self.made = Speaker(None, lambda line: None, lambda line: None)

    def close(self) -> None:
        for peer in self._peers:
            peer.end()
        self.made.end()
        self._listener.close()

    def begin(self, *, udp: int | None = None, passing: bool = False) -> None:
        """Have the client begin with a login."""
        port = self._listener.getsockname()[1]
        wanted = Login(IPv4Address(HERE), port, "itojun", "host", False, udp, udp, True, passing)
        self.made.login(wanted, "secret")

    def accept(self) -> Peer:
        sock, _ = self._listener.accept()
        sock.settimeout(10)
        self._peers.append(peer := Peer(sock))
        return peer

    def up(self, greeting: str) -> Peer:
        """Log in, and have a tunnel; the connection."""
        self.begin()
        peer = self.accept()
        peer.greet(self, greeting)
        peer.grant(self)
        return peer

    def until(self, kind: type) -> None:
        """Wait for an event; nothing else may come before."""
        end = time.monotonic() + 10
        while (event := self.made.event()) is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        assert isinstance(event, kind)


class Peer:
    """The server's end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._lines = sock.makefile("rb")

    def say(self, text: str) -> None:
        self.socket.sendall(text.encode())

    def hear(self) -> str:
        """A line; nothing: the client has closed its half."""
        return self._lines.readline().decode().rstrip("\r\n")

    def greet(self, server: Server, greeting: str) -> None:
        self.say(f"+OK {CHALLENGE} {greeting}\r\n")
        server.until(IPv4Address)

    def grant(self, server: Server, more: str = "") -> str:
        """Grant what the client asks for; what that was."""
        tunnel: list[str] = []
        hears = threading.Thread(target=lambda: tunnel.append(self.hear()))
        hears.start()
        while hears.is_alive():
            assert server.made.event() is None
            hears.join(0.002)
        assert tunnel[0].startswith("tunnel itojun")
        self.say(f"+OK {OWN} {HERE} {PREFIX}6 {PREFIX}5{more}\r\n")
        server.until(Grant)
        return tunnel[0]

    def is_quiet(self, seconds: float) -> bool:
        """Whether the client neither says anything nor ends."""
        self.socket.settimeout(seconds)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(10)
        return False

    def is_read(self) -> bool:
        """Whether the client still takes what we say."""
        try:
            for _ in range(3):
                self.say("+OK hi\r\n")
                time.sleep(0.02)
        except ConnectionError:
            return False
        return True

    def end(self) -> None:
        self._lines.close()
        self.socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_the_goodbye_is_read_to_the_end(server: Server) -> None:
    peer = server.up(KAME_SAYS)
    server.made.quit()
    assert (peer.hear(), peer.hear()) == ("quit", "")
    for word in ("+OK ", "see ", "you ", "soon.", "\r\n"):
        peer.say(word)
        time.sleep(0.02)
    assert server.made.event() is None
    assert peer.is_read()
    peer.end()
    began = time.monotonic()
    server.until(wire.Lost)
    assert time.monotonic() - began < SOON


def test_the_goodbye_has_a_limit(server: Server) -> None:
    server.up(KAME_SAYS)
    began = time.monotonic()
    server.made.quit()
    server.until(wire.Lost)
    took = time.monotonic() - began
    assert conversation.QUIT_TIME <= took < conversation.QUIT_TIME + SOON
    server.made.end()
    assert time.monotonic() - began < conversation.QUIT_TIME + SOON


@pytest.mark.parametrize("leaves", [True, False], ids=["lost", "told to"])
def test_a_login_waits_for_the_end_of_the_one_before(server: Server, leaves: bool) -> None:
    peer = server.up(KAME_SAYS)
    if leaves:
        server.made.leave()
    server.begin()
    assert (peer.hear(), peer.hear()) == ("quit", "")
    peer.say("+OK see you soon.\r\n")
    server._listener.settimeout(0.5)
    with pytest.raises(TimeoutError):
        server.accept()
    server._listener.settimeout(SOON)
    peer.end()
    server.accept()


def test_but_not_for_ever_and_goes_on_reading(server: Server) -> None:
    peer = server.up(KAME_SAYS)
    began = time.monotonic()
    server.made.leave()
    server.begin()
    again = server.accept()
    took = time.monotonic() - began
    assert conversation.END_TIME <= took < conversation.END_TIME + SOON
    again.greet(server, KAME_SAYS)
    again.grant(server)
    # Its late words find somebody who takes them, for a reset would end its cleaning up.
    assert (peer.hear(), peer.hear()) == ("quit", "")
    assert peer.is_read()
    # But no longer than there is room: there are descriptors for two connections.
    server.begin()
    assert (again.hear(), again.hear()) == ("quit", "")
    third = server.accept()
    third.greet(server, KAME_SAYS)
    assert not peer.is_read()
    assert again.is_read()


def test_nor_at_all_when_the_server_has_ended_already(server: Server) -> None:
    server.up(KAME_SAYS).end()
    server.until(wire.Lost)
    began = time.monotonic()
    server.made.leave()
    server.begin()
    server.accept()
    assert time.monotonic() - began < SOON


def test_nor_when_our_address_has_gone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = server.up(KAME_SAYS)
    monkeypatch.setattr(speaker, "own_address", lambda to: IPv4Address("127.0.0.9"))
    began = time.monotonic()
    server.made.leave()
    server.begin()
    server.accept()
    assert time.monotonic() - began < SOON
    assert (peer.hear(), peer.hear()) == ("quit", "")


def test_a_server_of_ours_may_hand_the_tunnel_over(server: Server) -> None:
    """It hears nothing on the old connection, not even its end, until the new one has the grant."""
    peer = server.up(WE_SAY)
    server.begin()
    again = server.accept()
    again.greet(server, WE_SAY)
    assert peer.is_quiet(0.3)
    again.grant(server)
    assert peer.hear() == ""
    server.made.leave()
    assert (again.hear(), again.hear()) == ("quit", "")


@pytest.mark.hazard(70)
@pytest.mark.parametrize("passing", [True, False])
def test_it_is_told_the_key_of_a_tunnel_through_which_packets_pass(
    server: Server, passing: bool
) -> None:
    """Not of one that is lost, though packets have passed."""
    old, new = (f" udp=4028 key={digit * 32}" for digit in "ab")
    server.begin(udp=4028)
    first = server.accept()
    first.greet(server, WE_SAY)
    assert first.grant(server, old).endswith(" host udp=4028")
    server.begin(udp=4028, passing=passing)
    second = server.accept()
    second.greet(server, WE_SAY)
    assert second.grant(server, new).endswith(f" key={'a' * 32}") == passing
    server.made.leave()
    server.begin(udp=4028, passing=passing)
    third = server.accept()
    third.greet(server, WE_SAY)
    assert third.grant(server, old).endswith(" host udp=4028")


def test_and_when_it_does_not_it_hears_a_goodbye(server: Server) -> None:
    peer = server.up(WE_SAY)
    server.begin()
    again = server.accept()
    again.say("-ERR busy, try again later\r\n")
    again.end()
    server.until(IPv4Address)
    server.until(wire.Refused)
    assert peer.is_quiet(0.1)
    server.made.leave()
    assert (peer.hear(), peer.hear()) == ("quit", "")


@pytest.mark.parametrize(
    ("greeting", "ours"),
    [
        (WE_SAY, True),
        ("dtcps 12.3b1 tunnel server", True),
        ("dtcps tunnel server", False),
        ("dtcps 0.1.0 tunnel server ready", False),
        ("a dtcps 0.1.0 tunnel server", False),
        ("dtcps 0 1 tunnel server", False),
        (KAME_SAYS, False),
        ("", False),
    ],
)
def test_which_greeting_is_ours(greeting: str, ours: bool) -> None:
    client = wire.Client("itojun", "host", 0.0)
    client.receive(f"+OK {CHALLENGE} {greeting}\r\n".encode(), 0.0)
    assert client.hands_over is ours


def test_a_killed_client_leaves_somebody_who_reads_to_the_end(server: Server) -> None:
    peer = server.up(KAME_SAYS)
    made = server.made
    assert made._socket is not None
    made._socket.close()
    assert (peer.hear(), peer.hear()) == ("quit", "")
    assert peer.is_read()
    began = time.monotonic()
    os.waitpid(made.pid, 0)
    assert time.monotonic() - began < conversation.QUIT_TIME + SOON
    made._socket = None


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    return ours, theirs


def test_whoever_does_not_stop_is_not_read_for_ever() -> None:
    ours, theirs = _pair()
    end = Ending(ours)
    theirs.setblocking(False)
    sent = 0
    with contextlib.suppress(ConnectionError), theirs:
        while not end.is_over():
            with contextlib.suppress(BlockingIOError):
                sent += theirs.send(bytes(4096))
            assert sent < 100 * ending.MOST
    assert ours.fileno() == -1


def test_a_peer_that_has_gone_leaves_nothing_to_shut_down() -> None:
    """ENOTCONN, on both systems, once the reset has come."""
    ours, theirs = _pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    time.sleep(0.05)
    assert Ending(ours, b"quit\r\n").is_over()
    assert ours.fileno() == -1


# --- with packets -----------------------------------------------------------------------------

USER, PASSWORD = "itojun", "secret"
KAME = ("kame", "--user", USER, "--password", PASSWORD, "--prefix", PREFIX, "--gifs", "4")
FAST = ("wire.PING_INTERVAL=1", "wire.PING_TIME=1", "client.conversation.CONNECT_TIME=2", "dtcpc")
HINT = "nothing has come back through the tunnel"


def _ups(client: Program) -> int:
    return sum("up after" in line for line in client.lines)


def _again(client: Program, number: int) -> None:
    """Have it log in again, and wait until it is up."""
    ups = _ups(client)
    client.send(number)
    wait_until("up again", lambda: _ups(client) > ups)


@pytest.mark.lab
@pytest.mark.parametrize("words", [("-t", "host"), ("-t", "host", "-U")], ids=["gif", "udp"])
def test_no_packet_is_lost_when_a_server_of_ours_hands_over(
    net: Internet, words: tuple[str, ...]
) -> None:
    name = "ng0" if "-U" in words else "gif0"
    with serve(net, *words[2:]) as server, login(net.client, *words) as client:
        client.wait_for("up after")
        wait_until("packets pass", lambda: ping(net.client))
        client.wait_for("packets pass")
        made = [identity(host, name) for host in (net.client, net.server)]
        seen = len(server.lines)
        flow = net.client.popen(["ping", "-n", "-i", "0.02", FAR], stdout=subprocess.PIPE)
        for _ in range(20):
            _again(client, signal.SIGHUP)
        time.sleep(0.1)
        flow.send_signal(signal.SIGINT)
        said, _ = flow.communicate(timeout=10)
        numbers = [int(each) for each in re.findall(r"icmp_seq=(\d+)", said)]
        assert len(numbers) > 50
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert made == [identity(host, name) for host in (net.client, net.server)]
        since = server.lines[seen:]
        assert sum(line.endswith("as it was") for line in since) == 20
        assert not any("quit" in line or ": down" in line for line in since)
        # Nor is anything left of the old connections.
        server.send(signal.SIGUSR1)
        server.wait_for("1 tunnels, 1 connections, 21 logins")
        assert client.end() == 0
        server.wait_for("itojun: down: the client said quit")
        assert server.end() == 0


@pytest.fixture
def kame(net: Internet) -> Iterator[Program]:
    """KAME's server, which leaves its tunnels to nobody, and no tunnel behind."""
    net.client.write("/usr/local/etc/dtcpc.auth", f"{SERVER_NAME}:{USER}:{PASSWORD}\n")
    with Program(net.server, "tests/servers", *KAME) as server:
        server.wait_for("^ready$")
        yield server
        assert "a thread died" not in server.lines


@pytest.mark.long
@pytest.mark.lab
@pytest.mark.hazard(54)
def test_no_login_overtakes_kames_cleaning_up(net: Internet, kame: Program) -> None:
    with login(net.client, "-l", "-t", "host") as client:
        client.wait_for("up after")
        for _ in range(20):
            assert ping(net.client, FAR6)
            _again(client, signal.SIGHUP)
        assert ping(net.client, FAR6)
        assert client.end() == 0
    wait_until("cleaned up", lambda: kame.lines.count("gif0 cleaned up") == 21)
    assert not any("gif1" in line for line in kame.lines)


@pytest.mark.lab
def test_nor_after_the_interface_was_removed(net: Internet, kame: Program) -> None:
    with login(net.client, "-l", "-t", "host") as client:
        client.wait_for("up after")
        client.wait_for("route -n monitor")
        net.client.run(["ifconfig", "gif0", "destroy"])
        wait_until("up again", lambda: _ups(client) == 2)
        assert ping(net.client, FAR6)
        assert client.end() == 0
    assert not any("gif1" in line for line in kame.lines)


@pytest.mark.lab
def test_nor_after_the_client_was_killed(net: Internet, kame: Program) -> None:
    """Or it says that nothing passes: the next one knows nothing of the connection before."""
    with login(net.client, "-l", "-t", "host") as client:
        client.wait_for("up after")
        client.end(signal.SIGKILL)
    with login(net.client, "-l", "-t", "host") as client:
        client.wait_for(f"packets pass|{HINT}", 30)
        assert client.end() == 0
    # Whoever outlived it has said goodbye, and read to the end.
    wait_until("cleaned up", lambda: sum("cleaned up" in line for line in kame.lines) == 2)


@pytest.mark.long
@pytest.mark.lab
@pytest.mark.hazard(54)
@pytest.mark.parametrize("tunnel_type", ["host", "tunnelonly"])
def test_after_a_black_hole_packets_pass_again(
    net: Internet, kame: Program, tunnel_type: str
) -> None:
    """KAME's server has the old tunnel until it hears of its end, which TCP sends again late."""
    words = (*FAST, "-dlu", USER, "-t", tunnel_type, SERVER_NAME)
    with Program(net.client, "tests/hasty", *words) as client:
        client.wait_for("packets pass")
        net.router.run(machine.drop(41))
        net.server.run(machine.refuse("tcp", 20200, ""))
        client.wait_for("lost: no answer to two pings")
        client.wait_for(
            "Connection timed out; does a packet filter on the way drop it.; trying again in [12]",
            20,
        )
        seen = len(client.lines)
        net.router.run(machine.accept_all())
        net.server.run(machine.accept_all())

        def is_proven() -> bool:
            return any("packets pass" in line for line in client.lines[seen:])

        wait_until("packets pass", is_proven, 120)
        # Without addresses they may pass through the old one, whose end TCP has yet to bring.
        wait_until("its end", lambda: "gif0 cleaned up" in kame.lines, 120)
        assert client.end() == 0
