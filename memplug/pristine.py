"""Original weights, kept so that they can be put back to the bit. Knows nothing about edits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .sites import Site

__all__ = ["Pristine"]

_ROWS = 256
"""Rows of the identity that a module is applied to at once."""
_MARKS = 4099
"""Elements by which it is seen that a weight was changed; a prime, so as not to keep to some columns."""


class Pristine:
    """Copies of weights as they were, and the only hand that writes to them.

    A module is copied when it is first written. What somebody else does to a weight that was written (an
    adapter is merged into it, it is trained, put into another dtype) is taken into the copy before the next
    write, so that it stays.
    """

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._sites = sites
        self._copies: dict[str, Tensor] = {}
        self._norms: dict[str, float] = {}
        self._written: Mapping[str, Tensor] = {}  # changes in force
        self._marks: dict[str, Tensor] = {}  # some elements of each weight after the last write

    @torch.no_grad()
    def write(self, changes: Mapping[str, Tensor]) -> None:
        """Make the live weights ``cast(W0 + change)``; those without a change get their own bits back.

        Args:
            changes: float32 [d_k,d_v] by module.
        """
        for name in self._copies:
            self._settle(name)
        fresh = {}
        for name, change in changes.items():
            base = self._copies.get(name, self._sites[name].weight.detach())
            fresh[name] = self._changed(name, base, change)
        # All is computed; what follows only copies.
        for name, weight in fresh.items():
            live = self._sites[name].weight
            if name not in self._copies:
                self._copies[name] = live.detach().clone()
            live.copy_(weight)
        for name in self._copies.keys() - changes.keys():
            self._sites[name].weight.copy_(self._copies[name])
        self._written = dict(changes)
        self._marks = {name: _mark(self._sites[name].weight) for name in self._copies}
        torch.clear_autocast_cache()  # else a caller's autocast goes on with the weights as they were

    def _changed(self, name: str, base: Tensor, change: Tensor) -> Tensor:
        added = self._sites[name].stored(change).to(base.device)
        wide = torch.promote_types(base.dtype, added.dtype)
        return (base.to(wide) + added.to(wide)).to(base.dtype)

    def _settle(self, name: str) -> None:
        """Take into the copy what somebody else did to the weight since it was written."""
        live, copy = self._sites[name].weight.detach(), self._copies[name]
        if live.dtype != copy.dtype or live.device != copy.device:
            copy = self._copies[name] = copy.to(live)
        if torch.equal(_mark(live), self._marks[name].to(live)):
            return
        change = self._written.get(name)
        expected = copy if change is None else self._changed(name, copy, change)
        wide = torch.promote_types(live.dtype, torch.float32)
        self._copies[name] = (copy.to(wide) + (live.to(wide) - expected.to(wide))).to(live.dtype)
        self._norms.pop(name, None)

    def restore(self) -> None:
        """The original bits everywhere."""
        self.write({})

    def drop(self) -> None:
        """Forget the copies: the weights as they are now are the model's own."""
        self._copies.clear()
        self._norms.clear()
        self._written, self._marks = {}, {}

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


def _mark(weight: Tensor) -> Tensor:
    """Copies of elements spread over a weight; whatever is done to it shows in some of them."""
    flat = weight.detach().flatten()
    return flat[:: max(1, len(flat) // _MARKS)].clone()


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
