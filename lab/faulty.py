"""Run a real FreeBSD command, possibly with a fault: `faulty.py COMMAND [ARGUMENT ...]`.

Started by a wrapper that is first in the PATH of a jail (``jails``) if there is a list of faults.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

# Started from anywhere, without the package: the path of this file locates the rest.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> int:
    real, *arguments = sys.argv[1:]
    name = Path(real).name
    faults = importlib.import_module("lab.freebsd.faults")
    rule = faults.due(name, arguments)
    if rule is None:
        os.execv(real, [name, *arguments])
    work = functools.partial(subprocess.call, [real, *arguments])
    pid_file = rule.get("pid_file", faults.PID_FILE)
    return int(faults.go_wrong(rule["do"], name, work, pid_file))


if __name__ == "__main__":
    sys.exit(main())
