"""Files of users: whatever is in them, they are taken rightly and as a whole, or not at all."""

from __future__ import annotations

import contextlib
import dbm.dumb
import json
import subprocess
import sys
from datetime import date
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from dtcp.cli import Failure
from dtcp.server import imports, pools
from dtcp.server.store import Store, User

from tests.running import ROOT

SECRET = "wj4SNZ:x3rkYw-"
GOOD: dict[str, Any] = {
    "user": "itojun",
    "password": SECRET,
    "types": ["tunnelonly", "host", "network"],
    "address": "2001:db8:1::6",
    "prefixes": ["2001:db8:3c3::/48"],
    "expires": "2131-12-31",
    "disabled": False,
}
OF_ANOTHER_TYPE: tuple[object, ...] = (None, 5, 2.5, True, [], {}, "", [None], [["network"]])


def run(tmp_path: Path, *words: str, input: bytes = b"") -> subprocess.CompletedProcess[str]:
    """dtcpauth on a store that is not there at first."""
    argv = [sys.executable, str(ROOT / "dtcpauth.py"), "--store", str(tmp_path / "new" / "db")]
    done = subprocess.run([*argv, *words], input=input, capture_output=True, timeout=30)
    return subprocess.CompletedProcess(
        done.args,
        done.returncode,
        done.stdout.decode("utf-8", "surrogateescape"),
        done.stderr.decode(),
    )


def refused(tmp_path: Path, kind: str, content: bytes) -> str:
    """Why a file is not taken, in one line of ASCII with its name; no store is made."""
    file = tmp_path / "file"
    file.write_bytes(content)
    done = run(tmp_path, "import", kind, str(file))
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.count("\n") == 1
    assert done.stderr.isascii()
    assert done.stderr.startswith(f"dtcpauth: {file}")
    assert not (tmp_path / "new").exists() or "--random" in done.stderr
    return done.stderr.removeprefix(f"dtcpauth: {file}").strip()


# --- JSON -------------------------------------------------------------------------------------


def told(*changes: dict[str, Any]) -> bytes:
    """A good user, and one for each of these changes of it."""
    more = [{**GOOD, "address": None, "prefixes": [], **each} for each in changes]
    return json.dumps([GOOD, *more]).encode()


def reason(content: bytes, tmp_path: Path) -> str:
    """What `read` itself says of JSON, which is quicker than a program."""
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(Failure) as failure:
        imports.read("json", str(file))
    text = str(failure.value)
    assert text.isascii()
    assert text.isprintable()
    return text.removeprefix(f"{file}")


@pytest.mark.hazard(81)
@pytest.mark.parametrize("key", [*GOOD])
def test_a_value_of_another_type_is_refused(tmp_path: Path, key: str) -> None:
    right: dict[str, tuple[object, ...]] = {
        "address": (None,),
        "expires": (None,),
        "disabled": (True,),
        "prefixes": ([],),
    }
    for value in OF_ANOTHER_TYPE:
        if not any(value is each or value == each == [] for each in right.get(key, ())):
            why = reason(told({"user": "jun", key: value}), tmp_path)
            assert why.startswith(": line 1: user 2: "), value


@pytest.mark.hazard(81)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("user", "jun\n"),
        ("user", "jün"),
        ("user", "\ud800"),
        ("user", "../x"),
        ("user", "x" * 65),
        ("password", "secret\r"),
        ("password", "sec\nret"),
        ("password", "sec\0ret"),
        ("password", "\ud800"),
        ("types", ["host", "moon"]),
        ("types", ["host,network"]),
        ("types", ["all"]),
        ("types", "host"),
        ("address", "pool"),
        ("address", "::"),
        ("address", "2001:db8::6/64"),
        ("address", "fe80::1%em0"),
        ("prefixes", ["pool"]),
        ("prefixes", ["2001:db8::/65"]),
        ("prefixes", ["2001:db8::1/48"]),
        ("prefixes", [5]),
        ("prefixes", "2001:db8::/48"),
        ("expires", "never"),
        ("expires", "20311231"),
        ("expires", "2031-W01-1"),
        ("expires", "2031-02-30"),
        ("expires", "\uff12\uff10\uff13\uff11-12-31"),
        ("disabled", "false"),
        ("disabled", 0),
        ("leased_address", "pool"),
        ("leased_address", "fe80::1"),
        ("leased_prefixes", "2001:db8:4000::/48"),
        ("leased_prefixes", ["2001:db8:4000::/65"]),
        ("prefix", ["2001:db8:3c3::/48"]),
        ("", ""),
    ],
)
def test_a_word_that_is_none_is_refused(tmp_path: Path, key: str, value: object) -> None:
    why = reason(told({"user": "jun", key: value}), tmp_path)
    assert why.startswith(": line 1: user 2: ")


