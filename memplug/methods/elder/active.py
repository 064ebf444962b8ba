"""The experts in use during one batch, as small matrices of their own.

A step touches only the LoRAs that some row picks. Copies of these are trained and written back in the end,
so that a step costs the same however many experts there are. With Adam this gives exactly what training all
of them would: an expert that was never picked has no gradient, and Adam does not move it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .experts import Experts, mix

__all__ = ["Active", "Adam"]


class Adam:
    """Adam (Kingma & Ba, 2015) with its usual constants, for tensors that may grow.

    Args:
        tensors: what is trained, leaves.
        lrs: a step size for each.
    """

    def __init__(self, tensors: Sequence[Tensor], lrs: Sequence[float]) -> None:
        self.tensors, self.lrs, self.step_count = list(tensors), list(lrs), 0
        self.first = [torch.zeros_like(tensor) for tensor in tensors]
        self.second = [torch.zeros_like(tensor) for tensor in tensors]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One step; a tensor without a gradient stays."""
        self.step_count += 1
        one, two = 1 - 0.9**self.step_count, 1 - 0.999**self.step_count
        for tensor, lr, m, v, g in zip(
            self.tensors, self.lrs, self.first, self.second, gradients, strict=True
        ):
            if g is not None:
                m.lerp_(g, 0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                tensor.addcdiv_(m, (v / two).sqrt_().add_(1e-8), value=-lr / one)

    @torch.no_grad()
    def grow(self, index: int, tensor: Tensor, dim: int) -> None:
        """Train ``tensor`` in place of tensor ``index``, of which it is a continuation along ``dim``."""
        for moments in (self.first, self.second):
            old = moments[index]
            extra = tensor.shape[dim] - old.shape[dim]
            moments[index] = torch.cat(
                [old, old.new_zeros(*old.shape[:dim], extra, *old.shape[dim + 1 :])], dim
            )
        self.tensors[index] = tensor


class Active:
    """Copies of the experts that a batch uses, linear by linear.

    Attributes:
        ids: for each linear the experts held, LongTensor [n].
        down, up: their A [n,r,p], transposed, and B [n,r,o], leaves that take gradients.
    """

    def __init__(self, experts: Experts) -> None:
        self._experts = experts
        none = torch.zeros(0, dtype=torch.long)
        self.ids = [none.to(down.device) for down in experts.down]
        self._place = [torch.full((experts.n,), -1, device=down.device) for down in experts.down]
        self.down = [self._down(i, ids) for i, ids in enumerate(self.ids)]
        self.up = [self._up(i, ids) for i, ids in enumerate(self.ids)]

    @property
    def tensors(self) -> list[Tensor]:
        """All A, then all B."""
        return [*self.down, *self.up]

    def _down(self, index: int, ids: Tensor) -> Tensor:
        return self._experts.down[index][ids].clone().requires_grad_(True)

    def _up(self, index: int, ids: Tensor) -> Tensor:
        return self._experts.up[index][ids].clone().requires_grad_(True)

    def take_in(self, picks: Tensor, adam: Adam) -> None:
        """Hold the experts in ``picks`` LongTensor [l,...] too, from now on."""
        for i, held in enumerate(self.ids):
            wanted = picks[i].flatten().unique().to(held.device)
            fresh = wanted[self._place[i][wanted] < 0]
            if len(fresh):
                self.ids[i] = torch.cat([held, fresh])
                self._place[i][fresh] = torch.arange(len(held), len(self.ids[i]), device=held.device)
                for tensors, more, place in (
                    (self.down, self._down(i, fresh), i),
                    (self.up, self._up(i, fresh), len(self.ids) + i),
                ):
                    joined = torch.cat([tensors[i].detach(), more.detach()]).requires_grad_(True)
                    tensors[i] = joined
                    adam.grow(place, joined, 0)

    def mix(self, index: int, x: Tensor, picks: Tensor, weights: Tensor) -> Tensor:
        """What ``picks`` [B,k], all of them held, make of x [B,T,p] at linear ``index``: [B,T,o] float32."""
        device = self.ids[index].device
        local, count = self._place[index][picks.to(device)], len(self.ids[index])
        every = torch.zeros(len(picks), count, device=device, dtype=torch.float32).scatter(
            -1, local, weights.to(device)
        )
        return mix(x, self.down[index], self.up[index], every)

    @torch.no_grad()
    def write_back(self) -> None:
        """Put what was trained into the experts."""
        for i, ids in enumerate(self.ids):
            self._experts.down[i][ids] = self.down[i].detach()
            self._experts.up[i][ids] = self.up[i].detach()
