"""KeyMemory: which stored subject, if any, a row of hidden states speaks of.

Holds keys only; knows nothing about models, texts, edits or values. An entry is a subject, its key a
*span*: the hidden states of the subject's S tokens in each of R think layers. The published method (LLP)
is the case S = 1, the subject's last token.

    similarity(row, layer r, entry) = max over positions t of
                                      min over i < S of cos(query[r, t - S + 1 + i], key[r, i])

where every position of the window is a token. A layer votes for its `top_k` most similar entries among
those whose similarity exceeds their threshold; a row recalls the entry with the most votes if they reach
the quorum (`KeyMemory.search`; LLP as published: threshold 0.7, top_k 3, half of the layers). By default LLP
asks for all entries that enough layers see end at one token (`KeyMemory.named`).

The record is float16 keys. A scan proposes matches by the last token of a span: by products with every key,
by sign codes, or by FAISS on a GPU. Every proposal is checked on the record before the top_k are taken, so
that entries which share their last word with many others are not crowded out. Results therefore do not depend
on the scan, on the rows beside a row, or on padding.

Letters: R think layers, B rows, T tokens, D width, E entries, S tokens of a subject, N query tokens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ..saving.checked import whole
from .exact import Pairs, check_spans, near_by_product, unit_rows
from .faiss_search import GpuScan, faiss_module
from .record import KeyRecord
from .signs import SignScan
from .votes import Found, Order, Spans, count_votes, elect, enough_layers, merge, quorum_of

__all__ = ["KeyMemory", "MatchState"]

ScanName = Literal["auto", "exact", "sign", "faiss"]

_ROWS = 512  # tokens scanned at once
# Elements of a layer's keys from which sign codes are quicker than a product, for few tokens and for many.
_FEW = 8
_SIGNS_SIZE, _SIGNS_SIZE_MANY = 1 << 19, 1 << 21


class MatchState(NamedTuple):
    """What matching remembers of texts that are given in pieces: kept by the caller beside his KV cache, one
    for a batch. It is never changed in place, so that an older one can be taken up again.

    Attributes:
        found: the entries above their threshold so far.
        tail: the last positions (B, w, D) of each layer, which windows of the next piece may reach back to.
        valid: bool (B, w), which of them are tokens to match.
    """

    found: Found
    tail: tuple[Tensor, ...]
    valid: Tensor

    def select(self, rows: Tensor) -> MatchState:
        """The state whose row j is this state's row ``rows[j]`` (beam reorder, repeat, subset).

        Args:
            rows: int64 (B',), values in 0..B-1, repeats allowed.
        """
        row, item = np.nonzero(rows.cpu().numpy()[:, None] == self.found.row)
        tail = tuple(layer.index_select(0, rows.to(layer.device)) for layer in self.tail)
        valid = self.valid.index_select(0, rows.to(self.valid.device))
        return MatchState(self.found.keep(item)._replace(row=row), tail, valid)


class KeyMemory(KeyRecord):
    """Entries of keys, found by the hidden states that resemble them.

    Any number of threads may search it at once; while it is changed, no other thread may use it.

    Args:
        n_layers: R, think layers; an entry has a key in each.
        dim: D, width of a hidden state.
        threshold: cosine that a similarity has to exceed, for entries added without their own.
        top_k: how many entries a layer votes for at most.
        quorum: votes that a winner needs; None is half of the layers, rounded up.
        scan: how matches are proposed; the results are the same. "exact" multiplies with every key; "sign"
            (CPU) compares sign codes with FAISS, unless queries and keys are all alike; "faiss" (CUDA) lets
            FAISS multiply; "auto" takes sign codes where they are quicker, else "exact". They are quicker on
            a CPU from two million elements a layer on (4,000 entries of width 512, 500 of 4096), for up to
            8 tokens from half a million, if FAISS is installed. (Sign codes leave out a match that just
            reaches the threshold with probability 1e-9, a clear one never.)
        order: how ties of votes are broken, see `memplug.memory.votes.elect`.
        device: where the keys are held and compared.
        seed: of the sign codes' random projections.

    Raises:
        ValueError: an argument out of range, or a scan that is not for the device.
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
    ) -> None:
        super().__init__(
            whole(n_layers, "n_layers", 1), whole(dim, "dim", 1), threshold, torch.device(device)
        )
        self.top_k = whole(top_k, "top_k", 1)
        self.quorum = whole(quorum_of(0.5, n_layers) if quorum is None else quorum, "quorum", 1, n_layers)
        for name, choice, choices in (("scan", scan, ScanName), ("order", order, Order)):
            if choice not in get_args(choices):
                raise ValueError(f"{name} is {choice!r}; choose one of {', '.join(get_args(choices))}")
        self.scan, self.order, self.seed = scan, order, seed
        self._early = enough_layers(n_layers, self.quorum)
        self._gpu = GpuScan(self.device) if scan == "faiss" else None
        on_cpu = self.device.type == "cpu"
        if scan == "sign":
            if not on_cpu:
                raise ValueError(
                    f'scan="sign" works on the CPU, not on {self.device}; take "auto" or "exact"'
                )
            faiss_module()
        coded = scan == "sign" or (scan == "auto" and on_cpu and importlib.util.find_spec("faiss"))
        self._signs = SignScan(self, seed) if coded else None

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and of their codes."""
        return super().nbytes + (0 if self._signs is None else self._signs.nbytes)

    def _changed(self, slot: int | None) -> None:
        if self._signs is not None:
            self._signs.changed(slot)

    # ---------------------------------------------------------------- searching it

    @torch.no_grad()
    def search(
        self,
        queries: Tensor | Sequence[Tensor],
        valid: Tensor | None = None,
        state: MatchState | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, MatchState]:
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
            The id of each row's entry, int64 (B,) on the CPU, -1 for none; and the state to hand over with
            the next piece.

        Raises:
            ValueError: shapes that do not fit the memory, each other or the state.
        """
        valid = self._valid(queries, valid)
        if rows is not None:
            valid = valid & rows.to(valid.device)[:, None]
        text, seen, found = tuple(queries), 0, Found.empty(self.n_layers)
        if state is not None:
            if len(state.valid) != len(valid):
                raise ValueError(
                    f"the state has {len(state.valid)} rows, the queries {len(valid)}; take "
                    "state.select(rows) where rows were dropped, repeated or reordered"
                )
            text = tuple(torch.cat([a.to(b), b], dim=1) for a, b in zip(state.tail, text, strict=True))
            valid = torch.cat([state.valid.to(valid.device), valid], dim=1)
            found, seen = state.found, state.valid.shape[1]
        found, on = self._held(merge(found, [*self._match(text, valid, seen)]))
        winner = elect(found.keep(on), len(valid), quorum=self.quorum, top_k=self.top_k, order=self.order)
        tail = slice(max(0, valid.shape[1] - self.rest.shape[1]), None)
        return winner, MatchState(found, tuple(one[:, tail].clone() for one in text), valid[:, tail].clone())

    @torch.no_grad()
    def named(
        self, queries: Tensor | Sequence[Tensor], valid: Tensor | None = None, seen: int = 0
    ) -> list[tuple[int, int, int]]:
        """The entries that enough layers see end at one token: (row, position, id) of each.

        Args:
            queries, valid: as in `search`.
            seen: so many first positions are only there for windows to reach back to.

        Raises:
            ValueError: shapes that do not fit the memory or each other.
        """
        valid = self._valid(queries, valid)
        spans: list[Spans] = []
        for one in self._match(tuple(queries), valid, seen):
            spans.append(one._replace(row=one.row * valid.shape[1] + one.position))
            if len(spans) == self._early and not any(len(some.row) for some in spans):
                return []
        found, on = self._held(merge(Found.empty(self.n_layers), spans))
        found = found.keep(on & count_votes(found.sim > 0, self.quorum)[1])
        row, position = np.divmod(found.row, valid.shape[1])
        return list(zip(row.tolist(), position.tolist(), found.id.tolist(), strict=True))

    def _match(self, text: Sequence[Tensor], valid: Tensor, seen: int) -> Iterator[Spans]:
        """By layer the spans in its text (B, T, D) that end from position `seen` on."""
        ok, width = valid.cpu().numpy(), valid.shape[1] - seen
        tokens = np.flatnonzero(ok[:, seen:])
        floor = float(self.entries["limit"][: len(self)].min(initial=1.0))
        for layer, states in enumerate(text):
            states, found = states.to(self.device), [Spans.empty()]
            queries = states[:, seen:].flatten(0, 1)
            for start in range(0, len(tokens) if len(self) else 0, _ROWS):
                some = tokens[start : start + _ROWS]
                asked = queries
                if len(some) < len(queries):
                    asked = queries.index_select(0, torch.from_numpy(some).to(self.device))
                token, slot = self._near(layer, unit_rows(asked), floor)
                if len(token):
                    row, position = np.divmod(some[token], width)
                    position += seen
                    held, sim = check_spans(self, layer, states, ok, row, position, slot)
                    entries = self.entries[slot[held]]
                    found.append(Spans(row[held], position[held], entries["seq"], entries["id"], sim))
            yield found[-1] if len(found) < 3 else Spans(*map(np.concatenate, zip(*found, strict=True)))

    def _near(self, layer: int, queries: Tensor, floor: float) -> Pairs:
        """Pairs that a scan proposes for queries (N, D) float32, of length 1."""
        keys = self.last[layer, : len(self)]
        if self._gpu is not None:
            return self._gpu.near(queries, keys, floor)
        least = 0 if self.scan == "sign" else _SIGNS_SIZE if len(queries) <= _FEW else _SIGNS_SIZE_MANY
        if self._signs is not None and keys.numel() >= least:
            pairs = self._signs.near(layer, queries, floor)
            if pairs is not None:
                return pairs
        return near_by_product(queries, keys, floor)

    def _held(self, found: Found) -> tuple[Found, np.ndarray]:
        """What was found of entries that are still held, and which of these are switched on."""
        slot = np.array([self.slot.get(id, -1) for id in found.id.tolist()], np.int64)
        held = slot >= 0
        held[held] = self.entries["seq"][slot[held]] == found.seq[held]
        return found.keep(held), self.entries["on"][slot[held]]

    def _valid(self, queries: Tensor | Sequence[Tensor], valid: Tensor | None) -> Tensor:
        """`valid` (B, T), all True where it is None.

        Raises:
            ValueError: shapes that do not fit the memory or each other.
        """
        shapes = {tuple(one.shape) for one in queries}
        shape = next(iter(shapes), ())
        fits = len(queries) == self.n_layers and len(shapes) == 1 and len(shape) == 3 and shape[2] == self.dim
        if not fits or not queries[0].is_floating_point():
            raise ValueError(
                f"queries are {len(queries)} layers of shape {shapes}, of {queries[0].dtype}; give floats "
                f"(R, B, T, D) = ({self.n_layers}, B, T, {self.dim})"
            )
        if valid is None:
            return torch.ones(shape[:2], dtype=torch.bool, device=queries[0].device)
        if tuple(valid.shape) != shape[:2] or valid.dtype != torch.bool:
            raise ValueError(
                f"valid is {valid.dtype} of shape {tuple(valid.shape)}; give bool of shape {shape[:2]}"
            )
        return valid
