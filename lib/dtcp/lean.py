"""The package `sh`, without what it imports for others.

Most of its import is asyncio, for who awaits a command; importlib.metadata, for its version number;
logging, which nobody here listens to; and what is needed when a program has gone wrong.  All of
that would come before the client's first command, and stay in memory for as long as its tunnel
does.  So while `sh` is imported, something smaller stands in their places.  What that does not have
is taken from the real module after all, when it is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any


class _Unknown(Exception):
    """The version of a package is not known: to `sh` that is no error."""


def _version(name: str) -> str:
    raise _Unknown(name)


def _no_loop() -> object:
    raise RuntimeError("no running event loop")


class _Silence:
    """A logger that logs nothing."""

    def debug(self, *_: object) -> None:
        pass

    info = error = exception = debug


_STAND_INS: dict[str, dict[str, object]] = {
    "asyncio": {"Queue": object, "get_running_loop": _no_loop},
    "getpass": {},
    "importlib.metadata": {"PackageNotFoundError": _Unknown, "version": _version},
    "inspect": {},
    "logging": {"getLogger": lambda name: _Silence()},
    "platform": {"system": lambda: os.uname().sysname},
    "textwrap": {},
    "traceback": {},
}


class _StandIn(ModuleType):
    """A module with a few names; any other is taken from the real one."""

    def __init__(self, name: str, contents: dict[str, object]) -> None:
        super().__init__(name)
        self.__dict__.update(contents)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for such, and must not find them
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(self.__name__), name)

    def leave(self) -> None:
        """Make way for the real one."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


def load() -> Any:
    """The package `sh`.  Raises ImportError."""
    if "sh" in sys.modules:
        return sys.modules["sh"]
    standing_in = []
    for name, contents in _STAND_INS.items():
        if name not in sys.modules:
            module = sys.modules[name] = _StandIn(name, contents)
            standing_in.append(module)
    try:
        return importlib.import_module("sh")
    finally:
        for module in standing_in:
            module.leave()
