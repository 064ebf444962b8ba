"""What ELDER as published has learned: parameters, and of each edit its query, allocation and code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...edits import Edit, EditTable
from ...saving.checked import check_edits, check_rest, names, shaped
from .codes import Allocation
from .experts import Experts

__all__ = ["Known", "Record", "Removed"]

_OWN = ("queries", "picks", "allocations")  # tensors that hold something of each edit


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


@dataclass
class Known:
    """Experts, the edits by id in order, and the queries [q] of edits deleted or switched off, by id."""

    experts: Experts
    records: dict[str, Record] = field(default_factory=dict)
    blocks: dict[str, Tensor] = field(default_factory=dict)

    def on(self) -> list[Record]:
        """The edits in force, in order."""
        return [record for record in self.records.values() if record.on]

    def switch(self, id: str, on: bool) -> None:
        """Take an edit's code out and block its query, or undo that."""
        record = self.records[id] = replace(self.records[id], on=on)
        self.blocks.pop(id, None)
        if not on:
            self.blocks[id] = record.query

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and what belongs to which edit."""
        records = self.records.values()
        tensors = dict(self.experts.named())
        for name, some in (
            ("queries", [record.query for record in records]),
            ("picks", [record.picks for record in records]),
            ("allocations", [torch.tensor(record.allocation) for record in records]),
            ("blocks", list(self.blocks.values())),
        ):
            if some:
                tensors[name] = torch.stack([one.cpu() for one in some])
        return tensors, {"edits": list(self.records), "blocks": list(self.blocks)}

    @staticmethod
    def read(
        fresh: Experts, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable
    ) -> Known:
        """What `state` gave, checked; ``fresh`` becomes its experts.

        Raises:
            ValueError, KeyError: tensors and edits do not fit together.
        """
        ids, gone = names(meta["edits"], "the edits"), names(meta["blocks"], "the blocked edits")
        check_edits(ids, [id for id in ids if id in edits and not edits.enabled(id)], edits)
        own, blocked = _OWN if ids else (), ("blocks",) if gone else ()
        check_rest(tensors, (*fresh.named(), *own, *blocked))
        fresh.read(tensors)
        linears, _, width = fresh.gates.shape

        def read(name: str, count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
            found = shaped(tensors, name, (count, *shape), dtype) if count else torch.zeros(0)
            if dtype == torch.int64 and not 0 <= int(found.min()) <= int(found.max()) < fresh.n:
                raise ValueError(f"the tensor {name} names an expert that is not one of {fresh.n}")
            return list(found.to(fresh.gates.device))

        queries = read("queries", len(ids), (width,), torch.float32)
        code = linears, fresh.top_k
        picks, given = (read(name, len(ids), code, torch.int64) if ids else [] for name in _OWN[1:])
        records = {
            id: Record(edits[id], tuple(map(tuple, allocation.tolist())), query, picked, edits.enabled(id))
            for id, query, picked, allocation in zip(ids, queries, picks, given, strict=True)
        }
        blocks = read("blocks", len(gone), (width,), torch.float32)
        return Known(fresh, records, dict(zip(gone, blocks, strict=True)))
