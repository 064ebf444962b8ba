"""One entry of the ledger: edits that were made together, as rows of keys and values per module.

Rows are kept in main memory, wherever the module is: a thousand edits' are many times a module's weight. They
may be kept in half precision (`LowRankUpdate.kept`), rounded once, before anything is computed from them.

A change that has no such rows (one that was trained, element by element) is kept whole.

Letters: n rows (tokens of the edits), d_k and d_v a module's widths, r columns of its factors.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .solve import directed, push_through, solve

__all__ = ["DenseUpdate", "Entry", "Factors", "LowRankUpdate", "summed"]

Factors = tuple[Tensor, Tensor]
"""``a`` [d_k,r] and ``b`` [r,d_v] of one module's change."""


class LowRankUpdate(NamedTuple):
    """What one entry does to one module in one step.

    Attributes:
        site: the module's name.
        keys: [n,d_k], float32, or what `kept` made of them.
        values: [n,d_v], as the keys.
        owner: int64 [n], the place in `Entry.ids` of the edit that a row belongs to.
        ridge: weight of the norm in the joint solve of keys and values; None where the change is the sum of
            the rows' outer products.
        directions: [n,d_k], as the keys, which they are times the inverse of the solve's metric; None for the
            plain norm.
        scales: what keys, values and directions as they are here have to be multiplied by.
    """

    site: str
    keys: Tensor
    values: Tensor
    owner: Tensor
    ridge: float | None
    directions: Tensor | None = None
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def kept(self, half: bool) -> LowRankUpdate:
        """The part in main memory; with ``half`` its rows are rounded to float16.

        Each kind of rows is divided by a power of two that brings its largest element to the upper end of
        float16's range, so that elements down to 2^-29 of it keep eleven bits.
        """
        keys, k = _kept(self.keys, self.scales[0], half)
        values, v = _kept(self.values, self.scales[1], half)
        directions, d = None, 1.0
        if self.directions is not None:
            directions, d = _kept(self.directions, self.scales[2], half)
        return LowRankUpdate(self.site, keys, values, self.owner.cpu(), self.ridge, directions, (k, v, d))

    def wide(self, device: torch.device | None = None) -> LowRankUpdate:
        """The part with rows to compute with, float32 at least and as large as they are, on ``device``."""
        device = device or self.owner.device
        k, v, d = self.scales
        keys, values = _wide(self.keys, k, device), _wide(self.values, v, device)
        directions = None if self.directions is None else _wide(self.directions, d, device)
        return LowRankUpdate(self.site, keys, values, self.owner.to(device), self.ridge, directions)

    def factors(self, device: torch.device | None = None) -> Factors:
        """The change of all rows as ``(a [d_k,r], b [r,d_v])``, on ``device`` (None: where the rows are)."""
        part = self.wide(device)
        if part.ridge is None:
            return part.keys.T, part.values
        if part.directions is not None:
            return directed(part.keys, part.values, part.ridge, part.directions)
        return solve(part.keys, part.values, part.ridge)

    def of(self, place: int) -> tuple[Tensor, Tensor]:
        """One edit's own share of the change as ``(a [d_k,m], b [m,d_v])``, m the rows that it owns.

        With D the directions (the keys under the plain norm) and ``B = (KD' + ridge I)^-1 V`` of all rows,
        the change is ``D'B``, and the share is that of the edit's rows of D and B: the shares add up to the
        change. Where there are more rows than inputs, the factors in force have no columns of single rows,
        and the n by n system is solved, in float64.

        Raises:
            SolveError: the system cannot be solved.
        """
        mine = self.owner == place
        if self.ridge is None or len(self.owner) <= self.keys.shape[1]:
            a, b = self.factors()
            return a[:, mine], b[mine]
        part = self.wide()
        along = part.keys if part.directions is None else part.directions
        keys, values, d = (x.double()[None] for x in (part.keys, part.values, along))
        b = push_through(keys, values, keys.new_tensor([self.ridge]).log(), d)[0]
        return along[mine].T, b[mine].to(part.values.dtype)


