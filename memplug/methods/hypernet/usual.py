"""What the inputs of a module usually are and what earlier edits' were, and changes that keep clear of both.

A change acts on every input x as ``x W``, wanted or not. In the joint solve its norm stands for what was not
wanted; with the plain norm all directions of x count alike, though the model's own inputs lie in few of them.
Here the norm is ``E |x W|^2`` over the base model's inputs beside the plain one, as in MEMIT (its covariance,
equation 14), but of low rank, so that nothing d x d is kept of it. To it comes ``|k W|^2`` over the inputs k
of all edits before this one, each wanting no further change: that is recursive least squares, and what keeps
a thousandth edit from undoing the first. Past d_k inputs that is a d x d moment and its Cholesky factor in
float64, made anew for each batch (256 MB a module at a width of 4,096); ``remember=0`` does without.

Letters: n rows, N inputs of earlier edits, d_k a module's input width, m directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Earlier", "Usual"]


class Usual(nn.Module):
    """The metric ``I + protect C`` of a module's inputs, C their second moment, scaled to a mean diagonal of
    1 and cut to its m principal directions.

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

    def study(self, inputs: Tensor) -> None:
        """Take the metric from ``inputs`` [n,d_k] of the base model."""
        rows = inputs.double()
        total = rows.square().sum().clamp(min=1e-30)
        # By the smaller of the two second moments: a singular value decomposition is slow on a GPU.
        wide = len(rows) < rows.shape[1]
        square, axes = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
        found = min(len(square), self.axes.shape[1])
        square, axes = square[-found:].clamp(min=0).flip(0), axes[:, -found:].flip(1)
        square = torch.where(square > 1e-12 * total, square, 0)
        if wide:
            axes = rows.T @ axes / square.clamp(min=1e-300).sqrt()
        weight = self.protect * square / (total / self.axes.shape[0])
        self.axes.zero_()
        self.held.zero_()
        self.axes[:, :found].copy_(torch.where(square > 0, axes, 0))
        self.held[:found].copy_(weight / (1 + weight))

    def forward(self, keys: Tensor, earlier: Earlier | None = None) -> Tensor:
        """``keys`` [...,n,d_k] times the inverse of the metric, to which ``earlier`` inputs were added."""
        if earlier is not None and earlier.count:
            return earlier.clear(self, keys)
        axes, held = self.axes.to(keys.dtype), self.held.to(keys.dtype)
        return keys - (keys @ axes * held) @ axes.T

    def roots(self) -> Tensor:
        """float64 [m,d_k], rows r with ``I + r'r`` the metric."""
        held = self.held.double()
        return (self.axes.double() * (held / (1 - held).clamp(min=1e-9)).sqrt()).T


class Earlier:
    """The inputs of a module in the edits made so far, in order, each counted ``weight`` times.

    While they are fewer than the module's inputs are wide, they are kept as they came (N by N systems); then
    as their second moment, which is smaller.

    Args:
        weight: how often an input counts, at least 0.
    """

    def __init__(self, weight: float) -> None:
        self.weight, self.count = weight, 0
        self._rows: list[Tensor] = []
        self._gram: Tensor | None = None
        self._ready: tuple[Tensor, Tensor | None] | None = None

    def add(self, rows: Tensor) -> None:
        """Take in ``rows`` [n,d_k]. What follows depends on the rows and how they came, to the bit."""
        self.count += len(rows)
        self._ready = None
        if self._gram is None:
            self._rows.append(rows)
            if self.count < rows.shape[1]:
                return
            rows, *rest = self._rows
            self._gram = _square(rows)
            for more in rest:
                self._gram += _square(more)
            self._rows = []
        else:
            self._gram += _square(rows)

    def clear(self, usual: Usual, keys: Tensor) -> Tensor:
        """``keys`` [...,n,d_k] times the inverse of ``I + protect C + weight sum k'k``, in float64."""
        lower, wide = self._ready = self._ready or self._factor(usual)
        wanted = keys.double()
        if wide is None:
            found = torch.cholesky_solve(wanted.mT, lower).mT
        else:  # (I + R'R)^-1 = I - R' (I + RR')^-1 R
            found = wanted - torch.cholesky_solve((wanted @ wide.T).mT, lower).mT @ wide
        return found.to(keys.dtype)

    def _factor(self, usual: Usual) -> tuple[Tensor, Tensor | None]:
        roots = usual.roots()
        if self._gram is not None:
            eye = torch.eye(len(self._gram), dtype=roots.dtype, device=roots.device)
            return torch.linalg.cholesky(eye + roots.T @ roots + self.weight * self._gram.to(roots)), None
        rows = torch.cat(self._rows).to(roots) * self.weight**0.5
        wide = torch.cat([roots, rows])
        eye = torch.eye(len(wide), dtype=roots.dtype, device=roots.device)
        return torch.linalg.cholesky(eye + wide @ wide.T), wide


def _square(rows: Tensor) -> Tensor:
    wide = rows.double()
    return wide.T @ wide
