"""Prompts with the answers that are to be learned, for methods that train something from one layer on.

What lies below that layer does not change in training, so its output is computed once and kept; a step runs
only the layers above, and the language-model head only at the tokens that count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..interface import Host
from ..model.hooks import capture_input, resume
from ..text.tokens import Batch, Pair

__all__ = ["Answers", "read_answers"]

_ROWS = 64  # read at once


@dataclass(frozen=True)
class Answers:
    """N rows of a prompt and its answer, and the P tokens of all answers.

    Attributes:
        host: the model.
        layer: the layer from which on something is trained.
        batch: token ids [N,T], and what an encoder made of the sources.
        hidden: [N,T,D], inputs of that layer.
        end: LongTensor [N], column of each prompt's last token.
        row, at: LongTensor [P], row and column at which an answer's token is expected next.
        target: LongTensor [P], that token.
        weight: [P], 1 / tokens of the row's answer.
    """

    host: Host
    layer: int
    batch: Batch
    hidden: Tensor
    end: Tensor
    row: Tensor
    at: Tensor
    target: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.end)

    def logits(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 logits [P',V] where the answers of ``rows`` (LongTensor) are expected, and which of the P
        they are; hooks decide what the layers above do."""
        host, length = self.host, int(self.batch.mask[rows].sum(1).max())
        place = torch.full((len(self),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        points = (place[self.row] >= 0).nonzero()[:, 0]
        part = self.batch.part(rows, length)
        flat = place[self.row[points]] * length + self.at[points]

        def run() -> Any:
            return host.forward(host.model, part)

        hidden = self.hidden[rows, :length]
        return resume(host.model, host.architecture, self.layer, hidden, run, flat).float(), points

    def losses(self, rows: Tensor) -> Tensor:
        """Mean over tokens of -log p of the answers of ``rows`` (LongTensor [n], each once) [n]."""
        logits, points = self.logits(rows)
        nll = -logits.log_softmax(-1).gather(-1, self.target[points, None])[:, 0] * self.weight[points]
        total = nll.new_zeros(len(self)).index_add(0, self.row[points], nll)
        return total[rows]


@torch.no_grad()
def read_answers(host: Host, layer: int, pairs: Sequence[Pair]) -> Answers:
    """Run ``pairs`` up to ``layer``, the base model's forward below it."""
    batch, device = host.text.batch(pairs), host.text.device
    parts = [host.encoded(batch.part(slice(at, at + _ROWS))) for at in range(0, len(pairs), _ROWS)]
    hidden = [capture_input(host.architecture, layer, _decoder(host, part)) for part in parts]
    if batch.source is not None:
        batch = batch._replace(source=torch.cat([part.source for part in parts if part.source is not None]))
    points = [
        (i, t - 1, pair.ids[t], 1.0 / (len(pair.ids) - pair.start))
        for i, pair in enumerate(pairs)
        for t in range(pair.start, len(pair.ids))
    ]
    row, at_, target, weight = (torch.tensor(column, device=device) for column in zip(*points, strict=True))
    weight = weight.float()  # where the caller's default is another
    end = torch.tensor([pair.start - 1 for pair in pairs], device=device)
    return Answers(host, layer, batch, torch.cat(hidden), end, row, at_, target, weight)


def _decoder(host: Host, batch: Batch) -> Any:
    return lambda: host.forward(host.architecture.decoder, batch)
