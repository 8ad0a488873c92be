#!/usr/bin/env -S python3 -IS
"""What every name in ``bin/`` leads to: runs the module of that name."""

from __future__ import annotations

import importlib
import os
import sys

# Hosts enter their namespaces from anywhere: this file says where the rest is.
sys.path.insert(0, os.path.realpath(f"{__file__}/../../.."))


def main() -> int:
    name = os.path.basename(sys.argv[0])
    faults = importlib.import_module("lab.freebsd.faults")
    store = importlib.import_module("lab.freebsd.store")

    def work() -> int:
        with store.Lock():
            module = importlib.import_module(f"lab.freebsd.{name}")
            return int(module.main(sys.argv[1:]))

    # What goes wrong does so outside the lock: one that hangs must not keep the others from
    # their work.
    return int(faults.strike(name, sys.argv[1:], work))


if __name__ == "__main__":
    sys.exit(main())
