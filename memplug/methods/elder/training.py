"""Training LoRAs and routers on one batch of edits after the other.

A step runs only the layers from the first edited one up, the language-model head only at the tokens that
count, and only the rows that are not learned yet. Queries are constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...edits import EditError
from ...hooks import Hook, OwnHooks, resume
from ...layers import evaluating, frozen
from ..base import Host
from ..continuing import unflat
from ..scaling import GradientScale
from .active import Active, Adam
from .allocation import hot
from .config import ELDERConfig
from .experts import Experts, Routing, best, mix_rows, scores
from .rows import Rows

__all__ = ["Rehearsed", "losses", "train_batch"]


class Rehearsed(NamedTuple):
    """Queries [n,q] of earlier edits, and the experts [l,n,N] they are meant to use."""

    query: Tensor
    goal: Tensor


@torch.no_grad()
def losses(host: Host, experts: Experts, first: int, rows: Rows, routing: Routing) -> Tensor:
    """[B] float32: -log p of each row's answer, the mean over its tokens; all rows are in scope."""

    def add(index: int, x: Tensor) -> Tensor:
        picks, weights = (part[index].to(experts.down[index].device) for part in routing)
        return mix_rows(x, experts.down[index], experts.up[index], picks, weights)

    return _forward(host, experts, first, rows, add)


def _forward(
    host: Host, experts: Experts, first: int, rows: Rows, add: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Those losses with ``add(index, x)`` for the experts' output at a linear."""

    def after(index: int) -> Hook:
        def hook(_m: Any, args: tuple[Any, ...], _kwargs: Any, output: Tensor) -> Tensor:
            delta = add(index, unflat(args[0], len(rows)))
            return output + delta.reshape(output.shape).to(output.dtype)

        return Hook(experts.places[index].module, "after", hook)

    def run() -> Any:
        return host.forward(host.model, rows.batch)

    with evaluating(host.model), OwnHooks([after(index) for index in range(len(experts.places))]):
        out = resume(host.model, host.anatomy, first, rows.hidden, run, rows.flat)
    nll = -out.float().log_softmax(-1).gather(-1, rows.target[:, None])[:, 0]
    return torch.zeros(len(rows), device=nll.device, dtype=torch.float32).index_add(
        0, rows.owner, nll * rows.weight
    )


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
    mean over rows. Rows below `stop_loss` rest while others are trained; when all rest they are looked at
    again, as training the others may have harmed them. It ends when all hold, or with the last step.

    Returns:
        The last step's picks [l,B,k], taken before its update.

    Raises:
        EditError: the loss is not finite; the experts are as they were then.
    """
    active, scaler = Active(experts), GradientScale(host.model.dtype)
    steps = [config.lr / (place.fan_in**0.5 if config.relative_lr else 1.0) for place in experts.places]
    router_lr = steps[0] if config.router_lr is None else config.router_lr
    routers = [tensor.clone().requires_grad_(router_lr > 0) for tensor in experts.routers]
    moving = routers if router_lr else []
    adam = Adam([*active.tensors, *moving], [*steps, *steps, *[router_lr] * len(moving)])
    awake = torch.ones(len(rows), dtype=torch.bool, device=rows.flat.device)
    part, look = rows, config.stop_loss > 0
    with frozen(host.model), torch.enable_grad():
        for step in range(config.steps):
            if moving or not step:
                logits = scores(routers, rows.query)
                picks = best(logits.detach(), config.top_k)
                weights = logits.softmax(-1).gather(-1, picks)
            if look:
                active.write_back()
                awake = (
                    losses(host, experts, first, rows, Routing(picks, weights.detach())) >= config.stop_loss
                )
                if not bool(awake.any()):
                    break
                part, look = rows.select(awake), False
            used = Routing(*(x[:, awake.to(x.device)] for x in (picks, weights)))
            active.take_in(used.picks, adam)

            def add(index: int, x: Tensor, used: Routing = used) -> Tensor:
                return active.mix(index, x, used.picks[index], used.weights[index])

            per_row = _forward(host, experts, first, part, add)
            if not bool(torch.isfinite(per_row).all()):
                raise EditError(
                    f"training gave a loss that is not finite at step {step}; nothing was changed; "
                    f"lower lr ({config.lr:g})"
                )
            done = per_row.detach() < config.stop_loss
            look = bool(done.all())
            if look:
                continue
            loss = per_row.mean()
            if moving and config.guide != "none":
                loss = loss + config.guide_weight * _guide(config, rows, logits, routers, rehearsed)
            gradients = torch.autograd.grad(loss * scaler.scale, adam.tensors, allow_unused=True)
            if scaler.accept(gradients):
                adam.step([None if g is None else g / scaler.used for g in gradients])
            if 4 * int(done.sum()) >= len(part):  # fewer rows are not worth the copying
                awake[awake.nonzero()[done, 0]] = False
                part = rows.select(awake)
    active.write_back()
    for tensor, trained in zip(experts.routers, routers, strict=True):
        tensor.copy_(trained.detach())
    return picks


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
