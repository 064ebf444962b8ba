"""Deferral: which rows an edit may change; all others are left to the base model.

Knows nothing about models, texts or experts but which of them are picked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .allocation import hot

__all__ = ["Decision", "blocked", "decide", "distances"]

_BLOCK = 0.9  # cosine from which the query of an edit no longer in force keeps a row out
_NOISE = 1e-6  # by which the cosines of a query computed in two batches differ


class Decision(NamedTuple):
    """What is decided for B rows.

    Attributes:
        scope: BoolTensor [B], whether edits may change the row.
        nearest: LongTensor [B], place of the edit whose code is nearest, -1 where there is none.
        distance: LongTensor [B], its Hamming distance.
        blocked: BoolTensor [B], whether the most similar query is that of an edit no longer in force.
    """

    scope: Tensor
    nearest: Tensor
    distance: Tensor
    blocked: Tensor


def distances(one: Tensor, other: Tensor, n: int) -> Tensor:
    """Hamming distances LongTensor [B,E] of the codes of picks [l,B,k] and [l,E,k] among N experts each.

    A code has a bit for every expert of every linear, 1 where it is picked. All have l k ones, so that a
    distance is even.
    """
    mine, theirs = (hot(picks, n).transpose(0, 1).flatten(1) for picks in (one, other))
    shared = (mine @ theirs.to(mine).T).round().long()
    return 2 * (one.shape[0] * one.shape[2] - shared)


def decide(picks: Tensor, codes: Tensor, n: int, epsilon: int) -> Decision:
    """Which rows are in scope: those whose code differs from some edit's in fewer than ``epsilon`` bits.

    Args:
        picks: [l,B,k] of the rows.
        codes: [l,E,k] of the edits in force, at least one.
    """
    distance, nearest = distances(picks, codes, n).min(1)
    return Decision(distance < epsilon, nearest, distance, torch.zeros_like(distance, dtype=torch.bool))


def blocked(query: Tensor, gone: Sequence[Tensor], held: Sequence[Tensor]) -> Tensor:
    """BoolTensor [B]: rows whose query [B,q] is that of an edit no longer in force, more than any other's.

    Args:
        gone: queries [q] of edits that were deleted or switched off.
        held: those of edits in force.
    """
    if not gone:
        return torch.zeros(len(query), dtype=torch.bool, device=query.device)

    def near(others: Sequence[Tensor]) -> Tensor:
        return (F.normalize(query, dim=-1) @ F.normalize(torch.stack(list(others)).to(query), dim=-1).T).amax(
            1
        )

    close = near(gone)
    return (close > _BLOCK) & (close > near(held) + _NOISE) if held else close > _BLOCK
