"""The linear modules that weight edits may change, found by rule in any decoder.

A layer's MLP is found by what it does: the last linear of the layer that maps back to the model's width, and
the linears beside it that read that width; where experts are fused into one tensor, it is the attention's
last. ``nn.Linear`` and GPT-2's ``Conv1D`` are both read as
``y = x W`` with W [d_k,d_v], whichever way round they store it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..model.architecture import Architecture, UnsupportedModelError, fraction

__all__ = ["LinearModule", "Range", "find_sites", "linears_of"]

Range = tuple[str, float, float]
"""Which linear of the MLP ("gate", "up", "down"), and the layers from one share of the depth to another."""

WHICH = ("gate", "up", "down")


@dataclass(frozen=True)
class LinearModule:
    """One linear module.

    Attributes:
        name: its name in the model.
        module: the module itself.
        layer: index of the decoder layer that it lies in.
        d_k: width of its inputs.
        d_v: width of its outputs.
        flipped: the weight is stored [d_v,d_k] (``nn.Linear``).
    """

    name: str
    module: nn.Module
    layer: int
    d_k: int
    d_v: int
    flipped: bool

    @property
    def weight(self) -> Tensor:
        """The live weight, as stored."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight

    @property
    def device(self) -> torch.device:
        """Where to compute its changes: by its weight, or in main memory where that is not loaded."""
        device = self.weight.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def plain(self) -> bool:
        """Whether the stored weight is the one that is computed with, and no code of one (as one byte is)."""
        weight = self.weight
        shape = (self.d_v, self.d_k) if self.flipped else (self.d_k, self.d_v)
        return weight.is_floating_point() and weight.dtype.itemsize >= 2 and tuple(weight.shape) == shape

    def stored(self, change: Tensor) -> Tensor:
        """A change [d_k,d_v] the way round that the weight is stored."""
        return change.T if self.flipped else change


def find_sites(
    model: nn.Module,
    architecture: Architecture,
    ranges: Sequence[Range],
    names: Sequence[str] | None = None,
    *,
    writable: bool = True,
) -> tuple[LinearModule, ...]:
    """The modules to edit, in the order of the layers.

    Args:
        model: the model.
        architecture: its layers.
        ranges: which linear of the MLP in which layers, as shares of the depth; at least one layer each.
        names: module names that override the rule.
        writable: the weights will be written, so they must be plain floating point and shared with nothing.

    Raises:
        ValueError: a name that is no linear of a decoder layer, or is given twice.
        UnsupportedModelError: no such linears, or weights that are tied, quantised or not in memory.
    """
    if names is not None:
        sites = [_named(model, architecture, name) for name in names]
        if len({site.name for site in sites}) < len(sites):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise ValueError(f"modules names {twice!r} twice; name each module once")
    else:
        found: dict[str, LinearModule] = {}
        for which, start, stop in ranges:
            first = min(fraction(start, len(architecture.layers)), len(architecture.layers) - 1)
            last = max(first + 1, fraction(stop, len(architecture.layers)))
            for layer in range(first, last):
                site = _by_rule(architecture, layer, which)
                found[site.name] = site
        sites = list(found.values())
    if not sites:
        raise ValueError("modules is empty; name at least one linear module, or leave it out")
    if writable:
        _check_writable(model, sites)
    return tuple(sorted(sites, key=lambda site: site.layer))


def linears_of(module: nn.Module) -> dict[str, nn.Module]:
    """The linears inside a module by name; of one that an adapter (peft's) wraps, the base linear alone.

    An adapter's own linears come and go with it, and may be merged into the base's weight.
    """
    wrapped = [f"{name}." for name, m in module.named_modules() if isinstance(_base(m), nn.Module)]
    return {
        name: m
        for name, m in module.named_modules()
        if shape(m) is not None
        and _base(m) is None
        and all(
            not name.startswith(front) or name.removeprefix(front).split(".")[0] == "base_layer"
            for front in wrapped
        )
    }


