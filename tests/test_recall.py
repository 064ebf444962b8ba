"""Prefix recall against literal concatenation: values and gradients, cached and uncached, every family."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, build

from memplug.hooks import Hook, HookSet, capture_input, skipping_below
from memplug.layers import dissect
from memplug.recall import Prefix, Recall

Z, B, T, LENGTH = 2, 3, 9, 2


def setup(family, implementation="sdpa"):
    try:
        model = build(family, implementation)
    except ValueError as error:  # some families have no eager or no sdpa attention
        pytest.skip(str(error))
    anatomy = dissect(model)
    torch.manual_seed(1)
    ids = torch.randint(3, 97, (B, T))
    values = torch.randn(B, LENGTH, anatomy.width)
    return model, anatomy, Recall(model, anatomy, Z), ids, values


def hooked(recall):
    return HookSet(recall.hooks(lambda: None, lambda: None))


def literal(model, anatomy, ids, values, **position):
    """Concatenate the values to the input of layer Z; the layers below see the tokens only."""
    hidden = capture_input(anatomy, Z, lambda: model(input_ids=ids))

    def replace(_m, args, kwargs):
        bound = anatomy.bind(args, kwargs)
        name = next(iter(bound))
        del bound[name]
        return (torch.cat([values, hidden], dim=1),), bound

    dummy = torch.zeros(len(ids), LENGTH, dtype=torch.long)
    with skipping_below(anatomy, Z), HookSet([Hook(anatomy.layers[Z], "before", replace)]):
        logits = model(input_ids=torch.cat([dummy, ids], dim=1), use_cache=False, **position).logits
    return logits[:, LENGTH:]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_literal_concatenation(family, implementation):
    model, anatomy, recall, ids, values = setup(family, implementation)
    if family in ("gptj", "mistral", "ministral", "gemma2", "gemma3_text", "gpt_oss"):
        ids = ids[:, :4]  # gptj: see below; the others: a window hides concatenated vectors, never a prefix
    position = {}
    if anatomy.rotary:
        position["position_ids"] = torch.arange(-LENGTH, ids.shape[1]).expand(B, -1)
    expected = literal(model, anatomy, ids, values, **position)
    plain = model(input_ids=ids).logits
    kv = recall.project(values, torch.zeros(B, dtype=torch.long))
    prefix = Prefix(kv, torch.ones(B, dtype=torch.bool), torch.zeros(B, dtype=torch.long))
    with hooked(recall), recall.forced(prefix):
        got = model(input_ids=ids, use_cache=False).logits
    assert (expected - plain).abs().max() > 1e-2  # the value does something
    if family != "gptj":  # its table of positions starts at 0, where the prefix then stands too
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
