#!/usr/bin/env -S python3 -IS
"""What every name in ``bin/`` leads to: runs the module of that name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

# Hosts enter their namespaces from anywhere: this file says where the rest is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))


def main() -> int:
    name = Path(sys.argv[0]).name
    faults = importlib.import_module("lab.freebsd.faults")
    store = importlib.import_module("lab.freebsd.store")

    def work() -> int:
        with store.lock():
            module = importlib.import_module(f"lab.freebsd.{name}")
            return int(module.main(sys.argv[1:]))

    # What goes wrong does so outside the lock: one that hangs must not keep the others from
    # their work.
    return int(faults.strike(name, sys.argv[1:], work))


if __name__ == "__main__":
    sys.exit(main())
