"""What a search of the key memory finds, and how the layers' votes elect one entry per row.

Knows nothing about keys or how they are searched: its input is the list of (row, layer, entry,
similarity) that passed the threshold, usually empty. That list is small and steers Python control
flow, so it lives in NumPy arrays on the host.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Found", "Hits", "Order", "merge", "tally", "voting"]

Order = Literal["similarity", "paper"]


class Hits(NamedTuple):
    """The entry each row recalls; tensors of shape (B,) on the CPU.

    Attributes:
        winner: int64, the id of the elected entry, -1 where none reaches the quorum.
        votes: int64, the winner's votes, 0 where there is none.
        similarity: float32, the winner's mean similarity over the layers that voted for it, 0 where
            there is none.
    """

    winner: Tensor
    votes: Tensor
    similarity: Tensor


class Found(NamedTuple):
    """Entries above their threshold: one item per (row, layer, entry), each array of shape (n,).

    Attributes:
        row: int64, the batch row.
        layer: int64, the think layer, 0..R-1.
        id: int64, the caller's id of the entry.
        seq: int64, the entry's place in the order of insertion; never given twice, so an entry that
            is removed and added again under its old id does not inherit similarities.
        sim: float32, the best similarity over the positions seen so far.
    """

    row: np.ndarray
    layer: np.ndarray
    id: np.ndarray
    seq: np.ndarray
    sim: np.ndarray

    @staticmethod
    def empty() -> Found:
        none = np.zeros(0, np.int64)
        return Found(none, none, none, none, np.zeros(0, np.float32))

    def keep(self, which: np.ndarray) -> Found:
        """The items at the given positions or under the given mask."""
        return Found(*(field[which] for field in self))


def merge(old: Found, new: Found) -> Found:
    """Both, with one item per (row, layer, entry), that of the largest similarity. `old` has no doubles."""
    if not len(new.row):
        return old
    found = Found(*(np.concatenate(fields) for fields in zip(old, new, strict=True))) if len(old.row) else new
    if len(found.row) == 1:
        return found
    found = found.keep(np.lexsort((-found.sim, found.seq, found.layer, found.row)))
    same = (
        (found.row[1:] == found.row[:-1])
        & (found.layer[1:] == found.layer[:-1])
        & (found.seq[1:] == found.seq[:-1])
    )
    return found.keep(np.concatenate(([True], ~same)))


def voting(found: Found, top_k: int) -> Found:
    """The items that are votes: the `top_k` most similar entries of each (row, layer).

    Equal similarities go to the entry added first.
    """
    found = found.keep(np.lexsort((found.seq, -found.sim, found.layer, found.row)))
    changes = (found.row[1:] != found.row[:-1]) | (found.layer[1:] != found.layer[:-1])
    starts = np.flatnonzero(np.concatenate(([True], changes)))
    rank = np.arange(len(found.row)) - np.repeat(starts, np.diff(starts, append=len(found.row)))
    return found.keep(rank < top_k)


def tally(found: Found, n_rows: int, *, quorum: int, top_k: int, order: Order) -> Hits:
    """Elect at most one entry per row.

    A layer votes for its `top_k` most similar entries among those above their threshold. The winner of
    a row is the entry with the most votes, if these reach `quorum`. Ties: ``order="similarity"`` takes
    the larger similarity summed over the voting layers; ``order="paper"`` takes the entry that the
    earliest layer voted for (the order in which the published code of LLP fills its dictionary of
    votes). What is still equal goes to the entry added first.

    Args:
        found: merged items, rows in 0..n_rows-1.
        n_rows: B.
    """
    winner = torch.full((n_rows,), -1, dtype=torch.int64)
    votes = torch.zeros(n_rows, dtype=torch.int64)
    similarity = torch.zeros(n_rows, dtype=torch.float32)
    if len(found.row):
        ballots = voting(found, top_k)
        ballots = ballots.keep(np.lexsort((ballots.layer, ballots.seq, ballots.row)))
        changes = (ballots.row[1:] != ballots.row[:-1]) | (ballots.seq[1:] != ballots.seq[:-1])
        starts = np.flatnonzero(np.concatenate(([True], changes)))
        count = np.diff(starts, append=len(ballots.row))
        # The sum of a few float32 numbers is exact in float64, so it does not depend on their order.
        total = np.add.reduceat(ballots.sim.astype(np.float64), starts)
        entry = ballots.keep(starts)  # its layer is the earliest one that voted
        tie = -total if order == "similarity" else entry.layer
        ranked = np.lexsort((entry.seq, tie, -count, entry.row))
        ranked = ranked[count[ranked] >= quorum]
        rows, first = np.unique(entry.row[ranked], return_index=True)
        best = ranked[first]
        at = torch.from_numpy(rows)
        winner[at] = torch.from_numpy(entry.id[best])
        votes[at] = torch.from_numpy(count[best].astype(np.int64))
        similarity[at] = torch.from_numpy((total[best] / count[best]).astype(np.float32))
    return Hits(winner, votes, similarity)
