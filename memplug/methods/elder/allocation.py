"""Allocations: which k of N experts an edit is meant to use at each edited linear. Knows no models."""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection

import torch
from torch import Tensor

__all__ = ["Allocation", "draw", "hot"]

Allocation = tuple[tuple[int, ...], ...]
"""For each of l linears the k experts, ascending."""

_TRIES = 1000


def _generator(*parts: object) -> random.Random:
    return random.Random(zlib.crc32("\x1f".join(map(str, parts)).encode()))


def _any(rng: random.Random, linears: int, n: int, k: int) -> Allocation:
    return tuple(tuple(sorted(rng.sample(range(n), k))) for _ in range(linears))


def draw(taken: Collection[Allocation], linears: int, n: int, k: int, seed: int, key: str) -> Allocation:
    """A random allocation for the fact ``key``, none of ``taken`` while there are others to be found."""
    rng = _generator(seed, "random", key)
    found = _any(rng, linears, n, k)
    for _ in range(_TRIES):
        if found not in taken:
            break
        found = _any(rng, linears, n, k)
    return found


def hot(picks: Tensor, n: int) -> Tensor:
    """[...,k] indices of experts -> [...,N] float32 with ones at them."""
    return torch.zeros(*picks.shape[:-1], n, device=picks.device, dtype=torch.float32).scatter_(
        -1, picks, 1.0
    )
