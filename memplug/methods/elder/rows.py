"""Rows to train on, and what the frozen part of the model has to say about them.

Knows nothing about experts, losses or limits. What lies below the first edited layer never changes, so it is
computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...hooks import Hook, OwnHooks, StopForward
from ...layers import evaluating
from ...text import Batch, Pair
from ..base import Host
from ..continuing import unflat
from .allocation import Allocation, hot
from .knowledge import Seen
from .places import Site

__all__ = ["Rows", "goals", "observe", "observe_rows", "see"]


@dataclass
class Rows:
    """Rows of one batch with everything about them that training does not change.

    Attributes:
        batch: token ids [B,T].
        hidden: [B,T,D], inputs of the first edited layer.
        query: [B,q] float32, prepared as for routing.
        goal: [l,B,N] float32, ones at the experts each row is meant to use.
        flat, target: [P] positions that count, as row * T + column, and the tokens expected there.
        weight: [P], 1 / tokens of the row's answer.
    """

    batch: Batch
    hidden: Tensor
    query: Tensor
    goal: Tensor
    flat: Tensor
    target: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.batch.ids)

    @property
    def owner(self) -> Tensor:
        """[P], the row of each position that counts."""
        return self.flat // self.batch.ids.shape[1]

    def select(self, keep: Tensor) -> Rows:
        """The rows under the mask ``keep`` BoolTensor [B], at least one, no wider than they need to be."""
        old, owner = self.batch.ids.shape[1], self.owner
        width = int(self.batch.mask[keep].sum(1).max())
        mine = keep[owner]
        flat = (keep.cumsum(0) - 1)[owner[mine]] * width + self.flat[mine] % old
        batch = Batch(*(x[keep][:, :width] for x in self.batch))
        at = keep.to(self.query.device)
        hidden, goal = self.hidden[keep.to(self.hidden.device)][:, :width], self.goal[:, at]
        return Rows(batch, hidden, self.query[at], goal, flat, self.target[mine], self.weight[mine])


@torch.no_grad()
def observe(host: Host, site: Site, first: int | None, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """What the frozen part of the model computes: queries [B,T,q] float32 at every token, and the inputs
    [B,T,D] of layer ``first`` where one is named."""
    seen: list[Tensor] = []
    hidden: list[Tensor] = []

    def look(states: Tensor) -> None:
        seen.append(unflat(states, len(batch.ids)).float())
        if first is None:
            raise StopForward

    def stop(_m: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden.append(host.anatomy.entering(args, kwargs))
        raise StopForward

    hooks = [site.hook(host.anatomy, look)]
    if first is not None:
        hooks.append(Hook(host.anatomy.layers[first], "before", stop))
    with evaluating(host.model), OwnHooks(hooks), suppress(StopForward):
        host.forward(host.anatomy.decoder, batch)
    return seen[0], hidden[0] if hidden else None


@torch.no_grad()
def see(host: Host, site: Site, first: int, layer: int | None, batch: Batch) -> Seen:
    """What is looked at in whole prompts: ``first`` is the first edited layer, ``layer`` that in which
    subjects are recognised, if any."""
    states: list[Tensor] = []

    def keep(_m: Any, _a: Any, _k: Any, output: Any) -> None:
        states.append(host.anatomy.hidden(output))

    hooks = [] if layer is None else [Hook(host.anatomy.layers[layer], "after", keep)]
    with OwnHooks(hooks):
        query, _ = observe(host, site, first, batch)
    ends = (batch.mask.sum(1) - 1).to(query.device)
    query = query[torch.arange(len(ends), device=ends.device), ends]
    if layer is None:
        return Seen(query)
    begins = (batch.positions == 0) & (batch.ids == host.text.bos_id)
    return Seen(query, states[0], batch.mask.bool() & ~begins)


def observe_rows(host: Host, site: Site, first: int, pairs: Sequence[Pair]) -> Rows:
    """Rows of prompts with their answers; their queries are as they come, and they have no goal yet."""
    batch = host.text.batch([pair.ids for pair in pairs])
    queries, hidden = observe(host, site, first, batch)
    ends = torch.tensor([pair.start - 1 for pair in pairs], device=queries.device)
    width = batch.ids.shape[1]
    flat, target, weight = [], [], []
    for i, pair in enumerate(pairs):
        size = len(pair.ids) - pair.start
        for t in range(pair.start, len(pair.ids)):
            flat.append(i * width + t - 1)
            target.append(pair.ids[t])
            weight.append(1.0 / size)
    device = host.text.device
    return Rows(
        batch,
        hidden,  # type: ignore[arg-type]  # a layer was named
        queries[torch.arange(len(pairs), device=queries.device), ends],
        queries.new_zeros(0),
        torch.tensor(flat, device=device),
        torch.tensor(target, device=device),
        torch.tensor(weight, dtype=torch.float32, device=device),
    )


def goals(allocations: Sequence[Allocation], n: int, device: torch.device) -> Tensor:
    """[l,B,N] float32, ones at the experts of each row's allocation."""
    return hot(torch.tensor(allocations, device=device), n).transpose(0, 1)
