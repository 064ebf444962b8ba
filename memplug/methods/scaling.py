"""Gradients through models in half precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["GradientScale"]

_LOWEST = 2.0**-14


class GradientScale:
    """Keeps half-precision gradients between underflow and overflow; float32 and bfloat16 need no scale."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._half = dtype == torch.float16
        self.scale = self.used = 1024.0 if self._half else 1.0

    def accept(self, gradients: Sequence[Tensor | None]) -> bool:
        """Whether the step counts; an overflow lowers the scale instead, as far as that can help."""
        self.used = self.scale
        if (
            not self._half
            or self.scale < _LOWEST
            or all(bool(g.isfinite().all()) for g in gradients if g is not None)
        ):
            return True
        self.scale /= 2
        return False

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Those of ``loss``, in float32 at least, the backward run again as long as it overflows.

        Args:
            loss: a number.
            inputs: what it is a function of.
        """
        while True:
            found = torch.autograd.grad(loss * self.scale, inputs, retain_graph=self._half)
            if self.accept(found):
                return [g.to(torch.promote_types(g.dtype, torch.float32)) / self.used for g in found]
