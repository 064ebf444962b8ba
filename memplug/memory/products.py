"""Scans: which (query token, key) pairs of some layers may have a cosine above a floor.

A scan holds a copy of the keys in a form that is quick to search, derived from the record and never
saved. It may propose pairs below the floor, but leaves out none above it; `memplug.memory.spans` checks
what it proposes. Here are the protocol and the scan by matrix product.

Letters: N query tokens, n keys, D width, R think layers, l layers searched at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["Pairs", "ProductScan", "Scan", "by_product", "float_product", "joined", "quickest_format"]

Pairs = tuple[np.ndarray, np.ndarray]
"""Two int64 arrays (p,) on the host: the query and the slot of each pair."""

_BLOCK = 1 << 20  # elements of one product
_EVEN = 8.0  # a vector whose largest element is so many times the usual one loses little in int8


class Scan(Protocol):
    """What the key memory asks of a scan.

    Attributes:
        bits: length of its codes, None if it has none.
        asked, crowded: queries so far, and those with so many candidates that the scan was no help.
    """

    bits: int | None
    asked: int
    crowded: int

    @property
    def nbytes(self) -> int:
        """Bytes of the scan's copy of the keys."""

    def resize(self, capacity: int) -> None:
        """Make room for `capacity` keys per layer; keys already written stay."""

    def write(self, slots: Tensor, keys: Tensor) -> None:
        """Put keys (R, k, D) float32, of length 1, at slots (k,) int64."""

    def candidates(
        self, layers: Sequence[int], queries: Tensor, keys: Tensor, floor: float
    ) -> list[Pairs | None]:
        """Pairs whose cosine may exceed `floor`, for each of the layers.

        Args:
            layers: l of 0..R-1, one after another.
            queries: (l, N, D) float32, of length 1; what is proposed for others does not matter.
            keys: (R, n, D) float16, the record's keys of slots 0..n-1.
            floor: 0 <= floor < 1.

        Returns:
            For each layer the pairs, in no order; None where there is none.
        """


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` in int32 of int8 (n, D) and (N, D)."""
    return torch._int_mm(a, b.T)


def float_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` of (n, D) and (N, D)."""
    return a @ b.T


def quickest_format(
    device: torch.device,
    dim: int,
    formats: Sequence[torch.dtype] = (torch.float32, torch.bfloat16, torch.int8),
) -> torch.dtype:
    """The number format whose matrix product is the quickest here, by a trial of a millisecond or two.

    On a GPU float16. On a CPU int8 where it has instructions for it (VNNI, AMX), else bfloat16 where it
    has those (AVX512-BF16, AMX), else float32; float16 products are slow on CPUs. One thread of a Zen 4
    core, 10,000 keys of width 192: int8 0.04 ms for 1 query and 0.6 for 64, bfloat16 0.16 and 1.2,
    float32 0.4 and 3.1.
    """
    if device.type != "cpu":
        return torch.float16

    def seconds(dtype: torch.dtype) -> float:
        product = int8_product if dtype == torch.int8 else float_product
        a, b = torch.ones(512, min(dim, 1024), dtype=dtype), torch.ones(16, min(dim, 1024), dtype=dtype)
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            product(a, b)
            best = min(best, time.perf_counter() - start)
        return best

    usable = [dtype for dtype in formats if dtype != torch.int8 or _int8_is_exact(dim)]
    return min(usable, key=seconds)


def _int8_is_exact(dim: int) -> bool:
    """Whether this build has int8 products that do not saturate (they do on some CPUs without VNNI)."""
    if not hasattr(torch, "_int_mm"):
        return False
    signs = torch.where(torch.arange(4 * dim).reshape(4, dim) % 3 == 0, -127, 127)
    full = torch.cat([torch.full((2, dim), 127), torch.full((2, dim), -127), signs]).to(torch.int8)
    try:
        return torch.equal(int8_product(full, full), (full.int()[:, None] * full.int()).sum(-1).int())
    except RuntimeError:
        return False


class _Group(NamedTuple):
    """Query tokens that share one scale: some layers, rows (None: all), queries (l', N', D) and the size of
    their largest elements."""

    layers: slice
    rows: np.ndarray | None
    queries: Tensor
    peak: float


class ProductScan:
    """Every cosine of a layer, by a matrix product in low precision.

    A unit vector x is held as scale * codes, and the length e of what that leaves out is kept with it.
    So for a query q and a key k (Cauchy-Schwarz, both of length 1):

        q.k <= scale_q scale_k (codes_q . codes_k) + e_q + e_k + e_q e_k

    and a key is proposed where the right side exceeds the floor. To this come the rounding of the product
    itself and what float16 and float32 do to a length of 1, both bounded in `slack`. In float16 the record
    itself is multiplied, and there is no copy.
    """

    def __init__(self, n_layers: int, dim: int, device: torch.device, dtype: torch.dtype | None = None):
        self.bits: int | None = None
        self.asked = self.crowded = 0
        self.dtype = quickest_format(device, dim) if dtype is None else dtype
        self.copies = self.dtype != torch.float16
        self.table = torch.zeros(n_layers, 0, dim if self.copies else 0, dtype=self.dtype, device=device)
        self.scale = torch.zeros(n_layers, 0, device=device, dtype=torch.float32)
        self.error = torch.zeros(n_layers, 0, device=device, dtype=torch.float32)
        self.worst = 0.0  # largest error of a key so far
        self.slack = 2.0**-11 + dim * 2.0**-22
        if self.dtype == torch.int8:
            self.product = int8_product
        else:
            self.product = float_product
            if self.dtype != torch.float32:
                # The result is rounded; a GPU may also round a dozen partial sums.
                self.slack += (1 if device.type == "cpu" else 16) * torch.finfo(self.dtype).eps

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + self.scale.nbytes + self.error.nbytes

    def resize(self, capacity: int) -> None:
        if capacity == self.table.shape[1]:
            return
        for name in ("table", "scale", "error"):
            old = getattr(self, name)
            new = old.new_zeros(old.shape[0], capacity, *old.shape[2:])
            kept = min(capacity, old.shape[1])
            new[:, :kept] = old[:, :kept]
            setattr(self, name, new)

    def write(self, slots: Tensor, keys: Tensor) -> None:
        codes, scale, error = self._encode(keys, keys.abs().amax(dim=-1, keepdim=True))
        if self.copies:
            self.table[:, slots] = codes
        self.scale[:, slots] = scale.squeeze(-1)
        self.error[:, slots] = error
        self.worst = max(self.worst, float(error.max()))

    def _encode(self, x: Tensor, peak: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of keys x (..., D), their scale for elements up to `peak`, and the error (...)."""
        if self.dtype == torch.int8:
            scale = peak.clamp_min(1e-20) / 127
            codes = (x / scale).round_().to(torch.int8)
            return codes, scale, torch.linalg.vector_norm(torch.addcmul(x, codes, scale, value=-1), dim=-1)
        codes = x.to(self.dtype)
        return codes, torch.ones_like(peak), torch.linalg.vector_norm(x - codes, dim=-1)

    def _encode_queries(self, group: _Group) -> tuple[Tensor, float, float]:
        """Codes of the group's queries (l', N', D), their scale, and a bound of their error."""
        x = group.queries
        if self.dtype == torch.int8:
            # No element is off by more than half a step (and what float32 makes of the division).
            codes = (x * (127 / group.peak)).round_().to(torch.int8)
            return codes, group.peak / 127, 0.501 * x.shape[-1] ** 0.5 * group.peak / 127
        codes = x.to(self.dtype)
        error = 0.0 if codes is x else float(torch.linalg.vector_norm(x - codes, dim=-1).max())
        return codes, 1.0, error

    def candidates(
        self, layers: Sequence[int], queries: Tensor, keys: Tensor, floor: float
    ) -> list[Pairs | None]:
        found: list[list[Pairs]] = [[] for _ in layers]
        for group in self._groups(queries):
            chosen = range(len(layers))[group.layers]
            for i, (token, slot) in self._near([layers[c] for c in chosen], group, keys, floor):
                found[chosen[i]].append((token if group.rows is None else group.rows[token], slot))
        return [joined(pairs) for pairs in found]

    def _groups(self, queries: Tensor) -> list[_Group]:
        """Queries (l, N, D) in groups that may share one scale.

        Some tokens of large models have a few giant elements. With the scale that these need, the other
        tokens' elements would be rounded to nothing, so rows share a scale with rows that have a largest
        element of about the same size.
        """
        every = slice(None)
        if self.dtype != torch.int8:
            return [_Group(every, None, queries, 1.0)]
        low, high = torch.aminmax(queries)
        peak = max(-float(low), float(high))
        if 0 < peak <= _EVEN * queries.shape[2] ** -0.5:
            return [_Group(every, None, queries, peak)]
        groups = []
        for i, peaks in enumerate(queries.abs().amax(dim=-1).clamp_min(2.0**-40).numpy()):
            power = np.floor(np.log2(peaks) / 2)
            for p in np.unique(power):
                rows = np.flatnonzero(power == p)
                some = queries[i : i + 1, torch.from_numpy(rows)]
                groups.append(_Group(slice(i, i + 1), rows, some, float(peaks[rows].max())))
        return groups

    def _near(
        self, layers: list[int], group: _Group, keys: Tensor, floor: float
    ) -> Iterator[tuple[int, Pairs]]:
        """Pairs of group and slot, with the place of their layer; several times for a layer, or never."""
        table, count = self.table if self.copies else keys, keys.shape[1]
        codes, scale, error = self._encode_queries(group)
        step = max(1, _BLOCK // codes.shape[1])
        limit = floor - self.slack - error * (1 + self.worst)
        for i, layer in enumerate(layers):
            for start in range(0, count, step):
                here = slice(start, min(start + step, count))
                product = self.product(table[layer, here], codes[i])
                parts = product, self.scale[layer, here], self.error[layer, here]
                best = torch.addcmul(parts[2], product.amax(dim=1), parts[1], value=scale)
                slot = np.flatnonzero(best.cpu().numpy() > limit)  # seldom any: most texts name no entry
                if not len(slot):
                    continue
                if codes.shape[1] == 1:
                    yield i, (np.zeros_like(slot), slot + start)
                    continue
                at = torch.from_numpy(slot).to(product.device)
                some, unit, extra = (x.index_select(0, at).float().cpu().numpy() for x in parts)
                row, token = np.nonzero(some * (unit * scale)[:, None] + extra[:, None] > limit)
                yield i, (token, slot[row] + start)


def joined(pairs: list[Pairs]) -> Pairs | None:
    """Several lists of pairs as one, None if there is none."""
    if len(pairs) < 2:
        return pairs[0] if pairs else None
    return np.concatenate([token for token, _ in pairs]), np.concatenate([slot for _, slot in pairs])


def by_product(queries: Tensor, keys: Tensor, floor: float) -> list[Pairs]:
    """Pairs among queries (N, D) float32 and keys (n, D) float16 whose cosine may exceed `floor`.

    In float32 and without a copy of the keys that is kept: for the few queries that another scan leaves.
    """
    if not len(queries):
        return []
    limit = floor - 2.0**-11 - queries.shape[1] * 2.0**-22
    step = max(1, 2 * _BLOCK // max(queries.shape))
    pairs = []
    for start in range(0, len(keys), step):
        near = (keys[start : start + step].float() @ queries.T).cpu().numpy() > limit
        slot, token = np.nonzero(near)
        if len(slot):
            pairs.append((token, slot + start))
    return pairs
