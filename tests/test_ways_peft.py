"""Models that peft has adapted: an adapter a row, adapters switched and merged, virtual tokens."""

from __future__ import annotations

import copy

import pytest
import torch
from families import METHODS, method_of

import memplug

peft = pytest.importorskip("peft")

BORN, TARGET, SUBJECT = "Where was Ada Quill born?", "Zarnow", "Ada Quill"
GIVEN = {name: METHODS[name] for name in ("llp-answer", "llp", "elder", "grace-asked")}
GIVEN |= {"icl": {}, "finetune": {}}


@pytest.fixture
def adapted(model):
    """With the adapters a, which is active, and b."""
    made = peft.get_peft_model(
        copy.deepcopy(model), config := peft.LoraConfig(r=2, target_modules=["down_proj", "q_proj"]), "a"
    )
    made.add_adapter("b", config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.03)
    made.set_adapter("a")
    return made.eval()


def edited(model, tokenizer, name):
    plug = memplug.attach(model, tokenizer, method_of(name), **GIVEN[name])
    plug.edit(BORN, TARGET, SUBJECT)
    return plug


@torch.no_grad()
def logits(model, tokenizer, rows=1, **given):
    ids = tokenizer([BORN] * rows, return_tensors="pt")["input_ids"]
    return model(input_ids=ids, use_cache=False, **given).logits[:, -1]


@pytest.mark.parametrize("name", GIVEN)
def test_an_adapter_a_row_is_each_one_alone_or_refused(adapted, tokenizer, name):
    with edited(adapted, tokenizer, name):
        alone = []
        for adapter in ("a", "b"):
            adapted.set_adapter(adapter)
            alone.append(logits(adapted, tokenizer)[0])
        if name in ("llp", "icl"):  # what stands in front is read with one adapter
            with pytest.raises(memplug.UnsupportedModelError, match="call set_adapter"):
                logits(adapted, tokenizer, 2, adapter_names=["a", "b"])
            assert torch.equal(logits(adapted, tokenizer)[0], alone[1])
        else:
            both = logits(adapted, tokenizer, 2, adapter_names=["a", "b"])
            torch.testing.assert_close(both, torch.stack(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", GIVEN)
def test_an_adapter_that_is_switched_or_merged(adapted, tokenizer, name):
    """Nothing is kept of what was read with another one, and the edit is there all along."""
    with memplug.attach(adapted, tokenizer, method_of(name), **GIVEN[name]) as plug:
        plug.edit(BORN, TARGET, SUBJECT)
        adapted.set_adapter("b")  # before anything was asked
        want = logits(adapted, tokenizer)
        adapted.set_adapter("a")
        first = logits(adapted, tokenizer)
        adapted.set_adapter("b")
        assert torch.equal(logits(adapted, tokenizer), want)
        adapted.set_adapter("a")
        adapted.merge_adapter()
        if name != "grace-asked":  # whose value takes the place of what the linear says, without its adapter
            torch.testing.assert_close(logits(adapted, tokenizer), first, atol=1e-3, rtol=1e-3)
        assert logits(adapted, tokenizer).argmax() == first.argmax()
        adapted.unmerge_adapter()
        torch.testing.assert_close(logits(adapted, tokenizer), first, atol=1e-3, rtol=1e-3)
        whole = adapted.merge_and_unload()
        assert logits(whole, tokenizer).argmax() == first.argmax()
        plug.detach()
        assert not any(module._forward_hooks for module in whole.modules())


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens(model, tokenizer, kind):
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    made = peft.get_peft_model(copy.deepcopy(model), config).eval()
    with pytest.raises(memplug.UnsupportedModelError, match="attach to the model inside it"):
        memplug.attach(made, tokenizer, "elder", **GIVEN["elder"])
    inputs = tokenizer(BORN, return_tensors="pt")
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    given |= {"max_new_tokens": 3, "do_sample": False}
    with edited(made.base_model, tokenizer, "elder"):
        if kind == "PrefixTuningConfig":  # their keys and values are in the cache from the beginning
            with pytest.raises(memplug.UnsupportedModelError, match="cannot be filled again"):
                made.generate(**given)
        else:
            said = made.generate(**given)[0, inputs["input_ids"].shape[1] :]
            assert tokenizer.decode(said, skip_special_tokens=True).strip() == TARGET
            assert made.generate(**given, use_cache=False)[0, -len(said) :].tolist() == said.tolist()
