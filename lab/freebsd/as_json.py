"""json(3), of which only the part in C is imported: the rest takes a third of a command's time."""

from __future__ import annotations

import _json

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any


class _Context:
    """What the scanner asks a json.JSONDecoder for."""

    strict, memo = True, {}  # type: ignore[var-annotated]
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, None


_scan: Any = _json.make_scanner(_Context)  # type: ignore[arg-type]


def loads(text: str) -> Any:
    """The value that a JSON text begins with, without white space before it."""
    value, _ = _scan(text, 0)
    return value


def dumps(value: object) -> str:
    """A value as JSON, objects as dictionaries of their attributes."""
    string: Any = _json.encode_basestring_ascii
    encode: Any = _json.make_encoder(None, vars, string, None, ": ", ", ", False, False, True)
    return "".join(encode(value, 0))
