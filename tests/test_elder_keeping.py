"""ELDER forgets and keeps: deletion, retraining, saving and loading."""

from __future__ import annotations

import pytest
import torch
from elder_tiny import ADA, ORLO, QUICK, ROW, TAM, answer, encode, learned, logits, same

import memplug
from memplug import Edit


@pytest.fixture(params=[QUICK, ROW], ids=["answer", "row"])
def plug(model, tokenizer, request):
    with memplug.attach(model, tokenizer, "elder", **request.param) as made:
        yield made


def test_deleting_says_what_still_covers(model, tokenizer):
    rephrased = Edit("Where was Ada Quill born ?", ADA.target, ADA.subject)
    with memplug.attach(model, tokenizer, "elder", **ROW | {"epsilon": 100}) as plug:
        kept, gone = plug.edit([rephrased, ADA], progress=False)
        base_inputs = encode(tokenizer, ADA.prompt)
        with plug.paused():
            base = logits(model, **base_inputs)
        (left,) = plug.delete(gone)
        assert (left.edit, left.covered_by) == (gone, kept)
        assert torch.equal(logits(model, **base_inputs), base)  # its own prompt is kept out all the same
        assert answer(model, tokenizer, kept.prompt) == kept.target
        (left,) = plug.delete(kept)
        assert left.covered_by is None


def test_a_deleted_edit_is_asked_for_no_more(model, tokenizer):
    with memplug.attach(model, tokenizer, "elder", **QUICK) as plug:
        gone, _ = plug.edit([ADA, TAM], progress=False)
        inputs = encode(tokenizer, ADA.prompt)
        with plug.paused():
            base = logits(model, **inputs)
        (left,) = plug.delete(gone)
        assert (left.edit, left.covered_by) == (gone, None)
        assert torch.equal(logits(model, **inputs), base)
        assert answer(model, tokenizer, TAM.prompt) == TAM.target


def test_a_deleted_prompt_can_be_edited_again(plug, model, tokenizer):
    plug.delete(plug.edit(ADA))
    plug.edit(ADA.prompt, "Marrow", ADA.subject)
    assert answer(model, tokenizer, ADA.prompt) == "Marrow"


def test_retraining_leaves_nothing_of_the_deleted(plug, model, tokenizer):
    plug.edit([ADA, TAM, ORLO], progress=False)
    plug.disable("e3")
    plug.delete("e1", retrain=True)
    assert not plug.edits.enabled("e3")
    assert answer(model, tokenizer, TAM.prompt) == TAM.target
    assert not plug.explain(ORLO.prompt).applies
    assert not plug.explain(ADA.prompt).applies
    got = learned(plug)
    config = plug.method.config
    plug.detach()
    with memplug.attach(model, tokenizer, config) as fresh:
        fresh.edit([TAM, ORLO], progress=False)
        assert same(learned(fresh), got)


def test_other_methods_refuse_retraining(model, tokenizer):
    with memplug.attach(model, tokenizer, "llp", value_steps=1) as plug:
        plug.edit(ADA)
        with pytest.raises(ValueError, match="retrain=True"):
            plug.delete("e1", retrain=True)
        assert len(plug.edits) == 1


def test_a_damaged_state_is_refused(plug):
    plug.edit([ADA, TAM], progress=False)
    tensors, meta = plug.method.state()
    before = learned(plug)
    listed = "queries" if plug.method.config.scope == "answer" else "edits"
    with pytest.raises(ValueError, match="edits"):
        plug.method.restore(tensors, meta | {listed: meta[listed][:1]}, plug.edits)
    with pytest.raises(ValueError, match="queries is torch.float32 of shape"):
        plug.method.restore(tensors | {"queries": tensors["queries"][:, :3]}, meta, plug.edits)
    if plug.method.config.scope == "row":
        with pytest.raises(ValueError, match="picks names an expert"):
            plug.method.restore(tensors | {"picks": tensors["picks"] + 999}, meta, plug.edits)
    with pytest.raises(ValueError, match="experts.0 is"):
        plug.method.restore(tensors | {"experts.0": tensors["experts.0"][:1]}, meta, plug.edits)
    assert same(learned(plug), before)
