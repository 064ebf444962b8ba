"""Think: what the early layers say about each row, and the entry that the row recalls from then on.

Hooks on the think layers keep their outputs for one forward; the key memory turns them into at most one
entry per row. The decision stays with the row's cache: rows that recall are not matched again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .calls import Call, CallTracker
from .hooks import Hook
from .layers import Anatomy
from .memory import KeyMemory, MatchState
from .recall import Prefix

__all__ = ["Recalling", "match_rows", "think_hooks"]


@dataclass(frozen=True)
class Recalling:
    """What the rows of a cache recall, and how far they have been matched.

    Attributes:
        owner: the memory that decided; another memory's decisions do not count.
        version: the state of the edits then; another one means that the keys are looked at again.
        key: LongTensor [B]; the recalled key of each row, -1 for none.
        match: the state of matching, None where only the prompt is matched and nothing was.
        first: LongTensor [B]; position id of each row's first token.
        start: LongTensor [B]; its column.
        prefix: what is injected, None where no row recalls.
    """

    owner: KeyMemory
    version: int
    key: Tensor
    match: MatchState | None
    first: Tensor
    start: Tensor
    prefix: Prefix | None

    def __len__(self) -> int:
        return len(self.key)

    def __deepcopy__(self, memo: dict[int, Any]) -> Recalling:
        return self  # nothing in it is ever changed in place

    def select(self, rows: Tensor) -> Recalling:
        """The same for rows ``rows`` of it."""
        rows = rows.cpu()
        match = None if self.match is None else self.match.select(rows)
        at = rows.to(self.start.device)
        first, start = self.first[at], self.start[at]
        prefix = self.prefix
        if prefix is not None:
            kv = [(k[rows.to(k.device)], v[rows.to(v.device)]) for k, v in prefix.kv]
            prefix = Prefix(kv, prefix.open[rows], start)
        return Recalling(self.owner, self.version, self.key[rows], match, first, start, prefix)


def think_hooks(anatomy: Anatomy, tracker: CallTracker, layers: tuple[int, ...]) -> list[Hook]:
    """Hooks that keep the outputs [B,T,D] of ``layers`` in the running call's ``states``."""

    def make(index: int) -> Hook:
        def after(_m: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            call = tracker.current
            if call is not None:
                call.states[index] = anatomy.hidden(output)

        return Hook(anatomy.layers[index], "after", after)

    return [make(index) for index in layers]


def match_rows(
    memory: KeyMemory, call: Call, layers: tuple[int, ...], version: int, *, prompt_only: bool
) -> tuple[Tensor, MatchState | None]:
    """The key that each row recalls [B] (-1 none), and the state of matching for the row's next tokens.

    A row that recalled keeps its key while the memory still has it, switched on.
    """
    held: Recalling | None = call.held if isinstance(call.held, Recalling) else None
    if held is not None and (held.owner is not memory or len(held) != len(call.valid)):
        held = None
    if held is None:
        key, match = torch.full((len(call.valid),), -1), None
    else:
        key, match = held.key, held.match
        if held.version != version:
            kept = [k if k in memory and memory.enabled(k) else -1 for k in key.tolist()]
            key = torch.tensor(kept)
    if (prompt_only and call.past > 0) or bool((key >= 0).all()):
        return key, match
    hits, match = memory.search([call.states[i].detach() for i in layers], call.valid, match, rows=key < 0)
    return torch.where(key >= 0, key, hits.winner.cpu()), match
