"""One entry of the ledger: edits that were made together, as rows of keys and values per module.

A change that has no such rows (one that was trained, element by element) is kept whole.

Letters: n rows (tokens of the edits), d_k and d_v a module's widths, r columns of its factors.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .solve import directed, push_through, solve

__all__ = ["Entry", "Part", "Whole", "summed"]


class Part(NamedTuple):
    """What one entry does to one module in one step.

    Attributes:
        site: the module's name.
        keys: float32 [n,d_k].
        values: float32 [n,d_v].
        owner: int64 [n], the place in `Entry.ids` of the edit that a row belongs to.
        ridge: weight of the norm in the joint solve of keys and values; None where the change is the sum of
            the rows' outer products.
        directions: float32 [n,d_k], keys times the inverse of the solve's metric; None for the plain norm.
    """

    site: str
    keys: Tensor
    values: Tensor
    owner: Tensor
    ridge: float | None
    directions: Tensor | None = None

    def factors(self) -> tuple[Tensor, Tensor]:
        """The change of all rows as ``(a [d_k,r], b [r,d_v])``."""
        if self.ridge is None:
            return self.keys.T, self.values
        if self.directions is not None:
            return directed(self.keys, self.values, self.ridge, self.directions)
        return solve(self.keys, self.values, self.ridge)

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
        along = self.keys if self.directions is None else self.directions
        keys, values, d = (x.double()[None] for x in (self.keys, self.values, along))
        b = push_through(keys, values, keys.new_tensor([self.ridge]).log(), d)[0]
        return along[mine].T, b[mine].to(self.values.dtype)


class Whole(NamedTuple):
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
        solved: factors by module for the ids in force, kept since they take solving.
    """

    ids: tuple[str, ...]
    parts: tuple[Part, ...]
    off: frozenset[str] = frozenset()
    notes: Mapping[str, Any] = field(default_factory=dict)
    wholes: tuple[Whole, ...] = ()
    solved: dict[tuple[str, ...], dict[str, tuple[Tensor, Tensor]]] = field(default_factory=dict, repr=False)

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

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By module, the change of the edits in force as ``(a [d_k,r], b [r,d_v])``, steps side by side."""
        on = self.on
        if on not in self.solved:
            found: dict[str, list[tuple[Tensor, Tensor]]] = {}
            for part in (_rows(part, self.ids, on) for part in self.parts):
                if not len(part.owner):
                    continue
                found.setdefault(part.site, []).append(part.factors())
            self.solved.clear()
            self.solved[on] = {
                site: (torch.cat([a for a, _ in pairs], dim=1), torch.cat([b for _, b in pairs]))
                for site, pairs in found.items()
            }
        return self.solved[on]


def summed(entries: Sequence[Entry]) -> dict[str, Tensor]:
    """By module, the change [d_k,d_v] of the edits in force in all of these entries, taken together.

    Raises:
        SolveError: a part cannot be solved.
        ValueError: a dense change was not made for just the edits in force.
    """
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for entry in entries:
        for site, pair in entry.factors().items():
            pairs.setdefault(site, []).append(pair)
    sums = {
        site: torch.cat([a for a, _ in f], dim=1) @ torch.cat([b for _, b in f]) for site, f in pairs.items()
    }
    for site, change in (item for entry in entries for item in entry.dense().items()):
        sums[site] = sums[site] + change if site in sums else change.clone()
    return sums


def _rows(part: Part, ids: Sequence[str], kept: Sequence[str]) -> Part:
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
