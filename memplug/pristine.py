"""Original weights, kept so that they can be put back to the bit. Knows nothing about edits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .sites import Site

__all__ = ["Pristine"]

_ROWS = 256
"""Rows of the identity that a module is applied to at once."""


class Pristine:
    """Copies of weights as they were, and the only hand that writes to them.

    A module is copied when it is first written.
    """

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._sites = sites
        self._copies: dict[str, Tensor] = {}
        self._norms: dict[str, float] = {}

    @torch.no_grad()
    def write(self, changes: Mapping[str, Tensor]) -> None:
        """Make the live weights ``cast(W0 + change)``; those without a change get their own bits back.

        Args:
            changes: float32 [d_k,d_v] by module.
        """
        fresh = {}
        for name, change in changes.items():
            site = self._sites[name]
            base = self._copies.get(name, site.weight.detach())
            added = site.stored(change).to(base.device)
            wide = torch.promote_types(base.dtype, added.dtype)
            fresh[name] = (base.to(wide) + added.to(wide)).to(base.dtype)
        # All is computed; what follows only copies.
        for name, weight in fresh.items():
            live = self._sites[name].weight
            if name not in self._copies:
                self._copies[name] = live.detach().clone()
            live.copy_(weight)
        for name in self._copies.keys() - changes.keys():
            self._sites[name].weight.copy_(self._copies[name])
        torch.clear_autocast_cache()  # else a caller's autocast goes on with the weights as they were

    def restore(self) -> None:
        """The original bits everywhere."""
        self.write({})

    def drop(self) -> None:
        """Forget the copies: the weights as they are now are the model's own."""
        self._copies.clear()
        self._norms.clear()

    def norm(self, name: str) -> float:
        """Frobenius norm of the original weight; of one that is quantised or not in memory, the norm of what
        the module computes with, as exactly as it computes, found once."""
        if name in self._norms:
            return self._norms[name]
        site = self._sites[name]
        if not site.plain or site.weight.device.type == "meta":
            self._norms[name] = _computed_norm(site)
            return self._norms[name]
        return float(self._copies.get(name, site.weight.detach()).float().norm())


@torch.no_grad()
def _computed_norm(site: Site) -> float:
    """Norm of ``f(I) - f(0)``, f the module, whose own hooks bring the weight where it lies elsewhere."""
    held = [*site.module.parameters(), *site.module.buffers()]
    dtypes = (x.dtype for x in held if x.is_floating_point() and x.dtype.itemsize >= 2)
    devices = (x.device for x in held if x.device.type != "meta")
    dtype, device = next(dtypes, torch.float32), next(devices, torch.device("cpu"))
    offset = site.module(torch.zeros(1, site.d_k, dtype=dtype, device=device)).double()
    square = 0.0
    for start in range(0, site.d_k, _ROWS):
        rows = torch.zeros(min(_ROWS, site.d_k - start), site.d_k, dtype=dtype, device=device)
        rows.diagonal(start).fill_(1)
        square += float((site.module(rows).double() - offset).square().sum())
    return square**0.5
