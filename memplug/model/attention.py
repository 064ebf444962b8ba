"""Which layers have attention that a prefix can join: caches, checkpointing, rotary turns. No editing."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .architecture import Architecture, UnsupportedModelError, text_config

__all__ = [
    "KeepsCache",
    "check_attention",
    "check_recomputed",
    "checkpointing",
    "lowest_layer",
    "turn_of",
    "whole_cache",
]

_ROUNDING = 1e-5  # of the largest: keys vary less than that by the rounding of float32
_FLAG = "_can_checkpoint_with_cache"
"""What transformers asks of a layer under gradient checkpointing: whether it leaves the layer its cache."""


def whole_cache(model: nn.Module) -> DynamicCache:
    """A new cache for ``model`` that keeps every token, also where layers have a window."""
    cache = DynamicCache(config=text_config(model))
    cache.layers = [
        DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers
    ]
    return cache


def _lacking(model: nn.Module, architecture: Architecture) -> list[str]:
    """Of each layer, what keeps a prefix from joining its attention; empty where nothing does."""
    config: Any = text_config(model)
    kinds = list(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ())
    kept = whole_cache(model).layers
    found = []
    for index, layer in enumerate(architecture.layers):
        name = type(layer).__name__
        kind = str(kinds[index]) if index < len(kinds) else "attention"
        holder = kept[index] if index < len(kept) else None
        if not architecture.runs[index]:
            found.append(f"{name} (not run on text alone)")
        elif not architecture.attends[index]:
            found.append(f"{name} (no cache of keys and values)")
        elif holder is not None and hasattr(holder, "update_indexer"):
            found.append("layers that choose by an index which tokens they attend to")
        elif "attention" not in kind or "linear" in kind or "hybrid" in kind:
            found.append(kind)
        elif holder is not None and type(holder) is not DynamicLayer:
            found.append(f"{name} (keeps more than keys and values)")
        else:
            found.append("")
    return found


def lowest_layer(model: nn.Module, architecture: Architecture) -> int:
    """The lowest layer from which on a prefix can join the attention of all; their number where none is."""
    lacking = _lacking(model, architecture)
    return max((index + 1 for index, what in enumerate(lacking) if what), default=0)


def check_attention(model: nn.Module, architecture: Architecture, layer: int) -> None:
    """A prefix can join the attention of the layers from ``layer`` on.

    Raises:
        UnsupportedModelError: it cannot; the message names what is among them.
    """
    lacking = _lacking(model, architecture)
    other = sorted({what for what in lacking[layer:] if what})
    if not other:
        return
    lowest = max(index + 1 for index, what in enumerate(lacking) if what)
    hint = "choose a model whose layers all have attention, or a method that needs none (elder, ultraedit)"
    if lowest < len(lacking):
        hint = f"from layer {lowest} on all have attention: recall there, or choose another model"
    raise UnsupportedModelError(
        f"{type(model).__name__}: a recalled prefix cannot join all layers from {layer} on, which hold "
        f"{', '.join(other)}; {hint}"
    )


def checkpointing(layer: nn.Module) -> bool:
    """Whether a forward of ``layer`` is checkpointed now.

    Raises:
        UnsupportedModelError: it is, by a version of transformers that takes every cache away then.
    """
    if not (layer.training and getattr(layer, "gradient_checkpointing", False)):
        return False
    if not hasattr(layer, _FLAG):
        raise UnsupportedModelError(
            "gradient checkpointing leaves layers without a cache, through which an edit is recalled; call "
            "model.gradient_checkpointing_disable(), or model.eval()"
        )
    return True


class KeepsCache:
    """Layers that keep their cache under gradient checkpointing, as they only read it; on single threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def begin(self, layer: nn.Module) -> None:
        """It does on this thread, until `end`."""
        with self._lock:
            vars(layer).setdefault(_FLAG, _Threads()).add(threading.get_ident())

    def end(self, layer: nn.Module) -> None:
        """It no longer does."""
        with self._lock:
            threads = vars(layer).get(_FLAG)
            if threads is not None:
                threads.discard(threading.get_ident())
                if not len(threads):
                    del vars(layer)[_FLAG]


class _Threads(set[int]):
    """True on the threads in it."""

    def __bool__(self) -> bool:
        return threading.get_ident() in self


def check_recomputed(layer: nn.Module) -> None:
    """What is added inside ``layer`` is there again when a backward pass computes the layer anew.

    Raises:
        UnsupportedModelError: gradient checkpointing is on; the forward that decided is over by then.
    """
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        raise UnsupportedModelError(
            "under gradient checkpointing layers are computed anew in the backward pass, without the edit "
            "that is in force here; call model.gradient_checkpointing_disable(), or model.eval()"
        )


def turn_of(before: Tensor, after: Tensor) -> Tensor | None:
    """The matrix [w,w] float32 with ``before @ matrix == after``; None if equal, or if there is none.

    Args:
        before, after: keys [N,H,1,w] of the same values at two positions.
    """
    if torch.equal(before, after):
        return None
    one, other = (keys.detach().flatten(0, 2).double().cpu() for keys in (before, after))
    missing = one.shape[1] - int(torch.linalg.matrix_rank(one, rtol=_ROUNDING))
    turn = _rotation(one, other) if missing else torch.linalg.lstsq(one, other, driver="gelsd").solution
    close = float((one @ turn - other).norm() / other.norm())
    return turn.float().to(before.device) if missing <= 1 and close < 0.02 else None


def _rotation(before: Tensor, after: Tensor) -> Tensor:
    """The rotation [w,w] that takes rows to others, which leave out one direction (normed keys have no mean):
    what is learned may lie in it all the same."""
    left, _, right = torch.linalg.svd(before.T @ after)
    left[:, -1] *= torch.linalg.det(left @ right).sign()
    return left @ right
