"""Places: the linears that are edited, found by rule in any model.

In each layer it is the last linear, in the order of computation, that sees every token once and maps to the
model's width: the MLP's output projection, or the attention's where the experts of a mixture are no linears.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..model.architecture import (
    Architecture,
    UnsupportedModelError,
    evaluating,
    input_device,
    module_device,
    read_source,
    taken,
)
from ..model.hooks import Hook, OwnHooks
from ..weights.modules import linears_of

__all__ = ["Place", "QuerySite", "find_places", "find_site"]

_TOKENS = 5  # a number that no expert of a mixture is likely to be given alone


@dataclass(frozen=True)
class Place:
    """A linear module that takes [..., p] to [..., o], be it an ``nn.Linear`` or GPT-2's ``Conv1D``.

    Attributes:
        layer: index of its decoder layer.
        name: its dotted name in that layer.
        module: the linear.
        fan_in, fan_out: p and o.
    """

    layer: int
    name: str
    module: nn.Module
    fan_in: int
    fan_out: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return module_device(self.module)


@dataclass(frozen=True)
class QuerySite:
    """Where queries are read.

    Attributes:
        module: the linear whose input they are, or the layer whose output.
        before: whether it is the input.
        width: of a query.
        device: where they are.
    """

    module: nn.Module
    before: bool
    width: int
    device: torch.device

    def hook(self, architecture: Architecture, take: Callable[[Tensor], None]) -> Hook:
        """A hook that hands the states [B,T,width] ([B T,width] in models that flatten) to ``take``."""
        if self.before:
            return Hook(self.module, "before", lambda _m, args, _kwargs: take(args[0]))
        return Hook(self.module, "after", lambda _m, _a, _k, output: take(architecture.hidden(output)))


def find_site(model: nn.Module, architecture: Architecture, layer: int, what: str) -> QuerySite:
    """Where the queries of ``layer`` are read: its output for ``what`` "hidden", else its linear's input.

    Raises:
        UnsupportedModelError: the layer has no such linear.
    """
    if what == "hidden":
        module = architecture.layers[layer]
        return QuerySite(module, False, architecture.width, module_device(module))
    (place,) = find_places(model, architecture, [layer])
    return QuerySite(place.module, True, place.fan_in, place.device)


@torch.no_grad()
def find_places(model: nn.Module, architecture: Architecture, layers: Sequence[int]) -> list[Place]:
    """The place of each of ``layers``, by one forward over a few tokens.

    Raises:
        UnsupportedModelError: a layer has none.
    """
    found: dict[int, list[Place]] = {layer: [] for layer in layers}
    hooks = []
    for layer in layers:
        for name, module in linears_of(architecture.layers[layer]).items():
            if isinstance(module, nn.Linear | Conv1D):
                hooks.append(Hook(module, "after", _recorder(found[layer], layer, name)))
    ids = torch.arange(_TOKENS, device=input_device(model))[None]
    with evaluating(model), OwnHooks(hooks):
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        given |= read_source(architecture.encoder, ids.device)
        architecture.decoder(**taken(architecture.decoder, given))
    places = []
    for layer in layers:
        fitting = [place for place in found[layer] if place.fan_out == architecture.width]
        once = [p for p in fitting if sum(q.module is p.module for q in found[layer]) == 1]
        if not once:
            raise UnsupportedModelError(
                f"layer {layer} ({type(architecture.layers[layer]).__name__}) has no linear that maps every "
                f"token to the width {architecture.width}; name others with edit_layers=..."
            )
        places.append(once[-1])
    return places


def _recorder(found: list[Place], layer: int, name: str) -> Any:
    def after(module: nn.Module, args: tuple[Any, ...], _kwargs: Any, output: Any) -> None:
        x = args[0]
        if isinstance(output, Tensor) and x.numel() == _TOKENS * x.shape[-1]:
            found.append(Place(layer, name, module, x.shape[-1], output.shape[-1]))

    return after
