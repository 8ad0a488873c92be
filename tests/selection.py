"""Which tests a run takes, and which rows of the big tables.

A full run (`--all`) takes everything.  Any other takes a sample of each table, and only one release
of FreeBSD where a test is the same in both.  The sample rotates with the commit number, so that any
ten consecutive commits take everything, or with SAMPLE=number in the environment.
Rows that failed last time come first, whatever the sample.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from tests.rows import Due, is_due

ROOT = Path(__file__).resolve().parent.parent
TRUST = ROOT / "docs/trust.md"
COMMITS = 10  # in a row, that together take everything

NUMBER = pytest.StashKey[int]()  # of the sample
FOUND = pytest.StashKey[Sequence[pytest.Item]]()  # all tests, before some are chosen

T = TypeVar("T")


def sample_number() -> int:
    """The number of the commit in its history; in a checkout without one, 0."""
    if "SAMPLE" in os.environ:
        return int(os.environ["SAMPLE"])
    words = ["git", "-C", str(ROOT), "rev-list", "--count", "HEAD"]
    try:
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return 0


# --- tests ----------------------------------------------------------------------------------------


def choose(items: Iterable[pytest.Item], number: int, *, lab_is_proven: bool) -> list[pytest.Item]:
    """The tests that the sample of this number has, in their order."""
    no_more = ("whole", "proves_lab") if lab_is_proven else ("whole",)
    items = [each for each in items if not any(map(each.get_closest_marker, no_more))]
    out: set[str] = set()
    for name, each in groups(items, without_release).items():
        # The same test for both releases: they take turns, and tests differ in who begins.
        if len(each) > 1 and not any(map(each[0].get_closest_marker, ("dialects", "proves_lab"))):
            due = (zlib.crc32(name.encode()) + number) % len(each)
            out |= {item.nodeid for place, item in enumerate(each) if place != due}
    for each in groups(items, without_parameters).values():
        marker = each[0].get_closest_marker("turns")
        if marker is not None:
            rows = list(dict.fromkeys(map(without_release, each)))
            parts = marker.args[0]
            taken = {row for place, row in enumerate(rows) if is_due(place, parts, number)}
            out |= {item.nodeid for item in each if without_release(item) not in taken}
    return [item for item in items if item.nodeid not in out]


def for_check(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Of those, what `make check` takes: no lab, but a smoke test for each subject."""
    smoke = [item for item in items if item.get_closest_marker("smoke")]
    ones = {each[0].nodeid for each in groups(smoke, without_parameters).values()}
    return [
        item
        for item in items
        if item.nodeid in ones or not any(map(item.get_closest_marker, ("lab", "long", "alone")))
    ]


def groups(
    items: Iterable[pytest.Item], key: Callable[[pytest.Item], str]
) -> dict[str, list[pytest.Item]]:
    found: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return found


def without_parameters(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def without_release(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    if callspec is None or "release" not in callspec.params:
        return item.nodeid
    return item.nodeid.replace(callspec.params["release"], "*")


def lab_digest() -> str:
    """What the tests that prove the lab depend on: what it is on Linux, and the recordings."""
    digest = hashlib.sha256()
    files = [ROOT / "lab" / f"{name}.py" for name in ("host", "internet", "linux", "machine")]
    files += [*(ROOT / "lab/freebsd").rglob("*.py"), *(ROOT / "tests/freebsd").rglob("*")]
    for path in sorted(files):
        if path.is_file():
            digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def lab_is_proven() -> bool:
    """Whether the last whole run, which docs/trust.md tells of, had this lab."""
    return lab_digest() in TRUST.read_text()


# --- rows -----------------------------------------------------------------------------------------


class Rows:
    """The rows of one test's table that are due: `for row in rows(table)`.

    When the test ends in the middle, that row has failed.  A test whose table another process goes
    through gives it `due`, and says itself in `failed` which rows have.
    """

    def __init__(self, config: pytest.Config, nodeid: str, turns: int) -> None:
        """`turns`: how many commits in a row it takes until the test itself is taken."""
        self._cache: pytest.Cache | None = getattr(config, "cache", None)  # -p no:cacheprovider
        self._nodeid = nodeid
        self._key = f"rows/{zlib.crc32(nodeid.encode()):08x}"
        self._failed_before: list[str] = self._cache.get(self._key, []) if self._cache else []
        self.failed: list[str] = []
        self.due = Due(
            # Tests of the same commit begin with different rows.
            turn=config.stash[NUMBER] // turns + zlib.crc32(nodeid.encode()),
            parts=COMMITS // turns,
            whole=config.getoption("--all"),
            first=self._failed_before,
            only=config.getoption("--row"),
        )

    def __call__(self, table: Sequence[T]) -> Iterator[T]:
        for row in self.due.among(table):
            self.failed = [str(row)]
            yield row
        self.failed = []

    def close(self) -> None:
        """Remember what has failed."""
        if self._cache and self.failed != self._failed_before:
            self._cache.set(self._key, self.failed)

    def how_to_repeat(self) -> str:
        """For each row that failed, the command that runs it alone."""
        words = [shlex.join([self._nodeid, "--row", row]) for row in self.failed]
        # For the shell, which starts make, which starts a shell.
        return "\n".join(f"make test T={shlex.quote(each)}".replace("$", "$$") for each in words)
