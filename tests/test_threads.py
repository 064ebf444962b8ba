"""Many threads on one model while its edits change: every answer is one of a state that was in force."""

from __future__ import annotations

import pytest
from families import METHODS, lexical, method_of

import memplug
from benchmarks.stressing import Asked, Stress, changes
from memplug.edits import Edit

FACTS = [
    Edit("Where was Ada Quill born?", "Zarnow", "Ada Quill"),
    Edit("Who founded the Orlo Bridge Company?", "Tam", "Orlo Bridge Company"),
    Edit("What is the capital of Vestland?", "Marrow", "Vestland"),
]
TEXTS = [edit.prompt for edit in FACTS] + ["Who taught Ada Quill?"]
ASKED = [
    *(Asked(kind, (text,)) for kind in ("generate", "forward") for text in TEXTS),
    Asked("generate", (TEXTS[0], "Who", TEXTS[2])),
    Asked("forward", (TEXTS[1], "Where was")),
    Asked("explain", (TEXTS[0],)),
]
QUICK = {
    "llp": {"value_steps": 40, "stop_loss": 0.5},
    "llp-answer": {"value_steps": 40},
    "elder": {"steps": 60},
    "grace": {"steps": 60},
    "icl": {"heldout": 8},
    "finetune": {"steps": 10},
    "ultraedit": {},
    "lora": {"epochs": 2, "keep_pool": 4},
}


@pytest.mark.parametrize("name", QUICK)
def test_threads_see_one_state_each_and_leave_nothing(name, tokenizer):
    given = METHODS.get(name, {}) | QUICK[name]

    def attach(model, tokenizer):
        return memplug.attach(model, tokenizer, method_of(name), **given)

    made = changes(len(FACTS), 10, seed=1)
    stress = Stress(lexical("llama", len(tokenizer)), tokenizer, attach, FACTS, ASKED, made)
    outcome = stress.run(threads=8, calls=200)
    assert outcome.errors == []
    assert outcome.wrong == 0
    assert outcome.learned
    assert outcome.clean
