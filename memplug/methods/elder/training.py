"""Training LoRAs and routers on one batch of edits after the other.

The layers below the first edited one never change, so their output is computed once a batch; a step runs only
the layers above, and the language-model head only at the tokens that count. Queries are constant, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...edits import EditError
from ...hooks import Hook, HookSet, StopForward, resume
from ...layers import evaluating, frozen
from ...text import Batch, Pair
from ..base import Host
from .active import Active, Adam
from .allocation import Allocation, hot
from .config import ELDERConfig
from .experts import Experts, best, scores
from .knowledge import Seen
from .places import Site

__all__ = ["Rehearsed", "Rows", "goals", "observe", "observe_rows", "train_batch", "unflat"]


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


def unflat(x: Tensor, batch: int) -> Tensor:
    """[B,T,w] of a linear's input or output, whether or not the model flattened rows and tokens (OPT)."""
    return x if x.ndim == 3 else x.view(batch, -1, x.shape[-1])


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
        hidden.append(args[0] if args else kwargs["hidden_states"])
        raise StopForward

    hooks = [site.hook(host.anatomy, look)]
    if first is not None:
        hooks.append(Hook(host.anatomy.layers[first], "before", stop))
    with evaluating(host.model), HookSet(hooks), suppress(StopForward):
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
    with HookSet(hooks):
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
        torch.tensor(weight, device=device),
    )


def goals(allocations: Sequence[Allocation], n: int, device: torch.device) -> Tensor:
    """[l,B,N] float32, ones at the experts of each row's allocation."""
    return hot(torch.tensor(allocations, device=device), n).transpose(0, 1)


class Rehearsed(NamedTuple):
    """Queries [n,q] of earlier edits, and the experts [l,n,N] they are meant to use."""

    query: Tensor
    goal: Tensor


def train_batch(
    host: Host,
    experts: Experts,
    config: ELDERConfig,
    first: int,
    rows: Rows,
    rehearsed: Rehearsed | None = None,
) -> Tensor:
    """Train the experts on ``rows``; all of them are in scope.

    The loss is the mean over rows of -log p of the answer's tokens (their mean), plus lambda times the guide
    (ELDER, equation 9): the sum over linears and over an edit's k experts of -log softmax(router)_expert,
    mean over rows.

    Returns:
        The last step's picks [l,B,k], taken before its update.

    Raises:
        EditError: the loss is not finite; the experts are as they were then.
    """
    active, scaler = Active(experts), _Scale(host.model.dtype)
    steps = [config.lr / (place.fan_in**0.5 if config.relative_lr else 1.0) for place in experts.places]
    router_lr = steps[0] if config.router_lr is None else config.router_lr
    routers = [tensor.clone().requires_grad_(router_lr > 0) for tensor in experts.routers]
    moving = routers if router_lr else []
    adam = Adam([*active.tensors, *moving], [*steps, *steps, *[router_lr] * len(moving)])
    owner = rows.flat // rows.batch.ids.shape[1]
    weights: list[Tensor] = []

    def after(index: int) -> Hook:
        def add(_m: Any, args: tuple[Any, ...], _kwargs: Any, output: Tensor) -> Tensor:
            x = unflat(args[0], len(rows.batch.ids))
            return output + active.mix(index, x, weights[index]).reshape(output.shape).to(output.dtype)

        return Hook(experts.places[index].module, "after", add)

    def run() -> Any:
        return host.forward(host.model, rows.batch)

    hooks = [after(index) for index in range(len(experts.places))]
    with evaluating(host.model), frozen(host.model), HookSet(hooks), torch.enable_grad():
        for step in range(config.steps):
            logits = scores(routers, rows.query)
            picks = best(logits.detach(), config.top_k)
            active.take_in(picks, adam)
            weights[:] = list(logits.softmax(-1) * hot(picks, experts.n))
            out = resume(host.model, host.anatomy, first, rows.hidden, run, rows.flat)
            nll = -out.float().log_softmax(-1).gather(-1, rows.target[:, None])[:, 0]
            per_row = torch.zeros(len(rows.batch.ids), device=nll.device)
            per_row = per_row.index_add(0, owner, nll * rows.weight)
            if not bool(torch.isfinite(per_row).all()):
                raise EditError(
                    f"training gave a loss that is not finite at step {step}; nothing was changed; "
                    f"lower lr ({config.lr:g})"
                )
            if float(per_row.detach().max()) < config.stop_loss:
                break
            loss = per_row.mean()
            if moving and config.guide != "none":
                loss = loss + config.guide_weight * _guide(config, rows, logits, routers, rehearsed)
            gradients = torch.autograd.grad(loss * scaler.scale, adam.tensors, allow_unused=True)
            if scaler.accept(gradients):
                adam.step([None if g is None else g / scaler.used for g in gradients])
    active.write_back()
    for tensor, trained in zip(experts.routers, routers, strict=True):
        tensor.copy_(trained.detach())
    return picks


class _Scale:
    """Keeps half-precision gradients above underflow; float32 and bfloat16 need no scale."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.scale = self.used = 1024.0 if dtype == torch.float16 else 1.0

    def accept(self, gradients: Sequence[Tensor | None]) -> bool:
        """Whether the step counts; an overflow halves the scale instead."""
        self.used = self.scale
        if self.scale == 1.0 or all(bool(g.isfinite().all()) for g in gradients if g is not None):
            return True
        self.scale /= 2
        return False


def _guide(
    config: ELDERConfig, rows: Rows, logits: Tensor, routers: Sequence[Tensor], rehearsed: Rehearsed | None
) -> Tensor:
    """The loss on the routers."""
    if config.guide == "balance":
        # Switch transformer, equation 4, for k experts a row: N sum_e f_e P_e in each linear.
        share = hot(best(logits.detach(), config.top_k), config.n_experts).mean(1) / config.top_k
        return (config.n_experts * share * logits.softmax(-1).mean(1)).sum()
    loss = -(logits.log_softmax(-1) * rows.goal).sum((0, 2)).mean()
    if rehearsed is not None:
        old = scores(routers, rehearsed.query).log_softmax(-1)
        loss = loss - (old * rehearsed.goal).sum((0, 2)).mean()
    return loss
