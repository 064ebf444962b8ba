"""What the rows of one text have read, and which notes, from its first forward to its last token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...calls import Call
from ...prefix import KV
from .front import Front

__all__ = ["Fronted", "Note", "Seen"]


class Note(NamedTuple):
    """Notes that a row reads in one place.

    Attributes:
        edits: ids of the edits that they are on, the best first.
        place: the column of the cache that they stand before.
        inside: whether they stand inside the row, in a user's turn; else in front of all of it.
    """

    edits: tuple[str, ...]
    place: int
    inside: bool


class Seen(NamedTuple):
    """Notes of a batch as the layers see them: b positions in front of the cache's columns.

    Attributes:
        kv: keys and values [B,H,b,w] per layer.
        open: BoolTensor [B,b]; positions that hold something.
        place: LongTensor [B,b]; the column from which on tokens see a position.
        shift: LongTensor [B,b]; by how much it moves the positions of the tokens that see it.
    """

    kv: KV
    open: Tensor
    place: Tensor
    shift: Tensor

    def select(self, rows: Tensor) -> Seen:
        """The same for rows ``rows`` of it."""
        kv = [(k[rows.to(k.device)], v[rows.to(v.device)]) for k, v in self.kv]
        return Seen(kv, *(one[rows.to(one.device)] for one in self[1:]))


@dataclass(frozen=True)
class Fronted:
    """Which notes the rows have read; kept with their cache.

    Attributes:
        owner: the method that decided; another one's decisions do not count.
        notes: those of each row, in the order of the text.
        begin, first: LongTensor [B]; column and position id of each row's first real token.
        bos: BoolTensor [B]; whether that is a BOS.
        seen: None where no row has any notes.
        length: columns of the cache when it was decided.
        ids: LongTensor [B,C], the tokens of the cache's columns; None where they are not known.
        real: BoolTensor [B,C], which of them are not padding.
        before: what was decided before this, by fewer columns.
    """

    owner: Any
    notes: tuple[tuple[Note, ...], ...]
    begin: Tensor
    first: Tensor
    bos: Tensor
    seen: Seen | None
    length: int
    ids: Tensor | None
    real: Tensor
    before: Fronted | None = None

    def __len__(self) -> int:
        return len(self.notes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Fronted:
        return self  # nothing in it is ever changed in place

    def select(self, rows: Tensor) -> Fronted:
        """The same for rows ``rows`` of it."""
        at = rows.to(self.begin.device)
        return Fronted(
            self.owner,
            tuple(self.notes[row] for row in rows.tolist()),
            self.begin[at],
            self.first[at],
            self.bos[at],
            None if self.seen is None else self.seen.select(rows),
            self.length,
            None if self.ids is None else self.ids[rows.to(self.ids.device)],
            self.real[rows.to(self.real.device)],
            None if self.before is None else self.before.select(rows),
        )

    def crop(self, length: int) -> Fronted | None:
        """The same for a cache cut to ``length`` columns; None where the prompt is cut as well."""
        if length < self.length:
            return None if self.before is None else self.before.crop(length)
        ids = None if self.ids is None else self.ids[:, :length]
        return replace(self, ids=ids, real=self.real[:, :length])

    def longer(self, call: Call) -> Fronted:
        """The same behind the new tokens of ``call``."""
        ids = None
        if self.ids is not None and call.ids is not None:
            ids = torch.cat([self.ids, call.ids.to(self.ids.device)], 1)
        return replace(self, ids=ids, real=torch.cat([self.real, call.real.to(self.real.device)], 1))

    def by(self, call: Call) -> Tensor | None:
        """LongTensor [B,T], what is added to the positions of new tokens; None for nothing."""
        if self.seen is None or not bool(self.seen.shift.any()):
            return None
        return (self._sees(call, self.seen) * self.seen.shift[:, None]).sum(-1)

    def front(self, call: Call) -> Front | None:
        """For the running forward; None where no row has any notes."""
        if self.seen is None:
            return None
        closed = torch.tensor([any(not note.inside for note in notes) for notes in self.notes])
        bos = self.bos & closed.to(self.bos.device)
        return Front(self.seen.kv, self.seen.open, self.begin, bos, self._sees(call, self.seen))

    @staticmethod
    def _sees(call: Call, seen: Seen) -> Tensor:
        """BoolTensor [B,T,b]: which positions in front the new tokens of ``call`` see."""
        columns = call.past + torch.arange(call.real.shape[1], device=seen.place.device)
        return (columns[None, :, None] >= seen.place[:, None]) & seen.open[:, None]
