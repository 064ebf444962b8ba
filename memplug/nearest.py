"""The nearest of many vectors: proposed by FAISS, decided on the vectors themselves.

FAISS adds up in another order for one query than for many. What it proposes is therefore measured anew, each
pair alone and in float64, so that a row's result does not depend on the rows beside it. Knows nothing about
models or edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .memory.signs import faiss_module

__all__ = ["Metric", "Near", "Nearest", "measure"]

Metric = Literal["euclidean", "cosine"]

_SPARE = 8  # proposals beyond those asked for, as FAISS may order near ties otherwise


class Near(NamedTuple):
    """The nearest vectors of each query, nearest first.

    Attributes:
        number: int64 [B,k], their numbers; -1 where there are no more, or the query is not finite.
        measure: float64 [B,k], the distance, or the cosine; NaN where the number is -1.
    """

    number: np.ndarray
    measure: np.ndarray


class Nearest:
    """Vectors by number, float32 on the CPU.

    Args:
        width: of a vector.
        metric: "euclidean" finds the smallest distance, "cosine" the largest cosine.

    Raises:
        ImportError: FAISS is missing; the message names the extra.
    """

    def __init__(self, width: int, metric: Metric) -> None:
        faiss = faiss_module()
        self.width, self.metric = width, metric
        self._index: Any = faiss.IndexFlatL2(width) if metric == "euclidean" else faiss.IndexFlatIP(width)
        self.numbers: list[int] = []
        self._vectors = np.zeros((0, width), np.float32)

    def __len__(self) -> int:
        return len(self.numbers)

    def hold(self, vectors: Mapping[int, Tensor]) -> None:
        """Hold these vectors [width] and no others; a number always stands for the same vector.

        Raises:
            ValueError: a vector of another shape, or one that is not finite; nothing is changed.
        """
        numbers = list(vectors)
        known = len(self.numbers) if numbers[: len(self.numbers)] == self.numbers else 0
        added = [vectors[number].detach().float().cpu() for number in numbers[known:]]
        for vector in added:
            if tuple(vector.shape) != (self.width,) or not bool(torch.isfinite(vector).all()):
                raise ValueError(
                    f"a vector is {tuple(vector.shape)}; give finite vectors of the shape ({self.width},)"
                )
        fresh = np.stack([v.numpy() for v in added]) if added else np.zeros((0, self.width), np.float32)
        if not known:
            self._index.reset()
        if len(fresh):
            self._index.add(fresh if self.metric == "euclidean" else _unit(fresh))
        self._vectors = np.concatenate([self._vectors[:known], fresh])
        self.numbers = numbers

    @torch.no_grad()
    def search(self, queries: Tensor, k: int = 1) -> Near:
        """The ``k`` nearest vectors of each of ``queries`` [B,width], any float dtype and device."""
        asked = queries.detach().float().cpu().numpy()
        number = np.full((len(asked), k), -1, np.int64)
        found = np.full((len(asked), k), np.nan)
        count = min(k + _SPARE, len(self))
        rows = np.isfinite(asked).all(1).nonzero()[0]
        if not count or not len(rows):
            return Near(number, found)
        mine = np.ascontiguousarray(asked[rows])
        _, proposed = self._index.search(mine if self.metric == "euclidean" else _unit(mine), count)
        for row, query, places in zip(rows, mine, proposed, strict=True):
            places = np.sort(places[places >= 0])  # of vectors equally near the first is taken
            values = measure(query, self._vectors[places], self.metric)
            order = np.argsort(values if self.metric == "euclidean" else -values, kind="stable")[:k]
            number[row, : len(order)] = [self.numbers[place] for place in places[order]]
            found[row, : len(order)] = values[order]
        return Near(number, found)


def measure(query: np.ndarray, vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances, or cosines, float64 [n] of ``query`` [width] to ``vectors`` [n,width]."""
    one, many = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "euclidean":
        return np.sqrt(((many - one) ** 2).sum(1))
    sizes = np.sqrt((many**2).sum(1) * (one**2).sum())
    return (many * one).sum(1) / np.maximum(sizes, 1e-30)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
