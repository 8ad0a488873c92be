"""The package `sh`, without the two modules that cost most of its import.

They are asyncio, for who awaits a command, and importlib.metadata, for the version of `sh`: most of
the time and of the memory, which we would keep for as long as the tunnel stands.  While `sh` is
imported, something smaller stands in their places; where that does not fit, `sh` is imported as it
is.
"""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType
from typing import Any, NoReturn

_alone = threading.Lock()  # who imports


class _Unknown(Exception):
    """The version of a package is not known: to `sh` that is no error."""


def _version(name: str) -> NoReturn:
    raise _Unknown(name)


def _no_loop() -> NoReturn:
    raise RuntimeError("no running event loop")


_STAND_INS: dict[str, dict[str, object]] = {
    "asyncio": {"Queue": object, "get_running_loop": _no_loop},
    "importlib.metadata": {"PackageNotFoundError": _Unknown, "version": _version},
}


class _StandIn(ModuleType):
    """A module with a few names.  Once `sh` is there, any other is taken from the real one."""

    def __init__(self, name: str, contents: dict[str, object]) -> None:
        super().__init__(name)
        self.__dict__.update(contents)

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            raise AttributeError(name)  # `sh` needs more than we thought
        return getattr(importlib.import_module(self.__name__), name)


def load() -> Any:
    """The package `sh`.  Raises ImportError."""
    with _alone:
        if "sh" in sys.modules:
            return sys.modules["sh"]
        stand_ins = {
            name: _StandIn(name, contents)
            for name, contents in _STAND_INS.items()
            if name not in sys.modules
        }
        sys.modules.update(stand_ins)
        try:
            return importlib.import_module("sh")
        except Exception:  # whatever a later `sh` makes of them: without them it may do
            for name in [name for name in sys.modules if name.partition(".")[0] == "sh"]:
                del sys.modules[name]
        finally:
            for name in stand_ins:
                del sys.modules[name]
        return importlib.import_module("sh")
