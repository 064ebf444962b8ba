"""The scan by sign codes: for memories too large to multiply with every key.

A code is the signs of b random projections of a vector (Charikar, "Similarity estimation techniques from
rounding algorithms", 2002). For Gaussian projections a bit of two vectors differs with probability
arccos(cosine) / pi, whatever the data are, so the Hamming distance of the codes tells the cosine. FAISS
finds the keys whose codes are within a radius of a query's; the radius is so wide that it leaves out a
pair which just reaches the floor with probability `LOSS`, and a pair well above it practically never.

Letters: N query tokens, n keys, D width, R think layers, l layers searched at once, b bits.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memplug.memory.products import Pairs, by_product, joined, quickest_format

__all__ = ["BITS", "SignScan", "faiss_module", "fewest_bits", "pass_rate", "radius"]

LOSS = 1e-9
BITS = (512, 1024, 2048)
# How many nearest codes are asked for. Mostly the nearest one tells that nothing is near, and one costs
# half of what 64 cost; for a few queries all the same.
_NEAREST = (1, 64, 1024)
# More often than Gaussian theory a bit differs because vectors and projections are held in bfloat16:
# rounding turns a vector by less than 2^-8, so two by 2^-7 / pi of the bits, and the projections less.
_BLUR = 0.004


def faiss_module(extra: str = "cpu") -> Any:
    """The faiss package.

    Raises:
        ImportError: it is not installed, or two of its distributions are, which overwrite each other.
    """
    names = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs")
    installed = [name for name in names if _installed(name)]
    if len(installed) > 1:
        raise ImportError(
            f"{' and '.join(installed)} are both installed, but share one package folder and overwrite each "
            f"other; run `pip uninstall {' '.join(installed)}` and install one of them again"
        )
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError(
            f'FAISS is needed for this search; run `pip install "memplug[{extra}]"`, or use scan="exact"'
        ) from error


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _difference(cosine: float) -> float:
    """Probability that a bit of two vectors with this cosine differs."""
    return math.acos(max(-1.0, min(1.0, cosine))) / math.pi


def _binomial(bits: int, p: float) -> np.ndarray:
    """P(X <= h) for h = 0..bits, X binomial."""
    k = np.arange(bits + 1)
    choose = np.array([math.lgamma(bits + 1) - math.lgamma(i + 1) - math.lgamma(bits - i + 1) for i in k])
    return np.exp(choose + k * math.log(p) + (bits - k) * math.log1p(-p)).cumsum()


def radius(bits: int, cosine: float) -> int:
    """The smallest h for which codes of two vectors with this cosine, or a larger one, are further than h
    bits apart with probability `LOSS` at most."""
    # P(differing bits > h) = P(equal bits < b - h); summed from the small end, where it is accurate.
    fewer = _binomial(bits, 1 - min(_difference(cosine) + _BLUR, 0.5))
    return bits - 1 - (int(np.searchsorted(fewer, LOSS, side="right")) - 1)


def pass_rate(bits: int, cosine: float, floor: float) -> float:
    """Probability that codes of two vectors with this cosine are within the radius for `floor`."""
    return float(_binomial(bits, _difference(cosine))[radius(bits, floor)])


def fewest_bits(queries: Tensor, keys: Tensor, count: int, floor: float) -> int | None:
    """The shortest code with which a query has 8 proposals or fewer among `count` keys, None if none has.

    Args:
        queries, keys: samples (N, D) and (n, D), float32 of length 1. What the memory is mostly asked for
            is taken to be the typical query's 99th percentile of cosines.
    """
    background = float(torch.quantile(queries @ keys.T, 0.99, dim=1).median())
    return next((bits for bits in BITS if count * pass_rate(bits, background, floor) <= 8), None)


class SignScan:
    """Keys as codes of `bits` bits, on the CPU; a different projection for each layer.

    Args:
        seed: of the projections.
    """

    def __init__(self, n_layers: int, dim: int, bits: int, seed: int):
        faiss_module()
        self.bits: int | None = bits
        self.asked = self.crowded = 0
        dtype = quickest_format(torch.device("cpu"), dim, (torch.float32, torch.bfloat16))
        self.projection = torch.empty(n_layers, bits, dim, dtype=dtype)
        for layer in range(n_layers):
            generator = torch.Generator().manual_seed(seed * n_layers + layer)
            self.projection[layer] = torch.randn(bits, dim, generator=generator, dtype=torch.float32)
        self.codes = np.zeros((n_layers, 0, bits // 8), np.uint8)
        self._radius: dict[float, int] = {}

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.projection.nbytes

    def resize(self, capacity: int) -> None:
        if capacity != self.codes.shape[1]:
            codes = np.zeros((*self.codes.shape[:1], capacity, self.codes.shape[2]), np.uint8)
            kept = min(capacity, self.codes.shape[1])
            codes[:, :kept] = self.codes[:, :kept]
            self.codes = codes

    def write(self, slots: Tensor, keys: Tensor) -> None:
        self.codes[:, slots.numpy()] = self._encode(range(len(keys)), keys)

    def _encode(self, layers: Sequence[int], x: Tensor) -> np.ndarray:
        """Codes (l, k, b / 8) uint8 of x (l, k, D), the layers one after another."""
        projection = self.projection[layers[0] : layers[-1] + 1]
        projected = torch.bmm(x.to(projection.dtype), projection.transpose(1, 2))
        return np.packbits((projected > 0).numpy(), axis=2)

    def candidates(
        self, layers: Sequence[int], queries: Tensor, keys: Tensor, floor: float
    ) -> list[Pairs | None]:
        limit = self._radius.get(floor)
        if limit is None:
            limit = radius(8 * self.codes.shape[2], floor)
            self._radius = {floor: limit}
        found = []
        for layer, x, codes in zip(layers, queries, self._encode(layers, queries), strict=True):
            pairs, left = self._within(codes, self.codes[layer, : keys.shape[1]], limit)
            self.asked += len(x)
            if len(left):
                self.crowded += len(left)
                rest = x[torch.from_numpy(left)]
                pairs += [(left[token], slot) for token, slot in by_product(rest, keys[layer], floor)]
            found.append(joined(pairs))
        return found

    def _within(self, codes: np.ndarray, table: np.ndarray, limit: int) -> tuple[list[Pairs], np.ndarray]:
        """Pairs of codes at most `limit` bits apart, and the rows of `codes` that have too many."""
        faiss = importlib.import_module("faiss")  # not an attribute: modules cannot be copied
        pairs: list[Pairs] = []
        rows = np.arange(len(codes))
        for nearest in _NEAREST if len(codes) > 4 else _NEAREST[1:]:
            nearest = min(nearest, len(table))
            distance, slot = faiss.knn_hamming(codes[rows], table, nearest)
            inside = distance <= limit
            full = inside[:, -1] if nearest < len(table) else np.zeros(len(rows), bool)
            at, place = np.nonzero(inside & ~full[:, None])
            if len(at):
                pairs.append((rows[at], slot[at, place]))
            rows = rows[full]
            if not len(rows):
                break
        return pairs, rows
