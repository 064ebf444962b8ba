"""Which edited subject a prompt names: all tokens of a name, compared in one early layer.

A last token's state says what is asked better than about whom; with answers that all begin alike ("Lake
...") it need not say the latter at all. So the subject is looked up in the key memory, by keys as LLP has
them with spans, and takes part in the query by a mark of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...checked import many, table, whole
from ...edits import Edit
from ...memory import KeyMemory
from ...naming import Written, writings
from ..base import Host
from ..llp.config import LLPConfig
from ..llp.keys import contexts_of, keys_missing, subject_states

__all__ = ["Subjects"]


class Subjects:
    """Keys of the edits' subjects.

    Args:
        host: the model.
        layer: whose outputs are compared.
        threshold: cosine that every token of a name has to exceed.

    Attributes:
        keys: numbers of a subject's keys, one for each way it tokenizes and each text in which none of these
            would be recognised.
    """

    def __init__(self, host: Host, layer: int, threshold: float) -> None:
        self.layer, self._host = layer, host
        self._config = LLPConfig(think_layers=(layer,), n_prefixes=0, threshold=threshold)
        device = str(host.text.device)
        self._memory = KeyMemory(1, host.anatomy.width, threshold=threshold, quorum=1, device=device)
        self.keys: dict[str, tuple[int, ...]] = {}
        self._owner: dict[int, str] = {}
        self._marks: dict[str, Tensor] = {}
        self._next = 0

    def learn(self, edits: Sequence[Edit]) -> None:
        """Make keys for subjects that have none yet, or would not be recognised in an edit's own prompt or
        behind some mark."""
        fresh = {str(edit.subject): edit for edit in edits if str(edit.subject) not in self.keys}
        contexts = [contexts_of(edit, (), self._config) for edit in fresh.values()]
        states = subject_states(self._host, contexts, self._config)
        new = [(s, group.mean(0)) for s, groups in zip(fresh, states, strict=True) for group in groups]
        self._add(new)
        named = [(str(edit.subject), Written(edit.question, *edit.place)) for edit in edits]
        named += [(subject, one) for subject in fresh for one in writings(subject)]
        have = {s: [self._memory.get(number) for number in self.keys[s]] for s, _ in named}
        self._add(keys_missing(self._host, named, have, self._config))

    def _add(self, new: Sequence[tuple[str, Tensor]]) -> None:
        """Hold more keys. A subject without an edit in force changes no row, so this may come first."""
        with self._host.tracker.gate.changing(last=False):
            for subject, key in new:
                self._memory.add(self._next, key)
                self._owner[self._next] = subject
                self.keys[subject] = (*self.keys.get(subject, ()), self._next)
                self._next += 1

    def keep(self, subjects: Collection[str]) -> None:
        """Forget all others."""
        for subject in self.keys.keys() - set(subjects):
            self._marks.pop(subject, None)
            for number in self.keys.pop(subject):
                self._memory.remove(number)
                del self._owner[number]

    def find(self, states: Tensor, valid: Tensor, first: Collection[str] = ()) -> list[str | None]:
        """The subject each row names: of those ``first``, if it names any, the most similar one, else of all.

        Args:
            states: [B,T,D] of the layer.
            valid: BoolTensor [B,T], which of them are tokens to look at.
            first: the subjects of edits in force; one that is switched off must not stand before them.
        """
        found, best = self._memory.found((states,), valid), dict[int, tuple[bool, float, int]]()
        for row, number, sim in zip(found.row.tolist(), found.id.tolist(), found.sim.tolist(), strict=True):
            rank = self._owner[number] in first, sim, -number
            best[row] = max(rank, best.get(row, rank))
        return [self._owner[-best[row][2]] if row in best else None for row in range(len(states))]

    def marks(self, names: Sequence[str | None], width: int, device: torch.device) -> Tensor:
        """[B,width] float32, a random unit vector for each subject, made from its name; zero for None."""
        rows = [
            self._mark(name, width) if name is not None else torch.zeros(width, dtype=torch.float32)
            for name in names
        ]
        if not rows:
            return torch.zeros(0, width, dtype=torch.float32, device=device)
        return (torch.stack(rows) if len(rows) > 1 else rows[0][None]).to(device)

    def _mark(self, name: str, width: int) -> Tensor:
        mark = self._marks.get(name)
        if mark is None:
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            mark = torch.nn.functional.normalize(
                torch.randn(width, generator=draw, dtype=torch.float32), dim=0
            )
            if name in self.keys:
                self._marks[name] = mark
        return mark

    # ------------------------------------------------------------------ saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Keys, and whose they are."""
        meta = {
            "keys": {subject: list(numbers) for subject, numbers in self.keys.items()},
            "next": self._next,
        }
        return self._memory.state_dict(), meta

    def restore(self, tensors: Mapping[str, Tensor], meta: Any, subjects: Collection[str]) -> None:
        """Take over what `state` gave, for edits of these subjects.

        Raises:
            ValueError, KeyError: it is none.
        """
        given = table(meta, "the subjects")
        first = whole(given["next"], "the next number of a key")
        keys = {
            subject: tuple(whole(n, "a key's number", 0, first - 1) for n in many(some, "a subject's keys"))
            for subject, some in table(given["keys"], "the subjects' keys").items()
        }
        if keys.keys() != set(subjects) or not all(keys.values()):
            raise ValueError("the keys are those of other subjects, or a subject has none")
        self._memory.load_state_dict(tensors)
        numbers = [number for some in keys.values() for number in some]
        if sorted(numbers) != sorted(self._memory.ids()):
            raise ValueError("the subjects' keys are not those that are held")
        self.keys, self._next, self._marks = keys, first, {}
        self._owner = {number: subject for subject, some in keys.items() for number in some}
