"""Deferral: which rows an edit may change; all others are left to the base model.

A row is in scope if its code is near to some edit's, its query is similar enough to some edit's (where that
is asked for), and its query is not that of an edit which was deleted or switched off. Knows nothing about
models, texts or experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...memory import KeyMemory
from .allocation import pack

__all__ = ["Decision", "Deferral", "hamming"]

_NOISE = 1e-6  # by which the cosines of a query computed in two batches differ
_MARGIN = 0.02  # the key memory proposes what is this much less similar than asked for


class Decision(NamedTuple):
    """What is decided for B rows.

    Attributes:
        scope: bool [B], whether edits may change the row.
        nearest: int64 [B], number of the edit whose code is nearest, -1 where there is none.
        distance: int64 [B], its Hamming distance.
        similar: int64 [B], number of the edit whose query is most similar, -1 where none is near.
        similarity: float32 [B], its cosine; 0 where none is near.
        blocked: bool [B], whether the most similar query is that of an edit no longer in force.
    """

    scope: np.ndarray
    nearest: np.ndarray
    distance: np.ndarray
    similar: np.ndarray
    similarity: np.ndarray
    blocked: np.ndarray

    @staticmethod
    def out(rows: int) -> Decision:
        """All rows out of scope, with nothing near."""
        no = np.zeros(rows, bool)
        far, none = np.full(rows, 1 << 30), np.full(rows, -1)
        return Decision(no, none, far, none.copy(), np.zeros(rows, np.float32), no)


class Deferral:
    """Codes and queries of the edits, and the limits a row has to keep to be in scope.

    Args:
        width: of a query.
        n: experts of a linear.
        epsilon: the distance that a code has to stay below.
        block: the similarity from which an edit no longer in force keeps a row out.
        device: where queries are compared.

    Attributes:
        epsilon: see above.
        threshold: the similarity that a query has to exceed; None asks for none.
        numbers: the edits' numbers, in order.
        queries: float32 [E,width].
        codes: uint8 [E,bytes], as `pack` gives them.
        on: bool [E], whether the edit is in force.
        blocks: queries [width] of edits that were deleted or switched off, by number.
    """

    def __init__(self, width: int, n: int, epsilon: int, block: float, device: torch.device) -> None:
        self.width, self.n, self.epsilon, self.block = width, n, epsilon, block
        self.threshold: float | None = None
        self.numbers: list[int] = []
        self.queries = torch.zeros(0, width, device=device, dtype=torch.float32)
        self.codes = np.zeros((0, 0), np.uint8)
        self.on = np.zeros(0, bool)
        self.blocks: dict[int, Tensor] = {}
        self._changed()

    def _changed(self) -> None:
        self._index: Any = None
        self._norms: np.ndarray | None = None
        self._memory: KeyMemory | None = None

    # ---------------------------------------------------------------- what it holds

    def __len__(self) -> int:
        return len(self.numbers)

    def copy(self) -> Deferral:
        """The same, independent of this one; nothing in the tensors is ever changed in place."""
        other = Deferral(self.width, self.n, self.epsilon, self.block, self.queries.device)
        other.threshold, other.numbers, other.blocks = self.threshold, list(self.numbers), dict(self.blocks)
        other.queries, other.codes, other.on = self.queries, self.codes, self.on
        other._index, other._memory = self._index, None
        return other

    def add(self, numbers: list[int], queries: Tensor, picks: Tensor) -> None:
        """Remember edits: queries [e,width] and picks [l,e,k]."""
        codes = pack(picks, self.n)
        self.codes = codes if not len(self) else np.concatenate([self.codes, codes])
        self.queries = torch.cat([self.queries, queries.to(self.queries)])
        self.on = np.concatenate([self.on, np.ones(len(numbers), bool)])
        self.numbers = self.numbers + numbers
        self._index = self._norms = None
        if self._memory is not None:
            for number, query in zip(numbers, queries, strict=True):
                self._memory.add(number, query[None, None], threshold=self._floor)

    def refresh(self, picks: Tensor) -> None:
        """Replace all codes, those of all edits [l,E,k] in order."""
        self.codes, self._index = pack(picks, self.n), None

    def take_over(
        self, numbers: list[int], queries: Tensor, codes: np.ndarray, on: set[int], blocks: dict[int, Tensor]
    ) -> None:
        """Hold these edits and nothing else; ``on`` are the numbers of those in force."""
        self.numbers, self.queries, self.codes = numbers, queries.to(self.queries), codes.copy()
        self.on = np.array([number in on for number in numbers], bool)
        self.blocks = {number: query.to(self.queries) for number, query in blocks.items()}
        self._changed()

    def remove(self, numbers: list[int], *, block: bool) -> None:
        """Forget edits; with ``block`` their queries stay to keep rows out."""
        if not numbers:
            return
        gone = set(numbers)
        keep = np.array([number not in gone for number in self.numbers], bool)
        for i in np.flatnonzero(~keep):
            if block:
                self.blocks[self.numbers[i]] = self.queries[i]
            else:
                self.blocks.pop(self.numbers[i], None)
        self.codes, self.on = self.codes[keep], self.on[keep]
        self.queries = self.queries[torch.from_numpy(keep).to(self.queries.device)]
        self.numbers = [number for number in self.numbers if number not in gone]
        self._changed()

    def switch(self, numbers: list[int], on: bool) -> None:
        """Take edits' codes out and block their queries, or undo that."""
        if not numbers:
            return
        chosen = [self.numbers.index(number) for number in numbers]
        self.on = self.on.copy()
        self.on[chosen] = on
        for i, number in zip(chosen, numbers, strict=True):
            if on:
                self.blocks.pop(number, None)
            else:
                self.blocks[number] = self.queries[i]
        self._changed()

    def limit(self, epsilon: int, threshold: float | None) -> None:
        """Set the limits."""
        old, self.epsilon, self.threshold = self.threshold, epsilon, threshold
        fits = (
            old is not None
            and threshold is not None
            and self._floor <= threshold <= self._floor + 3 * _MARGIN
        )
        if old != threshold and not fits:
            self._memory = None

    # ---------------------------------------------------------------- deciding

    def decide(self, query: Tensor, picks: Tensor) -> Decision:
        """Decide for rows with queries [B,width] and routed to picks [l,B,k]."""
        nearest, distance = self._nearest(pack(picks, self.n))
        blocked = self._blocked(query.to(self.queries))
        scope = (distance < self.epsilon) & ~blocked
        similar, similarity = np.full(len(query), -1), np.zeros(len(query), np.float32)
        if self.threshold is not None:
            hits, _ = self.memory.search(query[None, :, None].to(self.queries.device))
            similar, similarity = hits.winner.numpy(), hits.similarity.numpy()
            scope = scope & (similar >= 0) & (similarity > self.threshold)
        return Decision(scope, nearest, distance, similar, similarity, blocked)

    def among(
        self,
        query: Tensor,
        picks: Callable[[], Tensor],
        edits: Sequence[Sequence[int]],
        *,
        every: bool = True,
    ) -> Decision:
        """As `decide`, but each row is compared with some edits only, named by their places in `numbers`.

        Args:
            query: [B,width].
            picks: gives [l,B,k].
            edits: for each row those it is compared with.
            every: whether codes are compared, too, where no row is similar enough to be in scope.
        """
        found = Decision.out(len(query))
        least = -2.0 if self.threshold is None else self.threshold
        asked, held = query.float().cpu().numpy(), self._lengths
        for row, mine in enumerate(edits):
            if mine:
                theirs = self.queries[mine] if len(mine) > 1 else self.queries[mine[0]][None]
                length = max(float(np.dot(asked[row], asked[row])) ** 0.5, 1e-30)
                cosines = theirs.cpu().numpy() @ asked[row] / (held[mine] * length)
                best = int(cosines.argmax())
                found.similar[row], found.similarity[row] = self.numbers[mine[best]], cosines[best]
        near = np.array([bool(mine) for mine in edits]) & (found.similarity > least)
        if not (every or near.any()):
            return found
        codes = pack(picks(), self.n)
        for row, mine in enumerate(edits):
            if mine:
                bits = np.unpackbits(self.codes[mine] ^ codes[row], axis=1).sum(1)
                nearest = int(bits.argmin())
                found.nearest[row], found.distance[row] = self.numbers[mine[nearest]], bits[nearest]
        blocked = self._blocked(query.to(self.queries))
        return found._replace(scope=near & (found.distance < self.epsilon) & ~blocked, blocked=blocked)

    @property
    def _lengths(self) -> np.ndarray:
        """float32 [E], of the queries."""
        norms = self._norms
        if norms is None:
            norms = self._norms = self.queries.norm(dim=-1).clamp(min=1e-30).cpu().numpy()
        return norms

    def _blocked(self, query: Tensor) -> np.ndarray:
        """bool [B]; exact, as an edit's own prompt may be very like one that was deleted."""
        if not self.blocks:
            return np.zeros(len(query), bool)
        query = F.normalize(query, dim=-1)
        near = (query @ F.normalize(torch.stack(list(self.blocks.values())), dim=-1).T).amax(1)
        blocked = near > self.block
        if bool(blocked.any()) and self.on.any():
            on = torch.from_numpy(self.on).to(query.device)
            edits = (query @ F.normalize(self.queries[on], dim=-1).T).amax(1)
            blocked = blocked & (near > edits + _NOISE)
        found: np.ndarray = blocked.cpu().numpy()
        return found

    def _nearest(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = len(codes)
        if not self.on.any():
            return np.full(rows, -1), np.full(rows, 1 << 30)
        index = self._index
        if index is None:
            index = _faiss().IndexBinaryFlat(8 * self.codes.shape[1])
            index.add(np.ascontiguousarray(self.codes[self.on]))
            self._index = index  # whole, as other threads look for it
        distance, row = index.search(codes, 1)
        numbers = np.array(self.numbers)[self.on]
        return numbers[row[:, 0]], distance[:, 0].astype(np.int64)

    @property
    def memory(self) -> KeyMemory:
        """Queries of the edits in force, by number."""
        if self._memory is None:
            self._floor = max(0.0, (self.threshold or 0.0) - _MARGIN)
            device = str(self.queries.device)
            memory = KeyMemory(1, self.width, threshold=self._floor, top_k=1, quorum=1, device=device)
            for i in np.flatnonzero(self.on):
                memory.add(self.numbers[i], self.queries[i][None, None])
            self._memory = memory
        return self._memory

    _floor = 0.0


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances int64 [n,m] of packed codes [n,bytes] and [m,bytes]."""
    left = np.unpackbits(a, axis=1).astype(np.float32)
    right = np.unpackbits(b, axis=1).astype(np.float32)
    return (left.sum(1)[:, None] + right.sum(1)[None] - 2 * left @ right.T).round().astype(np.int64)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "ELDER searches its codes with FAISS; install it: pip install 'memplug[cpu]' (or [gpu])"
        ) from error
    return faiss
