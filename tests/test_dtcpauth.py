"""dtcpauth: users are added, changed, listed without passwords, and deleted; all or nothing."""

from __future__ import annotations

import argparse
import contextlib
import dbm.dumb
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pexpect
import pytest
from dtcp.cli import Failure
from dtcp.grant import Grant
from dtcp.server import inquiries
from dtcp.server.store import Made, Store, Use, User

import dtcpauth
from tests.running import ROOT

SECRET = "wj4SNZ:x3rkYw-"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dtcps" / "dtcps.db"


@pytest.fixture
def run(path: Path) -> Run:
    """Run dtcpauth on a store of our own; what it said, and its status."""

    def run(*words: str, input: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, str(ROOT / "dtcpauth.py"), "--store", str(path), *words],
            input=input,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == status, done.stderr
        return done

    return run


@pytest.fixture
def user(path: Path) -> Callable[[str], User | None]:
    """What the store has of a user."""

    def user(name: str) -> User | None:
        db = Store(str(path))
        try:
            return db.user(name)
        finally:
            db.close()

    return user


def password(path: Path, name: str) -> str | None:
    db = Store(str(path))
    try:
        return db.password(name)
    finally:
        db.close()


# --- users ------------------------------------------------------------------------------------


def test_a_user_from_first_to_last(run: Run, path: Path) -> None:
    words = ("-t", "host,tunnelroute", "-P", "2001:db8:3c3::/48,2001:db8:4c4::/56")
    done = run("add", *words, "-A", "2001:db8:1::6", "-e", "2131-12-31", "itojun", input=SECRET)
    assert done.stdout + done.stderr == ""
    assert run("list").stdout.splitlines() == [
        "USER    TYPES         ADDRESS        PREFIXES"
        "                             EXPIRES     STATE  LOGIN  IN  OUT",
        "itojun  host,network  2001:db8:1::6  2001:db8:3c3::/48,2001:db8:4c4::/56  2131-12-31"
        "  ok     -      0   0",
    ]
    run("change", "-A", "pool", "-P", "pool", "-e", "never", "-t", "all", "--disable", "itojun")
    (told,) = json.loads(run("list", "--json").stdout)
    assert told == {
        "user": "itojun",
        "types": ["tunnelonly", "host", "network"],
        "address": None,
        "prefixes": [],
        "leased_address": None,
        "leased_prefixes": [],
        "expires": None,
        "disabled": True,
        "state": "disabled",
        "last_login": None,
        "received": 0,
        "sent": 0,
    }
    run("change", "--enable", "itojun")
    said = run("list", "itojun").stdout.splitlines()[1]
    assert said.split() == ["itojun", "all", "-", "-", "never", "ok", "-", "0", "0"]
    assert password(path, "itojun") == SECRET
    run("delete", "itojun")
    assert run("list").stdout.splitlines()[1:] == []


def test_what_a_user_has_done(run: Run, path: Path) -> None:
    run("import", "users", "-", input=f"itojun:{SECRET}\njun:{SECRET}\nkame:{SECRET}\n")
    noon = datetime(2026, 11, 27, 12, 34, 56).timestamp()
    with contextlib.closing(Store(str(path))) as db:
        db.add_use({"itojun": Use(noon, 1_500, 23_456_789), "kame": Use(1e30)})
    assert [line.split()[5:] for line in run("list").stdout.splitlines()] == [
        ["STATE", "LOGIN", "IN", "OUT"],
        ["ok", "2026-11-27T12:34", "1.5k", "23M"],
        ["ok", "-", "0", "0"],
        ["ok", "?", "0", "0"],  # whatever it is that the store has
    ]
    (told,) = json.loads(run("list", "--json", "itojun").stdout)
    assert (told["last_login"], told["received"], told["sent"]) == (noon, 1_500, 23_456_789)


