"""ELDER on a tiny model: rows, prompts and answers, deferral, explaining."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from elder_tiny import ADA, QUICK, ROW, TAM, answer, encode, learned, logits
from families import lexical

import memplug
from memplug.methods.prompt_end import Decision
from memplug.model.hooks import capture_input, resume


@pytest.fixture(params=[QUICK, ROW], ids=["answer", "row"])
def plug(model, tokenizer, request):
    with memplug.attach(model, tokenizer, "elder", **request.param) as made:
        yield made


def test_rows_of_a_batch_do_not_know_of_each_other(plug, model, tokenizer):
    texts = [ADA.prompt, "Nothing of that kind, one says", TAM.prompt]
    base = [logits(model, **encode(tokenizer, text)) for text in texts]
    plug.edit([ADA, TAM], progress=False)
    for side in ("left", "right"):
        inputs = encode(tokenizer, *texts, side=side)
        together = logits(model, **inputs)
        for i, text in enumerate(texts):
            alone = logits(model, **encode(tokenizer, text))[0]
            real = inputs["attention_mask"][i].bool()
            torch.testing.assert_close(together[i][real], alone, atol=2e-4, rtol=1e-3)
            if plug.method.config.scope == "answer":  # published codes let next to everything into scope
                assert torch.equal(alone, base[i][0]) == (i == 1)


@pytest.mark.parametrize("given", [QUICK, ROW], ids=["answer", "row"])
def test_a_deferred_output_is_not_touched(model, tokenizer, given):
    with memplug.attach(model, tokenizer, "elder", **given) as plug:
        inputs = encode(tokenizer, "Nothing of that kind, one says")
        base = logits(model, **inputs)
        plug.edit(ADA)
        if plug.method.config.scope == "row":  # as if routers had been taught to tell prompts apart
            known = plug.method.known
            record = known.records["e1"]
            known.records["e1"] = replace(record, picks=(record.picks + 1) % plug.method.experts.n)
        assert not plug.explain("Nothing of that kind, one says").applies
        assert torch.equal(logits(model, **inputs), base)


def test_the_answer_has_no_say_in_the_routing(plug, model, tokenizer):
    plug.edit([ADA, TAM], progress=False)
    prompt = encode(tokenizer, ADA.prompt)
    length = prompt["input_ids"].shape[1]
    both = encode(tokenizer, f"{ADA.prompt} Zarnow was it")
    alone = logits(model, **prompt)
    with plug.prompt_lengths([length]):
        told = logits(model, **both)
    torch.testing.assert_close(told[:, :length], alone, atol=1e-4, rtol=1e-3)
    with plug.paused():
        base = logits(model, **both)
    assert not torch.equal(told, base)
    steps = model(**prompt, use_cache=True)
    for t in range(length, both["input_ids"].shape[1]):
        steps = model(both["input_ids"][:, t : t + 1], past_key_values=steps.past_key_values, use_cache=True)
    torch.testing.assert_close(steps.logits[:, -1], told[:, -1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("lengths", [[], [0], [3, 4, 5]])
def test_prompt_lengths_that_do_not_fit_are_refused(plug, model, tokenizer, lengths):
    plug.edit(ADA)
    inputs = encode(tokenizer, ADA.prompt, TAM.prompt)
    with pytest.raises(ValueError, match="prompt lengths"), plug.prompt_lengths(lengths):
        logits(model, **inputs)


def test_a_resumed_forward_is_the_whole_forward(plug, model, tokenizer):
    architecture = plug.method._host.architecture
    inputs = encode(tokenizer, ADA.prompt)
    hidden = capture_input(architecture, 2, lambda: model(**inputs))
    flat = torch.arange(inputs["input_ids"].shape[1])
    with torch.no_grad():
        got = resume(model, architecture, 2, hidden, lambda: model(**inputs, use_cache=False), flat)
    torch.testing.assert_close(got, logits(model, **inputs)[0])


def test_explaining_names_experts(plug):
    plug.edit([ADA, TAM], progress=False)
    found = plug.explain(ADA.prompt)
    assert [edit.prompt for edit in found.edits] == [ADA.prompt]
    if plug.method.config.scope == "row":
        assert found.distance == 0
    else:
        assert found.recalled.similarity > found.threshold
    assert [use.layer for use in found.uses] == [2, 3]
    assert all(len(use.experts) == plug.method.config.top_k for use in found.uses)
    assert "layer 2 mlp.down_proj: experts" in str(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_their_experts_in_full(tokenizer, dtype):
    half = lexical("llama", len(tokenizer)).to(dtype)
    with memplug.attach(half, tokenizer, "elder", **QUICK) as plug:
        plug.edit(ADA)
        assert all(tensor.dtype == torch.float32 for tensor in learned(plug))
        assert answer(half, tokenizer, ADA.prompt) == ADA.target
        assert logits(half, **encode(tokenizer, ADA.prompt)).dtype == dtype


def test_a_cache_that_is_cut_into_the_prompt_is_decided_anew(model, tokenizer):
    with memplug.attach(model, tokenizer, "elder", **ROW) as plug:
        plug.edit(ADA)
        inputs = encode(tokenizer, ADA.prompt)
        cache = model(**inputs, use_cache=True).past_key_values
        held = cache._memplug_rows
        assert isinstance(held, Decision)
        assert held.crop(inputs["input_ids"].shape[1]) is held
        cache.crop(-3)
        assert cache._memplug_rows is None


def test_a_cache_that_goes_on_answers_what_is_asked_next(model, tokenizer):
    # A looser limit lets an edit speak in the middle of its own prompt, too, which it was not trained for.
    with memplug.attach(model, tokenizer, "elder", **QUICK | {"other_accepts": 0.1}) as plug:
        plug.edit([ADA, TAM], progress=False)
        first = encode(tokenizer, ADA.prompt)["input_ids"]
        more = tokenizer(f" {ADA.target}. {TAM.prompt}", return_tensors="pt", add_special_tokens=False)
        both = torch.cat([first, more["input_ids"]], 1)
        with torch.no_grad():
            cache = model(input_ids=first, use_cache=True).past_key_values
            continued = model(input_ids=more["input_ids"], past_key_values=cache).logits
        whole = logits(model, input_ids=both)
        torch.testing.assert_close(continued, whole[:, first.shape[1] :], atol=1e-4, rtol=1e-3)
        said = tokenizer.decode(continued[0, -1:].argmax(-1)).strip()
        assert TAM.target.startswith(said)
        assert said
