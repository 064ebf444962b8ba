"""Placing notes: where in a row they stand, and what the layers see of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ...edits import Edit
from ...interface import Host
from ...model.architecture import evaluating
from ...model.lru import Kept
from ...model.prefix import KV
from ...model.row_state import Tokens
from ...weights.modules import adapters
from .front import Reader, stacked
from .fronted import Fronted, Note, Seen
from .notes import Notes

__all__ = ["Placer"]

_READ = 64  # notes whose keys and values per layer stay at hand


class _Row(NamedTuple):
    """Notes of one row: keys and values [1,H,b,w] per layer; see `Seen`."""

    kv: KV
    place: list[int]
    shift: list[int]


class Placer:
    """Places notes: in a chat where the last user's turn begins, in plain text in front of it.

    Args:
        host: the model.
        reader: reads notes.
        notes: writes them.
        edit: the edit of an id.
    """

    def __init__(self, host: Host, reader: Reader, notes: Notes, edit: Callable[[str], Edit]) -> None:
        self._host, self._reader, self._notes, self._edit = host, reader, notes, edit
        self._kv: Kept[tuple[Any, ...], KV] = Kept(_READ)

    def clear(self) -> None:
        """Forget what was read."""
        self._kv.clear()

    @property
    def inserts(self) -> bool:
        """Whether notes stand inside chats: the template marks turns, and the model takes positions."""
        return self._reader.inserts and bool(self._notes.opens)

    def placed(self, held: Fronted, tokens: Tokens, edits: Sequence[tuple[str, ...]]) -> Fronted:
        """``held`` with notes on ``edits`` for the last turn of each row, as far as they leave it some room.

        Those of earlier turns stay. Plain text is one turn.
        """
        rows, size, notes = tokens.ids.tolist(), tokens.real.sum(1).tolist(), []
        for b, (ids, row) in enumerate(zip(edits, rows, strict=True)):
            turn = self._notes.turn(row) if self.inserts else None
            turn = None if turn is None or self._seen(row[:turn]) else turn
            inside = turn is not None
            place = int(held.begin[b] + held.bos[b]) if turn is None else turn
            kept = [note for note in held.notes[b] if inside and note.inside and note.place < place]
            ids = self.fitting(ids, inside, self._host.text.max_length - size[b] - sum(map(self._size, kept)))
            notes.append((*kept, *([Note(ids, place, inside)] if ids else [])))
        return self.fronted(held, tokens, notes)

    def _seen(self, ids: Sequence[int]) -> bool:
        """Whether there is an image among some tokens: a note cannot be read behind what is no text."""
        media = self._host.tracker.media(torch.tensor(ids))
        return media is not None and bool(media.any())

    def _size(self, note: Note) -> int:
        return len(self._notes.ids(self.edits(note.edits), note.inside))

    def fronted(self, held: Fronted, tokens: Tokens, notes: Sequence[tuple[Note, ...]]) -> Fronted:
        """``held`` with these notes in the place of its own."""
        rows = [self._row(held, tokens, b, some) if some else None for b, some in enumerate(notes)]
        full = [row for row in rows if row is not None]
        if not full:
            return replace(held, notes=tuple(notes), seen=None)
        longest, device = max(len(row.place) for row in full), held.begin.device
        columns = torch.zeros(3, len(rows), longest, dtype=torch.long)
        for b, row in enumerate(rows):
            if row is not None:
                columns[:, b, longest - len(row.place) :] = torch.tensor(
                    [[1] * len(row.place), row.place, row.shift]
                )
        open_, place, shift = columns.to(device)
        kv = stacked([None if row is None else row.kv for row in rows])
        return replace(held, notes=tuple(notes), seen=Seen(kv, open_.bool(), place, shift))

    def _row(self, held: Fronted, tokens: Tokens, b: int, notes: Sequence[Note]) -> _Row:
        """The notes of row ``b``, side by side."""
        first = int(tokens.first[b])
        parts: list[_Row] = []
        head: list[int] = []
        column = 0
        for note in notes:
            ids = self._notes.ids(self.edits(note.edits), note.inside)
            if note.inside:
                real = tokens.real[b, column : note.place]
                head += [*tokens.ids[b, column : note.place][real].tolist(), *ids]
                column = note.place
                parts.append(
                    _Row(self._kv_of(head, first, len(ids)), [note.place] * len(ids), [1] * len(ids))
                )
                continue
            bos = bool(held.bos[b])
            ids = [*([self._host.text.bos_id] if bos else []), *ids]  # type: ignore[list-item]
            on = self._reader.counts_on
            kv = self._kv_of(ids, first if on else first + int(bos) - len(ids), len(ids))
            shift = [int(on and not (bos and i == 0)) for i in range(len(ids))]
            parts.append(_Row(kv, [note.place] * len(ids), shift))
        kv = [
            (torch.cat([k for k, _ in layer], 2), torch.cat([v for _, v in layer], 2))
            for layer in zip(*(part.kv for part in parts), strict=True)
        ]
        return _Row(kv, [p for part in parts for p in part.place], [p for part in parts for p in part.shift])

    def fitting(self, ids: tuple[str, ...], chat: bool, room: int) -> tuple[str, ...]:
        """The best of ``ids`` whose notes leave the row some room."""
        while ids and len(self._notes.ids(self.edits(ids), chat)) >= room:
            ids = ids[:-1]
        return ids

    def _kv_of(self, ids: Sequence[int], begin: int, kept: int) -> KV:
        """Keys and values per layer of the last ``kept`` of some tokens at the positions from ``begin`` on;
        computed alone, so that their bits depend on nothing else."""

        @torch.no_grad()
        def read() -> KV:
            with self._host.tracker.off(), evaluating(self._host.model):
                kv = self._reader.read(ids, begin)
            return [(k[:, :, -kept:], v[:, :, -kept:]) for k, v in kv]

        return self._kv.get((tuple(ids), begin, kept, adapters(self._host.model)), read)

    def edits(self, ids: Sequence[str]) -> list[Edit]:
        """The best one last, as that is where a model looks first."""
        return [self._edit(id) for id in reversed(ids)]
