"""Explanations agree with what the model does: tokens, votes, the winner, and why."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from families import TEXTS, attach_llp, lexical
from test_contract import encode

BORN, FOUNDED = "Where was Ada Quill born?", "Who founded the Orlo Bridge Company?"


@pytest.fixture(scope="module")
def plug(make_tokenizer):
    """Two edits; their values are not trained, since only the matching counts here."""
    tokenizer = make_tokenizer(TEXTS)
    with attach_llp(lexical("llama", len(tokenizer)), tokenizer, value_steps=0) as plug:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plug.edit(BORN, "Zarnow", "Ada Quill")
            plug.edit("Who taught Ada Quill?", "Marrow", "Ada Quill")
            plug.edit(FOUNDED, "Marrow", "Orlo Bridge Company")
        yield plug


def recalls(plug, prompt):
    """Whether the model's logits differ from the base model's."""
    inputs = encode(plug.tokenizer, prompt)
    with torch.no_grad():
        edited = plug.model(**inputs).logits
        with plug.paused():
            return not torch.equal(edited, plug.model(**inputs).logits)


def test_a_recalled_subject(plug):
    prompt = "What is the capital of Ada Quill?"
    told = plug.explain(prompt)
    assert recalls(plug, prompt)
    assert told.recalled.subject == "Ada Quill"
    assert [edit.id for edit in told.recalled.edits] == ["e1", "e2"]
    assert told.tokens == tuple(plug.tokenizer.decode([i]) for i in plug.tokenizer(prompt)["input_ids"])
    assert [vote.layer for vote in told.recalled.layers] == [0, 1]
    for vote in told.recalled.layers:
        assert vote.voted is (vote.similarity > told.threshold)
        assert vote.token == told.tokens[vote.position]
        assert "".join(told.tokens[: vote.position + 1]).endswith("Ada Quill")
    assert told.recalled.votes == sum(vote.voted for vote in told.recalled.layers) >= told.quorum
    mean = sum(vote.similarity for vote in told.recalled.layers) / 2
    assert told.recalled.similarity == pytest.approx(mean)
    assert told.runner_up.subject == "Orlo Bridge Company"
    assert told.reason.startswith("Ada Quill is recalled with 2 votes (1 needed); the runner-up, Orlo")


def test_nothing_recalled(plug):
    prompt = "What is the capital of Vestland?"
    told = plug.explain(prompt)
    assert not recalls(plug, prompt)
    assert told.recalled is None
    assert told.runner_up.votes < told.quorum
    assert told.reason.startswith(
        f"nothing is recalled; the closest subject, {told.runner_up.subject}, has 0 votes"
    )
    assert "of the 1 needed (similarity above 0.7)" in told.reason


def test_two_subjects_in_one_prompt(plug):
    """The winner is the one the search elects, and the other has as many votes."""
    told = plug.explain("Who taught Ada Quill of the Orlo Bridge Company?")
    both = told.recalled, told.runner_up
    assert {c.subject for c in both} == {"Ada Quill", "Orlo Bridge Company"}
    assert told.recalled.votes == told.runner_up.votes == 2
    assert told.recalled.similarity > told.runner_up.similarity
    assert f"{told.runner_up.subject} has as many, but is less similar" in told.reason


def test_heat_is_the_least_cosine_in_the_window_that_ends_at_a_token(plug):
    told = plug.explain(BORN)
    heat = told.recalled.heat
    assert heat.shape == (2, len(told.tokens))
    ids = encode(plug.tokenizer, BORN)["input_ids"]
    with plug.paused(), torch.no_grad():
        states = plug.model(input_ids=ids, output_hidden_states=True).hidden_states[1:3]
    keys = {number: plug.method.memory.get(number) for number in plug.method.entries["Ada Quill"].keys}
    for r, state in enumerate(states):
        at = told.recalled.layers[r].position
        assert heat[r, at] == heat[r][heat[r].isfinite()].max()
        assert float(heat[r, at]) == pytest.approx(told.recalled.layers[r].similarity, abs=1e-3)
        spans = [key[r] for key in keys.values()]
        best = max(
            float((F.normalize(state[0, at - len(s) + 1 : at + 1], dim=-1) * s).sum(-1).min()) for s in spans
        )
        assert float(heat[r, at]) == pytest.approx(best, abs=1e-3)
    assert bool(heat[:, 0].isnan().all())  # nothing is matched against the BOS


@pytest.mark.filterwarnings("ignore:.*not learned well")
def test_switched_off_edits_are_left_out(plug):
    plug.disable("e1")
    try:
        assert [edit.id for edit in plug.explain(BORN).recalled.edits] == ["e2"]
        plug.disable("e2")
        told = plug.explain(BORN)
        assert told.recalled is None
        assert told.runner_up.subject == "Orlo Bridge Company"
        plug.disable("e3")
        told = plug.explain(BORN)
        assert told.recalled is told.runner_up is None
        assert told.reason == "no edit is in force"
    finally:
        plug.enable("e1", "e2", "e3")


def test_the_text_tells_all_of_it(plug):
    told = plug.explain(BORN)
    lines = str(told).splitlines()
    assert lines[0] == f"{BORN!r}: {told.reason}"
    assert lines[1] == "  recalled: Ada Quill (2 votes of 2)"
    assert lines[2] == f"    edit e1: {BORN!r} -> 'Zarnow'"
    assert [line.split()[:2] for line in lines[4:6]] == [["layer", "0:"], ["layer", "1:"]]
    assert lines[4].endswith(" votes")
    assert "  runner-up: Orlo Bridge Company (0 votes of 2)" in lines
    assert lines[-1].endswith(" no vote")
    assert repr(told) == str(told)


def test_explaining_leaves_the_model_alone(plug):
    inputs = encode(plug.tokenizer, BORN, FOUNDED)
    with torch.no_grad():
        before = plug.model(**inputs).logits
        plug.explain(BORN)
        assert torch.equal(plug.model(**inputs).logits, before)
    assert not plug.model.training
