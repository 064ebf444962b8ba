"""The joint solve behind a weight edit: which low-rank change gives every key its wanted output change.

min over W of ``sum_i |k_i W - v_i|^2 + ridge |W|^2`` (MALMEN, equation 4) has the solution
``W = (K'K + ridge I)^-1 K'V``, which equals ``K' (KK' + ridge I)^-1 V`` (push-through identity). The second
form needs nothing larger than keys by keys, forward and backward, and comes as two factors: ``K'`` and
``B = (KK' + ridge I)^-1 V``.

Where the norm is that of a metric M, ``tr W'MW`` (MEMIT, equation 14: M is what the module's keys of other
facts look like), the solution ``(K'K + ridge M)^-1 K'V`` is ``D' (KD' + ridge I)^-1 V`` with the directions
``D = K M^-1``. With ridge 0 it is the smallest change that meets every value exactly (ROME, equation 2).

Letters: n rows (tokens of the edits), d_k and d_v the module's input and output widths, M modules at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["SolveError", "directed", "factor_norm", "push_through", "solve"]


class SolveError(ValueError):
    """The keys or values of a solve are not finite, or its system is singular."""


def solve(keys: Tensor, values: Tensor, ridge: Tensor | float) -> tuple[Tensor, Tensor]:
    """Low-rank factors ``(a [d_k,r], b [r,d_v])`` of one module's change, r = min(n, d_k).

    Args:
        keys: [n,d_k] inputs of the module.
        values: [n,d_v] wanted changes of its output.
        ridge: the weight of the squared norm, above 0.

    Raises:
        SolveError: something is not finite, or the system has no Cholesky factor even in float64.
    """
    if keys.shape[0] <= keys.shape[1]:
        return keys.T, push_through(keys[None], values[None], _as_tensor(ridge, keys)[None].log())[0]
    # More rows than inputs: the other side of the identity is the smaller system.
    ridge = _as_tensor(ridge, keys)
    eye = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    return eye, torch.cholesky_solve(keys.T @ values, _cholesky(keys.T @ keys + ridge * eye))


def directed(keys: Tensor, values: Tensor, ridge: float, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Low-rank factors ``(a [d_k,r], b [r,d_v])`` of the change under a metric, r = min(n, d_k).

    The system is solved in float64: keys of other facts differ in size by many orders.

    Args:
        keys: [n,d_k] inputs of the module.
        values: [n,d_v] wanted changes of its output.
        ridge: weight of the norm; 0 meets the values exactly.
        directions: [n,d_k], the keys times the inverse of the metric.

    Raises:
        SolveError: something is not finite, or the system is singular (ridge 0 and keys that depend on each
            other).
    """
    d = directions.double()
    system = keys.double() @ d.T
    eye = torch.eye(len(d), dtype=d.dtype, device=d.device)
    # Symmetric in exact arithmetic, with directions that were rounded nearly so.
    lower = _cholesky((system + system.T) / 2 + ridge * eye)
    b = torch.cholesky_solve(values.double(), lower)
    if len(d) <= d.shape[1]:
        return directions.T, b.to(values.dtype)
    return torch.eye(d.shape[1], dtype=keys.dtype, device=keys.device), (d.T @ b).to(values.dtype)


def push_through(keys: Tensor, values: Tensor, log_ridge: Tensor, directions: Tensor | None = None) -> Tensor:
    """``B = (KK' + exp(log_ridge) I)^-1 V`` for M modules at once; differentiable in V and log_ridge.

    Args:
        keys: [M,n,d_k], constants.
        values: [M,n,d_v].
        log_ridge: [M].
        directions: [M,n,d_k], constants, the keys times the inverse of a metric; then ``K D'`` stands in for
            ``KK'``, and the changes are ``D' B``. None for the plain norm, where they are the keys.

    Raises:
        SolveError: see `solve`.
    """
    return _PushThrough.apply(keys, values, log_ridge, keys if directions is None else directions)


def factor_norm(a: Tensor, b: Tensor) -> Tensor:
    """Frobenius norms [...] of ``a @ b``, from the r by r products alone; differentiable.

    Args:
        a: [...,d_k,r].
        b: [...,r,d_v].
    """
    square = (a.mT @ a * (b @ b.mT)).sum((-2, -1))
    # The root has no slope at zero, where an untrained gate may well be.
    return square.clamp(min=1e-24).sqrt()


class _PushThrough(torch.autograd.Function):
    """With C the cotangent of the change D'B, autograd hands in R = DC; then dV = S^-1 R and
    d log ridge = -ridge <dV, B>. The keys are constants, so no other term exists."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, log_ridge: Tensor, directions: Tensor) -> Tensor:
        ridge = log_ridge.exp()
        eye = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
        lower = _cholesky(keys @ directions.mT + ridge[:, None, None] * eye)
        b = torch.cholesky_solve(values, lower)
        ctx.save_for_backward(lower, b, ridge)
        return b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None]:
        lower, b, ridge = ctx.saved_tensors
        slope = torch.cholesky_solve(grads[0], lower)
        return None, slope, -ridge * (slope * b).sum((-2, -1)), None


def _cholesky(system: Tensor) -> Tensor:
    lower, info = torch.linalg.cholesky_ex(system)
    if bool((info > 0).any()) and system.dtype != torch.float64:
        exact, info = torch.linalg.cholesky_ex(system.double())
        lower = exact.to(system.dtype)
    if bool((info != 0).any()) or not bool(torch.isfinite(lower).all()):
        raise SolveError(
            "the joint solve failed: keys that are not finite, or a ridge too small for keys this large; "
            "look for NaN in the model's activations, or raise the ridge"
        )
    return lower


def _as_tensor(ridge: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(ridge, dtype=like.dtype, device=like.device)
