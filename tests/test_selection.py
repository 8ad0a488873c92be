"""The sample that `make test` takes is complete: ten consecutive commits take everything."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import selection
from tests.rows import Due
from tests.running import ROOT
from tests.selection import COMMITS


@pytest.mark.parametrize("begin", [0, 1, 7, 123])
@pytest.mark.parametrize("turns", [1, 2, 5, 10])
def test_ten_commits_take_every_row(begin: int, turns: int) -> None:
    for size in (1, 2, 3, 9, 10, 11, 64):
        table = [f"row {n}" for n in range(size)]
        seen: set[str] = set()
        for number in range(begin, begin + COMMITS, turns):
            due = Due(turn=number // turns, parts=COMMITS // turns).among(table)
            assert len(due) <= -(-size // min(COMMITS // turns, size))
            seen.update(due)
        assert seen == set(table)


def test_what_failed_comes_first_and_one_can_be_asked_for() -> None:
    table = [f"row {n}" for n in range(20)]
    due = Due(turn=3, parts=10, first=["row 17", "row 13"])
    assert due.among(table) == ["row 13", "row 17", "row 3"]
    assert due._replace(whole=True).among(table)[:3] == ["row 13", "row 17", "row 0"]
    assert len(due._replace(whole=True).among(table)) == 20
    assert due._replace(only="row 5").among(table) == ["row 5"]


def test_ten_commits_take_every_test(request: pytest.FixtureRequest) -> None:
    """Of all that this run has found; those that prove the lab have their own rule."""
    everything = request.config.stash[selection.FOUND]
    taken = [
        {item.nodeid for item in selection.choose(everything, number, lab_is_proven=True)}
        for number in range(COMMITS)
    ]
    apart = ("proves_lab", "whole")
    programs = {item.nodeid for item in everything if not any(map(item.get_closest_marker, apart))}
    assert set().union(*taken) == programs
    both = {
        item.nodeid
        for item in everything
        if item.get_closest_marker("dialects") and not item.get_closest_marker("turns")
    }
    assert all(both <= each for each in taken)
    changed = {item.nodeid for item in selection.choose(everything, 0, lab_is_proven=False)}
    proofs = {item.nodeid for item in everything if item.get_closest_marker("proves_lab")}
    assert changed - programs == proofs


@pytest.mark.parametrize("begin", range(COMMITS))
def test_as_many_commits_as_turns_take_every_row(
    request: pytest.FixtureRequest, begin: int
) -> None:
    """Each with one release or the other."""
    everything = request.config.stash[selection.FOUND]
    for name, items in selection.groups(everything, selection.without_parameters).items():
        marker = items[0].get_closest_marker("turns")
        if marker is None or items[0].get_closest_marker("whole"):
            continue
        taken = [
            item
            for number in range(begin, begin + marker.args[0])
            for item in selection.choose(items, number, lab_is_proven=False)
        ]
        rows = set(map(selection.without_release, items))
        assert set(map(selection.without_release, taken)) == rows, name


TABLE = """
def test_of_a_table(rows):
    for row in rows([*"abcdefghij", "it's $bad"]):
        print("row", row)
        assert "bad" not in row
"""


def test_a_row_that_fails_names_itself_and_comes_first_the_next_time(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_it.py").write_text(TABLE)
    path = f"{ROOT}:{ROOT / 'lib'}"

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-s", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "SAMPLE": "0", "FIGURES": ""},
            capture_output=True,
            text=True,
        )
        return done.stdout

    said = run("--all")
    command = re.findall("(?m)^make test T=(.*)$", said)[0].replace("$$", "$")
    words = shlex.split(shlex.split(command)[0])
    assert words == ["test_it.py::test_of_a_table", "--row", "it's $bad"]
    assert re.findall("row (.*)", run(*words).partition("\n=")[0])[0] == "it's $bad"
    shown = re.findall("(?m)row (.*)$", run())
    assert shown[0] == "it's $bad"


def test_each_smoke_test_is_of_a_subject_of_its_own(request: pytest.FixtureRequest) -> None:
    everything = request.config.stash[selection.FOUND]
    smoke = [
        item.nodeid.partition("::")[0]
        for item in selection.for_check(everything)
        if item.get_closest_marker("smoke")
    ]
    assert len(smoke) == len(set(smoke))
