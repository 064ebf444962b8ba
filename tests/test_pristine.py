"""Weights written and drafted: what others do to them stays; a write that is broken off leaves nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memplug.pristine import Pristine
from memplug.sites import Site


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(6, 5, bias=False).requires_grad_(False)


@pytest.fixture
def pristine(linear):
    return Pristine({"a": Site("a", linear, 0, 6, 5, True)})


CHANGE, OTHER = torch.full((6, 5), 0.25), torch.full((6, 5), -0.5)


def test_a_draft_is_seen_by_its_thread_and_published_to_the_bit(linear, pristine):
    base, x = linear.weight.clone(), torch.eye(6)
    pristine.write({"a": CHANGE})
    written = linear.weight.clone()
    pristine.restore()
    with pristine.drafting() as publish:
        pristine.write({"a": CHANGE})
        assert torch.equal(linear.weight, base)
        assert torch.equal(linear(x), x @ written.T)
        publish()
    assert torch.equal(linear.weight, written)
    assert "forward" not in vars(linear)
    with pristine.drafting():
        pristine.write({"a": OTHER})
    assert torch.equal(linear.weight, written)  # was not published
    pristine.restore()
    assert torch.equal(linear.weight, base)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("drafted", [True, False])
def test_what_is_added_to_a_weight_meanwhile_stays(linear, pristine, drafted, first):
    base, adapter = linear.weight.clone(), torch.rand(5, 6)
    if not first:
        pristine.write({"a": OTHER})
    if drafted:
        with pristine.drafting() as publish:
            pristine.write({"a": CHANGE})
            linear.weight.add_(adapter)
            pristine.write({"a": CHANGE})
            publish()
    else:
        pristine.write({"a": OTHER})
        linear.weight.add_(adapter)
        pristine.write({"a": CHANGE})
    torch.testing.assert_close(linear.weight.data, base + adapter + CHANGE.T)
    pristine.restore()
    torch.testing.assert_close(linear.weight.data, base + adapter)


def test_what_is_added_after_the_last_write_of_a_draft_stays(linear, pristine):
    base, adapter = linear.weight.clone(), torch.rand(5, 6)
    with pristine.drafting() as publish:
        pristine.write({"a": CHANGE})
        linear.weight.add_(adapter)
        publish()
    torch.testing.assert_close(linear.weight.data, base + adapter + CHANGE.T)


def test_another_dtype_stays(linear, pristine):
    base = linear.weight.clone()
    pristine.write({"a": CHANGE})
    linear.double()
    pristine.write({"a": OTHER})
    assert linear.weight.dtype == torch.float64
    torch.testing.assert_close(linear.weight.data, (base + OTHER.T).double())
    pristine.restore()
    assert torch.equal(linear.weight, base.double())


def test_a_write_that_was_broken_off_is_nobody_elses_change(linear, pristine, monkeypatch):
    base = linear.weight.clone()
    pristine.write({"a": CHANGE})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "clear_autocast_cache", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pristine.write({"a": OTHER})
    pristine.restore()
    assert torch.equal(linear.weight, base)
