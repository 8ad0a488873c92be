"""A program that says at its end what it has of TLS: `imported.py PROGRAM WORD...`."""

from __future__ import annotations

import atexit
import runpy
import sys


def _tell() -> None:
    found = {"ssl", "_ssl", "dtcp.tls"} & {*sys.modules}
    print("imported:", *sorted(found), file=sys.stderr, flush=True)


if __name__ == "__main__":
    atexit.register(_tell)
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
