"""The password: which files are trusted, how it is prompted for, and that it never leaks."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from dtcp import password
from dtcp.password import PasswordError

from lab.internet import SERVER_NAME, Internet
from lab.snapshot import difference
from tests.running import ROOT, Program, wait_until

SERVER, USER = "tunnel.example.org", "itojun"

# --- the file: what is in it ------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A password file's place, in a directory of our own."""
    path = tmp_path / "dtcpc.auth"
    path.touch(0o600)
    return path


def found(file: Path, server: str = SERVER, user: str = USER) -> str | None:
    return password.from_file(str(file), server, user)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (b"tunnel.example.org:itojun:secret\n", "secret"),
        (b"tunnel.example.org:itojun:secret", "secret"),
        (b"tunnel.example.org:itojun:a:b::c:\n", "a:b::c:"),
        (b"tunnel.example.org:itojun: two blanks  \n", " two blanks  "),
        (b"tunnel.example.org:itojun:#no comment\n", "#no comment"),
        (b"tunnel.example.org:itojun:tab\tand \x0b\x0c\x85\xa0\n", "tab\tand \x0b\x0c\udc85\udca0"),
        (b"tunnel.example.org:itojun:p\xc3\xa4ss\n", "p\xe4ss"),
        (b"tunnel.example.org:itojun:p\xe4ss\n", "p\udce4ss"),  # not UTF-8: its bytes count
        (b"# who:what:why\n\n   \n\t\ntunnel.example.org:itojun:secret\n", "secret"),
        (b"other:itojun:1\ntunnel.example.org:jun:2\ntunnel.example.org:itojun:3\n", "3"),
        (b"tunnel.example.org:itojun:first\ntunnel.example.org:itojun:second\n", "first"),
        (b"192.0.2.1:itojun:1\nTUNNEL.example.org:itojun:2\n", None),
        (b" tunnel.example.org:itojun:1\ntunnel.example.org: itojun:2\n", None),
        (b"tunnel.example.org.:itojun:1\ntunnel.example.org:ITOJUN:2\n", None),
        (b"#tunnel.example.org:itojun:secret\n", None),
        (b"", None),
    ],
)
def test_the_line_of_server_and_user_is_found(file: Path, text: bytes, secret: str | None) -> None:
    file.write_bytes(text)
    assert found(file) == secret


