"""Training LoRAs and routers on one batch of edits after the other.

A step runs only the layers from the first edited one up, and the language-model head only at the tokens that
count. Each edit's rows are routed by its own query, which is constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...edits import EditError
from ...interface import Host
from ...model.architecture import evaluating, frozen
from ...model.hooks import Hook, OwnHooks
from ...retrieval.lessons import Lesson
from ...retrieval.passes import Chunk, Upper
from ..continuing import unflat
from ..llp.losses import EditLosses, Part, base_of, losses_of, part_of
from ..llp.teaching import left_out, products
from ..scaling import GradientScale
from .codes import hot
from .config import ELDERConfig
from .experts import Experts, best, mix, scores

__all__ = ["Batch", "Trained", "train"]

_PLUS = 16.0
"""B's step in A's (scope "answer"): LoRA+, Hayou et al. 2024."""


class Batch(NamedTuple):
    """What is trained together.

    Attributes:
        lessons: with the number of their edit.
        chunks: hold them, by their place here.
        query: [E,q] float32, where each edit is routed from.
        goal: LongTensor [l,E,k], the experts that each is meant to use; None where routers stay as they are.
    """

    lessons: Sequence[tuple[int, Lesson]]
    chunks: Sequence[Chunk]
    query: Tensor
    goal: Tensor | None = None


class Trained(NamedTuple):
    """The picks [l,E,k] of the last step, taken before its update, and each edit's losses."""

    picks: Tensor
    losses: EditLosses


