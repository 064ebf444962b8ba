"""From hidden states to the entries above their threshold.

A scan proposes pairs of a token and the last token of an entry's span; `check_spans` decides. The scan is
brought up to date with the record when it is needed, so that adding, removing and switching entries cost
nothing here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from memplug.memory.gpu import FaissScan
from memplug.memory.products import ProductScan, Scan
from memplug.memory.record import KeyRecord, unit_rows
from memplug.memory.signs import BITS, SignScan, fewest_bits
from memplug.memory.spans import Proposals, check_spans
from memplug.memory.stream import Block
from memplug.memory.votes import Found

__all__ = ["Matcher", "ScanName"]

ScanName = Literal["auto", "exact", "sign", "faiss"]

_ROWS = 512  # tokens scanned at once
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
        self._size = 0  # of the record when the scan was chosen

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
        """The entries above their threshold in windows that end in the last `unsearched` positions; an entry
        may come several times.

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
        proposed: list[tuple[int, Tensor, Tensor]] = []  # place of the layer, place of the token, slot
        whole = len(tokens) == len(states[0]) <= _ROWS
        for some in tokens.split(_ROWS):
            queries = unit_rows(torch.stack(states if whole else [s.index_select(0, some) for s in states]))
            scan = self._synced(layers[0], queries[0])
            found = scan.candidates(layers, queries, record.last[:, : len(record)], self._lowest())
            proposed += [(i, some[pair[0]], pair[1]) for i, pair in enumerate(found) if pair is not None]
        return self._checked(layers, text, seen, proposed) if proposed else Found.empty()

    def _checked(
        self, layers: Sequence[int], text: Block, seen: int, proposed: list[tuple[int, Tensor, Tensor]]
    ) -> Found:
        """What holds of the proposals."""
        record = self.record
        proposed = sorted(proposed, key=lambda item: item[0])
        layer = np.repeat([item[0] for item in proposed], [len(item[1]) for item in proposed])
        token = torch.cat([item[1] for item in proposed]).cpu().numpy()
        slot = torch.cat([item[2] for item in proposed]).cpu().numpy()
        row, position = np.divmod(token, text.length - seen)
        states = [layer.to(record.device) for layer in text.layers]
        held, sim = check_spans(
            record, layers, states, text.valid.cpu().numpy(), Proposals(layer, row, position + seen, slot)
        )
        where = np.array(layers, np.int64)[held.layer]
        return Found(held.row, where, record.id[held.slot], record.seq[held.slot], sim)

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


def _is_crowded(scan: Scan) -> bool:
    return scan.asked >= 1000 and scan.crowded > scan.asked / 4
