"""Every input in the fuzzer's corpus has the same, documented outcome on every run."""

from __future__ import annotations

import pytest

from fuzz.targets import CORPUS, TARGETS
from tests.trust import Figure


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_comes_to_a_documented_end(name: str, figure: Figure) -> None:
    files = sorted((CORPUS / name).iterdir())
    ends = {TARGETS[name](file.read_bytes()) for file in files}
    assert len(ends) > 7
    promise = "Whatever bytes come, what comes of them is documented, and nothing piles up"
    figure(promise, "conversations that a fuzzer found", len(files))
