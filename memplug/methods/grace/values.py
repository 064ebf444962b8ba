"""Training values: what the MLP has to say for the model to answer as edited, many entries in one batch.

Entries are independent of each other: each has its own value, rows and Adam state, and leaves the batch when
its answers are learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ...edits import EditError
from ...interface import Host
from ...model.architecture import evaluating, frozen
from ...model.hooks import Hook, OwnHooks, StopForward
from ...text.tokens import Pair
from ..answers import Answers, read_answers
from ..continuing import unflat
from ..places import Place
from ..scaling import GradientScale
from .config import GRACEConfig

__all__ = ["tokens_replaced", "train_values"]


def train_values(
    host: Host,
    config: GRACEConfig,
    place: Place,
    jobs: Sequence[Sequence[Pair]],
    advance: Callable[[int], None] = lambda n: None,
) -> list[Tensor]:
    """The value float32 [D] (CPU) of each of ``jobs``, which are the answers that share one.

    The loss is -log p of an answer's tokens (their mean), the mean over the answers of a value.

    Raises:
        EditError: the loss is not finite.
    """
    values: list[Tensor] = []
    with evaluating(host.model), frozen(host.model):
        for at in range(0, len(jobs), config.batch_size):
            part = jobs[at : at + config.batch_size]
            values += _train(host, config, place, part)
            advance(len(part))
    return values


def _train(host: Host, config: GRACEConfig, place: Place, jobs: Sequence[Sequence[Pair]]) -> list[Tensor]:
    which = "answer" if config.scope == "asked" else config.replace
    answers = read_answers(host, place.layer, [pair for job in jobs for pair in job])
    owner = torch.tensor([j for j, job in enumerate(jobs) for _ in job], device=answers.end.device)
    outputs = _outputs(answers, place)
    first = torch.tensor([int((owner == j).nonzero()[0]) for j in range(len(jobs))], device=outputs.device)
    if config.start == "warm":
        begin = outputs[first]
    else:
        draw = torch.Generator().manual_seed(config.seed)
        begin = torch.rand(len(jobs), outputs.shape[1], generator=draw, dtype=torch.float32).to(
            outputs.device
        )
    unit = outputs.square().mean(-1).sqrt().median() if config.relative_lr else 1.0
    moved = torch.zeros_like(begin, requires_grad=True)
    optimizer = torch.optim.Adam([moved], lr=config.lr)
    scaler = GradientScale(host.model.dtype)
    done: dict[int, Tensor] = {}
    with torch.enable_grad():
        for step in range(config.steps + 1):
            values = begin + unit * moved
            left = [i for i, j in enumerate(owner.tolist()) if j not in done]
            rows = torch.tensor(left, device=owner.device)
            losses = _losses(answers, place, which, rows, values[owner])
            if not bool(torch.isfinite(losses).all()):
                raise EditError(
                    f"training gave a loss that is not finite at step {step}; nothing was changed; "
                    f"lower lr ({config.lr:g})"
                )
            worst = losses.detach().new_full((len(jobs),), -torch.inf)
            worst = worst.scatter_reduce(0, owner[rows], losses.detach(), "amax")
            ready = (worst < config.stop_loss).tolist()
            for j in range(len(jobs)):
                if j not in done and (ready[j] or step == config.steps):
                    done[j] = values[j].detach().float().cpu()
            if len(done) == len(jobs):
                break
            size = torch.bincount(owner, minlength=len(jobs)).to(losses)[owner[rows]]
            (gradient,) = torch.autograd.grad((losses / size).sum() * scaler.scale, moved)
            if scaler.accept([gradient]):
                moved.grad = gradient / scaler.used
                optimizer.step()
    return [done[j] for j in range(len(jobs))]


def _losses(answers: Answers, place: Place, which: str, rows: Tensor, values: Tensor) -> Tensor:
    """[n] losses of ``rows`` with ``values`` [N,D] in place."""
    real = answers.batch.mask[rows]
    count = real.cumsum(1)
    at = tokens_replaced(count, answers.end[rows, None] + 1, which) & real.bool()

    def after(_m: Any, _args: Any, _kwargs: Any, output: Tensor) -> Tensor:
        wide = unflat(output, len(rows))
        mask = at[:, : wide.shape[1], None].to(output.device)
        mine = values[rows].to(device=output.device, dtype=output.dtype)
        return torch.where(mask, mine[:, None], wide).reshape(output.shape)

    with OwnHooks([Hook(place.module, "after", after)]):
        return answers.losses(rows)


@torch.no_grad()
def _outputs(answers: Answers, place: Place) -> Tensor:
    """Float32 [N,D]: what the MLP says at the last token of each prompt."""
    found: list[Tensor] = []
    for at in range(0, len(answers), 64):
        rows = torch.arange(at, min(at + 64, len(answers)), device=answers.end.device)

        def after(_m: Any, _args: Any, _kwargs: Any, output: Tensor, rows: Tensor = rows) -> None:
            wide = unflat(output, len(rows))
            end = answers.end[rows].to(wide.device)
            found.append(wide[torch.arange(len(rows), device=wide.device), end].float())
            raise StopForward

        with OwnHooks([Hook(place.module, "after", after)]), suppress(StopForward):
            answers.logits(rows)
    return torch.cat(found).to(answers.end.device)


def tokens_replaced(count: Tensor, end: Tensor, which: str) -> Tensor:
    """BoolTensor [B,T]: tokens to replace, from their place in the text and that of the prompt's last one.

    Args:
        count: [B,T], each token's number in its row, from 1.
        end: [B,1], the number of the prompt's last token.
        which: "last", "prompt" or "all"; or "answer", the prompt's last one and those behind it.
    """
    if which == "answer":
        return count >= end
    if which == "last":
        return count == end
    return count <= end if which == "prompt" else torch.ones_like(count, dtype=torch.bool)
