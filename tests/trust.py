"""docs/trust.md: what is promised, and what the last full test run showed of it.

With the `figure` fixture a test says which promise it shows and what it counted; the `hazard`
marker says which lines of tests/hazards.py it proves.  If FIGURES names a file, a run appends
what its passed tests said to that file; `make test-all` then writes the tables between the marks in
docs/trust.md.  Figures that vary from run to run belong in `-s` output, not here.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from tests import selection
from tests.hazards import HAZARDS

BEGIN, END = "<!-- written by the tests: -->\n", "<!-- to here -->\n"

Figure = Callable[[str, str, int | str], None]


class Recorder:
    """A pytest plugin: appends what passed tests say of themselves to a file, a JSON list each.

    Workers of xdist carry it here in the `user_properties` of their reports.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = [[name, value] for name, value in report.user_properties if name in KINDS]
        if said and report.when == "call" and report.passed:
            test = report.nodeid.partition("[")[0]
            with open(self._path, "a") as file:
                file.writelines(json.dumps([test, *each]) + "\n" for each in said)


KINDS = ("figure", "hazard")


def configure(config: pytest.Config) -> None:
    """Record, if we are asked to and are no worker of xdist."""
    path = os.environ.get("FIGURES")
    if path and not hasattr(config, "workerinput"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        config.pluginmanager.register(Recorder(path))


def tables(lines: Iterable[str]) -> str:
    """The tables, from the lines of a Recorder.

    Numbers that several runs of one test gave for one thing are added up; words are listed.
    """
    promises: dict[str, dict[str, dict[str, list[int | str]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    hazards: dict[str, set[str]] = defaultdict(set)
    for test, kind, value in map(json.loads, lines):
        if kind == "figure":
            promise, what, figure = value
            promises[promise][test][what].append(figure)
        else:
            for name in value:
                hazards[str(name)].add(test)
    rows = sorted((sorted(tests), promise, tests) for promise, tests in promises.items())
    promised = [
        (promise, _tests(names), "; ".join(_figures(each) for _, each in sorted(tests.items())))
        for names, promise, tests in rows
    ]
    listed = [(str(name), gist, _tests(hazards[str(name)])) for name, gist in HAZARDS.items()]
    return (
        _table(("What is promised", "Shown by", "Counted in the last run"), promised)
        + "\n"
        + _table(("Hazard", "What may happen, and the required result", "Shown by"), listed)
    )


def _tests(names: Iterable[str]) -> str:
    return "<br>".join(f"`{name.removeprefix('tests/')}`" for name in sorted(names))


def _figures(figures: dict[str, list[int | str]]) -> str:
    shown = []
    for what, values in sorted(figures.items()):
        numbers = [value for value in values if isinstance(value, int)]
        words = sorted({value for value in values if isinstance(value, str)})
        shown.append(f"{what}: {', '.join([*([f'{sum(numbers):,}'] if numbers else []), *words])}")
    return "; ".join(shown)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(c.replace('|', '/') for c in each)} |\n" for each in lines)


def write(path: str, seconds: float) -> None:
    """Write docs/trust.md from the file of a whole run that took so long."""
    with open(path) as file:
        made = tables(file)
    words = ["git", "-C", str(selection.ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    run = (
        f"The last full run: commit {commit}, {seconds / 60:.0f} minutes. It also compared the lab"
        f" with the recordings (checksum {selection.lab_digest()}).\n"
    )
    before, _, rest = selection.TRUST.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    selection.TRUST.write_text(f"{before}{BEGIN}\n{run}\n{made}\n{END}{after}")