def test_a_change_changes_nothing_else(run: Run, user: Callable[[str], User | None]) -> None:
    run("add", "-P", "2001:db8:3c3::/48", "-A", "2001:db8:1::6", "itojun", input=SECRET)
    before = user("itojun")
    assert before is not None
    run("change", "-e", "2131-12-31", "itojun")
    after = user("itojun")
    assert after is not None
    assert after.expires is not None
    assert after._replace(expires=None) == before


def test_a_password_that_is_made(run: Run, path: Path) -> None:
    done = run("add", "--random", "itojun")
    secret = done.stdout.strip()
    assert len(secret) == 20
    assert password(path, "itojun") == secret
    assert done.stderr == ""
    assert run("change", "--random", "itojun").stdout.strip() not in ("", secret)


def test_a_password_is_nowhere_but_in_the_store(run: Run) -> None:
    run("add", "itojun", input=SECRET)
    run("change", "-p", "itojun", input=f"{SECRET}2")
    for words in (("list",), ("list", "--json"), ("check",)):
        done = run(*words)
        assert SECRET not in done.stdout + done.stderr
    assert run("add", "itojun", input=f"{SECRET}3", status=1).stderr == (
        "dtcpauth: itojun: is there already; dtcpauth change changes it\n"
    )


def test_all_users_or_none_are_deleted(run: Run) -> None:
    run("add", "itojun", input=SECRET)
    assert "jun: no such user" in run("delete", "itojun", "jun", status=1).stderr
    assert "itojun" in run("list").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "a b"), "invalid user name (at most 64 letters, digits and ._@+-): 'a b'"),
        (("add", "-t", "moon", "x"), "'moon' is not a type of tunnel: tunnelonly, host, network"),
        (
            ("add", "-P", "2001:db8::1/48", "x"),
            "2001:db8::1/48 is an address in a prefix; the prefix is 2001:db8::/48",
        ),
        (("add", "-P", "2001:db8::/65", "x"), "'2001:db8::/65': only /16 to /64 can be delegated"),
        (("add", "-A", "192.0.2.1", "x"), "invalid IPv6 address: '192.0.2.1'"),
        (("add", "-A", "ff02::1", "x"), "'ff02::1' cannot be an address of a tunnel"),
        (("add", "-A", "fe80::1", "x"), "'fe80::1' cannot be an address of a tunnel"),
        (("add", "-A", "fe80::1%em0", "x"), "invalid IPv6 address: 'fe80::1%em0'"),
        (("add", "-e", "tomorrow", "x"), "'tomorrow' is not a date such as 2031-12-31"),
        (("add",), "add: the following arguments are required: user; see dtcpauth add --help"),
        (
            ("add", "-e", "x", "x"),
            "add: -e: 'x' is not a date such as 2031-12-31; see dtcpauth add",
        ),
        (("add", "--rand", "x"), "add: unrecognized arguments: --rand; see dtcpauth add --help"),
        (("add", "--enable", "x"), "add: unrecognized arguments: --enable; see dtcpauth add"),
        (("change", "--enable", "--user", "x"), "change: unrecognized arguments: --user; see"),
        (("change", "x"), "change: nothing to change; see dtcpauth change --help"),
        (("change", "--enable", "--disable", "x"), "change: --disable: not allowed with --enable;"),
        (("change", "-p", "--random", "x"), "change: --random: not allowed with -p; see"),
        (("kick",), "kick: the following arguments are required: user; see dtcpauth kick --help"),
        (("kick", "x", "y"), "kick: unrecognized arguments: y; see dtcpauth kick --help"),
        (("backup",), "backup: the following arguments are required: file; see dtcpauth backup"),
        (("import", "xml", "-"), "import: format: invalid choice: 'xml' (choose from "),
        (("import", "--random", "pop", "x"), "import: --random goes with csv and json; see"),
        (("export", "xml"), "export: format: invalid choice: 'xml' (choose from "),
        (("list", "--js"), "list: unrecognized arguments: --js; see dtcpauth list --help"),
        (("--sto", "x", "list"), "unrecognized arguments: --sto; see dtcpauth --help"),
        (("li",), "command: invalid choice: 'li' (choose from "),
        ((), "the following arguments are required: command; see dtcpauth --help"),
        (("-i",), "-i: nothing has to be prepared: dtcpauth add makes the store"),
        (("-u",), "-u: the user is missing"),
        (("-u", "x", "secret"), "-u: a password on the command line is for everybody to see"),
    ],
)
def test_a_wrong_command_line_makes_no_store(words: tuple[str, ...], said: str, path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "dtcpauth.py"), *words],
        input="",
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 64
    assert said in done.stderr
    assert done.stderr.startswith("dtcpauth: ")
    assert done.stderr.count("\n") == 1
    assert not path.exists()


