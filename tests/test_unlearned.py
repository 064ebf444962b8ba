"""Edits that do not take: one warning, whichever the method."""

from __future__ import annotations

import warnings

import pytest
from families import METHODS, lexical, method_of

import memplug
from memplug.edits import Edit
from memplug.methods.unlearned import unlearned

ADA = Edit("Where was Ada Quill born?", "Zarnow", "Ada Quill")
LONG = Edit("Where was Ada Quill born?", "12 March 1984", "Ada Quill")
LITTLE = {
    "llp": {"value_steps": 0},
    "llp-answer": {"value_steps": 0},
    "elder": {"steps": 1},
    "grace": {"steps": 1},
    "grace-asked": {"steps": 1},
    "icl": {},
    "finetune": {"steps": 1, "lr": 1e-6},
    "lora": {"epochs": 1, "keep_pool": 4, "lr": 1e-9},
    "ultraedit": {"steps": 1, "extra_steps": 0, "inner_lr": 1e-9},
}
"""Methods, with constants by which they learn next to nothing."""
ENOUGH = {"elder": {}, "llp": {}, "llp-answer": {}, "grace": {}, "grace-asked": {}}


def attach(tokenizer, name, more):
    model = lexical("llama", len(tokenizer))
    return memplug.attach(model, tokenizer, method_of(name), **METHODS.get(name, {}) | more)


@pytest.mark.parametrize("name", LITTLE)
def test_an_edit_that_is_not_answered_is_warned_of_once(tokenizer, name):
    with attach(tokenizer, name, LITTLE[name]) as plug:
        with pytest.warns(
            UserWarning, match="1 of 1 were not learned well .'(Where was )?Ada Quill"
        ) as caught:
            edit = plug.edit(LONG)
        told = [one for one in caught if "not learned well" in str(one.message)]
        assert len(told) == 1
        assert told[0].filename == __file__
        assert list(plug.edits) == [edit.id]


@pytest.mark.parametrize("name", ENOUGH)
def test_an_edit_that_is_answered_is_not(tokenizer, name):
    with attach(tokenizer, name, ENOUGH[name]) as plug, warnings.catch_warnings():
        warnings.filterwarnings("error", ".*not learned well")
        plug.edit(ADA)
        assert unlearned(plug._host, [ADA]) == []
        plug.disable("e1")
        assert unlearned(plug._host, [ADA]) == [ADA]


def test_each_is_asked_in_its_own_form(tokenizer):
    other = Edit("Who taught Ada Quill, the painter from far away in Zarnow?", "Marrow", "Ada Quill")
    with attach(tokenizer, "elder", {}) as plug:
        plug.edit([ADA, other], progress=False)
        asked = [ADA, LONG, other, Edit(other.prompt, "Tam", "Ada Quill")] * 30
        assert unlearned(plug._host, asked) == [asked[1], asked[3]] * 30
        plug.model.train()
        assert unlearned(plug._host, [ADA]) == []
        assert plug.model.training


def test_a_paused_plug_is_not_asked(tokenizer):
    with attach(tokenizer, "elder", {}) as plug, plug.paused(), warnings.catch_warnings():
        warnings.filterwarnings("error", ".*not learned well")
        plug.edit(ADA)
