"""Texts that go on: what was read at the end of a prompt stays while generation feeds the whole text again.

With a cache, what a row was given is kept with the cache. Without one, every forward of a generation starts
the text anew, and its last token is no longer the prompt's.
"""

from __future__ import annotations

import threading

from torch import Tensor

from ..calls import Call

__all__ = ["Continuing", "unflat"]


class Continuing:
    """Remembers the forward just before on each thread."""

    def __init__(self) -> None:
        self._local = threading.local()

    def query(self, call: Call, query: Tensor) -> Tensor:
        """The queries [B,q] that stand for the rows of a forward without a cache.

        A row that goes on by one token from a row of the forward just before is taken as its continuation,
        and keeps its query: the prompt's, not the answer's. Beams may have changed places.

        Args:
            call: the running forward, which begins its texts.
            query: [B,q] as read now.
        """
        before = getattr(self._local, "before", None)
        self._local.before = None
        if call.ids is None or call.prompt is not None:
            return query
        if before is not None and before[0].shape[1] + 1 == call.ids.shape[1]:
            ids, old = before
            same = (call.ids[:, None, :-1] == ids[None]).all(-1)  # [B,B']
            if bool(same.any(1).all()):
                query = old[same.int().argmax(1).to(old.device)]
        self._local.before = call.ids, query
        return query


def unflat(x: Tensor, batch: int) -> Tensor:
    """[B,T,w] of a linear's input or output, whether or not the model flattened rows and tokens (OPT)."""
    return x if x.ndim == 3 else x.view(batch, -1, x.shape[-1])
