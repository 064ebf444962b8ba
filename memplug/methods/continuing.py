"""Texts that go on: what was read at the end of a prompt stays while generation feeds the whole text again.

With a cache, what a row was given is kept with the cache. Without one, every forward of a generation starts
the text anew, and its last token is no longer the prompt's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from ..model.architecture import UnsupportedModelError
from ..model.context import Call

__all__ = ["Continuing", "not_in_pieces", "rows_of", "unflat"]

T = TypeVar("T")


class Continuing:
    """Remembers the forward just before on each thread."""

    def __init__(self) -> None:
        self._local = threading.local()

    def keep(self, call: Call, read: T, take: Callable[[T, Tensor], T]) -> T:
        """What counts for the rows of a forward without a cache.

        A row that goes on by one token from a row of the forward just before is taken as its continuation,
        and keeps what was read there: the prompt's end, not the answer's. Beams may have changed places.

        Args:
            call: the running forward, which begins its texts.
            read: what was read of its B rows now.
            take: gives what was read of the rows of an index tensor [B].
        """
        before = getattr(self._local, "before", None)
        self._local.before = None
        if call.marks is None or call.prompt is not None:
            return read
        if before is not None and before[0].shape[1] + 1 == call.marks.shape[1]:
            marks, old = before
            same = (call.marks[:, None, :-1] == marks[None]).all(-1)  # [B,B']
            if bool(same.any(1).all()):
                read = take(old, same.int().argmax(1))
        self._local.before = call.marks, read
        return read


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """``x[rows]``, wherever the two are."""
    return x[rows.to(x.device)]


def unflat(x: Tensor, batch: int) -> Tensor:
    """[B,T,w] of a linear's input or output, whether or not the model flattened rows and tokens (OPT)."""
    return x if x.ndim == 3 else x.view(batch, -1, x.shape[-1])


def not_in_pieces(method: str, scope: str) -> UnsupportedModelError:
    """For a prompt whose later part decides what its earlier part, in the cache, was to be read with."""
    return UnsupportedModelError(
        f"with this scope {method} finds out by a later part of a prompt what all its tokens are read with, "
        "and those before are in the cache; give the whole prompt at once, with a new cache and without "
        "prefill_chunk_size (or inside plug.prompt_lengths(...) where this is an answer to be judged), or "
        f"attach with {scope}"
    )
