"""The server with a certificate: who speaks TLS, who cannot, and who wants to do harm with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from dtcp import __version__, wire

from lab import SLOW
from lab.internet import Internet
from lab.machine import machine
from tests.certificates import Authority, Certificate, self_signed
from tests.running import PREFIX, ROOT, Program, Talker, serve, set_users, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.parametrize("release", ["15.1"], indirect=True)]

CONFIG = "/usr/local/etc/dtcps.conf"
PEM, KEY = "/usr/local/etc/dtcps.pem", "/usr/local/etc/dtcps.key"
WITH_TLS = f"tls-certificate = {PEM}\ntls-key = {KEY}\n"
DTCPS = [sys.executable, str(ROOT / "dtcps.py")]

GREETING = rf"\+OK [0-9A-F]{{32}} dtcps {re.escape(__version__)} tunnel server"
UP = "+OK 203.0.113.7 192.0.2.1 2001:db8:1::6 2001:db8:1::5"
WRONG = f"-ERR {wire.BAD_COMMAND}"


class Talk:
    """tests/tls_talk.py on the client host."""

    def __init__(self, net: Internet, *words: str, source: str = "203.0.113.7") -> None:
        self.process = net.client.popen(
            [sys.executable, str(ROOT / "tests/tls_talk.py"), "192.0.2.1", source, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def tell(self, *words: str) -> None:
        """Have it do more."""
        assert self.process.stdin is not None
        self.process.stdin.writelines(f"{word}\n" for word in words)
        self.process.stdin.flush()

    def rest(self) -> list[str]:
        """All other lines, and its end."""
        out, error = self.process.communicate()
        assert not error
        return out.splitlines()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()


def talk(net: Internet, *words: str) -> list[str]:
    """What comes of these words."""
    with Talk(net, *words) as each:
        return each.rest()


def install(net: Internet, certificate: Certificate, more: str = "") -> None:
    """Have dtcps.conf name this certificate."""
    net.server.write(PEM, certificate.path.read_text())
    net.server.write(KEY, certificate.key.read_text())
    net.server.write(CONFIG, WITH_TLS + more)


def reload(net: Internet) -> subprocess.CompletedProcess[str]:
    return net.server.run([*DTCPS, "--reload"], check=False, timeout=60)


def about_tls(server: Program) -> list[str]:
    """What the log has about TLS, without what the trace has."""
    return [
        line for line in server.lines if "TLS" in line and not re.search(r" (<<|>>|TLSv\S+) ", line)
    ]


def no_tunnels(net: Internet) -> bool:
    return "gif" not in net.server.run(["ifconfig", "-l"]).stdout


# --- who can, and who cannot ------------------------------------------------------------------


def test_without_a_certificate_nothing_is_different(net: Internet) -> None:
    with serve(net) as server:
        greeting, *answers = talk(net, "greeting", "stls", "say=help", "line", "say=quit", "line")
        assert re.fullmatch(GREETING, greeting)
        assert answers == [WRONG, f"+OK {wire.HELP}", f"+OK {wire.BYE}"]
        assert server.end() == 0
        assert not about_tls(server)


def test_without_a_certificate_ssl_is_not_imported(net: Internet, tmp_path: Path) -> None:
    set_users(net.server, "itojun:secret\n")
    for option in ("--version", "--check", "--help"):
        with Program(net.server, "tests/imported", DTCPS[1], option) as program:
            assert program.status() == 0
            assert program.lines == ["imported:"]
    with Program(net.server, "tests/imported", DTCPS[1], "-D", PREFIX) as server:
        server.wait_for("listening")
        with Talker(net, "itojun", "secret", "host") as user:
            assert user.answer == UP
            assert server.end() == 0
        assert server.lines[-1] == "imported:"
    install(net, self_signed(tmp_path))
    with Program(net.server, "tests/imported", DTCPS[1], "--check") as program:
        assert program.status() == 0
        assert program.lines == ["imported: _ssl dtcp.tls ssl"]


@pytest.mark.parametrize("version", ["TLSv1.3", "TLSv1.2"])
def test_a_login_over_tls(net: Internet, tmp_path: Path, version: str) -> None:
    install(net, self_signed(tmp_path))
    words = ["old"] if version == "TLSv1.2" else []
    words += ["greeting", "say=help", "line", "stls", "greeting", "say=help", "line", "say=stls"]
    words += ["line", "login=itojun:wrong:host", "login=itojun:secret:host", "say=stls", "line"]
    with serve(net) as server, Talk(net, *words) as user:
        first = user.line()
        assert re.fullmatch(f"{GREETING} STLS", first)
        assert [user.line(), user.line()] == [f"+OK {wire.HELP} STLS", version]
        second = user.line()
        assert re.fullmatch(GREETING, second)
        assert second.split()[1] != first.split()[1]
        assert [user.line() for _ in range(5)] == [
            *(f"+OK {wire.HELP}", WRONG),  # TLS within TLS
            *(f"-ERR {wire.BAD_LOGIN}", UP),
            WRONG,
        ]
        assert re.search(rf"203\.0\.113\.7:\d+ {version} \w+", server.wait_for(version))
        assert server.wait_for("tunnel itojun").endswith(f"<< tunnel itojun {wire.MASK} host")
        user.tell("say=ping", "line", "say=quit", "line", "end")
        # It would complain of an end without a word of TLS.
        assert user.rest() == [f"+OK {wire.PONG}", f"+OK {wire.BYE}", "end"]
        server.wait_for("itojun: down: the client said quit")
        wait_until("no tunnel is left", lambda: no_tunnels(net))
        assert not about_tls(server)
        assert server.end() == 0


def test_who_does_not_know_tls_logs_in_as_ever(net: Internet, tmp_path: Path) -> None:
    install(net, self_signed(tmp_path))
    words = ("greeting", "login=itojun:secret:host", "stls", "say=ping", "line")
    with serve(net) as server, Talk(net, *words) as user:
        user.line()
        assert [user.line() for _ in range(3)] == [UP, WRONG, f"+OK {wire.PONG}"]
        assert server.end() == 0


def test_where_it_is_required_no_login_is_looked_at_without(net: Internet, tmp_path: Path) -> None:
    install(net, self_signed(tmp_path), "tls-required = yes\n")
    login = "login=itojun:secret:host"
    with serve(net) as server:
        refused = f"-ERR {wire.TLS_REQUIRED}"
        assert talk(net, "greeting", login, login, login, "end")[1:] == [*[refused] * 3, "end"]
        # Nobody is to wait afterwards for what was not looked at.
        answers = talk(net, "greeting", login, "stls", "greeting", login)
        assert answers[1::3] == [refused, UP]
        assert not any("failed" in line for line in server.lines)
        assert server.end() == 0


def test_the_end_of_the_server_is_told_under_tls(net: Internet, tmp_path: Path) -> None:
    install(net, self_signed(tmp_path))
    words = ("greeting", "stls", "greeting", "login=itojun:secret:host", "line", "end")
    with serve(net) as server, Talk(net, *words) as user:
        assert [user.line() for _ in range(4)][-1] == UP
        assert server.end() == 0
        assert user.rest() == [f"-ERR {wire.STOPPING}", "end"]


def test_a_daemon_speaks_tls(net: Internet, tmp_path: Path) -> None:
    """What was read before the fork(2) is used behind it."""
    install(net, self_signed(tmp_path))
    set_users(net.server, "itojun:secret\n")
    with Program(net.server, "dtcps", PREFIX) as server:
        assert server.status() == 0
        assert server.lines == []
    assert talk(net, "greeting", "stls", "greeting", "login=itojun:secret:host")[-1] == UP
    pid = net.server.read("/var/run/dtcps.pid").strip()
    net.server.run(["kill", pid])
    wait_until("the daemon is gone", lambda: int(pid) not in net.server.processes())


# --- who wants to do harm ---------------------------------------------------------------------


@pytest.mark.hazard(83)
def test_what_is_injected_before_the_handshake_is_not_done(net: Internet, tmp_path: Path) -> None:
    """CVE-2011-0411: it would be taken for said under TLS."""
    install(net, self_signed(tmp_path))
    injected = b"stls\r\nping\r\n"
    with serve(net) as server:
        for data in (injected, b"STLS\n\0", b"stls\r\n\x16\x03\x01"):
            assert talk(net, "greeting", f"raw={data.hex()}", "line", "end")[1:] == [WRONG, "end"]
        line = "dtcps: 203.0.113.7: data before the TLS handshake"
        wait_until("told", lambda: about_tls(server) == [line] * 3)
        assert not any("<< ping" in line for line in server.lines)
        assert server.end() == 0


@pytest.mark.hazard(83)
def test_who_stalls_is_closed_and_nobody_waits_for_him(net: Internet, tmp_path: Path) -> None:
    install(net, self_signed(tmp_path))
    set_users(net.server, "itojun:secret\n")
    time_out = f"wire.AUTH_TIME={6 * SLOW}"
    begun = ("greeting", "say=stls", "line")
    # And how many lines come before it stalls.
    stalls = [
        (("greeting", "line"), 1),
        (begun, 2),
        ((*begun, "half"), 2),
        ((*begun, "hello"), 2),
        (("greeting", "stls", "greeting", "line"), 3),
    ]
    with Program(net.server, "tests/hasty", time_out, "dtcps", "-d", PREFIX) as server:
        server.wait_for("listening")
        with ExitStack() as stack:
            idle = [
                (stack.enter_context(Talk(net, *words, "end")), count) for words, count in stalls
            ]
            assert all([each.line() for _ in range(count)] for each, count in idle)
            with Talk(net, "greeting", "stls", "greeting", "login=itojun:secret:host") as user:
                assert [user.line() for _ in range(4)][-1] == UP
                rests = [each.rest() for each, _ in idle]
                user.tell("say=ping", "line")
                assert user.line() == f"+OK {wire.PONG}"
        late = [f"-ERR {wire.TIMED_OUT}", "end"]
        assert rests == [late, *[["end"]] * 3, late]
        line = "dtcps: 203.0.113.7: the TLS handshake was not finished: timed out"
        assert about_tls(server) == [line] * 3
        assert server.end() == 0


@pytest.mark.hazard(83)
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("say=stls", "line", "raw=" + b"GET / HTTP/1.1\r\n\r\n".hex()), "handshake has failed: "),
        (("say=stls", "line", "raw=" + bytes(range(256)).hex()), "handshake has failed: "),
        (("say=stls", "line", "raw=16030100050100000100"), "handshake has failed: "),
        (("stls", "raw=1703030005" + "00" * 5), "TLS has failed: "),
        (("stls", "raw=" + "00" * 5), "TLS has failed: "),
    ],
)
def test_garbage(net: Internet, tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    install(net, self_signed(tmp_path))
    with serve(net) as server, Talk(net, "greeting", *words) as rude:
        (line,) = [server.wait_for(why)]
        assert re.fullmatch(rf"dtcps: 203\.0\.113\.7: [\w ]*{why}[\w ]+", line)
        with Talk(net, "greeting", "stls", "greeting", "login=itojun:secret:host") as user:
            assert [user.line() for _ in range(4)][-1] == UP
        rude.line()
        assert about_tls(server) == [line]
        assert server.end() == 0


@pytest.mark.hazard(83)
@pytest.mark.parametrize("words", [(), ("half",), ("hello",)])
def test_an_early_end(net: Internet, tmp_path: Path, words: tuple[str, ...]) -> None:
    install(net, self_signed(tmp_path))
    with serve(net) as server:
        descriptors = machine.costs(server.pid)[0]
        talk(net, "greeting", "say=stls", "line", *words, "close")
        line = server.wait_for("the TLS handshake was not finished: ")
        assert "203.0.113.7: " in line
        wait_until("closed", lambda: machine.costs(server.pid)[0] == descriptors)
        assert about_tls(server) == [line]
        assert server.end() == 0


@pytest.mark.hazard(83)
def test_renegotiation_is_the_end(net: Internet, tmp_path: Path) -> None:
    install(net, self_signed(tmp_path))
    with serve(net) as server:
        assert talk(net, "greeting", "say=stls", "line", "renegotiate")[-1] == "renegotiated"
        line = server.wait_for("TLS has failed")
        assert line == "dtcps: 203.0.113.7: TLS has failed: no renegotiation"
        assert about_tls(server) == [line]
        assert server.end() == 0


MANY = """
import ssl, socket, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
for number in range(int(sys.argv[1])):
    with socket.create_connection(("192.0.2.1", 20200), 30) as sock:
        sock.recv(4096); sock.sendall(b"stls\\r\\n"); sock.recv(4096)
        if number % 3 == 0:
            sock.sendall(b"\\x16\\x03\\x01\\x00\\xc8\\x01" + bytes(number % 100))  # no more comes
        elif number % 3 == 1:
            with context.wrap_socket(sock) as secured:
                secured.recv(4096)
        else:
            with context.wrap_socket(sock) as secured:
                secured.recv(4096); secured.sendall(b"quit\\r\\n")
                while secured.recv(4096): pass
