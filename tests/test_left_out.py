"""Tests excluded on FreeBSD are named, and every name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import left_out

ROOT = Path(__file__).resolve().parents[1]
NAMES = [name for names in left_out.NAMES.values() for name in names.split("\n        ")[1:-1]]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_that_of_a_test(name: str) -> None:
    path, _, function = name.partition("::")
    text = (ROOT / path).read_text()
    function, _, parameter = function.partition("[")
    assert not function or re.search(rf"^def {function}\(", text, re.M)
    assert not parameter or f'"{parameter[:-1]}"' in text


def test_the_summary_counts() -> None:
    assert left_out.summary(["one", "other", "one"]) == [
        "left out on FreeBSD: 2 tests: one",
        "left out on FreeBSD: 1 test: other",
    ]
