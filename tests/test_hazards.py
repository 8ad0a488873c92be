"""Every line of tests/hazards.py has a test that names it; and checks of the source text."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

import pytest

from tests.hazards import HAZARDS
from tests.running import ROOT
from tests.trust import Figure

PROGRAMS = [ROOT / "dtcpc.py", ROOT / "dtcps.py", *sorted((ROOT / "lib").rglob("*.py"))]


def test_every_hazard_has_a_test_that_names_it(figure: Figure) -> None:
    named: dict[object, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.hazard":
                for argument in node.args:
                    named[ast.literal_eval(argument)].add(path.name)
    assert sorted(map(str, set(HAZARDS) - set(named))) == [], "these have no test"
    assert sorted(map(str, set(named) - set(HAZARDS))) == [], "these are no lines of the list"
    assert {*range(1, 48)} <= {*HAZARDS}
    figure("Every known hazard has a test", "hazards", len(HAZARDS))


@pytest.mark.hazard("C4")
@pytest.mark.parametrize("page", ["dtcpc.8", "dtcps.8"])
def test_the_manual_says_what_is_not_protected(page: str) -> None:
    text = re.sub(r"\s+", " ", (ROOT / "man" / page).read_text())
    section = text.partition("SECURITY")[2]
    assert "neither encrypted nor authenticated" in section
    assert "digest" in section


@pytest.mark.hazard("K11")
def test_nothing_is_kept_where_everybody_may_write() -> None:
    for path in PROGRAMS:
        assert not re.search(r"/tmp\b|\btempfile\b|mktemp", path.read_text()), path


@pytest.mark.hazard("K2", 39)
def test_no_shell_is_asked() -> None:
    for path in PROGRAMS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("os.system", "os.popen", "eval", "exec"), path
                assert not any(word.arg == "shell" for word in node.keywords), path
