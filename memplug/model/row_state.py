"""What is kept of each row beside its cache: it follows the cache's rows wherever they go."""

from __future__ import annotations

import copy
import copyreg
import functools
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from .architecture import Architecture, UnsupportedModelError

__all__ = ["RowState", "Tokens", "check_holds", "held_by", "hold", "of_rows", "tokens_of"]


@dataclass(frozen=True)
class RowState:
    """What is kept per row beside a cache; nothing in it is ever changed in place.

    A field that is a tensor [B,...], a tuple of B items, a list of such, or has a ``select`` of its own holds
    something for each row; any other one, and ``owner``, is the same for all.
    """

    def __len__(self) -> int:
        """The number of rows."""
        return next(len(one) for one in self._values().values() if isinstance(one, Tensor | tuple))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "owner"}

    def select(self, rows: Tensor) -> Self:
        """The same for ``rows`` (LongTensor of indices, repeats allowed)."""
        return replace(self, **{name: of_rows(value, rows) for name, value in self._values().items()})

    def crop(self, length: int) -> RowState | None:
        """The same for a cache cut to its first ``length`` columns; None where nothing holds any more."""
        return self

    @classmethod
    def of(cls, call: Any, owner: object) -> Self | None:
        """What ``owner`` keeps of the rows of a forward (`Call`), decided when their cache was filled.

        None where another one decided, or where a caller gave the cache other rows without its own methods,
        so that nobody knows which is which.
        """
        held = call.held
        mine = isinstance(held, cls) and held.owner is owner  # type: ignore[attr-defined]
        return held if mine and len(held) == len(call.valid) else None


def of_rows(value: Any, rows: Tensor) -> Any:
    """What a field of a `RowState` holds for ``rows`` (LongTensor)."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)]
    if type(value) is tuple:
        return tuple(value[row] for row in rows.tolist())
    if type(value) is list:
        return [of_rows(one, rows) for one in value]
    return value.select(rows) if hasattr(value, "select") else value


@dataclass(frozen=True)
class Tokens(RowState):
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


def check_holds(model: Any, architecture: Architecture) -> None:
    """What was decided for a row can be kept with what the model keeps of it between forwards.

    Raises:
        UnsupportedModelError: it keeps tensors or lists of them, to which nothing can be added, or a cache
            that its layers do not see.
    """
    if not architecture.keeps:
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps bare tensors between forwards, or hands layers no cache object, "
            "so what was decided for a prompt would be forgotten at its first new token; choose a method "
            "that changes weights (ultraedit, finetune)"
        )


def hold(cache: Any, rows: RowState) -> None:
    """Keep ``rows`` with ``cache``, in the place of what was kept of their kind (a method's, or tokens).

    They follow it through reordering, selection, copies, crops and reset. The cache object stays the caller's
    own; its class is replaced by a subclass of the same name whose row operations also move what is kept.
    """
    if not isinstance(cache, _Holding):
        cache.__class__ = _holding(type(cache))  # type: ignore[arg-type]
    setattr(cache, "_memplug_tokens" if isinstance(rows, Tokens) else "_memplug_rows", rows)


class _Holding:
    """Mixed into a cache's class by `hold`."""

    _memplug_rows: RowState | None = None
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
        if self._memplug_rows is not None:
            self._memplug_rows = self._memplug_rows.crop(int(self.get_seq_length()))  # type: ignore[attr-defined]
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