def train(
    host: Host,
    upper: Upper,
    experts: Experts,
    config: ELDERConfig,
    batch: Batch,
    advance: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Train the experts on a batch.

    The loss of an edit is the mean over its lessons of -log p of the answer's tokens (their mean), plus the
    mean over what is not to change of the KL divergence to the base model; the batch's is their mean. With
    routers comes lambda times the guide (ELDER, equation 9): the sum over linears and an edit's k experts of
    -log softmax(router)_expert, mean over edits. It ends when each edit's worst lesson is below
    `stop_loss` and its divergence below `stop_divergence`, or with the last step.

    Args:
        advance: told after every step how far it is.

    Raises:
        EditError: the loss is not finite; the experts are as they were then.
    """
    faster = products(host, upper.layer, config.products)
    with evaluating(host.model), frozen(host.model), faster:
        return _Trainer(host, upper, experts, config, batch).run(advance)


class _Trainer:
    """Trains copies of the experts that the batch uses: the others have no gradient, and Adam leaves them."""

    def __init__(self, host: Host, upper: Upper, experts: Experts, config: ELDERConfig, batch: Batch) -> None:
        self.host, self.upper, self.experts, self.config, self.batch = host, upper, experts, config, batch
        self.count, self.query = len(batch.query), batch.query.to(experts.gates.device)
        self.parts = [part_of(chunk, batch.lessons, self.count) for chunk in batch.chunks]
        self.base = [base_of(host, upper, part) for part in self.parts]
        self.found = [EditLosses.zeros(self.count) for _ in self.parts]
        moving = batch.goal is not None
        every, picks = torch.arange(experts.n), experts.route(self.query).picks
        self.ids = [(every if moving else one.unique()).to(one.device) for one in picks]
        self.down, self.up = (
            [
                tensor[ids.to(tensor.device)].requires_grad_(True)
                for tensor, ids in zip(some, self.ids, strict=True)
            ]
            for some in (experts.down, experts.up)
        )
        self.routers = [tensor.clone().requires_grad_(moving) for tensor in experts.routers]

    def run(self, advance: Callable[[str], None]) -> Trained:
        config = self.config
        steps, betas = [(config.lr, config.lr)] * len(self.down), (0.9, 0.999)
        if config.scope == "answer":
            lrs = [config.lr * place.fan_in**-0.5 for place in self.experts.places]
            steps, betas = [(lr, _PLUS * lr) for lr in lrs], (0.9, 0.99)
        groups: list[dict[str, Any]] = []
        for down, up, (lr, up_lr) in zip(self.down, self.up, steps, strict=True):
            groups += [{"params": [down], "lr": lr}, {"params": [up], "lr": up_lr}]
        if self.batch.goal is not None:
            router_lr = config.lr if config.router_lr is None else config.router_lr
            groups.append({"params": self.routers, "lr": router_lr})
        optimizer = torch.optim.Adam(groups, betas=betas)
        scaler = GradientScale(self.host.model.dtype)
        tensors = [tensor for group in groups for tensor in group["params"]]
        for step in range(config.steps + 1):
            last = step == config.steps
            optimizer.zero_grad()
            with torch.set_grad_enabled(not last):
                picks = self._pass(None if last else scaler.scale, step)
            worst = torch.stack([one.worst for one in self.found]).amax(0)
            other = torch.stack([one.other for one in self.found]).sum(0)
            if not bool(torch.isfinite(worst).all() and torch.isfinite(other).all()):
                raise EditError(
                    f"training gave a loss that is not finite at step {step}; nothing was changed; "
                    f"lower lr ({config.lr:g})"
                )
            done = (worst < config.stop_loss) & (other < config.stop_divergence)
            advance(f"step {step} of {config.steps}, {int(done.sum())} of {self.count} learned")
            if last or bool(done.all()):
                break
            if scaler.accept([tensor.grad for tensor in tensors]):
                for tensor in tensors:
                    if tensor.grad is not None:
                        tensor.grad /= scaler.used
                optimizer.step()
        with torch.no_grad():
            for i, ids in enumerate(self.ids):
                self.experts.down[i][ids.to(self.experts.down[i].device)] = self.down[i]
                self.experts.up[i][ids.to(self.experts.up[i].device)] = self.up[i]
            for tensor, trained in zip(self.experts.routers, self.routers, strict=True):
                tensor.copy_(trained)
        return Trained(picks, EditLosses(worst, other))

    def _pass(self, scale: float | None, step: int) -> Tensor:
        """Gradients of all lessons, where there is a scale, and what they lose; gives the picks [l,E,k]."""
        answers = self.config.scope == "answer"
        for k, (part, base) in enumerate(zip(self.parts, self.base, strict=True)):
            if answers and scale is not None and left_out(step, k, len(self.parts)):
                continue
            logits = scores(self.routers, self.query)
            picks = best(logits.detach(), self.config.top_k)
            weights = logits.softmax(-1).gather(-1, picks)
            loss = losses_of(self._logits(part, picks, weights), part.target, base)
            if scale is not None:
                ((loss * part.weight).sum() / self.count * scale).backward()
            self.found[k] = EditLosses.zeros(self.count).of(part, loss, part.weight)
        if scale is not None and self.batch.goal is not None:
            goal = hot(self.batch.goal, self.experts.n).to(self.query.device)
            guide = -(scores(self.routers, self.query).log_softmax(-1) * goal).sum((0, 2)).mean()
            (self.config.guide_weight * guide * scale).backward()
        return picks

    def _logits(self, part: Part, picks: Tensor, weights: Tensor) -> Tensor:
        """[Q,V] at the places that count, with each edit's experts in use, in whole rows or by the answer."""
        chunk, owner, places = part.chunk, part.edit.to(picks.device), self.experts.places
        used = torch.ones(chunk.ids.shape, dtype=torch.bool, device=chunk.ids.device)
        if self.config.scope == "answer":
            begin = torch.tensor([chunk.begin(self.batch.lessons[i][1].line) for i in chunk.lines])
            used = torch.arange(used.shape[1], device=used.device) >= begin.to(used.device)[:, None]

        def after(index: int) -> Hook:
            mine = torch.searchsorted(self.ids[index], picks[index][owner])

            def hook(_m: Any, args: tuple[Any, ...], _kwargs: Any, output: Tensor) -> Tensor:
                x = unflat(args[0], len(owner))
                which, weight = mine.to(x.device), weights[index][owner].to(x.device)
                delta = mix(x, self.down[index], self.up[index], which, weight) * used.to(x.device)[..., None]
                return output + delta.reshape(output.shape).to(output.dtype)

            return Hook(places[index].module, "after", hook)

        with OwnHooks(map(after, range(len(places)))):
            return chunk.logits(self.host, self.upper, None, part.row, part.at)
