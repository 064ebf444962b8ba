"""Codes, as published: which experts an edit is meant to use, and which rows are near enough to an edit's.

A code has a bit for every expert of every linear, 1 where it is picked. Knows no models. Letters as in
`experts`; E edits.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Allocation", "Near", "blocked", "distances", "draw", "hot", "nearest"]

Allocation = tuple[tuple[int, ...], ...]
"""For each of l linears the k experts, ascending."""

_TRIES = 1000
_BLOCK = 0.9  # cosine from which the query of an edit no longer in force keeps a row out
_NOISE = 1e-6  # by which the cosines of a query computed in two batches differ


class Near(NamedTuple):
    """For B rows the place of the edit whose code is nearest, and its Hamming distance: LongTensors [B]."""

    place: Tensor
    distance: Tensor


def draw(taken: Collection[Allocation], linears: int, n: int, k: int, seed: int, key: str) -> Allocation:
    """A random allocation for the fact ``key``, none of ``taken`` while there are others to be found."""
    rng = random.Random(zlib.crc32(f"{seed}\x1frandom\x1f{key}".encode()))
    for _ in range(_TRIES):
        found = tuple(tuple(sorted(rng.sample(range(n), k))) for _ in range(linears))
        if found not in taken:
            break
    return found


def hot(picks: Tensor, n: int) -> Tensor:
    """[...,k] indices of experts -> [...,N] float32 with ones at them."""
    zeros = torch.zeros(*picks.shape[:-1], n, device=picks.device, dtype=torch.float32)
    return zeros.scatter_(-1, picks, 1.0)


def distances(one: Tensor, other: Tensor, n: int) -> Tensor:
    """Hamming distances LongTensor [B,E] of the codes of picks [l,B,k] and [l,E,k] among N experts each.

    All codes have l k ones, so that a distance is even.
    """
    mine, theirs = (hot(picks, n).transpose(0, 1).flatten(1) for picks in (one, other))
    shared = (mine @ theirs.to(mine).T).round().long()
    return 2 * (one.shape[0] * one.shape[2] - shared)


def nearest(picks: Tensor, codes: Tensor, n: int) -> Near:
    """Which edit's code, of picks ``codes`` [l,E,k], that of each row's ``picks`` [l,B,k] is nearest to."""
    distance, place = distances(picks, codes, n).min(1)
    return Near(place, distance)


def blocked(query: Tensor, gone: Sequence[Tensor], held: Sequence[Tensor]) -> Tensor:
    """BoolTensor [B]: rows whose query [B,q] is that of an edit no longer in force, more than any other's.

    Args:
        gone: queries [q] of edits that were deleted or switched off.
        held: those of edits in force.
    """
    if not gone:
        return torch.zeros(len(query), dtype=torch.bool, device=query.device)

    def near(others: Sequence[Tensor]) -> Tensor:
        every = F.normalize(torch.stack(list(others)).to(query), dim=-1)
        return (F.normalize(query, dim=-1) @ every.T).amax(1)

    close = near(gone)
    return (close > _BLOCK) & (close > near(held) + _NOISE) if held else close > _BLOCK