def test_the_letters_of_the_old_one() -> None:
    assert dtcpauth.in_new_words(["-d", "itojun"]) == ["delete", "itojun"]
    assert dtcpauth.in_new_words(["-l", "ALL"]) == ["list"]
    assert dtcpauth.in_new_words(["--list", "itojun"]) == ["list", "itojun"]
    assert dtcpauth.in_new_words(["-u", "itojun"]) == ["password", "itojun"]
    assert dtcpauth.in_new_words(["add", "-d"]) == ["add", "-d"]


def test_a_store_that_is_not_there_or_not_ours(run: Run, path: Path) -> None:
    said = f"dtcpauth: {path}: no such file; dtcpauth add makes it\n"
    assert run("list", status=1).stderr == said
    run("add", "itojun", input=SECRET)
    path.chmod(0o644)
    said = f"dtcpauth: {path}: accessible by others; chmod 600 {path}\n"
    assert run("list", status=1).stderr == said


def test_a_store_in_a_directory_that_cannot_be_made(run: Run, path: Path) -> None:
    where = path.with_name("x") / "y"
    done = run("--store", str(where / "z.db"), "add", "itojun", input=SECRET, status=1)
    assert done.stderr == f"dtcpauth: {where.parent}: no such directory\n"


def test_a_tunnel_that_nobody_can_end(
    run: Run, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", "itojun", input=SECRET)
    assert run("kick", "jun", status=1).stderr == "dtcpauth: jun: no such user\n"
    assert run("kick", "itojun", status=1).stderr == "dtcpauth: itojun: has no tunnel\n"
    monkeypatch.setattr(inquiries, "SOCKET", str(tmp_path / "dtcps.sock"))
    monkeypatch.setattr(dtcpauth, "KICK_TIME", 0.1)
    with contextlib.closing(Store(str(path))) as db:
        grant = Grant(IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"))
        db.remember(Made("itojun", "tunnelonly", grant, "gif0", "dtcps itojun", "", False, 1e9))
        with pytest.raises(Failure, match="itojun: no dtcps is running that could end the tunnel"):
            dtcpauth.kick(db, argparse.Namespace(user="itojun"))
        with (
            contextlib.closing(inquiries.local(inquiries.SOCKET)),
            pytest.raises(Failure, match="itojun: no dtcps has ended the tunnel within 0 s; see"),
        ):
            dtcpauth.kick(db, argparse.Namespace(user="itojun"))
        assert not db.is_kicked("itojun")  # nor at any later time


READ_ONLY = """
mount --bind {0} {0} && mount -o remount,ro,bind {0} && exec "$@"
"""


@pytest.mark.lab
@pytest.mark.parametrize("words", [("list",), ("add", "jun")])
def test_a_store_that_cannot_be_written_is_told_in_one_line(
    run: Run, path: Path, words: tuple[str, ...]
) -> None:
    run("add", "itojun", input=SECRET)
    argv = [sys.executable, str(ROOT / "dtcpauth.py"), "--store", str(path), *words]
    script = READ_ONLY.format(path.parent)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *argv],
        input=SECRET,
        capture_output=True,
        text=True,
        timeout=30,
    )
    said = f"dtcpauth: {path}: the file system is read-only; mount it for writing\n"
    assert (done.returncode, done.stdout, done.stderr) == (77, "", said)


