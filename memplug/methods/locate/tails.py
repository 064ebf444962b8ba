"""Rows from the token on at which a state is changed, in the layers above: all that a change can matter to.

What stands before is kept as keys and values. Models with layers that keep something else are run on whole
rows, in the layers above alone.

Letters: N rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...interface import Host
from ...model.architecture import UnsupportedModelError
from ...model.hooks import capture_input, resume
from ...model.recall import Recall
from ...retrieval.passes import Chunk, Line, run_lines
from ...text.tokens import Batch
from ..inweights.rows import alike

__all__ = ["Tail", "tails_of"]


@dataclass(frozen=True)
class Tail:
    """Some rows, from a column of each on.

    Attributes:
        host: the model.
        layer: the layer to start at.
        rows: which rows they are.
        begin: of each, the token that stands in column 0.
        hidden: [N,T,D] inputs of the layer.
        at: LongTensor [N], the column at which a state is changed.
        batch: whole rows, or a chunk with its `Recall`.
    """

    host: Host
    layer: int
    rows: list[int]
    begin: list[int]
    hidden: Tensor
    at: Tensor
    batch: Batch | tuple[Chunk, Recall]

    def of(self, some: Sequence[int]) -> Tail:
        """The rows with these numbers."""
        index = torch.tensor(some, device=self.hidden.device)
        if isinstance(self.batch, Batch):
            batch: Batch | tuple[Chunk, Recall] = self.batch.part(index)
        else:
            chunk, recall = self.batch
            past = [
                (keys[index.to(keys.device)], values[index.to(values.device)]) for keys, values in chunk.past
            ]
            made = {name: getattr(chunk, name)[index] for name in ("ids", "mask", "positions", "hidden")}
            batch = replace(chunk, lines=[chunk.lines[i] for i in some], past=past, **made), recall
        rows, begin = ([column[i] for i in some] for column in (self.rows, self.begin))
        return replace(
            self, rows=rows, begin=begin, hidden=self.hidden[index], at=self.at[index], batch=batch
        )

    def logits(self, added: Tensor, points: Sequence[tuple[int, int]]) -> Tensor:
        """[P,V] at points (row, column), with ``added`` [N,D] where the state is changed; differentiable."""
        here = F.one_hot(self.at, self.hidden.shape[1]).to(self.hidden.dtype)[..., None]  # [N,T,1]
        hidden = self.hidden + here * added[:, None].to(self.hidden.dtype)
        row, column = torch.tensor(points, device=self.hidden.device).T
        host = self.host
        if not isinstance(self.batch, Batch):
            chunk, recall = self.batch
            return replace(chunk, hidden=hidden).logits(host, recall, None, row, column)
        run = partial(host.forward, host.model, self.batch)
        flat = row * hidden.shape[1] + column
        return resume(host.model, host.architecture, self.layer, hidden, run, flat)


def tails_of(host: Host, layer: int, lines: Sequence[Line]) -> list[Tail]:
    """The rows ``lines`` from their starts on, in layers ``layer`` and up, at the weights as they are now."""
    try:
        recall = Recall(host.model, host.architecture, layer)
    except UnsupportedModelError:
        return _whole(host, layer, lines)
    chunks, _ = run_lines(host, recall, lines, [[] for _ in lines], [])
    found = []
    for chunk in chunks:
        at = torch.zeros(len(chunk.lines), dtype=torch.long, device=chunk.hidden.device)
        begin = [lines[i].start for i in chunk.lines]
        found.append(Tail(host, layer, chunk.lines, begin, chunk.hidden, at, (chunk, recall)))
    return found


def _whole(host: Host, layer: int, lines: Sequence[Line]) -> list[Tail]:
    found = []
    for rows in alike([len(line.ids) for line in lines], len(lines), host.text.device):
        batch = host.text.batch([lines[i].ids for i in rows])
        hidden = capture_input(
            host.architecture, layer, partial(host.forward, host.architecture.decoder, batch)
        )
        at = torch.tensor([lines[i].start for i in rows], device=hidden.device)
        found.append(Tail(host, layer, rows, [0] * len(rows), hidden, at, batch))
    return found
