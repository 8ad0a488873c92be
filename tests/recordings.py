"""The recordings of FreeBSD's commands, tests/freebsd/RELEASE/*.txt.

What was typed and what was said: ``# command``, what it printed, standard error marked ``2> ``,
``[exit N]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

RECORDINGS = Path(__file__).parent / "freebsd"


@dataclass
class Answer:
    """What a command printed, and its exit status."""

    out: str
    err: str
    status: int


@dataclass
class Line:
    """A recorded command line."""

    name: str  # file:number command
    command: str
    answer: Answer
    heading: str  # of the part of the recording it stands in


def parse(file: Path) -> list[Line]:
    """The command lines of a recording, and what the real commands said."""
    lines: list[Line] = []
    open_line, heading = False, ""
    for text in file.read_text().splitlines():
        if not open_line and text.startswith("# "):
            command = text[2:]
            name = f"{file.stem}:{len(lines) + 1} {command}"
            lines.append(Line(name, command, Answer("", "", 0), heading))
            open_line = True
        elif not open_line:
            # Other headings are about smaller parts, other lines the log of the far end.
            heading = text if text.startswith("--- === ") else heading
        elif text.startswith("2> "):
            lines[-1].answer.err += text[3:] + "\n"
        elif match := re.fullmatch(r"\[exit (\d+)\].*", text):
            lines[-1].answer.status = int(match.group(1))
            open_line = False
        else:
            lines[-1].answer.out += text + "\n"
    return lines
