"""What the rows of one text use, from its first forward to its last token."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
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
        scope: bool [B]; rows out of scope are the base model's.
        routing: experts and weights; None where no row is in scope. Rows out of scope may have any.
        length: columns of the cache when it was decided.
        mixers: by linear, the LoRAs in use, put together when first needed.
    """

    owner: Any
    version: int
    seen: Seen
    scope: np.ndarray
    routing: Routing | None
    length: int = 0
    mixers: list[Mixer] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.scope)

    @cached_property
    def rows(self) -> Tensor:
        """LongTensor [b] on the CPU, those in scope."""
        return torch.from_numpy(np.flatnonzero(self.scope))

    def __deepcopy__(self, memo: dict[int, Any]) -> Routed:
        return self  # nothing in it is ever changed in place but what can be put together again

    def select(self, rows: Tensor) -> Routed:
        """The same for rows ``rows`` of it."""
        routing = self.routing and Routing(*(x[:, rows.to(x.device)] for x in self.routing))
        seen, scope = self.seen.select(rows), self.scope[rows.cpu().numpy()]
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
        rows = self.rows
        if self.routing is None or not len(rows):
            return None
        batch = len(self.scope)
        wide, out, every = unflat(x, batch), unflat(output, batch), len(rows) == batch
        if not every:
            at = rows.to(wide.device)
            wide = wide.index_select(0, at)
        if len(rows) * experts.top_k > experts.n and wide.shape[1] == 1:
            delta = _dense(experts, index, wide, rows, self.routing)
        else:
            if not self.mixers:
                self.mixers.extend(experts.mixers(self.routing, None if every else rows))
            if every:
                return self.mixers[index].add(wide, out).view(output.shape)
            delta = self.mixers[index](wide)
        if every:
            return output + delta.to(output.dtype).view(output.shape)
        return out.index_add(0, at.to(out.device), delta.to(output.dtype)).view(output.shape)


def _dense(experts: Experts, index: int, x: Tensor, rows: Tensor, routing: Routing) -> Tensor:
    """With one token a row and many rows, all experts cost less than each row's own copy of its few."""
    picks, weights = (part[index][rows.to(part.device)] for part in routing)
    spread = torch.zeros(len(rows), experts.n, device=weights.device, dtype=torch.float32).scatter_(
        -1, picks, weights
    )
    return experts.mix(index, x, spread)
