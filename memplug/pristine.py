"""Original weights, kept so that they can be put back to the bit. Knows nothing about edits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .sites import Site

__all__ = ["Pristine"]


class Pristine:
    """Copies of weights as they were, and the only hand that writes to them.

    A module is copied when it is first written.
    """

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._sites = sites
        self._copies: dict[str, Tensor] = {}

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

    def restore(self) -> None:
        """The original bits everywhere."""
        self.write({})

    def drop(self) -> None:
        """Forget the copies: the weights as they are now are the model's own."""
        self._copies.clear()

    def norm(self, name: str) -> float:
        """Frobenius norm of the original weight."""
        return float(self._copies.get(name, self._sites[name].weight.detach()).float().norm())
