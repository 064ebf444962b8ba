"""Allocations: which k of N experts an edit is meant to use at each edited linear, and codes of bits.

A code has one bit for every expert of every linear, 1 where it is used; codes are compared by Hamming
distance, which is even, as all have the same number of ones. Knows nothing about models.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

__all__ = ["Allocation", "draw", "draw_spread", "hot", "pack"]

Allocation = tuple[tuple[int, ...], ...]
"""For each of l linears the k experts, ascending."""

_CANDIDATES = 256  # codes drawn for one spread allocation
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


def draw_spread(
    taken: Collection[Allocation], linears: int, n: int, k: int, seed: int, key: str
) -> Allocation:
    """Of 256 random allocations the one whose least Hamming distance to ``taken`` is the largest."""
    rng = _generator(seed, "spread", key)
    candidates = [_any(rng, linears, n, k) for _ in range(_CANDIDATES)]
    if not taken:
        return candidates[0]
    mine = hot(torch.tensor(candidates), n).flatten(1)
    theirs = hot(torch.tensor(list(taken)), n).flatten(1)
    common = (mine @ theirs.T).amax(dim=1)  # fewest experts in common: largest distance
    return candidates[int(common.argmin())]


def hot(picks: Tensor, n: int) -> Tensor:
    """[...,k] indices of experts -> [...,N] float32 with ones at them."""
    return torch.zeros(*picks.shape[:-1], n, device=picks.device, dtype=torch.float32).scatter_(
        -1, picks, 1.0
    )


def pack(picks: Tensor, n: int) -> np.ndarray:
    """Codes of rows, uint8 [B, ceil(l N / 8)], from picks [l,B,k]; unused last bits are zero."""
    chosen = picks.cpu().numpy()
    linears, rows, _ = chosen.shape
    bits = np.zeros((rows, linears, n), np.uint8)
    bits[np.arange(rows)[:, None], np.arange(linears)[:, None, None], chosen] = 1
    return np.packbits(bits.reshape(rows, linears * n), axis=1)
