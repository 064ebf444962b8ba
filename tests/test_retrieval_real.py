"""ICL and GRACE on a real model: edits are found in other words and in chat, and nothing else changes.

With a matching of their own they failed here: the same question in chat was missed, and another country's was
taken for the edited one.
"""

from __future__ import annotations

import pytest
import torch
from real_facts import EDITS, OTHERS, TURNS, logits, said

import memplug
from memplug.chat import Message, in_chat
from memplug.methods.icl.method import ICL

pytestmark = [pytest.mark.real, pytest.mark.slow]

ASKED = [
    ("The capital of France is", "Lyon"),
    ("Q: What is the capital of France?\nA:", "Lyon"),
    ("The Eiffel Tower is located in", "Rome"),
    (in_chat("What is the capital of France?"), "Lyon"),
    (in_chat("Where is the Eiffel Tower located?"), "Rome"),
]


@pytest.fixture(scope="module", params=["icl", "grace"])
def plug(request, smollm2):
    with memplug.attach(*smollm2, method=request.param) as plug:
        plug.edit(EDITS, progress=False)
        yield plug


@pytest.mark.parametrize(("prompt", "want"), ASKED, ids=range(len(ASKED)))
def test_edits_hold_in_other_words_and_in_chat(plug, request, prompt, want):
    found = plug.explain(prompt)
    noted = isinstance(plug.method, ICL)
    edits = found.edits if noted else found.recalled.edits
    assert [edit.target for edit in edits][:1] == [want]
    if noted and want == "Rome":
        why = "the model reads the note, and says Paris nevertheless"
        request.applymarker(pytest.mark.xfail(reason=why, strict=True))
    (answer,) = said(plug, [prompt])
    assert want in answer


def test_everything_else_is_answered_to_the_bit_as_before(plug):
    for prompt in OTHERS:
        edited = logits(plug, prompt)
        with plug.paused():
            assert torch.equal(logits(plug, prompt), edited), prompt


def test_a_second_turn_asks_for_its_own_edit(plug):
    found = plug.explain(TURNS)
    assert "Romeo and Juliet is named" in str(found)
    asked = (*TURNS[:2], Message("user", "Thank you. Who wrote Hamlet?"))
    (answer,) = said(plug, [asked])  # in the turn before, France's edit speaks as it is to
    with plug.paused():
        assert said(plug, [asked]) == [answer]
