"""``dataclass`` and ``field`` as in dataclasses(3), as far as the lab needs them.

Importing the original would take a fifth of a command's time; mypy reads it all the same.
"""

from __future__ import annotations

TYPE_CHECKING = False  # mypy knows this name; importing typing(3) takes time, too
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass, field
else:

    class field:
        """What makes the default value of a field."""

        def __init__(self, *, default_factory: Callable[[], object]) -> None:
            self.make = default_factory

    def dataclass(cls: type) -> type:
        """Give a class of annotated names an ``__init__``, ``__eq__`` and ``__repr__``."""
        names = tuple(cls.__annotations__)
        defaults = {name: vars(cls)[name] for name in names if name in vars(cls)}

        def init(self: object, *values: object, **named: object) -> None:
            given = dict(zip(names, values, strict=False)) | named
            for name in names:
                if name in given:
                    value = given.pop(name)
                else:
                    value = defaults[name]  # KeyError: a value is missing
                    value = value.make() if isinstance(value, field) else value
                setattr(self, name, value)
            if given:
                raise TypeError(f"{cls.__name__} has no {', '.join(given)}")

        def equal(self: object, other: object) -> bool:
            return type(other) is cls and vars(self) == vars(other)

        def show(self: object) -> str:
            shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
            return f"{cls.__name__}({shown})"

        cls.__init__, cls.__eq__, cls.__repr__ = init, equal, show
        return cls


__all__ = ["dataclass", "field"]
