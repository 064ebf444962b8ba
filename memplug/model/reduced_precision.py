"""Products in bfloat16 while values are learned, on CPUs that have them in hardware.

A step of learning is bound by the products with frozen float32 weights. Each weight is rounded to bfloat16
once and only the products are computed in it; norms, attention and what is learned stay in float32. Autocast
rounds frozen weights again in every forward, which costs what its products save. While values are learned
the rounded weights take half of the room of those that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .thread_forwards import Shadows

__all__ = ["has_reduced_products", "reduced_products"]


def has_reduced_products() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    known = (getattr(torch.cpu, name, None) for name in names)
    return any(supported() for supported in known if supported is not None)


@contextmanager
def reduced_products(shadows: Shadows, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the ``with`` this thread's calls of the float32 linear layers in ``modules`` that lie on the CPU
    compute their products in bfloat16. Gradients reach their inputs, and no weight."""
    linears = [one for module in modules for one in module.modules() if type(one) is nn.Linear]
    with ExitStack() as stack:
        for linear in dict.fromkeys(linears):
            if linear.weight.dtype == torch.float32 and linear.weight.device.type == "cpu":
                stack.enter_context(shadows.shadowing(linear, _reduced(linear)))
        yield


def _reduced(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = linear.weight.detach().bfloat16()

    def forward(given: Tensor) -> Tensor:
        product: Tensor = _Product.apply(given, weight)
        return product if linear.bias is None else product + linear.bias

    return forward


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return F.linear(given.bfloat16(), weight).to(given.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (gradient.bfloat16() @ ctx.weight).to(gradient.dtype), None
