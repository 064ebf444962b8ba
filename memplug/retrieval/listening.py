"""Listening: from the hidden states of one forward to the edits that speak at each of its tokens.

Think layers say which subjects are named and where they end. The states of a sentence's words in the
relation layer say what it asks for. What a row has read (`Reading`), its last tokens and some of their states
stay with its cache.

Letters: R think layers, B rows, T tokens, K width of calibrated states, S tokens of a subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from ..memory import KeyMemory
from ..model.context import Call
from ..model.row_state import RowState, of_rows
from .calibration import Calibration
from .questions import Question, told
from .reading import Kind, Reader, Reading, Score, Speaking

__all__ = ["Heard", "Listener", "RowHeard"]

_SENTENCE = 64  # most tokens of a sentence that are looked at to see what it asks


@dataclass(frozen=True)
class RowHeard:
    """What a row has read, and its last states.

    Attributes:
        reading: the row so far.
        tail: [R,w,K] unit states of its last w tokens; w is at least the longest subject less one.
        ids: its last g tokens; -1 where one is not known.
        asked: [g,D] their states in the relation layer.
    """

    reading: Reading
    tail: Tensor
    ids: tuple[int, ...]
    asked: Tensor


@dataclass(frozen=True)
class Heard(RowState):
    """What the rows of a cache have read; it follows the cache's rows.

    Attributes:
        owner: the listener; what another one heard does not count.
        rows: one a row.
        past: columns of the cache before the last forward.
        columns: those of the last forward.
        again: what the rows had read after the first n columns of the last forward.
        order: which row of ``again`` each row is, where rows were selected since.
        opened: the latest forward of several tokens before this one (the prompt's), to go back to.
        first: position id of each row's first real token.
    """

    owner: Listener
    rows: tuple[RowHeard, ...]
    past: int = 0
    columns: int = 0
    again: Callable[[int], tuple[RowHeard, ...]] | None = field(default=None, compare=False)
    order: tuple[int, ...] | None = None
    opened: Heard | None = field(default=None, compare=False)
    first: tuple[int, ...] = ()

    def select(self, rows: Tensor) -> Self:
        """The same for rows ``rows`` of it."""
        order = self.order or tuple(range(len(self.rows)))
        return replace(super().select(rows), order=of_rows(order, rows))

    def crop(self, length: int) -> Heard:
        """The same after all but the cache's first ``length`` positions were taken back.

        Exact within the last forward and the latest one of several tokens; cut in between, rows keep what
        they have read.
        """
        kept = length - self.past
        if not 0 <= kept <= self.columns or self.again is None:
            before = self.opened
            known = before is not None and before.past <= length <= before.past + before.columns
            return before.crop(length) if before is not None and known else self
        rows = self.again(kept)
        if self.order is not None:
            rows = tuple(rows[i] for i in self.order)
        return replace(self, rows=rows, columns=kept)


class Listener:
    """Listens to forwards.

    Args:
        memory: the subjects' keys, of calibrated states.
        reader: reads tokens.
        think: the think layers.
        relation: the layer whose states say what is asked.
        questions: how an edit is asked for, and which neutral question asks the same, see
            `Calibration.matched`.
        starts: whether a text's first token is an ordinary token (no BOS), with a calibration of its own.
        looking: nothing of all this changes inside what it gives; for what is looked at between two forwards.
    """

    def __init__(
        self,
        memory: KeyMemory,
        reader: Reader,
        think: tuple[int, ...],
        relation: int,
        questions: Callable[[str], tuple[Sequence[Question], int | None]],
        starts: bool,
        looking: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.memory, self.reader = memory, reader
        self._think, self._relation = think, relation
        self._questions, self._starts, self._looking = questions, starts, looking

    def listen(
        self, calibration: Calibration, call: Call, longest: int, met: dict[str, float] | None = None
    ) -> tuple[Heard, list[list[tuple[Speaking, ...]]]]:
        """What the rows have read after this forward, and what speaks at each of its columns.

        Args:
            calibration: of the think layers and the relation layer, in this order.
            call: the forward; its states are those of these layers.
            longest: tokens of the longest subject held.
            met: by edit, the likeness of what was asked last; written here if given.
        """
        held, count = Heard.of(call, self), len(call.valid)
        if held is not None:
            before, whole = held.rows, True
            # Those of a row that has been padding so far are known only now.
            first = tuple(
                old if row.reading.count else new
                for row, old, new in zip(before, held.first, call.first.tolist(), strict=True)
            )
        else:
            none = torch.zeros(len(self._think), 0, calibration.root.shape[-1], dtype=torch.float32)
            before = tuple(RowHeard(Reading(), none, (), none[0]) for _ in range(count))
            whole, first = call.past == 0, tuple(call.first.tolist())
        real = call.words.cpu()  # what stands for an image is not read
        media = call.real.cpu() & ~real
        begins = torch.zeros_like(real)
        if self._starts and whole:
            for b, row in enumerate(before):
                if row.reading.count == 0 and bool(real[b].any()):
                    begins[b, int((real[b] | media[b]).int().argmax())] = True
        at = begins.to(call.valid.device) if bool(begins.any()) else None
        units = [calibration.apply(i, call.states[layer].detach(), at) for i, layer in enumerate(self._think)]
        asked = call.states[self._relation].detach()
        ids = [[-1] * real.shape[1] for _ in range(count)] if call.ids is None else call.ids.tolist()
        valid = call.valid.cpu()

        def heard(columns: int) -> tuple[list[RowHeard], list[list[tuple[Speaking, ...]]]]:
            part = [unit[:, :columns] for unit in units]
            seen, shown = real[:, :columns], media[:, :columns]
            return self._rows(
                before, part, asked[:, :columns], seen, shown, valid, ids, longest, calibration, met
            )

        rows, spoken = heard(real.shape[1])
        columns, opened = real.shape[1], None
        if whole and held is not None:
            opened = replace(held, opened=None) if held.again is not None else held.opened

        def read_again(n: int) -> tuple[RowHeard, ...]:
            with self._looking():
                return tuple(heard(n)[0])

        # A forward of one token is taken back as a whole or not at all; a prompt may hold a draft already.
        again = read_again if columns > 1 else None
        return Heard(self, tuple(rows), call.past, columns, again, None, opened, first), spoken

    def _rows(
        self,
        before: Sequence[RowHeard],
        units: Sequence[Tensor],
        states: Tensor,
        real: Tensor,
        media: Tensor,
        valid: Tensor,
        ids: Sequence[Sequence[int]],
        longest: int,
        calibration: Calibration,
        met: dict[str, float] | None,
    ) -> tuple[list[RowHeard], list[list[tuple[Speaking, ...]]]]:
        tails = [row.tail[:, max(0, row.tail.shape[1] - longest + 1) :] for row in before]
        named = self._named(tails, units, valid[:, : real.shape[1]])
        rows: list[RowHeard] = []
        spoken: list[list[tuple[Speaking, ...]]] = []
        for b, row in enumerate(before):
            columns = real[b].nonzero()[:, 0].tolist()
            order = {column: i for i, column in enumerate(columns)}
            here = {order[column]: keys for column, keys in named.get(b, {}).items()}
            new_ids = tuple(ids[b][c] for c in columns)
            known = (*row.ids, *new_ids)
            asked = (
                torch.cat([row.asked.to(states.device), states[b][columns]])
                if row.ids
                else states[b][columns]
            )
            score = self._score(row.reading.count - len(row.ids), known, asked, calibration, met)
            reading, said = self.reader.read(row.reading, new_ids, here, score)
            line: list[tuple[Speaking, ...]] = [()] * real.shape[1]
            for column, speaking in zip(columns, said, strict=True):
                line[column] = speaking
            spoken.append(_seeing(line, row.reading.speaking, real[b], media[b]))
            new = torch.stack([unit[b][columns] for unit in units])
            tail = torch.cat([row.tail.to(new.device), new], 1)[:, -max(longest, 8) :]
            kept = _SENTENCE + self.reader.reach
            rows.append(RowHeard(reading, tail.clone(), known[-kept:], asked[-kept:].clone()))
        return rows, spoken

    def _score(
        self,
        base: int,
        ids: Sequence[int],
        states: Tensor,
        calibration: Calibration,
        met: dict[str, float] | None,
    ) -> Score:
        """What a row asks for. Its tokens are known from ``base`` on: `_SENTENCE` up to each that may end a
        question."""

        def score(
            edit: str, key: int, place: int, begin: int, at: int, chat: bool, kind: Kind
        ) -> float | None:
            subject = range(place - self.memory.get(key).shape[1] + 1, place + 1)
            words = [t for t in range(max(begin, at - _SENTENCE + 1), at + 1) if t not in subject]
            question = self._question(words, base, states, calibration, chat)
            value = calibration.likeness(*self._questions(edit), question, kind == "due")
            if met is not None:
                met[edit] = value
            return value if value > calibration.limit(chat, kind) else None

        return score

    def _question(
        self, words: Sequence[int], base: int, states: Tensor, calibration: Calibration, chat: bool
    ) -> Question:
        rows = [t - base for t in told(words)]
        return calibration.metric.question(states[rows], chat)

    def _named(
        self, tails: Sequence[Tensor], units: Sequence[Tensor], valid: Tensor
    ) -> dict[int, dict[int, list[int]]]:
        """By row and column, the keys whose span ends there."""
        back = max((tail.shape[1] for tail in tails), default=0)
        if back:
            rows, device = len(tails), units[0].device
            front = torch.zeros(
                len(units), rows, back, units[0].shape[-1], device=device, dtype=torch.float32
            )
            seen = torch.zeros(rows, back, dtype=torch.bool)
            for b, tail in enumerate(tails):
                if tail.shape[1]:
                    front[:, b, back - tail.shape[1] :] = tail.to(device)
                    seen[b, back - tail.shape[1] :] = True
            units = [torch.cat([front[r], unit], 1) for r, unit in enumerate(units)]
            valid = torch.cat([seen, valid], 1)
        named: dict[int, dict[int, list[int]]] = {}
        for row, place, key in self.memory.named(units, valid.to(units[0].device), back):
            named.setdefault(row, {}).setdefault(place - back, []).append(key)
        return named


def _seeing(
    line: list[tuple[Speaking, ...]], before: tuple[Speaking, ...], words: Tensor, media: Tensor
) -> list[tuple[Speaking, ...]]:
    """``line``, what speaks at each column: what speaks at a word speaks behind an image after it too."""
    if bool(media.any()):
        for column, (word, shown) in enumerate(zip(words.tolist(), media.tolist(), strict=True)):
            ends = column + 1 == len(line) or not media[column + 1]
            if shown and ends:
                line[column] = before
            before = line[column] if word else before
    return line
