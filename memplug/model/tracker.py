"""One forward pass of an edited model: which tokens are real, and what each row already holds.

Every method asks the same questions of a forward: which of its tokens are new, which are padding,
where each row begins, and what was decided for the row earlier, when the same key/value cache was
filled. The answers are found here once, from the decoder's own arguments, however it was called.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Architecture, UnsupportedModelError, taken
from .arguments import begins_anew, filled, forward_frame, generating, open_columns, ordinary
from .context import Call
from .gate import Gate
from .hooks import Hook
from .interrupts import undone
from .row_state import RowState, Tokens, held_by, hold, tokens_of

__all__ = ["CallTracker"]

_PACKED = (
    "{}, but edits are looked for row by row; give each text a row of its own (padded, with its mask) in "
    "generate() or the model, or choose a method that changes weights (ultraedit, finetune)"
)
_UNREAD = (
    "the cache was filled before these edits could be looked for in it (before the plug was attached, or "
    "with embeddings before an edit), and cannot be filled again; begin with a new cache and the whole prompt"
)
_CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""Names under which decoders are handed what they kept."""
_SOURCE = ("encoder_hidden_states", "encoder_attention_mask")


class CallTracker:
    """Opens a `Call` when the decoder is entered and closes it when it is left, also by an error.

    One call is open per thread, so a model that serves several threads keeps them apart.

    Args:
        architecture: the model's layers.
        bos_id: the id that starts a text.
        media_ids: ids that stand for no words, see `vocabulary.media_ids`.

    Attributes:
        gate: every forward is inside it; what forwards look at is changed in `Gate.changing`.
    """

    def __init__(self, architecture: Architecture, bos_id: int | None, media_ids: Sequence[int] = ()) -> None:
        self._signature = inspect.signature(type(architecture.decoder).forward)
        self._architecture = architecture
        self._bos_id = bos_id
        self._media = torch.tensor(media_ids, dtype=torch.long)
        self._local = threading.local()
        self.gate = Gate()

    @property
    def current(self) -> Call | None:
        """The forward that is running on this thread, if any."""
        running: list[tuple[Call | None, bool]] | None = getattr(self._local, "running", None)
        call, wanted = running[-1] if running else (None, False)
        return call if wanted else None

    @property
    def _running(self) -> list[tuple[Call | None, bool]]:
        """The forwards under way on this thread, and whether a method looks at them."""
        if not hasattr(self._local, "running"):
            self._local.running = []
        running: list[tuple[Call | None, bool]] = self._local.running
        return running

    def media(self, ids: Tensor | None) -> Tensor | None:
        """Which of some tokens stand for no words, see `Call`; None where none can, or nobody knows."""
        return None if ids is None or not len(self._media) else torch.isin(ids, self._media.to(ids.device))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Forwards of this thread inside the ``with`` are the base model's."""
        with self._setting("off", True):
            yield

    @contextmanager
    def _setting(self, name: str, value: Any) -> Iterator[None]:
        before = getattr(self._local, name, None)
        with undone(lambda: setattr(self._local, name, before)):
            setattr(self._local, name, value)
            yield

    def fill(self, cache: Any, tokens: Tokens, rows: RowState) -> None:
        """Fill ``cache`` again with these tokens, for whose rows a method has decided ``rows``."""
        cache.reset()
        hold(cache, rows)
        with self._setting("again", True):
            self._read(cache, tokens, {})

    @contextmanager
    def prompt_lengths(self, lengths: Sequence[int]) -> Iterator[None]:
        """Forwards of this thread inside the ``with`` that start a text have prompts of these lengths.

        Args:
            lengths: one number a row: its first so many real tokens (a BOS counts) are the prompt, the
                rest an answer that is being judged. Rows repeated by ``generate`` share theirs.

        Raises:
            ValueError: a length below 1; in a forward, rows that the lengths cannot be dealt out to.
        """
        if not lengths or min(lengths) < 1:
            raise ValueError(
                f"prompt lengths are {list(lengths)[:8]}; give one number of tokens a row, at least 1"
            )
        with self._setting("lengths", torch.tensor(list(lengths))):
            yield

    def hooks(self, wanted: Callable[[], object]) -> list[Hook]:
        """Hooks on the decoder; ``wanted()`` stands for the edits in force, and is None where none are."""

        def enter(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A forward may run inside another (a prefix is computed when it is first recalled). Each is
            # entered before anything can go wrong, since it is left whatever happens.
            gone = self.gate.enter(forward_frame())
            running = self._running
            del running[len(running) - gone :]
            running.append((None, False))
            if not getattr(self._local, "off", False):
                state = wanted() or None
                running[-1] = self._open(args, kwargs, state), bool(state)

        def begin(_m: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self._local.kept = kwargs.get("logits_to_keep")
            self._local.ids = kwargs.get("input_ids", args[0] if args else None)

        def end(_m: nn.Module, _args: Any, _kwargs: Any, _output: Any) -> None:
            self._local.kept = self._local.ids = None

        def leave(_m: nn.Module, _args: Any, _kwargs: Any, _output: Any) -> None:
            if self._running:  # empty where the hooks came in the middle of a forward
                self._running.pop()
                self.gate.leave()

        def adopt(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A decoder that is handed no cache makes one; its layers see it first.
            call = self._running[-1][0] if self._running else None
            if call is not None and call.cache is None:
                call.cache = self._architecture.bind(args, kwargs).get(self._architecture.cache_arg)
            # Also where no edit is in force yet: one that comes later is looked for in what was read.
            if call is not None and call.cache is not None and call.tokens is not None and keeps:
                hold(call.cache, call.tokens)

        keeps = self._architecture.keeps
        decoder, first, head = (
            self._architecture.decoder,
            self._architecture.layers[0],
            self._architecture.head,
        )
        around = [] if head is None else [Hook(head, "before", begin), Hook(head, "finally", end)]
        return [
            *around,
            Hook(decoder, "before", enter),
            Hook(first, "before", adopt),
            Hook(decoder, "finally", leave),
        ]

    def _open(self, args: tuple[Any, ...], kwargs: dict[str, Any], state: object) -> Call | None:
        given = {**dict(zip(list(self._signature.parameters)[1:], args, strict=False)), **kwargs}
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if ids is None and embeds is None:
            return None  # which the model itself will complain of
        tokens = ids if ids is not None else embeds[..., 0]  # type: ignore[index]
        batch, length = tokens.shape
        if ids is None:  # a model that also sees embeds its tokens before it enters the text decoder
            whose = getattr(self._local, "ids", None)
            ids = whose if isinstance(whose, Tensor) and whose.shape == tokens.shape else None
        cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
        past = filled(cache, given.get("attention_mask"), length)
        mask, bos, device = given.get("attention_mask"), self._bos_id, tokens.device
        whole = not isinstance(mask, Tensor | dict)  # then nothing is padded, and there is little to find out
        if whole:
            start = torch.zeros(batch, dtype=torch.long, device=device)
            real = valid = torch.ones(batch, length, dtype=torch.bool, device=device)
            if ids is not None and bos is not None and past == 0:
                valid = real.clone()
                valid[:, 0] = ids[:, 0] != bos
        else:
            open_ = open_columns(mask, batch, past + length, device, self._architecture)
            start = open_.int().argmax(dim=1)
            real = valid = open_[:, past:]
            # On another device, looking whether a row still begins would wait for it.
            if ids is not None and bos is not None and (device.type != "cpu" or past <= int(start.max())):
                begins = torch.arange(past, past + length, device=device) == start[:, None]
                valid = real & ~((ids == bos) & begins)
        positions = given.get("position_ids")
        first = start
        refused = ""
        usual = whole or ordinary(mask, real, open_, self._architecture)
        if positions is not None:
            simple = positions.ndim < 3
            positions = (positions if simple else positions[0]).expand(batch, -1).to(device)
            first = positions.gather(1, (start - past).clamp(0, length - 1)[:, None])[:, 0]
            if state and past == 0 and simple and begins_anew(positions, real):
                refused = _PACKED.format("position_ids begin anew within a row, which holds several texts")
                usual = False
        if type(given.get("cache")).__name__ == "PagedAttentionCache":
            refused = _PACKED.format("continuous batching (generate_batch) reads many texts as one row")
        told = getattr(self._local, "lengths", None) is not None
        prompt = None if past or not state else self._prompts(batch, device)
        kept: Any = getattr(self._local, "kept", None)
        judged = type(kept) is int and 1 < kept <= length
        if prompt is None and judged and (past == 0 or kept < length):
            # The first of the logits asked for is the prompt's: what follows is a draft (assisted decoding),
            # or an answer that is being judged.
            prompt = real.sum(1) - (kept - 1)
        media = self.media(ids)
        valid = valid if media is None else valid & ~media
        reads = generating() if past else ""
        goes_on = self._architecture.encoder is None  # else all behind the start token is the answer
        part = goes_on and reads != "drafts" and (prompt is not None or not (length == 1 or judged or told))
        is_prompt = (past == 0 or reads == "prompt" or part) and not getattr(self._local, "again", False)
        new = Tokens(
            torch.full_like(real, -1, dtype=torch.long) if ids is None else ids,
            real,
            first,
            (real.sum(1) if prompt is None else prompt) if is_prompt else torch.zeros_like(start),
            state,
            usual and (given.get("input_ids") is not None or self._stands_for(ids, embeds)),
        )
        so_far: Tokens | None = new
        if past:
            known = tokens_of(cache)
            if known is not None and known.ids.shape != (batch, past):
                known = None  # a caller has put some in by hand
            if known is not None and known.state is not state and known.plain and reads != "drafts":
                source = {name: given[name] for name in _SOURCE if name in given}
                known = self._fill(cache, known, state, source)
            if is_prompt and (known is None or known.state is not state):
                refused = refused or _UNREAD
            so_far = known and known.more(new)
        return Call(
            valid, real, past, first, start, cache, held_by(cache), ids=ids, marks=tokens, prompt=prompt,
            whole=whole, media=media, tokens=so_far, is_prompt=is_prompt, prefills=reads == "prompt",
            refused=refused,
        )  # fmt: skip

    def _fill(self, cache: Any, tokens: Tokens, state: object, source: dict[str, Any]) -> Tokens:
        """Fill ``cache`` again, with the edits in force: these tokens were read with others.

        Args:
            source: what the decoder is handed of what an encoder read.
        """
        cache.reset()
        with self.prompt_lengths(tokens.asked.clamp(min=1).tolist()):
            self._read(cache, tokens, source)
        return replace(tokens, state=state)

    def _read(self, cache: Any, tokens: Tokens, source: dict[str, Any]) -> None:
        given = {
            "input_ids": tokens.ids,
            "attention_mask": tokens.real.long(),
            "position_ids": tokens.positions,
            "past_key_values": cache,
            "use_cache": True,
            **source,
        }
        decoder = self._architecture.decoder
        try:
            decoder(**taken(decoder, given))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a kind of cache that only `generate` knows how to hand in
            raise UnsupportedModelError(_UNREAD) from error

    def _stands_for(self, ids: Tensor | None, embeds: Any) -> bool:
        """Whether embeddings are those of these ids, and of nothing that was seen or heard."""
        ask: Any = getattr(self._architecture.decoder, "get_input_embeddings", None)
        if ids is None or ask is None or int(ids.max()) >= ask().weight.shape[0]:
            return False
        return torch.equal(ask()(ids), embeds)

    def _prompts(self, batch: int, device: torch.device) -> Tensor | None:
        if self._architecture.encoder is not None:  # the prompt is the source: all else is the answer
            return torch.ones(batch, dtype=torch.long, device=device)
        lengths: Tensor | None = getattr(self._local, "lengths", None)
        if lengths is None or len(lengths) == batch:
            return lengths if lengths is None else lengths.to(device)
        if batch % len(lengths):
            raise ValueError(
                f"{len(lengths)} prompt lengths for a batch of {batch} rows; give one for each row"
            )
        return lengths.to(device).repeat_interleave(batch // len(lengths))
