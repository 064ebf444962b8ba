"""Losses at the places that lessons count at, and what they say of each edit.

Letters: Q places, N rows, E edits, V vocabulary; Q' places where no answer is expected.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import Host

__all__ = ["WORD_ENDS", "EditLosses", "Places", "base_of", "losses_of"]

WORD_ENDS = -2
"""Instead of a token: the base model's choice among those that do not go on the word before it."""


_NEVER = -1e4


class Places(Protocol):
    """What counts in some rows, that are run together.

    Attributes:
        chunk: runs them; see `passes.Chunk.logits`.
        edit: LongTensor [N], of each row.
        row, at, target: LongTensors [Q], where it is, and the token that is expected there; or -1, or
            `WORD_ENDS`.
    """

    @property
    def chunk(self) -> Any: ...
    @property
    def edit(self) -> Tensor: ...
    @property
    def row(self) -> Tensor: ...
    @property
    def at(self) -> Tensor: ...
    @property
    def target(self) -> Tensor: ...


class EditLosses(NamedTuple):
    """By edit [E] float32: the loss of its worst prompt, in nats a token, and the divergence elsewhere."""

    worst: Tensor
    other: Tensor

    @staticmethod
    def zeros(count: int) -> EditLosses:
        """Before anything is known of ``count`` edits."""
        return EditLosses(*(torch.zeros(count, dtype=torch.float32) for _ in range(2)))

    def of(self, part: Places, loss: Tensor, weight: Tensor) -> EditLosses:
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
def base_of(host: Host, upper: Any, part: Places) -> Tensor | None:
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
