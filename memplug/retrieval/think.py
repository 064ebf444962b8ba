"""Think, as published: what the early layers say about a row, and the entry that it recalls from then on.

Hooks on the think layers keep their outputs for one forward; the key memory turns them into at most one
entry per row. The decision stays with the row's cache: rows that recall are not matched again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ..memory import KeyMemory, MatchState
from ..model.architecture import Architecture
from ..model.context import Call
from ..model.hooks import Hook
from ..model.prefix import Prefix
from ..model.row_state import RowState
from ..model.tracker import CallTracker

__all__ = ["Draft", "Recalling", "draft_of", "match_rows", "think_hooks"]


@dataclass(frozen=True)
class Recalling(RowState):
    """What the rows of a cache recall, and how far they have been matched.

    Attributes:
        owner: the memory that decided; another memory's decisions do not count.
        version: the state of the edits then; another one means that the keys are looked at again.
        key: LongTensor [B]; the recalled key of each row, -1 for none.
        match: the state of matching, None where only the prompt is matched and nothing was.
        first: LongTensor [B]; position id of each row's first token.
        start: LongTensor [B]; its column.
        prefix: what is injected, None where no row recalls.
        draft: the last forward's tokens, where they may be taken back (assisted decoding); else None.
    """

    owner: KeyMemory
    version: int
    key: Tensor
    match: MatchState | None
    first: Tensor
    start: Tensor
    prefix: Prefix | None
    draft: Draft | None = None

    def select(self, rows: Tensor) -> Self:
        """The same for rows ``rows`` of it, whose draft can no longer be taken back."""
        return replace(super().select(rows), draft=None)

    def crop(self, length: int) -> Recalling:
        """The same after all but the cache's first ``length`` positions were taken back.

        Tokens that stay are matched again from where the draft began, those taken back are forgotten. A
        cache cut further back than the last forward keeps what its rows recalled.
        """
        draft = self.draft
        if draft is None or not draft.past <= length < draft.past + draft.valid.shape[1]:
            return self
        kept = length - draft.past
        key, match = draft.key, draft.match
        if kept and not bool((key >= 0).all()):
            states, valid = [state[:, :kept] for state in draft.states], draft.valid[:, :kept]
            with draft.looking():
                winner, match = self.owner.search(states, valid, match, rows=key < 0)
            key = torch.where(key >= 0, key, winner)
        same = torch.equal(key, self.key)
        return replace(
            self, key=key, match=match, draft=None,
            prefix=self.prefix if same else None, version=self.version if same else -1,
        )  # fmt: skip


class Draft(NamedTuple):
    """A forward of several tokens after others: where it began and what was known then.

    Attributes:
        past: columns before it.
        states: [B,T,D] of each think layer.
        valid: BoolTensor [B,T].
        key, match: as in `Recalling`, before it.
        looking: no key changes inside what it gives.
    """

    past: int
    states: tuple[Tensor, ...]
    valid: Tensor
    key: Tensor
    match: MatchState | None
    looking: Callable[[], AbstractContextManager[None]]


def draft_of(
    owner: KeyMemory,
    call: Call,
    layers: tuple[int, ...],
    looking: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Draft | None:
    """The running forward as a `Draft`, if it is one of several tokens on a filled cache."""
    held = Recalling.of(call, owner)
    if held is None or call.past == 0 or call.valid.shape[1] == 1:
        return None
    states = tuple(call.states[i].detach() for i in layers)
    return Draft(call.past, states, call.valid, held.key, held.match, looking)


def think_hooks(architecture: Architecture, tracker: CallTracker, layers: tuple[int, ...]) -> list[Hook]:
    """Hooks that keep the outputs [B,T,D] of ``layers`` in the running call's ``states``."""

    def make(index: int) -> Hook:
        def after(_m: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            call = tracker.current
            if call is not None:
                call.check()
                call.states[index] = architecture.hidden(output)

        return Hook(architecture.layers[index], "after", after)

    return [make(index) for index in layers]


def match_rows(
    memory: KeyMemory, call: Call, layers: tuple[int, ...], version: int
) -> tuple[Tensor, MatchState | None]:
    """The key that each row recalls [B] (-1 none), and the state of matching for the row's next tokens.

    A row that recalled keeps its key while the memory still has it, switched on. Where the forward was told
    which tokens are the prompt, what the prompt recalls stands, as it does in ``generate``: an answer that
    names another edited subject does not change it.
    """
    held = Recalling.of(call, memory)
    if held is None:
        key, match = torch.full((len(call.valid),), -1), None
    else:
        key, match = held.key, held.match
        if held.version != version:
            kept = [k if k in memory and memory.enabled(k) else -1 for k in key.tolist()]
            key = torch.tensor(kept)
    if bool((key >= 0).all()):
        return key, match
    states = [call.states[i].detach() for i in layers]
    if call.prompt is not None and call.past == 0:
        asked = call.real.long().cumsum(1) <= call.prompt.to(call.real.device)[:, None]
        winner, first = memory.search(states, call.valid & asked, None, rows=key < 0)
        key = torch.where(key >= 0, key, winner)
        if bool((key >= 0).all()):
            return key, first
    winner, match = memory.search(states, call.valid, match, rows=key < 0)
    return torch.where(key >= 0, key, winner), match