@pytest.mark.hazard(81)
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"null", "it is not a list"),
        (b"5", "it is not a list"),
        (b'{"user": "itojun"}', "it is not a list"),
        (b"[null]", ": line 1: user 1: it is not an object"),
        (b'[{"user": "itojun"},\n\n {"user": 5}]', ": line 3: user 2: 'user' is of another type"),
        (b'[\n{"user":\n"jun"\n}\n,{}]', ": line 5: user 2: 'user' is missing"),
        (b"[[]]", "it is not an object"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'[{"a":' * 100_000, "it is nested too deeply"),
        (b"\xff\xfe[]", "Expecting value"),
        (b"\xef\xbb\xbf[]", "BOM"),
        (b"[" + b"9" * 10_000 + b"]", ""),
    ],
    ids=range(13),
)
def test_what_is_no_list_of_users(tmp_path: Path, content: bytes, why: str) -> None:
    said = reason(content, tmp_path)
    assert why in said


@pytest.mark.hazard(81)
def test_two_users_of_a_file_cannot_have_the_same(tmp_path: Path) -> None:
    other = {"user": "jun", "prefixes": ["2001:db8:9::/48", "2001:db8:3c3:1::/64"]}
    said = refused(tmp_path, "json", told(other))
    assert said == ": line 1: user 2: 2001:db8:3c3:1::/64 overlaps what itojun has"
    other = {"user": "jun", "address": "2001:db8:1::7"}
    said = refused(tmp_path, "json", told(other))
    assert said == ": line 1: user 2: 2001:db8:1::7 overlaps what itojun has"
    other = {"user": "jun", "leased_prefixes": ["2001:db8:3c3:2::/64"]}
    said = refused(tmp_path, "json", told(other))
    assert said == ": line 1: user 2: 2001:db8:3c3:2::/64 overlaps what itojun has"
    other = {"user": "jun", "address": "2001:db8::7", "leased_address": "2001:db8::6"}
    said = refused(tmp_path, "json", told(other))
    assert said == ": line 1: user 2: 'leased_address' goes without 'address'"
    assert refused(tmp_path, "json", told({})) == ": line 1: user 2: itojun is there already"


def test_a_good_file_is_taken(tmp_path: Path) -> None:
    odd = {"user": "jun", "password": 'pass wörd \\ "x" \udcff\t'}
    (tmp_path / "file").write_bytes(told(odd))
    assert run(tmp_path, "import", "json", str(tmp_path / "file")).stdout == "2 users\n"
    assert json.loads(run(tmp_path, "export").stdout) == json.loads(told(odd))


SAME = b"""\
\xef\xbb\xbfuser, prefixes ,types,address,expires,disabled,password\r
itojun,"2001:db8:3c3::/48,2001:db8:4c4::/56","network, host",,2131-12-31,yes," a ""b"", c"\r
jun,2001:db8:5c5::/48,all,2001:db8:1::6,never,FALSE,secret\r
\r
kame,pool, ,pool,,no,p\xc3\xa4ss \xff\r
"""


def test_what_is_not_told_is_as_without_options(tmp_path: Path) -> None:
    """In CSV, as a spreadsheet writes it, and in JSON."""
    (tmp_path / "file").write_bytes(SAME)
    assert run(tmp_path, "import", "csv", str(tmp_path / "file")).stdout == "3 users\n"
    by_csv = run(tmp_path, "export").stdout
    assert json.loads(by_csv)[2] == {
        "user": "kame",
        "password": "p\xe4ss \udcff",
        "types": ["tunnelonly", "host", "network"],
        "address": None,
        "prefixes": [],
        "expires": None,
        "disabled": False,
    }
    few = [
        {key: value for key, value in each.items() if value not in (None, [], False)}
        for each in json.loads(by_csv)
    ]
    few[1].pop("types")
    few[2].pop("types")
    (tmp_path / "file").write_text(json.dumps(few))
    run(tmp_path, "delete", "itojun", "jun", "kame")
    assert run(tmp_path, "import", "json", str(tmp_path / "file")).stdout == "3 users\n"
    assert run(tmp_path, "export").stdout == by_csv