def adapters(model: nn.Module) -> frozenset[Any]:
    """Which adapters (peft's) are at work in ``model``; what was computed with others does not hold.

    Raises:
        UnsupportedModelError: the rows of a batch have adapters of their own.
    """
    found: list[Any] = [module for module in model.modules() if hasattr(module, "merged_adapters")]
    mixed = [
        (one._forward_pre_hooks, key)
        for one in found
        for key, hook in one._forward_pre_hooks.items()
        if "adapter_names" in getattr(hook, "keywords", ())
    ]
    if mixed:
        for hooks, key in mixed:  # peft leaves them there where a forward ends with an error
            del hooks[key]
        raise UnsupportedModelError(
            "rows of this batch have adapters of their own (adapter_names), and what is put in front of them "
            "is read with the active one; call set_adapter and the model for each adapter by itself"
        )
    return frozenset(
        (str(one.active_adapters), one.disable_adapters, str(one.merged_adapters)) for one in found
    )


def _base(module: nn.Module) -> Any:
    return getattr(module, "base_layer", None)


def _by_rule(architecture: Architecture, index: int, which: str) -> LinearModule:
    layer, prefix = architecture.layers[index], architecture.names[index]
    linears = linears_of(layer)
    down = [name for name, m in linears.items() if shape(m)[1] == architecture.width]  # type: ignore[index]
    for name in reversed(down):
        parent = _parent(name)
        beside = [n for n in linears if _parent(n) == parent and n != name]
        inputs = [n for n in beside if shape(linears[n])[0] == architecture.width]  # type: ignore[index]
        # Three are an attention's queries, keys and values; one that fuses them comes before the MLP.
        if 1 <= len(inputs) <= 2:
            chosen = {"gate": inputs[0], "up": inputs[-1], "down": name}[which]
            return _site(f"{prefix}.{chosen}", linears[chosen], index)
    if down:  # the MLP's experts are fused into one tensor; what every token passes is the attention's output
        return _site(f"{prefix}.{down[-1]}", linears[down[-1]], index)
    raise UnsupportedModelError(
        f"layer {index} ({type(layer).__name__}) has no linear module that writes the model's width "
        f"{architecture.width} (experts fused into one tensor cannot be edited); name the modules to edit "
        "with modules=(...)"
    )


def _parent(name: str) -> str:
    return name.removesuffix(".base_layer").rpartition(".")[0]


def _named(model: nn.Module, architecture: Architecture, name: str) -> LinearModule:
    modules = linears_of(model)
    for index, prefix in enumerate(architecture.names):
        if name in modules and name.startswith(f"{prefix}."):
            return _site(name, modules[name], index)
    inside = [n for n in modules if n.startswith(tuple(f"{p}." for p in architecture.names))]
    near = difflib.get_close_matches(name, inside, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the layers hold {inside[:8]}"
    raise ValueError(f"modules names {name!r}, which is no linear module of a decoder layer; {hint}")


def _site(name: str, module: nn.Module, layer: int) -> LinearModule:
    d_k, d_v = shape(module) or (0, 0)
    return LinearModule(name, module, layer, d_k, d_v, hasattr(module, "in_features"))


def shape(module: nn.Module) -> tuple[int, int] | None:
    """(d_k, d_v) of a linear module; None for any other."""
    if hasattr(module, "in_features") and hasattr(module, "out_features") and hasattr(module, "weight"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    if type(module).__name__ == "Conv1D" and getattr(module.weight, "ndim", 0) == 2:
        rows, columns = module.weight.shape  # type: ignore[misc]
        return int(rows), int(columns)
    return None


def _check_writable(model: nn.Module, sites: Sequence[LinearModule]) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for site in sites:
        weight = site.weight
        if not site.plain:
            raise UnsupportedModelError(
                f"{site.name} keeps its weight as {weight.dtype} {tuple(weight.shape)}, which is quantised "
                "and cannot be written; choose mode='side', which leaves the weights alone"
            )
        if weight.device == torch.device("meta"):
            raise UnsupportedModelError(
                f"{site.name} has no weight in memory (it is offloaded); choose mode='side', or load the "
                "model whole"
            )
        if len(owners.get(id(weight), ())) > 1:
            raise UnsupportedModelError(
                f"{site.name} shares its weight with {sorted(owners[id(weight)])}; an edit would change all "
                "of them. Choose mode='side', or name other modules with modules=(...)"
            )
