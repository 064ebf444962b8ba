"""What ELDER has learned, as one thing that can be started afresh, undone, saved and taken over."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...checked import check_edits, many, names, shaped, table, text, whole
from ...edits import Edit, EditTable
from ...shown import brief
from ..base import State
from .allocation import Allocation
from .config import ELDERConfig
from .experts import Experts, Routing
from .places import Place

__all__ = ["Knowledge", "Record", "Saved"]


@dataclass(frozen=True)
class Record:
    """An edit as it was learned.

    Attributes:
        edit: the edit.
        allocation: the experts it was to use; its rephrasings (same subject and target) have the same.
        query: [q] float32, where it is routed from.
        picks: LongTensor [l,k], its code.
        on: whether it is in force.
    """

    edit: Edit
    allocation: Allocation
    query: Tensor
    picks: Tensor
    on: bool = True


@dataclass(frozen=True)
class Saved:
    """A saved state, checked."""

    experts: list[Tensor]
    records: dict[str, Record]
    blocks: dict[str, Tensor]


class Knowledge:
    """Experts, and the record of edits.

    Args:
        config: with its layers filled in.
        places: the edited linears.
        width: q, of a query.

    Attributes:
        experts: all learnable parameters.
        records: the edits by id, in order.
        blocks: queries [q] of edits that were deleted or switched off, by id (scope "row").
        version: changes with every change.
        learned: how many edits were ever learned.
    """

    def __init__(self, config: ELDERConfig, places: Sequence[Place], width: int) -> None:
        self._config, self._places, self.width = config, tuple(places), width
        self.version = self.learned = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything; experts start again as they started at first."""
        c = self._config
        self.experts = Experts(self._places, self.width, c.n_experts, c.top_k, c.rank, c.init, c.seed)
        self.records: dict[str, Record] = {}
        self.blocks: dict[str, Tensor] = {}
        self._routes: dict[str, Routing] = {}

    def copy(self) -> Knowledge:
        """The same, to be changed on its own."""
        other = copy.copy(self)
        other.experts, other.records = self.experts.copy(), dict(self.records)
        other.blocks, other._routes = dict(self.blocks), {}
        return other

    def take(self, other: Knowledge) -> None:
        """Become what a changed copy is."""
        other.version += 1
        vars(self).update(vars(other))

    def on(self) -> list[Record]:
        """The edits in force, in order."""
        return [record for record in self.records.values() if record.on]

    def codes(self) -> Tensor:
        """LongTensor [l,E,k] of the edits in force."""
        return torch.stack([record.picks for record in self.on()], dim=1)

    def routed(self, id: str) -> Routing:
        """[l,1,k]: where an edit's own query is routed; it is asked for with every prompt about it."""
        found = self._routes.get(id)
        if found is None:
            found = self._routes[id] = self.experts.route(self.records[id].query[None])
        return found

    def refresh(self) -> None:
        """Compute all codes anew, as routers have moved."""
        if self.records:
            picks = self.experts.route(torch.stack([r.query for r in self.records.values()])).picks
            for (id, record), mine in zip(list(self.records.items()), picks.unbind(1), strict=True):
                self.records[id] = replace(record, picks=mine)

    def switch(self, edits: Sequence[Edit], on: bool) -> None:
        """Take edits' codes out and block their queries, or undo that."""
        for edit in edits:
            id = str(edit.id)
            record = self.records[id] = replace(self.records[id], on=on)
            self.blocks.pop(id, None)
            if not on:
                self.blocks[id] = record.query

    # ------------------------------------------------------------------ saving

    def state(self) -> State:
        """Parameters, codes and queries."""
        records = list(self.records.values())
        linears, k = len(self._places), self._config.top_k
        tensors = {f"experts.{i}": tensor for i, tensor in enumerate(self.experts.snapshot())}
        queries = [record.query.cpu() for record in records]
        tensors["queries"] = torch.stack(queries) if queries else torch.zeros(0, self.width).float()
        picks = [record.picks.cpu() for record in records]
        tensors["picks"] = torch.stack(picks) if picks else torch.zeros(0, linears, k, dtype=torch.long)
        if self.blocks:
            tensors["blocks"] = torch.stack([query.cpu() for query in self.blocks.values()])
        meta = {
            "records": [{"id": str(r.edit.id), "allocation": r.allocation, "on": r.on} for r in records],
            "blocks": list(self.blocks),
            "learned": self.learned,
            "config": asdict(self._config),
        }
        return State(tensors, meta)

    def read(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> Saved:
        """What `state` gave, checked; nothing is changed.

        Raises:
            ValueError, KeyError: tensors and edits do not fit together.
        """
        items = [table(item, "an edit's record") for item in many(meta["records"], "the edits")]
        ids = [text(item["id"], "an edit's id") for item in items]
        off = [id for id, item in zip(ids, items, strict=True) if item["on"] is False]
        check_edits(ids, off, edits)
        blocked = names(meta["blocks"], "the blocks")
        linears, k, n = len(self._places), self._config.top_k, self._config.n_experts
        wide = torch.float32
        queries = shaped(tensors, "queries", (len(ids), self.width), wide)
        picks = shaped(tensors, "picks", (len(ids), linears, k), torch.int64)
        if len(ids) and not 0 <= int(picks.min()) <= int(picks.max()) < n:
            raise ValueError(f"the tensor picks names an expert that is not one of {n}")
        blocks = shaped(tensors, "blocks", (len(blocked), self.width), wide) if blocked else ()
        experts = [
            shaped(tensors, f"experts.{i}", tuple(mine.shape), wide)
            for i, mine in enumerate(self.experts.snapshot())
        ]
        device = self.experts.gates.device
        records = {
            id: Record(edits[id], self._allocation(item), query.to(device), picked, _switch(item))
            for id, item, query, picked in zip(ids, items, queries, picks.to(device), strict=True)
        }
        whole(meta["learned"], "the edits ever learned")
        return Saved(experts, records, {id: q.to(device) for id, q in zip(blocked, blocks, strict=True)})

    def restore(self, saved: Saved, meta: Mapping[str, Any]) -> None:
        """Become what was saved."""
        self.experts.load(saved.experts)
        self.records, self.blocks, self._routes = saved.records, saved.blocks, {}
        self.learned = int(meta["learned"])
        self.version += 1

    def _allocation(self, item: Mapping[str, Any]) -> Allocation:
        c = self._config
        linears = many(item["allocation"], "an allocation", len(self._places))
        return tuple(
            tuple(whole(e, "an expert", 0, c.n_experts - 1) for e in many(picks, "an allocation", c.top_k))
            for picks in linears
        )


def _switch(item: Mapping[str, Any]) -> bool:
    on = item["on"]
    if type(on) is not bool:
        raise ValueError(f"an edit's switch is {brief(on)}, not true or false")
    return on
