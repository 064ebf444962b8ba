"""What the rows of one text have read, and which notes, from its first forward to its last token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...model.context import Call
from ...model.prefix import KV
from ...model.row_state import RowState
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
class Fronted(RowState):
    """Which notes the rows have read; kept with their cache.

    Attributes:
        owner: the method that decided; another one's decisions do not count.
        notes: those of each row, in the order of the text.
        begin: LongTensor [B]; column of each row's first real token.
        bos: BoolTensor [B]; whether that is a BOS.
        seen: None where no row has any notes.
    """

    owner: Any
    notes: tuple[tuple[Note, ...], ...]
    begin: Tensor
    bos: Tensor
    seen: Seen | None

    def crop(self, length: int) -> Fronted:
        """The same for a cache cut to ``length`` columns: notes that stand behind them are gone."""
        notes = tuple(tuple(note for note in row if note.place < length) for row in self.notes)
        seen = self.seen and self.seen._replace(open=self.seen.open & (self.seen.place < length))
        return replace(self, notes=notes, seen=seen)

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
        start = self.begin + bos.to(self.begin.device)
        return Front(self.seen.kv, self._sees(call, self.seen), start, self.begin, bos)

    @staticmethod
    def _sees(call: Call, seen: Seen) -> Tensor:
        """BoolTensor [B,T,b]: which positions in front the new tokens of ``call`` see."""
        columns = call.past + torch.arange(call.real.shape[1], device=seen.place.device)
        return (columns[None, :, None] >= seen.place[:, None]) & seen.open[:, None]
