"""The push-through solve against the dense formula; its adjoint against autograd through the dense one."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memplug.weights.solve import SolveError, factor_norm, push_through, solve


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _dense(keys: torch.Tensor, values: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    eye = torch.eye(keys.shape[-1], dtype=keys.dtype)
    return torch.linalg.solve(keys.mT @ keys + ridge[..., None, None] * eye, keys.mT @ values)


@pytest.mark.parametrize("rows", [1, 5, 12, 30])
def test_factors_equal_the_dense_solution(rows: int) -> None:
    keys, values = _draw(rows, 12), _draw(rows, 7, seed=1)
    a, b = solve(keys, values, 0.3)
    assert a.shape[1] == min(rows, 12)
    torch.testing.assert_close(
        a @ b, _dense(keys, values, torch.tensor(0.3, dtype=torch.float64)), rtol=1e-10, atol=1e-10
    )


def test_gradients_equal_those_through_the_dense_solution() -> None:
    keys, cotangent = _draw(3, 5, 12), _draw(3, 12, 7, seed=2)
    fast = [_draw(3, 5, 7, seed=1).requires_grad_(), _draw(3, seed=3).requires_grad_()]
    slow = [x.detach().clone().requires_grad_() for x in fast]
    (keys.mT @ push_through(keys, *fast) * cotangent).sum().backward()
    (_dense(keys, slow[0], slow[1].exp()) * cotangent).sum().backward()
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)


def test_under_a_metric_factors_and_gradients_are_those_of_the_dense_solution() -> None:
    keys, cotangent = _draw(3, 5, 12), _draw(3, 12, 7, seed=2)
    root = _draw(3, 12, 12, seed=4)
    metric = torch.eye(12, dtype=torch.float64) + root @ root.mT
    directions = torch.linalg.solve(metric, keys.mT).mT
    fast = [_draw(3, 5, 7, seed=1).requires_grad_(), _draw(3, seed=3).requires_grad_()]
    slow = [x.detach().clone().requires_grad_() for x in fast]
    ours = directions.mT @ push_through(keys, *fast, directions)
    system = keys.mT @ keys + slow[1].exp()[:, None, None] * metric
    theirs = torch.linalg.solve(system, keys.mT @ slow[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    (ours * cotangent).sum().backward()
    (theirs * cotangent).sum().backward()
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-10)


def test_gradcheck() -> None:
    keys = _draw(2, 3, 6)
    values, ridge = _draw(2, 3, 4, seed=1).requires_grad_(), _draw(2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, r: push_through(keys, v, r), (values, ridge))


def test_nothing_as_large_as_the_module_is_made() -> None:
    d_k, d_v, rows = 4096, 3000, 4
    keys, values = torch.randn(1, rows, d_k), torch.randn(1, rows, d_v, requires_grad=True)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            tensors = out if isinstance(out, tuple | list) else [out]
            sizes.extend(item.numel() for item in tensors if isinstance(item, torch.Tensor))
            return out

    with Watch():
        push_through(keys, values, torch.zeros(1)).square().sum().backward()
    assert values.grad is not None
    assert max(sizes) <= rows * max(d_k, d_v)


def test_identical_keys_are_no_problem() -> None:
    keys = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).expand(8, -1) * 50
    a, b = solve(keys.contiguous(), torch.randn(8, 16), 1.0)
    assert bool(torch.isfinite(a @ b).all())


@pytest.mark.parametrize("ridge", [1.0, 1e-30])
def test_an_unsolvable_system_says_so(ridge: float) -> None:
    keys = torch.ones(3, 8)
    if ridge == 1.0:
        keys[0, 0] = float("nan")
    with pytest.raises(SolveError, match="raise the ridge"):
        solve(keys, torch.ones(3, 4), ridge)


def test_norm_of_a_product_from_its_factors() -> None:
    a, b = _draw(2, 9, 3), _draw(2, 3, 8, seed=1)
    torch.testing.assert_close(factor_norm(a, b), torch.linalg.matrix_norm(a @ b))
    assert bool(torch.isfinite(factor_norm(a * 0, b)).all())