# --- passwords --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("short", "it has fewer than 12 letters"),
        ("my-ITOJUN-secret", "the user name is in it"),
        ("xxnujotiyyzzab", "the user name is in it"),
        ("1234567890123", "it is a number"),
        ("abcabcabcabcabc", "it has fewer than 5 different letters"),
        (SECRET, ""),
        ("correct horse battery", ""),
    ],
)
def test_what_is_weak(secret: str, why: str) -> None:
    assert dtcpauth.weakness("itojun", secret) == why


def test_weak_passwords_are_taken_and_named(run: Run) -> None:
    why = "it has fewer than 12 letters"
    said = f"dtcpauth: itojun: weak password, taken all the same: {why}\n"
    assert run("add", "itojun", input="secret\n").stderr == said
    assert run("import", "--replace", "users", "-", input="itojun:new\n").stderr == said
    run("add", "jun", input=SECRET)
    done = run("check", status=1)
    assert done.stdout.splitlines() == [f"itojun: weak password: {why}"]
    assert run("check", "jun").stdout == ""


def test_a_day_that_is_past_is_taken_and_named(run: Run) -> None:
    today = date.today()
    yesterday = today - timedelta(1)
    said = "dtcpauth: itojun: {} is past, so this user cannot log in\n"
    done = run("add", "-e", str(yesterday), "itojun", input=SECRET)
    assert done.stderr == said.format(yesterday)
    assert run("list").stdout.splitlines()[1].split()[4:6] == [str(yesterday), "expired"]
    assert run("change", "-e", "2001-01-01", "itojun").stderr == said.format("2001-01-01")
    for words in (("-e", str(today)), ("-e", "never"), ("-t", "host")):
        assert run("change", *words, "itojun").stderr == ""


def test_what_else_is_odd(run: Run) -> None:
    words = ("-t", "tunnelonly", "-A", "2001:db8:1::6", "-P", "2001:db8::/48", "-e", "2001-01-01")
    run("add", *words, "itojun", input=SECRET)
    assert run("check", status=1).stdout.splitlines() == [
        "itojun: expired on 2001-01-01",
        "itojun: has prefixes, but may not have tunnels of type network",
        "itojun: has an address, but may not have tunnels of type host",
    ]
    assert run("list").stdout.splitlines()[1].split()[5] == "expired"


@pytest.mark.parametrize(
    ("typed", "said"),
    [("", "no password given"), ("\n", "no password given"), ("a\0b", "a NUL in it")],
)
def test_no_password(run: Run, typed: str, said: str) -> None:
    assert said in run("add", "itojun", input=typed, status=1).stderr
    assert len(run("list").stdout.splitlines()) == 1


