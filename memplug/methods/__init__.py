"""The methods by name. A new one is a module and a line here; none is imported before it is used."""

from __future__ import annotations

import difflib
import importlib
from typing import Any, NamedTuple

__all__ = ["METHODS", "Registered", "find_method"]


class Registered(NamedTuple):
    """A method's name, its class and its config's class."""

    name: str
    method: type[Any]
    config: type[Any]


METHODS = {
    "llp": "llp:LLP:LLPConfig",
    "elder": "elder:ELDER:ELDERConfig",
}
"""Name -> module, method class and config class."""


def find_method(name: str) -> Registered:
    """The method called ``name``.

    Raises:
        ValueError: there is none; the message names the nearest and all that there are.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no method {name!r}; {hint}available: {', '.join(METHODS)}")
    module, method, config = METHODS[name].split(":")
    loaded = importlib.import_module(f".{module}", __name__)
    return Registered(name, getattr(loaded, method), getattr(loaded, config))
