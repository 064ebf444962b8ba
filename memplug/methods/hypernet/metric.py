"""What a module's inputs ordinarily are and what earlier edits' were, and changes that keep clear of both.

A change acts on every input x as ``x W``, wanted or not. In the joint solve its norm stands for what was not
wanted; with the plain norm all directions of x count alike, though the model's own inputs lie in few of them.
Here the norm is ``E |x W|^2`` over the base model's inputs beside the plain one, as in MEMIT (its covariance,
equation 14), but of low rank. Where questions end inputs are much alike, and they are few among those of
ordinary text, so that those of fitting's own requests count as much as all others. To it comes ``|k W|^2``
over the inputs k of all edits before this one, each wanting no further change: that is recursive least
squares, and what keeps a thousandth edit from undoing the first.

Letters: n rows, d_k a module's input width, m directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["InputCovariance", "PastInputs"]

_LONGEST = 3.0


class InputCovariance(nn.Module):
    """The metric ``I + protect C`` of a module's inputs, C their second moment, in units of the mean diagonal
    of ordinary text's and cut to its m principal directions.

    Args:
        d_k: the module's input width.
        protect: weight of C, at least 0.
        rank: m, at most d_k.

    Attributes:
        axes: [d_k,m], orthonormal.
        held: [m], by how much a step along each is held back: ``protect s / (1 + protect s)``, s the second
            moment there; 0 before `study`.
    """

    axes: Tensor
    held: Tensor

    def __init__(self, d_k: int, protect: float, rank: int) -> None:
        super().__init__()
        self.protect = protect
        rank = min(rank, d_k)
        self.register_buffer("axes", torch.zeros(d_k, rank, dtype=torch.float32))
        self.register_buffer("held", torch.zeros(rank, dtype=torch.float32))

    def study(self, inputs: Tensor, asked: Tensor | None = None) -> None:
        """Take the metric from ``inputs`` [n,d_k] of the base model on ordinary text, and as much from those
        at the tokens of requests, ``asked``. A few tokens are sinks, whose inputs are a hundred times longer
        than others: they are cut to `_LONGEST` times the median."""
        second = _second_moment(inputs)
        unit = second.diagonal().mean().clamp(min=1e-30)
        second = (second if asked is None else second + _second_moment(asked)) / unit
        moments, axes = torch.linalg.eigh(second)
        rank = self.axes.shape[1]
        moments = torch.where(moments > 1e-9 * moments[-1], moments, 0)[-rank:].flip(0)
        weight = self.protect * moments
        self.axes.copy_(torch.where(moments > 0, axes[:, -rank:].flip(1), 0))
        self.held.copy_(weight / (1 + weight))

    def forward(self, keys: Tensor, past: PastInputs | None = None) -> Tensor:
        """``keys`` [...,n,d_k] times the inverse of the metric, to which ``past`` inputs were added."""
        if past is not None and past.count:
            return past.clear(self, keys)
        axes, held = self.axes.to(keys.dtype), self.held.to(keys.dtype)
        return keys - (keys @ axes * held) @ axes.T


def _second_moment(inputs: Tensor) -> Tensor:
    rows = inputs.double()
    size = rows.norm(dim=1, keepdim=True)
    longest = (_LONGEST * size.median()).clamp(min=1e-30)
    rows = rows * (longest / size.clamp(min=longest))
    return rows.T @ rows / len(rows)


class PastInputs:
    """The inputs of a module in the edits made so far, each counted ``weight`` times, in an inverse metric.

    Args:
        weight: how often an input counts, at least 0.
    """

    def __init__(self, weight: float) -> None:
        self.weight, self.count = weight, 0
        self._new: list[Tensor] = []
        self._inverse: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Take in ``rows`` [n,d_k]. What follows depends on the rows and how they came, to the bit."""
        self.count += len(rows)
        self._new.append(rows)

    def clear(self, covariance: InputCovariance, keys: Tensor) -> Tensor:
        """``keys`` [...,n,d_k] times the inverse of ``I + protect C + weight sum k'k``, in float64."""
        if self._inverse is None:
            eye = torch.eye(keys.shape[-1], dtype=torch.float64, device=keys.device)
            self._inverse = covariance(eye)
        for rows in self._new:
            # (M + R'R)^-1 = M^-1 - D' (I + R D')^-1 D with D = R M^-1
            wide = rows.double().to(self._inverse.device) * self.weight**0.5
            directions = wide @ self._inverse
            system = torch.eye(len(wide), dtype=wide.dtype, device=wide.device) + wide @ directions.T
            self._inverse = self._inverse - directions.T @ torch.linalg.solve(system, directions)
        self._new = []
        return (keys.double() @ self._inverse).to(keys.dtype)
