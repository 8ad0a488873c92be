"""The pid file: nobody else can lock it, and no process is killed because of a forged one."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dtcp import daemon, plan, run, system
from dtcp.ledger import Left

SOMEBODY = 4321
VICTIM = 98765


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The file, locked by somebody, as far as flock(2) can tell."""
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pid_file(directory: Path, mode: int = 0o600, text: str = f"{VICTIM}\n") -> Path:
    path = directory / "x.pid"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.hazard(65)
def test_it_is_for_its_owner_only_whatever_the_mask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ours = daemon.PidFile(str(tmp_path / "x.pid"))
    finally:
        os.umask(before)
    ours.write()
    assert (tmp_path / "x.pid").stat().st_mode & 0o777 == 0o600
    assert daemon.locked_by(ours.path) == daemon.running(ours.path) == os.getpid()
    ours.remove()
    assert daemon.locked_by(ours.path) is daemon.running(ours.path) is None


@pytest.mark.hazard(65)
def test_one_of_an_earlier_version_gives_way_with_all_who_have_it_open(tmp_path: Path) -> None:
    path = pid_file(tmp_path, 0o644)
    with path.open() as stranger:
        ours = daemon.PidFile(str(path))
        ours.write()
        assert path.stat().st_mode & 0o777 == 0o600
        fcntl.flock(stranger, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of what is no file of ours any more
    assert daemon.locked_by(str(path)) == os.getpid()
    ours.remove()


@pytest.mark.hazard(65)
def test_an_earlier_version_that_runs_is_told_of_and_respected_but_not_ended(
    tmp_path: Path,
) -> None:
    path = pid_file(tmp_path, 0o644)
    with locked(path):
        assert daemon.running(str(path)) == VICTIM
        # Anybody may hold this lock, and the pid be an old one.
        assert daemon.locked_by(str(path)) == 0
        with pytest.raises(daemon.PidFileError, match=f"already running as pid {VICTIM}$"):
            daemon.PidFile(str(path))
    assert path.read_text() == f"{VICTIM}\n"


def _of_somebody(path: Path) -> None:
    os.chown(path, SOMEBODY, SOMEBODY)


def _in_a_directory_of_somebody(path: Path) -> None:
    os.chown(path.parent, SOMEBODY, SOMEBODY)


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "of somebody": (_of_somebody, "{path}: belongs to somebody else; remove it"),
    "for the group": (lambda path: path.chmod(0o620), "{path}: writable by others; remove it"),
    "for everybody": (lambda path: path.chmod(0o602), "{path}: writable by others; remove it"),
    "in a directory of somebody": (
        _in_a_directory_of_somebody,
        "{path}: others can write to {directory}; choose another directory",
    ),
    "in a directory for a group": (
        lambda path: path.parent.chmod(0o770),
        "{path}: others can write to {directory}; choose another directory",
    ),
    "in a directory like /tmp": (
        lambda path: path.parent.chmod(0o1777),
        "{path}: others can write to {directory}; choose another directory",
    ),
}


@pytest.mark.hazard(65)
@pytest.mark.parametrize(("spoil", "why"), SPOILT.values(), ids=SPOILT)
def test_one_that_others_may_have_written_is_refused_and_never_believed(
    tmp_path: Path, spoil: Callable[[Path], None], why: str
) -> None:
    path = pid_file(tmp_path)
    with locked(path):
        assert daemon.locked_by(str(path)) == VICTIM  # it is its state that counts
        spoil(path)
        assert daemon.locked_by(str(path)) == 0
        with pytest.raises(daemon.PidFileError) as told:
            daemon.running(str(path))
        assert str(told.value) == why.format(path=path, directory=tmp_path)
    with pytest.raises(daemon.PidFileError) as told:
        daemon.PidFile(str(path))
    assert str(told.value) == why.format(path=path, directory=tmp_path)
    assert path.read_text() == f"{VICTIM}\n"


@pytest.mark.hazard(65)
@pytest.mark.parametrize("mode", [0o602, 0o604])
def test_whom_others_may_have_named_is_not_ended(tmp_path: Path, mode: int) -> None:
    """An rtadvd is ended by its pid file."""
    with subprocess.Popen(["sleep", "60"]) as bystander:
        path = pid_file(tmp_path, mode, f"{bystander.pid}\n")
        with locked(path):
            left = Left((plan.EndDaemon(str(path)),), None, "")
            assert system.System(lambda line: None, run.run).undo_left(left) == []
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.hazard(65)
def test_a_hard_link_is_not_written_to(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious\n")
    precious.chmod(0o600)
    os.link(precious, tmp_path / "x.pid")
    with pytest.raises(daemon.PidFileError, match=r"/x\.pid: is a hard link; remove it$"):
        daemon.PidFile(str(tmp_path / "x.pid"))
    assert precious.read_text() == "precious\n"


@pytest.mark.hazard(29)
@pytest.mark.parametrize("mode", [0o600, 0o644])
@pytest.mark.parametrize("text", ["tunnel.example.org:itojun:secret\n", "a=1\n", "7" * 50])
def test_what_is_no_pid_file_is_neither_written_to_nor_removed(
    tmp_path: Path, text: str, mode: int
) -> None:
    """Whoever takes -f for the password file has it still."""
    path = pid_file(tmp_path, mode, text)
    with pytest.raises(daemon.PidFileError, match=r"/x\.pid: not a pid file; choose another name$"):
        daemon.PidFile(str(path))
    assert path.read_text() == text


@pytest.mark.hazard(65)
def test_a_second_name_elsewhere_keeps_nobody_from_being_ended(tmp_path: Path) -> None:
    """Anybody may make one: the daemon that runs must be found all the same."""
    ours = daemon.PidFile(str(tmp_path / "x.pid"))
    ours.write()
    os.link(ours.path, tmp_path / "elsewhere")
    assert daemon.locked_by(ours.path) == daemon.running(ours.path) == os.getpid()
    ours.remove()


@pytest.mark.hazard(65)
@pytest.mark.parametrize("text", ["", "1\n", "-5\n", "itojun\n", "99999999999999999999999\n"])
def test_what_is_no_pid_names_nobody(tmp_path: Path, text: str) -> None:
    path = pid_file(tmp_path, text=text)
    with locked(path):
        assert daemon.locked_by(str(path)) == daemon.running(str(path)) == 0
