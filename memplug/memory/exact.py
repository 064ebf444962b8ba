"""The definition of a match, and the search by it: cosines of the record's own keys, whole spans of them.

A scan proposes pairs of a query token and the last token of an entry's span, too many but none too few; here
is the one that multiplies with every key. Then `check_spans` compares whole spans, in float64 and rounded to
float32, so that a similarity does not depend on the order of summation, which differs with the shape of a
product and between devices.

Letters: N query tokens, n keys, D width, R think layers, B rows, T tokens, S tokens of a subject.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .record import KeyRecord

__all__ = ["Pairs", "check_spans", "near_by_product", "pairs_of", "span_similarity", "unit_rows"]

Pairs = tuple[np.ndarray, np.ndarray]
"""Two int64 arrays (p,): the query and the slot of each pair."""

_BLOCK = 1 << 18  # elements of keys, or of a product, held at once on a CPU
_PRODUCT = 1 << 24  # elements of a product held at once on a GPU


def unit_rows(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of `x` (..., D) with norm 1; rows that are zero or not finite become zero."""
    x = x.to(dtype)
    return torch.nan_to_num(x / torch.linalg.vector_norm(x, dim=-1, keepdim=True), 0.0, 0.0, 0.0)


def span_similarity(states: Tensor, valid: Tensor, span: Tensor) -> Tensor:
    """The smallest cosine in the window that ends at each token; -1 where none fits.

    Args:
        states: (R, T, D) of length 1.
        valid: bool (T,), the tokens that may be matched.
        span: (R, S, D) a key.

    Returns:
        (R, T), of the states' dtype.
    """
    length, n_tokens = span.shape[1], states.shape[1]
    cosines = torch.einsum("rtd,rsd->rst", states, span.to(states))
    cosines = cosines.masked_fill(~valid.to(states.device), -1.0)
    out = cosines.new_full((len(states), n_tokens), -1.0)
    if n_tokens >= length:
        windows = cosines.unfold(2, length, 1)  # (R, S, T - S + 1, S)
        out[:, length - 1 :] = windows.diagonal(dim1=1, dim2=3).amin(-1)
    return out


def near_by_product(queries: Tensor, keys: Tensor, floor: float) -> Pairs:
    """Pairs whose cosine may exceed `floor`, by a product with every key.

    Args:
        queries: (N, D) float32, of length 1; what is proposed for others does not matter.
        keys: (n, D) float16, the record's of slots 0..n-1. A CPU multiplies them in float32, some at a time,
            since its float16 products are slow; other devices as they are.
        floor: 0 <= floor < 1.
    """
    limit = floor - 2.0**-11 - keys.shape[1] * 2.0**-22
    if keys.device.type == "cpu":
        dtype, step = torch.float32, max(1, _BLOCK // max(queries.shape))
    else:  # the result is rounded, and a GPU may round a dozen partial sums
        dtype, step, limit = torch.float16, max(1, _PRODUCT // len(queries)), limit - 16 * 2.0**-10
    queries, none = queries.to(dtype), np.zeros(0, np.int64)
    found = [(none, none)]
    for start in range(0, len(keys), step):
        product = keys[start : start + step].to(dtype) @ queries.T
        slot = np.flatnonzero(product.amax(1).cpu().numpy() > limit)  # seldom any
        if len(slot):
            rows = product[torch.from_numpy(slot).to(product.device)].cpu().numpy()
            at, token = np.nonzero(rows > limit)
            found.append((token, slot[at] + start))
    token, slot = (np.concatenate(part) for part in zip(*found, strict=True))
    return token, slot


def pairs_of(near: np.ndarray, slot: np.ndarray, queries: Tensor, keys: Tensor, floor: float) -> Pairs:
    """Pairs among each query's nearest keys. Where all of these are near there may be more of them: such
    queries are multiplied with every key.

    Args:
        near: bool (N, k), which of a query's k nearest may exceed the floor, the nearest first.
        slot: int64 (N, k), their slots.
        queries, keys, floor: as in `near_by_product`.
    """
    full = near[:, -1] if near.shape[1] < len(keys) else np.zeros(len(near), bool)
    token, place = np.nonzero(near & ~full[:, None])
    pairs, rest = (token, slot[token, place]), np.flatnonzero(full)
    if not len(rest):
        return pairs
    more = near_by_product(queries[torch.from_numpy(rest).to(queries.device)], keys, floor)
    return np.concatenate([pairs[0], rest[more[0]]]), np.concatenate([pairs[1], more[1]])


def check_spans(
    record: KeyRecord,
    layer: int,
    text: Tensor,
    valid: np.ndarray,
    row: np.ndarray,
    position: np.ndarray,
    slot: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Which proposals hold: the smallest cosine in the window exceeds the entry's threshold.

    Args:
        text: the layer's hidden states (B, T, D), any float dtype, on the record's device.
        valid: bool (B, T), which of them are tokens.
        row, position, slot: int64 (p,), where in the text each proposal ends, and of which entry it is.

    Returns:
        The places, int64, of the proposals that hold, and their smallest cosines, float32.
    """
    length, sim = record.entries["length"][slot], np.full(len(slot), np.inf, np.float32)
    items, step = np.arange(len(slot)), max(1, _BLOCK // record.dim)
    # Mostly a proposed last word is a common one, so that the token before it decides.
    for back in (*range(1, int(length.max(initial=1))), 0):
        here = items[length[items] > back]
        at = position[here] - back
        fits = (at >= 0) & valid[row[here], at]
        sim[here[~fits]] = -1.0
        here, at = here[fits], at[fits]
        keys = record.last[layer] if back == 0 else record.pool[layer]
        rows = slot[here] if back == 0 else record.rest[slot[here], back - 1]
        for start in range(0, len(here), step):
            part = slice(start, start + step)
            some, key = _rows(text, row[here[part]], at[part]), _rows(keys, rows[part])
            norm, cosine = np.sqrt(np.einsum("pd,pd->p", some, some)), np.zeros(len(some))
            np.divide(np.einsum("pd,pd->p", some, key), norm, out=cosine, where=(norm > 0) & (norm < np.inf))
            sim[here[part]] = np.minimum(sim[here[part]], cosine.astype(np.float32))
        items = items[sim[items] > record.entries["limit"][slot[items]]]
    return items, sim[items]


def _rows(table: Tensor, *index: np.ndarray) -> np.ndarray:
    """Some rows (p, D) of a table, float64, on the host."""
    rows: np.ndarray = (
        table[tuple(torch.from_numpy(one).to(table.device) for one in index)].double().cpu().numpy()
    )
    return rows
