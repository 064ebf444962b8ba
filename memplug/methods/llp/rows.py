"""The rows that a value is trained on, and everything about them that does not depend on the value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...edits import Edit
from ...hooks import capture_input
from ...naming import placed
from ...prefix import Prefix
from ...recall import Recall
from ...text import Batch, Pair, TokenizerError
from ..base import Host
from .config import LLPConfig

__all__ = ["Job", "Rows", "build_rows", "logits_of"]

_SMALL = 1024  # tokens; a batch below this is run in one piece


class Job(NamedTuple):
    """A subject whose value is to be trained.

    Attributes:
        subject: its name.
        edits: its edits; the value has to answer all of them.
        statements: texts about the subject that must stay as they are.
        answers: the base model's answers to the edits' prompts; there, statements need not stay.
        restated: other ways to ask for each edit.
    """

    subject: str
    edits: tuple[Edit, ...]
    statements: tuple[str, ...]
    answers: tuple[str, ...]
    restated: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Rows:
    """The rows of some jobs, and the P tokens at which their logits count.

    Attributes:
        batch: token ids [N,T].
        hidden: [N,T,D] inputs of the recall layer.
        job: [N] index of each row's job.
        row, at: [P] row and position of each logit that counts.
        target: [P] token expected there, or -1 where the base model's distribution is.
        weight: [P] weights; those of a job's answers sum to 1, and those of its statements.
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

    @property
    def lengths(self) -> Tensor:
        """[N] tokens of each row."""
        return self.batch.mask.sum(1)


def build_rows(
    host: Host, recall: Recall, config: LLPConfig, jobs: Sequence[Job], prefixes: Sequence[str]
) -> Rows:
    """Tokenise every row of every job, and run the layers below the recall layer once."""
    ids: list[list[int]] = []
    owner: list[int] = []
    points: list[tuple[int, int, int, float]] = []  # row, position, target, weight
    fronts = ([""] if config.bare_prompt or not prefixes else []) + list(prefixes)
    for j, job in enumerate(jobs):
        pairs = [pair for edit in job.edits for pair in _pairs(host, config, edit, fronts)]
        for edit, others in zip(job.edits, job.restated, strict=True):
            # What follows the answer in running text is open: no stop is trained there.
            found = [_fitting(host, front, edit.target) for front in others]
            pairs += [pair for pair in found if pair is not None]
        for pair in pairs:
            size = len(pair.ids) - pair.start
            points += [
                (len(ids), t - 1, pair.ids[t], 1.0 / (size * len(pairs)))
                for t in range(pair.start, len(pair.ids))
            ]
            ids.append(pair.ids)
            owner.append(j)
        for statement in job.statements:
            row, where = _after_subject(host, statement, job.subject)
            points += [(len(ids), t, -1, 0.0) for t in where]  # weighed below, when it is known what stays
            ids.append(row)
            owner.append(j)
    batch = host.text.batch(ids)
    device = batch.ids.device
    hidden = capture_input(host.anatomy, recall.layer, lambda: host.forward(host.anatomy.decoder, batch))
    row_, at, target, weight = (torch.tensor(column, device=device) for column in zip(*points, strict=True))
    weight = weight.float()  # where the caller's default is another
    rows = Rows(batch, hidden, torch.tensor(owner, device=device), row_, at, target, weight, hidden[:0])
    return _with_base(host, recall, jobs, rows)


def _pairs(host: Host, config: LLPConfig, edit: Edit, fronts: Sequence[str]) -> list[Pair]:
    stop = config.train_stop
    found = [_fitting(host, f"{front} {edit.question}".strip(), edit.target, stop) for front in fronts]
    pairs = [pair for pair in found if pair is not None]
    return pairs or [host.text.pair(edit.prompt, edit.target, stop=stop)]


def _fitting(host: Host, prompt: str, target: str, stop: bool = False) -> Pair | None:
    """The pair, or None where it is longer than the context."""
    try:
        pair = host.text.pair(prompt, target, stop=stop)
    except TokenizerError:
        return None
    return pair if len(pair.ids) <= host.text.max_length else None


def _after_subject(host: Host, statement: str, subject: str) -> tuple[list[int], range]:
    """Ids of a statement, and the positions from the subject's last token to the end."""
    ids, span = host.text.span(statement, *placed(statement, subject))
    return ids, range(span[-1], len(ids))


@torch.no_grad()
def _with_base(host: Host, recall: Recall, jobs: Sequence[Job], rows: Rows) -> Rows:
    """Add the base model's distributions, and drop statement positions that ask what is edited."""
    kl = rows.target < 0
    if not bool(kl.any()):
        return rows
    every = torch.arange(len(rows.job), device=rows.job.device)
    logits = logits_of(host, recall, rows, every, rows.row[kl], rows.at[kl], lambda _: None)
    base = logits.float().log_softmax(-1)
    asks = torch.zeros(len(base), dtype=torch.bool, device=base.device)
    owner = rows.job[rows.row[kl]]
    for j, job in enumerate(jobs):
        for edit, answer in zip(job.edits, job.answers, strict=True):
            pair = _fitting(host, edit.question, answer) if answer else None
            if pair is not None:
                asks |= (owner == j) & (base.argmax(-1) == pair.ids[pair.start])
    keep = torch.ones_like(kl)
    keep[kl] = ~asks
    # Where the base model is sure it states something; elsewhere any continuation would do.
    sure = base.max(-1).values.exp() * ~asks
    total = torch.zeros(len(jobs), device=base.device, dtype=torch.float32).index_add(0, owner, sure)
    weight = rows.weight.clone()
    weight[kl] = sure / total.clamp(min=1e-12)[owner]
    return replace(
        rows,
        row=rows.row[keep],
        at=rows.at[keep],
        target=rows.target[keep],
        weight=weight[keep],
        base=base[~asks],
    )


def logits_of(
    host: Host,
    recall: Recall,
    rows: Rows,
    mine: Tensor,
    row: Tensor,
    at: Tensor,
    prefix: Callable[[Tensor], Prefix | None],
) -> Tensor:
    """[P,V] at positions ``at`` of ``row``, from the recall layer on.

    Args:
        mine: [N'] the rows to run, those of ``row`` among them.
        prefix: what the rows of an index tensor recall.
    """
    pieces, order = [], []
    for part in _alike(mine, rows.lengths):
        longest = int(rows.lengths[part].max())
        place = torch.full((len(rows.job),), -1, device=part.device)
        place[part] = torch.arange(len(part), device=part.device)
        point = (place[row] >= 0).nonzero()[:, 0]
        batch = Batch(*(column[part, :longest] for column in rows.batch))
        flat = place[row[point]] * longest + at[point]

        def run(batch: Batch = batch) -> object:
            return host.forward(host.model, batch)

        pieces.append(recall.resume(rows.hidden[part, :longest], run, prefix(part), flat))
        order.append(point)
    return torch.cat(pieces)[torch.cat(order).argsort()]


def _alike(rows: Tensor, lengths: Tensor) -> Iterator[Tensor]:
    """``rows`` in up to three groups of like length, so that little padding is computed."""
    size = lengths[rows]
    if len(rows) * int(size.max()) <= _SMALL:
        yield rows
        return
    parts = rows[size.argsort(stable=True)].tensor_split(3)
    yield from (part for part in parts if len(part))
