"""What is known of one forward, by all hooks that run in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import UnsupportedModelError
from .row_state import Tokens

__all__ = ["Call"]


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
        marks: [B,T]; what new tokens are told apart by: their ids, or a part of their embeddings.
        prompt: LongTensor [B]; real tokens of each row that are its prompt, or None where nobody said.
        whole: whether it is known that no token is padding.
        media: BoolTensor [B,T]; the new tokens that stand for an image, a video or a sound, or around one;
            None where the model takes none.
        tokens: those of the cache's columns and the new ones; None where some went into the cache unseen.
        is_prompt: whether the new tokens are a prompt's, or a further part of one, and no answer.
        prefills: whether it is known that they are (``generate`` reads a prompt in pieces).
        refused: why no edit can be looked for in its rows; empty where one can.
        met: layers in which a hook was met; see `inner_hooks`.
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
    marks: Tensor | None = None
    prompt: Tensor | None = None
    whole: bool = False
    media: Tensor | None = None
    tokens: Tokens | None = None
    is_prompt: bool = True
    prefills: bool = False
    refused: str = ""
    met: set[nn.Module] = field(default_factory=set)

    @property
    def words(self) -> Tensor:
        """BoolTensor [B,T]; the new tokens that are words of the text, with the leading BOS."""
        return self.real if self.media is None else self.real & ~self.media

    def check(self) -> None:
        """Raises UnsupportedModelError where edits cannot be looked for in its rows."""
        if self.refused:
            raise UnsupportedModelError(self.refused)

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
