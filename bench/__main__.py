"""``python -m bench [--quick]``: measure, print the table, write RESULTS.md."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench import figures, handshakes, healing, place, recovery, serving, start
from bench.figures import Figure
from bench.waiting import SETTLING, Waiting, waiting, waiting_over_tls

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


class Form(NamedTuple):
    """How much to measure."""

    starts: int
    recoveries: int
    pings: int  # that the waiting client sends, once a minute
    silence: bool  # which takes a minute and a half to detect
    sessions: int
    logins: int
    seconds: float  # of waiting sessions


QUICK = Form(10, 1, 1, False, 400, 60, 5)
FULL = Form(40, 3, 3, True, serving.SESSIONS, 300, 30)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--quick", action="store_true", help="the short form: one minute")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        return place.run([sys.executable, "-m", "bench", "--inside", *sys.argv[1:]])
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), QUICK if options.quick else FULL)
    took = time.monotonic() - begun
    print(figures.table(found))
    RESULTS.write_text(figures.results(found, quick=options.quick, seconds=took))
    print(f"\n{took:.0f} s; bench/RESULTS.md is written.")
    return 0


def measure(directory: Path, form: Form) -> list[Figure]:
    """All figures, in the order of the table."""
    installed = place.install(directory / "port")
    serve = partial(
        serving.measure,
        installed,
        directory,
        sessions=form.sessions,
        logins=form.logins,
        seconds=form.seconds,
    )
    shake = partial(handshakes.measure, installed, directory)
    if not place.is_real_root():
        return [
            figures.not_measured("client", "needs root: its unprivileged process, and the lab"),
            *tried("server", serve),
            *tried("server, handshakes", shake),
        ]
    # The client checks that the interface named by the stubs exists, so it must.
    subprocess.run(["ip", "link", "add", "gif0", "type", "veth"], check=True)
    # Whatever takes a minute or two, and costs nothing, runs alongside the rest.
    with waiting(installed, directory) as client, ThreadPoolExecutor() as aside:
        wake_ups = aside.submit(client.wake_ups, form.pings)
        silence = aside.submit(recovery.silence) if form.silence else None
        unheard = aside.submit(healing.silence) if form.silence else None
        found = tried(
            "client, time to tunnel", partial(start.measure, installed, directory, form.starts)
        )
        found += tried("recovery", partial(recovery.measure, form.recoveries))
        found += tried("healing", partial(healing.measure, form.recoveries))
        held = tried("client, memory while it waits", partial(memory, client))
        held += tried("client, memory with --tls", partial(memory_with_tls, installed, directory))
        served = tried("server", serve) + tried("server, handshakes", shake)
        if silence is None:
            found += [figures.not_measured(recovery.SILENCE, "not in the short form")]
        else:
            found += tried(recovery.SILENCE, partial(alone, silence))
        if unheard is None:
            found += [figures.not_measured(healing.SILENCE, "not in the short form")]
        else:
            found += tried(healing.SILENCE, partial(alone, unheard))
        found += held
        found += tried("client, work while it waits", partial(alone, wake_ups))
        found += served
    return found


def alone(figure: Future[Figure]) -> list[Figure]:
    return [figure.result()]


def memory(client: Waiting) -> list[Figure]:
    return [client.memory()]


def memory_with_tls(installed: place.Installed, directory: Path) -> list[Figure]:
    with waiting_over_tls(installed, directory) as client:
        time.sleep(SETTLING)
        return [client.memory(tls=True)]


def tried(what: str, measure: Callable[[], list[Figure]]) -> list[Figure]:
    """The figures or, if they could not be obtained, a line that says why."""
    print(f"measuring: {what} ...", flush=True)
    try:
        return measure()
    except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"{what}: {error}", file=sys.stderr)
        return [figures.not_measured(what, str(error).splitlines()[0])]


if __name__ == "__main__":
    sys.exit(main())
