"""ELDER: mixtures of LoRAs in the later layers, routed by what is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...attending import check_recomputed
from ...chat import Prompt, question
from ...checked import check_rest
from ...edits import Edit, EditTable
from ...holding import check_holds
from ...hooks import Hook
from ..base import Host, State
from ..llp.retriever import PARTS, Prepared
from .answer import AnswerScope
from .config import ELDERConfig
from .explain import Answered, Explanation, uses_of
from .knowledge import Knowledge
from .learning import Learner
from .places import find_places
from .routed import Used
from .row import RowScope

__all__ = ["ELDER", "Removed"]


class Removed(NamedTuple):
    """What is left of a deleted edit.

    Attributes:
        edit: the edit.
        covered_by: another edit whose code would let the deleted edit's prompt into scope; None where there
            is none, as with scope "answer". The prompt itself is kept out, but rows like it that are nearer
            to the other edit are not.
        distance: Hamming distance to the nearest code, None where the prompt is not covered.
    """

    edit: Edit
    covered_by: Edit | None
    distance: int | None


class ELDER:
    """Mixture of LoRAs with guided routing and deferral, over a base model whose weights never change.

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
        self.config = config = config.resolve(len(host.anatomy.layers))
        self._host = host
        check_holds(host.model, host.anatomy)
        self._places = tuple(find_places(host.model, host.anatomy, config.edit_layers or ()))
        kind = RowScope if config.scope == "row" else AnswerScope
        self.scope: RowScope | AnswerScope = kind(host, config, lambda: self.known)
        self.known = Knowledge(config, self._places, self.scope.width)
        self._learner = Learner(host, config, self.scope)

    @property
    def active(self) -> bool:
        """Whether any edit is in force."""
        return bool(self.known.on())

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Look at the row, decide before the first edited layer, add the experts' output."""
        tracker, anatomy = self._host.tracker, self._host.anatomy

        def decide(_m: nn.Module, _args: Any, _kwargs: Any) -> None:
            call = tracker.current
            if call is not None:
                call.scratch = self.scope.decide(call)

        def make(index: int) -> Hook:
            def after(_m: nn.Module, args: tuple[Any, ...], _kwargs: Any, output: Tensor) -> Tensor | None:
                call = tracker.current
                if call is None or not isinstance(call.scratch, Used):
                    return None
                check_recomputed(anatomy.layers[self._places[index].layer])
                return call.scratch.apply(self.known.experts, index, args[0], output)

            return Hook(self._places[index].module, "after", after)

        before = Hook(anatomy.layers[self.config.first], "before", decide)
        return [*self.scope.hooks(), before, *map(make, range(len(self._places)))]

    # ------------------------------------------------------------------ edits

    @contextmanager
    def _changing(self, prepared: Sequence[Prepared]) -> Iterator[Knowledge]:
        """A copy of the knowledge, for changing; it takes its place if nothing goes wrong, with what is
        prepared by then for the retriever."""
        tracker, known = self._host.tracker, self.known.copy()
        with tracker.off():
            yield known
        with tracker.gate.changing():
            if isinstance(self.scope, AnswerScope):
                for one in prepared:
                    self.scope.retriever.put(one)
            self.known.take(known)

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens or a prompt longer than the context."""
        for edit in edits:
            self._host.text.pair(edit.prompt, edit.target, stop=self.config.train_stop)

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Train the shared LoRAs and routers on ``edits``, a few at a time, in their order."""
        prepared: list[Prepared] = []
        with self._changing(prepared) as known:
            for edit in replaced:
                known.records.pop(str(edit.id))
                known.blocks.pop(str(edit.id), None)
            if isinstance(self.scope, AnswerScope):
                coming = self.scope.begin(edits, replaced)
                self._learner.learn(known, edits, coming, progress)
                prepared.append(self.scope.prepared(coming))
            else:
                self._learner.learn(known, edits, None, progress)

    def forget(self, edits: Sequence[Edit], *, progress: bool, retrain: bool = False) -> tuple[Removed, ...]:
        """Take the edits' codes out, so that nothing asks for them any more.

        What was learned stays in the shared LoRAs. With scope "row" it may still show where another edit
        covers the same inputs; the result says which. ``retrain=True`` starts from fresh LoRAs and learns the
        kept edits anew: the only true removal, at the price of learning them all.
        """
        prepared: list[Prepared] = []
        with self._changing(prepared) as known:
            gone = [known.records.pop(str(edit.id)) for edit in edits]
            known.blocks |= {str(record.edit.id): record.query for record in gone}
            if isinstance(self.scope, AnswerScope):
                known.blocks = {}
                prepared.append(self.scope.retriever.without(edits))
            if retrain:
                self._relearn(known, progress)
        return tuple(self._left(record.edit, record.query) for record in gone)

    def _relearn(self, known: Knowledge, progress: bool) -> None:
        kept, blocks = list(known.records.values()), known.blocks
        known.clear()
        known.blocks = {id: query for id, query in blocks.items() if id not in {str(r.edit.id) for r in kept}}
        if kept:
            self._learner.learn(known, [record.edit for record in kept], None, progress)
        known.switch([record.edit for record in kept if not record.on], False)

    def _left(self, edit: Edit, query: Tensor) -> Removed:
        on = self.known.on()
        if isinstance(self.scope, AnswerScope) or not on:
            return Removed(edit, None, None)
        decision = self.scope.look(query[None])[1]
        distance = int(decision.distance[0])
        if distance >= (self.config.epsilon or 0):
            return Removed(edit, None, None)
        return Removed(edit, on[int(decision.nearest[0])].edit, distance)

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Take edits' codes out and keep their queries out of scope, or undo that."""
        prepared: list[Prepared] = []
        with self._changing(prepared) as known:
            known.switch(edits, on)
            if isinstance(self.scope, AnswerScope):
                known.blocks = {}
                prepared.append(self.scope.retriever.switched(edits, on))

    # ------------------------------------------------------------------ looking, saving

    @torch.no_grad()
    def explain(self, prompt: Prompt) -> Answered | Explanation:
        """Which edit is asked for, by which experts, and whether the base model answers.

        Raises:
            ValueError: the prompt is empty.
        """
        if not question(prompt).strip():
            raise ValueError(f"the prompt is empty ({prompt!r}); give it some text")
        if isinstance(self.scope, AnswerScope):
            found = self.scope.retriever.explain(prompt)
            edit = found.recalled.edits[0] if found.recalled else None
            uses = () if edit is None else uses_of(self._places, self.known.routed(str(edit.id)))
            return Answered.of(found, uses)
        with self._host.tracker.off():
            (query,) = self.scope.queries([prompt])
        on, epsilon = self.known.on(), self.config.epsilon or 0
        uses = uses_of(self._places, self.known.experts.route(query[None]))
        if not on:
            return Explanation.of(prompt, uses, None, None, epsilon, bool(self.known.blocks))
        decision = self.scope.look(query[None])[1]
        nearest, distance = on[int(decision.nearest[0])].edit, int(decision.distance[0])
        return Explanation.of(prompt, uses, nearest, distance, epsilon, bool(decision.blocked[0]))

    def state(self) -> State:
        """Everything learned."""
        tensors, meta = self.known.state()
        if isinstance(self.scope, AnswerScope):
            more, meta["retrieval"] = self.scope.retriever.state()
            tensors |= more
        return State(tensors, meta)

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        mine = {name: tensor for name, tensor in tensors.items() if not name.startswith(PARTS)}
        rest = {name: tensor for name, tensor in tensors.items() if name.startswith(PARTS)}
        saved = self.known.read(mine, meta, edits)
        count = len(saved.experts)
        known = ("queries", "picks", *(("blocks",) if saved.blocks else ()))
        check_rest(mine, (*known, *(f"experts.{i}" for i in range(count))))
        if isinstance(self.scope, RowScope):
            check_rest(rest, ())
            with self._host.tracker.gate.changing():
                self.known.restore(saved, meta)
            return
        found = self.scope.retriever.read(rest, meta["retrieval"], edits)
        with self._host.tracker.gate.changing():
            self.scope.retriever.take_over(found)
            self.known.restore(saved, meta)
