"""In-context editing: what was edited is said before the prompt, and the model answers from that."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...calls import Call
from ...chat import Prompt
from ...edits import Edit, EditTable
from ...holding import hold
from ...hooks import Hook
from ...kept import Kept
from ...layers import evaluating, taken, text_config
from ...prefix import KV
from ..base import Host, State
from ..continuing import Continuing
from ..llp.config import LLPConfig
from ..llp.keys import outputs_of
from ..llp.retriever import Prepared, Retriever
from .config import ICLConfig
from .explain import Explanation
from .front import Front, Reader
from .fronted import Fronted, Note, Seen
from .notes import Notes

__all__ = ["ICL"]

_READ = 64  # notes whose keys and values per layer stay at hand
_TOKENS = ("input_ids", "inputs_embeds")


class _Row(NamedTuple):
    """Notes of one row: keys and values [1,H,b,w] per layer; see `Seen`."""

    kv: KV
    place: list[int]
    shift: list[int]


class ICL:
    """Reads notes on the edits that a prompt asks for before it; the base model's weights never change.

    The notes come between a row's BOS and the rest of it. They are not part of the row: ids, logits,
    positions and the caller's cache keep their length, and attention sees the notes' keys and values in every
    layer, just as it would see them in one text. (Layers with a sliding window see all of the notes.) A
    text's first forward decides, at its last token, or at the prompt's end where that is told
    (`Plug.prompt_lengths`). With a cache, a later forward of several tokens decides anew where it holds a
    user's turn, or where nothing is in front yet; what the cache holds already was read with the notes
    before. A prompt that is given token by token with a cache is decided by its first token, that is, not
    at all.

    Args:
        host: the model.
        config: constants.

    Raises:
        ValueError: layers that do not fit the model.
        UnsupportedModelError: the model's attention cannot take notes in front.
        ImportError: FAISS is missing.
    """

    def __init__(self, host: Host, config: ICLConfig) -> None:
        self.config = config
        self._host, self._continuing = host, Continuing()
        self._reader = Reader(host.model, host.anatomy)
        self._finder = Retriever(host, LLPConfig(most_recalled=config.k))
        self._arguments = list(inspect.signature(type(host.anatomy.decoder).forward).parameters)[1:]
        self._notes = Notes(host.text, config, self._finder.room.turns)
        self._kv: Kept[tuple[tuple[int, ...], int, int], KV] = Kept(_READ)

    @property
    def active(self) -> bool:
        """Whether any edit is in force."""
        return bool(self._finder.on)

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Decide before the decoder is entered, then attend to the notes in every layer."""
        tracker = self._host.tracker

        def enter(_m: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = tracker.current
            if call is None:
                return None
            fronted = self._decide(call, args, kwargs)
            call.scratch = fronted
            by = None if fronted is None else fronted.by(call)
            if by is None:
                return None
            return self._reader.moved(args, kwargs, call.past, call.real, by)

        def begin() -> Any:
            call = tracker.current
            if call is None or call.scratch is None:
                return None
            fronted: Fronted = call.scratch
            if call.cache is not None:
                hold(call.cache, fronted)
            call.scratch = fronted.front(call)
            return call.scratch

        def current() -> Any:
            call = tracker.current
            return None if call is None else call.scratch

        return [Hook(self._host.anatomy.decoder, "before", enter), *self._reader.hooks(begin, current)]

    def _decide(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fronted | None:
        """What the rows have read: as decided when their cache was begun, or now if this is the beginning."""
        held = call.held
        if isinstance(held, Fronted) and held.owner is self and len(held) == len(call.valid):
            return self._later(held.longer(call), call)
        if call.past:
            return None  # a cache begun without us goes on without notes
        if text_config(self._host.model).num_hidden_layers < len(self._host.anatomy.layers):
            return None  # a draft by the first layers alone (early exit), which the model itself will check
        given = self._named(args, kwargs)
        tokens = {name: given[name] for name in _TOKENS if given.get(name) is not None}
        found = self._asked(tokens, call.ids, call.real, call.prompt_end())
        cached = given.get("use_cache")
        if cached is None:
            cached = getattr(self._host.anatomy.decoder.config, "use_cache", True)
        if not cached:
            found = self._continuing.keep(call, found, lambda old, rows: [old[i] for i in rows.tolist()])
        bos = (call.real & ~call.valid).gather(1, call.start[:, None])[:, 0]
        empty = Fronted(
            self,
            ((),) * len(found),
            call.start,
            call.first,
            bos,
            None,
            call.prompt_width,
            call.ids,
            call.real,
        )
        return self._with(empty, found)

    def _later(self, held: Fronted, call: Call) -> Fronted:
        """What rows have read that were decided before: see the class."""
        again = self._again(held, call)
        if any(again) and held.ids is not None:
            end = held.real.long().cumsum(1).argmax(1)
            found = self._asked({"input_ids": held.ids}, held.ids, held.real, end)
            found = [ids if anew else () for ids, anew in zip(found, again, strict=True)]
            if any(found):
                before = replace(held, ids=held.ids[:, : call.past], real=held.real[:, : call.past])
                return self._with(replace(held, before=before, length=held.real.shape[1]), found)
        if all(id in self._finder.on for notes in held.notes for note in notes for id in note.edits):
            return held
        left = [
            [note._replace(edits=tuple(id for id in note.edits if id in self._finder.on)) for note in notes]
            for notes in held.notes
        ]
        return self._fronted(held, [tuple(note for note in notes if note.edits) for notes in left])

    def _again(self, held: Fronted, call: Call) -> list[bool]:
        """Which rows the new tokens decide anew."""
        count = call.real.shape[1]
        if count == 1 or held.ids is None:
            return [False] * len(held)
        reach = count + len(self._notes.opens)
        rows = held.ids[:, -reach:].tolist()
        return [
            not notes or self._notes.turn(row) is not None
            for notes, row in zip(held.notes, rows, strict=True)
        ]

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's arguments by name."""
        return {**dict(zip(self._arguments, args, strict=False)), **kwargs}

    def _asked(
        self, tokens: Mapping[str, Tensor], ids: Tensor | None, real: Tensor, end: Tensor
    ) -> list[tuple[str, ...]]:
        """The edits that each row asks for at its column ``end``, best first: one forward of the base model
        up to the layer that says what is asked.

        Args:
            tokens: the decoder's "input_ids" or "inputs_embeds".
            ids: LongTensor [B,T], where they are known.
            real: BoolTensor [B,T].
            end: LongTensor [B].
        """
        host, layers = self._host, self._finder.room.layers
        count = real.long().cumsum(1)
        places = (count - 1).clamp(min=0)
        given = {**tokens, "attention_mask": real.long(), "position_ids": places, "use_cache": False}
        given = taken(host.anatomy.decoder, given)
        with host.tracker.off():
            states = outputs_of(host, layers, lambda: host.anatomy.decoder(**given))
        start = real.int().argmax(1)
        valid = real
        if ids is not None and host.text.bos_id is not None:
            valid = real & ~((ids == host.text.bos_id) & (count == 1))
        seen = dict(zip(layers, states, strict=True))
        call = Call(valid, real, 0, torch.zeros_like(start), start, states=seen, ids=ids)
        asked = self._finder.asked(call)
        return [row[at] for row, at in zip(asked, end.tolist(), strict=True)]

    def _with(self, held: Fronted, edits: Sequence[tuple[str, ...]]) -> Fronted:
        """``held`` with more notes, those on ``edits``, as far as they leave a row some room."""
        rows = [[]] * len(held) if held.ids is None else held.ids.tolist()
        size = held.real.sum(1).tolist()
        notes = []
        for b, (ids, row) in enumerate(zip(edits, rows, strict=True)):
            turn = self._notes.turn(row)
            inside = turn is not None and self._reader.inserts
            room = self._host.text.max_length - size[b] - sum(map(self._size, held.notes[b]))
            ids = self._fitting(ids, inside, room)
            place = turn if turn is not None and inside else int(held.begin[b] + held.bos[b])
            notes.append((*held.notes[b], *([Note(ids, place, inside)] if ids else [])))
        return self._fronted(held, notes)

    def _size(self, note: Note) -> int:
        return len(self._notes.ids(self._edits(note.edits), note.inside))

    def _fronted(self, held: Fronted, notes: Sequence[tuple[Note, ...]]) -> Fronted:
        """``held`` with these notes in the place of its own."""
        rows = [self._row(held, b, some) if some else None for b, some in enumerate(notes)]
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
        kv = Front.stack([None if row is None else row.kv for row in rows])
        return replace(held, notes=tuple(notes), seen=Seen(kv, open_.bool(), place, shift))

    def _row(self, held: Fronted, b: int, notes: Sequence[Note]) -> _Row:
        """The notes of row ``b``, side by side."""
        first, parts = int(held.first[b]), []
        head: list[int] = []
        column = 0
        for note in notes:
            ids = self._notes.ids(self._edits(note.edits), note.inside)
            if note.inside and held.ids is not None:
                real = held.real[b, column : note.place]
                head += [*held.ids[b, column : note.place][real].tolist(), *ids]
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

    def _fitting(self, ids: tuple[str, ...], chat: bool, room: int) -> tuple[str, ...]:
        """The best of ``ids`` whose notes leave the row some room."""
        while ids and len(self._notes.ids(self._edits(ids), chat)) >= room:
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

        return self._kv.get((tuple(ids), begin, kept), read)

    def _edits(self, ids: Sequence[str]) -> list[Edit]:
        """The best one last, as that is where a model looks first."""
        return [self._finder.edit(id) for id in reversed(ids)]

    # ------------------------------------------------------------------ edits

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens, or a note longer than the context."""
        text = self._host.text
        for edit in edits:
            pair, chat = text.pair(edit.prompt, edit.target), self._inside(edit.prompt)
            text.check_length([*self._notes.ids([edit], chat), *pair.ids], self._notes.write([edit], chat))

    def _inside(self, prompt: Prompt) -> bool:
        """Whether notes stand inside a prompt, in its user's turn."""
        return self._reader.inserts and bool(self._notes.opens) and not isinstance(prompt, str)

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Learn by what each edit is recognised; the notes follow from the edits."""
        self._put(self._finder.prepare(edits, replaced))

    def forget(self, edits: Sequence[Edit], *, progress: bool) -> None:
        """Drop notes, and what edits are recognised by."""
        self._put(self._finder.without(edits))

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Take notes out of the search, or put them back."""
        self._put(self._finder.switched(edits, on))

    def _put(self, prepared: Prepared) -> None:
        with self._host.tracker.gate.changing():
            self._finder.put(prepared)
            self._kv.clear()

    # ------------------------------------------------------------------ looking, saving

    def explain(self, prompt: Prompt) -> Explanation:
        """What was found in the prompt, and the notes that are read before it.

        Raises:
            ValueError: the prompt is empty.
        """
        found = self._finder.explain(prompt)
        ids = self._host.text.encode(prompt)
        read: tuple[str, ...] = ()
        chat = self._inside(prompt)
        if self.active:
            tokens = torch.tensor([ids], device=self._host.text.device)
            end = torch.tensor([len(ids) - 1])
            (read,) = self._asked({"input_ids": tokens}, tokens, torch.ones_like(tokens).bool(), end)
            read = self._fitting(read, chat, self._host.text.max_length - len(ids))
        notes = self._notes.write(self._edits(read), chat) if read else ""
        return Explanation(found, tuple(self._edits(read)), notes)

    def state(self) -> State:
        """What edits are recognised by; notes follow from them."""
        tensors, meta = self._finder.state()
        return State(tensors, meta | {"config": asdict(self.config)})

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        restored = self._finder.read(tensors, meta, edits)
        with self._host.tracker.gate.changing():
            self._finder.take_over(restored)
            self._kv.clear()
