"""Output that cannot be delivered: a closed pipe, a full disk, in all three programs."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dtcp import daemon
from dtcp.ledger import Ledger
from dtcp.status import Facts

from lab.internet import Internet
from tests.running import ROOT, serve

FULL = "{}: standard output: No space left on device\n"


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a user whose password is weak."""
    store = tmp_path_factory.mktemp("weak") / "store"
    words = [sys.executable, str(ROOT / "dtcpauth.py"), "--store", str(store)]
    subprocess.run([*words, "import", "users", "-"], input=b"jun:hidden\n", check=True)
    return store


@pytest.fixture
def files(weak: Path, tmp_path: Path) -> dict[str, str]:
    """Such a store; the pid file of a dtcpc whose tunnel is up; a file of users."""
    store, pid_file = str(tmp_path / "store"), daemon.PidFile(str(tmp_path / "x.pid"))
    shutil.copy2(weak, store)
    pid_file.write()
    facts = Facts("up", 123, "tunnel.example.org", "itojun", "host", since=time.monotonic() - 65)
    Ledger(str(tmp_path / "x.state")).tell(facts)
    users = tmp_path / "users"
    users.write_text("jun:2qBqVg-Lm0cPs\n")
    return {"store": store, "pid": pid_file.path, "users": str(users)}


def run(output: int, *words: str, errors: int = subprocess.PIPE) -> tuple[int, str]:
    """A program's exit status and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{words[0]}.py"), *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stderr or ""


@pytest.fixture
def left() -> int:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


PRINT = [
    (0, "dtcpc --help"),
    (0, "dtcpc --version"),
    (0, "dtcpc --status -f {pid}"),
    (0, "dtcpc --status --json -f {pid}"),
    (1, "dtcpc --status -f {pid}.none"),
    (0, "dtcps --help"),
    (0, "dtcps --version"),
    (1, "dtcps --status"),
    (1, "dtcps --status --json"),
    (0, "dtcpauth --help"),
    (0, "dtcpauth add --help"),
    (0, "dtcpauth --version"),
    (0, "dtcpauth --store {store} list"),
    (0, "dtcpauth --store {store} list --json"),
    (0, "dtcpauth --store {store} export"),
    (0, "dtcpauth --store {store} export csv"),
    (1, "dtcpauth --store {store} check"),
    (0, "dtcpauth --store {store} import --replace users {users}"),
]


@pytest.mark.hazard(82)
@pytest.mark.parametrize(("status", "words"), PRINT)
def test_a_reader_that_has_seen_enough_is_no_failure(
    files: dict[str, str], left: int, status: int, words: str
) -> None:
    assert run(left, *words.format(**files).split()) == (status, "")


@pytest.mark.hazard(82)
@pytest.mark.parametrize("words", [words for _, words in PRINT])
def test_a_full_disk_is_one_line_and_status_1(files: dict[str, str], words: str) -> None:
    with open("/dev/full", "w") as full:
        said = FULL.format(words.split()[0])
        assert run(full.fileno(), *words.format(**files).split()) == (1, said)


@pytest.mark.hazard(82)
@pytest.mark.parametrize("program", ["dtcpc", "dtcps", "dtcpauth"])
@pytest.mark.parametrize(("words", "status"), [("--nonsense", 64), ("--version", 1)])
def test_the_status_says_it_where_no_line_can(program: str, words: str, status: int) -> None:
    with open("/dev/full", "w") as full:
        assert run(full.fileno(), program, words, errors=full.fileno()) == (status, "")


@pytest.mark.hazard(82)
@pytest.mark.parametrize("command", ["add --random itojun", "change --random jun"])
def test_a_password_that_nobody_has_seen_is_not_set(
    files: dict[str, str], left: int, command: str
) -> None:
    words = ["dtcpauth", "--store", files["store"]]
    export = [sys.executable, str(ROOT / "dtcpauth.py"), *words[1:], "export"]
    before = subprocess.run(export, capture_output=True, check=True).stdout
    why = "dtcpauth: standard output: Broken pipe\n"
    assert run(left, *words, *command.split()) == (1, why)
    assert subprocess.run(export, capture_output=True, check=True).stdout == before


@pytest.fixture
def many(files: dict[str, str]) -> list[str]:
    """dtcpauth with a store of so many users that a pipe does not hold the list."""
    words = ["dtcpauth", "--store", files["store"]]
    lines = "".join(f"user{number:050}:wj4SNZ:x3rkYw-\n" for number in range(1500))
    argv = [sys.executable, str(ROOT / "dtcpauth.py"), *words[1:], "import", "users", "-"]
    subprocess.run(argv, input=lines.encode(), check=True, stdout=subprocess.DEVNULL)
    return words


LONG = [["list"], ["list", "--json"], ["export"]]


@pytest.mark.hazard(82)
@pytest.mark.parametrize("command", LONG, ids=shlex.join)
def test_a_reader_may_leave_in_the_middle(many: list[str], command: list[str]) -> None:
    argv = [sys.executable, str(ROOT / "dtcpauth.py"), *many[1:], *command]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert len(os.read(program.stdout.fileno(), 100)) == 100
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(30) == 0


@pytest.mark.hazard(82)
@pytest.mark.parametrize("command", LONG, ids=shlex.join)
def test_a_disk_may_be_full_in_the_middle(
    many: list[str], command: list[str], tmp_path: Path
) -> None:
    with open(tmp_path / "small", "w") as small:
        done = subprocess.run(
            [sys.executable, str(ROOT / "dtcpauth.py"), *many[1:], *command],
            stdout=small,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            # Larger than the log of the store, which is one of the files that this is about.
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        )
    assert (done.returncode, done.stderr) == (1, "dtcpauth: standard output: File too large\n")
    assert os.path.getsize(tmp_path / "small") == 100_000


@pytest.mark.hazard(82)
def test_what_is_printed_after_an_import_does_not_undo_it(files: dict[str, str]) -> None:
    words = ["dtcpauth", "--store", files["store"], "import", "--replace", "users", files["users"]]
    with open("/dev/full", "w") as full:
        assert run(full.fileno(), *words) == (1, FULL.format("dtcpauth"))
    argv = [sys.executable, str(ROOT / "dtcpauth.py"), *words[1:3], "check"]
    assert subprocess.run(argv, capture_output=True).returncode == 0


@pytest.mark.lab
@pytest.mark.hazard(82)
@pytest.mark.parametrize("release", ["15.1"], indirect=True)
def test_what_is_told_with_a_server_that_runs(net: Internet) -> None:
    here = {
        each: shlex.join([sys.executable, str(ROOT / f"{each}.py")]) for each in ("dtcpc", "dtcps")
    }
    told = [
        (net.server, "dtcps", f"{here['dtcps']} --status"),
        (net.server, "dtcps", f"{here['dtcps']} --status --json"),
        (net.client, "dtcpc", f"{here['dtcpc']} --dry-run -u itojun 192.0.2.1"),
    ]

    def said(done: subprocess.CompletedProcess[str]) -> str:
        return done.stderr.replace(
            "dtcpc: logging in to 192.0.2.1 (192.0.2.1) port 20200 as itojun\n", ""
        )

    with serve(net) as server:
        net.client.write("/usr/local/etc/dtcpc.auth", "192.0.2.1:itojun:secret\n")
        for host, program, line in told:
            done = host.run(["sh", "-c", f"{line} >/dev/full"], check=False)
            assert (done.returncode, said(done)) == (1, FULL.format(program)), line
            done = host.run(["sh", "-c", f"({line}; echo $? >&3) 3>&2 | true"], check=False)
            assert said(done) == "0\n", line
        assert server.end() == 0
