"""Rows that are decided by the end of their prompt, once: GRACE and ELDER as published.

What a row is given is read at its last prompt token and stays for the whole text, generated tokens included.
In a plain forward over prompt and answer, `Plug.prompt_lengths` says where the prompt ends; unsaid, the last
real token counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..edits import Edit
from ..interface import Explanation, Host
from ..model.architecture import evaluating
from ..model.context import Call
from ..model.hooks import Hook, OwnHooks, StopForward
from ..model.row_state import RowState, hold
from ..text.chat import Prompt
from ..text.printable import printable
from ..text.tokens import Pair
from .continuing import Continuing, not_in_pieces, rows_of, unflat
from .places import QuerySite

__all__ = ["Decision", "Nearest", "PromptEnd"]

_ROWS = 64  # prompts that are read together

Find = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
"""From queries [B,q] the number [B] (CPU) of what takes effect in each row, -1 for nothing, and tensors
[B,...] of what that is; none where nothing takes effect in any row."""


@dataclass(frozen=True)
class Decision(RowState):
    """What the rows of a text are given; kept with their cache.

    Attributes:
        owner: who decided; another one's decisions do not count.
        version: the state of the edits then; with another one the query decides again.
        query: float32 [B,q], what was read at the end of the prompt.
        end: LongTensor [B], real tokens of the prompt.
        which, given: see `Find`.
        length: columns of the cache when it was decided.
    """

    owner: Any
    version: int
    query: Tensor
    end: Tensor
    which: Tensor
    given: list[Tensor]
    length: int

    def crop(self, length: int) -> Decision | None:
        """The same for a cache cut to ``length`` columns; None where the prompt is cut as well."""
        return self if length >= self.length else None


class PromptEnd:
    """Reads queries at the ends of prompts, and keeps what they decide with the rows.

    Args:
        host: the model.
        site: where queries are read.
        find: see `Find`.
        goes_on: whether a prompt may go on in a later forward, from what its rows were given so far [B] and
            what they would be given now [B].
        refusal: the name of the method, and the scope in which it takes prompts in pieces.

    Attributes:
        version: to be changed with every change of the edits.
    """

    def __init__(
        self,
        host: Host,
        site: QuerySite,
        find: Find,
        goes_on: Callable[[Tensor, Tensor], bool],
        refusal: tuple[str, str],
    ) -> None:
        self._host, self._site, self._find, self._goes_on = host, site, find, goes_on
        self._refusal, self._continuing = refusal, Continuing()
        self.version = 0

    def hook(self) -> Hook:
        """Look at the queries of rows whose prompts begin or go on."""
        tracker = self._host.tracker

        def look(states: Tensor) -> None:
            call = tracker.current
            if call is None:
                return
            call.check()
            if call.is_prompt:
                states = unflat(states.detach(), len(call.valid))
                at = call.prompt_end().to(states.device)
                rows = torch.arange(len(at), device=at.device)
                end = call.real.long().cumsum(1).to(states.device)[rows, at]
                call.scratch = states[rows, at].float(), end

        return self._site.hook(self._host.architecture, look)

    @torch.no_grad()
    def decide(self, call: Call) -> Decision | None:
        """As decided when the rows' cache was begun, or now if this is the beginning.

        Raises:
            UnsupportedModelError: more of a prompt comes, and decides otherwise than what the cache holds.
        """
        held = Decision.of(call, self)
        if not call.is_prompt and (held is None or held.version == self.version):
            return held  # None is a cache begun without us, and what follows an answer's token
        if held is None or call.is_prompt:
            read: tuple[Tensor, Tensor] = call.scratch
            length = call.past + call.prompt_width
            if held is None and call.cache is None and not call.past:
                read = self._continuing.keep(call, read, _rows)
        else:
            read, length = (held.query, held.end), held.length
        which, given = self._find(read[0])
        decision = Decision(self, self.version, read[0], read[1], which, given, length)
        if call.past and call.is_prompt:
            before = torch.full_like(decision.which, -1) if held is None else held.which
            if not self._goes_on(before, decision.which):
                raise not_in_pieces(*self._refusal)
        if call.cache is not None:
            hold(call.cache, decision)
        return decision

    @torch.no_grad()
    def read(self, rows: Sequence[Pair]) -> Tensor:
        """Queries float32 [n,q] at the last tokens of prompts, with the base model below."""
        host, found = self._host, [torch.zeros(0, self._site.width, dtype=torch.float32)]
        for at in range(0, len(rows), _ROWS):
            batch = host.text.batch(rows[at : at + _ROWS])
            ends = batch.mask.sum(1) - 1

            def look(states: Tensor, ends: Tensor = ends) -> None:
                wide = unflat(states, len(ends)).float()
                found.append(wide[torch.arange(len(ends)), ends.to(wide.device)])
                raise StopForward

            hook = self._site.hook(host.architecture, look)
            with evaluating(host.model), OwnHooks([hook]), suppress(StopForward):
                host.forward(host.architecture.decoder, batch)
        return torch.cat([one.to(found[-1].device) for one in found])


def _rows(read: tuple[Tensor, Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    return rows_of(read[0], at), rows_of(read[1], at)


@dataclass(frozen=True, repr=False)
class Nearest(Explanation):
    """What a prompt is nearest to, for methods that compare the state at its end.

    Attributes:
        prompt, edits, reason: see `Explanation`.
        nearest: the edits that it is nearest to; empty where none is in force.
        distance, limit: how far they are, and how far they may be; NaN without edits.
    """

    prompt: Prompt
    edits: tuple[Edit, ...]
    reason: str
    nearest: tuple[Edit, ...]
    distance: float
    limit: float

    def details(self) -> list[str]:
        """The nearest edits."""
        names = ", ".join(printable(edit.id) for edit in self.nearest)
        near = f"  nearest: edit {names}, distance {self.distance:.4g} (limit {self.limit:.4g})"
        return [near] if self.nearest else []
