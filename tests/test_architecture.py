"""What is found in a model by rule: layers, arguments, masks, devices; and the model left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from families import build
from test_contract import Trace
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from memplug.methods.places import find_places, find_site
from memplug.model.architecture import (
    UnsupportedModelError,
    check_layer,
    evaluating,
    find_layers,
    fraction,
    frozen,
    input_device,
    inspect_model,
    module_device,
)


@pytest.fixture(scope="module")
def llama():
    return build("llama")


@pytest.mark.parametrize(
    ("family", "name", "rotary", "inverted", "alibi", "by_column"),
    [
        ("llama", "model.layers", True, False, None, False),
        ("gpt2", "transformer.h", False, False, None, False),
        ("opt", "model.decoder.layers", False, False, None, False),
        ("gpt_neox", "gpt_neox.layers", True, False, None, False),
        ("bloom", "transformer.h", False, False, "alibi", False),
        ("mpt", "transformer.blocks", False, True, None, True),
        ("falcon", "transformer.h", True, False, "alibi", False),
    ],
)
def test_what_is_found_in_families(family, name, rotary, inverted, alibi, by_column):
    model = build(family)
    trace = Trace(model)
    architecture = inspect_model(model)
    trace.check(model)
    assert architecture.names == tuple(f"{name}.{i}" for i in range(4))
    assert architecture.layers == tuple(model.get_submodule(name))
    assert architecture.decoder is model.get_submodule(name.rpartition(".")[0])
    assert (architecture.width, architecture.n_heads) == (32, 4)
    found = (
        architecture.rotary,
        architecture.masked_is_true,
        architecture.alibi_arg,
        architecture.bias_by_column,
    )
    assert found == (rotary, inverted, alibi, by_column)


def test_masks_in_which_true_closes_are_noticed(llama):
    """A decoder that hands its layers the opposite of the usual boolean mask."""
    model = copy.deepcopy(llama)
    assert not inspect_model(model).masked_is_true

    def invert(_m, args, kwargs):
        mask = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
        return args, {**kwargs, "attention_mask": ~mask}

    def read(_m, args, kwargs):
        return args, {**kwargs, "attention_mask": ~kwargs["attention_mask"]}

    model.model.layers[0].register_forward_pre_hook(invert, with_kwargs=True)
    model.model.layers[0].self_attn.register_forward_pre_hook(read, with_kwargs=True)
    assert inspect_model(model).masked_is_true


def test_a_layers_arguments_by_name(llama):
    architecture = inspect_model(llama)
    first, second = list(architecture.signature.parameters)[:2]
    assert (first, second) == ("hidden_states", "attention_mask")
    assert architecture.bind((1, 2), {"past_key_values": 3, "extra": 4}) == {
        "hidden_states": 1,
        "attention_mask": 2,
        "past_key_values": 3,
        "extra": 4,
    }
    assert architecture.cache_arg == "past_key_values"
    x = torch.ones(1)
    assert architecture.hidden((x, None)) is architecture.hidden([x]) is architecture.hidden(x) is x


def test_a_dropout_is_off_while_the_model_is_looked_at():
    model = build("gpt2", resid_pdrop=0.5).train()
    state = torch.random.get_rng_state()
    inspect_model(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules())


class Several(nn.Module):
    """A model with other lists beside its layers."""

    def __init__(self, **lists):
        super().__init__()
        self.config = type("Config", (), {"num_hidden_layers": 2})()
        for name, sizes in lists.items():
            setattr(self, name, nn.ModuleList(nn.Linear(size, size) for size in sizes))


def test_of_lists_as_long_as_the_model_is_deep_the_largest_is_taken():
    model = Several(norms=(2, 2), layers=(8, 8), experts=(99,))
    assert find_layers(model) == ("layers", model.layers)
    assert find_layers(model, "experts") == ("experts", model.experts)


@pytest.mark.parametrize(
    ("lists", "path", "match"),
    [
        ({"one": (4, 4), "two": (4, 4)}, None, r"\['one', 'two'\] could all be the decoder layers; name"),
        ({"one": (4,)}, None, r"no ModuleList of num_hidden_layers=2.*layers=.*\['one'\]"),
        ({"one": (4, 4)}, "two", r"no list of layers at 'two'; the model has \['one'\]"),
    ],
)
def test_lists_that_cannot_be_told(lists, path, match):
    with pytest.raises(UnsupportedModelError, match=match):
        find_layers(Several(**lists), path)


def test_a_model_that_needs_more_than_text(llama):
    def lacking(*_):
        raise ValueError("pixel_values is missing")

    model = copy.deepcopy(llama)
    model.model.layers[0].register_forward_pre_hook(lacking)
    with pytest.raises(UnsupportedModelError, match="does not run on text alone .*pixel_values is missing"):
        inspect_model(model)


def test_layers_that_are_never_called(llama):
    model = copy.deepcopy(llama)
    model.model.spare = nn.ModuleList(copy.deepcopy(model.model.layers[:2]))
    with pytest.raises(UnsupportedModelError, match="'model.spare' were not called"):
        inspect_model(model, "model.spare")


def test_evaluating_puts_each_modules_mode_back(llama):
    model = copy.deepcopy(llama).train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        assert_none(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_frozen_puts_each_parameters_flag_back(llama):
    model = copy.deepcopy(llama)
    model.model.norm.weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    assert len(set(flags)) == 2
    with pytest.raises(RuntimeError, match="inside"), frozen(model):
        assert_none(p.requires_grad for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == flags


def assert_none(flags):
    assert not any(flags)
    raise RuntimeError("inside")


def test_shares_of_the_depth_are_rounded_half_up():
    assert [fraction(10 / 32, depth) for depth in (4, 8, 12, 32)] == [1, 3, 4, 10]
    assert fraction(0.5, 1) == 1
    assert fraction(0.01, 12) == 0
    assert fraction(0.01, 12, least=1) == 1
    assert fraction(2.0, 12) == 12


@pytest.mark.parametrize("index", [-1, 4, 1.0, None, "1"])
def test_a_layer_out_of_range(index):
    match = f"recall_layer is {index!r}, but the model has layers 0 to 3; choose one of these"
    with pytest.raises(ValueError, match=match.replace("(", r"\(")):
        check_layer(index, 4, "recall_layer")
    assert check_layer(3, 4, "recall_layer") == 3


def test_an_offloaded_models_modules_compute_on_the_device_they_are_brought_to():
    accelerate = pytest.importorskip("accelerate")
    model = build("llama")
    assert input_device(model) == torch.device("cpu")
    expected = [place.name for place in find_places(model, inspect_model(model), [1, 3])]
    accelerate.cpu_offload(model, execution_device="cpu")
    assert model.get_input_embeddings().weight.device.type == "meta"
    architecture = inspect_model(model)
    assert input_device(model) == torch.device("cpu")
    assert module_device(architecture.layers[1]) == torch.device("cpu")
    places = find_places(model, architecture, [1, 3])
    assert [place.name for place in places] == expected
    assert {place.device for place in places} == {torch.device("cpu")}
    for what in ("hidden", "input"):
        assert find_site(model, architecture, 1, what).device == torch.device("cpu")


def test_devices_of_modules_without_weights():
    assert module_device(nn.GELU()) == torch.device("cpu")
    assert module_device(nn.Linear(2, 2, device="meta")) == torch.device("meta")


def test_layers_that_hand_on_more_than_a_state_a_token_are_refused():
    """Gemma 3n keeps several versions of each state."""
    settings = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": 97,
        "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0, 0.0], "max_position_embeddings": 64,
    }  # fmt: skip
    config = AutoConfig.for_model("gemma3n_text", **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(UnsupportedModelError, match=r"shape \(2, 1, 3, 32\).*, not one for each token"):
        inspect_model(model)
