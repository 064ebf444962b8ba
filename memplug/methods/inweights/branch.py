"""Changes that are added beside a weight, ``y = x W + (x a) b``, without touching it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...model.hooks import Hook
from ...weights.modules import LinearModule

__all__ = ["Factors", "branch_hooks", "side_branch"]

Factors = tuple[Tensor, Tensor]
"""``a`` [d_k,r] and ``b`` [r,d_v] of one module; or [B,d_k,r] and [B,r,d_v], each row of a batch its own."""


def side_branch(site: LinearModule, current: Callable[[], Factors | None]) -> Hook:
    """Adds what ``current()`` gives at each forward; None leaves the output object alone."""

    def after(_m: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        factors = current()
        if factors is None:
            return None
        a, b = (factor.to(output.device) for factor in factors)
        with torch.autocast(output.device.type, enabled=False):  # changes are small, and exact
            x = args[0].to(a.dtype)
            if a.ndim == 3:  # factors of each row's own; some models hand in [B*T,d_k]
                x = x.reshape(a.shape[0], -1, a.shape[1])
            return output + ((x @ a) @ b).to(output.dtype).reshape(output.shape)

    return Hook(site.module, "after", after)


def branch_hooks(sites: Mapping[str, LinearModule], factors: Mapping[str, Factors]) -> list[Hook]:
    """Hooks that add these changes, by module name."""
    return [side_branch(sites[name], lambda pair=pair: pair) for name, pair in factors.items()]  # type: ignore[misc]
