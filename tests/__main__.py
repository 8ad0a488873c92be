"""The three test runs: `python -m tests check|test|all`, as root.

    check   a quick check, in a minute
    test    every behavior once, and a sample of the big tables (tests/selection.py)
    all     everything; writes docs/trust.md
    only    the following words go to pytest: a file, a test, its options

JOBS in the environment: how many tests run in parallel; 6 by default.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from tests import trust

PYTHON = sys.executable
JOBS = os.environ.get("JOBS", "6")
# The whole run lives in namespaces of its own (lab/enclosure.py).
PYTEST = [PYTHON, "-m", "lab", "run", PYTHON, "-m", "pytest", "--failed-first"]
SIDE_BY_SIDE = ["-n", JOBS, "--dist", "worksteal"]
LINTERS = [
    [PYTHON, "-m", "ruff", *words] for words in (["check", "-q"], ["format", "-q", "--check"])
]
LINTERS += [[PYTHON, "-m", "mypy", "--no-error-summary"]]


def commands(run: str, words: list[str]) -> list[list[str]]:
    """The commands that a run is made of.

    Raises:
        KeyError: there is no such run.
    """
    whole = ["--all"] if run == "all" else []
    together = [
        [*PYTEST, "-q", "-m", "alone", *whole],
        [*PYTEST, "-q", "-m", "not alone", "--durations=10", *SIDE_BY_SIDE, *whole],
    ]
    return {
        "check": [[*PYTEST, "-q", "--check", *SIDE_BY_SIDE]],
        "test": together,
        "all": together,
        "only": [[*PYTEST, *words]],
    }[run]


def main(run: str = "test", *words: str) -> int:
    begun = time.monotonic()
    # Beside the first tests, which leave the processors time.
    linters = [subprocess.Popen(command) for command in LINTERS if run != "only"]
    with tempfile.NamedTemporaryFile() as figures:
        for command in commands(run, list(words)):
            status = subprocess.call(command, env={**os.environ, "FIGURES": figures.name})
            failed = [each for each in (status, *(linter.wait() for linter in linters)) if each]
            if failed:
                return failed[0]
        took = time.monotonic() - begun
        if run == "all":
            trust.write(figures.name, took)
    print(f"{run}: all is well, after {took:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
