"""The comparison that decides: cosines of the record's own keys, whole spans of them.

Cosines are computed in float64 and rounded to float32, so that their value does not depend on the order
of summation, which differs with the shape of a product and between devices.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from memplug.memory.record import KeyRecord

__all__ = ["check_spans", "window_cosines"]

_GATHER = 1 << 21  # elements of keys held in float64 at once


def check_spans(
    record: KeyRecord,
    layer: int,
    text: Tensor,
    valid: np.ndarray,
    row: np.ndarray,
    position: np.ndarray,
    slot: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Which of p proposed matches hold.

    Args:
        text: (B, T, D) hidden states of the layer, any float dtype, on the record's device.
        valid: bool (B, T), which of them are tokens.
        row, position, slot: int64 (p,), where the match ends and with which entry.

    Returns:
        The places, among the p, of the matches whose smallest cosine in the window exceeds the entry's
        threshold, and those cosines, float32.
    """
    width = valid.shape[1]
    text = text.flatten(0, 1)
    place = np.arange(len(slot))
    sim = np.full(len(place), np.inf, np.float32)
    # From the last token of the span to its first: most proposals fail at the first few.
    for back in range(int(record.length[slot[place]].max(initial=0))):
        here = np.flatnonzero(record.length[slot[place]] > back)
        r, t, s = row[place[here]], position[place[here]] - back, slot[place[here]]
        fits = (t >= 0) & valid[r, np.maximum(t, 0)]
        cos = np.full(len(here), -1.0, np.float32)
        keys, rows = (record.last, s) if back == 0 else (record.pool, record.rest[s, back - 1])
        cos[fits] = _cosines(text, (r * width + t)[fits], keys[layer], rows[fits])
        sim[here] = np.minimum(sim[here], cos)
        passes = sim > record.limit[slot[place]]
        place, sim = place[passes], sim[passes]
    return place, sim


def _cosines(text: Tensor, tokens: np.ndarray, keys: Tensor, rows: np.ndarray) -> np.ndarray:
    """cos(text[tokens[i]], keys[rows[i]]), float32; 0 for a token that is zero or not finite."""
    out = np.empty(len(tokens), np.float32)
    step = max(1, _GATHER // text.shape[1])
    for start in range(0, len(tokens), step):
        part = slice(start, start + step)
        q = text[torch.from_numpy(tokens[part]).to(text.device)].double()
        k = keys[torch.from_numpy(rows[part]).to(text.device)].double()
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
        shifted[back:] = cos[: len(cos) - back]
        out[:, has] = np.minimum(out[:, has], shifted)
    return out
