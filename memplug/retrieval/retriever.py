"""The retrieval room for methods other than LLP: edits are found as LLP finds them, by the same code.

A method holds a `Retriever` beside what its edits do. It asks `prepare` for what new edits are recognised by,
which changes nothing, and puts that in place with its own changes, inside `Gate.changing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..edits import Edit, EditTable
from ..interface import Host
from ..model.architecture import evaluating
from ..model.context import Call
from ..saving.checked import check_rest
from ..text.chat import Prompt
from .config import RetrievalConfig
from .entries import Entry, pack, unpack
from .explain import explain_answer
from .explanation import Explanation
from .held import Held
from .keys import think_states
from .lessons import Lesson, lessons_of, statements_of
from .recogniser import Recogniser
from .room import Asking, Room, Saved

__all__ = ["PARTS", "Prepared", "Restored", "Retriever"]

_BATCH = 32  # prompts read together


@dataclass(frozen=True)
class Prepared:
    """What is put in place together.

    Attributes:
        drafts: the entries that change, by subject.
        asking: of new edits.
        keys: by subject, new keys [R,S,K].
    """

    drafts: dict[str, Entry]
    asking: Asking = field(default_factory=lambda: Asking({}, {}))
    keys: dict[str, list[Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Restored:
    """A saved retriever, checked."""

    tensors: dict[str, Tensor]
    entries: dict[str, Entry]
    saved: Saved
    meta: dict[str, Any]


class Retriever(Held):
    """Finds the edits that a text asks for.

    Args:
        host: the model.
        config: constants; layers left open are chosen from the model's depth.

    Raises:
        ValueError: the model has a single layer, or layers do not fit.
    """

    def __init__(self, host: Host, config: RetrievalConfig) -> None:
        config = config.resolve(len(host.architecture.layers))
        super().__init__(host, config, min(host.architecture.width, config.rank))
        self._host, self._config = host, config
        self.room = Room(host, config, self.memory, self._edits_of, self.edit)
        self.on: frozenset[str] = frozenset()
        """Ids of the edits in force."""

    def _threshold(self, key: Tensor) -> float | None:
        made = self.room.calibration
        return made.least(key) if made else None

    # ------------------------------------------------------------------ forwards

    def asked(self, call: Call) -> list[list[tuple[str, ...]]]:
        """The edits in force that speak at each column of each row of a forward, best first.

        The states of `Room.layers` are in ``call.states``. What a row has read may go on with an edit that
        was switched off or deleted since; it is left out.
        """
        found = self.room.listen(call)
        if found is None:
            return [[()] * call.valid.shape[1] for _ in range(len(call.valid))]
        return [[tuple(one.edit for one in at if one.edit in self.on) for at in row] for row in found[1]]

    # ------------------------------------------------------------------ edits

    def drafts(self, edits: Sequence[Edit], replaced: Sequence[Edit]) -> dict[str, Entry]:
        """The entries, by subject, that change when ``edits`` come in place of ``replaced``; none is yet."""
        return self._with(edits, replaced)

    def prepare(self, edits: Sequence[Edit], replaced: Sequence[Edit]) -> Prepared:
        """What ``edits`` in place of ``replaced`` are recognised by; nothing is changed.

        The first call calibrates, which takes seconds on a large model.
        """
        drafts = self._with(edits, replaced)
        keys: dict[str, list[Tensor]] = {}
        asking = Asking({}, {})
        with self._host.tracker.off(), evaluating(self._host.model):
            recogniser = Recogniser(self._host, self._config, self.memory, self.room.calibrate())
            statements = statements_of(self._host.text, edits) if edits else []
            for edit, statement in zip(edits, statements, strict=True):
                lessons = lessons_of(self._host.text, self._config, edit, statement)
                states = self._states(lessons)
                draft = drafts[str(edit.subject)]
                asking.questions[str(edit.id)] = recogniser.recognise(draft, lessons, states, keys)
                asking.forms[str(edit.id)] = self.room.answers_of(edit)
        return Prepared(drafts, asking, keys)

    def without(self, edits: Sequence[Edit]) -> Prepared:
        """What is left where these edits go."""
        return Prepared(self._without({edit.id for edit in edits}))

    def switched(self, edits: Sequence[Edit], on: bool) -> Prepared:
        """What is there where these edits are switched."""
        return Prepared(self._switched(edits, on))

    def put(self, prepared: Prepared) -> None:
        """Put something in place, inside `Gate.changing`; on an error nothing has changed."""
        numbers = self._add(prepared.keys)
        for draft in prepared.drafts.values():
            self._put(draft, draft.keys + numbers.get(draft.subject, ()))
        self.room.take(prepared.asking, prepared.keys, self.held)
        self.on = self._in_force()

    @property
    def held(self) -> set[str]:
        """Ids of all edits, in force or not."""
        return {id for entry in self.entries.values() for id in entry.edits}

    def _in_force(self) -> frozenset[str]:
        return frozenset(id for entry in self.entries.values() for id in entry.on)

    def _states(self, lessons: Sequence[Lesson]) -> dict[int, list[Tensor]]:
        """By layer, float32 [t,D] for each lesson: those of its subject's tokens, and of its question's."""
        layers = self.room.layers
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for at in range(0, len(lessons), _BATCH):
            part = lessons[at : at + _BATCH]
            states = think_states(self._host, [one.line.ids for one in part], layers)
            for layer, some in zip(layers, states, strict=True):
                for one, row in zip(part, some, strict=True):
                    found[layer].append(row[[*one.subject, *one.words]].float().cpu())
        return found

    # ------------------------------------------------------------------ looking, saving

    def explain(self, prompt: Prompt) -> Explanation:
        """Which subjects were found, by which layers; how much is asked like their edits; what speaks."""
        return explain_answer(self._host, self.room, self.entries, self._owner, prompt)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Keys, questions and the calibration, and which edits they belong to."""
        tensors = {f"key.{name}": tensor for name, tensor in self.memory.state_dict().items()}
        tensors |= self.room.tensors()
        return tensors, {"entries": pack(self.entries.values())[1], "next": self._next}

    def read(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> Restored:
        """What `state` gave, checked; nothing is changed.

        Args:
            tensors: those of `PARTS`; others are an error.

        Raises:
            ValueError, KeyError: it is not that, or does not fit the edits or the model.
        """
        check_rest(tensors, (name for name in tensors if name.startswith(PARTS)))
        entries = unpack(tensors, meta["entries"], edits, (None,), torch.float32)
        if any(entry.values for entry in entries.values()):
            raise ValueError("an entry has values of its own, which this method does not have")
        return Restored(dict(tensors), entries, self.room.read(tensors, edits), dict(meta))

    def take_over(self, restored: Restored) -> None:
        """Put what `read` gave in place, inside `Gate.changing`."""
        self._take_over(restored.tensors, restored.entries, restored.meta)
        self.room.take_over(restored.saved, self.memory)
        self.on = self._in_force()


PARTS = ("key.", "question.", "calibration.")
"""What the names of a retriever's tensors begin with."""
