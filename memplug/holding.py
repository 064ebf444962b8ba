"""What a method keeps of each row beside its cache: it follows the cache's rows wherever they go."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch
from torch import Tensor

from .layers import Anatomy, UnsupportedModelError

__all__ = ["Rows", "check_holds", "held_by", "hold"]


class Rows(Protocol):
    """What a method keeps per row beside a cache: it follows the cache's rows."""

    def __len__(self) -> int:
        """The number of rows."""

    def select(self, rows: Tensor) -> Rows:
        """The same for ``rows`` (LongTensor of indices, repeats allowed)."""


def held_by(cache: Any) -> Any:
    """What was kept with ``cache`` by `hold`, or None."""
    return getattr(cache, "_memplug_rows", None)


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


def hold(cache: Any, rows: Rows) -> None:
    """Keep ``rows`` with ``cache``: they follow it through reordering, selection, copies, crops and reset.

    The cache object stays the caller's own; its class is replaced by a subclass of the same name
    whose row operations also move what is kept.
    """
    if not isinstance(cache, _Holding):
        cache.__class__ = _holding(type(cache))  # type: ignore[arg-type]
    cache._memplug_rows = rows


class _Holding:
    """Mixed into a cache's class by `hold`."""

    _memplug_rows: Rows | None

    def _select(self, rows: Tensor) -> None:
        if self._memplug_rows is not None:
            self._memplug_rows = self._memplug_rows.select(rows)

    def reorder_cache(self, beam_idx: Tensor) -> Any:
        self._select(beam_idx)
        return super().reorder_cache(beam_idx)  # type: ignore[misc]

    def batch_select_indices(self, indices: Tensor) -> Any:
        self._select(indices)
        return super().batch_select_indices(indices)  # type: ignore[misc]

    def batch_repeat_interleave(self, repeats: int) -> Any:
        if self._memplug_rows is not None:
            self._select(torch.arange(len(self._memplug_rows)).repeat_interleave(repeats))
        return super().batch_repeat_interleave(repeats)  # type: ignore[misc]

    def crop(self, max_length: int) -> Any:
        result = super().crop(max_length)  # type: ignore[misc]
        crop = getattr(self._memplug_rows, "crop", None)
        if crop is not None:
            self._memplug_rows = crop(int(self.get_seq_length()))  # type: ignore[attr-defined]
        return result

    def reset(self) -> Any:
        self._memplug_rows = None
        return super().reset()  # type: ignore[misc]


@functools.cache
def _holding(base: type) -> type:
    return type(base.__name__, (_Holding, base), {"__module__": base.__module__, "__doc__": base.__doc__})
