"""The package sh, imported without what it does not need for us."""

from __future__ import annotations

import subprocess
import sys

from tests.running import ROOT

HEAVY = ("asyncio", "importlib.metadata", "inspect", "ssl", "email")


def _python(program: str) -> list[str]:
    """What a Python says, a line each."""
    words = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT / 'lib')!r})\n{program}",
    ]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\n")[:-1]


def test_what_is_large_stays_out() -> None:
    seen = _python(
        "from dtcp import lean\n"
        "sh = lean.load()\n"
        "print(sh.echo('a', 'b'), end='')\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert seen == ["a b", "[]"]


def test_what_is_large_comes_when_it_is_used() -> None:
    seen = _python(
        "from dtcp import lean\n"
        "sh = lean.load()\n"
        "lines = []\n"
        "def hear(line): lines.append(line)\n"  # sh looks at its arguments with inspect
        "sh.echo('a', _out=hear)\n"
        "print(lines, 'inspect' in sys.modules)\n"
        "import asyncio\n"
        "print(asyncio.run(asyncio.sleep(0, 'slept')))\n"
        "from importlib import metadata\n"
        "print(metadata.version('sh') > '2.2')"
    )
    assert seen == ["['a\\n'] True", "slept", "True"]


def test_what_is_there_already_is_used() -> None:
    seen = _python(
        "import asyncio\n"
        "from dtcp import lean\n"
        "sh = lean.load()\n"
        "print(asyncio is sys.modules['asyncio'], lean.load() is sh)"
    )
    assert seen == ["True True"]
