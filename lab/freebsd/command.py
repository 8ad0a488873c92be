#!/usr/bin/env -S python3 -IS
"""What every name in ``bin/`` leads to: runs the module of that name."""

from __future__ import annotations

import gc
import importlib
import os
import sys

gc.disable()  # it ends before that gains anything
sys.modules["gettext"] = None  # type: ignore[assignment]  # getopt(3) wants it, and it takes long

# Hosts enter their namespaces from anywhere: this file says where the rest is.  The names in
# bin/ are links to it, or copies of it if the lab comes from an archive without links.
sys.path.insert(0, os.path.realpath(__file__).rpartition("/lab/")[0])


def main() -> int:
    name = os.path.basename(sys.argv[0])
    crowd = importlib.import_module("lab.freebsd.crowd")
    faults = importlib.import_module("lab.freebsd.faults")
    store = importlib.import_module("lab.freebsd.store")

    def work() -> int:
        with store.Lock():
            module = importlib.import_module(f"lab.freebsd.{name}")
            return int(module.main(sys.argv[1:]))

    # What goes wrong does so outside the lock, and so does what takes long: it must not keep the
    # others from their work.
    crowd.wait(name, sys.argv[1:])
    return int(faults.strike(name, sys.argv[1:], work))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # at once: Python's own end takes long
