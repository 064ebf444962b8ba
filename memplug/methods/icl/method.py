"""In-context editing: what was edited is said before the prompt, and the model answers from that."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...edits import Edit
from ...interface import Host
from ...model.architecture import UnsupportedModelError, taken, text_config
from ...model.context import Call
from ...model.hooks import Hook
from ...model.row_state import Tokens, hold
from ...retrieval.config import RetrievalConfig
from ...retrieval.keys import outputs_of
from ...text.chat import Prompt
from ..continuing import Continuing
from ..retrieval_method import RetrievalMethod
from .config import ICLConfig
from .explain import Explanation
from .front import Reader
from .fronted import Fronted, Note
from .notes import Notes
from .placing import Placer

__all__ = ["ICL"]

_TOKENS = ("input_ids", "inputs_embeds")


class ICL(RetrievalMethod):
    """Reads notes on the edits that a prompt asks for before it; the base model's weights never change.

    The notes come between a row's BOS and the rest of it. They are not part of the row: ids, logits,
    positions and the caller's cache keep their length, and attention sees the notes' keys and values in every
    layer, just as it would see them in one text. (Layers with a sliding window see all of the notes.) A
    text's first forward decides, at its last token, or at the prompt's end where that is told
    (`Plug.prompt_lengths`). With a cache, what comes later is a further part of the prompt if it is several
    tokens or ``generate`` says so; it decides anew for its turn, and the cache is filled again where its
    tokens would have seen the notes. A prompt that a caller hands to the model token by token is taken for
    generated text: it is decided by its first token, that is, not at all.

    Args:
        host: the model.
        config: constants.

    Raises:
        ValueError: layers that do not fit the model.
        UnsupportedModelError: the model's attention cannot take notes in front.
    """

    def __init__(self, host: Host, config: ICLConfig) -> None:
        self._reader, self._continuing = Reader(host.model, host.architecture), Continuing()
        super().__init__(host, config, RetrievalConfig(most_recalled=config.k))
        self._arguments = list(inspect.signature(type(host.architecture.decoder).forward).parameters)[1:]
        self._notes = Notes(host.text, config, self.retriever.room.turns)
        self._placer = Placer(host, self._reader, self._notes, self.retriever.edit)

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Decide before the decoder is entered, then attend to the notes in every layer."""
        tracker = self._host.tracker

        def enter(_m: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = tracker.current
            if call is None:
                return None
            call.check()
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

        return [Hook(self._host.architecture.decoder, "before", enter), *self._reader.hooks(begin, current)]

    def _decide(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fronted | None:
        """What the rows have read: as decided before, or now if a prompt begins or goes on."""
        held = Fronted.of(call, self)
        given = self._named(args, kwargs)
        read = call.tokens
        if read is not None and self._reader.by_mask and given.get("position_ids") is None:
            read = replace(read, first=torch.zeros_like(read.first))
        if not call.is_prompt:
            return held and self._left(held, read)
        if text_config(self._host.model).num_hidden_layers < len(self._host.architecture.layers):
            return held  # a draft by the first layers alone (early exit), which the model itself will check
        if call.past:
            return self._later(held, call, read)  # type: ignore[arg-type]
        tokens = {name: given[name] for name in _TOKENS if given.get(name) is not None}
        found = self._asked(tokens, call.ids, call.real, call.prompt_end())
        cached = given.get("use_cache")
        if cached is None:
            cached = getattr(self._host.architecture.decoder.config, "use_cache", True)
        if not cached:
            found = self._continuing.keep(call, found, lambda old, rows: [old[i] for i in rows.tolist()])
        return self._placer.placed(self._empty(read), read, found)  # type: ignore[arg-type]

    def _empty(self, tokens: Tokens) -> Fronted:
        """No notes."""
        begin, bos = tokens.real.int().argmax(1), self._host.text.bos_id
        ids = tokens.ids.gather(1, begin[:, None])[:, 0]
        return Fronted(self, ((),) * len(tokens), begin, ids == (-2 if bos is None else bos), None)

    def _left(self, held: Fronted, tokens: Tokens | None) -> Fronted:
        """``held`` without notes on edits that are no longer in force."""
        on = self.retriever.on
        if tokens is None or all(id in on for row in held.notes for note in row for id in note.edits):
            return held
        left = [
            [note._replace(edits=tuple(id for id in note.edits if id in on)) for note in row]
            for row in held.notes
        ]
        kept = [tuple(note for note in row if note.edits) for row in left]
        return self._placer.fronted(held, tokens, kept)

    def _later(self, held: Fronted | None, call: Call, tokens: Tokens) -> Fronted:
        """What rows have read when their prompt has gone on; the cache is filled anew where it has to be.

        Raises:
            UnsupportedModelError: its tokens are not known, or the cache cannot be filled with them.
        """
        if bool((tokens.ids < 0).any()):
            raise UnsupportedModelError(
                "what the cache holds was given as embeddings, in which no edit can be looked for when more "
                "of the prompt comes; give it as token ids, or at once and with a new cache"
            )
        before = self._empty(tokens)
        if held is not None:
            left = self._left(held, tokens)
            before = replace(before, notes=left.notes, seen=left.seen)
        end = call.past + call.prompt_end()
        found = self._asked({"input_ids": tokens.ids}, tokens.ids, tokens.real, end)
        fresh = self._placer.placed(before, tokens, found)
        if not call.prefills:  # it may be an answer that is judged: where it asks nothing the notes stay
            notes = [
                old if old and not ids else new
                for old, new, ids in zip(before.notes, fresh.notes, found, strict=True)
            ]
            fresh = self._placer.fronted(before, tokens, notes)

        def read(fronted: Fronted | None) -> list[list[Note]]:
            """Notes that the tokens in the cache have seen."""
            rows = fronted.notes if fronted else ((),) * len(tokens)
            return [[note for note in row if note.place < call.past] for row in rows]

        if read(held) != read(fresh):
            if not tokens.plain:
                raise UnsupportedModelError(
                    "a note has to stand before tokens that are in the cache, which cannot be filled again "
                    "(from embeddings, or with a mask of the caller's); give the whole prompt at once, and a "
                    "new cache"
                )
            self._host.tracker.fill(call.cache, tokens.crop(call.past), fresh)
        return fresh

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
        host, layers = self._host, self.retriever.room.layers
        media = self._host.tracker.media(ids)
        if media is not None and "input_ids" in tokens:  # they have no embeddings of their own
            tokens, real = {"input_ids": tokens["input_ids"].masked_fill(media, 0)}, real & ~media
        count = real.long().cumsum(1)
        places = (count - 1).clamp(min=0)
        given = {**tokens, "attention_mask": real.long(), "position_ids": places, "use_cache": False}
        given = taken(host.architecture.decoder, given)
        with host.tracker.off():
            states = outputs_of(host, layers, lambda: host.architecture.decoder(**given))
        start = real.int().argmax(1)
        valid = real
        if ids is not None and host.text.bos_id is not None:
            valid = real & ~((ids == host.text.bos_id) & (count == 1))
        seen = dict(zip(layers, states, strict=True))
        valid = valid if media is None else valid & ~media
        call = Call(valid, real, 0, torch.zeros_like(start), start, states=seen, ids=ids, media=media)
        asked = self.retriever.asked(call)
        return [row[at] for row, at in zip(asked, end.tolist(), strict=True)]

    # ------------------------------------------------------------------ edits

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens, or a note longer than the context."""
        text = self._host.text
        for edit in edits:
            pair, chat = text.pair(edit.prompt, edit.target), self._inside(edit.prompt)
            text.check_length([*self._notes.ids([edit], chat), *pair.ids], self._notes.write([edit], chat))

    def _inside(self, prompt: Prompt) -> bool:
        """Whether notes stand inside a prompt, in its user's turn."""
        return self._placer.inserts and not isinstance(prompt, str)

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Learn by what each edit is recognised; the notes follow from the edits."""
        prepared = self.retriever.prepare(edits, replaced)
        if self._host.text.has_chat and not self._placer.inserts:
            warnings.warn(  # a warning may be an error: nothing has changed yet
                "in a chat the notes are read in front of all turns, where models follow them less than in "
                "the user's turn: the chat template marks no turns, or the model takes no positions",
                stacklevel=3,
            )
        self._put(prepared)

    def _take(self, learned: Any) -> None:
        self._placer.clear()

    def explain(self, prompt: Prompt) -> Explanation:
        """What was found in the prompt, and the notes that are read before it."""
        found = self.retriever.explain(prompt)
        ids, chat = self._host.text.encode(prompt), self._inside(prompt)
        read: tuple[str, ...] = ()
        if self.active:
            tokens = torch.tensor([ids], device=self._host.text.device)
            end = torch.tensor([len(ids) - 1])
            (read,) = self._asked({"input_ids": tokens}, tokens, torch.ones_like(tokens).bool(), end)
            read = self._placer.fitting(read, chat, self._host.text.max_length - len(ids))
        edits = self._placer.edits(read)
        return Explanation(found, tuple(edits), self._notes.write(edits, chat) if read else "")
