"""The rows that a value is trained on, and everything about them that does not depend on the value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...edits import Edit
from ...interface import Host
from ...model.hooks import capture_input
from ...model.prefix import Prefix
from ...model.recall import Recall
from ...text.tokens import Batch, Pair, TokenizerError
from .config import LLPConfig

__all__ = ["Rows", "build_rows", "logits_of"]

_SMALL = 1024  # tokens; a batch below this is run in one piece


@dataclass(frozen=True)
class Rows:
    """The rows of some subjects, and the P tokens at which their logits count.

    Attributes:
        batch: token ids [N,T].
        hidden: [N,T,D] inputs of the recall layer.
        subject: [N] index of each row's subject.
        row, at: [P] row and position of each logit that counts.
        target: [P] token expected there.
        weight: [P] weights; those of a subject sum to 1.
    """

    batch: Batch
    hidden: Tensor
    subject: Tensor
    row: Tensor
    at: Tensor
    target: Tensor
    weight: Tensor

    @property
    def lengths(self) -> Tensor:
        """[N] tokens of each row."""
        return self.batch.mask.sum(1)


def build_rows(
    host: Host, recall: Recall, config: LLPConfig, groups: Sequence[Sequence[Edit]], prefixes: Sequence[str]
) -> Rows:
    """Tokenise every row of every subject's edits, and run the layers below the recall layer once."""
    ids: list[list[int]] = []
    owner: list[int] = []
    points: list[tuple[int, int, int, float]] = []  # row, position, target, weight
    for j, edits in enumerate(groups):
        pairs = [pair for edit in edits for pair in _pairs(host, config, edit, prefixes or [""])]
        for pair in pairs:
            size = len(pair.ids) - pair.start
            points += [
                (len(ids), t - 1, pair.ids[t], 1.0 / (size * len(pairs)))
                for t in range(pair.start, len(pair.ids))
            ]
            ids.append(pair.ids)
            owner.append(j)
    batch = host.text.batch(ids)
    device = batch.ids.device
    hidden = capture_input(
        host.architecture, recall.layer, lambda: host.forward(host.architecture.decoder, batch)
    )
    row, at, target, weight = (torch.tensor(column, device=device) for column in zip(*points, strict=True))
    # Float32 also where the caller's default is another one.
    return Rows(batch, hidden, torch.tensor(owner, device=device), row, at, target, weight.float())


def _pairs(host: Host, config: LLPConfig, edit: Edit, fronts: Sequence[str]) -> list[Pair]:
    stop = config.train_stop
    found = [_fitting(host, f"{front} {edit.question}".strip(), edit.target, stop) for front in fronts]
    pairs = [pair for pair in found if pair is not None]
    return pairs or [host.text.pair(edit.prompt, edit.target, stop=stop)]


def _fitting(host: Host, prompt: str, target: str, stop: bool) -> Pair | None:
    """The pair, or None where it is longer than the context."""
    try:
        pair = host.text.pair(prompt, target, stop=stop)
    except TokenizerError:
        return None
    return pair if len(pair.ids) <= host.text.max_length else None


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
        place = torch.full((len(rows.subject),), -1, device=part.device)
        place[part] = torch.arange(len(part), device=part.device)
        point = (place[row] >= 0).nonzero()[:, 0]
        batch = rows.batch.part(part, longest)
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
