"""LoRA: against peft's own injection and against added weights, honest removal, a model left as it was."""

from __future__ import annotations

import copy
import importlib.metadata
import random

import peft
import pytest
import torch
from families import lexical
from test_contract import Trace, answers, encode

import memplug
from memplug.configs import from_json
from memplug.methods.lora import LoRAConfig
from memplug.methods.neutral import NeutralPool, neutral

PROMPT, OTHER, THIRD = (
    "Where was Ada Quill born?",
    "Who taught Ada Quill?",
    "What is the capital of Vestland?",
)
QUICK = {"start": 0.5, "stop": 1.0, "linears": ("down",), "rank": 4, "alpha": 8.0, "lr": 2e-2, "keep": 0}


@pytest.fixture(scope="module")
def base(tokenizer):
    return lexical("llama", len(tokenizer))


@pytest.fixture
def model(base):
    return copy.deepcopy(base)


def attach(model, tokenizer, **config):
    return memplug.attach(model, tokenizer, "lora", **(QUICK | config))


def logits(model, tokenizer, *texts):
    with torch.no_grad():
        return model(**encode(tokenizer, *(texts or (PROMPT, OTHER, THIRD)))).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("rslora", [False, True])
def test_equals_pefts_own_injection(family, rslora, tokenizer):
    """The same numbers in layers that peft has put into a copy of the model."""
    model = lexical(family, len(tokenizer))
    theirs = copy.deepcopy(model)
    with attach(model, tokenizer, linears=("up", "down"), rslora=rslora, epochs=3) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        names = [site.name for site in plug.method.adapter.sites]
        config = peft.LoraConfig(r=4, lora_alpha=8.0, use_rslora=rslora, target_modules=names)
        peft.inject_adapter_in_model(config, theirs)
        theirs.eval()
        pairs = zip(plug.method.adapter.parameters[::2], plug.method.adapter.parameters[1::2], strict=True)
        with torch.no_grad():
            for name, (down, up) in zip(names, pairs, strict=True):
                theirs.get_submodule(name).lora_A["default"].weight.copy_(down)
                theirs.get_submodule(name).lora_B["default"].weight.copy_(up)
        expected = logits(theirs, tokenizer)
        with plug.paused():
            bare = logits(model, tokenizer)
        assert (expected - bare).abs().max() > 1e-2
        torch.testing.assert_close(logits(model, tokenizer), expected, atol=1e-5, rtol=1e-5)


def test_from_attach_to_detach(model, tokenizer):
    trace, bare = Trace(model), logits(model, tokenizer)
    state = torch.random.get_rng_state()
    with attach(model, tokenizer) as plug:
        assert torch.equal(torch.random.get_rng_state(), state)  # peft's start draws from it
        assert list(model.state_dict()) == list(trace.tensors)
        assert torch.equal(logits(model, tokenizer), bare)
        edit = plug.edit(PROMPT, "Zarnow", "Ada Quill")
        edited = logits(model, tokenizer)
        (row,) = answers(model, tokenizer, PROMPT)
        assert tokenizer.decode(row, skip_special_tokens=True).strip() == "Zarnow"
        assert row[-1] == tokenizer.eos_token_id
        assert answers(model, tokenizer, PROMPT, use_cache=False) == [row]
        with plug.paused():
            assert torch.equal(logits(model, tokenizer), bare)
        plug.disable(edit)
        assert torch.equal(logits(model, tokenizer), bare)
        plug.enable(edit)
        assert torch.equal(logits(model, tokenizer), edited)
        (left,) = plug.delete(edit)
        assert not left.answered
        assert left.loss > 1.0
        assert torch.equal(logits(model, tokenizer), bare)
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
    trace.check(model)
    assert torch.equal(logits(model, tokenizer), bare)


def test_deleting_says_what_is_left_and_retraining_removes_it(base, tokenizer):
    edits = [memplug.Edit(PROMPT, "Zarnow"), memplug.Edit(OTHER, "Tam Wickes"), memplug.Edit(THIRD, "Marrow")]
    with attach(copy.deepcopy(base), tokenizer) as plug:
        plug.edit(edits[:1])
        plug.edit(edits[1:])
        before = logits(plug.model, tokenizer)
        (left,) = plug.delete("e2")
        assert left.answered  # nothing was changed by it, and it says so
        assert left.loss < 0.5
        assert torch.equal(logits(plug.model, tokenizer), before)
        (gone,) = plug.delete("e3", retrain=True)
        assert gone.loss > left.loss
        with attach(copy.deepcopy(base), tokenizer) as fresh:
            fresh.edit(edits[:1])
            assert torch.equal(logits(plug.model, tokenizer), logits(fresh.model, tokenizer))


def test_switching_off_learns_the_others_anew(base, tokenizer):
    edits = [memplug.Edit(PROMPT, "Zarnow"), memplug.Edit(OTHER, "Tam Wickes")]
    with attach(copy.deepcopy(base), tokenizer) as plug:
        plug.edit(edits)
        both = logits(plug.model, tokenizer)
        plug.disable("e1")
        with attach(copy.deepcopy(base), tokenizer) as fresh:
            fresh.edit(edits[1:])
            assert torch.equal(logits(plug.model, tokenizer), logits(fresh.model, tokenizer))
        plug.enable("e1")
        assert torch.equal(logits(plug.model, tokenizer), both)


