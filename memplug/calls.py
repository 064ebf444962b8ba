"""One forward pass of an edited model: which tokens are real, and what each row already holds.

Every method asks the same questions of a forward: which of its tokens are new, which are padding,
where each row begins, and what was decided for the row earlier, when the same key/value cache was
filled. The answers are found here once, from the decoder's own arguments, however it was called.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from .gate import Gate
from .holding import held_by
from .hooks import Hook
from .layers import Anatomy

__all__ = ["Call", "CallTracker"]

_CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""Names under which decoders are handed what they kept."""


@dataclass
class Call:
    """One forward.

    Attributes:
        valid: BoolTensor [B,T]; the new tokens that are words of the text, without the leading BOS.
        real: BoolTensor [B,T]; the new tokens that are not padding.
        past: number of cached positions before the new ones (padding included).
        first: LongTensor [B]; position id of each row's first real token.
        start: LongTensor [B]; column of each row's first real token, over cache and new tokens.
        cache: the cache in use, or None.
        held: what a method kept with that cache from earlier forwards, or None.
        states: hidden states by layer, filled by the hooks of the forward.
        scratch: whatever a method decides for this forward.
        ids: LongTensor [B,T]; the new tokens, or None where embeddings were given.
        prompt: LongTensor [B]; real tokens of each row that are its prompt, or None where nobody said.
        whole: whether it is known that no token is padding.
        media: BoolTensor [B,T]; the new tokens that stand for an image, a video or a sound, or around one;
            None where the model takes none.
    """

    valid: Tensor
    real: Tensor
    past: int
    first: Tensor
    start: Tensor
    cache: Any = None
    held: Any = None
    states: dict[int, Tensor] = field(default_factory=dict)
    scratch: Any = None
    ids: Tensor | None = None
    prompt: Tensor | None = None
    whole: bool = False
    media: Tensor | None = None

    @property
    def words(self) -> Tensor:
        """BoolTensor [B,T]; the new tokens that are words of the text, with the leading BOS."""
        return self.real if self.media is None else self.real & ~self.media

    def prompt_end(self) -> Tensor:
        """LongTensor [B]: column, among the new tokens, of each row's last prompt token.

        That is the last real token, unless `CallTracker.prompt_lengths` says where the prompt ends, or the
        model was asked for the last k logits only: these begin at the prompt's end. A row without any real
        token gives column 0.
        """
        if self.whole and self.prompt is None:
            return torch.full(self.real.shape[:1], self.real.shape[1] - 1, device=self.real.device)
        count = self.real.long().cumsum(1)
        last = count[:, -1:] if self.prompt is None else self.prompt[:, None].minimum(count[:, -1:])
        return (count >= last).long().argmax(1)

    @property
    def prompt_width(self) -> int:
        """Columns, among the new tokens, until every row's prompt has ended."""
        return self.valid.shape[1] if self.prompt is None else int(self.prompt_end().max()) + 1


