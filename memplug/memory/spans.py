"""The comparison that decides: cosines of the record's own keys, whole spans of them.

Cosines are computed in float64 and rounded to float32, so that their value does not depend on the order
of summation, which differs with the shape of a product and between devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memplug.memory.record import KeyRecord

__all__ = ["Proposals", "check_spans", "window_cosines"]

_GATHER = 1 << 21  # elements of keys held in float64 at once


class Proposals(NamedTuple):
    """Matches that a scan proposes, one item each, in order of their layers; int64 arrays (p,).

    Attributes:
        layer: place of the layer among those searched.
        row, position: where in the text the match ends.
        slot: of the entry.
    """

    layer: np.ndarray
    row: np.ndarray
    position: np.ndarray
    slot: np.ndarray

    def keep(self, which: np.ndarray) -> Proposals:
        """The items under the given mask."""
        return Proposals(*(field[which] for field in self))


def check_spans(
    record: KeyRecord, layers: Sequence[int], text: Sequence[Tensor], valid: np.ndarray, proposals: Proposals
) -> tuple[Proposals, np.ndarray]:
    """The proposals that hold: the smallest cosine in the window exceeds the entry's threshold.

    Args:
        layers: which layers are searched.
        text: their hidden states, each (B, T, D), any float dtype, on the record's device.
        valid: bool (B, T), which of them are tokens.

    Returns:
        The proposals that hold, and those smallest cosines, float32.
    """
    width = valid.shape[1]
    number, flat = np.array(layers), [states.flatten(0, 1) for states in text]
    sim = np.full(len(proposals.slot), np.inf, np.float32)
    # From the last token of the span to its first: most proposals fail at the first few.
    for back in range(int(record.length[proposals.slot].max(initial=0))):
        long = record.length[proposals.slot] > back
        layer, row, position, slot = proposals.keep(long)
        position = position - back
        fits = (position >= 0) & valid[row, np.maximum(position, 0)]
        layer, row, position, slot = (field[fits] for field in (layer, row, position, slot))
        keys, rows = (record.last, slot) if back == 0 else (record.pool, record.rest[slot, back - 1])
        cos = np.full(len(fits), -1.0, np.float32)
        cos[fits] = _cosines(flat, layer, row * width + position, keys, number[layer], rows)
        sim[long] = np.minimum(sim[long], cos)
        passes = sim > record.limit[proposals.slot]
        proposals, sim = proposals.keep(passes), sim[passes]
    return proposals, sim


def _cosines(
    text: list[Tensor],
    place: np.ndarray,
    token: np.ndarray,
    keys: Tensor,
    layer: np.ndarray,
    row: np.ndarray,
) -> np.ndarray:
    """cos(text[place][token], keys[layer, row]) of each item, float32; 0 for a token that is zero or not
    finite. `place` ascends."""
    out = np.empty(len(token), np.float32)
    device = keys.device
    step = max(1, _GATHER // keys.shape[2])
    for start in range(0, len(token), step):
        part = slice(start, start + step)
        p, t = place[part], torch.from_numpy(token[part]).to(device)
        ends = [0, *(np.flatnonzero(p[1:] != p[:-1]) + 1).tolist(), len(p)]
        q = torch.cat([text[p[a]].index_select(0, t[a:b]) for a, b in pairwise(ends)]).double()
        k = keys[torch.from_numpy(layer[part]).to(device), torch.from_numpy(row[part]).to(device)].double()
        cos = (q * k).sum(-1) / torch.linalg.vector_norm(q, dim=-1)
        out[part] = torch.nan_to_num(cos, 0.0, 0.0, 0.0).float().cpu().numpy()
    return out


def window_cosines(
    record: KeyRecord, layer: int, text: Tensor, valid: np.ndarray, slots: np.ndarray
) -> np.ndarray:
    """The smallest cosine in the window that ends at each position, of every given entry.

    Args:
        text: (T, D) hidden states of one row, any float dtype, on the record's device.
        valid: bool (T,).
        slots: int64 (k,).

    Returns:
        float32 (T, k); -2 where the window does not fit.
    """
    text = text.double()
    text = text / torch.linalg.vector_norm(text, dim=-1, keepdim=True)
    out = np.full((len(text), len(slots)), np.inf, np.float32)
    for back in range(int(record.length[slots].max(initial=0))):
        has = np.flatnonzero(record.length[slots] > back)
        keys, rows = (
            (record.last, slots[has]) if back == 0 else (record.pool, record.rest[slots[has], back - 1])
        )
        keys = keys[layer, torch.from_numpy(rows).to(text.device)].double()
        cos = torch.nan_to_num(text @ keys.T, 0.0, 0.0, 0.0).float().cpu().numpy()
        cos[~valid] = -2.0
        shifted = np.full_like(cos, -2.0)
        shifted[back:] = cos[: max(0, len(cos) - back)]  # a span may be longer than the text
        out[:, has] = np.minimum(out[:, has], shifted)
    return out
