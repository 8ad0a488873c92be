"""Run a script of sh(1), in place of this process: `through.py SCRIPT`."""

import os
import sys

if __name__ == "__main__":
    os.execvp("sh", ["sh", "-c", sys.argv[1]])
