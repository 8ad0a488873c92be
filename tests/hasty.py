"""A program with other limits: `hasty.py MODULE.NAME=SECONDS... PROGRAM WORD...`."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "lib"))
    while "=" in sys.argv[1]:
        limit, _, seconds = sys.argv.pop(1).partition("=")
        module, _, name = limit.rpartition(".")
        of = importlib.import_module(f"dtcp.{module}")
        assert hasattr(of, name)
        setattr(of, name, float(seconds))
    del sys.argv[0]
    runpy.run_path(str(ROOT / f"{sys.argv[0]}.py"), run_name="__main__")
