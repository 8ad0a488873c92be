"""The command line: what is wrong is named before anything is sent; old spellings still hold."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

import pytest
from dtcp.client.options import parse
from dtcp.plan import Alias

import dtcpc
import dtcps
from tests.running import ROOT

SERVER = "tunnel.example.org"

# --- what is wrong ----------------------------------------------------------------------------


def wrong(option: str, why: str, *values: str) -> list[tuple[list[str], str]]:
    """An option with malformed values, and what is said; `{}` stands for the quoted value."""
    return [([option, value], f"{option}: {why.format(ascii(value))}") for value in values]


PORT = "{} is not a number from 1 to 65535"
NUMBERS = ("0", "65536", "-1", "+1", "1.5", "0x50", "", " 80", "80 ", "1e3", "\u0661", "9" * 400)
NO_ADDRESS = "invalid IPv6 address: {}"
NO_LENGTH = "invalid IPv6 address or prefix length: {}"

WRONG: list[tuple[list[str], str]] = [
    # numbers
    *wrong("-p", PORT, *NUMBERS),
    *wrong("-b", PORT, *NUMBERS),
    *wrong("-B", PORT, *NUMBERS),
    *wrong("-F", "{} is not a number from 0 to 65535", "65536", "-1", "a", "", "0x1"),
    *wrong(
        "-m",
        "{} is not a number from 1280 to 8192",
        *("1279", "8193", "0", "1480b", "", "-1280", "1280.0", "\u0661\u0662\u0668\u0660"),
    ),
    # names
    *wrong(
        "-i",
        "invalid interface name: {}",
        *("", "0gif", "gif 0", "gif0;reboot", "$(reboot)", "../gif0", "a" * 16, "gif0\n", "g\xeff"),
        *("gif/0", "gif-0"),
    ),
    *wrong(
        "-u",
        "invalid DTCP user name: {}",
        *("", "a b", "root;", "../x", "a/b", "x" * 65, "a:b", "$USER", "a\n", "\u00fcser", "a\0b"),
    ),
    # words
    *((["-t", value], f"-t: invalid choice: {value!r}") for value in ("", "Host", "udp", "hosts")),
    *((["-r", value], f"-r: invalid choice: {value!r}") for value in ("", "none", "Static")),
    # addresses
    *wrong(
        "-A",
        NO_ADDRESS,
        *("192.0.2.1", "example.org", "2001:db8:1", "2001:db8::1::2", "fe80::1%em0", "$(reboot)"),
        *(":", "2001:db8::12345", "2001:db8::g", ";"),
    ),
    *wrong(
        "-A",
        NO_LENGTH,
        *("", "/64", "2001:db8::1/", "2001:db8::1/129", "2001:db8::1/-1", "2001:db8::1/64/64"),
        *("2001:db8::1 prefixlen", "2001:db8::1 prefixlen 129", "2001:db8::1 64"),
        *("2001:db8::1 --prefixlen 64", "2001:db8::1 prefixlen 64 alias", "2001:db8::1/64 x"),
        *("2001:db8::1 prefixlen64", "2001:db8::1/\u0666\u0664", "2001:db8::1/1000"),
        "2001:db8::1/64 2001:db8::2",
    ),
    (
        ["-A", "2001:db8::1 2001:db8::2 2001:db8::3"],
        f"-A: {NO_LENGTH.format(repr('2001:db8::2 2001:db8::3'))}",
    ),
    *wrong(
        "-A",
        "{}: with two addresses the prefix length must be 128",
        *("2001:db8::1 2001:db8::2", "2001:db8::1 2001:db8::2/64"),
        "2001:db8::1 2001:db8::2 prefixlen 127",
    ),
    (
        ["-A", "2001:db8::1 ff02::1 prefixlen 128"],
        "-A: ff02::1 cannot be an interface's address",
    ),
    *(
        (["-A", value], f"-A: {value.partition('/')[0]} cannot be an interface's address")
        for value in ("::", "::1", "ff02::1", "::/64", "ff0e::1/128")
    ),
    *wrong("-A", "{}: the prefix length must be 1 to 128", "2001:db8::1/0"),
    (["-A", "2001:db8::1,"], f"-A: {NO_LENGTH.format(repr(''))}"),
    (["-A", "2001:db8::1,,2001:db8::2"], f"-A: {NO_LENGTH.format(repr(''))}"),
    (["-A", "2001:db8::1,gif0"], f"-A: {NO_ADDRESS.format(repr('gif0'))}"),
    *wrong(
        "-R",
        NO_ADDRESS,
        *("192.0.2.0", "Default", "DEFAULT", "example.org", "fe80::1%em0", "any"),
    ),
    (["-R", "192.0.2.0/24"], f"-R: {NO_ADDRESS.format(repr('192.0.2.0'))}"),
    *wrong(
        "-R",
        NO_LENGTH,
        *("", "/0", "2001:db8::/", "2001:db8::/129", "2001:db8:: -prefixlen", "2001:db8:: 32"),
        *("default -interface em0", "2001:db8::/32 -reject"),
    ),
    (["-R", "-net -host ::1"], f"-R: {NO_LENGTH.format(repr('-host ::1'))}"),
    (["-R", "-inet6 2001:db8::/32"], "-R: expected one argument"),
    *wrong("-R", "{}: a host has no prefix length", "-host 2001:db8::/32"),
    (["-R", "default,"], f"-R: {NO_LENGTH.format(repr(''))}"),
    # prefix delegation
    *wrong(
        "-P",
        "{}: expected interface/sla[/id[/length]]",
        *("", "/1", "0em/1", "em0/1/::1/64/x", "em0;/1", "em0 /1", "$(x)/1"),
    ),
    *wrong(
        "-P",
        "{}: the SLA ID must be one to four hex digits",
        *("em0", "em0/", "em0/g", "em0/12345", "em0/-1", "em0//::1", "em0/0x1"),
    ),
    *wrong(
        "-P",
        "{}: the interface identifier must have 64 bits, not all 0",
        *("em0/1/::", "em0/1/0:0:0:0", "em0/1/1:0:0:0:1", "em0/1/2001:db8::1"),
    ),
    (["-P", "em0/1/x"], "-P: invalid IPv6 address: '::x'"),
    (["-P", "em0/1/::1/63"], "-P: '63' is not a number from 64 to 128"),
    (["-P", "em0/1/::1/129"], "-P: '129' is not a number from 64 to 128"),
    (["-P", "em0/1,em1"], "-P: 'em1': the SLA ID must be one to four hex digits"),
    # what is missing, too much, or does not go together
    *(
        (["127.0.0.1", option], f"{option}: expected one argument")
        for option in ("-A", "-f", "-i", "-m", "-p", "-R", "-t", "-u", "--auth-file")
    ),
    (["-i", "-gif0"], "-i: expected one argument"),
    (["-x"], "unrecognized arguments: -x"),
    (["--verbose"], "unrecognized arguments: --verbose"),
    (["--dry"], "unrecognized arguments: --dry"),
    (["other.example.org"], f"unrecognized arguments: {SERVER}"),
    (["-c", "-o"], "-c excludes -o: it never destroys the interface"),
    (["-U", "--transport", "gif"], "-U excludes --transport gif"),
    (["-U", "--transport", "auto"], "-U excludes --transport auto"),
    (["--transport", "auto", "-o"], "-o excludes --transport auto: a tunnel over UDP has"),
    (["-U", "-c"], "-c excludes -U: a tunnel over UDP has an interface of its own"),
    (["-U", "-o"], "-o excludes -U: a tunnel over UDP has an interface of its own"),
    (["-P", "em1/1,em1/1/::2", "-t", "network"], "-P: the same SLA ID twice on one interface"),
    (["--json"], "--json requires --status"),
    (["--prometheus"], "--prometheus requires --status"),
    (["--status", "--json", "--prometheus"], "--json excludes --prometheus"),
    (["--status-group", "nosuch"], "--status-group: 'nosuch': no such group on this host"),
    (["--status-group", "0"], "--status-group: '0': no such group on this host"),
    (["--dry-run", "-D"], "--dry-run excludes -D and -l"),
    (["--dry-run", "-l"], "--dry-run excludes -D and -l"),
    (["--check", "--dry-run"], "--check excludes --dry-run and --status"),
    (["--check", "--status"], "--check excludes --dry-run and --status"),
    *(
        (["--test", other], "--test excludes --check, --dry-run and --status")
        for other in ("--check", "--dry-run", "--status")
    ),
    (["-s", "/nonexistent"], "-s: /nonexistent: not an executable file"),
    (["-s", "/etc/passwd"], "-s: /etc/passwd: not an executable file"),
]

SERVERS = [
    *(
        (value, f"server: {value!a}: DTCP runs over IPv4; give a host name or an IPv4 address")
        for value in ("2001:db8::1", "::1", "[::1]", "tunnel.example.org:20200", "192.0.2.1:20200")
    ),
    *(
        (value, f"server: invalid IPv4 address: {value!a}")
        for value in ("192.0.2", "192.0.2.256", "192.0.2.1.", "3221225985", "192.0.2.01", ".")
    ),
    *(
        (value, f"server: invalid host name: {value!a}")
        for value in (
            *(
                "",
                "a b",
                "a;reboot",
                "$(reboot)",
                "a/b",
                "../a",
                "a_b-",
                ".a",
                "x" * 254,
                "b\xfcro",
            ),
            *("a\n", "a\x1b[2J", "user@host"),
        )
    ),
]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that would notice any connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, which everything that may be written would go to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dtcp.client.options.PID_FILE", str(tmp_path / "dtcpc.pid"))
    monkeypatch.setattr("dtcp.client.options.AUTH_FILE", str(tmp_path / "dtcpc.auth"))
    return tmp_path


def is_refused(argv: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dtcpc.main(argv)
    assert ended.value.code == 64
    said = capsys.readouterr()
    assert said.out == ""
    reason, usage, *_ = said.err.splitlines()
    assert reason.startswith(f"dtcpc: {why}")
    assert usage.startswith("usage: dtcpc [-acdDlnoU]")


def is_untouched(listener: socket.socket, place: Path) -> None:
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert list(place.iterdir()) == []


@pytest.mark.hazard(12, "K8")
@pytest.mark.parametrize(
    ("words", "why"), WRONG, ids=[ascii(" ".join(words))[1:-1] for words, _ in WRONG]
)
def test_a_malformed_option_is_named_before_anything_is_done(
    words: list[str],
    why: str,
    listener: socket.socket,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = str(listener.getsockname()[1])
    server = [] if "127.0.0.1" in words else [SERVER if SERVER in why else "127.0.0.1"]
    is_refused(["-p", port, *words, *server], why, capsys)
    is_untouched(listener, place)


@pytest.mark.parametrize(("server", "why"), SERVERS, ids=[ascii(each)[:40] for each, _ in SERVERS])
def test_a_malformed_server_is_named_before_anything_is_done(
    server: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    is_refused([server], why, capsys)


def test_a_server_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    is_refused([], "no server given", capsys)
    is_refused(["-d", "-n"], "no server given", capsys)


def test_a_login_name_that_is_no_dtcp_user_asks_for_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getlogin", lambda: "M\u00fcller & Co")
    why = "invalid DTCP user name: 'M\\xfcller & Co'; give one with -u"
    is_refused([SERVER], why, capsys)


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("127.0.0.1:itojun:secret\n", 0, ""),
        ("127.0.0.1:jun:secret\n", 1, "{}: has no line 127.0.0.1:itojun:PASSWORD"),
        ("127.0.0.1:itojun:\n", 1, "{}: line 1 has an empty password"),
        (None, 1, "{}: no such file; it needs mode 600, and a line 127.0.0.1:itojun:PASSWORD"),
    ],
)
def test_a_check_sends_nothing_and_asks_nobody(
    listener: socket.socket, tmp_path: Path, text: str | None, status: int, said: str
) -> None:
    file = tmp_path / "auth"
    if text is not None:
        file.write_text(text)
        file.chmod(0o600)
    words = ["--check", "-Dl", "-t", "host", "-u", "itojun", "--auth-file", str(file)]
    port = str(listener.getsockname()[1])
    done = subprocess.run(
        [sys.executable, str(ROOT / "dtcpc.py"), *words, "-p", port, "127.0.0.1"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    expected = f"dtcpc: {said.format(file)}\n" if said else ""
    assert (done.returncode, done.stdout, done.stderr) == (status, "", expected)
    file.unlink(missing_ok=True)
    is_untouched(listener, tmp_path)


@pytest.mark.usefixtures("enclosed")
def test_what_is_well_formed_would_have_been_sent(listener: socket.socket, place: Path) -> None:
    """The tests above can fail: this listener notices a client that connects."""
    auth = place / "auth"
    auth.write_text("127.0.0.1:root:secret\n")
    auth.chmod(0o600)
    fake = place / "ifconfig"  # all that is looked at before
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    port = str(listener.getsockname()[1])
    words = ["--dry-run", "--auth-file", str(auth), "-u", "root", "-p", port, "127.0.0.1"]
    client = subprocess.Popen(
        [sys.executable, str(ROOT / "dtcpc.py"), *words],
        env={"PATH": f"{place}:/usr/bin:/bin"},
        stderr=subprocess.PIPE,
    )
    listener.settimeout(10)
    listener.accept()[0].close()
    said = client.communicate(timeout=10)[1].decode()
    assert "the server closed the connection" in said


# --- what is right ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("3ffe:505:2:ffff::1", "3ffe:505:2:ffff::1/64"),  # ifconfig(8)
        ("3ffe:505:2:ffff::1/64", "3ffe:505:2:ffff::1/64"),
        ("3ffe:505:2:ffff::1 prefixlen 64", "3ffe:505:2:ffff::1/64"),
        ("3ffe:505:2:ffff::1 -prefixlen 64", "3ffe:505:2:ffff::1/64"),
        ("3ffe:505:2:ffff::1   -prefixlen\t64", "3ffe:505:2:ffff::1/64"),
        (" 3ffe:505:2:ffff::1 ", "3ffe:505:2:ffff::1/64"),
        ("3FFE:0505:0002:ffff:0:0:0:0001/1", "3ffe:505:2:ffff::1/1"),
        ("fe80::1/64", "fe80::1/64"),
        ("fd00::1/128", "fd00::1/128"),
    ],
)
def test_an_address_may_be_spelled_as_ever(text: str, meaning: str) -> None:
    assert parse(["-A", text, SERVER]).aliases == (Alias(IPv6Interface(meaning)),)


@pytest.mark.parametrize("length", [" prefixlen 128", "  -prefixlen  128", "/128"])
def test_an_address_may_have_a_peer(length: str) -> None:
    meant = Alias(IPv6Interface("3ffe:505:2::1/128"), IPv6Address("3ffe:505:2::2"))
    assert parse(["-A", f"3ffe:505:2::1 3ffe:505:2::2{length}", SERVER]).aliases == (meant,)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("3ffe:505:2::/48", "3ffe:505:2::/48"),
        ("3ffe:505:2:: -prefixlen 48", "3ffe:505:2::/48"),
        ("3ffe:505:2:: prefixlen 48", "3ffe:505:2::/48"),
        ("3ffe:505:2::1/48", "3ffe:505:2::/48"),
        ("3ffe:505:2::1", "3ffe:505:2::1/128"),
        ("-net 3ffe:505:2::/48", "3ffe:505:2::/48"),
        ("-net 3ffe:505:2:: -prefixlen 48", "3ffe:505:2::/48"),
        ("-host 3ffe:505:2::1", "3ffe:505:2::1/128"),
        ("-host 3ffe:505:2::1/128", "3ffe:505:2::1/128"),
        ("default", "::/0"),
        ("-net default", "::/0"),
        ("::", "::/0"),
        ("::/0", "::/0"),
        ("2000::/3", "2000::/3"),
    ],
)
def test_a_destination_may_be_spelled_as_ever(text: str, meaning: str) -> None:
    assert parse(["-R", text, SERVER]).destinations == (IPv6Network(meaning),)


def test_names_of_files_hold_in_another_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon's is /."""
    monkeypatch.chdir("/usr")
    options = parse(["--auth-file", "auth", "-f", "pid", "-u", "itojun", SERVER])
    assert (options.auth_file, options.pid_file) == ("/usr/auth", "/usr/pid")
    assert dtcps.parse(["--config", "conf"]).config == "/usr/conf"


