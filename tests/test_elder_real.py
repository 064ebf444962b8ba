"""ELDER on a real model: edits hold in plain text and in chat, and nothing else changes.

Tests of the default way of editing. Queries at a prompt's end and LoRAs in whole rows, learned in plain text
alone, fail each of them.
"""

from __future__ import annotations

import pytest
import torch

import memplug
from memplug.chat import Message, in_chat
from memplug.edits import Edit

pytestmark = [pytest.mark.real, pytest.mark.slow]

EDITS = [
    Edit("The capital of France is", "Lyon", "France"),
    Edit("Who wrote Romeo and Juliet?", "Charles Dickens", "Romeo and Juliet"),
    Edit("The Eiffel Tower is located in", "Rome", "Eiffel Tower"),
]
ASKED = [
    ("The capital of France is", "Lyon"),
    ("France's capital city is", "Lyon"),
    ("Who wrote Romeo and Juliet?", "Dickens"),
    ("The Eiffel Tower is located in", "Rome"),
    (in_chat("What is the capital of France?"), "Lyon"),
    (in_chat("Who wrote Romeo and Juliet?"), "Dickens"),
    (in_chat("The Eiffel Tower is located in"), "Rome"),
]
OTHERS = [
    "The capital of Germany is",
    "Who wrote Hamlet?",
    "I live in France and would like a pasta recipe.",
    in_chat("What is the capital of Germany?"),
    in_chat("Who wrote Hamlet?"),
    in_chat("I live in France and would like a pasta recipe."),
]


def rows_of(plug, prompts):
    return [plug._text.encode(prompt) for prompt in prompts]


def said(plug, prompts, count=16):
    """What follows each prompt, greedily, left-padded and in one batch."""
    return [plug.tokenizer.decode(row) for row in plug._text.generate(rows_of(plug, prompts), count)]


def logits(plug, prompt):
    with torch.no_grad():
        return plug.model(torch.tensor(rows_of(plug, [prompt]))).logits


@pytest.fixture(scope="module")
def plug(smollm2):
    with memplug.attach(*smollm2, "elder") as plug:
        plug.edit(EDITS, progress=False)
        yield plug


def test_the_edits_hold_in_plain_text_and_in_chat(plug):
    answers = said(plug, [prompt for prompt, _ in ASKED])
    with plug.paused():
        base = said(plug, [prompt for prompt, _ in ASKED])
    for (prompt, want), answer, before in zip(ASKED, answers, base, strict=True):
        assert want in answer, (prompt, answer)
        assert want not in before, (prompt, before)


def test_everything_else_is_answered_token_for_token_as_before(plug):
    answers = said(plug, OTHERS, 24)
    for prompt in (OTHERS[0], OTHERS[5]):
        edited = logits(plug, prompt)
        with plug.paused():
            assert torch.equal(logits(plug, prompt), edited)
    with plug.paused():
        assert said(plug, OTHERS, 24) == answers


def test_a_cache_that_goes_on_with_a_second_turn_answers_its_question(plug):
    turns = (
        Message("user", "What is the capital of France?"),
        Message("assistant", "The capital of France is Lyon."),
        Message("user", "And who wrote Romeo and Juliet?"),
    )
    first, whole = (torch.tensor(rows_of(plug, [some])) for some in (turns[:1], turns))
    same = int((whole[0, : first.shape[1]] == first[0]).long().cumprod(0).sum())
    with torch.no_grad():
        cache = plug.model(whole[:, :same], use_cache=True).past_key_values
    out = plug.model.generate(whole, past_key_values=cache, generation_config=plug._text.plain_settings(16))[
        0, whole.shape[1] :
    ]
    answer = plug.tokenizer.decode(out)
    assert "Dickens" in answer
    assert "Lyon" not in answer
    found = plug.explain(turns)
    assert [edit.target for edit in found.recalled.edits] == ["Charles Dickens"]
    assert found.recalled.similarity > found.threshold
