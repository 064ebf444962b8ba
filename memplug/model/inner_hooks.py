"""Hooks on modules inside the layers, which compiled code may pass over: that they were met is seen to.

torch.compile compiles a layer's code once and runs it for all layers, whether or not there are hooks on what
is inside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .architecture import Architecture, UnsupportedModelError
from .hooks import Hook
from .tracker import CallTracker

__all__ = ["watched"]


def watched(architecture: Architecture, tracker: CallTracker, hooks: Sequence[Hook]) -> list[Hook]:
    """``hooks`` and others, which raise UnsupportedModelError where a layer passes over those in it."""
    found: list[Hook] = list(hooks)
    for layer in architecture.layers:
        inside = {one for one in layer.modules() if one is not layer}
        inner = dict.fromkeys(hook.module for hook in hooks if hook.module in inside)
        if inner:
            found += [Hook(module, "after", _meets(tracker, layer)) for module in inner]
            found.append(Hook(layer, "after", _asks(tracker, architecture, layer)))
    return found


def _meets(tracker: CallTracker, layer: nn.Module) -> Any:
    def after(*_: Any) -> None:
        if tracker.current is not None:
            tracker.current.met.add(layer)

    return after


def _asks(tracker: CallTracker, architecture: Architecture, layer: nn.Module) -> Any:
    def after(*_: Any) -> None:
        call = tracker.current
        if call is not None and layer not in call.met and not architecture.shadows.here(layer):
            raise UnsupportedModelError(
                f"torch.compile passes over the hooks inside {type(layer).__name__}, by which edits take "
                "effect; set torch._dynamo.config.skip_nnmodule_hook_guards = False and call "
                "torch.compiler.reset(), or run the model uncompiled"
            )

    return after