def test_saved_and_loaded_to_the_bit(base, model, tokenizer, tmp_path):
    with attach(model, tokenizer) as plug:
        plug.edit([memplug.Edit(PROMPT, "Zarnow"), memplug.Edit(OTHER, "Tam Wickes")])
        plug.save(tmp_path)
        with memplug.load(tmp_path, copy.deepcopy(base), tokenizer) as loaded:
            assert torch.equal(logits(loaded.model, tokenizer), logits(model, tokenizer))
            with pytest.raises(ValueError, match="the adapter's tensors are .* expected"):
                loaded.method.adapter.load(loaded.method.adapter.snapshot()[1:])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_weights_say_the_same(family, tokenizer):
    model = lexical(family, len(tokenizer)).double()
    plug = attach(model, tokenizer, epochs=4)
    plug.edit(PROMPT, "Zarnow", "Ada Quill")
    edited = logits(model, tokenizer)
    with plug.paused():
        bare = logits(model, tokenizer)
    assert plug.merge() is model
    assert (edited - bare).abs().max() > 1e-2
    # The adapter beside the weights computes in float32.
    torch.testing.assert_close(logits(model, tokenizer), edited, atol=1e-3, rtol=1e-4)


def test_answers_are_kept_and_earlier_edits_are_replayed(base, tokenizer):
    """Both change what is learned; the divergence from kept answers falls with them."""

    def diverged(**config):
        with attach(copy.deepcopy(base), tokenizer, keep_pool=8, epochs=8, stop_loss=0.0, **config) as plug:
            host = plug.method._host
            with host.tracker.off():
                kept = neutral(host, 2, NeutralPool(host, 8, 0).pairs(()))
            plug.edit(PROMPT, "Zarnow", "Ada Quill")
            with torch.no_grad():
                return float(kept.divergence(8, random.Random(0)))

    assert diverged(keep=8, keep_weight=20.0) < 0.5 * diverged()
    with attach(copy.deepcopy(base), tokenizer, replay=2) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        plug.edit(OTHER, "Tam Wickes", "Ada Quill")
        plug.edit(THIRD, "Marrow", "Vestland")
        firsts = [
            tokenizer.decode(row[:1]).strip() for row in answers(plug.model, tokenizer, PROMPT, OTHER, THIRD)
        ]
    assert firsts == ["Zarnow", "Tam", "Marrow"]


def test_a_failure_changes_nothing(model, tokenizer):
    with attach(model, tokenizer) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        before, trace = logits(model, tokenizer), Trace(model)
        with torch.no_grad():
            head = model.lm_head.weight.clone()
            model.lm_head.weight.fill_(torch.nan)
        with pytest.raises(memplug.EditError, match="loss that is not finite.*lower lr"):
            plug.edit(OTHER, "Tam Wickes", "Ada Quill")
        with torch.no_grad():
            model.lm_head.weight.copy_(head)
        assert list(plug.edits) == ["e1"]
        assert torch.equal(logits(model, tokenizer), before)
        assert not any(parameter.requires_grad for parameter in plug.method.adapter.parameters)
        trace.check(model)


def test_explanations(model, tokenizer):
    with attach(model, tokenizer) as plug:
        assert plug.explain(PROMPT).shares == ()
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        found = plug.explain(PROMPT)
        assert found.edited.strip() == "Zarnow"
        assert [name for name, _ in found.shares] == [site.name for site in plug.method.adapter.sites]
        assert all(share > 0 for _, share in found.shares)
        assert "adds" in str(found)
        with pytest.raises(ValueError, match="the prompt is empty"):
            plug.explain(" ")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"linears": ("q",)}, r"linears is \('q',\); give some of \('gate', 'up', 'down'\)"),
        ({"linears": ()}, "linears is .*give some of"),
        ({"start": 0.9, "stop": 0.5}, "start is 0.9, stop 0.5; start has to be smaller"),
        ({"rank": 0}, "rank is 0; choose a whole number from 1"),
        ({"modules": ("model.layers.0.mlp.dawn_proj",)}, "did you mean 'model.layers.0.mlp.down_proj'"),
        ({"preset": "paper"}, "no preset 'paper'"),
        ({"r": 3}, "LoRAConfig has no field 'r'"),
    ],
)
def test_constants(base, tokenizer, config, match):
    trace = Trace(base)
    with pytest.raises(ValueError, match=match):
        memplug.attach(base, tokenizer, "lora", **config)
    trace.check(base)


def test_of_fused_experts_the_attention_is_adapted_or_what_is_named(tokenizer):
    mixture = lexical("mixtral", len(tokenizer))
    with attach(mixture, tokenizer) as plug:  # its experts are one tensor
        assert all(site.name.endswith("self_attn.o_proj") for site in plug.method.adapter.sites)
    names = tuple(f"model.layers.{i}.self_attn.q_proj" for i in (2, 3))
    with attach(mixture, tokenizer, modules=names) as plug:
        assert tuple(site.name for site in plug.method.adapter.sites) == names


def test_another_version_of_peft(base, tokenizer, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.1" if name == "peft" else real(name))
    trace = Trace(base)
    with pytest.raises(ImportError, match=r"peft 0.18 or newer, 0.9.1 is installed; run .*memplug\[lora\]"):
        attach(base, tokenizer)
    trace.check(base)


def test_without_peft(base, tokenizer, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"LoRA needs peft; run `pip install .memplug\[lora\].`"):
        attach(base, tokenizer)


def test_a_model_that_peft_has_adapted_keeps_its_adapter(model, tokenizer):
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["down_proj"])).eval()
    trace, before = Trace(wrapped), logits(wrapped, tokenizer)
    with attach(wrapped, tokenizer, epochs=3) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        assert not torch.equal(logits(wrapped, tokenizer), before)
    trace.check(wrapped)
    assert torch.equal(logits(wrapped, tokenizer), before)


def test_constants_of_earlier_files_are_left_out():
    assert from_json(LoRAConfig, {"keep_tokens": 24, "rank": 4}) == {"rank": 4}
