"""In-context editing: what was edited is said before the prompt, and the model answers from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ...calls import Call
from ...chat import Prompt, question
from ...checked import check_edits, check_rest, names, numbered_from, shaped
from ...edits import Edit, EditTable
from ...holding import hold
from ...hooks import Hook
from ...kept import Kept
from ...layers import evaluating, text_config
from ...nearest import Nearest
from ...prefix import KV
from ..base import Host, State
from ..continuing import Continuing, rows_of
from .config import ICLConfig
from .embedding import Embedder
from .explain import Explanation
from .front import Front, Reader
from .fronted import Fronted
from .notes import Notes

__all__ = ["ICL"]

_READ = 64  # notes whose keys and values per layer stay at hand


class ICL:
    """Reads the notes on the edits nearest to a prompt before it; the base model's weights never change.

    The notes come between a row's BOS and the rest of it. They are not part of the row: ids, logits,
    positions and the caller's cache keep their length, and attention sees the notes' keys and values in every
    layer, just as it would see them in one text. (Layers with a sliding window see all of the notes.) A
    text's first forward decides; where it is told where the prompt ends (`Plug.prompt_lengths`), by the
    prompt alone.

    Args:
        host: the model.
        config: constants; the layer is chosen from the model's depth if left open.

    Raises:
        ValueError: a layer out of range.
        UnsupportedModelError: the model's attention cannot take notes in front.
        ImportError: FAISS is missing.
    """

    def __init__(self, host: Host, config: ICLConfig) -> None:
        self.config = config.resolve(len(host.anatomy.layers))
        self._host, self._continuing = host, Continuing()
        self._notes = Notes(host.text, self.config)
        self._reader = Reader(host.model, host.anatomy)
        self._embedder = Embedder(host, self.config)
        self._index = Nearest(host.anatomy.width, "cosine")
        self.records: dict[str, tuple[int, Edit, Tensor]] = {}  # number, edit, embedding
        self.off: set[str] = set()
        self._ids: dict[int, str] = {}
        self._next = 0
        self._kv: Kept[tuple[tuple[str, ...], bool, int], KV] = Kept(_READ)

    @property
    def active(self) -> bool:
        """Whether any edit is in force."""
        return bool(self._ids)

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
            if fronted is None or not bool(fronted.moved.any()):
                return None
            by = fronted.moved[:, None] * fronted.after(call)
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
            return self._kept(held)
        if call.past:
            return None  # a cache begun without us goes on without notes
        if text_config(self._host.model).num_hidden_layers < len(self._host.anatomy.layers):
            return None  # a draft by the first layers alone (early exit), which the model itself will check
        given = self._embedder.named(args, kwargs)
        query = self._embedder.prompts(call, given)
        cached = given.get("use_cache")
        if cached is None:
            cached = getattr(self._host.anatomy.decoder.config, "use_cache", True)
        if not cached:
            query = self._continuing.keep(call, query, rows_of)
        found = self._find(query)
        begin = call.start[:, None]
        bos = (call.real & ~call.valid).gather(1, begin)[:, 0]
        room = self._host.text.max_length - call.real.sum(1)
        edits = tuple(
            self._fitting(ids, size) if bool(there) else ()
            for ids, size, there in zip(found, room.tolist(), call.valid.any(1), strict=True)
        )
        return self._fronted(edits, call, bos)

    def _fitting(self, ids: tuple[str, ...], room: int) -> tuple[str, ...]:
        """The nearest of ``ids`` whose notes leave the row some room."""
        while ids and len(self._notes.ids(self._edits(ids))) >= room:
            ids = ids[1:]
        return ids

    def _fronted(self, edits: tuple[tuple[str, ...], ...], call: Call, bos: Tensor) -> Fronted:
        rows = zip(edits, bos.tolist(), call.first.tolist(), strict=True)
        kv, open_ = self._stack([self._kv_of(*row) if row[0] else None for row in rows])
        moved = torch.zeros_like(call.start)
        if self._reader.counts_on and open_ is not None:
            moved = open_.sum(1).to(moved) - bos.to(moved)
            moved = moved * torch.tensor([bool(ids) for ids in edits], device=moved.device)
        length = call.prompt_width
        return Fronted(self, edits, call.start, call.first, bos, moved, kv, open_, length)

    def _kept(self, held: Fronted) -> Fronted:
        """What rows have read, less the notes on edits that are no longer in force."""
        in_force = set(self._ids.values())
        edits = tuple(tuple(id for id in ids if id in in_force) for ids in held.edits)
        if edits == held.edits:
            return held
        rows = zip(edits, held.bos.tolist(), held.first.tolist(), strict=True)
        kv, open_ = self._stack([self._kv_of(*row) if row[0] else None for row in rows])
        return replace(held, edits=edits, kv=kv, open=open_)

    @staticmethod
    def _stack(rows: Sequence[KV | None]) -> tuple[KV | None, Tensor | None]:
        return Front.stack(rows) if any(row is not None for row in rows) else (None, None)

    def _kv_of(self, ids: tuple[str, ...], bos: bool, first: int) -> KV:
        """Keys and values of notes per layer; computed alone, so that their bits depend on nothing else."""

        @torch.no_grad()
        def read() -> KV:
            tokens = self._notes.ids(self._edits(ids))
            begin = [self._host.text.bos_id] if bos else []
            with self._host.tracker.off(), evaluating(self._host.model):
                return self._reader.read([*begin, *tokens], bos, first)  # type: ignore[list-item]

        return self._kv.get((ids, bos, first), read)

    def _find(self, query: Tensor) -> list[tuple[str, ...]]:
        """The edits whose notes each row reads, the nearest last."""
        near = self._index.search(query, self.config.k)
        return [
            tuple(
                self._ids[int(n)]
                for n, cosine in reversed(list(zip(numbers, cosines, strict=True)))
                if n >= 0 and cosine > self.config.threshold
            )
            for numbers, cosines in zip(near.number, near.measure, strict=True)
        ]

    def _edits(self, ids: Sequence[str]) -> list[Edit]:
        return [self.records[id][1] for id in ids]

    # ------------------------------------------------------------------ edits

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens, or a note longer than the context."""
        text = self._host.text
        for edit in edits:
            pair = text.pair(edit.prompt, edit.target)
            text.check_length([*self._notes.ids([edit]), *pair.ids], self._notes.write([edit]))

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Note each edit under the embedding of its prompt."""
        gone = {str(edit.id) for edit in replaced}
        fresh = self._embedder.texts([edit.prompt for edit in edits])
        records = {id: record for id, record in self.records.items() if id not in gone}
        for number, (edit, embedding) in enumerate(zip(edits, fresh, strict=True), start=self._next):
            records[str(edit.id)] = (number, edit, embedding)
        self._put(records, self.off - gone)
        self._next += len(edits)

    def forget(self, edits: Sequence[Edit], *, progress: bool) -> None:
        """Drop notes and embeddings."""
        gone = {str(edit.id) for edit in edits}
        records = {id: record for id, record in self.records.items() if id not in gone}
        self._put(records, self.off - gone)

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Take notes out of the search, or put them back."""
        ids = {str(edit.id) for edit in edits}
        self._put(self.records, self.off - ids if on else self.off | ids)

    def _put(self, records: dict[str, tuple[int, Edit, Tensor]], off: set[str]) -> None:
        on = {number: embedding for id, (number, _, embedding) in records.items() if id not in off}
        ids = {number: id for id, (number, _, _) in records.items() if id not in off}
        with self._host.tracker.gate.changing():
            self._index.hold(on)
            self.records, self.off, self._ids = dict(records), set(off), ids
            self._kv.clear()

    # ------------------------------------------------------------------ looking, saving

    def explain(self, prompt: Prompt) -> Explanation:
        """The nearest edits, and the notes that are read before the prompt.

        Raises:
            ValueError: the prompt is empty.
        """
        if not question(prompt).strip():
            raise ValueError(f"the prompt is empty ({prompt!r}); give it some text")
        query = self._embedder.texts([prompt])
        near = self._index.search(query, self.config.k + 2)
        pairs = [(int(n), float(c)) for n, c in zip(near.number[0], near.measure[0], strict=True) if n >= 0]
        nearest = tuple((self.records[self._ids[n]][1], cosine) for n, cosine in pairs)
        room = self._host.text.max_length - len(self._host.text.encode(prompt))
        read = self._fitting(self._find(query)[0], room)
        notes = self._notes.write(self._edits(read)) if read else ""
        return Explanation(prompt, nearest, self.config.threshold, notes)

    def state(self) -> State:
        """Embeddings; notes follow from the edits."""
        width = self._index.width
        embeddings = [embedding for _, _, embedding in self.records.values()]
        tensors = {
            "embeddings": torch.stack(embeddings)
            if embeddings
            else torch.zeros(0, width, dtype=torch.float32)
        }
        if self._embedder.center is not None:
            tensors["center"] = self._embedder.center
        meta = {
            "numbers": {id: number for id, (number, _, _) in self.records.items()},
            "off": sorted(self.off),
            "next": self._next,
            "config": asdict(self.config),
        }
        return State(tensors, meta)

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: EditTable) -> None:
        """Take over what `state` gave; see `Method.restore`."""
        numbers, off = numbered_from(meta), names(meta["off"], "the edits that are off")
        check_edits(numbers, off, edits)
        check_rest(tensors, ("embeddings", "center"))
        width = self._index.width
        embeddings = shaped(tensors, "embeddings", (len(numbers), width), torch.float32)
        has_center = "center" in tensors or (self.config.center and len(numbers) > 0)
        center = shaped(tensors, "center", (width,), torch.float32) if has_center else None
        records = {
            id: (number, edits[id], embedding)
            for (id, number), embedding in zip(numbers.items(), embeddings, strict=True)
        }
        with self._host.tracker.gate.changing():
            self._put(records, set(off))
            self._embedder.center, self._next = center, meta["next"]
