"""Output that nobody takes: a reader that has gone, a full disk, in all three programs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dtcp import daemon
from dtcp.ledger import Ledger

from tests.running import ROOT

LOGIN = {"server": "tunnel.example.org", "user": "itojun", "type": "host", "pid": 123}
FULL = "{}: standard output: No space left on device\n"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A store with a user whose password is weak; the pid file of a dtcpc whose tunnel is up."""
    store, pid_file = str(tmp_path / "store"), daemon.PidFile(str(tmp_path / "x.pid"))
    words = [sys.executable, str(ROOT / "dtcpauth.py"), "--store", store]
    subprocess.run([*words, "import", "users", "-"], input=b"jun:hidden\n", check=True)
    pid_file.write()
    Ledger(str(tmp_path / "x.state")).tell(state="up", since=time.monotonic() - 65, **LOGIN)
    return {"store": store, "pid": pid_file.path}


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
    (1, "dtcpauth --store {store} check"),
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
        program = "dtcpauth add" if " add " in words else words.split()[0]
        assert run(full.fileno(), *words.format(**files).split()) == (1, FULL.format(program))


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
