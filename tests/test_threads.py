"""Many threads on one model while its edits change: every answer is one of a state that was in force."""

from __future__ import annotations

import threading

import pytest
import torch
from families import METHODS, lexical, method_of
from test_contract import CASES

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
    "grace-asked": {"steps": 60},
    "icl": {},
    "finetune": {"steps": 5, "lr": 0.05, "bound": 0.3, "keep": 0},
    "ultraedit": {"steps": 2, "extra_steps": 0},
    "lora": {"epochs": 2, "keep_pool": 4},
}


@pytest.mark.parametrize("name", QUICK)
def test_threads_see_one_state_each_and_leave_nothing(name, tokenizer):
    given = METHODS.get(name, {}) | QUICK[name]

    def attach(model, tokenizer):
        return memplug.attach(model, tokenizer, method_of(name), **given)

    made = changes(len(FACTS), 9, seed=1)
    stress = Stress(lexical("llama", len(tokenizer)), tokenizer, attach, FACTS, ASKED, made)
    outcome = stress.run(threads=8, calls=160)
    assert outcome.errors == []
    assert outcome.wrong == 0
    assert outcome.learned
    assert outcome.clean


@pytest.mark.parametrize("name", ["llp-answer", "elder", "icl", "finetune", "lora"])
def test_one_thread_asks_the_base_model_while_others_are_edited(name, tokenizer):
    model, given = lexical("llama", len(tokenizer)), METHODS.get(name, {}) | QUICK[name]
    inputs = tokenizer(TEXTS[0], return_tensors="pt")

    def logits():
        with torch.no_grad():
            return model(**inputs).logits

    base, found = logits(), []
    with memplug.attach(model, tokenizer, method_of(name), **given) as plug:
        plug.edit(FACTS[0], progress=False)
        edited, later = logits(), threading.Thread(target=lambda: plug.edit(FACTS[1], progress=False))
        other = threading.Thread(target=lambda: found.append(logits()))
        assert not torch.equal(edited, base)
        with plug.base():
            other.start()
            other.join()
            later.start()
            for _ in range(20):
                assert torch.equal(logits(), base)
        later.join()
        assert torch.equal(found[0], edited)
        assert len(plug.edits) == 2
        assert not torch.equal(logits(), base)


def test_an_editor_is_fitted_beside_forwards_of_the_base_model(tokenizer):
    model = lexical("llama", len(tokenizer))
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    wrong, over = [], threading.Event()
    with torch.no_grad():
        base = model(**inputs).logits

    def ask():
        with torch.no_grad():
            while not over.is_set():
                wrong.append(not torch.equal(model(**inputs).logits, base))

    with memplug.attach(model, tokenizer, "rledit", **METHODS["rledit"]) as plug:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        plug.fit(CASES, progress=False)
        over.set()
        for thread in threads:
            thread.join()
    assert wrong
    assert not any(wrong)