@pytest.mark.parametrize("kind", imports.DESCRIBING)
def test_users_and_leases_are_copied_whole(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "new" / "db")
    pairs, blocks = pools.pairs("2001:db8:1::"), pools.prefixes("2001:db8:4000::/40 /48")
    with contextlib.closing(Store(path, create=True)) as db:
        db.put(User("itojun", address=IPv6Address("2001:db8::6")), '  secret, "x" \udcff ')
        db.put(User("late"), "secret")
        for name in ("jun", "kame"):
            db.put(User(name, ("host", "network"), expires=date(2131, 12, 31)), "s\xe4cret")
            db.lease(name, [pairs])
            db.lease(name, [blocks])
        leased = {(each.user, each.span) for each in db.leases()}
    argv = [sys.executable, str(ROOT / "dtcpauth.py"), "--store", path, "export", "--leases", kind]
    text = subprocess.run(argv, capture_output=True, check=True).stdout
    assert text.count(b"2001:db8:4000::/48") == 1
    assert b"leased" not in subprocess.run([*argv[:5], kind], capture_output=True).stdout
    # Another server, where it was otherwise: these two have changed places.
    (tmp_path / "new").rename(tmp_path / "old")
    with contextlib.closing(Store(path, create=True)) as db:
        for name in ("kame", "jun", "gone"):
            db.put(User(name), "another")
            db.lease(name, [blocks])
        done = run(tmp_path, "import", "--replace", kind, "-", input=text)
        assert done.stdout == "4 users, 1 deleted\n"
        assert {(each.user, each.span) for each in db.leases()} == leased
        assert db.leased("jun", [blocks]) == blocks.piece(0)
        latest, _ = db.changes()
        run(tmp_path, "import", "--replace", kind, "-", input=text)
        assert db.changes(latest)[1] == []
        # Who says nothing of leases leaves them alone; who says that there is none takes it.
        less = run(tmp_path, "export", kind).stdout.encode("utf-8", "surrogateescape")
        run(tmp_path, "import", "--replace", kind, "-", input=less)
        assert {(each.user, each.span) for each in db.leases()} == leased
        text = text.replace(b"2001:db8:4000::/48", b"").replace(b'""\n  ]', b"]")
        run(tmp_path, "import", "--replace", kind, "-", input=text)
        assert db.changes(latest)[1] == ["jun"]
        assert len(db.leases()) == 3
        # And it is a lease again, of the pool that it lies in.
        assert db.lease("jun", [pairs]) == pairs.piece(0)
        assert {each.pool for each in db.leases() if each.user == "jun"} == {str(pairs)}
    assert subprocess.run(argv, capture_output=True).stdout == text.replace(b"[\n   ]", b"[]")


def test_a_lease_that_is_anothers_is_refused_whole(tmp_path: Path) -> None:
    run(tmp_path, "import", "csv", "-", input=b"user,password,leased_address\na,x,2001:db8::6\n")
    before = run(tmp_path, "export", "--leases").stdout
    more = b"user,password,leased_address\nb,x,\nc,x,2001:db8::6\n"
    done = run(tmp_path, "import", "csv", "-", input=more)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dtcpauth: -: line 3: 2001:db8::6 overlaps what a has\n"
    assert run(tmp_path, "export", "--leases").stdout == before


def test_passwords_are_made_for_those_who_have_none(tmp_path: Path) -> None:
    run(tmp_path, "import", "users", "-", input=f"itojun:{SECRET}\n".encode())
    users = b"user,password\nitojun,\njun,\nkame,another-wj4SNZ:x3\nlate,\n"
    done = run(tmp_path, "import", "--random", "--replace", "csv", "-", input=users)
    assert (done.returncode, done.stderr) == (0, "")
    made = dict(line.split(":") for line in done.stdout.splitlines())
    assert [*made] == ["jun", "late"]
    assert {len(secret) for secret in made.values()} == {20}
    has = {each["user"]: each["password"] for each in json.loads(run(tmp_path, "export").stdout)}
    assert has == {**made, "itojun": SECRET, "kame": "another-wj4SNZ:x3"}
    done = run(tmp_path, "import", "--random", "users", "-", input=b"x:y\n")
    why = "dtcpauth: import: --random goes with csv and json; see dtcpauth import --help\n"
    assert (done.returncode, done.stderr) == (64, why)


