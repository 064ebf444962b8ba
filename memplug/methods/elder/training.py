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
from ...hooks import Hook, OwnHooks
from ...layers import evaluating, frozen
from ..base import Host
from ..continuing import unflat
from ..llp.lessons import Lesson
from ..llp.losses import EditLosses, base_of, losses_of
from ..llp.passes import Chunk, Upper
from ..llp.teaching import products
from ..scaling import GradientScale
from .active import Active, Adam
from .allocation import hot
from .config import ELDERConfig
from .experts import Experts, best, scores
from .whole import Whole

__all__ = ["Batch", "Guide", "Trained", "train"]


class Guide(NamedTuple):
    """What pulls at the routers: queries [n,q], and the experts [l,n,N] that each is meant to use."""

    query: Tensor
    goal: Tensor


class Batch(NamedTuple):
    """What is trained together.

    Attributes:
        lessons: with the number of their edit.
        chunks: hold them, by their place here.
        query: [E,q] float32, where each edit is routed from.
        guide: see there; None where routers are not guided.
    """

    lessons: Sequence[tuple[int, Lesson]]
    chunks: Sequence[Chunk | Whole]
    query: Tensor
    guide: Guide | None = None


class Trained(NamedTuple):
    """The picks [l,E,k] of the last step, taken before its update, and each edit's losses [E]: of the lesson
    answered worst, in nats a token, and the divergence from the base model elsewhere."""

    picks: Tensor
    worst: Tensor
    other: Tensor


