"""What the inputs of a module usually are, and changes that keep clear of it.

A change acts on every input x as ``x W``, wanted or not. In the joint solve its norm stands for what was not
wanted; with the plain norm all directions of x count alike, though the model's own inputs lie in few of them.
Here the norm is ``E |x W|^2`` over the base model's inputs beside the plain one, as in MEMIT (its covariance,
equation 14), but of low rank, so that nothing d x d is kept.

Letters: n rows, d_k a module's input width, m directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Usual"]


class Usual(nn.Module):
    """The metric ``I + protect C`` of a module's inputs, C their second moment, scaled to a mean diagonal of
    1 and cut to its m principal directions.

    Args:
        d_k: the module's input width.
        protect: weight of C; above 0.
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
        self.register_buffer("axes", torch.zeros(d_k, rank))
        self.register_buffer("held", torch.zeros(rank))

    def study(self, inputs: Tensor) -> None:
        """Take the metric from ``inputs`` [n,d_k] of the base model."""
        rows = inputs.double()
        scale = rows.square().sum().clamp(min=1e-30) / self.axes.shape[0]
        _, root, axes = torch.linalg.svd(rows, full_matrices=False)
        found = min(len(root), self.axes.shape[1])
        weight = self.protect * root[:found].square() / scale
        self.axes.zero_()
        self.held.zero_()
        self.axes[:, :found].copy_(axes[:found].T)
        self.held[:found].copy_(weight / (1 + weight))

    def forward(self, keys: Tensor) -> Tensor:
        """``keys`` [...,n,d_k] times the inverse of the metric."""
        axes, held = self.axes.to(keys.dtype), self.held.to(keys.dtype)
        return keys - (keys @ axes * held) @ axes.T
