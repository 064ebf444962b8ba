"""The codebook: keys with labels and deferral radii, and how a new edit finds its place among them.

Knows nothing about models. The codebook follows from the edits in force and their order alone, so that taking
one out and building it again leaves what would have been without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ...nearest import measure

__all__ = ["Codebook", "Entry", "Keyed"]


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
        self._keys = np.zeros((0, 0), np.float32)

    def copy(self) -> Codebook:
        """The same, to be changed on its own."""
        other = Codebook(self.epsilon, self.slack)
        other.entries, other._keys = list(self.entries), self._keys
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
            fresh = np.stack([edit.key.numpy() for edit in edits])
            keys = np.concatenate([self._keys[:count].reshape(count, fresh.shape[1]), fresh])
            for edit in edits:
                count = self._place(edit, keys, count)
            self._keys = keys[:count]

    def _place(self, edit: Keyed, keys: np.ndarray, count: int) -> int:
        """The number of entries after ``edit`` has found its place; ``keys`` holds those of the entries."""
        radius = self.epsilon
        if count:
            distances = measure(edit.key.numpy(), keys[:count], "euclidean")
            at = int(distances.argmin())
            near, distance = self.entries[at], float(distances[at])
            if distance <= near.radius + self.epsilon:
                if near.first.label == edit.label:
                    wide = max(near.radius, distance * (1 + self.slack))
                    self.entries[at] = replace(near, radius=wide, members=(*near.members, edit.id))
                    return count
                radius = min(radius, distance / 2)
                self.entries[at] = replace(near, radius=min(near.radius, distance / 2))
        keys[count] = edit.key.numpy()
        self.entries.append(Entry(edit, radius, (edit.id,)))
        return count + 1
