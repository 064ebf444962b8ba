"""Scans: which (query token, key) pairs of one layer may have a cosine above a floor.

A scan holds a copy of the keys in a form that is quick to search, derived from the record of
`memplug.memory.KeyMemory` and never saved. It may name pairs that lie below the floor, but it never
misses one above it: the memory checks every pair it names on the record itself.

Letters: N query tokens, n keys, D width, R think layers.
"""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["ExactScan", "Pairs", "Scan", "exact_dtype"]

Pairs = tuple[Tensor, Tensor]

# Cosines of one block of the product, in elements: about a core's second-level cache.
_BLOCK = 1 << 19


class Scan(Protocol):
    """What the key memory asks of a scan."""

    @property
    def nbytes(self) -> int:
        """Bytes of the scan's copy of the keys."""

    def resize(self, capacity: int) -> None:
        """Make room for `capacity` keys per layer; keys already written stay."""

    def write(self, slots: Tensor, keys: Tensor) -> None:
        """Put keys (R, k, D) float32, unit or zero rows, at slots (k,) int64."""

    def candidates(self, layer: int, queries: Tensor, count: int, floor: float) -> Pairs | None:
        """Pairs among queries (N, D) float32, unit or zero rows, and the first `count` slots.

        Returns:
            Two int64 tensors (p,), the query and the slot of each pair, which hold every pair whose
            cosine is above `floor` (0 <= floor < 1); None where there is no pair.
        """


def exact_dtype(device: torch.device, dim: int) -> torch.dtype:
    """The number format whose matrix product is the quickest here.

    On a GPU float16. On a CPU bfloat16 if a small product in it takes less time than in float32, which
    holds on CPUs with AVX512-BF16 or AMX only; float16 products are slow on CPUs.
    """
    if device.type != "cpu":
        return torch.float16

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.ones(32, dim, dtype=dtype), torch.ones(1024, dim, dtype=dtype)
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            torch.mm(a, b.T)
            best = min(best, time.perf_counter() - start)
        return best

    return torch.bfloat16 if seconds(torch.bfloat16) < seconds(torch.float32) else torch.float32


class ExactScan:
    """Every cosine of a layer, by a matrix product in low precision.

    With unit roundoff u of the format (float32 2^-24, float16 2^-11, bfloat16 2^-8): rounding a vector
    moves it by at most u of its length, so the product of two rounded unit vectors is off by at most
    2u + u^2, and rounding the result adds u. Sums and norms over D elements in float32 add less than
    2 D 2^-24; a key of the record is longer than 1 by 2^-11 at most. A GPU may also round the partial
    sums of a product, of which there are a dozen, to float16. The slack covers all of it.
    """

    def __init__(self, n_layers: int, dim: int, device: torch.device, dtype: torch.dtype | None = None):
        self.dtype = exact_dtype(device, dim) if dtype is None else dtype
        self.table = torch.zeros(n_layers, 0, dim, dtype=self.dtype, device=device)
        u = torch.finfo(self.dtype).eps / 2
        self.slack = (3 if device.type == "cpu" else 20) * u * 1.01 + 2 * dim * 2.0**-24

    @property
    def nbytes(self) -> int:
        return self.table.nbytes

    def resize(self, capacity: int) -> None:
        n_layers, size, dim = self.table.shape
        table = self.table.new_zeros(n_layers, capacity, dim)
        table[:, :size] = self.table[:, :capacity]
        self.table = table

    def write(self, slots: Tensor, keys: Tensor) -> None:
        self.table[:, slots] = keys.to(self.dtype)

    def candidates(self, layer: int, queries: Tensor, count: int, floor: float) -> Pairs | None:
        q, limit = queries.to(self.dtype), floor - self.slack
        parts: list[Pairs] = []
        rows = min(len(q), 512)
        step = max(256, _BLOCK // max(rows, 1))
        for first in range(0, len(q), rows):
            block = q[first : first + rows]
            for start in range(0, count, step):
                cos = block @ self.table[layer, start : min(start + step, count)].T
                best = cos.amax(dim=1)
                if not bool(best.amax() > limit):  # the common case: nothing is near
                    continue
                near = torch.nonzero(best > limit).squeeze(1)
                at, slot = torch.nonzero(cos[near] > limit, as_tuple=True)
                parts.append((near[at] + first, slot + start))
        if not parts:
            return None
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
