"""What the rows of one text have read in front, from its first forward to its last token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...calls import Call
from ...prefix import KV
from .front import Front

__all__ = ["Fronted"]


@dataclass(frozen=True)
class Fronted:
    """Which edits' notes the rows have read; kept with their cache.

    Attributes:
        owner: the method that decided; another one's decisions do not count.
        edits: ids of the edits of each row, in the order of their notes.
        begin, first: LongTensor [B]; column and position id of each row's first real token.
        bos: BoolTensor [B]; whether that is a BOS.
        moved: LongTensor [B]; what was added to the positions of the row's tokens.
        kv, open: of `Front`; None where no row has anything in front.
        length: columns of the cache when it was decided.
    """

    owner: Any
    edits: tuple[tuple[str, ...], ...]
    begin: Tensor
    first: Tensor
    bos: Tensor
    moved: Tensor
    kv: KV | None
    open: Tensor | None
    length: int

    def __len__(self) -> int:
        return len(self.edits)

    def __deepcopy__(self, memo: dict[int, Any]) -> Fronted:
        return self  # nothing in it is ever changed in place

    def select(self, rows: Tensor) -> Fronted:
        """The same for rows ``rows`` of it."""
        at = rows.to(self.begin.device)
        kv = self.kv
        if kv is not None:
            kv = [(k[rows.to(k.device)], v[rows.to(v.device)]) for k, v in kv]
        return Fronted(
            self.owner,
            tuple(self.edits[row] for row in rows.tolist()),
            self.begin[at],
            self.first[at],
            self.bos[at],
            self.moved[at],
            kv,
            None if self.open is None else self.open[rows.cpu()],
            self.length,
        )

    def crop(self, length: int) -> Fronted | None:
        """The same for a cache cut to ``length`` columns; None where the prompt is cut as well."""
        return self if length >= self.length else None

    @property
    def any(self) -> Tensor:
        """BoolTensor [B]; rows that have something in front."""
        return torch.tensor([bool(edits) for edits in self.edits], device=self.begin.device)

    def after(self, call: Call) -> Tensor:
        """BoolTensor [B,T]; the new tokens of ``call`` that come after what is in front."""
        columns = call.past + torch.arange(call.real.shape[1], device=self.begin.device)
        return columns[None] >= (self.begin + self.bos.to(self.begin.device))[:, None]

    def front(self, call: Call) -> Front | None:
        """For the running forward; None where no row has anything in front."""
        if self.kv is None or self.open is None:
            return None
        return Front(self.kv, self.open, self.begin, self.bos & self.any, self.after(call))
