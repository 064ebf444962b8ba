"""ELDER as published: mixtures of LoRAs with guided routing, for rows whose codes are near to some edit's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ...edits import Edit, EditTable
from ...interface import Host, State
from ...model.hooks import Hook
from ...model.row_state import check_holds
from ...retrieval.lessons import Lesson
from ...retrieval.passes import FromLayer, Line, run_whole
from ...text.chat import Prompt
from ...text.printable import printable
from ..llp.learning import batches
from ..places import find_places, find_site
from ..prompt_end import PromptEnd
from .codes import Allocation, Near, blocked, draw, nearest
from .config import ELDERConfig
from .experts import Experts, Used, mixing
from .explain import Explanation, uses_of
from .known import Known, Record, Removed
from .training import Batch, train

__all__ = ["PublishedELDER"]

_REFUSAL = "elder", 'scope="answer"'


class PublishedELDER:
    """Mixture of LoRAs with guided routing and deferral, over a base model whose weights never change.

    All edits share the LoRAs and routers: sum over edited linears (p, o) of N r (p + o) + N q + N learnable
    parameters, however many edits there are (3,164,184 for six linears of 11008 to 4096 with q = 11008,
    N = 4, r = 8). A row's query is the input of the linear below the first edited one, see `PromptEnd`.

    Args:
        host: the model.
        config: constants; layers left open are chosen from the model's depth.

    Raises:
        ValueError: layers out of range.
        UnsupportedModelError: a layer without a linear that can be edited.
    """

    def __init__(self, host: Host, config: ELDERConfig) -> None:
        self.config = config = config.resolve(len(host.architecture.layers))
        self._host = host
        check_holds(host.model, host.architecture)
        self._places = find_places(host.model, host.architecture, config.edit_layers or ())
        site = find_site(host.model, host.architecture, config.first - 1, "input")
        self._upper = FromLayer(host.model, host.architecture, config.first)
        self._width = site.width

        def goes_on(before: Tensor, now: Tensor) -> bool:
            return not bool(((before >= 0) | (now >= 0)).any())

        self._ends = PromptEnd(host, site, self._find, goes_on, _REFUSAL)
        self.known = Known(self._fresh())

    @property
    def active(self) -> bool:
        """Whether any edit is in force."""
        return bool(self.known.on())

    @property
    def experts(self) -> Experts:
        """All learnable parameters."""
        return self.known.experts

    def _fresh(self) -> Experts:
        c = self.config
        return Experts(self._places, self._width, c.n_experts, c.top_k, c.rank, True, c.seed)

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Look at the query, decide before the first edited layer, add the experts' output."""
        tracker = self._host.tracker

        def decide(_m: nn.Module, _args: Any, _kwargs: Any) -> None:
            call = tracker.current
            if call is None:
                return
            decision = self._ends.decide(call)
            call.scratch = None
            if decision is not None and decision.given:
                columns = call.valid.shape[1]
                rows = (decision.which >= 0).nonzero()[:, 0].repeat_interleave(columns)
                at = rows * columns + torch.arange(columns).repeat(len(rows) // columns)
                call.scratch = Used(at, *(one[rows.to(one.device)].transpose(0, 1) for one in decision.given))

        before = Hook(self._host.architecture.layers[self.config.first], "before", decide)
        return [self._ends.hook(), before, *mixing(self._host, self._places, lambda: self.experts)]

    def _find(self, query: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Picks and weights [B,l,k] of rows in scope; see `prompt_end.Find`."""
        near, out = self._near(query)
        scope = (near.distance < self.config.epsilon) & ~out
        which = torch.where(scope, near.place, -1).cpu()
        given = [one.transpose(0, 1) for one in self.experts.route(query)] if bool(scope.any()) else []
        return which, given

    def _near(self, query: Tensor) -> tuple[Near, Tensor]:
        """The nearest edits in force to queries [B,q], and BoolTensor [B] of rows that are kept out."""
        on = self.known.on()
        out = blocked(query, list(self.known.blocks.values()), [record.query for record in on])
        if not on:
            none = torch.full((len(query),), -1, device=query.device)
            return Near(none, none.fill_(1 << 40)), out
        codes = torch.stack([record.picks for record in on], dim=1)
        return nearest(self.experts.route(query).picks, codes, self.experts.n), out

    # ------------------------------------------------------------------ edits

    @contextmanager
    def _changing(self) -> Iterator[Known]:
        """A copy of what is known, for changing; it takes its place if nothing goes wrong."""
        now = self.known
        with self._host.tracker.off():
            known = Known(now.experts.copy(), dict(now.records), dict(now.blocks))
            yield known
        with self._host.tracker.gate.changing():
            self.known = known
            self._ends.version += 1

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens or a prompt longer than the context."""
        for edit in edits:
            self._host.text.pair(edit.prompt, edit.target, stop=self.config.train_stop)

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Train the shared LoRAs and routers on ``edits``, a few at a time, in their order."""
        with self._changing() as known:
            for edit in replaced:
                known.records.pop(str(edit.id))
                known.blocks.pop(str(edit.id), None)
            self._learn(known, edits, progress)

    def _learn(self, known: Known, edits: Sequence[Edit], progress: bool) -> None:
        c = self.config
        for some, _, advance in batches(edits, c.batch_size, c.steps, progress):
            given = self._allocate(known, some)
            batch = self._batch(some, given)
            picks = train(self._host, self._upper, known.experts, c, batch, advance).picks
            for e, (edit, allocation) in enumerate(zip(some, given, strict=True)):
                known.records[str(edit.id)] = Record(edit, allocation, batch.query[e], picks[:, e])

    def _batch(self, edits: Sequence[Edit], given: Sequence[Allocation]) -> Batch:
        """Each one's own prompt and answer, with the experts that it is given."""
        lessons = []
        for e, edit in enumerate(edits):
            pair = self._host.text.pair(edit.prompt, edit.target, stop=self.config.train_stop)
            line = Line(tuple(pair.ids), pair.start - 1)
            lessons.append((e, Lesson(line, range(0), range(0), True, isinstance(edit.prompt, str))))
        lines = [lesson.line for _, lesson in lessons]
        chunks = run_whole(self._host, self._upper, lines, [()] * len(lines), ())[0]
        text = self._host.text
        query = self._ends.read([text.row(text.encode(edit.prompt)) for edit in edits])
        still = self.config.router_lr == 0
        return Batch(lessons, chunks, query, None if still else torch.tensor(list(given)).transpose(0, 1))

    def _allocate(self, known: Known, edits: Sequence[Edit]) -> list[Allocation]:
        """The experts of each edit; edits with the same subject and target are rephrasings of one fact."""
        c, linears = self.config, len(self._places)
        facts = {(r.edit.subject, r.edit.target): r.allocation for r in known.records.values()}
        for edit in edits:
            fact = edit.subject, edit.target
            if fact not in facts:
                key = f"{edit.subject}\x1f{edit.target}"
                facts[fact] = draw(set(facts.values()), linears, c.n_experts, c.top_k, c.seed, key)
        return [facts[edit.subject, edit.target] for edit in edits]

    def forget(self, edits: Sequence[Edit], *, progress: bool, retrain: bool = False) -> tuple[Removed, ...]:
        """Take the edits' codes out, so that nothing asks for them any more.

        What was learned stays in the shared LoRAs. It may still show where another edit covers the same
        inputs; the result says which. ``retrain=True`` starts from fresh LoRAs and learns the kept edits
        anew: the only true removal, at the price of learning them all.
        """
        with self._changing() as known:
            gone = [known.records.pop(str(edit.id)) for edit in edits]
            known.blocks |= {str(record.edit.id): record.query for record in gone}
            if retrain:
                kept, known.records, known.experts = known.records, {}, self._fresh()
                self._learn(known, [record.edit for record in kept.values()], progress)
                for id, record in kept.items():
                    known.switch(id, record.on)
        return tuple(self._left(record) for record in gone)

    def _left(self, gone: Record) -> Removed:
        near, _ = self._near(gone.query[None])
        distance = int(near.distance[0])
        if distance >= self.config.epsilon:
            return Removed(gone.edit, None, None)
        return Removed(gone.edit, self.known.on()[int(near.place[0])].edit, distance)

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Take edits' codes out and keep their queries out of scope, or undo that."""
        with self._changing() as known:
            for edit in edits:
                known.switch(str(edit.id), on)

    # ------------------------------------------------------------------ looking, saving

    @torch.no_grad()
    def explain(self, prompt: Prompt) -> Explanation:
        """Which edit's code is nearest, and what the prompt is routed to."""
        text = self._host.text
        with self._host.tracker.off():
            query = self._ends.read([text.row(text.encode(prompt))])
        on, limit = self.known.on(), self.config.epsilon
        uses = uses_of(self._places, self.experts.route(query))
        near, out = self._near(query)
        if not on:
            what = "no edit is in force"
            return Explanation(prompt, (), f"deferred to the base model; {what}", (), math.nan, limit, uses)
        edit, distance = on[int(near.place[0])].edit, int(near.distance[0])
        edits: tuple[Edit, ...] = ()
        if bool(out[0]):
            reason = "deferred to the base model; most similar is an edit that was deleted or switched off"
        elif distance < limit:
            edits, reason = (edit,), f"in scope of edit {printable(edit.id)}: its code is near enough"
        else:
            reason = "deferred to the base model; no code is near enough"
        return Explanation(prompt, edits, reason, (edit,), distance, limit, uses)

    def state(self) -> State:
        """Parameters, codes and queries."""
        tensors, meta = self.known.state()
        return State(tensors, meta | {"config": asdict(self.config)})

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        known = Known.read(self._fresh(), tensors, meta, edits)
        with self._host.tracker.gate.changing():
            self.known = known
            self._ends.version += 1
