"""Real methods under the comparison: a stopped run goes on as if it had not been stopped."""

from __future__ import annotations

from functools import partial

import pytest
from comparing import figures
from families import METHODS, TEXTS, lexical

import memplug
from memplug.comparison import run
from memplug.edits import Case, Edit, Probe

CONSTANTS = {
    "llp": METHODS["llp"] | {"value_steps": 15},
    "elder": METHODS["elder"] | {"steps": 15},
    "ultraedit": {"inner_lr": 1e-3, "guard_every": 0, "batch_size": 1},
}  # quick; whether the edits take is not asked here
CASES = [
    Case(
        Edit("Where was Ada Quill born?", "Zarnow", "Ada Quill"),
        ("Ada Quill was born in",),
        (Probe("Who taught?", "Tam"),),
    ),
    Case(Edit("Who founded the Orlo Bridge Company?", "Marrow", "Orlo Bridge Company")),
    Case(Edit("What is the capital of Vestland?", "Tam Wickes", "Vestland")),
]


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_stopped_run_goes_on(name, make_tokenizer, monkeypatch, tmp_path):
    tokenizer = make_tokenizer(TEXTS)
    model = lexical("llama", len(tokenizer))
    monkeypatch.setattr(run, "overhead", partial(run.overhead, turns=1, steps=2, seconds=0))
    asked = {
        "methods": [name],
        "constants": {name: CONSTANTS[name]},
        "points": [1, 2],
        "max_new_tokens": 6,
        "progress": False,
    }
    expected = memplug.compare(model, tokenizer, CASES, **asked)
    assert expected.results["runs"][0]["status"] == "done", expected.results["runs"][0]["error"]
    save = run.save

    def stopping(*given):
        save(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            memplug.compare(model, tokenizer, CASES, out=tmp_path, **asked)
    found = memplug.compare(model, tokenizer, CASES, out=tmp_path, **asked)
    assert figures(found) == figures(expected)
