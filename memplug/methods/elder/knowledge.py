"""What ELDER has learned, as one thing that can be started afresh, undone, saved and taken over."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...checked import check_edits, check_rest, check_rising, many, number, shaped, table, text, whole
from ...edits import Edit, EditTable
from ...shown import brief
from ..base import State
from .allocation import Allocation
from .config import ELDERConfig
from .deferral import Decision, Deferral
from .experts import Experts, Routing, best
from .places import Place, Site
from .subjects import Subjects

__all__ = ["Knowledge", "Record", "Seen"]


class Seen(NamedTuple):
    """What is looked at in B rows.

    Attributes:
        query: float32 [B,q], the states where their prompts end, as they come from the model.
        states: [B,T,D] of the layer in which subjects are recognised; None where none are asked for.
        valid: BoolTensor [B,T], which of their tokens are the prompt's.
    """

    query: Tensor
    states: Tensor | None = None
    valid: Tensor | None = None

    def select(self, rows: Tensor) -> Seen:
        """The same of rows ``rows``."""
        at = [None if x is None else x[rows.to(x.device)] for x in self[1:]]
        return Seen(self.query[rows.to(self.query.device)], *at)


@dataclass(frozen=True)
class Record:
    """An edit as it was learned.

    Attributes:
        number: its number in the deferral.
        edit: the edit.
        allocation: the experts it was to use; its rephrasings (same subject and target) have the same.
        on: whether it is in force.
    """

    number: int
    edit: Edit
    allocation: Allocation
    on: bool = True


class Knowledge:
    """Experts, deferral and the record of edits.

    Args:
        config: with its layers filled in.
        places: the edited linears.
        site: where queries are read.
        subjects: keys of the edits' subjects; None where queries are compared without.

    Attributes:
        width: of a prepared query, twice q with subjects.
        experts: all learnable parameters.
        deferral: codes and queries of the edits, and the limits of what is in scope.
        records: the edits by id, in order.
        next: the number of the next edit.
        center: [q], the mean query of sampled text.
        version: changes with every change.
    """

    def __init__(
        self, config: ELDERConfig, places: Sequence[Place], site: Site, subjects: Subjects | None
    ) -> None:
        self._config, self._places, self._site = config, tuple(places), site
        self.subjects, self.width = subjects, site.width * (1 if subjects is None else 2)
        self.center = torch.zeros(site.width, device=site.device, dtype=torch.float32)
        self.version = self.next = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything but the center; experts start again as they started at first."""
        c, site = self._config, self._site
        self.experts = Experts(self._places, self.width, c.n_experts, c.top_k, c.rank, c.init, c.seed)
        every = 2 * c.top_k * len(self._places) + 2  # more than any distance
        self.deferral = Deferral(self.width, c.n_experts, c.epsilon or every, c.block, site.device)
        self.records: dict[str, Record] = {}
        self._forget_found()

    def _forget_found(self) -> None:
        self._places_of: tuple[Deferral | None, int, dict[str, list[int]]] = None, -1, {}
        self._routes: tuple[int, dict[int | None, Routing]] = -1, {}

    def copy(self) -> Knowledge:
        """The same, to be changed on its own; all but the subjects, which both share."""
        other = copy.copy(self)
        other.experts, other.deferral = self.experts.copy(), self.deferral.copy()
        other.records = dict(self.records)
        other._forget_found()
        return other

    def take(self, other: Knowledge) -> None:
        """Become what a changed copy is."""
        other.version += 1
        vars(self).update(vars(other))
        self.prune()

    @property
    def layer(self) -> int | None:
        """In whose output subjects are recognised; None where none are asked for."""
        return None if self.subjects is None else self.subjects.layer

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """On any error everything is as it was before the ``with``."""
        before = {**vars(self), "records": dict(self.records), "deferral": self.deferral.copy()}
        tensors = self.experts.snapshot()
        try:
            yield
        except BaseException:
            vars(self).update(before)
            self.experts.load(tensors)
            self.prune()
            raise
        self.prune()
        self.version += 1

    def prune(self) -> None:
        """Forget subjects that no edit is about."""
        if self.subjects is not None:
            self.subjects.keep({str(record.edit.subject) for record in self.records.values()})

    def on(self) -> list[Record]:
        """The edits in force, in order."""
        return [record for record in self.records.values() if record.on]

    def numbered(self) -> dict[int, Edit]:
        """The edits by number."""
        return {record.number: record.edit for record in self.records.values()}

    @torch.no_grad()
    def decide(self, seen: Seen, *, every: bool = False) -> tuple[Routing | None, Decision]:
        """Where rows in scope are routed, and which are; no routing where none is.

        Args:
            seen: what is looked at.
            every: whether all of the decision is wanted, also where less tells that no row is in scope.
        """
        k, subjects = self._config.top_k, self.subjects
        if subjects is None or seen.states is None or seen.valid is None:
            prepared = self.prepare(seen.query)
            logits = self.experts.logits(prepared)
            decision = self.deferral.decide(prepared, best(logits, k))
            return self._routing(decision, logits), decision
        about = self._about
        named = subjects.find(seen.states, seen.valid, about)
        mine = [about.get(name, []) if name is not None else [] for name in named]
        if not any(named if every else mine):
            return None, Decision.out(len(named))
        prepared = self.prepare(seen.query, named)
        decision = self.deferral.among(
            prepared, lambda: best(self.experts.logits(prepared), k), mine, every=every
        )
        return self._routing(decision, None if self._config.snap else self.experts.logits(prepared)), decision

    def _routing(self, decision: Decision, logits: Tensor | None) -> Routing | None:
        """Rows in scope as themselves, by their logits [l,B,N], or as the edits they are about, as
        these were trained."""
        if not decision.scope.any():
            return None
        if not self._config.snap and logits is not None:
            return self.experts.routed(logits)
        found = decision.nearest if self.deferral.threshold is None else decision.similar
        numbers = [n if scope else None for n, scope in zip(found.tolist(), decision.scope, strict=True)]
        rows = [self._own(number) for number in numbers]
        if len(rows) == 1:
            return rows[0]
        return Routing(*(torch.cat(parts, dim=1) for parts in zip(*rows, strict=True)))

    @property
    def _about(self) -> dict[str, list[int]]:
        """By subject the places of its edits in force, in the deferral's order."""
        deferral = self.deferral
        known = self._places_of
        if known[:2] != (deferral, self.version):
            names = {record.number: str(record.edit.subject) for record in self.records.values()}
            found: dict[str, list[int]] = {}
            for place in np.flatnonzero(deferral.on).tolist():
                found.setdefault(names[deferral.numbers[place]], []).append(place)
            known = self._places_of = deferral, self.version, found
        return known[2]

    def _own(self, which: int | None) -> Routing:
        """[l,1,k]: where an edit's own query is routed, alone; it is asked for again with every prompt about
        it. Any expert, unused, for a row out of scope."""
        routes = self._routes
        if routes[0] != self.version:
            routes = self._routes = self.version, {}
        own = routes[1].get(which)
        if own is None:
            query = self.deferral.queries[:1]
            if which is not None:
                place = bisect_left(self.deferral.numbers, which)
                query = self.deferral.queries[place : place + 1]
            own = routes[1][which] = self.experts.route(query)
        return own

    def prepare(self, query: Tensor, subjects: Sequence[str | None] = ()) -> Tensor:
        """Queries [B,q] as they are routed and compared, with the subjects' marks behind them, as long."""
        query = query.to(self.center.device)
        length: Tensor | float = self._config.gain * self._site.width**0.5
        if self._config.normalise:
            query = query - self.center
            query = query * (length / query.norm(dim=-1, keepdim=True).clamp(min=1e-12))
        else:
            length = query.norm(dim=-1, keepdim=True)
        if self.subjects is None:
            return query
        mark = self.subjects.marks(subjects or [None] * len(query), self._site.width, query.device)
        return torch.cat([query, mark * length], dim=-1)

    # ------------------------------------------------------------------ saving

    def state(self) -> State:
        """Parameters, codes, queries and limits."""
        d = self.deferral
        tensors = {f"experts.{i}": tensor for i, tensor in enumerate(self.experts.snapshot())}
        tensors |= {"queries": d.queries, "codes": torch.from_numpy(d.codes.copy()), "center": self.center}
        if d.blocks:
            tensors["blocks"] = torch.stack(list(d.blocks.values()))
        meta = {
            "records": [
                {"id": str(r.edit.id), "number": r.number, "allocation": r.allocation, "on": r.on}
                for r in self.records.values()
            ],
            "numbers": d.numbers,
            "blocks": list(d.blocks),
            "epsilon": d.epsilon,
            "threshold": d.threshold,
            "next": self.next,
            "config": asdict(self._config),
        }
        if self.subjects is not None:
            keys, meta["subjects"] = self.subjects.state()
            tensors |= {f"subjects.{name}": tensor for name, tensor in keys.items()}
        return State(tensors, meta)

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave.

        Raises:
            ValueError, KeyError: tensors, numbers and edits do not fit together.
        """
        coming = whole(meta["next"], "the next number")
        records = [self._record(item, edits, coming) for item in many(meta["records"], "the edits")]
        off = [str(record.edit.id) for record in records if not record.on]
        check_edits((str(record.edit.id) for record in records), off, edits)
        numbers = [whole(n, "a code's number", 0, coming - 1) for n in many(meta["numbers"], "the codes")]
        check_rising(numbers)
        if numbers != sorted(record.number for record in records):
            raise ValueError("its codes do not belong to its edits")
        blocked = [whole(n, "a blocked number", 0, coming - 1) for n in many(meta["blocks"], "the blocks")]
        if len(set(blocked)) < len(blocked):
            raise ValueError("an edit is blocked twice")
        part = self._shaped(tensors, len(numbers), len(blocked))
        bits = 2 * self._config.top_k * len(self._places) + 2
        epsilon, threshold = (
            whole(meta["epsilon"], "epsilon", 0, max(bits, self.deferral.epsilon)),
            meta["threshold"],
        )
        threshold = None if threshold is None else number(threshold, "the threshold", -1, 1)
        on = {record.number for record in records if record.on}
        with self.all_or_nothing():
            self.experts.load([part[f"experts.{i}"] for i in range(len(self.experts.snapshot()))])
            blocks = dict(zip(blocked, part.get("blocks", part["queries"][:0]), strict=True))
            self.deferral.take_over(numbers, part["queries"], part["codes"].numpy(), on, blocks)
            self.deferral.limit(epsilon, threshold)
            self.records, self.next = {str(r.edit.id): r for r in records}, coming
            self.center = part["center"].to(self.center)
            if self.subjects is not None:
                keys = {n.removeprefix("subjects."): t for n, t in part.items() if n.startswith("subjects.")}
                self.subjects.restore(keys, meta["subjects"], {str(r.edit.subject) for r in records})

    def _record(self, item: Any, edits: EditTable, coming: int) -> Record:
        """A saved record, whose number is below ``coming``."""
        c, values = self._config, table(item, "an edit's record")
        linears = many(values["allocation"], "an allocation", len(self._places))
        allocation = tuple(
            tuple(whole(e, "an expert", 0, c.n_experts - 1) for e in many(picks, "an allocation", c.top_k))
            for picks in linears
        )
        if type(values["on"]) is not bool:
            raise ValueError(f"an edit's switch is {brief(values['on'])}, not true or false")
        id, n = text(values["id"], "an edit's id"), whole(values["number"], "a number", 0, coming - 1)
        return Record(n, edits[id], allocation, values["on"])

    def _shaped(self, tensors: Mapping[str, Tensor], count: int, blocks: int) -> dict[str, Tensor]:
        """The tensors of so many edits and blocks, checked; those of the subjects as they are."""
        shapes = {f"experts.{i}": tuple(t.shape) for i, t in enumerate(self.experts.snapshot())}
        shapes |= {"queries": (count, self.width), "center": tuple(self.center.shape)}
        shapes |= {"blocks": (blocks, self.width)} if blocks else {}
        part = {name: shaped(tensors, name, shape, torch.float32) for name, shape in shapes.items()}
        bits = len(self._places) * self._config.n_experts
        part["codes"] = shaped(tensors, "codes", (count, -(-bits // 8) if count else None), torch.uint8)
        if self.subjects is not None:
            part |= {name: tensor for name, tensor in tensors.items() if name.startswith("subjects.")}
        check_rest(tensors, part)
        return part
