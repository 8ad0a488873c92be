"""How spans of time, bytes, and rows of words are shown to people, and metrics to machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def span(seconds: float) -> str:
    """A span of time in its two largest units."""
    minutes, s = divmod(max(0, int(seconds)), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    parts = [f"{n} {unit}" for n, unit in ((days, "d"), (h, "h"), (m, "min"), (s, "s")) if n]
    return " ".join(parts[:2]) or "0 s"


def size(count: float | None) -> str:
    """A number of bytes, rounded: `1.5M`; `?` when it is not known."""
    if count is None:
        return "?"
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.0f}{unit}" if not unit or count >= 10 else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}T"


def table(rows: Iterable[Iterable[str]]) -> list[str]:
    """Rows of equally many words as lines, each column as wide as its longest word."""
    lines = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(f"{word:<{width}}" for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def metric(
    name: str, kind: str, what: str, samples: Iterable[tuple[Mapping[str, str], float | None]]
) -> list[str]:
    """A metric as lines of Prometheus' text format 0.0.4.

    The samples are labels and values; without a value there is none.
    """
    lines = [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        if value is not None:
            words = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            lines.append(f"{name}{{{words}}} {value}" if words else f"{name} {value}")
    return lines


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
