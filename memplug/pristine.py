"""Original weights, kept so that they can be put back to the bit; and weights that one thread tries out.

Knows nothing about edits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .shadows import Shadows
from .sites import Site

__all__ = ["Pristine"]

_ROWS = 256
"""Rows of the identity that a module is applied to at once."""


class Pristine:
    """Copies of weights as they were, and the only hand that writes to them.

    A module is copied when it is first written. Live weights are written in one go; in a draft they are not
    written at all, and the forwards of the thread that makes it use other weights in their place.

    Args:
        sites: the modules, by name.
        changing: no forward of another thread runs inside what it gives.
        shadows: lets single threads use another forward for a module.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        changing: Callable[[], AbstractContextManager[None]] = nullcontext,
        shadows: Shadows | None = None,
    ) -> None:
        self._sites, self._changing = sites, changing
        self._shadows = Shadows() if shadows is None else shadows
        self._copies: dict[str, Tensor] = {}
        self._norms: dict[str, float] = {}
        self._draft: dict[str, Tensor] | None = None

    @torch.no_grad()
    def write(self, changes: Mapping[str, Tensor]) -> None:
        """Make the weights ``cast(W0 + change)``; those without a change get their own bits back.

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
        fresh |= {name: self._copies[name] for name in self._copies.keys() - changes.keys()}
        # All is computed; what follows only copies.
        if self._draft is None:
            self._write_live(fresh)
        else:
            for name in fresh.keys() - self._draft.keys():
                self._shadow(name)
            untouched = self._draft.keys() - fresh.keys()
            self._draft |= fresh | {name: self._sites[name].weight.detach() for name in untouched}

    def _write_live(self, fresh: Mapping[str, Tensor]) -> None:
        for name in fresh.keys() - self._copies.keys():
            self._copies[name] = self._sites[name].weight.detach().clone()
        with self._changing():
            _wait_for_devices(fresh.values())
            for name, weight in fresh.items():
                self._sites[name].weight.copy_(weight)
            _wait_for_devices(fresh.values())

    @contextmanager
    def drafting(self) -> Iterator[Callable[[], None]]:
        """Inside the ``with`` this thread's forwards alone see what is written.

        Yields:
            What writes the weights as they were written last, for all threads; uncalled, they stay.
        """
        draft = self._draft = {}

        @torch.no_grad()
        def publish() -> None:
            self._draft = None
            self._write_live(draft)

        try:
            yield publish
        finally:
            self._draft = None
            for name in draft:
                self._shadows.take(_owner(self._sites[name])[0])

    def _shadow(self, name: str) -> None:
        """This thread's calls of a module use the weight that the draft has for it."""
        module, attribute = _owner(self._sites[name])
        draft = self._draft

        def forward(*args: Any, **kwargs: Any) -> Any:
            other = copy.copy(module)
            vars(other).pop("forward", None)
            weight = nn.Parameter(draft[name], requires_grad=False)  # type: ignore[index]
            vars(other)["_parameters"] = {**vars(module)["_parameters"], attribute: weight}
            return type(module).forward(other, *args, **kwargs)

        self._shadows.put(module, forward)

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


def _owner(site: Site) -> tuple[nn.Module, str]:
    """The module that holds a site's weight, itself or one in it, and the name that it has there."""
    weight = site.weight
    for module in site.module.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter is weight:
                return module, name
    raise LookupError(f"no parameter of {site.name} is its weight")


def _wait_for_devices(weights: Iterable[Tensor]) -> None:
    """A GPU goes on computing when a forward has ended, on a stream of its own perhaps."""
    for device in {weight.device for weight in weights if weight.device.type == "cuda"}:
        torch.cuda.synchronize(device)


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