class Terminal:
    """dtcpauth on a terminal."""

    def __init__(self, path: Path, *words: str) -> None:
        argv = [str(ROOT / "dtcpauth.py"), "--store", str(path), *words]
        self.child = pexpect.spawn(sys.executable, argv, encoding="utf-8", timeout=15)

    def type(self, prompt: str, secret: str) -> None:
        self.child.expect_exact(prompt)
        assert not self.child.getecho()
        self.child.sendline(secret)

    def ends(self) -> tuple[int | None, str]:
        """Its status, and all that was shown since the last prompt."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        assert isinstance(self.child.before, str)
        return self.child.exitstatus, self.child.before.replace("\r\n", "\n").strip("\n")


def test_the_password_is_asked_for_twice_without_echo(path: Path) -> None:
    terminal = Terminal(path, "add", "itojun")
    terminal.type("Password of itojun: ", SECRET)
    terminal.type("Again: ", SECRET)
    assert terminal.ends() == (0, "")
    assert password(path, "itojun") == SECRET


def test_two_that_differ_change_nothing(path: Path) -> None:
    terminal = Terminal(path, "add", "itojun")
    terminal.type("Password of itojun: ", SECRET)
    terminal.type("Again: ", "another")
    assert terminal.ends() == (1, "dtcpauth: the two are not the same")
    assert password(path, "itojun") is None


def test_an_interrupt_at_the_prompt_changes_nothing(path: Path) -> None:
    terminal = Terminal(path, "add", "itojun")
    terminal.child.expect_exact("Password of itojun: ")
    terminal.child.sendintr()
    assert terminal.ends()[0] == 1
    assert password(path, "itojun") is None


# --- import and export ------------------------------------------------------------------------


def test_the_text_files_that_dtcps_had(run: Run, path: Path, tmp_path: Path) -> None:
    users, routes = tmp_path / "dtcps.users", tmp_path / "dtcps.routes"
    users.write_text(f"# user:password\n\nitojun:{SECRET}\njun:2qBqVg-Lm0cPs\n")
    routes.write_text("#\nitojun 2001:db8:3c3::/48\njun 2001:db8:4c4::/56, 2001:db8:4c5::/56\n")
    assert run("import", "users", str(users)).stdout == "2 users\n"
    assert run("import", "routes", str(routes)).stdout == "2 users\n"
    assert password(path, "itojun") == SECRET
    assert [line.split()[3] for line in run("list").stdout.splitlines()[1:]] == [
        "2001:db8:3c3::/48",
        "2001:db8:4c4::/56,2001:db8:4c5::/56",
    ]


@pytest.mark.parametrize(
    ("format", "text", "said"),
    [
        ("users", "new:x\nitojun\n", "line 2 is not user:password"),
        ("users", "new:x\na b:secret\n", "line 2 is not user:password"),
        ("users", "new:x\n\n#\nnew:y\n", "line 4: new is there already"),
        ("users", "new:x\njun:y\n", "line 2: jun is there already; see --replace"),
        ("routes", "jun 2001:db8::1/48\n", "line 1 is not: user prefix[,prefix]"),
        ("routes", "jun\n", "line 1 is not: user prefix[,prefix]"),
        ("routes", "nobody 2001:db8::/48\n", "line 1: nobody: no such user; import the users"),
        ("routes", "jun 2001:db8::/48\n", "line 1: jun has prefixes already; see --replace"),
        ("routes", "kame 2001:db8:4c4::/64\n", "line 1: 2001:db8:4c4::/64 overlaps what jun has"),
        ("json", "[{}]", "line 1: user 1: 'user' is missing"),
        ("json", "nonsense", "not JSON: "),
        ("json", '[{"user": "../x", "password": "x"}]', "invalid user name"),
    ],
)
def test_a_file_with_a_mistake_is_not_taken_at_all(
    run: Run, format: str, text: str, said: str
) -> None:
    jun = {"user": "jun", "password": SECRET, "prefixes": ["2001:db8:4c4::/56"]}
    run("import", "json", "-", input=json.dumps([jun, {"user": "kame", "password": SECRET}]))
    before = run("export").stdout
    assert said in run("import", format, "-", input=text, status=1).stderr
    assert run("export").stdout == before


def test_a_store_is_copied_whole(run: Run, path: Path, tmp_path: Path) -> None:
    run("add", "-P", "2001:db8:3c3::/48", "-A", "2001:db8:1::6", "itojun", input=SECRET)
    run("add", "-t", "host", "-e", "2131-12-31", "--disable", "jun", input='pass wörd \\ "x"')
    text = run("export").stdout
    path.rename(path.with_name("first.db"))
    # Another server, where things were otherwise: a prefix has moved from one user to another.
    run("add", "-P", "2001:db8:3c3::/48", "jun", input=SECRET)
    run("add", "gone", input=SECRET)
    assert run("import", "--replace", "json", "-", input=text).stdout == "2 users, 1 deleted\n"
    assert run("export").stdout == text


@pytest.mark.parametrize("format", ["csv", "json", "users", "routes"])
def test_who_is_as_the_file_says_is_not_changed(
    run: Run, path: Path, tmp_path: Path, format: str
) -> None:
    run("add", "-P", "2001:db8:3c3::/48", "-A", "2001:db8:1::6", "itojun", input=SECRET)
    run("add", "-P", "2001:db8:4c4::/56", "-e", "2131-12-31", "jun", input="another-wj4SNZ:x3")
    texts = {
        "csv": run("export", "csv").stdout,
        "json": run("export").stdout,
        "users": f"itojun:{SECRET}\njun:another-wj4SNZ:x3\n",
        "routes": "itojun 2001:db8:3c3::/48\njun 2001:db8:4c4::/56\n",
    }
    with contextlib.closing(Store(str(path))) as db:
        latest, _ = db.changes()
        assert run("import", "--replace", format, "-", input=texts[format]).stdout == "2 users\n"
        assert db.changes(latest) == (latest, [])
        text = texts[format].replace(SECRET, "yet-another-x3rkYw").replace("3c3", "5c5")
        run("import", "--replace", format, "-", input=text)
        assert db.changes(latest)[1] == ["itojun"]


def test_who_waits_for_its_input_keeps_nobody_else_waiting(run: Run, path: Path) -> None:
    run("add", "jun", input=SECRET)
    argv = [str(ROOT / "dtcpauth.py"), "--store", str(path), "import", "users", "-"]
    with subprocess.Popen(
        [sys.executable, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as slow:
        assert slow.stdin is not None
        # More than a pipe holds, so it is reading when this has been written.
        slow.stdin.write("# nobody\n" * 100_000)
        slow.stdin.flush()
        run("change", "-e", "2131-12-31", "jun")  # would give up after database.PATIENCE
        assert slow.poll() is None
        said, _ = slow.communicate(f"itojun:{SECRET}\n", timeout=30)
    assert (slow.returncode, said) == (0, "1 users\n")
    assert password(path, "itojun") == SECRET


def test_the_database_of_qpopper(run: Run, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "pop.auth"
    with dbm.dumb.open(str(file), "c") as database:
        database[b"itojun\0"] = bytes(byte ^ 0xFF for byte in SECRET.encode()) + b"\0"
        database[b"jun\0"] = bytes(byte ^ 0xFF for byte in b"2qBqVg-Lm0cPs") + b"\0\0"
    assert run("import", "pop", str(file)).stdout == "2 users\n"
    assert password(path, "itojun") == SECRET
    assert password(path, "jun") == "2qBqVg-Lm0cPs"


DUMPS = {
    "print": """\
