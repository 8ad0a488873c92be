"""``python -m lab``: run a command in an enclosure, or the demo in one."""

import argparse
import sys

from lab import demo, enclosure, hands
from lab.machine import machine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab")
    jobs = parser.add_subparsers(dest="job", required=True, metavar="run|demo")
    run = jobs.add_parser("run", help="run a command; nothing that it makes outlives it")
    run.add_argument("command", metavar="COMMAND")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    show = jobs.add_parser("demo", help="show a tunnel from its first line to its last")
    what = show.add_mutually_exclusive_group()
    what.add_argument("--type", choices=demo.TYPES, default="host")
    what.add_argument("--server", action="store_true", help="leave it up, for trying by hand")
    show.add_argument("--release", choices=machine.RELEASES, default=machine.RELEASES[0])
    options = parser.parse_args()
    if options.job == "run":
        return enclosure.run([options.command, *options.arguments])
    if options.server:
        return hands.main(options.release)
    return demo.main(options.type, options.release)


if __name__ == "__main__":
    sys.exit(main())
