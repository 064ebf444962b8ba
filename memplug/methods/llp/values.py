"""Training values: soft prompts that make the model answer as edited, many edits in one batch.

The layers below the recall layer do not see the value, so their output is computed once per row and
kept; a step runs only the layers above, and the language-model head only at the tokens that count.
Edits are independent of each other: each has its own value, its own rows and its own Adam state, and
leaves the batch when it has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...edits import EditError
from ...hooks import capture_input
from ...layers import evaluating, frozen
from ...prefix import Prefix
from ...recall import Recall
from ..base import Host
from ..scaling import GradientScale
from .config import LLPConfig
from .rows import Job, build_rows, logits_of

__all__ = ["Learned", "train_values"]


class Learned(NamedTuple):
    """A trained value [b,D] float32 on the CPU, its last loss and the steps it took."""

    value: Tensor
    loss: float
    steps: int


def train_values(
    host: Host,
    recall: Recall,
    config: LLPConfig,
    jobs: Sequence[Job],
    prefixes: Sequence[str],
    advance: Callable[[int], None] = lambda n: None,
) -> list[Learned]:
    """The values of ``jobs``, ``config.batch_size`` trained together; ``advance(n)`` after n are done.

    Raises:
        EditError: the loss is not finite.
    """
    learned: list[Learned] = []
    with evaluating(host.model), frozen(host.model), recall.forced(None):
        for at in range(0, len(jobs), config.batch_size):
            part = jobs[at : at + config.batch_size]
            learned += _Trainer(host, recall, config, part, prefixes).run()
            advance(len(part))
    return learned


class _Trainer:
    """One batch of jobs."""

    def __init__(
        self, host: Host, recall: Recall, config: LLPConfig, jobs: Sequence[Job], prefixes: Sequence[str]
    ) -> None:
        self.host, self.recall, self.config, self.jobs = host, recall, config, jobs
        self.rows = build_rows(host, recall, config, jobs, prefixes)
        init = self._init()
        self.scale = self._step_unit()
        self.init = init
        self.moved = torch.zeros_like(init, requires_grad=True)

    def run(self) -> list[Learned]:
        config = self.config
        optimizer = torch.optim.Adam([self.moved], lr=config.value_lr)
        done: dict[int, Learned] = {}
        scaler = GradientScale(self.host.model.dtype)
        alive = list(range(len(self.jobs)))
        for step in range(config.value_steps + 1):
            values = self.init + self.scale * self.moved
            losses, worst, diverged = self._losses(values, alive)
            if not bool(torch.isfinite(losses).all()):
                bad = self.jobs[alive[int((~torch.isfinite(losses)).nonzero()[0])]]
                raise EditError(
                    f"training {bad.edits[0].prompt!r} gave a loss that is not finite; nothing was changed"
                )
            last = step == config.value_steps
            ended = [last or done for done in self._reached(losses, worst, diverged).tolist()]
            if config.stop == "published" and not last:
                # The published loop updates first and tests then: what it keeps is one step further.
                self._step(optimizer, scaler, losses.sum())
                values = self.init + self.scale * self.moved
            for k, job in enumerate(alive):
                if ended[k]:
                    done[job] = Learned(values[job].detach().float().cpu(), float(losses[k].detach()), step)
            alive = [job for k, job in enumerate(alive) if not ended[k]]
            if not alive:
                break
            if config.stop == "worst":
                keep = torch.tensor([not e for e in ended], device=losses.device)
                self._step(optimizer, scaler, losses[keep].sum())
        return [done[i] for i in range(len(self.jobs))]

    def _step(self, optimizer: torch.optim.Optimizer, scaler: GradientScale, loss: Tensor) -> None:
        (gradient,) = torch.autograd.grad(loss * scaler.scale, self.moved)
        if scaler.accept([gradient]):
            self.moved.grad = gradient / scaler.used
            optimizer.step()

    def _init(self) -> Tensor:
        """[E,b,D]: states at the recall layer of prompt and target's last b tokens, mean over the edits."""
        host, text, length = self.host, self.host.text, self.config.n_values
        pairs = [text.pair(edit.prompt, edit.target) for item in self.jobs for edit in item.edits]
        batch = text.batch([pair.ids for pair in pairs])
        hidden = capture_input(
            host.anatomy, self.recall.layer, lambda: host.forward(host.anatomy.decoder, batch)
        ).float()
        ends = [h[: len(pair.ids)][-length:] for h, pair in zip(hidden, pairs, strict=True)]
        ends = [torch.cat([end[:1].expand(length - len(end), -1), end]) for end in ends]
        sizes = [len(item.edits) for item in self.jobs]
        return torch.stack([torch.stack(group).mean(0) for group in _split(ends, sizes)])

    def _step_unit(self) -> Tensor:
        """[E,1,1]: the root mean square of the job's hidden states; 1 where steps are absolute.

        The median over tokens, since a first token's state can be a hundred times larger than the rest.
        """
        count = len(self.jobs)
        if not self.config.relative_lr:
            return torch.ones(count, 1, 1, device=self.rows.hidden.device, dtype=torch.float32)
        rms = self.rows.hidden.float().square().mean(-1).sqrt()
        real = self.rows.batch.mask.bool()
        units = [rms[self.rows.job == j][real[self.rows.job == j]].median() for j in range(count)]
        return torch.stack(units)[:, None, None]

    def _reached(self, losses: Tensor, worst: Tensor, diverged: Tensor) -> Tensor:
        """Which jobs have learned what they had to."""
        config = self.config
        if config.stop == "published":
            return losses.detach() < config.stop_loss
        return (worst < config.stop_loss) & (diverged < config.stop_divergence)

    def _losses(self, values: Tensor, alive: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each job in ``alive``: the loss, and detached the loss of the answer row that is worst and
        the divergence from the base model's statements."""
        rows, device, count = self.rows, values.device, len(alive)
        chosen = torch.tensor(alive, device=device)
        place = torch.full((len(self.jobs),), -1, device=device)
        place[chosen] = torch.arange(count, device=device)
        mine = place[rows.job] >= 0
        point = mine[rows.row]
        row, at, target, weight = (x[point] for x in (rows.row, rows.at, rows.target, rows.weight))
        kv = self.recall.project(values[chosen], torch.zeros(count, dtype=torch.long))
        every = Prefix(kv, torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.long))

        def prefix(part: Tensor) -> Prefix:
            return every.take(place[rows.job[part]], torch.zeros(len(part), dtype=torch.long))

        logits = logits_of(self.host, self.recall, rows, mine.nonzero()[:, 0], row, at, prefix)
        logp = logits.float().log_softmax(-1)
        kl, owner = target < 0, place[rows.job[row]]
        nll = -logp.gather(-1, target.clamp(min=0)[:, None])[:, 0]
        loss = torch.zeros(count, device=device, dtype=torch.float32).index_add(
            0, owner[~kl], (nll * weight)[~kl]
        )
        diverged = torch.zeros(count, device=device, dtype=torch.float32)
        if bool(kl.any()):
            base = rows.base[point[rows.target < 0]]
            divergence = F.kl_div(logp[kl], base, reduction="none", log_target=True).sum(-1)
            diverged = diverged.index_add(0, owner[kl], divergence * weight[kl])
            loss = loss + self.config.statement_weight * diverged
        if self.config.norm_penalty:
            size = values[chosen].flatten(1).norm(dim=-1)
            # The published code divides by the value's own norm, detached, and not by the initial one.
            loss = loss + self.config.norm_penalty * size / size.detach().square()
        worst = _worst(nll.detach()[~kl], weight[~kl], row[~kl], rows.job, place, count)
        return loss, worst, diverged.detach()


def _worst(nll: Tensor, weight: Tensor, row: Tensor, job: Tensor, place: Tensor, count: int) -> Tensor:
    """[count]: the largest mean loss of an answer row, per job."""
    total = torch.zeros(len(job), device=nll.device, dtype=torch.float32).index_add(0, row, nll * weight)
    share = torch.zeros(len(job), device=nll.device, dtype=torch.float32).index_add(0, row, weight)
    mean = total / share.clamp(min=1e-12)
    return torch.zeros(count, device=nll.device, dtype=torch.float32).scatter_reduce(
        0, place[job[row]], mean[row], "amax"
    )


def _split(items: list[Tensor], sizes: Sequence[int]) -> Iterator[list[Tensor]]:
    at = 0
    for size in sizes:
        yield items[at : at + size]
        at += size
