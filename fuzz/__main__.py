"""Let the coverage guide the fuzzing: `python -m fuzz client|server [OPTION OF LIBFUZZER...]`.

Needs the package atheris.  Reads and extends the corpus in fuzz/corpus; stop it with ^C, or give it
a time: `-max_total_time=300`.  What made it fail is repeated by `python -m fuzz client crash-...`.
Without atheris work `python -m fuzz client seed`, which writes first files into a corpus, and
`python -m fuzz client shrink`, which removes those that add nothing to the smaller ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "lib")]


def seed(name: str) -> None:
    """Write a few conversations as they really happen, more or less."""
    from fuzz import targets
    from tests.conversations import chance, client_says, server_says

    for number in range(40):
        r = chance("seed", number)
        says = server_says(r) if name == "client" else client_says(r, targets.CHALLENGE)
        path = targets.CORPUS / name / f"seed-{number:02}"
        path.write_bytes(targets.packed(r.randrange(32), says))


def shrink(name: str) -> None:
    """Keep the files that go a way which no smaller one goes, or come to another end."""
    from fuzz import targets

    known: set[object] = set()
    files = sorted((targets.CORPUS / name).iterdir(), key=lambda file: file.stat().st_size)
    for file in files:
        seen = _ways(targets.TARGETS[name], file.read_bytes())
        if seen <= known:
            file.unlink()
        known |= seen


def _ways(target: Callable[[bytes], str], data: bytes) -> set[object]:
    """From which line to which it goes in our library, and to which end."""
    seen: set[object] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if "/dtcp/" not in frame.f_code.co_filename:
            return None
        before = [0]

        def line(frame: FrameType, event: str, _: Any) -> Any:
            seen.add((frame.f_code.co_filename, before[0], frame.f_lineno))
            before[0] = frame.f_lineno
            return line

        return line(frame, event, None)

    sys.settrace(trace)
    try:
        seen.add(target(data))
    finally:
        sys.settrace(None)
    return seen


def main(name: str, *words: str) -> None:
    if words in (("seed",), ("shrink",)):
        (seed if words == ("seed",) else shrink)(name)
        return
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with atheris.instrument_imports(include=["dtcp"]):
        from dtcp import grant, wire  # noqa: F401
    from fuzz import targets

    corpus = [] if any(not word.startswith("-") for word in words) else [targets.CORPUS / name]
    atheris.Setup([sys.argv[0], *words, *map(str, corpus)], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
