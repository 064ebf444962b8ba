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

from ..model.thread_forwards import Shadows
from .modules import LinearModule

__all__ = ["OriginalWeights"]

_ROWS = 256
"""Rows of the identity that a module is applied to at once."""
_MARKS = 4099
"""Elements by which it is seen that a weight was changed; a prime, so as not to keep to some columns."""


class OriginalWeights:
    """Copies of weights as they were, and the only hand that writes to them.

    A module is copied when it is first written. Live weights are written in one go; in a draft they are not
    written at all, and the forwards of the thread that makes it use other weights in their place.

    What somebody else does to a weight that was written (an adapter is merged into it, it is trained, put
    into another dtype) is taken into the copy before the next write, so that it stays.

    Args:
        sites: the modules, by name.
        changing: no forward of another thread runs inside what it gives.
        shadows: lets single threads use another forward for a module.
    """

    def __init__(
        self,
        sites: Mapping[str, LinearModule],
        changing: Callable[[], AbstractContextManager[None]] = nullcontext,
        shadows: Shadows | None = None,
    ) -> None:
        self._sites, self._changing = sites, changing
        self._shadows = Shadows() if shadows is None else shadows
        self._copies: dict[str, Tensor] = {}
        self._norms: dict[str, float] = {}
        self._draft: dict[str, Tensor] | None = None
        self._written: Mapping[str, Tensor] = {}  # changes in force
        self._drafted: Mapping[str, Tensor] = {}  # changes in the draft
        self._marks: dict[str, Tensor] = {}  # some elements of each weight after the last write

    @torch.no_grad()
    def write(self, changes: Mapping[str, Tensor]) -> None:
        """Make the weights ``cast(W0 + change)``; those without a change get their own bits back.

        Args:
            changes: float32 [d_k,d_v] by module.
        """
        for name in changes.keys() - self._copies.keys():
            live = self._sites[name].weight.detach()
            self._copies[name], self._marks[name] = live.clone(), _mark(live)
        for name in self._copies:
            self._settle(name)
        fresh = {name: self._due(name, changes) for name in self._copies}
        # All is computed; what follows only copies.
        if self._draft is None:
            self._write_live(fresh, changes)
            return
        for name in fresh.keys() - self._draft.keys():
            self._shadow(name)
        self._draft |= fresh
        self._drafted = changes

    def _write_live(self, fresh: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> None:
        with self._changing():
            _wait_for_devices(fresh.values())
            self._marks = {}  # where this is broken off, what is there now is nobody else's
            for name, weight in fresh.items():
                self._sites[name].weight.copy_(weight)
            _wait_for_devices(fresh.values())
            torch.clear_autocast_cache()  # else a caller's autocast goes on with the weights as they were
            self._written = dict(changes)
            self._marks = {name: _mark(self._sites[name].weight) for name in self._copies}

    def _due(self, name: str, changes: Mapping[str, Tensor]) -> Tensor:
        """The weight that a module is to have."""
        base = self._copies[name]
        if name not in changes:
            return base
        added = self._sites[name].stored(changes[name]).to(base.device)
        wide = torch.promote_types(base.dtype, added.dtype)
        return (base.to(wide) + added.to(wide)).to(base.dtype)

    def _settle(self, name: str) -> bool:
        """Take into the copy what somebody else did to the weight since it was written; False for nothing."""
        live, kept = self._sites[name].weight.detach(), self._copies[name]
        moved = live.dtype != kept.dtype or live.device != kept.device
        if moved:
            self._copies[name] = kept.to(live)
        mark, before = _mark(live), self._marks.get(name)
        if before is None or torch.equal(mark, before.to(live)):
            return moved
        wide = torch.promote_types(live.dtype, torch.float32)
        done = live.to(wide) - self._due(name, self._written).to(wide)
        self._copies[name] = (self._copies[name].to(wide) + done).to(live.dtype)
        self._marks[name] = mark  # a draft leaves the weight itself as it is
        self._norms.pop(name, None)
        return True

    @contextmanager
    def drafting(self) -> Iterator[Callable[[], None]]:
        """Inside the ``with`` this thread's forwards alone see what is written.

        Yields:
            What writes the weights as they were written last, for all threads; uncalled, they stay.
        """
        draft = self._draft = {}
        self._drafted = self._written

        @torch.no_grad()
        def publish() -> None:
            self._draft = None
            moved = [name for name in draft if self._settle(name)]
            fresh = draft | {name: self._due(name, self._drafted) for name in moved}
            self._write_live(fresh, self._drafted)

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
        self._written, self._marks = {}, {}

    def norm(self, name: str) -> float:
        """Frobenius norm of the original weight; of one that is quantised or not in memory, the norm of what
        the module computes with, as exactly as it computes, found once."""
        if name in self._norms:
            return self._norms[name]
        site = self._sites[name]
        if not _readable(site):
            self._norms[name] = sum(float(rows.square().sum()) for rows in _computed(site)) ** 0.5
            return self._norms[name]
        return float(self._copies.get(name, site.weight.detach()).float().norm())


def _readable(site: LinearModule) -> bool:
    """Whether the weight itself can be read: not quantised, and in memory."""
    return site.plain and site.weight.device.type != "meta"


def _owner(site: LinearModule) -> tuple[nn.Module, str]:
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


def _mark(weight: Tensor) -> Tensor:
    """Copies of elements spread over a weight; whatever is done to it shows in some of them."""
    flat = weight.detach().flatten()
    return flat[:: max(1, len(flat) // _MARKS)].clone()


@torch.no_grad()
def _computed(site: LinearModule) -> Iterator[Tensor]:
    """Rows of ``f(I) - f(0)`` in float64, f the module, whose own hooks bring the weight where it lies
    elsewhere."""
    held = [*site.module.parameters(), *site.module.buffers()]
    dtypes = (x.dtype for x in held if x.is_floating_point() and x.dtype.itemsize >= 2)
    devices = (x.device for x in held if x.device.type != "meta")
    dtype, device = next(dtypes, torch.float32), next(devices, torch.device("cpu"))
    offset = site.module(torch.zeros(1, site.d_k, dtype=dtype, device=device)).double()
    for start in range(0, site.d_k, _ROWS):
        rows = torch.zeros(min(_ROWS, site.d_k - start), site.d_k, dtype=dtype, device=device)
        rows.diagonal(start).fill_(1)
        yield site.module(rows).double() - offset