@pytest.mark.hazard(30)
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"tunnel.example.org:itojun:secret\r\n", "line 1 ends in a carriage return"),
        (b"# x\n\ntunnel.example.org:itojun:\n", "line 3 has an empty password"),
        (b"tunnel.example.org:itojun secret\n", "line 1 is not server:user:password"),
        (b"ok:ok:ok\nsecret\n", "line 2 is not server:user:password"),
        (b" # secret\n", "line 1 is not server:user:password"),
        (b"\xef\xbb\xbftunnel.example.org:itojun:secret\n", "begins with a byte order mark"),
        (b"x:y:" + b"secret" * 200_000 + b"\n", "too large for a password file"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_without_its_text(
    file: Path, text: bytes, why: str
) -> None:
    file.write_bytes(text)
    with pytest.raises(PasswordError) as caught:
        found(file)
    assert str(caught.value).startswith(f"{file}: {why}")
    assert "secret" not in repr(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.hazard(30)
def test_the_largest_file_is_a_mebibyte(file: Path) -> None:
    line = b"tunnel.example.org:itojun:secret\n"
    comment = b"#" * (password.LARGEST - len(line) - 1) + b"\n"
    file.write_bytes(comment + line)
    assert found(file) == "secret"
    file.write_bytes(b"#" + comment + line)
    with pytest.raises(PasswordError, match="too large"):
        found(file)


# --- the file: who could have written or read it ----------------------------------------------

LINE = "tunnel.example.org:itojun:secret\n"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_that_only_its_owner_can_use_is_believed(file: Path, mode: int) -> None:
    file.write_text(LINE)
    file.chmod(mode)
    assert found(file) == "secret"


@pytest.mark.hazard(30)
@pytest.mark.parametrize(
    ("mode", "how"),
    [
        (0o640, "readable"),
        (0o604, "readable"),
        (0o644, "readable"),
        (0o620, "accessible"),
        (0o602, "accessible"),
        (0o610, "accessible"),
        (0o601, "accessible"),
    ],
)
def test_a_file_that_others_can_use_is_refused_with_the_remedy(
    file: Path, mode: int, how: str
) -> None:
    file.write_text(LINE)
    file.chmod(mode)
    with pytest.raises(PasswordError) as caught:
        found(file)
    assert str(caught.value) == (
        f"{file}: {how} by others; chmod 600 {file}, if it is the password file"
    )


@pytest.mark.hazard(30)
@pytest.mark.usefixtures("enclosed")
def test_a_file_of_somebody_else_is_refused_with_the_remedy(file: Path) -> None:
    file.write_text(LINE)
    os.chown(file, 4321, 4321)
    with pytest.raises(PasswordError) as caught:
        found(file)
    assert str(caught.value) == f"{file}: belongs to somebody else; chown root {file}"


@pytest.fixture
def as_user(tmp_path: Path) -> Iterator[int]:
    """We are somebody else than root."""
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    os.seteuid(4321)
    yield 4321
    os.seteuid(0)


@pytest.mark.usefixtures("enclosed")
@pytest.mark.alone  # xdist's directories are closed to others
def test_a_user_may_have_a_file_of_his_own(file: Path, request: pytest.FixtureRequest) -> None:
    file.write_text(LINE)
    os.chown(file, 4321, 4321)
    request.getfixturevalue("as_user")
    assert found(file) == "secret"


@pytest.mark.usefixtures("enclosed")
def test_a_file_that_we_may_not_read_is_named(file: Path, request: pytest.FixtureRequest) -> None:
    file.write_text(LINE)
    request.getfixturevalue("as_user")
    with pytest.raises(PasswordError) as caught:
        found(file)
    assert str(caught.value) == f"{file}: Permission denied"


@pytest.mark.hazard(30)
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_directory_in_which_others_can_replace_the_file_is_refused(file: Path, mode: int) -> None:
    file.write_text(LINE)
    file.parent.chmod(mode)
    with pytest.raises(PasswordError) as caught:
        found(file)
    assert str(caught.value) == f"{file.parent}: writable by others; chmod go-w {file.parent}"


@pytest.mark.hazard(30)
def test_a_directory_of_somebody_is_refused(file: Path) -> None:
    file.write_text(LINE)
    os.chown(file.parent, 4321, 4321)
    with pytest.raises(PasswordError) as caught:
        found(file)
    assert str(caught.value) == (
        f"{file.parent}: belongs to somebody else; chown root {file.parent}"
    )


def test_a_directory_in_which_others_cannot_replace_it_will_do(file: Path) -> None:
    file.write_text(LINE)
    file.parent.chmod(0o1777)
    assert found(file) == "secret"


@pytest.mark.hazard(30)
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("link", "is a symbolic link"),
        ("dangling link", "is a symbolic link"),
        ("directory", "not a regular file"),
        ("pipe", "not a regular file"),
        ("socket", "No such device or address"),
        ("below a file", "Not a directory"),
    ],
)
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str, why: str) -> None:
    path = tmp_path / "dtcpc.auth"
    other = tmp_path / "other"
    other.touch(0o600)
    match kind:
        case "link":
            path.symlink_to(other)
        case "dangling link":
            path.symlink_to("nowhere")
        case "directory":
            path.mkdir(0o700)
        case "pipe":
            os.mkfifo(path, 0o600)
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
        case "below a file":
            path = other / "dtcpc.auth"
    before = os.listdir("/dev/fd")
    with pytest.raises(PasswordError) as caught:
        found(path)
    assert str(caught.value) == f"{path}: {why}"
    assert os.listdir("/dev/fd") == before


def test_a_file_that_is_not_there_is_another_matter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        found(tmp_path / "dtcpc.auth")


# --- the client, on a terminal ----------------------------------------------------------------

SECRET = "open $ESAME: %s"
PROMPT = f"Password of {USER} at {SERVER_NAME}: "
CLIENT = [sys.executable, str(ROOT / "dtcpc.py"), "-d", "--dry-run", "-u", USER, SERVER_NAME]

