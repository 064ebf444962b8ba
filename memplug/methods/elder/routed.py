"""What the rows of one text use, from its first forward to its last token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..continuing import unflat
from .experts import Experts, Mixer, Routing
from .knowledge import Seen

__all__ = ["Routed"]


@dataclass(frozen=True)
class Routed:
    """What rows are routed to; kept with their cache.

    Attributes:
        owner: the method that decided; another one's decisions do not count.
        version: the state of the edits then; with another one the query decides again.
        seen: what was looked at.
        scope: bool [B] on the CPU; rows out of scope are the base model's.
        routing: experts and weights; None where no row can be in scope.
        length: columns of the cache when it was decided.
        mixers: by linear, the LoRAs in use, put together when first needed.
    """

    owner: Any
    version: int
    seen: Seen
    scope: Tensor
    routing: Routing | None
    length: int = 0
    mixers: dict[int, Mixer] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scope)

    def __deepcopy__(self, memo: dict[int, Any]) -> Routed:
        return self  # nothing in it is ever changed in place but what can be put together again

    def select(self, rows: Tensor) -> Routed:
        """The same for rows ``rows`` of it."""
        routing = self.routing and Routing(*(x[:, rows.to(x.device)] for x in self.routing))
        seen, scope = self.seen.select(rows), self.scope[rows.cpu()]
        return Routed(self.owner, self.version, seen, scope, routing, self.length)

    def crop(self, length: int) -> Routed | None:
        """The same for a cache cut to ``length`` columns; None where the prompt is cut as well."""
        return self if length >= self.length else None

    def apply(self, experts: Experts, index: int, x: Tensor, output: Tensor) -> Tensor | None:
        """The output of linear ``index`` with the experts' added; None, untouched, where no row is in scope.

        Args:
            experts: the LoRAs.
            index: which linear.
            x, output: its input and output, [B,T,w] or flattened to [B T,w].
        """
        if self.routing is None or not bool(self.scope.any()):
            return None
        rows = self.scope.nonzero()[:, 0]
        batch = len(self.scope)
        wide = unflat(x, batch)
        every = len(rows) == batch
        if len(rows) * experts.top_k > experts.n and wide.shape[1] == 1:
            delta = _dense(experts, index, wide, rows, self.routing)
        else:
            if index not in self.mixers:
                self.mixers[index] = experts.mixer(index, self.routing, rows)
            delta = self.mixers[index](wide if every else wide[rows.to(wide.device)])
        delta = delta.to(output.dtype)
        if every:
            return output + delta.reshape(output.shape)
        changed = unflat(output, batch).clone()
        changed[rows.to(output.device)] += delta
        return changed.reshape(output.shape)


def _dense(experts: Experts, index: int, x: Tensor, rows: Tensor, routing: Routing) -> Tensor:
    """With one token a row and many rows, all experts cost less than each row's own copy of its few."""
    picks, weights = (part[index][rows.to(part.device)] for part in routing)
    spread = torch.zeros(len(rows), experts.n, device=weights.device).scatter_(-1, picks, weights)
    return experts.mix(index, x[rows.to(x.device)], spread)
