"""``python -m lab``: run a command in an enclosure, or the demo."""

import argparse
import sys

from lab import enclosure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="run | demo")
    run = commands.add_parser("run", help="run a command in namespaces of its own that end with it")
    run.add_argument("command", metavar="COMMAND")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    options = parser.parse_args()
    return enclosure.run([options.command, *options.arguments])


if __name__ == "__main__":
    sys.exit(main())
