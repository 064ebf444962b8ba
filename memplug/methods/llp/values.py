"""Training values as published: soft prompts that make the model answer as edited, many in one batch.

The layers below the recall layer do not see the value, so their output is computed once per row and
kept; a step runs only the layers above, and the language-model head only at the tokens that count.
Subjects are independent of each other: each has its own value, its own rows and its own Adam state, and
leaves the batch when it has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...edits import Edit, EditError
from ...interface import Host
from ...model.architecture import evaluating, frozen
from ...model.hooks import capture_input
from ...model.prefix import Prefix
from ...model.recall import Recall
from ..scaling import GradientScale
from .config import LLPConfig
from .rows import build_rows, logits_of

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
    groups: Sequence[Sequence[Edit]],
    prefixes: Sequence[str],
    advance: Callable[[int], None] = lambda n: None,
) -> list[Learned]:
    """A value for each subject's edits, ``config.batch_size`` trained together.

    Args:
        groups: the edits of each subject; its value has to answer all of them.
        prefixes: texts that stand before the prompts.
        advance: called with the number of subjects that were done.

    Raises:
        EditError: the loss is not finite.
    """
    learned: list[Learned] = []
    with evaluating(host.model), frozen(host.model), recall.forced(None):
        for at in range(0, len(groups), config.batch_size):
            part = groups[at : at + config.batch_size]
            learned += _Trainer(host, recall, config, part, prefixes).run()
            advance(len(part))
    return learned


class _Trainer:
    """One batch of subjects."""

    def __init__(
        self,
        host: Host,
        recall: Recall,
        config: LLPConfig,
        groups: Sequence[Sequence[Edit]],
        prefixes: Sequence[str],
    ) -> None:
        self.host, self.recall, self.config, self.groups = host, recall, config, groups
        self.rows = build_rows(host, recall, config, groups, prefixes)
        self.values = self._initial().requires_grad_()

    def run(self) -> list[Learned]:
        config = self.config
        optimizer = torch.optim.Adam([self.values], lr=config.value_lr)
        done: dict[int, Learned] = {}
        scaler = GradientScale(self.host.model.dtype)
        alive = list(range(len(self.groups)))
        for step in range(config.value_steps + 1):
            losses = self._losses(alive)
            if not bool(torch.isfinite(losses).all()):
                bad = self.groups[alive[int((~torch.isfinite(losses)).nonzero()[0])]]
                raise EditError(
                    f"training {bad[0].prompt!r} gave a loss that is not finite; nothing was changed"
                )
            last = step == config.value_steps
            ended = [last or bool(loss < config.stop_loss) for loss in losses.detach()]
            if not last:
                # The published loop updates first and tests then: what it keeps is one step further.
                (gradient,) = torch.autograd.grad(losses.sum() * scaler.scale, self.values)
                if scaler.accept([gradient]):
                    self.values.grad = gradient / scaler.used
                    optimizer.step()
            for k, subject in enumerate(alive):
                if ended[k]:
                    value = self.values[subject].detach().float().cpu().clone()
                    done[subject] = Learned(value, float(losses[k].detach()), step)
            alive = [subject for k, subject in enumerate(alive) if not ended[k]]
            if not alive:
                break
        return [done[i] for i in range(len(self.groups))]

    def _initial(self) -> Tensor:
        """[E,b,D]: states at the recall layer of prompt and target's last b tokens, mean over the edits."""
        host, text, length = self.host, self.host.text, self.config.n_values
        pairs = [text.pair(edit.prompt, edit.target) for edits in self.groups for edit in edits]
        batch = text.batch([pair.ids for pair in pairs])
        hidden = capture_input(
            host.architecture, self.recall.layer, lambda: host.forward(host.architecture.decoder, batch)
        ).float()
        ends = [h[: len(pair.ids)][-length:] for h, pair in zip(hidden, pairs, strict=True)]
        ends = [torch.cat([end[:1].expand(length - len(end), -1), end]) for end in ends]
        groups = torch.stack(ends).split([len(edits) for edits in self.groups])
        return torch.stack([group.mean(0) for group in groups])

    def _losses(self, alive: Sequence[int]) -> Tensor:
        """[E']: the loss of each subject in ``alive``."""
        rows, device, count = self.rows, self.values.device, len(alive)
        chosen = torch.tensor(alive, device=device)
        place = torch.full((len(self.groups),), -1, device=device)
        place[chosen] = torch.arange(count, device=device)
        mine = place[rows.subject] >= 0
        point = mine[rows.row]
        row, at, target, weight = (x[point] for x in (rows.row, rows.at, rows.target, rows.weight))
        values = self.values[chosen]
        kv = self.recall.project(values, torch.zeros(count, dtype=torch.long))
        every = Prefix(kv, torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.long))

        def prefix(part: Tensor) -> Prefix:
            return every.take(place[rows.subject[part]], torch.zeros(len(part), dtype=torch.long))

        logits = logits_of(self.host, self.recall, rows, mine.nonzero()[:, 0], row, at, prefix)
        nll = -logits.float().log_softmax(-1).gather(-1, target[:, None])[:, 0]
        loss = torch.zeros(count, device=device, dtype=torch.float32).index_add(
            0, place[rows.subject[row]], nll * weight
        )
        size = values.flatten(1).norm(dim=-1)
        # The published code divides by the value's own norm, detached, and not by the initial one.
        return loss + self.config.norm_penalty * size / size.detach().square()
