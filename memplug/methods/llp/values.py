"""Training values: soft prompts that make the model answer as edited, many edits in one batch.

The layers below the recall layer do not see the value, so their output is computed once per row and
kept; a step runs only the layers above, and the language-model head only at the tokens that count.
Edits are independent of each other: each has its own value, its own rows and its own Adam state, and
leaves the batch when it has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...edits import Edit, EditError
from ...hooks import capture_input
from ...layers import evaluating
from ...recall import Prefix, Recall
from ...text import Batch, Pair
from ..base import Host
from .config import LLPConfig

__all__ = ["Job", "Learned", "train_values"]


class Job(NamedTuple):
    """A subject whose value is to be trained.

    Attributes:
        edits: its edits; the value has to answer all of them.
        statements: texts about the subject that must stay as they are, and the base model's answers to
            the edits' prompts, at which they may not.
    """

    subject: str
    edits: tuple[Edit, ...]
    statements: tuple[str, ...]
    answers: tuple[str, ...]


class Learned(NamedTuple):
    """A trained value [b,D] float32 on the CPU, its last loss and the steps it took."""

    value: Tensor
    loss: float
    steps: int


@dataclass
class _Rows:
    """The rows of some jobs, and the tokens at which their logits count.

    Attributes:
        batch: token ids [N,T].
        hidden: [N,T,D] inputs of the recall layer.
        job: [N] index of each row's job.
        row, at: [P] row and position of each logit that counts.
        target: [P] token expected there, or -1 where the base model's distribution is.
        weight: [P] weights; they sum to 1 over a row's answer, and over a job's statements.
        base: [P',V] log-probabilities of the base model, for the positions without a target.
    """

    batch: Batch
    hidden: Tensor
    job: Tensor
    row: Tensor
    at: Tensor
    target: Tensor
    weight: Tensor
    base: Tensor


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
    with evaluating(host.model), _frozen(host.model), recall.forced(None):
        for at in range(0, len(jobs), config.batch_size):
            part = jobs[at : at + config.batch_size]
            learned += _Trainer(host, recall, config, part, prefixes).run()
            advance(len(part))
    return learned


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class _Trainer:
    """One batch of jobs."""

    def __init__(
        self, host: Host, recall: Recall, config: LLPConfig, jobs: Sequence[Job], prefixes: Sequence[str]
    ) -> None:
        self.host, self.recall, self.config, self.jobs = host, recall, config, jobs
        self.rows = self._build(prefixes)
        init = self._init()
        self.scale = self._step_unit()
        self.init = init
        self.moved = torch.zeros_like(init, requires_grad=True)

    def run(self) -> list[Learned]:
        config = self.config
        optimizer = torch.optim.Adam([self.moved], lr=config.value_lr)
        done: dict[int, Learned] = {}
        scaler = _Scaler(self.host.model.dtype)
        alive = list(range(len(self.jobs)))
        for step in range(config.value_steps + 1):
            values = self.init + self.scale * self.moved
            losses, worst = self._losses(values, alive)
            if not bool(torch.isfinite(losses).all()):
                bad = self.jobs[alive[int((~torch.isfinite(losses)).nonzero()[0])]]
                raise EditError(
                    f"training {bad.edits[0].prompt!r} gave a loss that is not finite; nothing was changed"
                )
            reached = worst if config.stop == "worst" else losses.detach()
            last = step == config.value_steps
            ended = [last or bool(r < config.stop_loss) for r in reached]
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

    def _step(self, optimizer: torch.optim.Optimizer, scaler: _Scaler, loss: Tensor) -> None:
        (gradient,) = torch.autograd.grad(loss * scaler.scale, self.moved)
        if scaler.accept(gradient):
            self.moved.grad = gradient / scaler.used
            optimizer.step()

    def _build(self, prefixes: Sequence[str]) -> _Rows:
        """Tokenise every row of every job and compute what does not depend on the value."""
        text, config = self.host.text, self.config
        ids: list[list[int]] = []
        job: list[int] = []
        points: list[tuple[int, int, int, float]] = []  # row, position, target, weight
        fronts = ([""] if config.bare_prompt or not prefixes else []) + list(prefixes)
        for j, item in enumerate(self.jobs):
            pairs = [p for edit in item.edits for p in self._pairs(edit, fronts)]
            for pair in pairs:
                size = len(pair.ids) - pair.start
                points += [
                    (len(ids), t - 1, pair.ids[t], 1.0 / (size * len(pairs)))
                    for t in range(pair.start, len(pair.ids))
                ]
                ids.append(pair.ids)
                job.append(j)
            kept = [self._statement(s, item.subject) for s in item.statements]
            total = sum(len(where) for _, where in kept)
            for row, where in kept:
                points += [(len(ids), t, -1, config.statement_weight / total) for t in where]
                ids.append(row)
                job.append(j)
        batch = text.batch(ids)
        device = batch.ids.device
        hidden = capture_input(self.host.anatomy, self.recall.layer, lambda: self._decode(batch))
        row, at, target, weight = map(list, zip(*points, strict=True))
        owner, rows, places, targets, weights = (
            torch.tensor(column, device=device) for column in (job, row, at, target, weight)
        )
        return self._with_base(_Rows(batch, hidden, owner, rows, places, targets, weights, hidden[:0]))

    def _pairs(self, edit: Edit, fronts: Sequence[str]) -> list[Pair]:
        text, stop = self.host.text, self.config.train_stop
        pairs = []
        for front in fronts:
            pair = text.pair(f"{front} {edit.prompt}".strip(), edit.target, stop=stop)
            if len(pair.ids) <= text.max_length:
                pairs.append(pair)
        return pairs or [text.pair(edit.prompt, edit.target, stop=stop)]

    def _statement(self, statement: str, subject: str) -> tuple[list[int], range]:
        """Ids of a statement, and the positions from the subject's last token to the end."""
        begin = statement.index(subject)
        ids, span = self.host.text.span(statement, begin, begin + len(subject))
        return ids, range(span[-1], len(ids))

    @torch.no_grad()
    def _with_base(self, rows: _Rows) -> _Rows:
        """Add the base model's distributions, and drop statement positions that ask what is edited."""
        kl = rows.target < 0
        if not bool(kl.any()):
            return rows
        logits = self._logits(rows, rows.row[kl], rows.at[kl], None)
        base = logits.float().log_softmax(-1)
        asks = torch.zeros(len(base), dtype=torch.bool, device=base.device)
        owner = rows.job[rows.row[kl]]
        for j, item in enumerate(self.jobs):
            for edit, answer in zip(item.edits, item.answers, strict=True):
                if answer:
                    pair = self.host.text.pair(edit.prompt, answer)
                    asks |= (owner == j) & (base.argmax(-1) == pair.ids[pair.start])
        keep = torch.ones_like(kl)
        keep[kl] = ~asks
        weight = rows.weight
        for j in range(len(self.jobs)):  # the positions left share the weight of those dropped
            mine = kl & keep & (rows.job[rows.row] == j)
            if bool(mine.any()):
                weight = torch.where(mine, self.config.statement_weight / mine.sum(), weight)
        return _Rows(
            rows.batch, rows.hidden, rows.job, rows.row[keep], rows.at[keep], rows.target[keep],
            weight[keep], base[~asks],
        )  # fmt: skip

    def _init(self) -> Tensor:
        """[E,b,D]: states at the recall layer of prompt and target's last b tokens, mean over the edits."""
        text, length = self.host.text, self.config.n_values
        pairs = [text.pair(edit.prompt, edit.target) for item in self.jobs for edit in item.edits]
        batch = text.batch([pair.ids for pair in pairs])
        hidden = capture_input(self.host.anatomy, self.recall.layer, lambda: self._decode(batch)).float()
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
            return torch.ones(count, 1, 1, device=self.rows.hidden.device)
        rms = self.rows.hidden.float().square().mean(-1).sqrt()
        real = self.rows.batch.mask.bool()
        units = [rms[self.rows.job == j][real[self.rows.job == j]].median() for j in range(count)]
        return torch.stack(units)[:, None, None]

    def _losses(self, values: Tensor, alive: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Loss of each job in ``alive``, and the largest of its rows' answer losses (detached)."""
        rows, config, device = self.rows, self.config, values.device
        chosen = torch.tensor(alive, device=device)
        place = torch.full((len(self.jobs),), -1, device=device)
        place[chosen] = torch.arange(len(alive), device=device)
        mine = place[rows.job] >= 0
        point = mine[rows.row]
        row, at, target, weight = (x[point] for x in (rows.row, rows.at, rows.target, rows.weight))
        kv = self.recall.project(values[chosen], torch.zeros(len(alive), dtype=torch.long))
        every = Prefix(kv, torch.ones(len(alive), dtype=torch.bool), torch.zeros(len(alive)).long())
        start = torch.zeros(int(mine.sum()), dtype=torch.long)
        prefix = every.take(place[rows.job[mine]], start)
        logp = self._logits(rows, row, at, prefix, mine).float().log_softmax(-1)
        kl = target < 0
        owner = place[rows.job[row]]
        nll = -logp.gather(-1, target.clamp(min=0)[:, None])[:, 0]
        base = rows.base[point[rows.target < 0]]
        loss = torch.zeros(len(alive), device=device)
        loss = loss.index_add(0, owner[~kl], (nll * weight)[~kl])
        if len(base):
            divergence = F.kl_div(logp[kl], base, reduction="none", log_target=True).sum(-1)
            loss = loss.index_add(0, owner[kl], divergence * weight[kl])
        if config.norm_penalty:
            size = values[chosen].flatten(1).norm(dim=-1)
            # The published code divides by the value's own norm, detached, and not by the initial one.
            loss = loss + config.norm_penalty * size / size.detach().square()
        per_row = torch.zeros(len(rows.job), device=device).index_add(
            0, row[~kl], (nll.detach() * weight)[~kl]
        )
        share = torch.zeros(len(rows.job), device=device).index_add(0, row[~kl], weight[~kl])
        per_row = per_row / share.clamp(min=1e-12)
        worst = torch.zeros(len(alive), device=device).scatter_reduce(
            0, owner[~kl], per_row[row[~kl]], "amax"
        )
        return loss, worst

    def _logits(
        self, rows: _Rows, row: Tensor, at: Tensor, prefix: Prefix | None, mine: Tensor | None = None
    ) -> Tensor:
        """[P,V] at positions ``at`` of ``row``, from the recall layer on, with ``prefix`` recalled."""
        mine = torch.ones_like(rows.job, dtype=torch.bool) if mine is None else mine
        batch = Batch(*(x[mine] for x in rows.batch))
        hidden = rows.hidden[mine]
        new_row = mine.cumsum(0)[row] - 1
        flat = new_row * hidden.shape[1] + at
        return self.recall.resume(hidden, lambda: self._decode(batch, head=True), prefix, flat)

    def _decode(self, batch: Batch, *, head: bool = False) -> Any:
        model = self.host.model if head else self.host.anatomy.decoder
        return self.host.forward(model, batch)


class _Scaler:
    """Keeps half-precision gradients above underflow; float32 and bfloat16 need no scale."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.scale = self.used = 4096.0 if dtype == torch.float16 else 1.0

    def accept(self, gradient: Tensor) -> bool:
        """Whether the step counts; an overflow halves the scale instead."""
        self.used = self.scale
        if self.scale == 1.0 or bool(torch.isfinite(gradient).all()):
            return True
        self.scale /= 2
        return False


def _split(items: list[Tensor], sizes: Sequence[int]) -> Iterator[list[Tensor]]:
    at = 0
    for size in sizes:
        yield items[at : at + size]
        at += size
