"""The comparison that decides: cosines of the record's own keys, whole spans of them.

Cosines are computed in float64 and rounded to float32, so that their value does not depend on the order
of summation, which differs with the shape of a product and between devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memplug.memory.record import KeyRecord

__all__ = ["Proposals", "check_spans", "window_cosines"]

_GATHER = 1 << 21  # elements of keys held in float64 at once
_FEW = 128  # tokens of proposals


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
        """The items under the given mask, or at the given places."""
        return Proposals(*(field[which] for field in self))

    @staticmethod
    def join(parts: Sequence[Proposals]) -> Proposals:
        """One after another."""
        if len(parts) == 1:
            return parts[0]
        return Proposals(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


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
    length = record.length[proposals.slot]
    sim = np.full(len(length), np.inf, np.float32)
    longest = int(length.max(initial=0))
    # Few are looked at whole. Of many the tokens are taken one by one, and mostly the last word is a common
    # one, so that the token before it decides.
    order = [1, 0, *range(2, longest)] if longest > 1 else [0]
    steps = [order] if longest * len(length) <= _FEW else [[back] for back in order]
    for back in map(np.array, steps):
        has = back < length[:, None]  # (p, tokens looked at)
        item, place = np.nonzero(has)
        cos = np.full(has.shape, np.inf, np.float32)
        cos[item, place] = _cosines(record, layers, text, valid, proposals.keep(item), back[place])
        sim = np.minimum(sim, cos.min(axis=1))
        passes = sim > record.limit[proposals.slot]
        if not passes.all():
            proposals, sim, length = proposals.keep(passes), sim[passes], length[passes]
            if not len(sim):
                break
    return proposals, sim


def _cosines(
    record: KeyRecord,
    layers: Sequence[int],
    text: Sequence[Tensor],
    valid: np.ndarray,
    items: Proposals,
    back: np.ndarray,
) -> np.ndarray:
    """cos(text, key) of the token `back` (p,) before each item's last one, float32; 0 for a token that is
    zero or not finite, -1 for a position that is no token."""
    position = items.position - back
    fits = valid[items.row, np.maximum(position, 0)] & (position >= 0)
    if not fits.all():
        out = np.full(len(back), -1.0, np.float32)
        out[fits] = _cosines(record, layers, text, valid, items.keep(fits), back[fits])
        return out
    found = np.zeros(len(back))
    step = max(1, _GATHER // record.dim)
    for start in range(0, len(back), step):
        part = slice(start, start + step)
        place, slot = items.layer[part], items.slot[part]
        q, k = np.empty((len(slot), record.dim)), np.empty((len(slot), record.dim))
        ends = np.searchsorted(place, np.arange(len(text) + 1)).tolist()
        for states, here in zip(text, map(slice, ends, ends[1:]), strict=True):
            if here.start < here.stop:
                q[here] = _rows(states, items.row[part][here], position[part][here])
        number, last = np.array(layers)[place], back[part] == 0
        k[last] = _rows(record.last, number[last], slot[last])
        if not last.all():
            rest = ~last
            k[rest] = _rows(record.pool, number[rest], record.rest[slot[rest], back[part][rest] - 1])
        norm = np.sqrt(np.einsum("pd,pd->p", q, q))
        usable = (norm > 0) & (norm < np.inf)
        np.divide(np.einsum("pd,pd->p", q, k), norm, out=found[part], where=usable)
    return found.astype(np.float32)


def _rows(table: Tensor, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``table[first, second]`` (p, D) in a dtype of NumPy's, on the host."""
    if table.device.type == "cpu" and table.dtype != torch.bfloat16:  # at a few rows, NumPy is quicker
        rows: np.ndarray = table.detach().numpy()[first, second]
        return rows
    at = tuple(torch.from_numpy(index).to(table.device) for index in (first, second))
    return table[at].double().cpu().numpy()


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
