"""Learning: edits in, a few at a time, with what they are trained beside; then codes and limits anew."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...chat import Prompt, behind
from ...contexts import sample_prefixes
from ...edits import Edit
from ...text import Pair
from ..base import Host
from .allocation import Allocation, draw, draw_spread, hot
from .calibration import Heldout, calibrate, within
from .config import ELDERConfig
from .knowledge import Knowledge, Record
from .places import Place, Site
from .rows import Rows, goals, observe, observe_rows
from .training import Rehearsed, losses, train_batch

__all__ = ["Learner"]

_LOOK = 128  # edits looked at in one forward
_PASSES = 3


class Learner:
    """Teaches edits to a `Knowledge`; keeps only what follows from the base model and the seed.

    Args:
        host: the model.
        config: with its layers filled in.
        places: the edited linears.
        site: where queries are read.
    """

    def __init__(self, host: Host, config: ELDERConfig, places: Sequence[Place], site: Site) -> None:
        self._host, self._config, self._places, self._site = host, config, tuple(places), site
        self._prefixes: list[str] | None = None
        self._heldout: Heldout | None = None

    def pair(self, prompt: Prompt, target: str) -> Pair:
        """A prompt with its answer, as it is trained."""
        return self._host.text.pair(prompt, target, stop=self._config.train_stop)

    def learn(self, known: Knowledge, edits: Sequence[Edit], progress: bool) -> None:
        """Train on ``edits`` in their order, `batch_size` at a time; an error leaves it half done."""
        size, sampled = self._config.batch_size, self._sampled()
        if known.subjects is not None:
            known.subjects.learn(edits)
        if self._config.normalise and not len(known.deferral) and len(sampled.queries):
            known.center = sampled.queries.mean(0)
        quiet = not progress or len(edits) < 2
        with tqdm(total=len(edits), desc="learning", unit="edit", disable=quiet, leave=False) as bar:
            for at in range(0, len(edits), size):
                self._learn_batch(known, edits[at : at + size])
                bar.update(len(edits[at : at + size]))
        if self._config.rehearse:  # what the last batches undid of those before them
            self._rehearse(known, [known.records[str(edit.id)] for edit in edits])
        if self._config.refresh:
            known.deferral.refresh(known.experts.route(known.deferral.queries).picks)
        self._calibrate(known, sampled)

    def _learn_batch(self, known: Knowledge, edits: Sequence[Edit]) -> None:
        rows, given = self.rows(known, edits)
        picks = self._train(known, rows)
        count = len(edits)
        numbers = list(range(known.next, known.next + count))
        known.next += count
        for number, edit, allocation in zip(numbers, edits, given, strict=True):
            known.records[str(edit.id)] = Record(number, edit, allocation)
        known.deferral.add(numbers, rows.query[:count], picks[:, :count])
        every = self._config.rehearse
        if every and known.next // every > (known.next - count) // every:
            self._rehearse(known, known.on())

    def rows(self, known: Knowledge, edits: Sequence[Edit]) -> tuple[Rows, list[Allocation]]:
        """What is trained for a batch of edits, theirs first, and the experts they are given."""
        given = self._allocate(known, edits)
        return self._rows(known, edits, given, self._endangered(known, given)), given

    def _rows(
        self, known: Knowledge, edits: Sequence[Edit], given: Sequence[Allocation], old: Sequence[Record]
    ) -> Rows:
        meant = [*given, *(record.allocation for record in old)]
        every = [*edits, *(record.edit for record in old)]
        pairs = [self.pair(edit.prompt, edit.target) for edit in every]
        names = [str(edit.subject) for edit in every]
        for front in self._fronts():
            for edit, allocation in zip(edits, given, strict=True):
                pair = self.pair(behind(front, edit.prompt), edit.target)
                if len(pair.ids) <= self._host.text.max_length:
                    pairs.append(pair)
                    names.append(str(edit.subject))
                    meant.append(allocation)
        rows = observe_rows(self._host, self._site, self._places[0].layer, pairs)
        rows.query = known.prepare(rows.query, names)
        rows.goal = goals(meant, self._config.n_experts, rows.query.device)
        return rows

    def _rehearse(self, known: Knowledge, records: Sequence[Record]) -> None:
        """Look at these edits, and train those again that were lost, until none is."""
        for _ in range(_PASSES):
            lost = list[Record]()
            for at in range(0, len(records), _LOOK):
                part = records[at : at + _LOOK]
                pairs = [self.pair(record.edit.prompt, record.edit.target) for record in part]
                rows = observe_rows(self._host, self._site, self._places[0].layer, pairs)
                rows.query = known.prepare(rows.query, [str(record.edit.subject) for record in part])
                routing = known.experts.route(rows.query)
                found = losses(self._host, known.experts, self._places[0].layer, rows, routing)
                lost += [
                    record for record, loss in zip(part, found, strict=True) if loss > self._config.stop_loss
                ]
            if not lost:
                return
            size = 2 * self._config.batch_size
            for at in range(0, len(lost), size):
                batch = lost[at : at + size]
                given = [record.allocation for record in batch]
                old = self._endangered(known, given, {record.number for record in batch})
                self._train(known, self._rows(known, [record.edit for record in batch], given, old))

    def _train(self, known: Knowledge, rows: Rows) -> Tensor:
        """Train on ``rows``; the picks [l,B,k] of the last step."""
        config, rehearsed = self._config, None
        old = self._earlier(known, config.router_replay)
        if old and config.guide == "guided":
            place = {number: i for i, number in enumerate(known.deferral.numbers)}
            at = torch.tensor([place[record.number] for record in old], device=rows.query.device)
            goal = goals([record.allocation for record in old], config.n_experts, rows.query.device)
            rehearsed = Rehearsed(known.deferral.queries[at], goal)
        return train_batch(self._host, known.experts, config, self._places[0].layer, rows, rehearsed)

    def _queries(self, known: Knowledge, edits: Sequence[Edit]) -> Tensor:
        """[B,q] prepared queries of the edits' prompts, wanted before it is known which rows to train."""
        batch = self._host.text.batch([self._host.text.encode(edit.prompt) for edit in edits])
        seen, _ = observe(self._host, self._site, None, batch)
        ends = (batch.mask.sum(1) - 1).to(seen.device)
        query = seen[torch.arange(len(edits), device=seen.device), ends]
        return known.prepare(query, [str(edit.subject) for edit in edits])

    def _endangered(
        self, known: Knowledge, given: Sequence[Allocation], but: Collection[int] = ()
    ) -> list[Record]:
        """The earlier edits to be replayed: those that share the most experts with the batch's."""
        on = self._earlier(known, len(known.records)) if self._config.replay else []
        on = [record for record in on if record.number not in but]
        if len(on) <= self._config.replay:
            return on
        codes = hot(torch.tensor([record.allocation for record in on]), self._config.n_experts).flatten(1)
        mine = hot(torch.tensor(list(given)), self._config.n_experts).flatten(1)
        shared = (codes @ mine.T).sum(1).sort(descending=True, stable=True).indices
        return [on[i] for i in shared[: self._config.replay].tolist()]

    def _earlier(self, known: Knowledge, count: int) -> list[Record]:
        """At most ``count`` of the edits in force, drawn anew for every batch, in random order."""
        on = known.on() if count else []
        count = min(count, len(on))
        return random.Random(f"{self._config.seed} {known.next}").sample(on, count)

    def _allocate(self, known: Knowledge, edits: Sequence[Edit]) -> list[Allocation]:
        """The experts of each edit; edits with the same subject and target are rephrasings of one fact."""
        c, linears = self._config, len(self._places)
        facts = {(r.edit.subject, r.edit.target): r.allocation for r in known.records.values()}
        own: list[list[list[int]]] = []
        if c.allocation == "own":
            own = known.experts.route(self._queries(known, edits)).picks.transpose(0, 1).tolist()
        given = []
        for i, edit in enumerate(edits):
            fact = edit.subject, edit.target
            if fact not in facts:
                if own:
                    facts[fact] = tuple(map(tuple, own[i]))
                else:
                    pick = draw if c.allocation == "random" else draw_spread
                    key = f"{edit.subject}\x1f{edit.target}"
                    facts[fact] = pick(set(facts.values()), linears, c.n_experts, c.top_k, c.seed, key)
            given.append(facts[fact])
        return given

    def _fronts(self) -> list[str]:
        """Sampled texts to stand before prompts; drawn once, so that they do not depend on the edits."""
        c = self._config
        if self._prefixes is None:
            self._prefixes = (
                sample_prefixes(self._host.text, c.n_prefixes, c.prefix_tokens, c.sample_top_k, c.seed)
                if c.n_prefixes
                else []
            )
        return self._prefixes

    def _sampled(self) -> Heldout:
        """Held-out text of the base model; sampled once, and only where something is asked of it."""
        if self._heldout is None:
            c, text, device = self._config, self._host.text, self._site.device
            needed = c.normalise or c.epsilon is None or c.gate == "auto"
            texts = (
                sample_prefixes(text, c.heldout, c.heldout_tokens, c.sample_top_k, c.seed + 1)
                if needed
                else []
            )
            queries, tokens, owner = (
                [torch.zeros(0, self._site.width, device=device, dtype=torch.float32)],
                [],
                [],
            )
            for at in range(0, len(texts), 64):
                batch = text.batch([text.encode(piece) for piece in texts[at : at + 64]])
                seen, _ = observe(self._host, self._site, None, batch)
                real = batch.mask.bool() & (batch.positions > 0)
                queries.append(seen[real.to(seen.device)])
                tokens += batch.ids[real].tolist()
                owner += (real.nonzero()[:, 0] + at).tolist()
            self._heldout = Heldout(texts, torch.cat(queries), torch.tensor(tokens), torch.tensor(owner))
        return self._heldout

    def _calibrate(self, known: Knowledge, sampled: Heldout) -> None:
        c, on = self._config, known.on()
        if not on or (c.epsilon is not None and c.gate == "off"):
            return
        if known.subjects is not None and c.gate == "auto":
            queries = known.prepare(sampled.queries)[:, : self._site.width]
            ends = {self._host.text.encode(record.edit.prompt)[-1] for record in on}
            epsilon, threshold = within(
                known.deferral, sampled.at(ends), queries, c.false_accept, len(self._places) * c.top_k
            )
            known.deferral.limit(c.epsilon or epsilon, threshold if c.threshold is None else c.threshold)
            return
        limits = calibrate(
            known.deferral,
            known.experts,
            sampled,
            known.prepare(sampled.queries),
            [str(record.edit.subject) for record in on],
            {self._host.text.encode(record.edit.prompt)[-1] for record in on},
            c.false_accept,
            c.epsilon,
            c.threshold,
            c.gate == "auto",
        )
        known.deferral.limit(limits.epsilon, limits.threshold)
