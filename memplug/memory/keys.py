"""KeyMemory: which stored subject, if any, a row of hidden states speaks of.

Holds keys only; knows nothing about models, texts, edits or values. An entry is a subject, its key a
*span*: the hidden states of the subject's S tokens in each of R think layers. The published method (LLP)
is the case S = 1, the subject's last token.

    similarity(row, layer r, entry) = max over positions t of
                                      min over i < S of cos(query[r, t - S + 1 + i], key[r, i])

where every position of the window is a token. A layer votes for its `top_k` most similar entries among
those whose similarity exceeds their threshold; a row recalls the entry with the most votes if they reach
the quorum. LLP: threshold 0.7, top_k 3, half of the layers.

The record is float16 keys. Scans are derived from it and only propose matches by the last token of a
span; every proposal is checked on the record before the top_k are taken, so that entries which share
their last word with many others are not crowded out. Results therefore do not depend on the scan, on the
rows beside a row, or on padding.

Letters: R think layers, B rows, T tokens, D width, E entries, S tokens of a subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from memplug.memory.gpu import FaissScan
from memplug.memory.match import Matcher, ScanName
from memplug.memory.record import KeyRecord, checked_threshold
from memplug.memory.scores import Scores, brute_force
from memplug.memory.search import advance, check_queries
from memplug.memory.signs import faiss_module
from memplug.memory.stream import Block, MatchState
from memplug.memory.votes import Found, Hits, Order, merge, tally

__all__ = ["KeyMemory"]


class KeyMemory:
    """Entries of keys, found by the hidden states that resemble them.

    Any number of threads may search it at once; while it is changed, no other thread may use it.

    Args:
        n_layers: R, think layers; an entry has a key in each.
        dim: D, width of a hidden state.
        threshold: cosine that a similarity has to exceed, for entries added without their own.
        top_k: how many entries a layer votes for at most.
        quorum: votes that a winner needs; None is half of the layers, rounded up.
        scan: how matches are proposed; the results are the same. "exact" multiplies with every key, on a
            CPU in int8; "sign" (CPU) compares sign codes with FAISS; "faiss" (CUDA) lets FAISS multiply;
            "auto" takes sign codes where they are quicker, else "exact". They are quicker on a CPU from a
            width of 512 and 4 million elements a layer on (8,000 entries of width 512, 1,000 of 4096), if
            FAISS is installed and queries and keys are not all alike. (Sign codes leave out a match that
            just reaches the threshold with probability 1e-9, a clear one never.)
        order: how ties of votes are broken, see `memplug.memory.votes.tally`.
        device: where the keys are held and compared.
        seed: of the random projections of the sign scan.

    Raises:
        ValueError: an argument out of range.
        ImportError: ``scan="sign"`` without FAISS, ``scan="faiss"`` without its build for GPUs.
    """

    def __init__(
        self,
        n_layers: int,
        dim: int,
        *,
        threshold: float = 0.7,
        top_k: int = 3,
        quorum: int | None = None,
        scan: ScanName = "auto",
        order: Order = "similarity",
        device: str | torch.device = "cpu",
        seed: int = 0,
    ):
        quorum = (n_layers + 1) // 2 if quorum is None else quorum
        for name, value in (("n_layers", n_layers), ("dim", dim), ("top_k", top_k), ("quorum", quorum)):
            if value < 1:
                raise ValueError(f"{name} is {value!r}; give a whole number of at least 1")
        if quorum > n_layers:
            raise ValueError(f"quorum is {quorum}, but only {n_layers} layers vote; give 1..{n_layers}")
        for name, choice, choices in (
            ("scan", scan, ("auto", "exact", "sign", "faiss")),
            ("order", order, ("similarity", "paper")),
        ):
            if choice not in choices:
                raise ValueError(f"{name} is {choice!r}; choose one of {', '.join(map(repr, choices))}")
        if scan == "sign":
            if torch.device(device).type != "cpu":
                raise ValueError(f'scan="sign" works on the CPU, not on {device}; take "auto" or "exact"')
            faiss_module()
        if scan == "faiss":
            FaissScan(torch.device(device))
        self.n_layers, self.dim = n_layers, dim
        self.threshold, self.top_k, self.quorum = checked_threshold(threshold), top_k, quorum
        self.scan, self.order, self.seed = scan, order, seed
        self.version = 0
        self._record = KeyRecord(n_layers, dim, torch.device(device))
        self._matcher = Matcher(self._record, scan, seed)

    # ---------------------------------------------------------------- what it holds

    def __len__(self) -> int:
        return len(self._record)

    def __contains__(self, id: object) -> bool:
        return id in self._record.slot

    def __repr__(self) -> str:
        return (
            f"KeyMemory({len(self)} entries, {self.n_layers} layers, dim {self.dim}, threshold "
            f"{self.threshold}, top_k {self.top_k}, quorum {self.quorum}, {self._record.device})"
        )

    def ids(self) -> list[int]:
        """The ids, in order of insertion."""
        return self._record.id[self._record.slots()].tolist()

    def enabled(self, id: int) -> bool:
        """Whether the entry takes part in searches."""
        return bool(self._record.on[self._record.at(id)])

    def get(self, id: int) -> Tensor:
        """The entry's key as it is compared: float32 (R, S, D), unit rows to float16 rounding."""
        return self._record.span(self._record.at(id)).float()

    def limit(self, id: int) -> float:
        """The entry's threshold."""
        return float(self._record.limit[self._record.at(id)])

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and of the scan's copy of them."""
        return self._record.last.nbytes + self._record.pool.nbytes + self._matcher.nbytes

    # ---------------------------------------------------------------- changing it

    def add(self, id: int, key: Tensor, *, threshold: float | None = None) -> None:
        """Add an entry.

        Args:
            id: the caller's number for it, an integer from 0.
            key: (R, S, D), any float dtype, S >= 1 tokens; scaled to unit length here.
            threshold: its own threshold; None takes the memory's.

        Raises:
            ValueError: the id is in use or negative; the key has another shape, is not finite or has a
                zero row; the threshold is out of range. Nothing is changed then.
        """
        limit = self.threshold if threshold is None else checked_threshold(threshold)
        self._matcher.changed(self._record.add(id, key, limit))
        self.version += 1

    def remove(self, id: int) -> None:
        """Remove an entry.

        Raises:
            ValueError: no entry has this id.
        """
        self._matcher.changed(self._record.remove(id))
        self.version += 1

    def set_enabled(self, id: int, on: bool) -> None:
        """Switch an entry on or off; an entry that is off is found by no search.

        Raises:
            ValueError: no entry has this id.
        """
        slot = self._record.at(id)
        if self._record.on[slot] != on:
            self._record.on[slot] = on
            self.version += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The entries as plain tensors on the CPU, see `KeyRecord.tensors`."""
        return self._record.tensors()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold what `state_dict` gave, and nothing else; settings such as the quorum stay.

        Raises:
            ValueError: a tensor is missing, of another dtype or shape, or holds impossible values.
                Nothing is changed then.
        """
        self._record = self._record.loaded(tensors)
        self._matcher = Matcher(self._record, self.scan, self.seed)
        self.version += 1

    # ---------------------------------------------------------------- searching it

    @torch.no_grad()
    def search(
        self,
        queries: Tensor | Sequence[Tensor],
        valid: Tensor | None = None,
        state: MatchState | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Hits, MatchState]:
        """Which entry each row recalls, from the tokens given now and those `state` has seen.

        A text given in pieces, each with the state that the piece before it returned, is matched as in
        one search. An entry added between two pieces is matched from the next piece on (its window may
        reach back as far as that of the longest entry before it), one that is removed is forgotten, and
        switching on or off holds for the whole text so far.

        Args:
            queries: (R, B, T, D), any float dtype, or R tensors (B, T, D). Rows that are zero or not
                finite match nothing.
            valid: bool (B, T), False for padding and tokens that are not to be matched; None is all
                True. No window reaches across such a position.
            state: None at the beginning of the texts. It is not changed.
            rows: bool (B,), False for rows that need no search; to them this piece counts as padding.

        Returns:
            The hits, and the state to hand over with the next piece.

        Raises:
            ValueError: shapes that do not fit the memory, each other or the state.
        """
        n_rows, length = check_queries(self.n_layers, self.dim, queries, valid, state)
        if valid is None:
            valid = torch.ones(n_rows, length, dtype=torch.bool, device=queries[0].device)
        if rows is not None:
            valid = valid & rows.to(valid.device)[:, None]
        state = advance(self._matcher, self.n_layers, self.quorum, queries, valid, state)
        found, slots = self._known(state.found)
        active = found.keep(self._record.on[slots]) if len(slots) else found
        hits = tally(active, n_rows, quorum=self.quorum, top_k=self.top_k, order=self.order)
        return hits, state._replace(found=found)

    @torch.no_grad()
    def found(self, queries: Tensor | Sequence[Tensor], valid: Tensor | None = None) -> Found:
        """Every entry above its threshold, in texts given whole: what is elected from in `search`.

        Where a row has one entry alone its similarity may be off by 1e-3, as nothing depends on it.

        Args:
            queries, valid: as in `search`.

        Raises:
            ValueError: shapes that do not fit the memory or each other.
        """
        n_rows, length = check_queries(self.n_layers, self.dim, queries, valid, None)
        if valid is None:
            valid = torch.ones(n_rows, length, dtype=torch.bool, device=queries[0].device)
        layers = tuple(range(self.n_layers))
        every = self._matcher.match(
            layers, Block(tuple(queries[r] for r in layers), valid), length, exact=False
        )
        found, slots = self._known(merge(Found.empty(), every))
        return found.keep(self._record.on[slots]) if len(slots) else found

    def _known(self, found: Found) -> tuple[Found, np.ndarray]:
        """What was found of the entries that are still held, and their slots."""
        if not len(found.row):
            return found, found.row
        slot = np.array([self._record.slot.get(id, -1) for id in found.id.tolist()], np.int64)
        held = slot >= 0
        held[held] = self._record.seq[slot[held]] == found.seq[held]
        return found.keep(held), slot[held]

    @torch.no_grad()
    def scores(self, queries: Tensor | Sequence[Tensor], valid: Tensor | None = None) -> Scores:
        """Every entry's similarity to one row, by brute force: slow, for explanations.

        Args:
            queries: (R, T, D) or R tensors (T, D), any float dtype.
            valid: bool (T,), as in `search`; None is all True.

        Raises:
            ValueError: shapes that do not fit the memory.
        """
        row = None if valid is None else valid[None]
        check_queries(self.n_layers, self.dim, [q[None] for q in queries], row, None)
        return brute_force(self._record, queries, valid, self.top_k)
