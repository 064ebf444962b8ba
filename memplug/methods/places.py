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

from ..hooks import Hook, OwnHooks
from ..layers import Anatomy, UnsupportedModelError, evaluating, input_device, module_device, taken
from ..sites import linears_of

__all__ = ["Place", "Site", "find_places", "find_site"]

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
class Site:
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

    def hook(self, anatomy: Anatomy, take: Callable[[Tensor], None]) -> Hook:
        """A hook that hands the states [B,T,width] ([B T,width] in models that flatten) to ``take``."""
        if self.before:
            return Hook(self.module, "before", lambda _m, args, _kwargs: take(args[0]))
        return Hook(self.module, "after", lambda _m, _a, _k, output: take(anatomy.hidden(output)))


def find_site(model: nn.Module, anatomy: Anatomy, layer: int, what: str) -> Site:
    """Where the queries of ``layer`` are read: its output for ``what`` "hidden", else its linear's input.

    Raises:
        UnsupportedModelError: the layer has no such linear.
    """
    if what == "hidden":
        module = anatomy.layers[layer]
        return Site(module, False, anatomy.width, module_device(module))
    (place,) = find_places(model, anatomy, [layer])
    return Site(place.module, True, place.fan_in, place.device)


@torch.no_grad()
def find_places(model: nn.Module, anatomy: Anatomy, layers: Sequence[int]) -> list[Place]:
    """The place of each of ``layers``, by one forward over a few tokens.

    Raises:
        UnsupportedModelError: a layer has none.
    """
    found: dict[int, list[Place]] = {layer: [] for layer in layers}
    hooks = []
    for layer in layers:
        for name, module in linears_of(anatomy.layers[layer]).items():
            if isinstance(module, nn.Linear | Conv1D):
                hooks.append(Hook(module, "after", _recorder(found[layer], layer, name)))
    ids = torch.arange(_TOKENS, device=input_device(model))[None]
    with evaluating(model), OwnHooks(hooks):
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        anatomy.decoder(**taken(anatomy.decoder, given))
    places = []
    for layer in layers:
        fitting = [place for place in found[layer] if place.fan_out == anatomy.width]
        once = [p for p in fitting if sum(q.module is p.module for q in found[layer]) == 1]
        if not once:
            raise UnsupportedModelError(
                f"layer {layer} ({type(anatomy.layers[layer]).__name__}) has no linear that maps every token "
                f"to the width {anatomy.width}; name others with edit_layers=..."
            )
        places.append(once[-1])
    return places


def _recorder(found: list[Place], layer: int, name: str) -> Any:
    def after(module: nn.Module, args: tuple[Any, ...], _kwargs: Any, output: Any) -> None:
        x = args[0]
        if isinstance(output, Tensor) and x.numel() == _TOKENS * x.shape[-1]:
            found.append(Place(layer, name, module, x.shape[-1], output.shape[-1]))

    return after
