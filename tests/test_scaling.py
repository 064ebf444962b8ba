"""Gradients through half precision, between underflow and overflow."""

from __future__ import annotations

import pytest
import torch

from memplug.methods.scaling import GradientScale


@pytest.mark.parametrize("slope", [1e-7, 3e-5, 1.0, 60.0, 5e4])
def test_gradients_are_right_where_the_scaled_ones_would_overflow_or_vanish(slope: float) -> None:
    scale = GradientScale(torch.float16)
    x = torch.ones(3, dtype=torch.float32, requires_grad=True)
    for _ in range(2):  # what was found out the first time holds the second
        loss = (x.half() * 1.0).float().mul(slope).sum()
        (found,) = scale.gradients(loss, [x])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.full((3,), slope), rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_no_scale_can_mend_is_handed_on(dtype: torch.dtype) -> None:
    x = torch.ones(3, requires_grad=True)
    (found,) = GradientScale(dtype).gradients((x * torch.nan).sum(), [x])
    assert found.isnan().all()


def test_float32_is_left_alone() -> None:
    scale = GradientScale(torch.float32)
    assert scale.accept([torch.tensor([float("inf")]), None])
    assert scale.used == 1.0


def test_a_step_that_overflows_does_not_count() -> None:
    scale = GradientScale(torch.float16)
    before = scale.scale
    assert not scale.accept([torch.tensor([float("inf")]), None])
    assert scale.scale < before == scale.used
    assert scale.accept([torch.ones(1)])
