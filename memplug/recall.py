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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .hooks import Hook, HookSet, skipping_below
from .layers import Anatomy, UnsupportedModelError, input_device, text_config

__all__ = ["KV", "Prefix", "Recall"]

KV = list[tuple[Tensor, Tensor]]
"""Keys and values [N,H,b,head width] of each layer from z on."""


@dataclass(frozen=True)
class Prefix:
    """What the rows of one forward recall.

    Attributes:
        kv: keys and values per layer from z on, one row each; rows that recall nothing hold zeros.
        open: BoolTensor [B]; the rows that recall.
        start: LongTensor [B]; column of each row's first real token.
    """

    kv: KV
    open: Tensor
    start: Tensor

    @property
    def length(self) -> int:
        """b, the positions in front."""
        return self.kv[0][0].shape[-2]

    @staticmethod
    def stack(rows: list[KV | None], start: Tensor) -> Prefix | None:
        """The prefix of a batch from each row's own [1,H,b,w] pairs; None where no row recalls."""
        model = next((kv for kv in rows if kv is not None), None)
        if model is None:
            return None
        blank = [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in model]
        filled = [blank if kv is None else kv for kv in rows]
        kv = [
            (torch.cat([row[i][0] for row in filled]), torch.cat([row[i][1] for row in filled]))
            for i in range(len(model))
        ]
        return Prefix(kv, torch.tensor([row is not None for row in rows]), start)

    def take(self, rows: Tensor, start: Tensor) -> Prefix:
        """The prefix of rows that recall entry ``rows[i]`` of this one (training: many rows an edit)."""
        kv = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.kv]
        return Prefix(kv, self.open[rows.cpu()], start)


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
        head = self._model.get_output_embeddings()  # type: ignore[operator]

        def enter(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            bound = self._anatomy.bind(args, kwargs)
            del bound[next(iter(bound))]
            return (hidden,), bound

        def narrow(_m: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
            return (args[0].flatten(0, 1)[flat.to(args[0].device)][None],), {}

        hooks = [Hook(self._anatomy.layers[self.layer], "before", enter), Hook(head, "before", narrow)]
        with skipping_below(self._anatomy, self.layer), self.forced(prefix), HookSet(hooks):
            logits: Tensor = run().logits
        return logits[0]

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
        with self.forced(None), skipping_below(anatomy, self.layer), HookSet([hook]):
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
            mask = _causal(queries, columns, hidden, self._eager)
        extend = _Extension(prefix, anatomy, hidden.device)
        bound[anatomy.mask_arg] = extend.mask(mask, hidden.shape[0])
        if anatomy.alibi_arg:
            bound[anatomy.alibi_arg] = extend.alibi(bound[anatomy.alibi_arg])
        bound[anatomy.cache_arg] = _PrefixedCache(cache, prefix.kv[index - self.layer], extend)
        return (hidden,), bound

    @property
    def _eager(self) -> bool:
        return getattr(text_config(self._model), "_attn_implementation", "eager") == "eager"


def _causal(queries: int, columns: int, hidden: Tensor, additive: bool) -> Tensor:
    """The mask [1,1,queries,columns] that None stands for: lower-right aligned, causal."""
    offset = columns - queries
    seen = torch.ones(queries, columns, dtype=torch.bool, device=hidden.device).tril(offset)
    if not additive:
        return seen[None, None]
    floor = torch.finfo(hidden.dtype).min
    return torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, floor)[None, None]


class _Extension:
    """Widens one forward's masks, biases, keys and values by the prefix's b columns.

    Columns go to the far left. Where a layer adds a bias by column, a left-padded row's prefix has to
    stand right before its first real token instead, over padding, or the bias would see the padding.
    """

    def __init__(self, prefix: Prefix, anatomy: Anatomy, device: torch.device) -> None:
        self.length = prefix.length
        self.open = prefix.open.to(device)
        self.start = prefix.start.to(device)
        self.by_column = anatomy.bias_by_column
        self.masked_is_true = anatomy.masked_is_true
        self.heads = anatomy.n_heads

    def mask(self, mask: Any, batch: int) -> Tensor:
        """[B,H,T,columns] -> [B,H,T,b+columns]; open for rows that recall, closed for the others."""
        if not isinstance(mask, Tensor) or mask.ndim != 4:
            raise UnsupportedModelError(
                f"recall cannot extend an attention mask of type {type(mask).__name__}"
                + (f" with {mask.ndim} dimensions" if isinstance(mask, Tensor) else "")
                + "; use attn_implementation 'sdpa' or 'eager'"
            )
        mask = mask.expand(batch, -1, -1, -1)
        shape = (*mask.shape[:3], self.length)
        opened = self.open[:, None, None, None].expand(shape)
        if mask.dtype == torch.bool:
            columns = opened ^ self.masked_is_true
        else:
            value = self._extrapolate(mask[:, :, -1:]) if mask.shape[1] > 1 else mask.new_zeros(1)
            columns = torch.where(opened, value, torch.finfo(mask.dtype).min)
        return self._join(columns, mask, -1)

    def alibi(self, alibi: Tensor) -> Tensor:
        """[B*H,1,columns] or [B,H,1,columns], continued to the left."""
        bias = alibi.view(-1, self.heads, 1, alibi.shape[-1])
        bias = bias.expand(len(self.open), -1, -1, -1)
        wide = torch.cat([self._extrapolate(bias), bias], dim=-1)
        return wide.reshape(-1, *alibi.shape[1:-1], wide.shape[-1]) if alibi.ndim == 3 else wide

    def keys(self, prefix: Tensor, states: Tensor) -> Tensor:
        """[B,H,columns,w] -> [B,H,b+columns,w]."""
        return self._join(prefix.to(device=states.device, dtype=states.dtype), states, -2)

    def _join(self, new: Tensor, old: Tensor, dim: int) -> Tensor:
        if not self.by_column or not bool(self.start.any()):
            return torch.cat([new, old], dim=dim)
        wide = torch.cat([new, old], dim=dim).clone()
        for row, start in enumerate(self.start.tolist()):  # the padding comes first, then the prefix
            if start:
                wide[row].narrow(dim, 0, start).copy_(old[row].narrow(dim, 0, start))
                wide[row].narrow(dim, start, self.length).copy_(new[row])
        return wide

    def _extrapolate(self, bias: Tensor) -> Tensor:
        """A bias [B,H,1,columns] that is linear in position, continued to the b positions before."""
        columns = bias.shape[-1]
        first = self.start[:, None, None, None].expand(*bias.shape[:3], 1)
        here = bias.gather(-1, first)
        step = bias.gather(-1, (first + 1).clamp(max=columns - 1)) - here
        # The next column is closed where a row has one token only; then there is no slope to follow.
        step = step.masked_fill(step < torch.finfo(bias.dtype).min / 2, 0.0)
        back = torch.arange(self.length, 0, -1, device=bias.device, dtype=bias.dtype)
        return here - step * back


class _PrefixedCache:
    """A layer's view of the cache: updates go to the real one, and come back with the prefix in front."""

    def __init__(self, cache: Any, pair: tuple[Tensor, Tensor], extend: _Extension) -> None:
        self._cache = cache
        self._pair = pair
        self._extend = extend

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._cache is not None:
            keys, values = self._cache.update(keys, values, *args, **kwargs)
        return self._extend.keys(self._pair[0], keys), self._extend.keys(self._pair[1], values)

    def __getattr__(self, name: str) -> Any:
        cache = self.__dict__.get("_cache")
        return getattr(DynamicCache() if cache is None else cache, name)
