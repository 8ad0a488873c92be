"""``python -m bench [--quick]``: measure, print the table, write RESULTS.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench import figures, place, start

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--quick", action="store_true", help="the short form: one minute")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        return place.run([sys.executable, "-m", "bench", "--inside", *sys.argv[1:]])
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), quick=options.quick)
    took = time.monotonic() - begun
    print(figures.table(found))
    RESULTS.write_text(figures.results(found, quick=options.quick, seconds=took))
    print(f"\n{took:.0f} s; bench/RESULTS.md is written.")
    return 0


def measure(directory: Path, *, quick: bool) -> list[figures.Figure]:
    installed = place.install(directory / "port")
    found: list[figures.Figure] = []
    found += start.measure(installed, directory, 12 if quick else 40)
    return found


if __name__ == "__main__":
    sys.exit(main())
