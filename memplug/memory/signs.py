"""The compressed scan: sign codes, for memories too large to multiply with every key.

A code is the signs of b random projections of a vector (Charikar, "Similarity estimation techniques from
rounding algorithms", 2002). For Gaussian projections a bit of two vectors differs with probability
arccos(cosine) / pi, whatever the data are, so the Hamming distance of the codes tells the cosine. FAISS
finds the keys whose codes are within a radius of a query's; the radius is so wide that it leaves out a
pair which just reaches the floor with probability `LOSS`, and a pair well above it practically never.

Letters: N query tokens, n keys, D width, R think layers, b bits.
"""

from __future__ import annotations

import importlib
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .exact import Pairs, pairs_of
from .record import KeyRecord

__all__ = ["SignScan", "fewest_bits", "radius"]

LOSS = 1e-9
BITS = (512, 1024, 2048)
_NEAREST = 64  # codes asked for; a query with more of them within the radius is multiplied with every key
_SAMPLE = 1024  # keys that tell how alike everything is
_ELEMENTS = 1 << 21  # of keys encoded at once


def _at_most(bits: int, cosine: float) -> np.ndarray:
    """Probability that at most h = 0..bits bits of two vectors with this cosine are the same."""
    same = min(max(1 - math.acos(max(-1.0, min(1.0, cosine))) / math.pi, 1e-9), 1 - 1e-9)
    k = np.arange(bits + 1)
    choose = np.array([math.lgamma(bits + 1) - math.lgamma(i + 1) - math.lgamma(bits - i + 1) for i in k])
    return np.exp(choose + k * math.log(same) + (bits - k) * math.log1p(-same)).cumsum()


def radius(bits: int, cosine: float) -> int:
    """The smallest h for which codes of two vectors with this cosine, or a larger one, are further than h
    bits apart with probability `LOSS` at most."""
    # P(differing > h) = P(same <= b - h - 1); summed from the small end, where it is accurate.
    return bits - int(np.searchsorted(_at_most(bits, cosine), LOSS, side="right"))


def fewest_bits(queries: Tensor, keys: Tensor, count: int, floor: float) -> int:
    """The shortest code with which a query has 8 proposals or fewer among `count` keys, 0 if none has.

    Args:
        queries, keys: samples (N, D) and (n, D), float32 of length 1. What the memory is mostly asked for
            is taken to be the typical query's 99th percentile of cosines.
    """
    usual = float(torch.quantile(queries @ keys.T, 0.99, dim=1).median())
    for bits in BITS:
        passing = 1 - float(_at_most(bits, usual)[bits - radius(bits, floor) - 1])
        if count * passing <= 8:
            return bits
    return 0


class _Codes(NamedTuple):
    """Codes uint8 (R, capacity, b / 8) by the projection (b, D), made when the record had so many keys, for a
    floor with this radius. Without bits where codes do not tell the keys apart."""

    codes: np.ndarray
    projection: Tensor
    size: int
    floor: float
    radius: int

    def of(self, x: Tensor) -> np.ndarray:
        """Codes uint8 (..., b / 8) of x (..., D)."""
        return np.packbits((x @ self.projection.T > 0).numpy(), axis=-1)


class SignScan:
    """Codes of a record's last tokens, on the CPU.

    They are made by the first search and kept up with changes. Another search makes them anew where the
    record has half or twice as many keys since, or the floor is lower.

    Args:
        record: the keys.
        seed: of the projections.

    Raises:
        ImportError: FAISS is not installed.
    """

    def __init__(self, record: KeyRecord, seed: int) -> None:
        self._record, self._seed = record, seed
        self._made: _Codes | None = None

    @property
    def bits(self) -> int:
        """b; 0 where there are no codes."""
        return 0 if self._made is None else 8 * self._made.codes.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of codes and projection."""
        return 0 if self._made is None else self._made.codes.nbytes + self._made.projection.nbytes

    def changed(self, slot: int | None) -> None:
        """Another key is at this slot now, or all are others; no search may be running."""
        made, capacity = self._made, self._record.last.shape[1]
        if slot is None:
            self._made = None
        if made is None or slot is None or slot >= len(self._record):
            return
        if slot >= made.codes.shape[1]:
            grown = np.zeros((made.codes.shape[0], capacity, made.codes.shape[2]), np.uint8)
            grown[:, : made.codes.shape[1]] = made.codes
            made = self._made = made._replace(codes=grown)
        made.codes[:, slot] = made.of(self._record.last[:, slot].float())

    def near(self, layer: int, queries: Tensor, floor: float) -> Pairs | None:
        """Pairs whose cosine may exceed the floor, None where codes do not tell the keys apart.

        Args:
            queries: (N, D) float32, of length 1.
            floor: 0 <= floor < 1.
        """
        count, made = len(self._record), self._made
        if made is None or not made.size / 2 <= count <= 2 * made.size or floor < made.floor:
            made = self._made = self._make(layer, queries, floor)
        if not made.codes.shape[2]:
            return None
        faiss = importlib.import_module("faiss")
        codes = made.codes[layer, :count]
        distance, slot = faiss.knn_hamming(made.of(queries), codes, min(_NEAREST, count))
        return pairs_of(distance <= made.radius, slot, queries, self._record.last[layer, :count], floor)

    def _make(self, layer: int, queries: Tensor, floor: float) -> _Codes:
        """Whole, so that threads which find none at the same time each make theirs, and any will do."""
        record, count = self._record, len(self._record)
        some = torch.from_numpy(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64))
        bits = fewest_bits(queries[:64], record.last[layer, some].float(), count, floor)
        draw = torch.Generator().manual_seed(self._seed)
        projection = torch.randn(bits, record.dim, generator=draw, dtype=torch.float32)
        codes = np.zeros((record.n_layers, record.last.shape[1], bits // 8), np.uint8)
        made = _Codes(codes, projection, count, floor, radius(bits, floor) if bits else 0)
        step = max(1, _ELEMENTS // (record.n_layers * record.dim))
        for start in range(0, count if bits else 0, step):
            part = slice(start, min(start + step, count))
            codes[:, part] = made.of(record.last[:, part].float())
        return made
