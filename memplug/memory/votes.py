"""The vote rule: how many layers have to agree, and which entry they elect for each row.

`count_votes` is the rule that all others ask: the election, the early end of a search, calibration, and what
listens and explains. Knows nothing about keys or how they are searched. What a search finds is little, mostly
nothing, and steers Python's control flow, so it lives in NumPy arrays on the host.

Letters: R think layers, B rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Found", "Order", "Spans", "agreed", "count_votes", "elect", "enough_layers", "merge", "quorum_of",
    "voting",
]  # fmt: skip

Order = Literal["similarity", "paper"]
_Array = TypeVar("_Array", np.ndarray, Tensor)


class Spans(NamedTuple):
    """Spans above their entry's threshold in one layer; arrays of shape (n,).

    Attributes:
        row, position: int64, the batch row, and where in the text the span ends.
        seq: int64, the entry's place in the order of insertion; never given twice, so an entry that is
            removed and added again under its old id does not inherit similarities.
        id: int64, the caller's id of the entry.
        sim: float32, the similarity.
    """

    row: np.ndarray
    position: np.ndarray
    seq: np.ndarray
    id: np.ndarray
    sim: np.ndarray

    @staticmethod
    def empty() -> Spans:
        """None."""
        none = np.zeros(0, np.int64)
        return Spans(none, none, none, none, np.zeros(0, np.float32))


class Found(NamedTuple):
    """Entries above their threshold in some layer, each once a row.

    Attributes:
        row, seq, id: int64 (n,), as in `Spans`.
        sim: float32 (R, n), the best similarity in each layer, 0 where it does not exceed the threshold.
    """

    row: np.ndarray
    seq: np.ndarray
    id: np.ndarray
    sim: np.ndarray

    @staticmethod
    def empty(n_layers: int) -> Found:
        """Nothing."""
        none = np.zeros(0, np.int64)
        return Found(none, none, none, np.zeros((n_layers, 0), np.float32))

    def keep(self, which: np.ndarray) -> Found:
        """The entries at the given places or under the given mask."""
        return Found(self.row[which], self.seq[which], self.id[which], self.sim[:, which])


def count_votes(voted: _Array, quorum: int) -> tuple[_Array, _Array]:
    """The vote rule: each layer has one vote, and `quorum` of them are enough.

    Args:
        voted: bool (R, ...), whether a layer votes for each of some things.

    Returns:
        The votes of each, int64 (...), and whether they are enough, bool (...).
    """
    votes = voted.sum(0)
    return votes, votes >= quorum


def quorum_of(share: float, n_layers: int) -> int:
    """The votes that are a share of R layers, rounded up; at least one."""
    return max(1, math.ceil(share * n_layers))


def enough_layers(n_layers: int, quorum: int) -> int:
    """How many layers, from the first, decide that nothing is found: if none of them votes for an entry, the
    votes of all others are not enough."""
    voted = np.arange(n_layers)[:, None] >= np.arange(n_layers + 1)  # by all layers, by all but one, ...
    return int(np.argmin(count_votes(voted, quorum)[1]))


def agreed(similarity: Tensor, quorum: int) -> Tensor:
    """The largest similarity (...) that enough of the layers of `similarity` (R, ...) reach."""
    reached = [torch.where(count_votes(similarity >= one, quorum)[1], one, -torch.inf) for one in similarity]
    return torch.stack(reached).amax(0)


def merge(found: Found, layers: Sequence[Spans]) -> Found:
    """What was found, and what the layers, from the first on, have found now."""
    if not any(len(spans.row) for spans in layers):
        return found
    parts = [np.stack(found[:3]), *(np.stack([spans.row, spans.seq, spans.id]) for spans in layers)]
    entries, which = np.unique(np.concatenate(parts, axis=1), axis=1, return_inverse=True)
    places = np.split(which.reshape(-1), np.cumsum([part.shape[1] for part in parts])[:-1])
    sim = np.zeros((len(found.sim), entries.shape[1]), np.float32)
    sim[:, places[0]] = found.sim
    for mine, here, spans in zip(sim, places[1:], layers, strict=False):
        np.maximum.at(mine, here, spans.sim)
    row, seq, id = entries
    return Found(row, seq, id, sim)


def voting(found: Found, top_k: int) -> np.ndarray:
    """Bool (R, n): whether a layer votes for each entry, one of its row's `top_k` most similar ones.

    Equal similarities go to the entry added first.
    """
    voted = np.zeros(found.sim.shape, bool)
    for mine, sim in zip(voted, found.sim, strict=True):
        ranked = np.lexsort((found.seq, -sim, found.row))
        row = found.row[ranked]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        mine[ranked] = (rank < top_k) & (sim[ranked] > 0)
    return voted


def elect(found: Found, n_rows: int, *, quorum: int, top_k: int, order: Order) -> Tensor:
    """The id of the entry that each row elects, int64 (B,) on the CPU; -1 where none reaches the quorum.

    A layer votes for its `top_k` most similar entries among those above their threshold. The winner of
    a row is the entry with the most votes, if these reach `quorum`. Ties: ``order="similarity"`` takes
    the larger similarity summed over the voting layers; ``order="paper"`` takes the entry that the
    earliest layer voted for (the order in which the published code of LLP fills its dictionary of
    votes). What is still equal goes to the entry added first.

    Args:
        found: with rows in 0..n_rows-1.
        n_rows: B.
    """
    winner = torch.full((n_rows,), -1, dtype=torch.int64)
    if len(found.row):
        voted = voting(found, top_k)
        votes, enough = count_votes(voted, quorum)
        # The sum of a few float32 numbers is exact in float64, so it does not depend on their order.
        total = np.where(voted, found.sim, 0).sum(0, dtype=np.float64)
        tie = -total if order == "similarity" else voted.argmax(0)
        ranked = np.lexsort((found.seq, tie, -votes, found.row))
        ranked = ranked[enough[ranked]]
        rows, first = np.unique(found.row[ranked], return_index=True)
        winner[torch.from_numpy(rows)] = torch.from_numpy(found.id[ranked[first]])
    return winner