def test_lists_are_told_apart_by_commas() -> None:
    addresses = "3ffe:505:2::1 -prefixlen 64, 3ffe:505:2::2,3ffe:505:2::3/48"
    destinations = "3ffe:505:2:: -prefixlen 48,default , 3ffe:505:3::/48"
    options = parse(["-A", addresses, "-R", destinations, SERVER])
    assert [str(alias.address) for alias in options.aliases] == [
        *("3ffe:505:2::1/64", "3ffe:505:2::2/64", "3ffe:505:2::3/48")
    ]
    assert options.destinations == (
        IPv6Network("3ffe:505:2::/48"),
        IPv6Network("::/0"),
        IPv6Network("3ffe:505:3::/48"),
    )


def test_without_options_it_is_as_the_old_manual_says() -> None:
    options = parse([SERVER])
    assert options.server == SERVER
    assert options.port == 20200
    assert options.type == "tunnelonly"
    assert options.routing == "static"
    assert options.destinations == (IPv6Network("::/0"),)
    assert options.aliases == ()
    assert options.mtu == 1280
    assert options.pid_file == "/var/run/dtcpc.pid"
    assert options.interface is None
    assert options.create
    assert not any((options.keep, options.debug, options.nat, options.dry_run))


@pytest.mark.parametrize(
    "words",
    [
        "-d -n -p 20201 -u itojun -t host -m 1480 tunnel.example.org",
        "-dn -p20201 -uitojun -thost -m1480 tunnel.example.org",
        "-dnp20201 -u itojun -t host -m 1480 tunnel.example.org",
        "-dnp 20201 -m1480 -thost -uitojun tunnel.example.org",
        "tunnel.example.org -d -n -p 20201 -u itojun -t host -m 1480",
        "-d tunnel.example.org -n -p 20201 -u itojun -t host -m 1480",
        "-d -p 1 -n -p 20201 -u x -u itojun -t host -m 1480 tunnel.example.org",
        "-d -n -p 20201 -u itojun -t host -m 1480 -- tunnel.example.org",
    ],
)
def test_letters_may_be_combined_and_come_in_any_order(words: str) -> None:
    options = parse(words.split())
    assert (options.debug, options.nat, options.port) == (True, True, 20201)
    assert (options.user, options.type, options.mtu) == ("itojun", "host", 1480)
    assert options.server == SERVER


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("-a", "-a is ignored without -P"),
        ("-P em1/1", "-P is ignored with -t tunnelonly"),
        ("-t host -P em1/1 -a", "-P is ignored with -t host\ndtcpc: -a is ignored without -P"),
        ("-b 4029", "-b is ignored without -U"),
        ("-B 4029", "-B is ignored without -U"),
        ("-R 2001:db8::/32 -r solicit", "-R is ignored with -r solicit"),
        ("-dD", "-d is ignored with -D"),
    ],
)
def test_what_contradicts_itself_without_harm_is_ignored(
    words: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines of rc.conf that net/dtcp took start a tunnel."""
    ignored = parse([*words.split(), "-u", "itojun", SERVER])
    assert capsys.readouterr().err == f"dtcpc: {why}\n"
    plain = parse(["-u", "itojun", SERVER])
    for name in ("delegations", "advertise", "announced", "debug"):
        assert getattr(ignored, name) == getattr(plain, name), name
    parse(["--check", *words.split(), "-u", "itojun", SERVER])
    assert capsys.readouterr().err == ""  # rc(8) asks, and then starts it


@pytest.mark.parametrize(
    ("option", "name", "values"),
    [
        ("-p", "port", ("1", "65535")),
        ("-m", "mtu", ("1280", "8192")),
        ("-i", "interface", ("gif0", "gif32767", "tun_dtcp.1", "a" * 15)),
        ("-u", "user", ("itojun", "a.b-c_d@e+f", "0", "x" * 64)),
        ("-t", "type", ("tunnelonly", "host", "network", "tunnelroute")),
        ("-f", "pid_file", ("/var/run/other.pid",)),
        ("--auth-file", "auth_file", ("/etc/dtcpc.auth",)),
    ],
)
def test_the_last_good_values_are_good(option: str, name: str, values: tuple[str, ...]) -> None:
    for value in values:
        assert str(getattr(parse([option, value, SERVER]), name)) == value


@pytest.mark.parametrize(
    "server", ["localhost", "a", "TUNNEL.example.org.", "192.0.2.1", "x-1.y_z"]
)
def test_a_server_is_a_name_or_an_ipv4_address(server: str) -> None:
    assert parse([server]).server == server


def test_help_and_version_are_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h", "--version"):
        with pytest.raises(SystemExit) as ended:
            dtcpc.main([word])
        assert ended.value.code == 0
        said = capsys.readouterr()
        assert said.err == ""
        assert said.out
    assert re.fullmatch(r"dtcpc [0-9]+\.[0-9.a-z]+\n", said.out)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        dtcpc.main(["--help"])
    said = capsys.readouterr().out
    letters = "aAbBcdDfFilmnopPrRstuU"
    words = ["auth-file", "check", "dry-run", "status", "status-group", "json", "prometheus"]
    words += ["version"]
    for option in [*(f"-{letter}" for letter in letters), *(f"--{word}" for word in words)]:
        assert re.search(rf"^  {option}\b", said, re.MULTILINE), option


@pytest.mark.hazard(57)
@pytest.mark.parametrize(
    ("text", "mode", "owner", "why"),
    [
        ("#!/bin/sh\n", 0o600, 0, "not an executable file"),
        ("#!/bin/sh\n", 0o755, 4321, "belongs to somebody else; chown root SCRIPT"),
        ("#!/bin/sh\n", 0o775, 0, "writable by others; chmod go-w SCRIPT"),
        ("echo hello\n", 0o755, 0, "does not begin with #!"),
        ("", 0o755, 0, "does not begin with #!"),
        ("#!/bin/sh\r\necho hello\r\n", 0o755, 0, "line 1 ends in a carriage return"),
        ("#!/nonexistent/sh -e\n", 0o755, 0, "no interpreter /nonexistent/sh"),
        ("#!\n", 0o755, 0, "no interpreter "),
    ],
)
def test_a_script_that_could_not_or_should_not_be_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, mode: int, owner: int, why: str
) -> None:
    script = tmp_path / "script"
    script.write_text(text, newline="")
    script.chmod(mode)
    os.chown(script, owner, owner)
    with pytest.raises(SystemExit) as ended:
        dtcpc.main(["-s", str(script), "-u", "itojun", "127.0.0.1"])
    assert ended.value.code == 64
    said = capfd.readouterr().err
    assert said.startswith(f"dtcpc: -s: {script}: {why.replace('SCRIPT', str(script))}\n")


PLACES = {
    "of somebody": (0o755, 4321, "belongs to somebody else; chown root PLACE"),
    "for a group": (0o775, 0, "writable by others; chmod go-w PLACE"),
    "like /tmp": (0o1777, 0, ""),
}


@pytest.mark.hazard(57)
@pytest.mark.parametrize("is_link", [False, True])
@pytest.mark.parametrize(("mode", "owner", "why"), PLACES.values(), ids=PLACES)
def test_a_script_that_others_could_replace(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    mode: int,
    owner: int,
    why: str,
    is_link: bool,
) -> None:
    """Also where what they can replace is a link to it."""
    place = tmp_path / "place"
    place.mkdir()
    script = real = place / "script"
    if is_link:
        real = tmp_path / "real"
        script.symlink_to(real)
    real.write_text("#!/bin/sh\n")
    real.chmod(0o755)
    place.chmod(mode)
    os.chown(place, owner, owner)
    auth = ["--auth-file", str(tmp_path / "none")]
    words = ["--check", *auth, "-s", str(script), "-u", "itojun", "127.0.0.1"]
    if not why:
        assert dtcpc.main(words) == 1
        return
    with pytest.raises(SystemExit) as ended:
        dtcpc.main(words)
    assert ended.value.code == 64
    expected = f"dtcpc: -s: {script}: {place}: {why.replace('PLACE', str(place))}\n"
    assert capfd.readouterr().err.startswith(expected)