def test_passwords_that_nobody_has_seen_are_not_set(tmp_path: Path) -> None:
    run(tmp_path, "import", "users", "-", input=f"itojun:{SECRET}\n".encode())
    argv = [sys.executable, str(ROOT / "dtcpauth.py"), "--store", str(tmp_path / "new" / "db")]
    argv += ["import", "--random", "json", "-"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(argv, input=b'[{"user": "jun"}]', stdout=full, stderr=-1, timeout=30)
    assert done.returncode == 1
    assert done.stderr == b"dtcpauth: standard output: No space left on device\n"
    assert "\njun " not in run(tmp_path, "list").stdout


# --- text -------------------------------------------------------------------------------------


@pytest.mark.hazard(81)
@pytest.mark.parametrize(
    ("kind", "content", "why"),
    [
        ("users", b"itojun:secret\r\n", "line 1: a password cannot have a line's end or a NUL"),
        ("users", b"jun:x\nitojun:sec\0ret\n", "line 2: a password cannot have a line's end"),
        ("users", b"itojun:\n", "line 1 is not user:password"),
        ("users", b"\xef\xbb\xbfitojun:x\n", "line 1 is not user:password"),
        ("users", b"jun:x\nit\xffjun:x\n", "line 2 is not user:password"),
        ("users", "jün:x\n".encode(), "line 1 is not user:password"),
        ("users", "itojun:x\n".encode("utf-16"), "line 1 is not user:password"),
        ("users", b"\0" * 5000, "line 1 is not user:password"),
        ("users", b"itojun:x\nitojun:x\n", "line 2: itojun is there already"),
        ("routes", b"itojun 2001:db8::/48,null\n", "line 1 is not: user prefix[,prefix]"),
        ("routes", b"itojun 2001:db8::/48,,5\n", "line 1 is not: user prefix[,prefix]"),
        ("routes", b"it/jun 2001:db8::/48\n", "line 1: 'it/jun' is not a user name"),
        ("routes", b"a 2001:db8::/47\nb 2001:db8:1::/48\n", "2001:db8:1::/48 overlaps what a has"),
        ("json", b"nonsense", "not JSON: Expecting value"),
        ("csv", b"", "line 1: there is no column 'user'"),
        ("csv", b"itojun,secret\n", "line 1: no such column: 'itojun'"),
        ("csv", b"user;password\n", "line 1: no such column: 'user;password'"),
        ("csv", "user,password\n".encode("utf-16"), "line 1: "),  # Python 3.10 takes no NUL
        ("csv", b"user,password,user\n", "line 1: there are two columns 'user'"),
        ("csv", b"password\nx\n", "line 1: there is no column 'user'"),
        ("csv", b"user,password\nitojun,x\njun\n", "line 3: 1 values for 2 columns"),
        ("csv", b"user,password\n\njun,a,b\n", "line 3: 3 values for 2 columns"),
        ("csv", b'user,password\njun,"a\n', "line 2: unexpected end of data"),
        ("csv", b'user,password\njun,"a"b"\n', "line 2: "),
        ("csv", b'user,password\njun,"a\nb"\n', "line 3: a password cannot have a line's end"),
        ("csv", b"user,password\njun,x\njun,x\n", "line 3: jun is there already"),
        ("csv", b"user,password\na b,x\n", "line 2: invalid user name"),
        ("csv", b"user,types\nx,moon\n", "line 2: 'moon' is not a type of tunnel"),
        ("csv", b"user,prefixes\nx,2001:db8::1\n", "line 2: '2001:db8::1': only /16 to /64"),
        ("csv", b"user,expires\nx,2031\n", "line 2: '2031' is not a date such as 2031-12-31"),
        ("csv", b"user,disabled\nx,maybe\n", "line 2: 'maybe' is not yes or no"),
        ("csv", b"user,password\njun,x\nkame,\n", "line 3: no password for kame; --random makes"),
        ("json", b'[{"user": "kame"}]', "line 1: user 1: no password for kame; --random makes"),
        ("pop", b"nonsense", "not a database that this Python can read"),
        ("pop", b"'a', (0, 1)\n", "not a database that this Python can read"),
    ],
)
def test_one_line_says_where_and_why(tmp_path: Path, kind: str, content: bytes, why: str) -> None:
    assert why in refused(tmp_path, kind, content)


@pytest.mark.hazard(81)
@pytest.mark.parametrize("kind", ["users", "routes", "json", "pop"])
def test_a_missing_file_makes_no_store(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "none"
    done = run(tmp_path, "import", kind, str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.lower() == f"dtcpauth: {path}: no such file".lower() + (
        "\n" if kind == "pop" else " or directory\n"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.hazard(81)
def test_routes_without_users_make_no_store(tmp_path: Path) -> None:
    done = run(tmp_path, "import", "routes", "-", input=b"itojun 2001:db8::/48\n")
    store = tmp_path / "new" / "db"
    assert done.stderr == f"dtcpauth: {store}: no such file; dtcpauth add makes it\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.hazard(81)
def test_a_file_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "LARGEST", 1 << 20)
    with pytest.raises(Failure, match="/dev/zero: larger than 1 MiB"):
        imports.read("users", "/dev/zero")


# --- pop.auth ---------------------------------------------------------------------------------

# As db_dump185(1) of Berkeley DB 1.85 writes it: no VERSION first, no indentation, no end.
DUMP = rb"""format=print
type=hash
h_ffactor=8
h_nelem=2
db_lorder=1234
db_pagesize=4096
HEADER=END
itojun\00
\88\95\cb\ac\b1\a5\c5\87\cc\8d\94\a6\88\d2\00
back@slash\00
\a3 ~\5c\a2\\\a3\00\00
"""
BYTES = b"""format=bytevalue
type=hash
HEADER=END
69746f6a756e00
8895cbacb1a5c587cc8d94a688d200
"""


def secrets(tmp_path: Path, content: bytes) -> dict[str, str | None]:
    file = tmp_path / "pop.dump"
    file.write_bytes(content)
    return {each.user.name: each.secret for each in imports.read("pop", str(file))}


@pytest.mark.hazard(81)
def test_a_dump_of_db_dump185(tmp_path: Path) -> None:
    # What is no UTF-8 comes back as it was: 0xDF, the complement of a blank, is no letter here.
    odd = bytes(byte ^ 0xFF for byte in b"\xa3 ~\\\xa2\\\xa3").decode("utf-8", "surrogateescape")
    assert secrets(tmp_path, DUMP) == {"itojun": SECRET, "back@slash": odd}
    assert secrets(tmp_path, BYTES) == {"itojun": SECRET}
    assert secrets(tmp_path, BYTES.removesuffix(b"\n")) == {"itojun": SECRET}


@pytest.mark.hazard(81)
def test_a_value_that_begins_with_a_blank_is_no_indentation(tmp_path: Path) -> None:
    content = DUMP.replace(rb"\88\95\cb", rb" \95\cb")
    assert secrets(tmp_path, content)["itojun"] == "\udcdf" + SECRET[1:]
    indented = b"VERSION=2\n" + BYTES.replace(b"\n69", b"\n 69").replace(b"\n88", b"\n 88")
    assert secrets(tmp_path, indented + b"DATA=END\n") == {"itojun": SECRET}


@pytest.mark.hazard(81)
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (DUMP.replace(b"\n", b"\r\n"), "a dump that cannot be read"),
        (DUMP.replace(b"HEADER=END\n", b""), "a dump that cannot be read"),
        (DUMP.replace(b"=hash", b"=recno"), "a dump that cannot be read"),
        (DUMP.replace(rb"\88", rb"\8"), "a dump that cannot be read"),
        (DUMP.replace(rb"\88", rb"\x8"), "a dump that cannot be read"),
        (DUMP + b"odd\n", "a dump that cannot be read"),
        (BYTES.replace(b"69", b"6 9"), "a dump that cannot be read"),
        (BYTES.replace(b"6974", b"697"), "a dump that cannot be read"),
        (BYTES.replace(b"\n69", b"\n 69"), "a dump that cannot be read"),
        (b"VERSION=2\n" + BYTES, "a dump that cannot be read"),
        (BYTES[: BYTES.index(b"69")], "no users in it"),
        (BYTES.replace(b"6974", b"ff74"), "entry 1: '\\ufffdtojun' is not a user name"),
        (BYTES.replace(b"8895", b"f295"), "entry 1: a password cannot have a line's end"),
        (BYTES.replace(b"8895", b"ff95"), "entry 1: a password cannot have a line's end or a NUL"),
        (BYTES + b"\n\n", "entry 2: '' is not a user name"),
        (BYTES + b"6a756e\n0000\n", "entry 2: no password of jun can be read"),
        (BYTES + BYTES.split(b"END\n")[1], "entry 2: itojun is there already"),
    ],
    ids=range(17),
)
def test_a_dump_that_is_none(tmp_path: Path, content: bytes, why: str) -> None:
    assert why in refused(tmp_path, "pop", content)


@pytest.mark.hazard(81)
def test_a_database_with_something_odd_in_it(tmp_path: Path) -> None:
    file = tmp_path / "pop.auth"
    with dbm.dumb.open(str(file), "c") as database:
        database["jün\0"] = b"\x88\0"
    done = run(tmp_path, "import", "pop", str(file))
    assert done.stderr.startswith(f"dtcpauth: {file}: entry 1: 'j\\ufffd")
    assert not (tmp_path / "new").exists()
    (tmp_path / "pop.auth.dir").write_text("__import__('os')\n")
    done = run(tmp_path, "import", "pop", str(file))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
