"""Networks that turn features into changes: normaliser, low-rank residual blocks, step sizes.

A network serves all modules of one shape; scale, shift, step size and ridge are a module's own. Untrained
it is the identity on normalised features (MALMEN, section 3; UltraEdit uses it so).

Letters: M modules of a shape, n rows, w = d_k + d_v features, r rank.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...weights.solve import push_through

__all__ = ["Change", "EditNet", "Normaliser"]


class Normaliser(nn.Module):
    """Running mean and standard deviation of each feature, merged exactly (Chan et al., 1979).

    Statistics are taken in float64 and change in `update` alone, never in `forward`.

    Args:
        d_k, d_v: widths of the two halves, keys and gradients.
        floor: smallest standard deviation, as a share of its half's.
        limit: largest root mean square of a normalised row's half; 0 for none. A late step's statistics are
            of edits that are nearly learned: gradients of one that is not would be hundreds of deviations.

    Attributes:
        count: rows seen.
        mean: [w].
        spread: [w], the sum of squared deviations.
    """

    count: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, d_k: int, d_v: int, floor: float, limit: float = 0.0) -> None:
        super().__init__()
        self.d_k, self.floor, self.limit = d_k, floor, limit
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(d_k + d_v, dtype=torch.float64))
        self.register_buffer("spread", torch.zeros(d_k + d_v, dtype=torch.float64))

    def update(self, rows: Tensor) -> None:
        """Take in ``rows`` [n,w]; any number of them, also one."""
        rows = rows.double()
        count, total = rows.shape[0], self.count + rows.shape[0]
        mean = rows.mean(0)
        gap = mean - self.mean
        self.spread += (rows - mean).square().sum(0) + gap.square() * self.count * count / total
        self.mean += gap * count / total
        self.count.copy_(total)

    @property
    def std(self) -> Tensor:
        """[w], at least ``floor`` of what is typical of keys or gradients; 1 before two rows were seen."""
        if self.count < 2:
            return torch.ones_like(self.mean)
        std = (self.spread / (self.count - 1)).sqrt()
        halves = (std[: self.d_k], std[self.d_k :])
        floors = [half.square().mean().sqrt().clamp(min=1e-12) * self.floor for half in halves]
        return torch.cat(
            [half.clamp(min=float(f)).clamp(min=1e-12) for half, f in zip(halves, floors, strict=True)]
        )

    def forward(self, rows: Tensor) -> Tensor:
        """``rows`` [...,w], centred and scaled; each row by itself."""
        found = (rows.double() - self.mean) / self.std
        if self.limit:
            halves = (found[..., : self.d_k], found[..., self.d_k :])
            sizes = (half.square().mean(-1, keepdim=True).sqrt() for half in halves)
            shares = (self.limit / size.clamp(min=self.limit) for size in sizes)
            found = torch.cat([half * share for half, share in zip(halves, shares, strict=True)], dim=-1)
        return found.to(rows.dtype)


class Change(NamedTuple):
    """Changes of the M modules of a shape.

    Attributes:
        keys: [M,n,d_k]; the left factors are their transposes, or those of `directions`.
        values: [M,n,d_v]; wanted output changes (joint), or the right factors (outer).
        log_ridge: [M] for a joint solve, None for outer products.
        directions: [M,n,d_k], the keys times the inverse of the solve's metric; None for the plain norm.
    """

    keys: Tensor
    values: Tensor
    log_ridge: Tensor | None
    directions: Tensor | None = None

    def factors(self) -> tuple[Tensor, Tensor]:
        """``(a [M,d_k,n], b [M,n,d_v])`` with the modules' changes ``a @ b``."""
        if self.log_ridge is None:
            return self.keys.mT, self.values
        left = self.keys if self.directions is None else self.directions
        return left.mT, push_through(self.keys, self.values, self.log_ridge, left)


class EditNet(nn.Module):
    """Residual blocks ``h + scale * max(0, h A B + bias) + shift`` over normalised features.

    Parameters: ``n_blocks (2 w r + w + 2 M w) + 2 M``.

    Args:
        d_k, d_v: the modules' widths.
        n_modules: M.
        rank: r.
        n_blocks: blocks; 0 leaves normalisation alone (no network).
        inner_lr: initial step size.
        ridge: initial ridge.
        floor, limit: see `Normaliser`.
        seed: of the initial weights.
    """

    def __init__(
        self,
        d_k: int,
        d_v: int,
        n_modules: int,
        *,
        rank: int,
        n_blocks: int,
        inner_lr: float,
        ridge: float,
        floor: float,
        limit: float,
        seed: int,
    ) -> None:
        super().__init__()
        width = d_k + d_v
        self.d_k = d_k
        self.normalise = Normaliser(d_k, d_v, floor, limit)
        draw = torch.Generator().manual_seed(seed)
        down = torch.randn(n_blocks, width, rank, generator=draw, dtype=torch.float32)
        self.down = nn.Parameter(down * width**-0.5)
        self.up = nn.Parameter(torch.zeros(n_blocks, rank, width, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(n_blocks, width, dtype=torch.float32))
        self.scale = nn.Parameter(torch.ones(n_blocks, n_modules, width, dtype=torch.float32))
        self.shift = nn.Parameter(torch.zeros(n_blocks, n_modules, width, dtype=torch.float32))
        self.step = nn.Parameter(torch.full((n_modules,), math.log(inner_lr), dtype=torch.float32))
        self.log_ridge = nn.Parameter(torch.full((n_modules,), math.log(ridge), dtype=torch.float32))

    def set_step(self, inner_lr: float) -> None:
        """Start from another step size."""
        with torch.no_grad():
            self.step.fill_(math.log(inner_lr))

    def forward(self, keys: Tensor, gradients: Tensor, style: str) -> Change:
        """The changes that features ask for; differentiable in the parameters.

        Args:
            keys: [M,n,d_k].
            gradients: [M,n,d_v].
            style: "joint" or "outer".
        """
        h = self.normalise(torch.cat([keys, gradients], dim=-1))
        for down, up, bias, scale, shift in zip(
            self.down, self.up, self.bias, self.scale, self.shift, strict=True
        ):
            # At the start the pre-activation is 0 everywhere; clamp has a gradient there, relu has none.
            h = h + scale[:, None] * (h @ down @ up + bias).clamp(min=0) + shift[:, None]
        pseudo_key, pseudo_gradient = h[..., : self.d_k], h[..., self.d_k :]
        step = self.step.exp()[:, None, None]
        if style == "outer":
            return Change(pseudo_key, -step * pseudo_gradient, None)
        agreement = (keys * pseudo_key).sum(-1, keepdim=True)
        return Change(keys, -step * agreement * pseudo_gradient, self.log_ridge)
