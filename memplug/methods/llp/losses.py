"""Losses at the places that lessons count at, and what they say of each edit.

Letters: Q places, N rows, E edits, V vocabulary; Q' places where no answer is expected.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...interface import Host
from ...retrieval.lessons import Lesson
from ...retrieval.passes import Chunk

__all__ = ["WORD_ENDS", "EditLosses", "Part", "base_of", "losses_of", "part_of"]

WORD_ENDS = -2
"""Instead of a token: the base model's choice among those that do not go on the word before it."""


_NEVER = -1e4


class Part(NamedTuple):
    """What counts in some rows that are run together.

    Attributes:
        chunk: runs them; see `passes.Chunk`.
        edit: LongTensor [N], of each row.
        row, at, target: LongTensors [Q], where it is, and the token that is expected there; or -1, or
            `WORD_ENDS`.
        weight: float32 [Q], of each place in its edit's sum.
    """

    chunk: Chunk
    edit: Tensor
    row: Tensor
    at: Tensor
    target: Tensor
    weight: Tensor


def part_of(
    chunk: Chunk,
    lessons: Sequence[tuple[int, Lesson]],
    count: int,
    other_weight: float = 1.0,
    closing: Collection[int] = (),
) -> Part:
    """What counts in a chunk of the lessons of ``count`` edits.

    An edit's lessons that ask weigh 1 together, and those that are to be answered as before ``other_weight``.

    Args:
        lessons: all of them, with the number of their edit.
        closing: those that may end with their answer's last word.
    """
    total = torch.zeros(2, count, dtype=torch.float32)
    for e, lesson in lessons:
        total[int(lesson.asks), e] += 1
    places: list[tuple[int, int, int, float]] = []
    for n, i in enumerate(chunk.lines):
        e, lesson = lessons[i]
        tokens = lesson.answer if lesson.asks else (-1,) * (len(lesson.answer) + 1)
        share = (1.0 if lesson.asks else other_weight) / (len(tokens) * float(total[int(lesson.asks), e]))
        if i in closing:
            tokens = (*tokens, WORD_ENDS)
        places += [(n, chunk.begin(lesson.line) + k, token, share) for k, token in enumerate(tokens)]
    *where, weight = zip(*places, strict=True)
    device = chunk.ids.device
    edit = torch.tensor([lessons[i][0] for i in chunk.lines], device=device)
    wide = torch.tensor(weight, dtype=torch.float32, device=device)
    row, at, target = torch.tensor(where, device=device)
    return Part(chunk, edit, row, at, target, wide)


class EditLosses(NamedTuple):
    """By edit [E] float32: the loss of its worst prompt, in nats a token, and the divergence elsewhere."""

    worst: Tensor
    other: Tensor

    @staticmethod
    def zeros(count: int) -> EditLosses:
        """Before anything is known of ``count`` edits."""
        return EditLosses(*(torch.zeros(count, dtype=torch.float32) for _ in range(2)))

    def of(self, part: Part, loss: Tensor, weight: Tensor) -> EditLosses:
        """With those of further rows.

        Args:
            loss: [Q].
            weight: [Q] of each place in its edit's sum.
        """
        shown, asked = loss.detach().cpu(), (part.target >= 0).cpu()
        row, edit = part.row.cpu(), part.edit.cpu()
        line = torch.zeros(len(edit), dtype=torch.float32).scatter_reduce(
            0, row[asked], shown[asked], "mean", include_self=False
        )
        elsewhere = (shown * weight.cpu())[~asked]
        return EditLosses(
            self.worst.scatter_reduce(0, edit, line, "amax"),
            self.other.index_add(0, edit[row][~asked], elsewhere),
        )


@torch.no_grad()
def base_of(host: Host, upper: Any, part: Part) -> Tensor | None:
    """The base model's log-probabilities [Q',V] where no token is expected; None without such places.

    Args:
        upper: runs the upper layers, see `passes.Upper`.
    """
    other = part.target < 0
    if not bool(other.any()):
        return None
    logits = part.chunk.logits(host, upper, None, part.row[other], part.at[other]).float()
    ends = part.target[other] == WORD_ENDS
    if bool(ends.any()):  # finite, as the divergence weighs the logarithm with its own exponential
        others = host.text.going_on(logits.shape[-1]).to(logits.device)
        logits[ends] = logits[ends].masked_fill(others, _NEVER)
    return logits.log_softmax(-1)


def losses_of(logits: Tensor, target: Tensor, base: Tensor | None) -> Tensor:
    """[Q]: -log p of the expected token, and the KL divergence to the base model where none is expected.

    Args:
        logits: [Q,V].
        target: LongTensor [Q]; below 0 no token is expected.
        base: see `base_of`.
    """
    logp, asked = logits.float().log_softmax(-1), target >= 0
    nll = -logp.gather(-1, target.clamp(min=0)[:, None])[:, 0]
    loss = torch.where(asked, nll, torch.zeros_like(nll))
    if base is None:
        return loss
    kl = F.kl_div(logp[~asked], base, reduction="none", log_target=True).sum(-1)
    return loss.masked_scatter(~asked, kl)
