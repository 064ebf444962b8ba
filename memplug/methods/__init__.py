"""The methods by name. A new one is a module and a line here; none is imported before it is used."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["FAMILIES", "METHODS", "SEQ2SEQ", "Registered", "choose", "find_method"]


class Registered(NamedTuple):
    """A method's name, its class (or a function that picks it by the config) and its config's class."""

    name: str
    method: Callable[..., Any]
    config: type[Any]


METHODS = {
    "llp": "llp:open_llp:LLPConfig",
    "elder": "elder:open_elder:ELDERConfig",
    "finetune": "finetune:FineTune:FineTuneConfig",
    "memit": "memit:MEMIT:MEMITConfig",
    "alphaedit": "alphaedit:AlphaEdit:AlphaEditConfig",
    "lora": "lora:LoRA:LoRAConfig",
    "icl": "icl:ICL:ICLConfig",
    "grace": "grace:open_grace:GRACEConfig",
    "ultraedit": "ultraedit:UltraEdit:UltraEditConfig",
    "mend": "mend:MEND:MENDConfig",
    "malmen": "malmen:MALMEN:MALMENConfig",
    "rledit": "rledit:RLEdit:RLEditConfig",
    "hiedit": "hiedit:HiEdit:HiEditConfig",
    "smedit": "smedit:SMEdit:SMEditConfig",
}
"""Name -> module, method class and config class."""

FAMILIES = {"llp": "memory", "elder": "memory", "grace": "memory", "icl": "prompt"}
"""Where a method keeps its edits; all others keep them in the weights."""


SEQ2SEQ = ("finetune", "lora", "ultraedit", "mend", "malmen", "rledit", "hiedit", "smedit")
"""Those that edit encoder-decoders: they look for no place of the prompt in what the decoder reads. Nor does
grace as published."""


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


def choose(method: str | Any, preset: str, constants: dict[str, Any]) -> tuple[Registered, Any]:
    """A method and its config, from a name with a preset and constants, or from a config object.

    Raises:
        ValueError: no such method, preset or constant, or constants beside a config object.
    """
    if isinstance(method, str):
        registered = find_method(method)
        return registered, registered.config.preset(preset, **constants)
    for registered in map(find_method, METHODS):
        if type(method) is registered.config:
            if constants or preset != "default":
                raise ValueError("a config object comes with its constants; set them there")
            return registered, method
    raise ValueError(f"method is a {type(method).__name__}; give one of {', '.join(METHODS)} or its config")