# A shell that survives what ends its command, and looks at the terminal before and after.
ON_TERMINAL = """
trap : INT TERM HUP
before=$(stty -g)
"$@"
echo "status $?"
test "$(stty -g)" = "$before" && echo terminal the same || echo terminal changed
"""


# A session of its own has no terminal.
WITHOUT_TERMINAL = [
    *(sys.executable, "-c"),
    "import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])",
]


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    """An internet whose server speaks as KAME's did; no client here may change anything."""
    with Internet() as internet:
        words = ["kame", "--user", USER, "--password", SECRET]
        with Program(internet.server, "tests/servers", *words) as server:
            server.wait_for("^ready")
            before = internet.client.snapshot()
            yield internet
            assert difference(before, internet.client.snapshot()) == []


class Terminal:
    """dtcpc on a real terminal, waiting for the password."""

    def __init__(self, net: Internet) -> None:
        self._net = net
        self._log = io.StringIO()
        argv = net.client.argv(["sh", "-c", ON_TERMINAL, "sh", *CLIENT])
        self.child = pexpect.spawn(argv[0], argv[1:], encoding="utf-8", timeout=15)
        self.child.logfile_read = self._log
        self.child.expect_exact(PROMPT)
        assert not self.child.getecho()

    @property
    def pid(self) -> int:
        """The client itself, and not the process that speaks for it, which it starts."""
        pid, _ = sorted(
            pid
            for pid, words in self._net.client.processes().items()
            if words.startswith(f"{CLIENT[0]} {CLIENT[1]}")
        )
        return pid

    def ends(self, status: int) -> str:
        """All that was shown, when it has ended with this status and left the terminal alone."""
        self.child.expect_exact(f"status {status}\r\n")
        self.child.expect_exact("terminal the same\r\n")
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self._log.getvalue().replace("\r\n", "\n")


@pytest.mark.lab
def test_the_password_is_asked_for_without_echo(net: Internet) -> None:
    terminal = Terminal(net)
    terminal.child.sendline(SECRET)
    said = terminal.ends(0)
    assert f">> tunnel {USER} ******** tunnelonly" in said
    assert "ifconfig gif create" in said  # it was the right one: there is a plan
    assert SECRET not in said


@pytest.mark.lab
def test_a_password_is_taken_as_it_is_typed(net: Internet) -> None:
    terminal = Terminal(net)
    terminal.child.send(SECRET[:4] + "\x7f" + SECRET[3:] + "\r")  # one letter taken back
    assert "ifconfig gif create" in terminal.ends(0)


@pytest.mark.lab
def test_a_wrong_password_is_refused_in_one_line(net: Internet) -> None:
    terminal = Terminal(net)
    terminal.child.sendline("sesame")
    said = terminal.ends(77)
    assert "sesame" not in said
    assert said.count("the server refuses: authentication failed\n") == 1


@pytest.mark.lab
def test_no_password_is_sent_when_none_is_typed(net: Internet) -> None:
    for keys in ("\r", "\x04"):
        terminal = Terminal(net)
        terminal.child.send(keys)
        said = terminal.ends(1)
        assert "dtcpc: no password given\n" in said
        assert "logging in" not in said


@pytest.mark.lab
def test_the_interrupt_key_ends_it_and_restores_the_terminal(net: Internet) -> None:
    terminal = Terminal(net)
    terminal.child.send("half a pass")
    terminal.child.sendintr()
    said = terminal.ends(0)
    assert "half" not in said
    assert "Traceback" not in said


@pytest.mark.hazard(25)
@pytest.mark.lab
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_it_and_restores_the_terminal(net: Internet, name: str) -> None:
    terminal = Terminal(net)
    net.client.run(["kill", "-s", name.removeprefix("SIG"), str(terminal.pid)])
    assert "Traceback" not in terminal.ends(0)


@pytest.mark.hazard(60)
@pytest.mark.lab
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGALRM"])
def test_a_signal_that_means_nothing_yet_leaves_the_prompt_alone(net: Internet, name: str) -> None:
    terminal = Terminal(net)
    net.client.run(["kill", "-s", name.removeprefix("SIG"), str(terminal.pid)])
    terminal.child.sendline(SECRET)
    assert "ifconfig gif create" in terminal.ends(0)


