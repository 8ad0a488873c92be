"""Figures, and the table of them."""

from __future__ import annotations

import os
import platform
import time
from typing import NamedTuple

HEAD = ("figure", "measured", "against", "ratio", "goal", "met")


class Figure(NamedTuple):
    """One line of the table."""

    what: str
    measured: str
    against: str  # the reference that ran in the same minutes, and its figure
    ratio: float | None
    goal: str  # empty: no goal, only reported
    met: bool | None

    def cells(self) -> tuple[str, ...]:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        met = {True: "yes", False: "NO", None: ""}[self.met]
        return (self.what, self.measured, self.against, ratio, self.goal, met)


def not_measured(what: str, why: str, goal: str = "") -> Figure:
    """A line for a figure that could not be measured."""
    return Figure(what, "not measured", why, None, goal, None)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def table(figures: list[Figure]) -> str:
    """The table for a terminal: one paragraph per line, since the lines are long."""
    lines = []
    for each in figures:
        head = f"{each.what}: {each.measured}"
        rest = [each.against]
        rest += [f"ratio {each.ratio:.2f}"] if each.ratio is not None else []
        rest += [f"goal {each.goal}"] if each.goal else []
        verdict = {True: "[ok]", False: "[NO]", None: "[--]"}[each.met]
        lines.append(f"{verdict} {head}\n        {'; '.join(filter(None, rest))}")
    return "\n".join(lines)


def results(figures: list[Figure], *, quick: bool, seconds: float) -> str:
    """RESULTS.md."""
    rows = [HEAD, tuple("---" for _ in HEAD), *(each.cells() for each in figures)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    form = "`make bench QUICK=1`, the short form" if quick else "`make bench`"
    load = os.getloadavg()
    return "\n".join(
        (
            "# Results",
            "",
            f"Written by {form}, on {time.strftime('%Y-%m-%d')}, in {seconds:.0f} s;"
            f" {platform.system()} {platform.release()}, Python {platform.python_version()},"
            f" {os.cpu_count()} processors, load averages at the end"
            f" {load[0]:.1f} {load[1]:.1f} {load[2]:.1f}.",
            "",
            "The absolute figures are this machine's, and whoever else used it then; what counts"
            " is the ratio to what ran in the same minutes.  Medians, where nothing else is said.",
            "None of it is from a real FreeBSD.",
            "",
            *lines,
            "",
        )
    )
