"""Weights written and drafted: what others do to them stays; a write that is broken off leaves nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memplug.weights.modules import LinearModule
from memplug.weights.originals import OriginalWeights


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(6, 5, bias=False).requires_grad_(False)


@pytest.fixture
def originals(linear):
    return OriginalWeights({"a": LinearModule("a", linear, 0, 6, 5, True)})


CHANGE, OTHER = torch.full((6, 5), 0.25), torch.full((6, 5), -0.5)


def test_a_draft_is_seen_by_its_thread_and_published_to_the_bit(linear, originals):
    base, x = linear.weight.clone(), torch.eye(6)
    originals.write({"a": CHANGE})
    written = linear.weight.clone()
    originals.restore()
    with originals.drafting() as publish:
        originals.write({"a": CHANGE})
        assert torch.equal(linear.weight, base)
        assert torch.equal(linear(x), x @ written.T)
        publish()
    assert torch.equal(linear.weight, written)
    assert "forward" not in vars(linear)
    with originals.drafting():
        originals.write({"a": OTHER})
    assert torch.equal(linear.weight, written)  # was not published
    originals.restore()
    assert torch.equal(linear.weight, base)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("drafted", [True, False])
def test_what_is_added_to_a_weight_meanwhile_stays(linear, originals, drafted, first):
    base, adapter = linear.weight.clone(), torch.rand(5, 6)
    if not first:
        originals.write({"a": OTHER})
    if drafted:
        with originals.drafting() as publish:
            originals.write({"a": CHANGE})
            linear.weight.add_(adapter)
            originals.write({"a": CHANGE})
            publish()
    else:
        originals.write({"a": OTHER})
        linear.weight.add_(adapter)
        originals.write({"a": CHANGE})
    torch.testing.assert_close(linear.weight.data, base + adapter + CHANGE.T)
    originals.restore()
    torch.testing.assert_close(linear.weight.data, base + adapter)


def test_what_is_added_after_the_last_write_of_a_draft_stays(linear, originals):
    base, adapter = linear.weight.clone(), torch.rand(5, 6)
    with originals.drafting() as publish:
        originals.write({"a": CHANGE})
        linear.weight.add_(adapter)
        publish()
    torch.testing.assert_close(linear.weight.data, base + adapter + CHANGE.T)


def test_another_dtype_stays(linear, originals):
    base = linear.weight.clone()
    originals.write({"a": CHANGE})
    linear.double()
    originals.write({"a": OTHER})
    assert linear.weight.dtype == torch.float64
    torch.testing.assert_close(linear.weight.data, (base + OTHER.T).double())
    originals.restore()
    assert torch.equal(linear.weight, base.double())


def test_a_write_that_was_broken_off_is_nobody_elses_change(linear, originals, monkeypatch):
    base = linear.weight.clone()
    originals.write({"a": CHANGE})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "clear_autocast_cache", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            originals.write({"a": OTHER})
    originals.restore()
    assert torch.equal(linear.weight, base)