VERSION=2
format=print
type=hash
HEADER=END
 itojun\\00
 \\88\\95\\cb\\ac\\b1\\a5\\c5\\87\\cc\\8d\\94\\a6\\88\\d2\\00
 back\\5cslash is no name\\00
""",
    "bytevalue": """\
VERSION=2
format=bytevalue
type=hash
HEADER=END
 69746f6a756e00
 8895cbacb1a5c587cc8d94a688d200
DATA=END
""",
}


def test_a_dump_of_it(run: Run, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "pop.dump"
    file.write_text(DUMPS["bytevalue"])
    assert run("import", "pop", str(file)).stdout == "1 users\n"
    assert password(path, "itojun") == SECRET
    file.write_text("".join(DUMPS["print"].splitlines(keepends=True)[:-1]) + "DATA=END\n")
    run("import", "--replace", "pop", str(file))
    assert password(path, "itojun") == SECRET


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DUMPS["print"], "a dump that cannot be read"),
        (DUMPS["bytevalue"].replace("8895", "88x5"), "a dump that cannot be read"),
        (DUMPS["bytevalue"].replace("69746f", "2e2e20"), "entry 1: '.. jun' is not a user name"),
        (DUMPS["bytevalue"].split(" 69")[0], "no users in it"),
        ("nonsense", "not a database that this Python can read; see dtcpauth(8) on dumps"),
        (None, "no such file"),
    ],
)
def test_what_is_no_database(run: Run, tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "pop.auth"
    if text is not None:
        file.write_text(text)
    assert said in run("import", "pop", str(file), status=1).stderr
