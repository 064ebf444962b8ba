"""The definition of a match, written out in loops, and worlds of words to match."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from memplug.memory import KeyMemory

R, D = 3, 8


@dataclass
class Oracle:
    """The definition of a match, one entry, layer, row and position at a time."""

    threshold: float = 0.7
    top_k: int = 3
    quorum: int = 2
    order: str = "similarity"
    keys: dict[int, np.ndarray] = field(default_factory=dict)  # in order of insertion
    limit: dict[int, float] = field(default_factory=dict)
    off: set[int] = field(default_factory=set)
    since: dict[int, int] = field(default_factory=dict)  # position from which on windows may end

    def add(self, id: int, key: Tensor, threshold: float | None = None) -> None:
        unit = key.float() / key.float().norm(dim=-1, keepdim=True)
        self.keys[id] = unit.half().double().numpy()
        self.limit[id] = self.threshold if threshold is None else threshold

    def remove(self, id: int) -> None:
        del self.keys[id], self.limit[id]
        self.off.discard(id)

    def windows(self, id: int, layer: int, row: Tensor, valid: list[bool]) -> list[float]:
        """Of one row (R, T, D): the similarity of the window that ends at each position, -1 for none."""
        key, text = self.keys[id][layer], row[layer].double().numpy()
        length = np.linalg.norm(text, axis=1, keepdims=True)
        cosines = (text @ key.T / np.where(length > 0, length, 1)).astype(np.float32)  # token, key token
        found = [-1.0] * len(text)
        for end in range(max(len(key) - 1, self.since.get(id, 0)), len(text)):
            window = range(end - len(key) + 1, end + 1)
            if all(valid[t] for t in window):
                found[end] = min(float(cosines[t, i]) for i, t in enumerate(window))
        return found

    def similarity(self, id: int, layer: int, row: Tensor, valid: list[bool]) -> float:
        """Of one row (R, T, D)."""
        return max(self.windows(id, layer, row, valid), default=-1.0)

    def named(self, row: Tensor, valid: Tensor) -> list[tuple[int, int]]:
        """Position and id of every entry that enough layers see end there."""
        votes: dict[tuple[int, int], int] = {}
        for id in self.keys.keys() - self.off:
            for layer in range(R):
                for end, similarity in enumerate(self.windows(id, layer, row, valid.tolist())):
                    votes[end, id] = votes.get((end, id), 0) + (similarity > np.float32(self.limit[id]))
        return sorted(place for place, count in votes.items() if count >= self.quorum)

    def winner(self, row: Tensor, valid: Tensor) -> int:
        """The id that one row (R, T, D) elects, -1 for none."""
        votes: dict[int, list[tuple[int, float]]] = {}
        valid = valid.tolist()
        for layer in range(R):
            passing = []
            for age, id in enumerate(self.keys):
                similarity = self.similarity(id, layer, row, valid)
                if id not in self.off and similarity > np.float32(self.limit[id]):
                    passing.append((-similarity, age, id))
            for negative, _, id in sorted(passing)[: self.top_k]:
                votes.setdefault(id, []).append((layer, -negative))
        ranked = []
        for age, id in enumerate(self.keys):
            mine = votes.get(id, [])
            if mine and len(mine) >= self.quorum:
                total = math.fsum(similarity for _, similarity in mine)
                tie = -total if self.order == "similarity" else mine[0][0]
                ranked.append((-len(mine), tie, age, id))
        return min(ranked)[-1] if ranked else -1

    def check(self, winner: Tensor, queries: Tensor, valid: Tensor) -> None:
        assert winner.tolist() == [self.winner(queries[:, b], valid[b]) for b in range(queries.shape[1])]


class World:
    """Words whose states differ a little from mention to mention, so that spans match sometimes."""

    def __init__(self, seed: int, n_words: int = 6, noise: float = 0.3, dim: int = D):
        self.random = torch.Generator().manual_seed(seed)
        self.words = torch.randn(n_words, R, dim, generator=self.random)
        self.noise, self.dim = noise, dim

    def states(self, words: list[int]) -> Tensor:
        """(R, T, D)"""
        noise = self.noise * torch.randn(R, len(words), self.dim, generator=self.random)
        if not words:
            return noise
        return torch.stack([self.words[w] for w in words], dim=1) + noise

    def draw(self, n: int, low: int = 0) -> list[int]:
        return torch.randint(low, len(self.words), (n,), generator=self.random).tolist()


def both(**settings) -> tuple[KeyMemory, Oracle]:
    kwargs = {"threshold": 0.7, "top_k": 3, "quorum": 2, "order": "similarity"} | settings
    scan = kwargs.pop("scan", "auto")
    return KeyMemory(R, D, scan=scan, **kwargs), Oracle(**kwargs)


def filled(world: World, memory: KeyMemory, oracle: Oracle, n: int, longest: int = 5) -> None:
    """`n` entries of 1..longest tokens; half of them end in the same word."""
    for id in range(n):
        length = 1 + int(torch.randint(longest, (), generator=world.random))
        words = world.draw(length)
        if id % 2:
            words[-1] = 0
        key = world.states(words)
        limit = [None, None, 0.5, 0.85][int(torch.randint(4, (), generator=world.random))]
        memory.add(id * 7 % 1009, key, threshold=limit)
        oracle.add(id * 7 % 1009, key, limit)


def batch(world: World, n_rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Queries (R, B, T, D) and validity: rows of different lengths, padded left, right or both."""
    queries = torch.stack([world.states(world.draw(length)) for _ in range(n_rows)], dim=1)
    valid = torch.ones(n_rows, length, dtype=torch.bool)
    for b in range(n_rows):
        left, right = torch.randint(0, length // 2 + 1, (2,), generator=world.random).tolist()
        valid[b, :left] = False
        valid[b, length - right :] = False
    return queries, valid
