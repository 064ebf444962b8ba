"""What is kept of each row beside its cache: it follows the cache's rows wherever they go."""

from __future__ import annotations

import copy
import copyreg
import functools
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .layers import Anatomy, UnsupportedModelError

__all__ = ["Rows", "Tokens", "check_holds", "held_by", "hold", "tokens_of"]


class Rows(Protocol):
    """What a method keeps per row beside a cache: it follows the cache's rows."""

    def __len__(self) -> int:
        """The number of rows."""

    def select(self, rows: Tensor) -> Rows:
        """The same for ``rows`` (LongTensor of indices, repeats allowed)."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a cache's columns, so that they can be read again when the edits are others.

    Attributes:
        ids: LongTensor [B,C]; -1 where one is not known (embeddings were given).
        real: BoolTensor [B,C]; which are not padding.
        first: LongTensor [B]; position id of each row's first real token.
        asked: LongTensor [B]; how many of each row's real tokens are its prompt.
        state: what stands for the edits in force when they were read last; None for none.
        plain: whether the decoder can be given them again: they are ids, in their order, each once.
    """

    ids: Tensor
    real: Tensor
    first: Tensor
    asked: Tensor
    state: object
    plain: bool

    def __len__(self) -> int:
        return len(self.ids)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokens:
        return self  # nothing in it is ever changed in place

    def select(self, rows: Tensor) -> Tokens:
        """The same for rows ``rows`` of it."""
        at = rows.to(self.ids.device)
        return replace(self, ids=self.ids[at], real=self.real[at], first=self.first[at], asked=self.asked[at])

    def crop(self, length: int) -> Tokens:
        """Those of the first ``length`` columns, or of all but the last ``-length``."""
        real = self.real[:, :length]
        return replace(self, ids=self.ids[:, :length], real=real, asked=self.asked.minimum(real.sum(1)))

    def more(self, tokens: Tokens) -> Tokens:
        """With others behind them."""
        ids = torch.cat([self.ids, tokens.ids.to(self.ids.device)], 1)
        real = torch.cat([self.real, tokens.real.to(self.real.device)], 1)
        new = tokens.asked.to(self.asked.device)
        count = self.real.sum(1)
        asked = torch.where(new > 0, count + new, self.asked)
        first = torch.where(count > 0, self.first, tokens.first.to(self.first.device))
        return Tokens(ids, real, first, asked, self.state, self.plain and tokens.plain)

    @property
    def positions(self) -> Tensor:
        """LongTensor [B,C]: position ids."""
        return (self.first[:, None] + self.real.long().cumsum(1) - 1).clamp(min=0)


def held_by(cache: Any) -> Any:
    """What was kept with ``cache`` by `hold`, or None."""
    return getattr(cache, "_memplug_rows", None)


def tokens_of(cache: Any) -> Tokens | None:
    """The tokens of its columns that were kept with ``cache``; None where some went in unseen."""
    return getattr(cache, "_memplug_tokens", None)


def check_holds(model: Any, anatomy: Anatomy) -> None:
    """What was decided for a row can be kept with what the model keeps of it between forwards.

    Raises:
        UnsupportedModelError: it keeps tensors or lists of them, to which nothing can be added, or a cache
            that its layers do not see.
    """
    if not anatomy.keeps:
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps bare tensors between forwards, or hands layers no cache object, "
            "so what was decided for a prompt would be forgotten at its first new token; choose a method "
            "that changes weights (ultraedit, finetune)"
        )


def hold(cache: Any, rows: Rows | Tokens) -> None:
    """Keep ``rows`` with ``cache``, in the place of what was kept of their kind (a method's, or tokens).

    They follow it through reordering, selection, copies, crops and reset. The cache object stays the caller's
    own; its class is replaced by a subclass of the same name whose row operations also move what is kept.
    """
    if not isinstance(cache, _Holding):
        cache.__class__ = _holding(type(cache))  # type: ignore[arg-type]
    setattr(cache, "_memplug_tokens" if isinstance(rows, Tokens) else "_memplug_rows", rows)


class _Holding:
    """Mixed into a cache's class by `hold`."""

    _memplug_rows: Any = None
    _memplug_tokens: Tokens | None = None

    def _select(self, rows: Tensor) -> None:
        if self._memplug_rows is not None:
            self._memplug_rows = self._memplug_rows.select(rows)
        if self._memplug_tokens is not None:
            self._memplug_tokens = self._memplug_tokens.select(rows)

    def reorder_cache(self, beam_idx: Tensor) -> Any:
        self._select(beam_idx)
        return super().reorder_cache(beam_idx)  # type: ignore[misc]

    def batch_select_indices(self, indices: Tensor) -> Any:
        self._select(indices)
        return super().batch_select_indices(indices)  # type: ignore[misc]

    def batch_repeat_interleave(self, repeats: int) -> Any:
        held = self._memplug_tokens or self._memplug_rows
        if held is not None:
            self._select(torch.arange(len(held)).repeat_interleave(repeats))
        return super().batch_repeat_interleave(repeats)  # type: ignore[misc]

    def crop(self, max_length: int) -> Any:
        result = super().crop(max_length)  # type: ignore[misc]
        crop = getattr(self._memplug_rows, "crop", None)
        if crop is not None:
            self._memplug_rows = crop(int(self.get_seq_length()))  # type: ignore[attr-defined]
        if self._memplug_tokens is not None and max_length:
            # Also where layers count no tokens; below 0 it says how many to take back.
            self._memplug_tokens = self._memplug_tokens.crop(max_length)
        return result

    def reset(self) -> Any:
        self._memplug_rows = self._memplug_tokens = None
        return super().reset()  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = memo[id(self)] = object.__new__(type(self))
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    def __reduce_ex__(self, _protocol: Any) -> Any:
        # It may be read where there is no plug: as the caller's own class, without what is held.
        own = {name: value for name, value in vars(self).items() if not name.startswith("_memplug")}
        return copyreg._reconstructor, (type(self).__mro__[2], object, None), own  # type: ignore[attr-defined]


@functools.cache
def _holding(base: type) -> type:
    return type(base.__name__, (_Holding, base), {"__module__": base.__module__, "__doc__": base.__doc__})
