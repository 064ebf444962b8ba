"""A prefix: what rows recall, as keys and values, and one layer's attention widened by it.

Knows the tensors that attention works on (masks, biases by position, keys and values, a cache) and
neither where they come from nor why a row recalls what it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .architecture import Architecture, UnsupportedModelError

__all__ = ["KV", "Extension", "Prefix", "PrefixedCache", "causal"]

KV = list[tuple[Tensor, Tensor]]
"""Keys and values [N,H,b,head width] of each layer from z on."""


@dataclass(frozen=True)
class Prefix:
    """What the rows of one forward recall.

    Attributes:
        kv: keys and values per layer from z on, one row each; rows that recall nothing hold zeros.
        open: BoolTensor [B], the rows that recall; or [B,T,b], which tokens see which columns.
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

    def select(self, rows: Tensor) -> Prefix:
        """The prefix of ``rows`` (LongTensor) of it."""
        kv = [(k[rows.to(k.device)], v[rows.to(v.device)]) for k, v in self.kv]
        return Prefix(kv, self.open[rows.to(self.open.device)], self.start[rows.to(self.start.device)])


def causal(queries: int, columns: int, past: int, hidden: Tensor, additive: bool) -> Tensor:
    """The mask [1,1,queries,columns] that None stands for: causal, behind the first ``past`` columns.

    A static cache has more columns than are filled.
    """
    offset = min(columns - queries, past)
    seen = torch.ones(queries, columns, dtype=torch.bool, device=hidden.device).tril(offset)
    if not additive:
        return seen[None, None]
    floor = torch.finfo(hidden.dtype).min
    return torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, floor)[None, None]


class Extension:
    """Widens one forward's masks, biases, keys and values by the prefix's b columns.

    Columns go to the far left. Where a layer adds a bias by column, a left-padded row's prefix has to
    stand right before its first real token instead, over padding, or the bias would see the padding.
    """

    def __init__(self, prefix: Prefix, architecture: Architecture, device: torch.device) -> None:
        self.length = prefix.length
        self.open = prefix.open.to(device)
        self.start = prefix.start.to(device)
        self.by_column = architecture.bias_by_column
        self.masked_is_true = architecture.masked_is_true
        self.heads = architecture.n_heads

    def mask(self, mask: Any, batch: int, offset: int = 0) -> Tensor:
        """[B,H,T,columns] -> [B,H,T,b+columns]; open for rows that recall, closed for the others.

        Args:
            offset: columns of the cache that are no longer seen.
        """
        if not isinstance(mask, Tensor) or mask.ndim != 4:
            raise UnsupportedModelError(
                f"a prefix cannot extend an attention mask of type {type(mask).__name__}"
                + (f" with {mask.ndim} dimensions" if isinstance(mask, Tensor) else "")
                + "; use attn_implementation 'sdpa' or 'eager'"
            )
        mask = mask.expand(batch, -1, -1, -1)
        shape = (*mask.shape[:3], self.length)
        one = self.open[:, None] if self.open.ndim == 3 else self.open[:, None, None, None]
        opened = one.expand(shape)
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


class PrefixedCache:
    """A layer's view of the cache: updates go to the real one, and come back with the prefix in front."""

    def __init__(self, cache: Any, pair: tuple[Tensor, Tensor], extend: Extension) -> None:
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
