"""Recall: a value becomes key/value pairs that the attention of the later layers sees as a prefix.

The published method concatenates a value's b vectors to the input of layer z. Under causal attention
vectors in front see only themselves, so from layer z on they are fully described by their own keys and
values in each layer. Putting these into the attention gives the same result, while hidden states,
logits, positions and the caller's cache keep their length. Nothing here knows an architecture.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Architecture, UnsupportedModelError, evaluating, input_device, taken, text_config
from .attention import KeepsCache, check_attention, checkpointing, turn_of, whole_cache
from .hooks import Hook, OwnHooks, resume, skipping_below
from .interrupts import undone
from .lru import Kept
from .prefix import KV, Extension, Prefix, PrefixedCache, causal

__all__ = ["Recall"]

_TURNS_KEPT = 64  # powers of two: more than there are


class Recall:
    """Injects prefixes into the layers from ``layer`` on, and computes them from values.

    Raises:
        UnsupportedModelError: the attention implementation or a layer's cache cannot take a prefix.
    """

    def __init__(self, model: nn.Module, architecture: Architecture, layer: int) -> None:
        self.layer = layer
        self._model = model
        self._architecture = architecture
        self._local = threading.local()
        config: Any = text_config(model)
        implementation = getattr(config, "_attn_implementation", "eager")
        if implementation not in ("eager", "sdpa"):
            raise UnsupportedModelError(
                f"recall needs attn_implementation 'sdpa' or 'eager', the model has {implementation!r}; "
                "call model.set_attn_implementation('sdpa') before attaching"
            )
        self._turns: Kept[int, list[tuple[Tensor | None, Tensor | None]]] = Kept(_TURNS_KEPT)
        self._keeps = KeepsCache()
        check_attention(model, architecture, layer)  # names what is lacking before a layer runs
        with torch.no_grad():
            width = architecture.width
            self.project(torch.zeros(1, 1, width, dtype=torch.float32), torch.zeros(1, dtype=torch.long))

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

            return Hook(self._architecture.layers[index], "before", before)

        def after(layer: nn.Module, *_: Any) -> None:
            self._keeps.end(layer)

        upper = range(self.layer, len(self._architecture.layers))
        return [
            *map(make, upper),
            *(Hook(self._architecture.layers[index], "finally", after) for index in upper),
        ]

    @property
    def _forced(self) -> Prefix | None:
        return getattr(self._local, "forced", None)

    @property
    def _busy(self) -> bool:
        return getattr(self._local, "busy", False)

    @contextmanager
    def forced(self, prefix: Prefix | None) -> Iterator[None]:
        """Every forward of this thread inside the ``with`` recalls exactly ``prefix`` (None: nothing)."""
        busy, forced = self._busy, self._forced
        with undone(lambda: vars(self._local).update(busy=busy, forced=forced)):
            self._local.busy, self._local.forced = True, prefix
            yield

    def resume(self, hidden: Tensor, run: Callable[[], Any], prefix: Prefix | None, flat: Tensor) -> Tensor:
        """Logits [P,V] of a forward that starts at ``layer``, with ``prefix`` recalled by its rows.

        Args:
            hidden: [B,T,D] inputs of layer ``layer``, known from an earlier forward of the same tokens.
            run: calls the model on these tokens, right-padded and without a cache.
            prefix: what the rows recall, or None.
            flat: [P] the positions whose logits are wanted, as row * T + position; the head sees no others.
        """
        with self.forced(prefix):
            return resume(self._model, self._architecture, self.layer, hidden, run, flat)

    def project(self, values: Tensor, first: Tensor) -> KV:
        """The keys and values that ``values`` have in each layer from ``layer`` on; differentiable.

        Args:
            values: [N,b,D] float, inputs of layer ``layer``.
            first: [N] position id of the first real token of the row that will read the prefix; the
                values stand at the b positions before it. Where layers are handed no rotary tables there
                may be none below 0 (positions are learned, or looked up in a table): all stand at the
                first token's own, so that they are as far from the row's tokens wherever it begins.

        Raises:
            UnsupportedModelError: a layer does not keep keys and values of its own for each token.
        """
        architecture, count, length = self._architecture, values.shape[0], values.shape[1]
        device = input_device(self._model)
        positions = self._positions(first.to(device)[:, None], length)

        def replace(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            bound = architecture.bind(args, kwargs)
            name, hidden = next(iter(bound.items()))
            del bound[name]
            return (values.to(device=hidden.device, dtype=hidden.dtype),), bound

        cache = whole_cache(self._model)  # a layer's window must not drop vectors from its prefix
        given = {
            "input_ids": torch.zeros(count, length, dtype=torch.long, device=device),
            "attention_mask": torch.ones(count, length, dtype=torch.long, device=device),
            "position_ids": positions,
        }
        layers = architecture.layers[self.layer :]
        hooks = [Hook(layers[0], "before", replace), *(Hook(layer, "before", _from_zero) for layer in layers)]
        # Dropout would change them, and gradient checkpointing takes the cache away.
        below, plain = skipping_below(architecture, self.layer), evaluating(self._model)
        with self.forced(None), plain, below, OwnHooks(hooks):
            given = taken(architecture.decoder, given | {"use_cache": True})
            architecture.decoder(**given, past_key_values=cache)
        return self._read(cache, length)

    def _positions(self, first: Tensor, length: int) -> Tensor:
        """Position ids [N,b] of values in front of rows that begin at ``first`` [N,1]."""
        if not self._architecture.rotary:
            return first.expand(-1, length)
        return first - length + torch.arange(length, device=first.device)

    def _read(self, cache: Any, length: int) -> KV:
        pairs: KV = []
        for index in range(self.layer, len(self._architecture.layers)):
            layer = cache.layers[index] if index < len(cache.layers) else None
            keys = getattr(layer, "keys", None)
            if keys is None or keys.ndim != 4 or keys.shape[-2] != length:
                raise UnsupportedModelError(
                    f"layer {index} ({type(self._architecture.layers[index]).__name__}) keeps no keys and "
                    "values of its own for each token, so it cannot read a recalled prefix; choose a model "
                    "whose layers all have attention"
                )
            pairs.append((keys, layer.values))  # type: ignore[union-attr]
        return pairs

    def turned(self, kv: KV, at: Tensor) -> KV:
        """Keys and values [N,H,b,w] before position id 0, moved to before each row's own; differentiable.

        Rotary positions turn a key by a matrix that depends on how far it is moved alone (latent attention
        keeps what is turned beside it). The matrices of the powers of two are found from a few random values,
        all others are products of them. Where nothing is turned, or in another way, all stays as it is.

        Args:
            at: LongTensor [N] of position ids.
        """
        width, dtype = max(tensor.shape[-1] for pair in kv for tensor in pair), kv[0][0].dtype
        wide = torch.promote_types(dtype, torch.float32)
        kv = [(keys.to(wide), values.to(wide)) for keys, values in kv]  # rounded once, at the end
        left, power = at.cpu(), 0
        while bool((left > 0).any()):
            mine = (left & 1).bool()
            if bool(mine.any()):
                turns = self._turns.get(power, lambda power=power: self._turning(1 << power, width))  # type: ignore[misc]
                kv = [
                    (_turned(keys, mine, one), _turned(values, mine, other))
                    for (keys, values), (one, other) in zip(kv, turns, strict=True)
                ]
            left, power = left >> 1, power + 1
        return [(keys.to(dtype), values.to(dtype)) for keys, values in kv]

    @torch.no_grad()
    def _turning(self, far: int, width: int) -> list[tuple[Tensor | None, Tensor | None]]:
        draw = torch.Generator().manual_seed(0)
        values = torch.randn(2 * width, 1, self._architecture.width, generator=draw, dtype=torch.float32)
        zero = torch.zeros(len(values), dtype=torch.long)
        pairs = zip(self.project(values, zero), self.project(values, zero + far), strict=True)
        return [(turn_of(old[0], new[0]), turn_of(old[1], new[1])) for old, new in pairs]

    def _inject(self, index: int, prefix: Prefix, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        architecture = self._architecture
        bound = architecture.bind(args, kwargs)
        name, hidden = next(iter(bound.items()))
        del bound[name]
        cache = self._cache_of(index, bound)
        queries = hidden.shape[1]
        columns, offset = (queries, 0) if cache is None else cache.get_mask_sizes(queries, index)
        mask = bound.get(architecture.mask_arg)
        if mask is None:
            past = 0 if cache is None else int(cache.get_seq_length(index))
            mask = causal(queries, columns, past, hidden, self._eager)
        extend = self._extension(prefix, hidden.device)
        bound[architecture.mask_arg] = extend.mask(mask, hidden.shape[0], offset)
        if architecture.alibi_arg:
            bound[architecture.alibi_arg] = extend.alibi(bound[architecture.alibi_arg])
        bound[architecture.cache_arg] = PrefixedCache(cache, prefix.kv[index - self.layer], extend)
        return (hidden,), bound

    def _extension(self, prefix: Any, device: torch.device) -> Extension:
        return Extension(prefix, self._architecture, device)

    def _cache_of(self, index: int, bound: dict[str, Any]) -> Any:
        """The caller's cache of the layer's own keys and values; none under gradient checkpointing, which is
        told to leave the prefix."""
        layer = self._architecture.layers[index]
        if checkpointing(layer):
            self._keeps.begin(layer)
            return None
        cache = bound.get(self._architecture.cache_arg)
        return getattr(cache, "self_attention_cache", cache)  # one for an encoder's states beside it

    @property
    def _eager(self) -> bool:
        return getattr(text_config(self._model), "_attn_implementation", "eager") == "eager"


def _from_zero(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rotary tables know any position; a scale of queries that follows theirs may know none below 0."""
    positions = kwargs.get("position_ids")
    return None if positions is None else (args, kwargs | {"position_ids": positions.clamp(min=0)})


def _turned(states: Tensor, rows: Tensor, turn: Tensor | None) -> Tensor:
    """States [N,H,b,w] with some rows [N] times a matrix."""
    if turn is None:
        return states
    return torch.where(rows.to(states.device)[:, None, None, None], states @ turn.to(states), states)
