"""The numbers: what the programs take, measured beside something that runs in the same minutes.

``python -m bench`` (``make bench``) prints a table and writes RESULTS.md.  ``place`` is where it
all runs, ``figures`` what comes of it, ``stubs`` are commands that do nothing; ``start``,
``waiting``, ``recovery`` and ``serving`` (with ``server`` and ``crowd``) measure.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))
