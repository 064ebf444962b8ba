"""ELDER, ICL and GRACE on a real model: edits hold in other words and in chat, and nothing else changes.

With a matching of their own they failed here: the same question in chat was missed, and another country's was
taken for the edited one.
"""

from __future__ import annotations

import pytest
import torch
from real_facts import ASKED, EDITS, OTHERS, TURNS, logits, rows_of, said

import memplug
from memplug.edits import Edit
from memplug.text.chat import Message, in_chat

pytestmark = [pytest.mark.real, pytest.mark.slow]

FOUND = [
    ("The capital of France is", "Lyon"),
    ("Q: What is the capital of France?\nA:", "Lyon"),
    ("The Eiffel Tower is located in", "Rome"),
    (in_chat("What is the capital of France?"), "Lyon"),
    (in_chat("Where is the Eiffel Tower located?"), "Rome"),
]


@pytest.fixture(scope="module", params=["elder", "icl", "grace"])
def plug(request, smollm2):
    with memplug.attach(*smollm2, method=request.param) as plug:
        plug.edit(EDITS, progress=False)
        yield plug


def test_edits_hold_in_other_words_and_in_chat(plug):
    asked = [*ASKED, ("France's capital city is", "Lyon")] if plug.name == "elder" else FOUND
    answers = said(plug, [prompt for prompt, _ in asked])
    with plug.paused():
        base = said(plug, [prompt for prompt, _ in asked])
    for (prompt, want), answer, before in zip(asked, answers, base, strict=True):
        assert [edit for edit in plug.explain(prompt).edits if want in edit.target], prompt
        assert want not in before, (prompt, before)
        # The model reads the note, and says Paris nevertheless.
        assert (want in answer) == (plug.name != "icl" or want != "Rome"), (prompt, answer)


def test_everything_else_is_answered_to_the_bit_as_before(plug):
    answers = said(plug, OTHERS, 24)
    for prompt in OTHERS:
        edited = logits(plug, prompt)
        with plug.paused():
            assert torch.equal(logits(plug, prompt), edited), prompt
    if plug.name == "elder":
        with plug.paused():
            assert said(plug, OTHERS, 24) == answers


def test_a_second_turn_asks_for_its_own_edit(plug):
    found = plug.explain(TURNS)
    assert "Romeo and Juliet is named" in str(found)
    asked = (*TURNS[:2], Message("user", "Thank you. Who wrote Hamlet?"))
    (answer,) = said(plug, [asked])  # in the turn before, France's edit speaks as it is to
    with plug.paused():
        assert said(plug, [asked]) == [answer]


def test_a_cache_that_goes_on_with_a_second_turn_answers_its_question(plug):
    if plug.name != "elder":
        return
    first, whole = (torch.tensor(rows_of(plug, [some])) for some in (TURNS[:1], TURNS))
    same = int((whole[0, : first.shape[1]] == first[0]).long().cumprod(0).sum())
    with torch.no_grad():
        cache = plug.model(whole[:, :same], use_cache=True).past_key_values
    settings = plug._text.plain_settings(16)
    out = plug.model.generate(whole, past_key_values=cache, generation_config=settings)
    answer = plug.tokenizer.decode(out[0, whole.shape[1] :])
    assert "Dickens" in answer
    assert "Lyon" not in answer


LONG = [  # with a name that is like it
    ("Georges-Louis Leclerc, Comte de Buffon", "Where was {} born?", "Georges-Louis Leclerc, Comte de Paris"),
    ("Nintendo 3DS", "Who makes the {}?", "Nintendo 64"),
]


def test_a_long_name_is_found_in_other_company(plug):
    """One of its tokens may look different at the beginning of a user's turn; another name looks far off."""
    if plug.name != "icl":
        pytest.skip("all three find edits in one way, and this one learns at once")
    made = plug.edit(
        [Edit(asked.format(subject), "Greek", subject) for subject, asked, _ in LONG], progress=False
    )
    for subject, _, near in LONG:
        for name in (subject, near):
            told = plug.explain(in_chat(f"{name}, what do you know of it?")).found
            best = told.recalled or told.runner_up
            assert (best.subject == subject and best.enough) == (name == subject), (name, best)
    plug.delete(made)
