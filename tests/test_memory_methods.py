"""What ELDER, GRACE and ICL promise alike: saved plugs go on, failures change nothing, edits are named."""

from __future__ import annotations

import pytest
import torch
from elder_tiny import QUICK, ROW, same
from families import METHODS, method_of
from test_contract import Trace, encode

import memplug

PROMPT, OTHER, FAR = "Where was Ada Quill born?", "Who taught Tam Wickes?", "Marrow is."
KINDS = {
    "elder": QUICK | {"steps": 30},
    "elder-row": ROW | {"steps": 30},
    "grace": METHODS["grace"] | {"steps": 3},
    "grace-asked": METHODS["grace-asked"] | {"steps": 3},
    "icl": {},
}


@pytest.fixture(params=KINDS)
def plug(request, model, tokenizer):
    with memplug.attach(model, tokenizer, method_of(request.param), **KINDS[request.param]) as made:
        yield made


def logits(plug, *texts):
    with torch.no_grad():
        return plug.model(**encode(plug.tokenizer, *texts)).logits


def test_a_loaded_plug_goes_on_where_the_saved_one_was(plug, model, tokenizer, tmp_path):
    asked = (PROMPT, OTHER, FAR)
    plug.edit([memplug.Edit(PROMPT, "Zarnow", "Ada Quill"), memplug.Edit(OTHER, "Marrow", "Tam Wickes")])
    plug.delete(plug.edit(FAR, "Zarnow", "Marrow"))
    plug.disable("e2")
    plug.save(tmp_path / "facts")

    def later(one):
        seen = [logits(one, *asked)]
        one.edit(FAR, "Tam", "Marrow")
        one.enable("e2")
        return [*seen, logits(one, *asked)], str(one.explain(PROMPT))

    expected, told = later(plug)
    plug.detach()
    with memplug.load(tmp_path / "facts", model, tokenizer) as loaded:
        got, again = later(loaded)
    assert same(got, expected)
    assert again == told


def test_a_failure_changes_nothing(plug, model):
    if plug.name == "icl":
        return  # it trains nothing
    plug.edit(PROMPT, "Zarnow", "Ada Quill")
    trace, head = Trace(model), model.lm_head.weight
    before, table, kept = logits(plug, PROMPT), repr(plug.edits), head.detach().clone()
    with torch.no_grad():
        head.fill_(torch.nan)
    try:
        with pytest.raises(memplug.EditError, match="loss that is not finite.*lower lr"):
            plug.edit(OTHER, "Marrow", "Tam Wickes")
    finally:
        with torch.no_grad():
            head.copy_(kept)
    assert repr(plug.edits) == table
    assert not [edit for edit in plug.explain(OTHER).edits if edit.subject == "Tam Wickes"]
    assert torch.equal(logits(plug, PROMPT), before)
    trace.check(model)
    plug.delete("e1")
    assert not plug.method.active


def test_explanations(plug):
    assert "no edit is in force" in str(plug.explain(PROMPT))
    plug.edit(PROMPT, "Zarnow", "Ada Quill")
    found = plug.explain(PROMPT)
    assert found.applies
    assert [edit.id for edit in found.edits] == ["e1"]
    assert str(found).startswith(f"'{PROMPT}': {found.reason}")
    assert "e1" in str(found)
    if plug.name == "icl" or plug.method.config.scope in (
        "answer",
        "asked",
    ):  # as published, nearly all is near
        assert not plug.explain(FAR).applies
    plug.disable("e1")
    assert not plug.explain(PROMPT).applies
    with pytest.raises(ValueError, match="the prompt is empty"):
        plug.explain(" ")
