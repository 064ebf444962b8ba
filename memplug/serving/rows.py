"""One answer while it is made: which token comes next, the text so far, and where it ends.

Knows nothing of queues and HTTP. A row's draws come from its own generator, so that neither the rows beside
it nor the process's generator make a difference.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..text.tokens import Text

__all__ = ["Piece", "Row", "Sampling"]

_TAIL = 8  # prompt tokens that a tokenizer is shown, so that it puts the right blank before the first new one


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen and ended.

    Attributes:
        limit: new tokens at most.
        temperature: below 0.001 the likeliest token is taken each time.
        top_p: the likeliest tokens that together have this probability are drawn from.
        stops: texts before which the answer ends.
        seed: of the draws; None for another each time.
    """

    limit: int
    temperature: float = 0.0
    top_p: float = 1.0
    stops: tuple[str, ...] = ()
    seed: int | None = None


class Piece(NamedTuple):
    """What comes next of an answer; in the last, ``finish`` is "stop" or "length", or ``error`` is why it
    ends without either."""

    text: str = ""
    finish: str | None = None
    error: Exception | None = None


class Row:
    """An answer to token ``ids``.

    Attributes:
        ids: the prompt's tokens.
        base: whether the base model is asked.
        count: tokens made so far, one that ends it among them.
        done: whether it has ended, or nobody wants it any more.
    """

    def __init__(
        self, text: Text, ids: list[int], sampling: Sampling, base: bool, emit: Callable[[Piece], Any]
    ) -> None:
        self.ids, self.sampling, self.base, self.count, self.done = ids, sampling, base, 0, False
        self._text, self._emit, self._ends = text, emit, frozenset(text.eos_ids)
        self._tail = ids[-_TAIL:]
        self._front, self._read = 0, len(self._tail)
        self._kept = ""  # text that may be the beginning of a stop
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._draws = torch.Generator().manual_seed(seed) if sampling.temperature >= 1e-3 else None

    @property
    def sampled(self) -> bool:
        """Whether its tokens are drawn."""
        return self._draws is not None

    def choose(self, scores: Tensor) -> int:
        """The id that is drawn from logits [V]."""
        probabilities = (scores.float().cpu() / self.sampling.temperature).softmax(-1)
        ordered, ids = probabilities.sort(descending=True)
        # What lies behind the first tokens that reach top_p is left out; the first one never is.
        ordered[1:][(ordered.cumsum(-1) - ordered)[1:] >= self.sampling.top_p] = 0
        return int(ids[torch.multinomial(ordered, 1, generator=self._draws)])

    def take(self, token: int) -> None:
        """Go on with this token."""
        if self.done:
            return
        self.count += 1
        ended = token in self._ends
        text = self._decoded([] if ended else [token], ended or self.count >= self.sampling.limit)
        found = self._kept + text
        places = [at for stop in self.sampling.stops if (at := found.find(stop)) >= 0]
        if places:
            self._end(Piece(found[: min(places)], "stop"))
        elif ended or self.count >= self.sampling.limit:
            self._end(Piece(found, "stop" if ended else "length"))
        else:
            keep = max((_overlap(found, stop) for stop in self.sampling.stops), default=0)
            self._kept = found[len(found) - keep :]
            if found[: len(found) - keep]:
                self._emit(Piece(found[: len(found) - keep]))

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        if not self.done:
            self._end(Piece(error=error))

    def _end(self, piece: Piece) -> None:
        self.done = True
        self._emit(piece)

    def _decoded(self, tokens: Sequence[int], last: bool) -> str:
        """The text that these add. Tokens are read together with those before them, as blanks depend on it,
        and a character of which a part is missing waits for the rest."""
        self._tail += tokens
        before, whole = (self._string(self._tail[self._front : end]) for end in (self._read, None))
        if not last and whole.endswith("\ufffd"):
            return ""
        self._front, self._read = self._read, len(self._tail)
        return whole[len(before) :]

    def _string(self, ids: Sequence[int]) -> str:
        text: str = self._text.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` with which ``stop`` begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
