"""memplug: give a loaded Hugging Face language model an editable memory."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import pretrained, world
    from .attaching import attach, load
    from .comparison import Comparison, compare
    from .edits import Case, Edit, EditError, EditTable, Probe, UnknownEditError
    from .evaluation import evaluate
    from .model.architecture import UnsupportedModelError
    from .plugin import Plug
    from .saving.plugs import LoadError, SaveError
    from .store.errors import StoreError
    from .text.chat import Message, PromptError
    from .text.templates import ChatTemplateError
    from .text.tokens import TokenizerError

__version__ = "0.1.0"

__all__ = [
    "Case",
    "ChatTemplateError",
    "Comparison",
    "Edit",
    "EditError",
    "EditTable",
    "LoadError",
    "Message",
    "Plug",
    "Probe",
    "PromptError",
    "SaveError",
    "StoreError",
    "TokenizerError",
    "UnknownEditError",
    "UnsupportedModelError",
    "attach",
    "compare",
    "evaluate",
    "load",
    "pretrained",
    "world",
]

# Public name -> its module; imported when first asked for, so that `import memplug` costs nothing.
_HOMES = {
    **dict.fromkeys(("Case", "Edit", "EditError", "EditTable", "Probe", "UnknownEditError"), "edits"),
    **dict.fromkeys(("attach", "load"), "attaching"),
    **dict.fromkeys(("Comparison", "compare"), "comparison"),
    **dict.fromkeys(("LoadError", "SaveError"), "saving.plugs"),
    **dict.fromkeys(("Message", "PromptError"), "text.chat"),
    "ChatTemplateError": "text.templates",
    "Plug": "plugin",
    "StoreError": "store.errors",
    "TokenizerError": "text.tokens",
    "UnsupportedModelError": "model.architecture",
    "evaluate": "evaluation",
}


def __getattr__(name: str) -> Any:
    if name in ("pretrained", "world"):
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
