"""The sh package, imported without the parts we do not need.

Uses the installed `sh`: under tox once the newest and once the oldest that we
allow, in FreeBSD's port the one that it depends on.
"""

from __future__ import annotations

import configparser
import subprocess
import sys

from tests.running import ROOT

ECHO = "print(sh.Command('/bin/sh')('-c', 'echo a; echo b >&2', _return_cmd=True).stdout)\n"
ITS_ASYNCIO = "sh.RunningCommand.__init__.__globals__['asyncio']"
HEAVY = ("asyncio", "importlib.metadata", "ssl", "email")


def _python(program: str) -> list[str]:
    """What a Python says, a line each."""
    words = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT / 'lib')!r})\nfrom dtcp import lean\n{program}",
    ]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\n")[:-1]


def test_what_is_large_stays_out() -> None:
    seen = _python(
        "sh = lean.load()\n" + ECHO + f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert seen == ["b'a\\n'", "[]"]


def test_the_real_ones_are_there_for_who_wants_them() -> None:
    seen = _python(
        "sh = lean.load()\n"
        + ECHO
        + "import asyncio\n"
        + "print(asyncio.run(asyncio.sleep(0, 'slept')))\n"
        + f"print({ITS_ASYNCIO}.Event is asyncio.Event)\n"  # what the stand-in does not have
        + "from importlib import metadata\n"
        + "print(metadata.version('sh')[0] > '1')\n"
        + ECHO
    )
    assert seen == ["b'a\\n'", "slept", "True", "True", "b'a\\n'"]


def test_what_is_there_already_is_used() -> None:
    seen = _python(
        "import asyncio\n"
        "sh = lean.load()\n"
        f"print({ITS_ASYNCIO} is asyncio is sys.modules['asyncio'], lean.load() is sh)"
    )
    assert seen == ["True True"]


def test_where_they_do_not_fit_it_is_imported_as_it_is() -> None:
    """As with a later `sh`, which wants something of them while it is imported."""
    for name in ("asyncio", "importlib.metadata"):
        seen = _python(
            f"lean._STAND_INS[{name!r}].clear()\n"
            "sh = lean.load()\n"
            f"print(sh is sys.modules['sh'], {ITS_ASYNCIO} is sys.modules['asyncio'])\n"
            "print(sh.__version__ != 'unknown')\n" + ECHO
        )
        assert seen == ["True True", "True", "b'a\\n'"]


def test_the_oldest_that_is_tested_is_the_oldest_that_is_allowed() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    allowed = setup["options"]["install_requires"].strip()
    assert allowed.startswith("sh>=")
    tested = setup["testenv:oldest"]["deps"].split()
    assert f"sh=={allowed.removeprefix('sh>=')}.0" in tested
    assert f"}}{allowed}:" in (ROOT / "Makefile").read_text()
