"""Hooks: all or none, always removed; layers skipped, inputs captured, forwards resumed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import build
from torch import nn

from memplug.model.architecture import inspect_model
from memplug.model.hooks import Hook, HookSet, capture_input, resume, skipping_below

IDS = torch.arange(3, 15).view(2, 6)


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.fixture(scope="module")
def architecture(model):
    return inspect_model(model)


def hooks_on(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def counted(architecture):
    """A list of the layers that run, and the hooks that fill it."""
    ran: list[int] = []
    hooks = [
        Hook(layer.self_attn, "before", lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(architecture.layers)
    ]
    return ran, hooks


def test_a_mistake_leaves_no_hook():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    hooks = [Hook(one, "before", print), Hook(two, "after", print), Hook("layer", "before", print)]
    with pytest.raises(AttributeError, match="register_forward_pre_hook"):
        HookSet(hooks)
    assert hooks_on(one) == hooks_on(two) == 0


def test_hooks_change_what_goes_in_and_comes_out():
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    plain = layer(x)
    double = Hook(layer, "before", lambda _m, args, _k: ((args[0] * 2,), {}))
    shift = Hook(layer, "after", lambda _m, _a, _k, output: output + 1)
    with HookSet([double, shift]):
        torch.testing.assert_close(layer(x), layer.weight.sum(1) * 2 + layer.bias + 1 + torch.zeros(1, 2))
    assert torch.equal(layer(x), plain)


def test_hooks_are_removed_by_an_error_and_only_once():
    layer = nn.Linear(2, 2)
    other = layer.register_forward_hook(lambda *_: None)
    hooks = HookSet([Hook(layer, "before", lambda *_: None)])
    assert hooks_on(layer) == 2
    with pytest.raises(RuntimeError, match="inside"), hooks:
        raise RuntimeError("inside")
    hooks.remove()
    assert hooks_on(layer) == 1  # the caller's own
    other.remove()


def test_finally_is_called_when_the_forward_raises():
    seen = []

    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("in the forward")

    layer = Failing()
    hooks = [Hook(layer, kind, lambda *_, k=kind: seen.append(k)) for kind in ("after", "finally")]
    with HookSet(hooks), pytest.raises(RuntimeError, match="in the forward"):
        layer(torch.ones(1))
    assert seen == ["finally"]


def test_skipped_layers_cost_nothing_and_come_back(model, architecture):
    def own(*args, **kwargs):
        return type(architecture.layers[1]).forward(architecture.layers[1], *args, **kwargs)

    architecture.layers[1].forward = own  # as a wrapper does
    ran, hooks = counted(architecture)
    try:
        with HookSet(hooks), skipping_below(architecture, 2):
            model(IDS)
        with pytest.raises(RuntimeError, match="inside"), skipping_below(architecture, 2):
            raise RuntimeError("inside")
        assert ran == [2, 3]
        assert vars(architecture.layers[1])["forward"] is own
        assert "forward" not in vars(architecture.layers[0])
    finally:
        del architecture.layers[1].forward


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_a_captured_input_is_the_hidden_states(family):
    model = build(family)
    architecture = inspect_model(model)
    hidden = model(IDS, output_hidden_states=True).hidden_states[2]
    assert torch.equal(capture_input(architecture, 2, lambda: model(IDS)), hidden)


def test_capturing_stops_below_the_layer(model, architecture):
    ran, hooks = counted(architecture)
    with HookSet(hooks):
        capture_input(architecture, 2, lambda: model(IDS))
    assert ran == [0, 1]
    assert hooks_on(model) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_a_resumed_forward_gives_the_logits_asked_for(family):
    model = build(family)
    architecture = inspect_model(model)
    whole = model(IDS, use_cache=False).logits.flatten(0, 1)
    hidden = capture_input(architecture, 2, lambda: model(IDS))
    seen, flat = [], torch.tensor([0, 7, 11])
    with HookSet([Hook(model.get_output_embeddings(), "before", lambda _m, a, _k: seen.append(a[0].shape))]):
        got = resume(model, architecture, 2, hidden, lambda: model(IDS, use_cache=False), flat)
    torch.testing.assert_close(got, whole[flat], atol=1e-5, rtol=1e-4)
    moved = resume(model, architecture, 2, hidden * 1.5, lambda: model(IDS, use_cache=False), flat)
    assert (moved - got).abs().max() > 1e-3  # what lies below is not computed again
    assert hooks_on(model) == 0


def test_the_head_of_a_resumed_forward_sees_the_wanted_positions_only(model, architecture):
    hidden = capture_input(architecture, 1, lambda: model(IDS))
    sizes = []
    head = model.get_output_embeddings()
    original = head.forward
    head.forward = lambda x: sizes.append(x.shape[-2]) or original(x)
    try:
        resume(model, architecture, 1, hidden, lambda: model(IDS, use_cache=False), torch.tensor([2, 3]))
    finally:
        del head.forward
    assert sizes == [2]


def test_hooks_decide_by_values_in_a_compiled_model_too():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    seen: list[list[int]] = []

    def before(_m, args, _kwargs):
        seen.append(
            np.cumsum(args[0].detach().numpy()[0] > 0).tolist()
        )  # compiled, this is not even possible
        return ((args[0] * 2,), {}) if seen[-1][-1] > 1 else None

    with HookSet([Hook(model[0], "before", before)]):
        compiled = torch.compile(model, backend="eager")
        for x in (torch.ones(1, 3), -torch.ones(1, 3)):
            assert torch.equal(compiled(x), model(x))
    assert seen == [[1, 2, 3]] * 2 + [[0, 0, 0]] * 2
    torch.compiler.reset()
