"""LLP as it edits by default: a value speaks where its edit is asked for, and nowhere else.

Keys are compared in a calibrated space. An edit's gate, the state at the end of its own prompt, tells asking
for the fact from talking about its subject. The value stands in front of the answer alone, so that what is
read, what is said afterwards and everything else about the subject keep the base model's states.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ...calibration import Calibration
from ...calls import hold
from ...chat import Prompt
from ...edits import Edit
from ...hooks import Hook
from ...layers import evaluating
from ...listening import Listener, span_scores
from ...prefix import KV, Prefix
from ...reading import Reader, Speaking
from ...think import think_hooks
from ...turns import turns_of
from ..base import Host, State
from .calibrating import calibrated
from .config import LLPConfig
from .entries import Entry, pack, unpack
from .explain import Explanation
from .explaining import explain_answer
from .keys import contrast, think_states
from .lessons import Lesson, lessons_of, other_lessons, spellings, statements_of
from .method import LLP, warn_unlearned
from .passes import Chunk, States, run_lines
from .teaching import Layout, Taught, teach
from .wordings import PLAIN

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
        self._gates: dict[str, Tensor] = {}
        self._forms: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._ready: OrderedDict[str, KV] = OrderedDict()
        self._layout: Layout | None = None
        self._longest = 1
        self._pieces: dict[int, str] = {-1: ""}
        reader = Reader(self._piece, self._turns, self._edits_of, self._answers, self.config.most_recalled)
        self._listener = Listener(
            self.memory,
            reader,
            self._layers,
            self._relation,
            self._gates.__getitem__,
            host.text.bos_id is None,
        )

    def _width(self) -> int:
        return min(self._host.anatomy.width, self.config.rank)

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._host.text.tokenizer.decode(
                [token], clean_up_tokenization_spaces=False
            )
        return self._pieces[token]

    def _edits_of(self, key: int) -> tuple[str, ...]:
        entry = self.entries.get(self._owner.get(key, ""))
        return entry.on if entry else ()

    def _answers(self, id: str) -> tuple[tuple[int, ...], ...]:
        if id not in self._forms:
            edit = self._edit(id)
            forms: dict[tuple[int, ...], None] = {}
            for prompt in (edit.prompt, *self._host.text.forms(edit.prompt)[1:]):
                with contextlib.suppress(ValueError):  # a template that rewrites the question
                    pair = self._host.text.pair(prompt, edit.target, stop=self.config.train_stop)
                    forms[tuple(pair.ids[pair.start :])] = None
            self._forms[id] = tuple(forms)
        return self._forms[id]

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
        call.scratch = self._spoken(spoken, call.start)
        return call.scratch

    def _spoken(self, spoken: Sequence[Sequence[tuple[Speaking, ...]]], start: Tensor) -> Prefix | None:
        """The prefix in which each row has its edits side by side, open where they speak."""
        rows = [
            list(dict.fromkeys(one.edit for at in row for one in at if one.edit in self._gates))
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
                    if one.edit in self._gates:
                        begin = edits.index(one.edit) * length
                        seen[b, t, begin : begin + length] = True
        named = [[self._kv_of_edit(id) for id in edits] for edits in rows]
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
        if id not in self._ready:
            entry = next(entry for entry in self.entries.values() if id in entry.edits)
            device, dtype = self._host.text.device, self._host.model.dtype
            self._ready[id] = self._shape().kv(entry.values[(id,)][None].to(device), dtype)
            while len(self._ready) > _KEPT:
                self._ready.popitem(last=False)
        return self._ready[id]

    def _shape(self) -> Layout:
        if self._layout is None:
            blank = torch.zeros(1, self.config.n_values, self._host.anatomy.width)
            with torch.no_grad(), self._host.tracker.off():
                self._layout = Layout.of(self._recall.project(blank, torch.zeros(1, dtype=torch.long)))
        return self._layout

    # ------------------------------------------------------------------ edits

    def _apply(self, drafts: Mapping[str, Entry], progress: bool) -> None:
        """Learn what the drafts lack, then put them in place: nothing is changed before all is computed."""
        fresh = [
            (draft, edit)
            for draft in drafts.values()
            for id, edit in draft.edits.items()
            if (id,) not in draft.values
        ]
        keys: dict[str, list[Tensor]] = {}
        taught: list[Taught] = []
        gates: dict[str, Tensor] = {}
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
                self._calibration = calibrated(
                    self._host, self.config, self._layers, self._relation, self._turns
                )
            for at in range(0, len(fresh), self.config.batch_size):
                part = fresh[at : at + self.config.batch_size]
                taught += self._learn(part, keys, gates, bar)
                bar.update(
                    (at + len(part)) * (self.config.value_steps + 1) - bar.n
                )  # some needed fewer steps
        for (draft, edit), one in zip(fresh, taught, strict=True):
            draft.values[(str(edit.id),)] = one.value
        warn_unlearned([(edit.question, one.loss) for (_, edit), one in zip(fresh, taught, strict=True)])
        numbers = self._add(keys)
        self._gates.update(gates)
        for draft in drafts.values():
            self._put(draft, draft.keys + numbers.get(draft.subject, ()))
        held = {id for entry in self.entries.values() for id in entry.edits}
        for table in (self._gates, self._forms, self._ready):
            for id in table.keys() - held:
                del table[id]
        for number in (n for group in numbers.values() for n in group):
            self._longest = max(self._longest, self.memory.get(number).shape[1])

    def _threshold(self) -> float | None:
        return self._calibration.threshold if self._calibration else None

    def _learn(
        self,
        part: Sequence[tuple[Entry, Edit]],
        keys: dict[str, list[Tensor]],
        gates: dict[str, Tensor],
        bar: Any,
    ) -> list[Taught]:
        """Values of some edits; their keys and gates go into ``keys`` and ``gates``."""
        host, config = self._host, self.config
        edits = [edit for _, edit in part]
        layers = tuple(dict.fromkeys((*self._layers, self._relation)))

        def read(lessons: list[tuple[int, Lesson]]) -> tuple[list[Chunk], States]:
            places = [[*lesson.subject, lesson.end] for _, lesson in lessons]
            return run_lines(host, self._recall, [one.line for _, one in lessons], places, layers)

        bar.set_postfix_str("reading prompts")
        statements = statements_of(host.text, edits)
        asking = [
            (e, one)
            for e, (edit, statement) in enumerate(zip(edits, statements, strict=True))
            for one in lessons_of(host.text, self._turns, config, edit, statement)
        ]
        chunks, states = read(asking)
        others: list[tuple[int, Lesson]] = []
        for e, (draft, edit) in enumerate(part):
            mine = [i for i, (owner, _) in enumerate(asking) if owner == e]
            ends = torch.stack([states.layers[self._relation][i][-1] for i in mine])
            gate = self._units(len(self._layers), ends[None])[0].half().cpu()
            gates[str(edit.id)] = gate
            lessons = [asking[i][1] for i in mine]
            named = [(one.line.ids, one.subject) for one in lessons]
            self._keys_of(draft, named, [self._spans(states.layers, asking, i) for i in mine], keys)
            similar = self._similar(gate, [one.plain for one in lessons])
            others += [(e, one) for one in other_lessons(host.text, self._turns, config, edit, similar)]
        if others:
            bar.set_postfix_str("reading what stays")
            more = [replace(c, lines=[i + len(asking) for i in c.lines]) for c in read(others)[0]]
            chunks = [*chunks, *more]

        def advance(how_far: str) -> None:
            bar.update(len(edits))
            bar.set_postfix_str(how_far)

        return teach(host, self._recall, config, edits, [*asking, *others], chunks, advance)

    def _similar(self, gate: Tensor, plain: Sequence[bool]) -> Tensor:
        """[M]: how similar each neutral prompt's end is to the edit's prompts of its form."""
        if self._calibration is None:
            raise ValueError("the model is not calibrated yet; make an edit first")
        cosines = self._calibration.others.cpu() @ gate.float().T
        form = torch.tensor(plain)
        front = len(PLAIN)
        parts = [cosines[:front, form], cosines[front:, ~form]]
        return torch.cat([part.amax(1) if part.shape[1] else part.new_zeros(len(part)) for part in parts])

    def _units(self, index: int, states: Tensor, begins: Tensor | None = None) -> Tensor:
        calibration = self._calibration
        if calibration is None:
            raise ValueError("the model is not calibrated yet; make an edit first")
        return calibration.apply(index, states.to(calibration.mean.device), begins)

    def _spans(
        self, states: Mapping[int, list[Tensor]], lessons: Sequence[tuple[int, Lesson]], i: int
    ) -> Tensor:
        """[R,S,K]: the subject in a lesson, calibrated."""
        span = lessons[i][1].subject
        return self._span(torch.stack([states[layer][i][: len(span)] for layer in self._layers]), span)

    def _span(self, states: Tensor, span: range) -> Tensor:
        """[R,S,K] of states [R,S,D] of the tokens ``span`` of a text."""
        begins = None
        if self._host.text.bos_id is None and span[0] == 0:
            begins = torch.zeros(1, len(span), dtype=torch.bool)
            begins[0, 0] = True
        return torch.cat([self._units(r, one[None], begins) for r, one in enumerate(states)]).cpu()

    def _keys_of(
        self,
        draft: Entry,
        named: Sequence[tuple[Sequence[int], range]],
        spans: Sequence[Tensor],
        keys: dict[str, list[Tensor]],
    ) -> None:
        """A key for each way in which tokens write the subject; one more where none would do in a prompt.

        Args:
            named: the ids of the edit's prompts, and where in each the subject stands.
            spans: its states [R,S,K] there.
        """
        known = [*map(self.memory.get, draft.keys), *keys.get(draft.subject, ())]
        groups: dict[tuple[object, ...], list[Tensor]] = {}
        for (ids, place), span in (*zip(named, spans, strict=True), *(() if known else self._spelled(draft))):
            first = self._host.text.bos_id is None and place[0] == 0
            groups.setdefault((first, *(ids[t] for t in place)), []).append(span)
        others = [self.memory.get(n) for n in self.memory.ids()[-self.config.negatives :]]
        others += [key for name, some in keys.items() if name != draft.subject for key in some]
        mine = keys.setdefault(draft.subject, [])
        for group in groups.values():
            key = contrast(torch.stack(group), others, self.config)
            if not any(self._same(old, key) for old in known):
                mine.append(key)
        for span in spans:
            if not any(self._recognises(key, span) for key in (*known, *mine)):
                mine.append(span)
        if not mine:
            del keys[draft.subject]

    def _spelled(self, draft: Entry) -> list[tuple[tuple[list[int], range], Tensor]]:
        """Other ways to write the subject, and its states there."""
        written = spellings(self._host.text, draft.subject)
        states = think_states(self._host, [ids for ids, _ in written], self._layers)
        return [
            ((ids, span), self._span(states[:, k, span[0] : span[-1] + 1].float(), span))
            for k, (ids, span) in enumerate(written)
        ]

    def _recognises(self, key: Tensor, span: Tensor) -> bool:
        if key.shape[1] > span.shape[1]:
            return False
        valid = torch.ones(span.shape[1], dtype=torch.bool)
        scores = span_scores(F.normalize(span.float(), dim=-1), valid, F.normalize(key.float(), dim=-1))
        votes = (scores[:, -1] > (self._threshold() or 0.0) + 1e-3).sum()
        return int(votes) >= self.memory.quorum

    def _same(self, old: Tensor, key: Tensor) -> bool:
        return old.shape == key.shape and bool(((F.normalize(key, dim=-1) * old).sum(-1) > 0.98).all())

    # ------------------------------------------------------------------ looking, saving

    def explain(self, prompt: Prompt) -> Explanation:
        """Which subjects were found, by which layers; what the prompt's end asks for; what speaks."""
        return explain_answer(
            self._host,
            self._listener,
            self._calibration,
            self.entries,
            self._owner,
            prompt,
            self._longest,
            self._gates,
        )

    def state(self) -> State:
        """Keys, values, gates, the calibration, and which edit they belong to."""
        tensors = {f"key.{name}": tensor for name, tensor in self.memory.state_dict().items()}
        values, entries = pack(self.entries.values())
        tensors |= values
        tensors |= {f"gate.{id}": gate for id, gate in self._gates.items()}
        if self._calibration is not None and self.entries:  # one that was made for nothing is not kept
            tensors |= {f"calibration.{name}": t for name, t in self._calibration.tensors().items()}
        return State(tensors, {"entries": entries, "next": self._next, "config": asdict(self.config)})

    def restore(
        self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: Mapping[str, Edit]
    ) -> None:
        """Take over what `state` gave."""
        part = {
            kind: {n.removeprefix(kind + "."): t for n, t in tensors.items() if n.startswith(kind + ".")}
            for kind in ("key", "gate", "calibration")
        }
        size = self._shape().size
        entries = unpack(tensors, meta["entries"], edits, (size,))
        layers = (*self._layers, self._relation)
        made = None
        if part["calibration"]:
            made = Calibration.of(part["calibration"], layers, self._host.anatomy.width).to(
                self._host.text.device
            )
        for entry in entries.values():
            for id in entry.edits:
                gate = part["gate"].get(id)
                if gate is None or gate.ndim != 2 or gate.shape[1] != self._width() or made is None:
                    raise ValueError(
                        f"the saved gate of edit {id!r} is missing or damaged; take a whole copy"
                    )
        self.memory.load_state_dict(part["key"])
        self.entries, self._calibration = entries, made
        self._gates.clear()
        self._gates.update(part["gate"])
        self._owner = {key: entry.subject for entry in entries.values() for key in entry.keys}
        self._next, self._stamp = int(meta["next"]), len(entries)
        self._longest = max((self.memory.get(n).shape[1] for n in self.memory.ids()), default=1)
        self._forms.clear()
        self._ready.clear()
