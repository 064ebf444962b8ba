"""ELDER over LLP's retrieval: an edit's experts are used by the answer alone, where the edit is asked for.

An edit is routed by a query of its own, made of its subject's key and of the words that ask for it. Routers
stay as they start, so that what it is routed to never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...edits import Edit, EditTable
from ...interface import Host, State
from ...model.architecture import evaluating
from ...model.attention import lowest_layer
from ...model.hooks import Hook
from ...model.row_state import check_holds
from ...retrieval.lessons import Lesson, lessons_of
from ...retrieval.passes import Chunk, FromLayer, Run, run_lines, run_whole
from ...retrieval.retriever import Prepared
from ...saving.checked import check_rest, names, shaped
from ...text.chat import Prompt
from ..llp.learning import Learner, batches
from ..places import find_places
from ..retrieval_method import RetrievalMethod
from .codes import distances
from .config import ELDERConfig
from .experts import Experts, Routing, Used, mixing
from .explain import Answered, uses_of
from .known import Removed
from .training import Batch, train

__all__ = ["ELDER"]

_GAIN = 4.0  # length of a query in units of sqrt(its width): the larger, the more two routers' logits differ


class _Learned(NamedTuple):
    """The experts, and the query [q] of each edit."""

    experts: Experts
    queries: dict[str, Tensor]


class ELDER(RetrievalMethod):
    """Mixture of LoRAs over a base model whose weights never change, used where an edit is asked for.

    All edits share the LoRAs: `experts.parameter_count` has how many parameters there are, with however many
    edits.

    Args:
        host: the model.
        config: constants; layers left open are chosen from the model's depth.

    Raises:
        ValueError: layers out of range.
        UnsupportedModelError: a layer without a linear that can be edited.
    """

    def __init__(self, host: Host, config: ELDERConfig) -> None:
        config = config.resolve(len(host.architecture.layers))
        check_holds(host.model, host.architecture)
        self._places = find_places(host.model, host.architecture, config.edit_layers or ())
        super().__init__(host, config, config.retrieval)
        self._width = self.retriever.room.width + host.architecture.width
        self._upper = FromLayer(host.model, host.architecture, config.first)
        # What stands before the answer is run once where layers keep keys and values, and nothing else.
        attends = lowest_layer(host.model, host.architecture) <= config.first
        self._run: Run = run_lines if attends else run_whole
        self._learned = _Learned(self._fresh(), {})
        self._routes: dict[str, Routing] = {}

    @property
    def experts(self) -> Experts:
        """All learnable parameters."""
        return self._learned.experts

    def _fresh(self) -> Experts:
        c = self.config
        return Experts(self._places, self._width, c.n_experts, c.top_k, c.rank, False, c.seed)

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Listen, decide before the first edited layer, add the experts' output."""
        tracker = self._host.tracker

        def decide(_m: nn.Module, _args: Any, _kwargs: Any) -> None:
            call = tracker.current
            if call is not None:
                call.scratch = self._used(self.retriever.asked(call))

        before = Hook(self._host.architecture.layers[self.config.first], "before", decide)
        return [*self.retriever.room.hooks(), before, *mixing(self._host, self._places, lambda: self.experts)]

    def _used(self, asked: Sequence[Sequence[tuple[str, ...]]]) -> Used | None:
        """The experts in use at each token; of several edits, those of the one that is asked for most."""
        spoken = [
            (b * len(row) + t, ids[0]) for b, row in enumerate(asked) for t, ids in enumerate(row) if ids
        ]
        if not spoken:
            return None
        routes = [self._routed(id) for _, id in spoken]
        picks, weights = (torch.cat(parts, dim=1) for parts in zip(*routes, strict=True))
        return Used(torch.tensor([at for at, _ in spoken]), picks, weights)

    def _routed(self, id: str) -> Routing:
        """[l,1,k]: where an edit is routed."""
        found = self._routes.get(id)
        if found is None:
            found = self._routes[id] = self.experts.route(self._learned.queries[id][None])
        return found

    # ------------------------------------------------------------------ edits

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Train the shared LoRAs on ``edits``, a few at a time, in their order."""
        prepared = Prepared(self.retriever.drafts(edits, replaced))
        gone = {str(edit.id) for edit in replaced}
        kept = {id: query for id, query in self._learned.queries.items() if id not in gone}
        learned = _Learned(self.experts.copy(), kept)
        self._learn(learned, edits, prepared, progress)
        self._put(prepared, learned)

    def forget(self, edits: Sequence[Edit], *, progress: bool, retrain: bool = False) -> tuple[Removed, ...]:
        """Nothing asks for the edits any more; what was learned stays in the shared LoRAs.

        ``retrain=True`` starts from fresh LoRAs and learns the kept edits anew: the only true removal, at the
        price of learning them all.
        """
        gone = {str(edit.id) for edit in edits}
        kept = {id: query for id, query in self._learned.queries.items() if id not in gone}
        learned = _Learned(self.experts, kept)
        if retrain:
            left = [self.retriever.edit(id) for id in kept]
            learned = _Learned(self._fresh(), {})
            self._learn(learned, left, Prepared(self.retriever.drafts(left, ())), progress)
        self._put(self.retriever.without(edits), learned)
        return tuple(Removed(edit, None, None) for edit in edits)

    def _learn(self, learned: _Learned, edits: Sequence[Edit], prepared: Prepared, progress: bool) -> None:
        """Train ``learned`` on edits; ``prepared`` gets what they are recognised by."""
        c, host, asking = self.config, self._host, prepared.asking
        before: list[Edit] = []
        with host.tracker.off(), evaluating(host.model):
            memory, calibration = self.retriever.memory, self.retriever.room.calibrate()
            learner = Learner(host, self._upper, c.retrieval, memory, calibration, self._run)
            for some, bar, advance in batches(edits, c.batch_size, c.steps, progress):
                part = [(prepared.drafts[str(edit.subject)], edit) for edit in some]
                lessons, chunks = learner.read(part, prepared.keys, asking.questions, bar)
                queries = {str(edit.id): self._query(edit, prepared) for edit in some}
                batch = self._beside(learned, before, queries, lessons, chunks)
                train(host, self._upper, learned.experts, c, batch, advance)
                learned.queries.update(queries)
                before += some
            asking.forms.update({str(edit.id): self.retriever.room.answers_of(edit) for edit in edits})

    def _beside(
        self,
        learned: _Learned,
        before: Sequence[Edit],
        queries: Mapping[str, Tensor],
        lessons: Sequence[tuple[int, Lesson]],
        chunks: Sequence[Chunk],
    ) -> Batch:
        """New edits with earlier ones, those that share the most experts with them, which are not to be lost.

        Args:
            before: edits of the same call, learned already.
            queries: of new edits.
        """
        c, host = self.config, self._host
        known = {str(edit.id): edit for edit in before}
        ids = [id for id in learned.queries if id in known or id in self.retriever.on] if c.replay else []
        new = torch.stack(list(queries.values()))
        if not ids:
            return Batch(lessons, chunks, new)
        old = torch.stack([learned.queries[id] for id in ids])
        mine, theirs = (learned.experts.route(some).picks for some in (new, old))
        apart = distances(theirs, mine, learned.experts.n).sum(1)
        most = apart.sort(stable=True).indices[: c.replay]
        again = [
            (len(queries) + n, lesson)
            for n, i in enumerate(most.tolist())
            for lesson in self._own(known.get(ids[i]) or self.retriever.edit(ids[i]))
        ]
        more = self._run(host, self._upper, [one.line for _, one in again], [()] * len(again), ())[0]
        rest = [replace(chunk, lines=[len(lessons) + i for i in chunk.lines]) for chunk in more]
        return Batch([*lessons, *again], [*chunks, *rest], torch.cat([new, old[most.to(old.device)]]))

    def _own(self, edit: Edit) -> list[Lesson]:
        """An edit's own prompt, in plain text and in chat."""
        return lessons_of(self._host.text, self.config.retrieval, edit, None)[:2]

    def _query(self, edit: Edit, prepared: Prepared) -> Tensor:
        """[q] float32: the direction of the subject's key, and that of the words that ask."""
        subject = str(edit.subject)
        numbers = prepared.drafts[subject].keys
        if numbers:
            key = self.retriever.memory.get(numbers[0])
        else:  # as it will be stored
            key = F.normalize(prepared.keys[subject][0].float(), dim=-1).half()
        asked = next(one for one in prepared.asking.questions[str(edit.id)] if one.asks)
        whom = F.normalize(key.float().mean((0, 1)), dim=-1)
        both = torch.cat([whom.cpu(), asked.vector.float().cpu()])
        return (both * _GAIN * (self._width / 2) ** 0.5).to(self._host.text.device)

    def _take(self, learned: _Learned | None) -> None:
        self._learned, self._routes = learned or self._learned, {}

    # ------------------------------------------------------------------ looking, saving

    def explain(self, prompt: Prompt) -> Answered:
        """Which edit is asked for, and its experts."""
        found = self.retriever.explain(prompt)
        uses = [uses_of(self._places, self._routed(str(edit.id))) for edit in found.edits[:1]]
        return Answered(**vars(found), uses=uses[0] if uses else ())

    def _state(self) -> State:
        tensors, queries = dict(self.experts.named()), self._learned.queries
        if queries:
            tensors["queries"] = torch.stack([query.cpu() for query in queries.values()])
        return State(tensors, {"queries": list(queries)})

    def _read(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> _Learned:
        experts, ids = self._fresh(), names(meta["queries"], "the edits that have queries")
        if sorted(ids) != sorted(edits):
            raise ValueError("the queries are those of other edits, or an edit has none")
        check_rest(tensors, (*experts.named(), *(["queries"] if ids else [])))
        experts.read(tensors)
        queries = shaped(tensors, "queries", (len(ids), self._width), torch.float32) if ids else ()
        device = experts.gates.device
        return _Learned(experts, {id: query.to(device) for id, query in zip(ids, queries, strict=True)})
