"""ELDER on a real model: edits hold in plain text and in chat, and nothing else changes.

Tests of the default way of editing. Queries at a prompt's end and LoRAs in whole rows, learned in plain text
alone, fail each of them.
"""

from __future__ import annotations

import pytest
import torch
from real_facts import ASKED, EDITS, OTHERS, TURNS, logits, rows_of, said

import memplug

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def plug(smollm2):
    with memplug.attach(*smollm2, "elder") as plug:
        plug.edit(EDITS, progress=False)
        yield plug


def test_the_edits_hold_in_plain_text_and_in_chat(plug):
    asked = [*ASKED, ("France's capital city is", "Lyon")]
    answers = said(plug, [prompt for prompt, _ in asked])
    with plug.paused():
        base = said(plug, [prompt for prompt, _ in asked])
    for (prompt, want), answer, before in zip(asked, answers, base, strict=True):
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
    first, whole = (torch.tensor(rows_of(plug, [some])) for some in (TURNS[:1], TURNS))
    same = int((whole[0, : first.shape[1]] == first[0]).long().cumprod(0).sum())
    with torch.no_grad():
        cache = plug.model(whole[:, :same], use_cache=True).past_key_values
    out = plug.model.generate(whole, past_key_values=cache, generation_config=plug._text.plain_settings(16))[
        0, whole.shape[1] :
    ]
    answer = plug.tokenizer.decode(out)
    assert "Dickens" in answer
    assert "Lyon" not in answer
    found = plug.explain(TURNS)
    assert [edit.target for edit in found.recalled.edits] == ["Charles Dickens"]
    assert found.recalled.similarity > found.threshold
