"""From hidden states to the entries above their threshold.

A scan proposes pairs of a token and the last token of an entry's span; `check_spans` decides. The scan is
brought up to date with the record when it is needed, so that adding, removing and switching entries cost
nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from memplug.memory.products import ProductScan, Scan
from memplug.memory.record import KeyRecord, unit_rows
from memplug.memory.spans import check_spans
from memplug.memory.stream import Block
from memplug.memory.votes import Found, merge

__all__ = ["Matcher", "ScanName"]

ScanName = Literal["auto", "exact", "sign"]

_ROWS = 512  # tokens scanned at once
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

    @property
    def nbytes(self) -> int:
        """Bytes of the scan's copy of the keys."""
        return 0 if self._scan is None else self._scan.nbytes

    def changed(self, slot: int) -> None:
        """Another entry is at this slot now."""
        self._floor = None
        if self._scan is not None:
            self._behind.add(slot)

    def match(self, layers: Sequence[int], text: Block, unsearched: int) -> Found:
        """The entries above their threshold in windows that end in the last `unsearched` positions.

        Args:
            layers: which layers the text's hidden states are of.
            text: what is to be searched, and before it what windows may reach back to.
        """
        record, device = self.record, self.record.device
        seen = text.length - unsearched
        tokens = torch.nonzero(text.after(seen).valid.flatten()).squeeze(1).to(device)
        if not len(record) or not len(tokens):
            return Found.empty()
        states = [layer[:, seen:].to(device).flatten(0, 1) for layer in text.layers]
        parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
        whole = len(tokens) == len(states[0]) <= _ROWS
        for some in tokens.split(_ROWS):
            queries = unit_rows(torch.stack(states if whole else [s.index_select(0, some) for s in states]))
            scan = self._synced(queries)
            keys = record.last[:, : len(record)]
            for part, pairs in zip(
                parts, scan.candidates(layers, queries, keys, self._lowest()), strict=True
            ):
                if pairs is not None:
                    part.append((some[pairs[0]], pairs[1]))
        return merge(
            Found.join(
                [Found.empty()]
                + [
                    self._checked(layer, text, states, seen, part)
                    for layer, states, part in zip(layers, text.layers, parts, strict=True)
                    if part
                ]
            )
        )

    def _checked(
        self, layer: int, text: Block, states: Tensor, seen: int, proposed: list[tuple[Tensor, Tensor]]
    ) -> Found:
        """The proposals (place among the unsearched positions, slot) that hold."""
        token, slot = (torch.cat(column).cpu().numpy() for column in zip(*proposed, strict=True))
        row, position = np.divmod(token, text.length - seen)
        states, valid = states.to(self.record.device), text.valid.cpu().numpy()
        place, sim = check_spans(self.record, layer, states, valid, row, position + seen, slot)
        slot = slot[place]
        where = np.full(len(place), layer, np.int64)
        return Found(row[place], where, self.record.id[slot], self.record.seq[slot], sim)

    def _lowest(self) -> float:
        if self._floor is None:
            self._floor = float(self.record.limit[: len(self.record)].min())
        return self._floor

    def _synced(self, queries: Tensor) -> Scan:
        """The scan, brought up to date with the record."""
        record = self.record
        if self._scan is None:
            self._scan = ProductScan(record.n_layers, record.dim, record.device)
            self._behind = set(range(len(record)))
        if self._behind:
            self._scan.resize(record.last.shape[1])
            behind = np.array(sorted(slot for slot in self._behind if slot < len(record)), np.int64)
            for part in np.array_split(behind, 1 + behind.size * record.n_layers * record.dim // _ELEMENTS):
                if len(part):
                    slots = torch.from_numpy(part).to(record.device)
                    self._scan.write(slots, record.last[:, slots].float())
            self._behind.clear()
        return self._scan
