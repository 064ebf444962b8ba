"""Recall: a value becomes key/value pairs that the attention of the later layers sees as a prefix.

The published method concatenates a value's b vectors to the input of layer z. Under causal attention
vectors in front see only themselves, so from layer z on they are fully described by their own keys and
values in each layer. Putting these into the attention gives the same result, while hidden states,
logits, positions and the caller's cache keep their length. Nothing here knows an architecture.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .hooks import Hook, OwnHooks, resume, skipping_below
from .layers import Anatomy, UnsupportedModelError, input_device, text_config
from .prefix import KV, Extension, Prefix, PrefixedCache, causal

__all__ = ["Recall"]


class Recall:
    """Injects prefixes into the layers from ``layer`` on, and computes them from values.

    Raises:
        UnsupportedModelError: the attention implementation or a layer's cache cannot take a prefix.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, layer: int) -> None:
        self.layer = layer
        self._model = model
        self._anatomy = anatomy
        self._local = threading.local()
        config: Any = text_config(model)
        implementation = getattr(config, "_attn_implementation", "eager")
        if implementation not in ("eager", "sdpa"):
            raise UnsupportedModelError(
                f"recall needs attn_implementation 'sdpa' or 'eager', the model has {implementation!r}; "
                "call model.set_attn_implementation('sdpa') before attaching"
            )
        # Layers of another kind among those with attention are named before one runs.
        kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
        other = sorted({kind for kind in kinds[layer:] if "attention" not in kind or "linear" in kind})
        if other:
            raise UnsupportedModelError(
                f"{type(model).__name__}: among its layers from {layer} on are {', '.join(other)}, "
                "which keep no keys and values that a recalled prefix could join; choose a model whose "
                "layers all have attention"
            )
        with torch.no_grad():
            width = anatomy.width
            self.project(torch.zeros(1, 1, width), torch.zeros(1, dtype=torch.long))

    def hooks(self, decide: Callable[[], Prefix | None], current: Callable[[], Prefix | None]) -> list[Hook]:
        """Hooks on the layers from ``layer`` on.

        Args:
            decide: called once a forward, before ``layer``; says what the rows recall.
            current: called before each later layer; repeats what was decided.
        """

        def make(index: int) -> Hook:
            ask = decide if index == self.layer else current

            def before(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                prefix = self._forced if self._busy else ask()
                return None if prefix is None else self._inject(index, prefix, args, kwargs)

            return Hook(self._anatomy.layers[index], "before", before)

        return [make(index) for index in range(self.layer, len(self._anatomy.layers))]

    @property
    def _forced(self) -> Prefix | None:
        return getattr(self._local, "forced", None)

    @property
    def _busy(self) -> bool:
        return getattr(self._local, "busy", False)

    @contextmanager
    def forced(self, prefix: Prefix | None) -> Iterator[None]:
        """Every forward of this thread inside the ``with`` recalls exactly ``prefix`` (None: nothing)."""
        before = self._busy, self._forced
        self._local.busy, self._local.forced = True, prefix
        try:
            yield
        finally:
            self._local.busy, self._local.forced = before

    def resume(self, hidden: Tensor, run: Callable[[], Any], prefix: Prefix | None, flat: Tensor) -> Tensor:
        """Logits [P,V] of a forward that starts at ``layer``, with ``prefix`` recalled by its rows.

        Args:
            hidden: [B,T,D] inputs of layer ``layer``, known from an earlier forward of the same tokens.
            run: calls the model on these tokens, right-padded and without a cache.
            prefix: what the rows recall, or None.
            flat: [P] the positions whose logits are wanted, as row * T + position; the head sees no others.
        """
        with self.forced(prefix):
            return resume(self._model, self._anatomy, self.layer, hidden, run, flat)

    def project(self, values: Tensor, first: Tensor) -> KV:
        """The keys and values that ``values`` have in each layer from ``layer`` on; differentiable.

        Args:
            values: [N,b,D] float, inputs of layer ``layer``.
            first: [N] position id of the first real token of the row that will read the prefix; the
                values stand at the b positions before it. Where positions are not rotary they do not
                matter past the embedding, and are kept from going below 0.

        Raises:
            UnsupportedModelError: a layer does not keep keys and values of its own for each token.
        """
        anatomy, count, length = self._anatomy, values.shape[0], values.shape[1]
        device = input_device(self._model)
        positions = first.to(device)[:, None] - length + torch.arange(length, device=device)
        if not anatomy.rotary:
            positions = positions.clamp(min=0)

        def replace(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            bound = anatomy.bind(args, kwargs)
            name, hidden = next(iter(bound.items()))
            del bound[name]
            return (values.to(device=hidden.device, dtype=hidden.dtype),), bound

        cache = DynamicCache(config=text_config(self._model))
        # A layer's window must not drop vectors from its prefix.
        sliding = DynamicSlidingWindowLayer
        cache.layers = [DynamicLayer() if isinstance(layer, sliding) else layer for layer in cache.layers]
        given = {
            "input_ids": torch.zeros(count, length, dtype=torch.long, device=device),
            "attention_mask": torch.ones(count, length, dtype=torch.long, device=device),
            "position_ids": positions,
        }
        if "position_ids" not in inspect.signature(type(anatomy.decoder).forward).parameters:
            del given["position_ids"]
        hook = Hook(anatomy.layers[self.layer], "before", replace)
        with self.forced(None), skipping_below(anatomy, self.layer), OwnHooks([hook]):
            anatomy.decoder(**given, past_key_values=cache, use_cache=True)
        return self._read(cache, length)

    def _read(self, cache: Any, length: int) -> KV:
        pairs: KV = []
        for index in range(self.layer, len(self._anatomy.layers)):
            layer = cache.layers[index] if index < len(cache.layers) else None
            keys = getattr(layer, "keys", None)
            if keys is None or keys.ndim != 4 or keys.shape[-2] != length:
                raise UnsupportedModelError(
                    f"layer {index} ({type(self._anatomy.layers[index]).__name__}) keeps no keys and values "
                    "of its own for each token, so it cannot read a recalled prefix; choose a model whose "
                    "layers all have attention"
                )
            pairs.append((keys, layer.values))  # type: ignore[union-attr]
        return pairs

    def _inject(self, index: int, prefix: Prefix, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        anatomy = self._anatomy
        bound = anatomy.bind(args, kwargs)
        name, hidden = next(iter(bound.items()))
        del bound[name]
        cache = bound.get(anatomy.cache_arg)
        queries = hidden.shape[1]
        columns = queries if cache is None else cache.get_mask_sizes(queries, index)[0]
        mask = bound.get(anatomy.mask_arg)
        if mask is None:
            mask = causal(queries, columns, hidden, self._eager)
        extend = Extension(prefix, anatomy, hidden.device)
        bound[anatomy.mask_arg] = extend.mask(mask, hidden.shape[0])
        if anatomy.alibi_arg:
            bound[anatomy.alibi_arg] = extend.alibi(bound[anatomy.alibi_arg])
        bound[anatomy.cache_arg] = PrefixedCache(cache, prefix.kv[index - self.layer], extend)
        return (hidden,), bound

    @property
    def _eager(self) -> bool:
        return getattr(text_config(self._model), "_attn_implementation", "eager") == "eager"
