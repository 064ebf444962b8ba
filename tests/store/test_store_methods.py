"""Every method in a store: others take up its edits to the bit, states come back, failures change nothing."""

from __future__ import annotations

import sqlite3

import pytest
import torch
from families import METHODS, lexical, method_of
from locating import QUICK as LOCATING
from test_contract import CASES, encode

import memplug
from memplug import StoreError
from memplug.interface import Fits
from memplug.store.store import Store

ASKED = ("Where was Ada Quill born?", "Who is Tam Wickes?", "Who founded the Orlo Bridge Company?", "Who")
FEW = {
    "llp": {"value_steps": 40},
    "llp-answer": {"value_steps": 10},
    "elder": {"steps": 10},
    "elder-row": {"steps": 10},
    "grace": {"steps": 20},
    "grace-asked": {"steps": 20},
    "ultraedit": {"steps": 2, "extra_steps": 0},
}
GIVEN = {name: constants | FEW.get(name, {}) for name, constants in METHODS.items()} | {
    "icl": {"k": 2},
    "finetune": {"steps": 3, "lr": 0.05, "bound": 0.3, "keep": 0, "guard_every": 0},
    "lora": {"epochs": 2, "keep_pool": 4},
    "memit": LOCATING | {"steps": 2},
    "alphaedit": LOCATING | {"steps": 2},
}


def answers(plug, tokenizer):
    with torch.no_grad():
        return plug.model(**encode(tokenizer, *ASKED)).logits


def full(*_):
    raise sqlite3.OperationalError("disk full")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GIVEN)
def test_a_state_is_the_same_in_each_plug_and_when_it_comes_back(name, tokenizer, tmp_path, monkeypatch):
    def attach(**given):
        return memplug.attach(lexical("llama", len(tokenizer)), tokenizer, store=tmp_path / "f.db", **given)

    with attach(method=method_of(name), **GIVEN[name]) as plug, attach() as other:
        base = answers(plug, tokenizer)
        if isinstance(plug.method, Fits):
            plug.fit(CASES, progress=False)
        seen, edits = {}, {}

        def look():
            number, edits_now = plug.refresh(), repr(plug.edits)
            seen[number], edits[number] = answers(plug, tokenizer), edits_now
            assert other.refresh() == number
            assert repr(other.edits) == edits_now
            assert torch.equal(answers(other, tokenizer), seen[number])

        look()
        assert torch.equal(seen[plug.store.at], base)
        plug.edit(ASKED[0], "Zarnow", "Ada Quill")
        look()
        assert not torch.equal(seen[plug.store.at], base)
        other.edit(
            [memplug.Edit(ASKED[1], "Ada", "Tam Wickes"), memplug.Edit(ASKED[2], "Tam", "Orlo Bridge")]
        )
        look()
        plug.disable("e2")
        look()
        other.delete("e1")
        look()
        for number in sorted(seen):  # each over one with other edits
            plug.rollback(number)
            assert repr(plug.edits) == edits[number]
            assert torch.equal(answers(plug, tokenizer), seen[number])
            other.refresh()
            assert torch.equal(answers(other, tokenizer), seen[number])
        assert str(plug.edit("Who taught Ada Quill?", "Tam", "Ada Quill").id) == "e4"  # never one from before
        look()
        with monkeypatch.context() as patch:
            patch.setattr(Store, "_append", full)
            for change in (
                lambda: plug.edit(ASKED[2], "Ada", "Orlo Bridge"),
                lambda: plug.disable("e4"),
                lambda: plug.delete("e4"),
                lambda: plug.rollback(2),
            ):
                with pytest.raises(StoreError, match="could not be written .disk full"):
                    change()
                assert torch.equal(answers(plug, tokenizer), seen[plug.store.at])
                assert repr(plug.edits) == edits[plug.store.at]
        with other.paused():
            plug.enable("e2") if "e2" in plug.edits else plug.disable("e4")
            other.refresh()
            assert torch.equal(answers(other, tokenizer), base)
        look()
        with attach() as third:
            assert torch.equal(answers(third, tokenizer), seen[plug.store.at])
        for one in (plug, other):
            with one.paused():
                assert torch.equal(answers(one, tokenizer), base)
            one.detach()
            assert torch.equal(answers(one, tokenizer), base)
