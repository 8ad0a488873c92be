"""A program with other limits of the protocol: `hasty.py NAME=SECONDS... PROGRAM WORD...`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "lib"))
    from dtcp import wire

    while "=" in sys.argv[1]:
        name, _, seconds = sys.argv.pop(1).partition("=")
        assert hasattr(wire, name)
        setattr(wire, name, float(seconds))
    del sys.argv[0]
    runpy.run_path(str(ROOT / f"{sys.argv[0]}.py"), run_name="__main__")
