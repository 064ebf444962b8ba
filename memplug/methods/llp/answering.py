"""LLP as it edits by default: a value speaks where its edit is asked for, and nowhere else.

Keys are compared in a calibrated space. The words of its own prompts tell asking for the fact from talking
about its subject. The value stands in front of the answer alone, so that what is read, what is said
afterwards and everything else about the subject keep the base model's states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...calibration import Calibration
from ...chat import Prompt
from ...checked import check_rest
from ...edits import Edit, EditTable
from ...holding import hold
from ...hooks import Hook
from ...kept import Kept
from ...layers import evaluating
from ...listening import Listener
from ...prefix import KV, Prefix
from ...questions import Question, packed, unpacked
from ...reading import Reader, Speaking
from ...shown import brief
from ...think import think_hooks
from ...turns import turns_of
from ..base import Host, State
from ..unlearned import warn_unlearned
from .calibrating import calibrated
from .config import LLPConfig
from .entries import Entry, pack, unpack
from .explain import Explanation
from .explaining import explain_answer
from .learning import Learner
from .method import LEARNED, LLP
from .teaching import Layout, Taught

__all__ = ["AnsweringLLP"]

_KEPT = 1024  # edits whose keys and values stay on the model's device


class AnsweringLLP(LLP):
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
        self._relation = (self.config.recall_layer or 1) - 1
        self._turns = turns_of(host.text)
        self._calibration: Calibration | None = None
        self._questions: dict[str, tuple[Question, ...]] = {}
        self._on: frozenset[str] = frozenset()
        self._forms: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._ready: Kept[str, KV] = Kept(_KEPT)
        self._layout: Layout | None = None
        self._longest = 1
        self._pieces: dict[int, str] = {-1: ""}
        reader = Reader(self._piece, self._turns, self._edits_of, self._answers, self.config.most_recalled)
        self._listener = Listener(
            self.memory,
            reader,
            self._layers,
            self._relation,
            self._questions.__getitem__,
            host.text.embed,
            host.text.bos_id is None,
            host.tracker.gate.looking,
        )

    def _width(self) -> int:
        return min(self._host.anatomy.width, self.config.rank)

    def _embedded(self) -> int:
        return int(self._host.text.embed([0]).shape[1])

    def _piece(self, token: int) -> str:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._host.text.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            self._pieces[token] = piece
        return piece

    def _edits_of(self, key: int) -> tuple[str, ...]:
        entry = self.entries.get(self._owner.get(key, ""))
        return entry.on if entry else ()

    def _answers(self, id: str) -> tuple[tuple[int, ...], ...]:
        found = self._forms.get(id)
        if found is None:
            found = self._forms[id] = self._answers_of(self._edit(id))
        return found

    def _answers_of(self, edit: Edit) -> tuple[tuple[int, ...], ...]:
        forms: dict[tuple[int, ...], None] = {}
        for prompt in (edit.prompt, *self._host.text.forms(edit.prompt)[1:]):
            with contextlib.suppress(ValueError):  # a template that rewrites the question
                pair = self._host.text.pair(prompt, edit.target, stop=self.config.train_stop)
                forms[tuple(pair.ids[pair.start :])] = None
        return tuple(forms)

    def _in_force(self) -> frozenset[str]:
        return frozenset(id for entry in self.entries.values() for id in entry.on)

    def _edit(self, id: str) -> Edit:
        return next(entry.edits[id] for entry in self.entries.values() if id in entry.edits)

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Listen, then let speak."""
        tracker = self._host.tracker

        def current() -> Prefix | None:
            call = tracker.current
            return None if call is None else call.scratch

        layers = tuple(dict.fromkeys((*self._layers, self._relation)))
        return [*think_hooks(self._host.anatomy, tracker, layers), *self._recall.hooks(self._decide, current)]

    def _decide(self) -> Prefix | None:
        call = self._host.tracker.current
        if call is None or self._calibration is None:
            return None
        heard, spoken = self._listener.listen(self._calibration, call, self._longest)
        if call.cache is not None:
            hold(call.cache, heard)
        call.scratch = self._spoken(spoken, call.start, heard.first)
        return call.scratch

    def _spoken(
        self, spoken: Sequence[Sequence[tuple[Speaking, ...]]], start: Tensor, first: Sequence[int]
    ) -> Prefix | None:
        """The prefix in which each row has its edits side by side, open where they speak.

        What a row has read may go on with an edit that was switched off or deleted since.
        """
        rows = [
            list(dict.fromkeys(one.edit for at in row for one in at if one.edit in self._on))
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
                        begin = edits.index(one.edit) * length
                        seen[b, t, begin : begin + length] = True
        named = [
            [self._recall.turned(self._kv_of_edit(id), at) for id in edits]
            for edits, at in zip(rows, first, strict=True)
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

    def _kv_of_edit(self, id: str) -> KV:
        def read() -> KV:
            entry = next(entry for entry in self.entries.values() if id in entry.edits)
            device, dtype = self._host.text.device, self._host.model.dtype
            return self._shape().kv(entry.values[(id,)][None].to(device), dtype)

        return self._ready.get(id, read)

    def _shape(self) -> Layout:
        if self._layout is None:
            blank = torch.zeros(1, self.config.n_values, self._host.anatomy.width, dtype=torch.float32)
            with torch.no_grad(), self._host.tracker.off():
                self._layout = Layout.of(self._recall.project(blank, torch.zeros(1, dtype=torch.long)))
        return self._layout

    # ------------------------------------------------------------------ edits

    def _apply(self, drafts: Mapping[str, Entry], progress: bool) -> Collection[str]:
        """Learn what the drafts lack, then put them in place; see `LLP._apply`."""
        fresh = [
            (draft, edit)
            for draft in drafts.values()
            for id, edit in draft.edits.items()
            if (id,) not in draft.values
        ]
        keys: dict[str, list[Tensor]] = {}
        taught: list[Taught] = []
        questions: dict[str, tuple[Question, ...]] = {}
        with (
            self._host.tracker.off(),
            evaluating(self._host.model),
            tqdm(
                total=len(fresh) * (self.config.value_steps + 1),
                desc="learning",
                unit="step",
                disable=not progress or not fresh,
                leave=False,
            ) as bar,
        ):
            if fresh and self._calibration is None:
                bar.set_postfix_str("calibrating")
                self._calibration = calibrated(self._host, self.config, self._layers, self._relation)
            for at in range(0, len(fresh), self.config.batch_size):
                part = fresh[at : at + self.config.batch_size]
                taught += self._learner().learn(part, keys, questions, bar)
                bar.update(
                    (at + len(part)) * (self.config.value_steps + 1) - bar.n
                )  # some needed fewer steps
        for (draft, edit), one in zip(fresh, taught, strict=True):
            draft.values[(str(edit.id),)] = one.value
        poor = [edit for (_, edit), one in zip(fresh, taught, strict=True) if one.loss > LEARNED]
        # A warning may be an error: nothing has changed yet.
        warn_unlearned([edit.question for edit in poor], len(fresh), 4)
        self._shape()  # found by a forward, which none of those that recall should have to run
        forms = {str(edit.id): self._answers_of(edit) for _, edit in fresh}
        with self._host.tracker.gate.changing():
            numbers = self._add(keys)
            self._questions.update(questions)
            self._forms.update(forms)
            for draft in drafts.values():
                self._put(draft, draft.keys + numbers.get(draft.subject, ()))
            held = {id for entry in self.entries.values() for id in entry.edits}
            for table in (self._questions, self._forms):
                for id in table.keys() - held:
                    del table[id]
            self._ready.keep(held)
            self._on = self._in_force()
            self._longest = max([self._longest, *(key.shape[1] for some in keys.values() for key in some)])
        return {str(edit.id) for edit in poor}

    def _learner(self) -> Learner:
        if self._calibration is None:
            raise ValueError("the model is not calibrated yet; make an edit first")
        return Learner(self._host, self._recall, self.config, self.memory, self._calibration)

    def _threshold(self) -> float | None:
        return self._calibration.threshold if self._calibration else None

    # ------------------------------------------------------------------ looking, saving

    def explain(self, prompt: Prompt) -> Explanation:
        """Which subjects were found, by which layers; how much is asked like their edits; what speaks."""
        return explain_answer(
            self._host,
            self._listener,
            self._calibration,
            self.entries,
            self._owner,
            prompt,
            self._longest,
        )

    def state(self) -> State:
        """Keys, values, what asks for them, the calibration, and which edit they belong to."""
        tensors = {f"key.{name}": tensor for name, tensor in self.memory.state_dict().items()}
        values, entries = pack(self.entries.values())
        tensors |= values
        for id, asked in self._questions.items():
            tensors |= packed(asked, f"question.{id}.")
        if self._calibration is not None and self.entries:  # one that was made for nothing is not kept
            tensors |= {f"calibration.{name}": t for name, t in self._calibration.tensors().items()}
        return State(tensors, {"entries": entries, "next": self._next, "config": asdict(self.config)})

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        part = {
            kind: {n.removeprefix(kind + "."): t for n, t in tensors.items() if n.startswith(kind + ".")}
            for kind in ("key", "value", "question", "calibration")
        }
        check_rest(tensors, (f"{kind}.{name}" for kind in part for name in part[kind]))
        entries = unpack(tensors, meta["entries"], edits, (self._shape().size,), torch.float16)
        layers = (*self._layers, self._relation)
        made = None
        if part["calibration"] or entries:
            widths = (self._host.anatomy.width, self._width(), self._embedded())
            made = Calibration.of(part["calibration"], layers, *widths)
        questions = {id: tuple(unpacked(tensors, f"question.{id}.", self._width())) for id in edits}
        check_rest(part["question"], (f"{id}.{name}" for id in edits for name in packed((), "")))
        values = {ids for entry in entries.values() for ids in entry.values}
        for id, asked in questions.items():
            if (id,) not in values or not asked:
                raise ValueError(f"the value or the questions of edit {brief(id)} are missing or empty")
        with self._host.tracker.gate.changing():
            self._take_over(tensors, entries, meta)
            self._calibration = None if made is None else made.to(self._host.text.device)
            self._questions.clear()
            self._questions.update(questions)
            self._longest = max((self.memory.get(n).shape[1] for n in self.memory.ids()), default=1)
            self._forms.clear()
            self._ready.clear()
            self._on = self._in_force()