"""


@pytest.mark.hazard(83)
def test_handshakes_leave_nothing_in_memory(net: Internet, tmp_path: Path) -> None:
    install(net, self_signed(tmp_path))
    many = [sys.executable, "-c", MANY]
    with serve(net) as server:
        descriptors = machine.costs(server.pid)[0]
        net.client.run([*many, "150"], timeout=120)
        memory = machine.costs(server.pid)[2]
        net.client.run([*many, "450"], timeout=240)
        wait_until("closed", lambda: machine.costs(server.pid)[0] == descriptors)
        # KB; that would be 14 for each.
        assert machine.costs(server.pid)[2] < memory + 6144
        assert server.end() == 0


# --- the certificate --------------------------------------------------------------------------


def test_a_new_one_is_taken_and_a_broken_one_is_not(net: Internet, tmp_path: Path) -> None:
    first, second = self_signed(tmp_path, "one.example.org"), self_signed(tmp_path)

    def shown() -> str:
        return talk(net, "greeting", "stls", "fingerprint")[-1]

    words = ("greeting", "stls", "greeting", "login=itojun:secret:host")
    with serve(net) as server, Talk(net, "greeting") as before:
        assert re.fullmatch(GREETING, before.line())
        install(net, first)
        assert reload(net).returncode == 0
        before.tell("stls")
        assert before.line() == WRONG
        assert f"sha256:{shown()}" == first.fingerprint
        with Talk(net, *words) as old, Talk(net, "greeting") as offered:
            assert [old.line() for _ in range(4)][-1] == UP
            assert offered.line().endswith(" STLS")
            install(net, second)
            assert reload(net).returncode == 0
            assert f"sha256:{shown()}" == second.fingerprint
            old.tell("say=ping", "line", "fingerprint")
            assert old.line() == f"+OK {wire.PONG}"
            assert f"sha256:{old.line()}" == first.fingerprint
            net.server.write(KEY, first.key.read_text())
            done = reload(net)
            why = f"nothing was changed: {KEY}: not the key of {PEM}"
            assert (done.returncode, done.stderr) == (1, f"dtcps: {why}\n")
            assert [line for line in server.lines if "nothing was" in line] == [f"dtcps: {why}"]
            assert f"sha256:{shown()}" == second.fingerprint
            net.server.run(["rm", CONFIG])
            assert reload(net).returncode == 0
            assert re.fullmatch(GREETING, talk(net, "greeting")[0])
            offered.tell("stls", "greeting")
            assert offered.line() == "TLSv1.3"
            assert re.fullmatch(GREETING, offered.line())
            old.tell("say=ping", "line")
            assert old.line() == f"+OK {wire.PONG}"
        assert server.end() == 0


FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode())"


def test_one_that_is_about_to_expire_is_told(net: Internet, tmp_path: Path) -> None:
    expires = int(time.time()) + 5 * 86400 + 43200
    ends = time.strftime("%Y%m%d%H%M%SZ", time.gmtime(expires))
    install(net, Authority(tmp_path).certificate(ends=ends), "metrics = 127.0.0.1:9123\n")
    text = "the certificate of tls-certificate expires in 5 days"
    assert net.server.run([*DTCPS, "--fingerprint"]).stderr == ""
    with serve(net) as server:
        assert f"dtcps: {text}" in server.lines
        assert net.server.run([*DTCPS, "--status"]).stdout.splitlines()[1:] == [text]
        told = json.loads(net.server.run([*DTCPS, "--status", "--json"]).stdout)
        assert told["certificate_expires"] == expires
        url = "http://127.0.0.1:9123/metrics"
        answer = net.server.run([sys.executable, "-c", FETCH, url]).stdout
        assert f"dtcps_certificate_expiry_time_seconds {expires}.0" in answer.splitlines()
        assert reload(net).returncode == 0
        assert server.lines.count(f"dtcps: {text}") == 2
        install(net, self_signed(tmp_path))
        assert reload(net).returncode == 0
        assert server.lines.count(f"dtcps: {text}") == 2
        assert len(net.server.run([*DTCPS, "--status"]).stdout.splitlines()) == 1
        assert server.end() == 0


def test_and_told_again_the_next_day(net: Internet, tmp_path: Path) -> None:
    ends = time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() - 86400))
    install(net, Authority(tmp_path).certificate(ends=ends))
    set_users(net.server, "itojun:secret\n")
    told = "dtcps: the certificate of tls-certificate has expired"
    words = ("/run/tomorrow", DTCPS[1], "-D", PREFIX)
    with Program(net.server, "tests/another_day", *words) as server:
        server.wait_for("listening")
        assert server.lines.count(told) == 1
        net.server.write("/run/tomorrow", "")
        wait_until("told again", lambda: server.lines.count(told) == 2)
        assert server.end() == 0
        assert server.lines.count(told) == 2
