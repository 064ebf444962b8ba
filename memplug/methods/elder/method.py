"""ELDER: mixtures of LoRAs in the later layers, routed once a row, by the end of its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...attending import check_recomputed
from ...calls import Call
from ...chat import Prompt, question
from ...edits import Edit, EditTable
from ...holding import check_holds, hold
from ...hooks import Hook
from ...text import Batch
from ...think import think_hooks
from ..base import Host, State
from ..continuing import Continuing, unflat
from .config import ELDERConfig
from .explain import Explanation, explained
from .knowledge import Knowledge, Seen
from .learning import Learner
from .places import find_places, find_site
from .routed import Routed
from .rows import see
from .subjects import Subjects

__all__ = ["ELDER", "Removed"]


class Removed(NamedTuple):
    """What is left of a deleted edit.

    Attributes:
        edit: the edit.
        covered_by: another edit whose code, and query if that is asked for, would let the deleted edit's
            prompt into scope; None where there is none. The prompt itself is kept out, but rows like it
            that are nearer to the other edit are not.
        distance: Hamming distance to the nearest code, None where the prompt is not covered.
    """

    edit: Edit
    covered_by: Edit | None
    distance: int | None


class ELDER:
    """Mixture of LoRAs with guided routing and deferral, over a base model whose weights never change.

    A row's query is read at its last prompt token, once; it decides for all tokens of the row, those to be
    generated included. In a plain forward over prompt and answer, `Plug.prompt_lengths` says where the
    prompt ends; unsaid, the last real token counts. A text given in pieces with a cache is decided by the
    first piece.

    All edits share the LoRAs and routers: sum over edited linears (p, o) of N r (p + o) + N q + N learnable
    parameters, however many edits there are (3,164,184 for six linears of 11008 to 4096 with q = 11008,
    N = 4, r = 8).

    Args:
        host: the model.
        config: constants; layers left open are chosen from the model's depth.

    Raises:
        ValueError: layers out of range.
        UnsupportedModelError: a layer without a linear that can be edited.
    """

    def __init__(self, host: Host, config: ELDERConfig) -> None:
        self.config = config.resolve(len(host.anatomy.layers))
        self._host, self._continuing = host, Continuing()
        check_holds(host.model, host.anatomy)
        self._places = tuple(find_places(host.model, host.anatomy, self.config.edit_layers or ()))
        layer = self.config.query_layer or 0
        self._site = find_site(host.model, host.anatomy, layer, self.config.query)
        subjects = None
        if self.config.subjects:
            subjects = Subjects(host, self.config.subject_layer or 0, self.config.subject_threshold)
        self.known = Knowledge(self.config, self._places, self._site, subjects)
        self._learner = Learner(host, self.config, self._places, self._site)

    @property
    def active(self) -> bool:
        """Whether any edit is in force."""
        return bool(self.known.deferral.on.any())

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Look at the query, decide before the first edited layer, add the experts' output."""
        tracker, anatomy = self._host.tracker, self._host.anatomy

        def look(states: Tensor) -> None:
            call = tracker.current
            if call is not None and self._held(call) is None:
                call.scratch = unflat(states.detach(), len(call.valid))

        def decide(_m: nn.Module, _args: Any, _kwargs: Any) -> None:
            call = tracker.current
            if call is not None:
                call.scratch = self._decide(call)

        def make(index: int) -> Hook:
            def after(_m: nn.Module, args: tuple[Any, ...], _kwargs: Any, output: Tensor) -> Tensor | None:
                call = tracker.current
                if call is None or not isinstance(call.scratch, Routed):
                    return None
                check_recomputed(anatomy.layers[self._places[index].layer])
                return call.scratch.apply(self.known.experts, index, args[0], output)

            return Hook(self._places[index].module, "after", after)

        before = Hook(anatomy.layers[self._places[0].layer], "before", decide)
        think = [] if self.known.subjects is None else [self.known.subjects.layer]
        return [
            *think_hooks(anatomy, tracker, tuple(think)),
            self._site.hook(anatomy, look),
            before,
            *map(make, range(len(self._places))),
        ]

    def _seen(self, call: Call) -> Seen:
        """What decides about the rows of a forward that begins their texts."""
        states, asked = call.scratch, call.valid
        if call.whole and call.prompt is None:  # as it mostly is: no row ends before the others
            query = states[:, -1].float()
        else:
            ends = call.prompt_end()
            query = states[torch.arange(len(ends), device=states.device), ends.to(states.device)].float()
            asked = asked & (torch.arange(asked.shape[1], device=asked.device) <= ends[:, None])
        if self.known.subjects is None:
            return Seen(query)
        return Seen(query, call.states[self.known.subjects.layer].detach(), asked)

    def _held(self, call: Call) -> Routed | None:
        held = call.held
        mine = isinstance(held, Routed) and held.owner is self and len(held) == len(call.valid)
        return held if mine else None

    def _decide(self, call: Call) -> Routed | None:
        """What the rows use: as decided when their cache was begun, or now if this is the beginning."""
        held, known, cache = self._held(call), self.known, call.cache
        if held is not None and held.version == known.version:
            return held
        if held is None and call.past and call.valid.shape[1] == 1:
            return None  # a cache begun without us; what follows is an answer's token, not a prompt's
        seen = self._seen(call) if held is None else held.seen
        if held is None and cache is None and not call.past:
            seen = self._continuing.keep(call, seen, Seen.select)
        routing, decision = known.decide(seen)
        length = held.length if held is not None else call.past + call.prompt_width
        routed = Routed(self, known.version, seen, decision.scope, routing, length)
        if cache is not None:
            hold(cache, routed)
        return routed

    # ------------------------------------------------------------------ edits

    @contextmanager
    def _changing(self) -> Iterator[Knowledge]:
        """A copy of the knowledge, for changing; it takes its place if nothing goes wrong."""
        tracker, known = self._host.tracker, self.known.copy()
        try:
            with tracker.off():
                yield known
        except BaseException:
            with tracker.gate.changing(last=False):
                self.known.prune()
            raise
        with tracker.gate.changing():
            self.known.take(known)

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens or a prompt longer than the context."""
        for edit in edits:
            self._learner.pair(edit.prompt, edit.target)

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Train the shared LoRAs and routers on ``edits``, a few at a time, in their order."""
        with self._changing() as known:
            gone = [known.records.pop(str(edit.id)).number for edit in replaced]
            known.deferral.remove(gone, block=False)
            self._learner.learn(known, edits, progress)

    def forget(self, edits: Sequence[Edit], *, progress: bool, retrain: bool = False) -> tuple[Removed, ...]:
        """Take the edits' codes out and keep their own queries out of scope.

        What was learned stays in the shared LoRAs and may still show where another edit covers the same
        inputs; the result says which. ``retrain=True`` starts from fresh LoRAs and learns the kept edits
        anew: the only true removal, at the price of learning them all.
        """
        with self._changing() as known:
            gone = [known.records.pop(str(edit.id)) for edit in edits]
            numbers = [record.number for record in gone]
            queries = known.deferral.queries[[known.deferral.numbers.index(number) for number in numbers]]
            known.deferral.remove(numbers, block=True)
            if retrain:
                self._relearn(known, progress)
        return self._left([record.edit for record in gone], queries)

    def _relearn(self, known: Knowledge, progress: bool) -> None:
        kept = list(known.records.values())
        mine = {record.number for record in kept}  # blocked where they are switched off, and again below
        blocks = {number: q for number, q in known.deferral.blocks.items() if number not in mine}
        known.clear()
        known.deferral.blocks = blocks
        if kept:
            self._learner.learn(known, [record.edit for record in kept], progress)
        self._switch(known, [record.edit for record in kept if not record.on], False)

    @torch.no_grad()
    def _left(self, edits: Sequence[Edit], queries: Tensor) -> tuple[Removed, ...]:
        deferral, numbered = self.known.deferral.copy(), self.known.numbered()
        deferral.blocks = {}
        decision = deferral.decide(queries, self.known.experts.route(queries).picks)
        found = decision.nearest if deferral.threshold is None else decision.similar
        return tuple(
            Removed(edit, numbered[int(n)], int(d)) if scope else Removed(edit, None, None)
            for edit, scope, n, d in zip(edits, decision.scope, found, decision.distance, strict=True)
        )

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Take edits' codes out and keep their queries out of scope, or undo that."""
        with self._changing() as known:
            self._switch(known, edits, on)

    def _switch(self, known: Knowledge, edits: Sequence[Edit], on: bool) -> None:
        for edit in edits:
            known.records[str(edit.id)] = replace(known.records[str(edit.id)], on=on)
        known.deferral.switch([known.records[str(edit.id)].number for edit in edits], on)

    # ------------------------------------------------------------------ looking, saving

    @torch.no_grad()
    def explain(self, prompt: Prompt) -> Explanation:
        """The allocation linear by linear, the nearest edit's code, and whether the base model answers.

        Raises:
            ValueError: the prompt is empty.
        """
        if not question(prompt).strip():
            raise ValueError(f"the prompt is empty ({prompt!r}); give it some text")
        with self._host.tracker.off():
            batch = self._host.text.batch([self._host.text.encode(prompt)])
            seen = self.see(batch)
            routing, decision = self.known.decide(seen, every=True)
        routing = routing or self.known.experts.route(self.known.prepare(seen.query))
        d = self.known.deferral
        edits = self.known.numbered()
        return explained(prompt, self._places, routing, decision, edits, d.epsilon, d.threshold)

    def see(self, batch: Batch) -> Seen:
        """What is looked at in a batch of prompts."""
        return see(self._host, self._site, self._places[0].layer, self.known.layer, batch)

    def state(self) -> State:
        """Everything learned."""
        return self.known.state()

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        with self._host.tracker.gate.changing():
            self.known.restore(tensors, meta, edits)