class CallTracker:
    """Opens a `Call` when the decoder is entered and closes it when it is left, also by an error.

    One call is open per thread, so a model that serves several threads keeps them apart.

    Args:
        anatomy: the model's layers.
        bos_id: the id that starts a text.
        media_ids: ids that stand for no words, see `Text.media_ids`.

    Attributes:
        gate: every forward is inside it; what forwards look at is changed in `Gate.changing`.
    """

    def __init__(self, anatomy: Anatomy, bos_id: int | None, media_ids: Sequence[int] = ()) -> None:
        self._signature = inspect.signature(type(anatomy.decoder).forward)
        self._anatomy = anatomy
        self._bos_id = bos_id
        self._media = torch.tensor(media_ids, dtype=torch.long)
        self._local = threading.local()
        self.gate = Gate()

    @property
    def current(self) -> Call | None:
        """The forward that is running on this thread, if any."""
        running: list[Call | None] | None = getattr(self._local, "running", None)
        return running[-1] if running else None

    @property
    def _running(self) -> list[Call | None]:
        if not hasattr(self._local, "running"):
            self._local.running = []
        running: list[Call | None] = self._local.running
        return running

    def media(self, ids: Tensor | None) -> Tensor | None:
        """Which of some tokens stand for no words, see `Call`; None where none can, or nobody knows."""
        return None if ids is None or not len(self._media) else torch.isin(ids, self._media.to(ids.device))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Forwards of this thread inside the ``with`` are the base model's."""
        before = getattr(self._local, "off", False)
        self._local.off = True
        try:
            yield
        finally:
            self._local.off = before

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
        before = getattr(self._local, "lengths", None)
        self._local.lengths = torch.tensor(list(lengths))
        try:
            yield
        finally:
            self._local.lengths = before

    def hooks(self, wanted: Callable[[], bool]) -> list[Hook]:
        """Hooks on the decoder; ``wanted()`` false means that this forward is left alone."""

        def enter(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A forward may run inside another (a prefix is computed when it is first recalled). Each is
            # entered before anything can go wrong, since it is left whatever happens.
            gone = self.gate.enter(_forward_frame())
            running = self._running
            del running[len(running) - gone :]
            running.append(None)
            if not getattr(self._local, "off", False) and wanted():
                running[-1] = self._open(args, kwargs)

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
            call = self.current
            if call is not None and call.cache is None:
                call.cache = self._anatomy.bind(args, kwargs).get(self._anatomy.cache_arg)

        decoder, first, head = self._anatomy.decoder, self._anatomy.layers[0], self._anatomy.head
        around = [] if head is None else [Hook(head, "before", begin), Hook(head, "finally", end)]
        return [
            *around,
            Hook(decoder, "before", enter),
            Hook(first, "before", adopt),
            Hook(decoder, "finally", leave),
        ]

    def _open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        given = {**dict(zip(list(self._signature.parameters)[1:], args, strict=False)), **kwargs}
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        tokens = ids if ids is not None else embeds[..., 0]  # type: ignore[index]
        batch, length = tokens.shape
        if ids is None:  # a model that also sees embeds its tokens before it enters the text decoder
            whose = getattr(self._local, "ids", None)
            ids = whose if isinstance(whose, Tensor) and whose.shape == tokens.shape else None
        cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
        past = _filled(cache, given.get("attention_mask"), length)
        mask, bos, device = given.get("attention_mask"), self._bos_id, tokens.device
        whole = not isinstance(mask, Tensor | dict)  # then nothing is padded, and there is little to find out
        if whole:
            start = torch.zeros(batch, dtype=torch.long, device=device)
            real = valid = torch.ones(batch, length, dtype=torch.bool, device=device)
            if ids is not None and bos is not None and past == 0:
                valid = real.clone()
                valid[:, 0] = ids[:, 0] != bos
        else:
            open_ = _open_columns(mask, batch, past + length, device, self._anatomy)
            start = open_.int().argmax(dim=1)
            real = valid = open_[:, past:]
            # On another device, looking whether a row still begins would wait for it.
            if ids is not None and bos is not None and (device.type != "cpu" or past <= int(start.max())):
                begins = torch.arange(past, past + length, device=device) == start[:, None]
                valid = real & ~((ids == bos) & begins)
        positions = given.get("position_ids")
        first = start
        if positions is not None and past == 0:
            positions = positions[0] if positions.ndim == 3 else positions
            first = positions.expand(batch, -1).gather(1, start[:, None])[:, 0].to(start.device)
        prompt = None if past else self._prompts(batch, device)
        kept = getattr(self._local, "kept", None)
        if prompt is None and past == 0 and type(kept) is int and 1 < kept <= length:
            # The first of the logits asked for is the prompt's: what follows is a draft (assisted decoding),
            # or an answer that is being judged.
            prompt = real.sum(1) - (kept - 1)
        held, media = held_by(cache), self.media(ids)
        valid = valid if media is None else valid & ~media
        return Call(
            valid, real, past, first, start, cache, held, ids=ids, prompt=prompt, whole=whole, media=media
        )

    def _prompts(self, batch: int, device: torch.device) -> Tensor | None:
        lengths: Tensor | None = getattr(self._local, "lengths", None)
        if lengths is None or len(lengths) == batch:
            return lengths if lengths is None else lengths.to(device)
        if batch % len(lengths):
            raise ValueError(
                f"{len(lengths)} prompt lengths for a batch of {batch} rows; give one for each row"
            )
        return lengths.to(device).repeat_interleave(batch // len(lengths))


def _forward_frame() -> FrameType | None:
    """The frame of the innermost module call that runs a hook; it lasts as long as the module's forward."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") != nn.Module.__module__:
        frame = frame.f_back
    return frame


def _filled(cache: Any, mask: Any, length: int) -> int:
    """Columns in the cache; of one that counts none (state-space layers), as many as the mask says, or 1."""
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):
        begun = getattr(cache, "has_previous_state", lambda: True)()
        columns = mask.shape[1] - length if isinstance(mask, Tensor) and mask.ndim == 2 else 0
        return max(1, columns) if begun else 0


def _open_columns(mask: Any, batch: int, total: int, device: torch.device, anatomy: Anatomy) -> Tensor:
    """BoolTensor [B,total] of the columns that hold a real token, from any form of attention mask."""
    if isinstance(mask, dict):  # one mask per kind of layer; full attention sees every real token
        mask = mask.get("full_attention", next(iter(mask.values())))
    if not isinstance(mask, Tensor):  # None, or a block mask: nothing is padded
        return torch.ones(batch, total, dtype=torch.bool, device=device)
    if mask.ndim == 4:  # prebuilt [B,H,T,columns]: what any query sees, since one may see a window only
        seen = mask[:, 0, :, :total]
        mask = ((seen ^ anatomy.masked_is_true) if seen.dtype == torch.bool else seen > -1).any(1)
    mask = mask[:, :total].to(device=device, dtype=torch.bool).expand(batch, -1)
    if mask.shape[1] < total:  # a caller may leave out the columns of a cache without padding
        seen = torch.ones(batch, total - mask.shape[1], dtype=torch.bool, device=device)
        mask = torch.cat([seen, mask], dim=1)
    return mask
