"""Benchmarks: what the programs cost, measured beside a reference that runs in the same minutes.

``python -m bench`` (``make bench``) prints a table and writes RESULTS.md.  ``place`` is the
environment of a run, ``figures`` the results, ``stubs`` commands that do nothing; ``start``,
``waiting``, ``recovery`` and ``serving`` (with ``server`` and ``crowd``) do the measuring.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))
