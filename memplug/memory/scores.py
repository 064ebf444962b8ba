"""Every entry's similarity to one row, by brute force: what `search` decides, laid open.

Letters: R think layers, T tokens, E entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memplug.memory.record import KeyRecord
from memplug.memory.spans import window_cosines
from memplug.memory.votes import Found, voting

__all__ = ["Scores", "brute_force"]

_ELEMENTS = 1 << 21  # of keys, and of cosines, held in float64 at once


class Scores(NamedTuple):
    """Every entry's similarity to one row, for those who want to see why.

    Attributes:
        ids: int64 (E,), in order of insertion.
        similarity: float32 (R, E); -1 where no window of the entry's length fits.
        position: int64 (R, E), where the most similar window ends; -1 where none fits.
        voted: bool (R, E), whether the layer votes for the entry.
    """

    ids: Tensor
    similarity: Tensor
    position: Tensor
    voted: Tensor


def brute_force(
    record: KeyRecord, queries: Tensor | Sequence[Tensor], valid: Tensor | None, top_k: int
) -> Scores:
    """The scores of one row.

    Args:
        queries: (R, T, D) or R tensors (T, D), any float dtype.
        valid: bool (T,), None is all True.
    """
    length = queries[0].shape[0]
    ok = np.ones(length, bool) if valid is None else valid.cpu().numpy()
    slots = record.slots()
    best = np.full((record.n_layers, len(slots)), -1.0, np.float32)
    position = np.full((record.n_layers, len(slots)), -1, np.int64)
    step = max(1, _ELEMENTS // max(record.dim, length))
    for layer in range(record.n_layers if length else 0):
        text = queries[layer].to(record.device)
        for start in range(0, len(slots), step):
            part = slice(start, start + step)
            cosines = window_cosines(record, layer, text, ok, slots[part])
            at = cosines.argmax(axis=0)
            top = np.take_along_axis(cosines, at[None], axis=0)[0]
            best[layer, part] = np.maximum(top, -1.0)
            position[layer, part] = np.where(top >= -1.5, at, -1)
    layers, entries = np.nonzero((best > record.limit[slots]) & record.on[slots])
    row, seq = np.zeros_like(layers), record.seq[slots[entries]]
    voted = np.zeros(best.shape, bool)
    if len(layers):
        ballots = voting(Found(row, layers, entries, seq, best[layers, entries]), top_k)
        voted[ballots.layer, ballots.id] = True
    return Scores(*(torch.from_numpy(array) for array in (record.id[slots], best, position, voted)))
