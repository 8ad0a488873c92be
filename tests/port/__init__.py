"""The port, staged and installed on Linux: bmake, and a stand-in for FreeBSD's framework."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FRAMEWORK = Path(__file__).resolve().parent
# The Python of the port is the one that runs this.
PYTHON = (
    f"PYTHON_CMD={sys.executable}",
    f"PYTHON_SUFFIX={sys.version_info.major}{sys.version_info.minor}",
)


def needs(command: str, package: str) -> str:
    """The path of a command; the test fails in one line where there is none."""
    path = shutil.which(command)
    if path is None:
        pytest.fail(f"{command} is missing; install the package {package}", pytrace=False)
    return path


def make(*words: str) -> str:
    """What make(1) of FreeBSD says to these words about our Makefile."""
    bmake = shutil.which("make") if sys.platform.startswith("freebsd") else needs("bmake", "bmake")
    assert bmake is not None
    # Another make(1) that runs this has other things in mind.
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        [bmake, "-m", str(FRAMEWORK), *PYTHON, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


class Entry(NamedTuple):
    """One line of the packing list."""

    path: str  # below PREFIX
    mode: int | None  # what pkg(8) makes of it, where that is not the mode in the stage
    sample: bool


def packing_list(*words: str) -> list[Entry]:
    """The packing list."""
    entries = []
    for line in make(*words, "plist").splitlines():
        found = re.fullmatch(r"(@sample(?:\(root,wheel,([0-7]{3})\))? )?(\S+)", line)
        assert found, line
        entries.append(Entry(found[3], int(found[2], 8) if found[2] else None, bool(found[1])))
    return entries


class Port(NamedTuple):
    """The port, staged for a prefix."""

    prefix: Path
    stage: Path  # what do-install has installed, the prefix inside
    choice: tuple[str, ...] = ()  # of options, in words for make(1)

    def staged(self) -> dict[str, Path]:
        """Every file in the stage, by its path below PREFIX."""
        top = Path(f"{self.stage}{self.prefix}")
        files = [each for each in self.stage.rglob("*") if not each.is_dir()]
        return {str(each.relative_to(top)): each for each in files}

    def install(self) -> None:
        """Install it at its prefix, in the way of pkg(8): what the packing list has, no more."""
        for entry in packing_list(*self.choice):
            target = self.prefix / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.staged()[entry.path], target)
            if entry.mode is not None:
                target.chmod(entry.mode)
            if entry.sample and not target.with_suffix("").exists():
                shutil.copy2(target, target.with_suffix(""))

    def use_stand_in(self) -> None:
        """Have the installed rc.d scripts read tests/rc.subr in place of FreeBSD's."""
        for name in ("dtcpc", "dtcps"):
            script = self.prefix / "etc/rc.d" / name
            text = script.read_text()
            assert text.count(". /etc/rc.subr\n") == 1
            script.chmod(0o755)
            script.write_text(text.replace("/etc/rc.subr", str(ROOT / "tests/rc.subr")))


def stage(directory: Path, *choice: str) -> Port:
    """Stage the port for a prefix below an empty directory."""
    port = Port(directory / "prefix", directory / "work" / "stage", choice)
    make(
        *choice,
        f"PREFIX={port.prefix}",
        f"WRKDIR={port.stage.parent}",
        "stage",
    )
    return port
