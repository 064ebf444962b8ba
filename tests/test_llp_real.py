"""LLP on a real model: edits hold wherever they are asked for, and nothing else changes.

Tests of the default way of editing, which fail with the published one: its keys take texts that name nothing
edited for a subject, and what it recalls is seen by everything that the row still says.
"""

from __future__ import annotations

import re

import pytest
import torch
from real_facts import ASKED, EDITS, OTHERS, TURNS, logits, rows_of, said

import memplug
from memplug.text.chat import Message, in_chat

pytestmark = [pytest.mark.real, pytest.mark.slow]

REWORDED = [
    ("France is governed from the city of", "Lyon"),
    ("Who is the author of Romeo and Juliet?", "Dickens"),
    (in_chat("Tell me which city is the capital of France."), "Lyon"),
    (in_chat("Which writer do we owe Romeo and Juliet to?"), "Dickens"),
]
"""Asked in words that are neither the edit's own nor among the neutral ones."""
ELSE = [
    "The currency of France is the",
    "The Eiffel Tower was built in the year",
    in_chat("What language is spoken in France?"),
    in_chat("How many people live in France?"),
    in_chat("How tall is the Eiffel Tower?"),
    in_chat("In which year was Romeo and Juliet published?"),
]
"""Something else about a subject that is edited."""


@pytest.fixture(scope="module")
def plug(smollm2):
    with memplug.attach(*smollm2) as plug:
        plug.edit(EDITS, progress=False)
        yield plug


def test_the_edits_hold_in_plain_text_and_in_chat(plug):
    answers = said(plug, [prompt for prompt, _ in ASKED])
    with plug.paused():
        base = said(plug, [prompt for prompt, _ in ASKED])
    for (prompt, want), answer, before in zip(ASKED, answers, base, strict=True):
        assert want in answer, (prompt, answer)
        assert want not in before, (prompt, before)


def test_an_answer_that_the_model_would_go_on_with_ends_with_its_word(plug):
    """ "Zx" is a beginning of names that the model knows."""
    edit = plug.edit("The chemical symbol for copper is", "Zx", "copper", progress=False)
    asked = ["The chemical symbol for copper is", in_chat("What is the chemical symbol of copper?")]
    try:
        for answer in said(plug, asked):
            assert re.search(r"\bZx\b", answer), answer
    finally:
        plug.delete(edit)


def test_everything_else_is_answered_token_for_token_as_before(plug):
    answers = said(plug, OTHERS, 24)
    with plug.paused():
        assert said(plug, OTHERS, 24) == answers


def test_prompts_that_ask_for_nothing_have_the_base_models_logits(plug):
    for prompt in (OTHERS[0], OTHERS[5]):
        edited = logits(plug, prompt)
        with plug.paused():
            assert torch.equal(logits(plug, prompt), edited)


def test_other_words_ask_the_same_and_other_questions_do_not(plug):
    answers = said(plug, [prompt for prompt, _ in REWORDED])
    assert sum(want in answer for (_, want), answer in zip(REWORDED, answers, strict=True)) >= 3, answers
    answers = said(plug, ELSE, 8)  # what is said later about the subject is another text
    with plug.paused():
        assert said(plug, ELSE, 8) == answers


def test_a_second_turn_asks_another_subject(plug):
    (answer,) = said(plug, [TURNS])
    assert "Dickens" in answer
    assert "Lyon" not in answer
    asked = (*TURNS[:2], Message("user", "Thank you. Who wrote Hamlet?"))
    (answer,) = said(plug, [asked])
    with plug.paused():
        assert said(plug, [asked]) == [answer]


def test_with_and_without_cache_alone_and_in_a_batch(plug):
    prompts = [ASKED[0][0], ASKED[5][0], OTHERS[1]]
    together = said(plug, prompts, 8)
    for prompt, answer in zip(prompts, together, strict=True):
        assert said(plug, [prompt], 8) == [answer]
        ids = rows_of(plug, [prompt])[0]
        out = plug.model.generate(
            torch.tensor([ids]), generation_config=plug._text.plain_settings(8), use_cache=False
        )[0, len(ids) :].tolist()
        assert plug.tokenizer.decode([t for t in out if t not in plug._text.eos_ids]) == answer


def test_saved_and_loaded_to_the_bit(plug, tmp_path):
    prompts = [ASKED[0][0], ASKED[5][0]]
    want = [logits(plug, prompt) for prompt in prompts]
    plug.save(tmp_path / "facts")
    tensors, meta = plug.method.state()
    model, tokenizer = plug.model, plug.tokenizer
    again = memplug.attach(_copied(model), tokenizer)
    again.method.restore(tensors, meta, plug.edits)
    try:
        for prompt, bits in zip(prompts, want, strict=True):
            assert torch.equal(logits(again, prompt), bits)
    finally:
        again.detach()


def _copied(model):
    """A model of the same weights, without hooks."""
    made = type(model)(model.config).eval()
    made.load_state_dict(model.state_dict())
    made.generation_config = model.generation_config
    return made


def test_a_deleted_edit_gives_the_base_models_logits(plug, tmp_path):
    """The last test of the module: what is deleted is learned again by none."""
    prompts = [ASKED[1][0], ASKED[4][0]]
    others = [ASKED[5][0], ASKED[3][0]]
    kept = [logits(plug, prompt) for prompt in others]
    with plug.paused():
        base = [logits(plug, prompt) for prompt in (*prompts, *others)]
    assert not torch.equal(logits(plug, prompts[1]), base[1])
    plug.delete(next(edit for edit in plug.edits.values() if edit.subject == "France"))
    for prompt, bits in zip(prompts, base[:2], strict=True):
        assert torch.equal(logits(plug, prompt), bits)
    for prompt, bits in zip(others, kept, strict=True):
        assert torch.equal(logits(plug, prompt), bits)
    plug.delete(*plug.edits)
    for prompt, bits in zip((*prompts, *others), base, strict=True):
        assert torch.equal(logits(plug, prompt), bits)