@pytest.mark.hazard(60)
@pytest.mark.lab
def test_sigquit_ends_it_and_restores_the_terminal(net: Internet) -> None:
    terminal = Terminal(net)
    net.client.run(["kill", "-s", "QUIT", str(terminal.pid)])
    assert "Traceback" not in terminal.ends(0)


@pytest.mark.lab
def test_a_terminal_that_hangs_up_ends_it_quietly(net: Internet) -> None:
    script = 'trap : HUP; "$@" 2>/run/said.log; echo $? >/run/status.log'
    argv = net.client.argv(["sh", "-c", script, "sh", *CLIENT])
    child = pexpect.spawn(argv[0], argv[1:], encoding="utf-8", timeout=15)
    child.expect_exact(PROMPT)
    os.close(child.child_fd)
    child.closed = True
    # Whichever it sees first: the signal, or that the terminal is gone.
    ended = ["grep", "-q", "^[01]$", "/run/status.log"]
    wait_until("the end", lambda: net.client.run(ended, check=False).returncode == 0)
    said = net.client.read("/run/said.log").splitlines()
    assert said[1:] in ([], ["dtcpc: no password: the terminal cannot be read"])


@pytest.mark.lab
def test_without_a_terminal_it_is_one_line_before_anything_is_sent(net: Internet) -> None:
    run = net.client.run([*WITHOUT_TERMINAL, *CLIENT], check=False)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "dtcpc: no password, and no terminal to ask on;"
        " add a line tunnel.example.org:itojun:PASSWORD to /usr/local/etc/dtcpc.auth (mode 600)"
    )
    assert "logging in" not in run.stderr
    assert run.stdout == ""


@pytest.mark.lab
def test_a_password_in_the_file_is_not_asked_for(net: Internet) -> None:
    net.client.write("/run/x/auth", f"{SERVER_NAME}:{USER}:{SECRET}\n")
    argv = [*CLIENT[:2], "--auth-file", "/run/x/auth", *CLIENT[2:]]
    run = net.client.run([*WITHOUT_TERMINAL, *argv], check=False)
    net.client.run(["rm", "-r", "/run/x"])
    assert run.returncode == 0
    assert "ifconfig gif create" in run.stdout
    assert SECRET not in run.stdout + run.stderr


@pytest.mark.lab
def test_a_file_that_is_refused_is_named_and_nothing_is_sent(net: Internet) -> None:
    net.client.write("/run/x/auth", f"{SERVER_NAME}:{USER}:{SECRET}\n", 0o644)
    argv = [*CLIENT[:2], "--auth-file", "/run/x/auth", *CLIENT[3:]]
    run = net.client.run([*WITHOUT_TERMINAL, *argv], check=False)
    net.client.run(["rm", "-r", "/run/x"])
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == (
        "dtcpc: /run/x/auth: readable by others; chmod 600 /run/x/auth,"
        " if it is the password file\n"
    )


@pytest.mark.lab
def test_a_named_file_that_is_not_there_is_an_error_and_no_prompt(net: Internet) -> None:
    argv = [*CLIENT[:2], "--auth-file", "/run/nowhere", *CLIENT[3:]]
    run = net.client.run([*WITHOUT_TERMINAL, *argv], check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "dtcpc: /run/nowhere: no such file\n"


@pytest.mark.hazard(31)
@pytest.mark.lab
def test_the_password_is_in_no_argument_and_no_environment(net: Internet) -> None:
    script = [["say", f"+OK {'0' * 32} x\r\n"], ["silent"]]
    net.client.write("/run/x/auth", f"{SERVER_NAME}:{USER}:{SECRET}\n")
    with (
        Program(net.server, "tests/servers", "hostile", json.dumps({"20999": script})) as server,
        Program(
            net.client,
            "dtcpc",
            "-d",
            "--dry-run",
            "-p",
            "20999",
            "-u",
            USER,
            "--auth-file",
            "/run/x/auth",
            SERVER_NAME,
        ) as client,
    ):
        server.wait_for("heard")
        for file in ("cmdline", "environ"):
            seen = net.client.run(["cat", f"/proc/{client.pid}/{file}"]).stdout
            assert "PATH=" in seen or "dtcpc" in seen
            assert SECRET not in seen
        assert client.end() == 0
    net.client.run(["rm", "-r", "/run/x"])
