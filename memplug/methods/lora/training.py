"""Training the adapter on edits, beside earlier ones and beside answers that must stay as they are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...edits import EditError
from ...interface import Host
from ...model.architecture import evaluating, frozen
from ...model.hooks import OwnHooks
from ...model.reduced_precision import reduced_products
from ...text.tokens import Pair
from ..answers import Answers, read_answers
from ..neutral import neutral, products
from ..scaling import GradientScale
from .adapter import Adapter
from .config import LoRAConfig

__all__ = ["answered", "train"]


def train(
    host: Host,
    adapter: Adapter,
    config: LoRAConfig,
    fresh: Sequence[Pair],
    earlier: Sequence[Pair],
    keep: Sequence[Pair],
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Train until every one of ``fresh`` is below `stop_loss`, or `epochs` are over.

    The loss is the mean over answers of -log p of their tokens (their mean), and `keep_weight` times the
    divergence KL(base || edited) at the base model's own answers to neutral questions.

    Args:
        fresh: answers to learn.
        earlier: answers learned before, of which `replay` are trained beside each step.
        keep: answers of which `keep` are kept beside each step.
        advance: told how many more answers are below `stop_loss`.

    Raises:
        EditError: the loss is not finite; the adapter is half trained then.
    """
    first = min(site.layer for site in adapter.sites)
    optimizer = torch.optim.Adam(adapter.parameters, lr=config.lr)
    scaler = GradientScale(host.model.dtype)
    rng = random.Random(config.seed + len(earlier))
    old = range(len(fresh), len(fresh) + len(earlier))
    known = 0
    hooks = [adapter.hook(i, lambda: True) for i in range(len(adapter.sites))]
    for parameter in adapter.parameters:
        parameter.requires_grad_(True)
    try:
        with (
            evaluating(host.model),
            frozen(host.model),
            reduced_products(host.architecture.shadows, products(host, first)),
        ):
            answers, kept = read_answers(host, first, [*fresh, *earlier]), neutral(host, first, keep)
            with OwnHooks(hooks), torch.enable_grad():
                for _ in range(config.epochs):
                    left = _unlearned(answers, len(fresh), config)
                    advance(len(fresh) - len(left) - known)
                    known = len(fresh) - len(left)
                    if not left:
                        return
                    rng.shuffle(left)
                    for at in range(0, len(left), config.batch_size):
                        again = rng.sample(old, min(config.replay, len(earlier)))
                        asked = left[at : at + config.batch_size] + again
                        rows = torch.tensor(asked, device=answers.end.device)
                        loss = answers.losses(rows).mean()
                        if kept is not None:
                            loss = loss + config.keep_weight * kept.divergence(config.keep, rng)
                        if not bool(torch.isfinite(loss)):
                            raise EditError(
                                "training gave a loss that is not finite; nothing was changed; lower lr "
                                f"({config.lr:g})"
                            )
                        gradients = torch.autograd.grad(loss * scaler.scale, adapter.parameters)
                        if scaler.accept(gradients):
                            for parameter, gradient in zip(adapter.parameters, gradients, strict=True):
                                parameter.grad = gradient / scaler.used
                            optimizer.step()
    finally:
        for parameter in adapter.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


@torch.no_grad()
def _unlearned(answers: Answers, count: int, config: LoRAConfig) -> list[int]:
    """The first ``count`` answers that are not below `stop_loss`."""
    losses = _in_parts(answers, count)
    return (~(losses < config.stop_loss)).nonzero()[:, 0].tolist()


def _in_parts(answers: Answers, count: int) -> Tensor:
    rows = torch.arange(count, device=answers.end.device)
    return torch.cat([answers.losses(part) for part in rows.split(64)])


@torch.no_grad()
def answered(host: Host, adapter: Adapter, pairs: Sequence[Pair]) -> list[tuple[bool, float]]:
    """Of each answer: whether it is the edited model's first choice token by token, and its mean -log p."""
    found: list[tuple[bool, float]] = []
    first = min(site.layer for site in adapter.sites)
    hooks = [adapter.hook(i, lambda: True) for i in range(len(adapter.sites))]
    with evaluating(host.model), OwnHooks(hooks):
        for at in range(0, len(pairs), 64):
            part = list(pairs[at : at + 64])
            with host.tracker.off():
                answers = read_answers(host, first, part)
            rows = torch.arange(len(part), device=answers.end.device)
            logits, points = answers.logits(rows)
            wrong = (logits.argmax(-1) != answers.target[points]).float()
            missed = torch.zeros(len(part), device=wrong.device, dtype=torch.float32).index_add(
                0, answers.row[points], wrong
            )
            found += list(zip((missed == 0).tolist(), answers.losses(rows).tolist(), strict=True))
    return found
