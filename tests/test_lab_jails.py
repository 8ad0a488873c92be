"""What the lab on FreeBSD finds by its mark, and what it leaves alone, on a played machine."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from lab import jails


class Machine:
    """Jails with their epairs, those of the host with their descriptions, and mounts."""

    def __init__(self) -> None:
        self.jails: dict[str, list[str]] = {}
        self.epairs: dict[str, str] = {}
        self.mounts: list[str] = []

    def ask(self, *words: str) -> str:
        """What a command prints, and it is done."""
        match words:
            case ("jls", "name"):
                return "\n".join(self.jails)
            case ("jail", "-r", name):
                assert not self.jails.pop(name), "its epairs came back to the host"
            case ("ifconfig", "-j", jail, "-g", "epair"):
                return "\n".join(self.jails[jail])
            case ("ifconfig", "-j", jail, epair, "destroy"):
                self.jails[jail].remove(epair)
            case ("ifconfig", "-a", *_):
                return "".join(
                    f"{name}: flags=8842<BROADCAST,RUNNING> mtu 1500\n\tdescription: {text}\n"
                    for name, text in self.epairs.items()
                )
            case ("ifconfig", epair, "destroy"):
                del self.epairs[epair]
            case ("mount",):
                return "".join(f"tmpfs on {node} (tmpfs, local)\n" for node in self.mounts)
            case ("umount", "-f", *nodes):
                for node in nodes:
                    assert node == self.mounts.pop(), "not the last one first"
            case ("ps", *_):
                return ""
            case _:
                raise AssertionError(words)
        return ""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    played = Machine()
    monkeypatch.setattr(jails, "_RUNS", tmp_path)
    monkeypatch.setattr(jails, "_ask", played.ask)
    monkeypatch.setattr(jails, "_MODULES", "")
    for run in ("dead", "alive"):
        played.jails[f"dtcplab-{run}-1-0-client"] = ["em0", "em1"]
        played.epairs[f"epair{len(played.epairs)}a"] = f"dtcplab-{run}-"
        (tmp_path / run / "client").mkdir(parents=True)
    played.jails["dtcplab"] = []
    played.epairs["epair7a"] = "dtcp lab"
    root = tmp_path / "dead" / "client"
    played.mounts = ["/", f"{root}", f"{root}/usr", f"{root}/usr/local/etc"]
    return played


def test_a_run_clears_what_dead_ones_have_left_and_nothing_else(
    machine: Machine, tmp_path: Path
) -> None:
    with open(tmp_path / "alive" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with jails._run() as name:
            assert name not in ("dead", "alive")
            assert list(machine.jails) == ["dtcplab-alive-1-0-client", "dtcplab"]
            assert list(machine.epairs) == ["epair1a", "epair7a"]
            assert machine.mounts == ["/"]
            assert {path.name for path in tmp_path.iterdir()} == {"alive", name, "lock"}
        assert {path.name for path in tmp_path.iterdir()} == {"alive", "lock"}


def test_a_jail_without_its_directory_is_cleared_as_well(machine: Machine, tmp_path: Path) -> None:
    """The directory goes last, but somebody may have removed it by hand."""
    machine.mounts = ["/"]
    (tmp_path / "dead" / "client").rmdir()
    (tmp_path / "dead").rmdir()
    with jails._run():
        assert "dtcplab-dead-1-0-client" not in machine.jails


def test_a_directory_with_a_mount_that_cannot_be_removed_stays(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is mounted there would be emptied."""

    def ask(*words: str) -> str:
        return "" if words[0] == "umount" else machine.ask(*words)

    monkeypatch.setattr(jails, "_ask", ask)
    with jails._run():
        assert (tmp_path / "dead" / "client").is_dir()
