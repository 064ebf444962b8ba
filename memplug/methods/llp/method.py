"""LLP as it edits by default: a value speaks where its edit is asked for, and nowhere else.

Keys are compared in a calibrated space. A learned metric of questions tells asking for the fact from talking
about its subject. The value stands in front of the answer alone, so that what is read, what is said
afterwards and everything else about the subject keep the base model's states.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ...edits import EditTable
from ...interface import Host, State
from ...model.architecture import evaluating
from ...model.hooks import Hook
from ...model.lru import Kept
from ...model.prefix import KV, Prefix
from ...retrieval.entries import Entry, pack, unpack
from ...retrieval.explain import explain_answer
from ...retrieval.explanation import Explanation
from ...retrieval.questions import Question
from ...retrieval.reading import Speaking
from ...retrieval.room import Asking, Room
from ...saving.checked import check_rest, names
from ...text.chat import Prompt
from ...text.printable import brief
from ..unlearned import warn_unlearned
from .config import LLPConfig
from .learning import Learner, batches
from .published import LEARNED, PublishedLLP
from .teaching import Layout, Taught, teach

__all__ = ["LLP"]

_KEPT = 1024  # edits and positions whose keys and values stay on the model's device
_PARTS = ("key.", "value.", "question.", "calibration.")  # of a saved state


class LLP(PublishedLLP):
    """Think, ask, recall: see the module.

    Args:
        host: the model.
        config: constants; layers left open are chosen from the model's depth.

    Raises:
        ValueError: layers out of range, or think layers not below the recall layer.
        UnsupportedModelError: the model's attention cannot take a recalled prefix.
    """

    def __init__(self, host: Host, config: LLPConfig) -> None:
        super().__init__(host, config)
        self._room = Room(host, self.config, self.memory, self._edits_of, self.edit)
        self._on: frozenset[str] = frozenset()
        self._ready: Kept[tuple[str, int], KV] = Kept(_KEPT)
        self._layout: Layout | None = None

    def _width(self) -> int:
        return min(self._host.architecture.width, self.config.rank)

    def _in_force(self) -> frozenset[str]:
        return frozenset(id for entry in self.entries.values() for id in entry.on)

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Listen, then let speak."""
        tracker = self._host.tracker

        def current() -> Prefix | None:
            call = tracker.current
            return None if call is None else call.scratch

        return [*self._room.hooks(), *self._recall.hooks(self._decide, current)]

    def _decide(self) -> Prefix | None:
        call = self._host.tracker.current
        found = None if call is None else self._room.listen(call)
        if call is None or found is None:
            return None
        heard, spoken = found
        call.scratch = self._spoken(spoken, call.start, heard.first)
        return call.scratch

    def _spoken(
        self, spoken: Sequence[Sequence[tuple[Speaking, ...]]], start: Tensor, first: Sequence[int]
    ) -> Prefix | None:
        """The prefix in which each row has its edits side by side, open where they speak.

        Each stands in front of the token at which it began to speak. What a row has read may go on with an
        edit that was switched off or deleted since.
        """
        rows = [
            list(dict.fromkeys((one.edit, one.since) for at in row for one in at if one.edit in self._on))
            for row in spoken
        ]
        most = max(map(len, rows))
        if not most:
            return None
        columns = len(spoken[0])
        length = self.config.n_values
        seen = torch.zeros(len(rows), columns, most * length, dtype=torch.bool)
        for b, (edits, row) in enumerate(zip(rows, spoken, strict=True)):
            for t, at in enumerate(row):
                for one in at:
                    if one.edit in self._on:
                        begin = edits.index((one.edit, one.since)) * length
                        seen[b, t, begin : begin + length] = True
        named = [
            [self._kv_of_edit(id, begins + since) for id, since in edits]
            for edits, begins in zip(rows, first, strict=True)
        ]
        model = next(kv for row in named for kv in row)
        kv: KV = []
        for layer, pair in enumerate(model):
            blank = [torch.zeros_like(tensor) for tensor in pair]
            both = [
                torch.cat(
                    [
                        torch.cat([*(kv[layer][w] for kv in row), *[blank[w]] * (most - len(row))], 2)
                        for row in named
                    ]
                )
                for w in (0, 1)
            ]
            kv.append((both[0], both[1]))
        return Prefix(kv, seen, start)

    def _kv_of_edit(self, id: str, at: int) -> KV:
        """Its keys and values in front of a position id."""

        def read() -> KV:
            entry = next(entry for entry in self.entries.values() if id in entry.edits)
            device, dtype = self._host.text.device, self._host.model.dtype
            with torch.no_grad():
                kv = self._shape().kv(entry.values[(id,)][None].to(device), dtype)
                return self._recall.turned(kv, torch.tensor([at]))

        return self._ready.get((id, at), read)

    def _shape(self) -> Layout:
        if self._layout is None:
            blank = torch.zeros(1, self.config.n_values, self._host.architecture.width, dtype=torch.float32)
            with torch.no_grad(), self._host.tracker.off():
                self._layout = Layout.of(self._recall.project(blank, torch.zeros(1, dtype=torch.long)))
        return self._layout

    # ------------------------------------------------------------------ edits

    def _apply(self, drafts: Mapping[str, Entry], progress: bool) -> Collection[str]:
        """Learn what the drafts lack, then put them in place; see `PublishedLLP._apply`."""
        fresh = [
            (draft, edit)
            for draft in drafts.values()
            for id, edit in draft.edits.items()
            if (id,) not in draft.values
        ]
        keys: dict[str, list[Tensor]] = {}
        taught: list[Taught] = []
        questions: dict[str, tuple[Question, ...]] = {}
        size, steps = self.config.batch_size, self.config.value_steps
        with self._host.tracker.off(), evaluating(self._host.model):
            for part, bar, advance in batches(fresh, size, steps, progress):
                if self._room.calibration is None:
                    bar.set_postfix_str("calibrating")
                lessons, chunks = self._learner().read(part, keys, questions, bar)
                edits = [edit for _, edit in part]
                taught += teach(self._host, self._recall, self.config, edits, lessons, chunks, advance)
        for (draft, edit), one in zip(fresh, taught, strict=True):
            draft.values[(str(edit.id),)] = one.value
        poor = [edit for (_, edit), one in zip(fresh, taught, strict=True) if one.loss > LEARNED]
        # A warning may be an error: nothing has changed yet.
        warn_unlearned([edit.question for edit in poor], len(fresh), 4)
        self._shape()  # found by a forward, which none of those that recall should have to run
        closes = {str(edit.id) for (_, edit), one in zip(fresh, taught, strict=True) if one.closes}
        forms = {str(edit.id): self._room.answers_of(edit, str(edit.id) in closes) for _, edit in fresh}
        asking = Asking(questions, forms)
        with self._host.tracker.gate.changing():
            numbers = self._add(keys)
            for draft in drafts.values():
                self._put(draft, draft.keys + numbers.get(draft.subject, ()))
            held = {id for entry in self.entries.values() for id in entry.edits}
            self._room.take(asking, keys, held)
            self._room.closes = (self._room.closes | closes) & held
            self._ready.clear()
            self._on = self._in_force()
        return {str(edit.id) for edit in poor}

    def _learner(self) -> Learner:
        return Learner(self._host, self._recall, self.config, self.memory, self._room.calibrate())

    def _threshold(self, key: Tensor) -> float | None:
        made = self._room.calibration
        return made.least(key) if made else None

    # ------------------------------------------------------------------ looking, saving

    def explain(self, prompt: Prompt) -> Explanation:
        """Which subjects were found, by which layers; how much is asked like their edits; what speaks."""
        return explain_answer(self._host, self._room, self.entries, self._owner, prompt)

    def state(self) -> State:
        """Keys, values, what asks for them, the calibration, and which edit they belong to."""
        tensors = {f"key.{name}": tensor for name, tensor in self.memory.state_dict().items()}
        values, entries = pack(self.entries.values())
        tensors |= values
        tensors |= self._room.tensors()
        closes = sorted(self._room.closes)
        meta = {"entries": entries, "next": self._next, "config": asdict(self.config), "closes": closes}
        return State(tensors, meta)

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        check_rest(tensors, (name for name in tensors if name.startswith(_PARTS)))
        entries = unpack(tensors, meta["entries"], edits, (self._shape().size,), torch.float16)
        saved = self._room.read(tensors, edits)
        closes = set(names(meta["closes"], "the edits that end a word"))
        if not closes <= {str(id) for id in edits}:
            raise ValueError("an edit that ends a word is not in the list of edits")
        values = {ids for entry in entries.values() for ids in entry.values}
        lacking = [id for id in edits if (id,) not in values]
        if lacking:
            raise ValueError(f"the value of edit {brief(lacking[0])} is missing")
        with self._host.tracker.gate.changing():
            self._take_over(tensors, entries, meta)
            self._room.take_over(saved, self.memory)
            self._room.closes = closes
            self._ready.clear()
            self._on = self._in_force()
