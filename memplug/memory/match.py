"""From hidden states to the entries above their threshold.

A scan proposes pairs of a token and the last token of an entry's span; `check_spans` decides. The scan is
brought up to date with the record when it is needed, so that adding, removing and switching entries cost
nothing here.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from memplug.memory.gpu import FaissScan
from memplug.memory.products import ProductScan, Scan
from memplug.memory.record import KeyRecord, unit_rows
from memplug.memory.signs import BITS, SignScan, fewest_bits
from memplug.memory.small import SmallScan
from memplug.memory.spans import Proposals, check_spans
from memplug.memory.stream import Block
from memplug.memory.votes import Found

__all__ = ["Matcher", "ScanName"]

ScanName = Literal["auto", "exact", "sign", "faiss"]

_ROWS = 512  # tokens scanned at once
_CLEAR = 2e-3  # a cosine so far above its threshold need not be looked at again
# Sign codes from this width and so many elements a layer on; below, int8 products are as quick.
_SIGNS_WIDTH = 512
_SIGNS_SIZE = 1 << 22
_ELEMENTS = 1 << 21  # of keys written at once


class Matcher:
    """Finds entries of a record.

    Args:
        record: the keys.
        scan: how matches are proposed, see `KeyMemory`.
        seed: of the sign scan's projections.
    """

    def __init__(self, record: KeyRecord, scan: ScanName, seed: int):
        self.record, self.choice, self.seed = record, scan, seed
        self._scan: Scan | None = None
        self._behind: set[int] = set()  # slots in which the scan is behind the record
        self._floor: float | None = None
        self._suited: tuple[SmallScan | None] | None = None
        self._size = 0  # of the record when the scan was chosen
        self._syncing = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_syncing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _syncing=threading.Lock())  # a copy has a lock of its own

    @property
    def nbytes(self) -> int:
        """Bytes of the scan's copy of the keys."""
        small = 0 if self._suited is None or self._suited[0] is None else self._suited[0].nbytes
        return small + (0 if self._scan is None else self._scan.nbytes)

    def changed(self, slot: int) -> None:
        """Another entry is at this slot now."""
        self._floor = self._suited = None
        if self._scan is not None:
            self._behind.add(slot)

    def match(self, layers: Sequence[int], text: Block, unsearched: int, *, exact: bool = True) -> Found:
        """The entries above their threshold in windows that end in the last `unsearched` positions; an entry
        may come several times.

        Args:
            layers: which layers the text's hidden states are of.
            text: what is to be searched, and before it what windows may reach back to.
            exact: whether similarities are wanted to the last bit also where a row has one entry alone.
        """
        record, device = self.record, self.record.device
        seen, valid = text.length - unsearched, text.valid.cpu().numpy()
        asked = valid[:, seen:]
        count = int(np.count_nonzero(asked))
        if not (len(record) and count):
            return Found.empty()
        states = [layer.to(device) for layer in text.layers]
        if self._small is not None and self._small.takes(valid.size, self._lowest()):
            found = self._small.proposals(layers, states, valid, seen, self._lowest())
            if not exact and len(found) == 1 and self._clear(*found[0]):
                held, sim = found[0]
                where = np.array(layers, np.int64)[held.layer]
                return Found(held.row, where, record.id[held.slot], record.seq[held.slot], sim)
            return self._checked(layers, states, valid, [some for some, _ in found])
        fresh = (
            [layer[:, seen:].flatten(0, 1) for layer in states] if seen else [s.flatten(0, 1) for s in states]
        )
        proposed: list[Proposals] = []
        for tokens in _portions(asked, count):
            queries = _stacked(fresh, tokens)
            with self._syncing:
                scan = self._synced(layers[0], queries[0])
            for i, pairs in enumerate(scan.candidates(layers, queries, self._last(), self._lowest())):
                if pairs is not None:
                    token = pairs[0] if tokens is None else tokens[pairs[0]]
                    row, position = np.divmod(token, unsearched)
                    proposed.append(Proposals(np.full(len(row), i), row, position + seen, pairs[1]))
        return self._checked(layers, states, valid, proposed)

    def _clear(self, some: Proposals, sim: np.ndarray) -> bool:
        """Whether all of them are certain to hold, and at most one entry of a row does."""
        alone = len(set(some.row.tolist())) == len(
            set(zip(some.row.tolist(), some.slot.tolist(), strict=True))
        )
        return alone and bool((sim > self.record.limit[some.slot] + _CLEAR).all())

    def _checked(
        self, layers: Sequence[int], states: Sequence[Tensor], valid: np.ndarray, proposed: list[Proposals]
    ) -> Found:
        """What holds of the proposals."""
        if not proposed:
            return Found.empty()
        every, record = Proposals.join(sorted(proposed, key=lambda some: int(some.layer[0]))), self.record
        held, sim = check_spans(record, layers, states, valid, every)
        where = np.array(layers, np.int64)[held.layer]
        return Found(held.row, where, record.id[held.slot], record.seq[held.slot], sim)

    @property
    def _small(self) -> SmallScan | None:
        """The search of a small memory, where this is one and no other way was asked for."""
        if self._suited is None:
            suits = (
                self.choice == "auto" and self.record.device.type == "cpu" and SmallScan.suits(self.record)
            )
            self._suited = (SmallScan(self.record) if suits else None,)
        return self._suited[0]

    def _last(self) -> Tensor:
        return self.record.last[:, : len(self.record)]

    def _lowest(self) -> float:
        if self._floor is None:
            self._floor = float(self.record.limit[: len(self.record)].min())
        return self._floor

    def _synced(self, layer: int, queries: Tensor) -> Scan:
        """The scan, of the kind that suits, brought up to date with the record."""
        record, scan = self.record, self._scan
        if scan is None or self._outgrown(scan):
            bits = self._bits(layer, queries)
            if scan is None or bits != scan.bits:
                if self.choice == "faiss":
                    scan = FaissScan(record.device)
                elif bits is None:
                    scan = ProductScan(record.n_layers, record.dim, record.device)
                else:
                    scan = SignScan(record.n_layers, record.dim, bits, self.seed)
                self._behind = set(range(len(record)))
            scan.asked = scan.crowded = 0
            self._scan, self._size = scan, len(record)
        if self._behind:
            scan.resize(record.last.shape[1])
            behind = np.array(sorted(slot for slot in self._behind if slot < len(record)), np.int64)
            for part in np.array_split(behind, 1 + behind.size * record.n_layers * record.dim // _ELEMENTS):
                if len(part):
                    slots = torch.from_numpy(part).to(record.device)
                    scan.write(slots, record.last[:, slots].float())
            self._behind.clear()
        return scan

    def _outgrown(self, scan: Scan) -> bool:
        """Whether another kind of scan may suit by now."""
        size = len(self.record)
        return size > 2 * self._size or 2 * size < self._size or _is_crowded(scan)

    def _bits(self, layer: int, queries: Tensor) -> int | None:
        """Length of the codes that suit the record and queries (N, D) like these; None for products."""
        record = self.record
        if self.choice in ("exact", "faiss") or record.device.type != "cpu":
            return None
        if self.choice == "auto" and (
            record.dim < _SIGNS_WIDTH
            or len(record) * record.dim < _SIGNS_SIZE
            or importlib.util.find_spec("faiss") is None
        ):
            return None
        some = torch.from_numpy(np.linspace(0, len(record) - 1, min(len(record), 1024)).astype(np.int64))
        bits = fewest_bits(queries[:64], record.last[layer, some].float(), len(record), self._lowest())
        if bits is not None and self._scan is not None and self._scan.bits and _is_crowded(self._scan):
            # Queries are more alike than the sample told.
            bits = next((more for more in BITS if more > max(bits, self._scan.bits)), None)
        return BITS[-1] if bits is None and self.choice == "sign" else bits


def _portions(asked: np.ndarray, count: int) -> Iterator[np.ndarray | None]:
    """Places of the tokens to scan at once, of `count` in all; None where all there are may be scanned, as a
    few too many cost less than a choice, and the check leaves them out."""
    if asked.size <= min(_ROWS, count + count // 4):
        yield None
        return
    tokens = np.flatnonzero(asked)
    for start in range(0, count, _ROWS):
        yield tokens[start : start + _ROWS]


def _stacked(states: Sequence[Tensor], tokens: np.ndarray | None) -> Tensor:
    """Unit rows float32 (l, N, D) of some tokens of l layers' states (N', D)."""
    if tokens is not None:
        at = torch.from_numpy(tokens).to(states[0].device)
        states = [layer.index_select(0, at) for layer in states]
    return unit_rows(states[0][None] if len(states) == 1 else torch.stack(tuple(states)))


def _is_crowded(scan: Scan) -> bool:
    return scan.asked >= 1000 and scan.crowded > scan.asked / 4
