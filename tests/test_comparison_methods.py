"""Real methods under the comparison: a stopped run goes on as if it had not been stopped."""

from __future__ import annotations

import math
from functools import partial

import pytest
from comparing import figures, stopped_after
from families import METHODS, TEXTS, lexical

import memplug
from memplug.comparison import decisions, run
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


def test_how_often_modules_were_chosen_and_how_evenly():
    first = {"scores": {"a": 1.0, "b": 0.0, "c": 2.0}, "chosen": ["a", "c"]}
    second = {"scores": {"a": 1.0, "b": 0.0, "c": 2.0}, "chosen": ["a"]}
    found = decisions.module_choices([first, second, {}])
    assert found["layers"] == {"a": 2, "b": 0, "c": 1}
    assert found["entropy"] == pytest.approx(-(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3))
    assert decisions.module_choices([{}]) == {}


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
    (made,) = expected.results["runs"]
    if name in ("llp", "elder"):
        kinds = [vote["kind"] for vote in made["details"]["votes"]]
        assert {kind: kinds.count(kind) for kind in kinds} == {"edited": 3, "rephrased": 1, "unrelated": 1}
        assert all(len(vote["similarity"]) == 2 for vote in made["details"]["votes"])
    with stopped_after(1):
        memplug.compare(model, tokenizer, CASES, out=tmp_path, **asked)
    found = memplug.compare(model, tokenizer, CASES, out=tmp_path, **asked)
    assert figures(found) == figures(expected)
