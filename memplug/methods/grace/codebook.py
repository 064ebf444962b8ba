"""The codebook: keys with labels and deferral radii, and how a new edit finds its place among them.

Knows nothing about models. The codebook follows from the edits in force and their order alone, so that taking
one out and building it again leaves what would have been without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

__all__ = ["Codebook", "Entry", "Keyed"]

_SPARE = 16  # the nearest by products, of which the nearest is told


@dataclass(frozen=True)
class Keyed:
    """An edit with its key.

    Attributes:
        number: of the edit, counted up as edits are learned.
        id: the edit's.
        label: what it is answered with.
        key: float32 [p] on the CPU.
    """

    number: int
    id: str
    label: str
    key: Tensor


@dataclass(frozen=True)
class Entry:
    """One key of the codebook.

    Attributes:
        first: the edit whose key it is.
        radius: its deferral radius.
        members: ids of all edits that share it, which have the same label.
    """

    first: Keyed
    radius: float
    members: tuple[str, ...]


class Codebook:
    """Entries in order.

    Args:
        epsilon: deferral radius of a new key.
        slack: by how much of it a radius becomes larger than an edit's distance, so that the edit lies inside
            it whatever its batch does to the last bits.
    """

    def __init__(self, epsilon: float, slack: float = 1e-4) -> None:
        self.epsilon, self.slack = epsilon, slack
        self.entries: list[Entry] = []
        self._keys = np.zeros((0, 0))
        self._squares = np.zeros(0)

    def copy(self) -> Codebook:
        """The same, to be changed on its own."""
        other = Codebook(self.epsilon, self.slack)
        other.entries, other._keys, other._squares = list(self.entries), self._keys, self._squares
        return other

    def add(self, edits: Iterable[Keyed]) -> None:
        """Find each edit's place, in order (Hartvigsen et al. 2023, section 3, algorithm 1).

        With d the distance to the nearest key, of radius r:

        - add: d > r + epsilon, or there is no key: a new one of radius epsilon.
        - expand: the nearest key has the edit's label: its radius becomes d at least, and the edit shares it.
        - split: it has another one: both radii are d / 2 at most.
        """
        edits = list(edits)
        count = len(self.entries)
        if edits:  # room for every key at once
            fresh = np.stack([edit.key.double().numpy() for edit in edits])
            self._keys = np.concatenate([self._keys[:count].reshape(count, fresh.shape[1]), fresh])
            self._squares = np.concatenate([self._squares[:count], np.zeros(len(fresh))])
            for edit, key in zip(edits, fresh, strict=True):
                self._place(edit, key)

    def _place(self, edit: Keyed, key: np.ndarray) -> None:
        radius, count = self.epsilon, len(self.entries)
        if count:
            (at,), (distance,) = self.nearest(edit.key[None])
            near = self.entries[at]
            if distance <= near.radius + self.epsilon:
                if near.first.label == edit.label:
                    wide = max(near.radius, distance * (1 + self.slack))
                    self.entries[at] = replace(near, radius=wide, members=(*near.members, edit.id))
                    return
                radius = min(radius, distance / 2)
                self.entries[at] = replace(near, radius=min(near.radius, distance / 2))
        self._keys[count], self._squares[count] = key, key @ key
        self.entries.append(Entry(edit, radius, (edit.id,)))

    def nearest(self, queries: Tensor) -> tuple[list[int], list[float]]:
        """The place of the entry whose key is nearest to each of ``queries`` [B,p], any float dtype and
        device, and its distance; NaN for a query that is not finite. Of keys equally near it is the first.

        Products tell which are near. Their distances are measured pair by pair in float64, so that those of a
        row do not depend on the rows beside it. There has to be an entry.
        """
        asked, count = queries.detach().double().cpu().numpy(), len(self.entries)
        with np.errstate(invalid="ignore"):
            rough = self._squares[:count] - 2 * asked @ self._keys[:count].T  # less the query's own square
            some = np.argpartition(rough, min(_SPARE, count) - 1, axis=1)[:, :_SPARE]
            some.sort(axis=1)
            distances = np.sqrt(((self._keys[some] - asked[:, None]) ** 2).sum(2))
        best = distances.argmin(1)[:, None]
        return (
            np.take_along_axis(some, best, 1)[:, 0].tolist(),
            np.take_along_axis(distances, best, 1)[:, 0].tolist(),
        )
