"""What the documents mention exists: tests, files, and make targets."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.running import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")])
named = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@functools.cache
def _tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@named
def test_every_test_that_it_names_exists(document: Path) -> None:
    for file, name in re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", document.read_text()):
        path = ROOT / "tests" / file
        assert path.exists(), file
        assert not name or name in _tests(path), f"{file}::{name}"


@named
def test_every_target_of_make_that_it_names_exists(document: Path) -> None:
    # On FreeBSD the port is meant: its targets are of bsd.port.mk.
    ours = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "GNUmakefile").read_text()))
    for target in re.findall(r"(?:`|^    )make ([a-z-]+)", document.read_text(), re.MULTILINE):
        assert target in {*ours, "install", "stage", "check-plist", "stage-qa"}, target


@named
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), target