class DenseUpdate(NamedTuple):
    """A dense change of one module; takes as much memory as the module's weight in float32.

    Attributes:
        site: the module's name.
        change: float32 [d_k,d_v].
        ids: the edits that it was made for; it is in force where just these are.
    """

    site: str
    change: Tensor
    ids: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Entry:
    """Edits that were made together.

    Attributes:
        ids: the edits' ids, in order.
        parts: their changes, steps in order.
        wholes: dense changes, one of each module for each set of edits that was trained.
        off: ids that are switched off.
        notes: what the method wants to tell about them; goes through JSON.
        solved: factors by module for the ids in force, kept since they take solving and widening.
    """

    ids: tuple[str, ...]
    parts: tuple[LowRankUpdate, ...]
    off: frozenset[str] = frozenset()
    notes: Mapping[str, Any] = field(default_factory=dict)
    wholes: tuple[DenseUpdate, ...] = ()
    solved: dict[tuple[str, ...], dict[str, Factors]] = field(default_factory=dict, repr=False)

    @cached_property
    def on(self) -> tuple[str, ...]:
        """Ids in force."""
        return tuple(id for id in self.ids if id not in self.off)

    @cached_property
    def key(self) -> tuple[int, int, tuple[str, ...]]:
        """Equal for entries of the same change, as long as their parts and wholes are kept."""
        return id(self.parts), id(self.wholes), self.on

    @cached_property
    def mark(self) -> int:
        """A number that follows from the ids in force alone: the smallest of their checksums' low bits."""
        return min(zlib.crc32(id.encode()) % 65536 for id in self.on)

    def without(self, gone: Iterable[str]) -> Entry | None:
        """The entry without some of its edits, their rows dropped; None where nothing is left."""
        left = tuple(id for id in self.ids if id not in set(gone))
        parts = tuple(_rows(part, self.ids, left) for part in self.parts)
        off = self.off & frozenset(left)
        # Where none is left that fits, those that do not fit say that something has to be made.
        wholes = tuple(whole for whole in self.wholes if set(whole.ids) <= set(left)) or self.wholes
        kept = tuple(p for p in parts if len(p.owner))
        return Entry(left, kept, off, self.notes, wholes) if left else None

    @property
    def nbytes(self) -> int:
        """What the factors that are kept take."""
        return sum(x.nbytes for found in self.solved.values() for pair in found.values() for x in pair)

    @property
    def trained(self) -> bool:
        """Whether dense changes are there for just the edits in force, if any are needed."""
        return not self.wholes or not self.on or any(whole.ids == self.on for whole in self.wholes)

    def dense(self) -> dict[str, Tensor]:
        """By module, the dense change [d_k,d_v] of the edits in force.

        Raises:
            ValueError: none was made for just these edits.
        """
        if not self.trained:
            raise ValueError(
                f"the change of {list(self.on)} was made together with other edits; train it anew"
            )
        return {whole.site: whole.change for whole in self.wholes if whole.ids == self.on}

    def factors(self, devices: Mapping[str, torch.device] | None = None) -> dict[str, Factors]:
        """By module, the change of the edits in force as ``(a [d_k,r], b [r,d_v])``, steps side by side.

        Args:
            devices: where to compute, by module; None: where the rows are.

        Raises:
            SolveError: a part cannot be solved.
        """
        on = self.on
        if on not in self.solved:
            found: dict[str, list[Factors]] = {}
            for part in (_rows(part, self.ids, on) for part in self.parts):
                if len(part.owner):
                    pair = part.factors(devices[part.site] if devices else None)
                    found.setdefault(part.site, []).append(pair)
            self.solved.clear()
            self.solved[on] = {site: _joined(pairs) for site, pairs in found.items()}
        return self.solved[on]


def summed(entries: Sequence[Entry], devices: Mapping[str, torch.device] | None = None) -> dict[str, Tensor]:
    """By module, the change [d_k,d_v] of the edits in force in all of these entries, taken together.

    Args:
        entries: the entries, in order.
        devices: as in `Entry.factors`.

    Raises:
        SolveError: a part cannot be solved.
        ValueError: a dense change was not made for just the edits in force.
    """
    pairs: dict[str, list[Factors]] = {}
    for entry in entries:
        for site, pair in entry.factors(devices).items():
            pairs.setdefault(site, []).append(pair)
    sums = {}
    for site, found in pairs.items():
        a, b = _joined(found)
        sums[site] = a @ b
    for site, change in (item for entry in entries for item in entry.dense().items()):
        sums[site] = sums[site] + change if site in sums else change.clone()
    return sums


def _joined(pairs: Sequence[Factors]) -> Factors:
    """Factors of the sum of these changes."""
    return torch.cat([a for a, _ in pairs], dim=1), torch.cat([b for _, b in pairs])


def _kept(rows: Tensor, scale: float, half: bool) -> tuple[Tensor, float]:
    rows = rows.cpu().contiguous()
    if not half or not rows.numel():
        return rows, scale
    largest = float(rows.abs().max())
    more = math.ldexp(1.0, math.frexp(largest)[1] - 15) if 0 < largest < math.inf else 1.0
    return (rows / more).half(), scale * more


def _wide(rows: Tensor, scale: float, device: torch.device) -> Tensor:
    rows = rows.to(device)
    rows = rows.float() if rows.dtype == torch.float16 else rows
    return rows if scale == 1.0 else rows * scale


def _rows(part: LowRankUpdate, ids: Sequence[str], kept: Sequence[str]) -> LowRankUpdate:
    """The rows of ``part`` that belong to the edits ``kept``."""
    if len(kept) == len(ids):
        return part
    at = {id: place for place, id in enumerate(kept)}
    owner = torch.tensor([at.get(id, -1) for id in ids], device=part.owner.device)[part.owner]
    mine = owner >= 0
    directions = None if part.directions is None else part.directions[mine]
    return part._replace(
        keys=part.keys[mine], values=part.values[mine], owner=owner[mine], directions=directions
    )
