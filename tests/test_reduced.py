"""Products in bfloat16, on one thread, with gradients for what is given."""

from __future__ import annotations

import threading

import torch
from torch import nn

from memplug.model.reduced_precision import reduced_products
from memplug.model.thread_forwards import Shadows


def block():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16, bias=False)).requires_grad_(False)


def test_products_are_those_of_rounded_factors_and_gradients_pass():
    model, given = block(), torch.randn(4, 7, 32, requires_grad=True)
    want = model(given)
    (slope,) = torch.autograd.grad(want.square().sum(), given)
    with reduced_products(Shadows(), [model]):
        close = model(given)
        (near,) = torch.autograd.grad(close.square().sum(), given)
    assert close.dtype == torch.float32
    assert not torch.equal(close, want)
    assert torch.allclose(close, want, atol=3e-2)
    assert torch.allclose(near, slope, atol=0.05 * float(slope.abs().max()))
    assert torch.equal(model(given), want)
    assert "forward" not in vars(model[0])


def test_only_on_this_thread_and_only_float32_linears():
    model, given = block(), torch.randn(3, 32)
    half = nn.Linear(4, 4).bfloat16()
    want, found = model(given), []
    with reduced_products(Shadows(), [model, half]):
        assert "forward" not in vars(half)
        other = threading.Thread(target=lambda: found.append(model(given)))
        other.start()
        other.join()
    assert torch.equal(found[0], want)