class _Part(NamedTuple):
    """What counts in one chunk: Q places with the token that is expected there, or -1."""

    chunk: Chunk | Whole
    edit: Tensor  # [N] of each row
    used: Tensor  # [N,T] 1 where experts are used
    row: Tensor
    at: Tensor
    target: Tensor
    weight: Tensor


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
    mean over what is not to change of the KL divergence to the base model; the batch's is their mean, plus
    lambda times the guide (ELDER, equation 9): the sum over linears and over an edit's k experts of -log
    softmax(router)_expert, mean over queries. It ends when each edit's worst lesson is below `stop_loss` and
    its divergence below `stop_divergence`, or with the last step.

    Args:
        advance: told after every step how far it is.

    Raises:
        EditError: the loss is not finite; the experts are as they were then.
    """
    faster = products(host, upper.layer, config.products)
    with evaluating(host.model), frozen(host.model), faster:
        return _Trainer(host, upper, experts, config, batch).run(advance)


class _Trainer:
    def __init__(self, host: Host, upper: Upper, experts: Experts, config: ELDERConfig, batch: Batch) -> None:
        self.host, self.upper, self.experts, self.config, self.batch = host, upper, experts, config, batch
        self.count, self.query = len(batch.query), batch.query.to(experts.gates.device)
        self.parts = [self._part(chunk) for chunk in batch.chunks]
        self.base = [base_of(host, upper, part) for part in self.parts]
        self.active, self.scaler = Active(experts), GradientScale(host.model.dtype)
        steps = [config.lr / (p.fan_in**0.5 if config.relative_lr else 1.0) for p in experts.places]
        router_lr = steps[0] if config.router_lr is None else config.router_lr
        self.routers = [tensor.clone().requires_grad_(router_lr > 0) for tensor in experts.routers]
        self.moving = self.routers if router_lr else []
        lrs = [*steps, *steps, *[router_lr] * len(self.moving)]
        self.adam = Adam([*self.active.tensors, *self.moving], lrs)

    def run(self, advance: Callable[[str], None]) -> Trained:
        config = self.config
        with torch.enable_grad():
            for step in range(config.steps + 1):
                logits = scores(self.routers, self.query)
                picks = best(logits.detach(), config.top_k)
                self.active.take_in(picks, self.adam)
                last = step == config.steps
                gradients, worst, other = self._pass(logits, picks, last)
                if not bool(torch.isfinite(worst).all() and torch.isfinite(other).all()):
                    raise EditError(
                        f"training gave a loss that is not finite at step {step}; nothing was changed; "
                        f"lower lr ({config.lr:g})"
                    )
                done = (worst < config.stop_loss) & (other < config.stop_divergence)
                advance(f"step {step} of {config.steps}, {int(done.sum())} of {self.count} learned")
                if last or bool(done.all()):
                    break
                if self.scaler.accept(gradients):
                    self.adam.step([None if g is None else g / self.scaler.used for g in gradients])
        self.active.write_back()
        for tensor, trained in zip(self.experts.routers, self.routers, strict=True):
            tensor.copy_(trained.detach())
        return Trained(picks, worst, other)

    def _pass(self, logits: Tensor, picks: Tensor, last: bool) -> tuple[list[Tensor | None], Tensor, Tensor]:
        """Gradients, and of each edit the loss of its worst lesson and the divergence elsewhere."""
        scale = self.scaler.scale
        total: list[Tensor | None] = [None] * len(self.adam.tensors)
        found = EditLosses.zeros(self.count)

        def add(loss: Tensor) -> None:
            gradients = torch.autograd.grad(
                loss * scale, self.adam.tensors, allow_unused=True, retain_graph=bool(self.moving)
            )
            for i, gradient in enumerate(gradients):
                if gradient is not None:
                    before = total[i]
                    total[i] = gradient if before is None else before + gradient

        for part, base in zip(self.parts, self.base, strict=True):
            with torch.set_grad_enabled(not last):
                weights = logits.softmax(-1).gather(-1, picks)
                loss = losses_of(self._logits(part, picks, weights), part.target, base)
                if not last:
                    add((loss * part.weight).sum() / self.count)
            found = found.of(part, loss, part.weight)
        if self.moving and not last and (self.batch.guide or self.config.guide == "balance"):
            add(self.config.guide_weight * self._guide(logits))
        return total, *found

    def _logits(self, part: _Part, picks: Tensor, weights: Tensor) -> Tensor:
        """[Q,V] at the places that count, with each edit's experts in use."""
        owner = part.edit.to(picks.device)

        def after(index: int) -> Hook:
            mine, how_much = picks[index][owner], weights[index][owner]

            def hook(_m: Any, args: tuple[Any, ...], _kwargs: Any, output: Tensor) -> Tensor:
                x = unflat(args[0], len(part.edit))
                delta = self.active.mix(index, x, mine, how_much) * part.used.to(x.device)[..., None]
                return output + delta.reshape(output.shape).to(output.dtype)

            return Hook(self.experts.places[index].module, "after", hook)

        with OwnHooks([after(index) for index in range(len(self.experts.places))]):
            return part.chunk.logits(self.host, self.upper, None, part.row, part.at)

    def _part(self, chunk: Chunk | Whole) -> _Part:
        lessons = self.batch.lessons
        counts = torch.zeros(2, self.count, dtype=torch.float32)
        for e, lesson in lessons:
            counts[int(lesson.asks), e] += 1
        places: list[tuple[int, int, int, float]] = []
        used = torch.zeros(chunk.ids.shape, dtype=torch.float32, device=chunk.ids.device)
        for n, i in enumerate(chunk.lines):
            e, lesson = lessons[i]
            begin = lesson.line.start if isinstance(chunk, Whole) else 0
            used[n, 0 if self.config.scope == "row" else begin :] = 1.0
            tokens = lesson.answer if lesson.asks else (-1,) * (len(lesson.answer) + 1)
            share = 1 / (len(tokens) * float(counts[int(lesson.asks), e]))
            places += [(n, begin + k, token, share) for k, token in enumerate(tokens)]
        row, at, target, weight = zip(*places, strict=True)
        device = chunk.ids.device
        where = torch.tensor([row, at, target], device=device)
        edit = torch.tensor([lessons[i][0] for i in chunk.lines], device=device)
        wide = torch.tensor(weight, dtype=torch.float32, device=device)
        return _Part(chunk, edit, used, where[0], where[1], where[2], wide)

    def _guide(self, logits: Tensor) -> Tensor:
        """The loss on the routers."""
        n, k = self.config.n_experts, self.config.top_k
        if self.batch.guide is None:
            # Switch transformer, equation 4, for k experts a row: N sum_e f_e P_e in each linear.
            share = hot(best(logits.detach(), k), n).mean(1) / k
            return (n * share * logits.softmax(-1).mean(1)).sum()
        query, goal = (tensor.to(logits.device) for tensor in self.batch.guide)
        return -(scores(self.routers, query).log_softmax(-1) * goal).sum((0, 2)).mean()
