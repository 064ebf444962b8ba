"""Learning: edits in, a few at a time, with what they are trained beside; then codes anew."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...edits import Edit
from ..base import Host
from ..llp.lessons import Lesson
from ..llp.passes import Chunk
from .allocation import Allocation, draw, hot
from .answer import AnswerScope, Coming
from .config import ELDERConfig
from .knowledge import Knowledge, Record
from .row import RowScope
from .training import Batch, Guide, Trained, train
from .whole import Whole

__all__ = ["Learner"]

_LOOK = 32  # edits looked at together
_PASSES = 3
_LOST = 0.7  # nats a token; above, the answer is likelier not to come

Rows = tuple[list[tuple[int, Lesson]], Sequence["Chunk | Whole"]]
"""Lessons with the number of their edit, and chunks that hold them by their place."""

_NONE: Rows = [], []


class Learner:
    """Teaches edits to a `Knowledge`.

    Args:
        host: the model.
        config: with its layers filled in.
        scope: reads edits.
    """

    def __init__(self, host: Host, config: ELDERConfig, scope: AnswerScope | RowScope) -> None:
        self._host, self._config, self._scope = host, config, scope

    def learn(self, known: Knowledge, edits: Sequence[Edit], coming: Coming | None, progress: bool) -> None:
        """Train on ``edits`` in their order, `batch_size` at a time; an error leaves ``known`` half done.

        Args:
            coming: learns what the edits are known by (scope "answer").
        """
        c = self._config
        size, total = c.batch_size, len(edits) * (c.steps + 1)
        with tqdm(total=total, desc="learning", unit="step", disable=not progress, leave=False) as bar:
            for at in range(0, len(edits), size):
                self._learn_batch(known, edits[at : at + size], coming, bar)
                bar.update((at + len(edits[at : at + size])) * (c.steps + 1) - bar.n)
            if c.rehearse:  # what the last batches undid of those before them
                self._rehearse(known, [known.records[str(edit.id)] for edit in edits])
        if c.scope == "answer":  # as published, they stay
            known.refresh()

    def _learn_batch(self, known: Knowledge, edits: Sequence[Edit], coming: Coming | None, bar: Any) -> None:
        new, asked = self._read(edits, coming, bar)
        given = self._allocate(known, edits, [some[0] for some in asked])
        old = self._endangered(known, given)
        batch = self._batch(new, asked, given, old)

        def advance(how_far: str) -> None:
            bar.update(len(edits))
            bar.set_postfix_str(how_far)

        trained = self.train(known, batch, advance)
        known.learned += len(edits)
        for e, (edit, allocation) in enumerate(zip(edits, given, strict=True)):
            known.records[str(edit.id)] = Record(edit, allocation, asked[e][0], trained.picks[:, e])
        every_so_often = self._config.rehearse
        if (
            every_so_often
            and known.learned // every_so_often > (known.learned - len(edits)) // every_so_often
        ):
            self._rehearse(known, known.on())

    def _read(
        self, edits: Sequence[Edit], coming: Coming | None, bar: Any
    ) -> tuple[Rows, list[list[Tensor]]]:
        """Rows of new edits, and the queries that ask for each, its own prompt's first."""
        scope = self._scope
        if isinstance(scope, RowScope):
            return scope.rows(edits), [[query] for query in scope.queries([edit.prompt for edit in edits])]
        mine = coming or scope.begin(edits, ())
        return scope.read(mine, edits, bar), scope.queries(mine, edits)

    def _again(self, records: Sequence[Record]) -> Rows:
        """Rows of edits that were learned before."""
        edits = [record.edit for record in records]
        if not edits:
            return [], []
        return self._scope.rows(edits) if isinstance(self._scope, RowScope) else self._scope.again(edits)

    def _batch(
        self,
        new: Rows,
        asked: Sequence[Sequence[Tensor]],
        given: Sequence[Allocation],
        old: Sequence[Record],
    ) -> Batch:
        """New edits, with the queries that ask for each and the experts it is given, and earlier ones."""
        (lessons, chunks), (more, rest) = new, self._again(old)
        first, count = len(lessons), len(asked)
        lessons = [*lessons, *((count + e, lesson) for e, lesson in more)]
        chunks = [*chunks, *(replace(c, lines=[first + i for i in c.lines]) for c in rest)]
        own = torch.stack([*(some[0] for some in asked), *(record.query for record in old)])
        if self._config.guide != "guided":
            return Batch(lessons, chunks, own)
        every = [(query, goal) for goal, some in zip(given, asked, strict=True) for query in some]
        every += [(record.query, record.allocation) for record in old]
        picks = torch.tensor([goal for _, goal in every], device=own.device)
        goals = hot(picks, self._config.n_experts).transpose(0, 1)
        return Batch(lessons, chunks, own, Guide(torch.stack([query for query, _ in every]), goals))

    def train(self, known: Knowledge, batch: Batch, advance: Any = lambda text: None) -> Trained:
        """`training.train` with what this learner has."""
        return train(self._host, self._scope.upper, known.experts, self._config, batch, advance)

    def _rehearse(self, known: Knowledge, records: Sequence[Record]) -> None:
        """Look at these edits, and train those again that were lost, until none is."""
        for _ in range(_PASSES):
            lost = list[Record]()
            for at in range(0, len(records), _LOOK):
                part = records[at : at + _LOOK]
                batch = self._batch(_NONE, [], [], part)
                looked = train(
                    self._host, self._scope.upper, known.experts, replace(self._config, steps=0), batch
                )
                lost += [r for r, loss in zip(part, looked.worst, strict=True) if loss > _LOST]
            if not lost:
                return
            size = 2 * self._config.batch_size
            for at in range(0, len(lost), size):
                part = lost[at : at + size]
                ids = {str(record.edit.id) for record in part}
                old = self._endangered(known, [record.allocation for record in part], ids)
                self.train(known, self._batch(_NONE, [], [], [*part, *old]))

    def _endangered(
        self, known: Knowledge, given: Sequence[Allocation], but: Collection[str] = ()
    ) -> list[Record]:
        """The earlier edits to be replayed: those that share the most experts with the batch's."""
        count = self._config.replay
        on = [record for record in known.on() if str(record.edit.id) not in but] if count else []
        random.Random(f"{self._config.seed} {known.learned}").shuffle(on)
        if len(on) <= count:
            return on
        n = self._config.n_experts
        codes = hot(torch.tensor([record.allocation for record in on]), n).flatten(1)
        mine = hot(torch.tensor(list(given)), n).flatten(1)
        shared = (codes @ mine.T).sum(1).sort(descending=True, stable=True).indices
        return [on[i] for i in shared[:count].tolist()]

    def _allocate(
        self, known: Knowledge, edits: Sequence[Edit], queries: Sequence[Tensor]
    ) -> list[Allocation]:
        """The experts of each edit; edits with the same subject and target are rephrasings of one fact."""
        c, linears = self._config, known.experts.gates.shape[0]
        facts = {(r.edit.subject, r.edit.target): r.allocation for r in known.records.values()}
        own = known.experts.route(torch.stack(list(queries))).picks.transpose(0, 1).tolist()
        given = []
        for edit, preferred in zip(edits, own, strict=True):
            fact = edit.subject, edit.target
            if fact not in facts:
                facts[fact] = tuple(map(tuple, preferred))
                if c.allocation == "random":
                    key = f"{edit.subject}\x1f{edit.target}"
                    taken = {one for other, one in facts.items() if other != fact}
                    facts[fact] = draw(taken, linears, c.n_experts, c.top_k, c.seed, key)
            given.append(facts[fact])
        return given
