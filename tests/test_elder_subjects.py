"""ELDER asks whom and what a prompt is about: others are deferred, rephrasings are routed as their edit."""

from __future__ import annotations

import unicodedata

import pytest
import torch
from elder_tiny import ADA, ORLO, QUICK, TAM, answer, encode, logits
from families import TEXTS, build, lexical

import memplug
from memplug import Edit

OTHER = "Where was Tam Wickes born?"


@pytest.fixture
def plug(model, tokenizer):
    with memplug.attach(model, tokenizer, "elder", **QUICK) as made:
        yield made


def test_the_same_question_about_somebody_else_is_deferred(plug, model, tokenizer):
    base = logits(model, **encode(tokenizer, OTHER))
    plug.edit(ADA)
    assert torch.equal(logits(model, **encode(tokenizer, OTHER)), base)
    found = plug.explain(OTHER)
    assert not found.applies
    assert "nothing is recalled" in found.reason
    assert answer(model, tokenizer, ADA.prompt) == ADA.target


def named(plug, subject, prompt):
    """Whether enough layers see the subject in a prompt."""
    found = plug.explain(prompt)
    seen = [one for one in (found.recalled, found.runner_up) if one is not None and one.subject == subject]
    return any(one.votes >= found.quorum for one in seen)


def test_a_subject_is_recognised_in_its_edits_own_prompts_in_any_model(tokenizer):
    # Where a subject stands changes its states beyond likeness in this one.
    model = build("olmo2", vocab_size=len(tokenizer))
    with memplug.attach(model, tokenizer, "elder", **QUICK | {"steps": 1}) as plug:
        edits = plug.edit([ADA, TAM, Edit("Who taught Ada Quill?", "Marrow", "Ada Quill")])
        for edit in edits:
            assert named(plug, edit.subject, edit.prompt)


def test_a_query_says_whom_and_what_it_is_about(plug):
    plug.edit([ADA, TAM, Edit("Who taught Ada Quill?", "Marrow", "Ada Quill")], progress=False)
    born, tam, taught = plug.method._learned.queries.values()
    width = len(born) // 2
    cosine = torch.nn.functional.cosine_similarity
    assert torch.equal(born[:width], taught[:width])
    assert float(cosine(born[width:], taught[width:], dim=0)) < 0.99
    assert float(cosine(born[:width], tam[:width], dim=0)) < 0.9
    torch.testing.assert_close(born[:width].norm(), born[width:].norm())


def test_a_rephrasing_is_routed_as_its_edit(plug):
    plug.edit([ADA, TAM], progress=False)
    own, other = plug.explain(ADA.prompt), plug.explain("Ada Quill was born. Where was Ada Quill born?")
    assert own.uses
    assert other.uses == own.uses


@pytest.mark.parametrize("both", ["Then {off} saw {on}. ", "Then {on} saw {off}. "])
@pytest.mark.parametrize(("off", "on"), [(ADA, ORLO), (ORLO, ADA)])
def test_a_subject_that_is_switched_off_does_not_hide_another(plug, both, off, on):
    given, _ = plug.edit([off, on], progress=False)
    plug.disable(given)
    found = plug.explain(both.format(off=off.subject, on=on.subject) + on.prompt)
    assert [edit.prompt for edit in found.edits] == [on.prompt]
    assert not plug.explain(off.prompt).applies


PLACES = [
    "{s}'s birthplace is",
    "{s}’s birthplace is",
    "Where is {s}'s birthplace?",
    "Where is {s}’s birthplace?",
    'He said: "{s} was born in',
    "He said: “{s} was born in",
    "A painter ({s}) was born in",
    "One line.\n{s} was born in",
    "See:\t{s} was born in",
    "This is **{s}** and",
    "And -{s} was born in",
    "Now\u00a0{s} was born in",
    "[{s}] was born in",
    "{s}",
]


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_subject_is_recognised_behind_marks(make_tokenizer, family, add_bos):
    tokenizer = make_tokenizer(TEXTS, add_bos=add_bos)
    given = QUICK | {"steps": 1}
    with memplug.attach(lexical(family, len(tokenizer)), tokenizer, "elder", **given) as plug:
        plug.edit([ADA, TAM, Edit("Who taught the Renée's?", "Marrow", "Renée's")], progress=False)
        for subject in ("Ada Quill", "Tam Wickes"):
            asked = [place.format(s=subject) for place in PLACES]
            assert [prompt for prompt in asked if not named(plug, subject, prompt)] == []
        for asked in ("Who taught the Renée’s?", unicodedata.normalize("NFD", "Who taught the Renée's?")):
            assert named(plug, "Renée's", asked)
        for subject in ("Ada Quill", "Tam Wickes", "Renée's"):
            assert not named(plug, subject, "Where was Orlo born?")
            assert not named(plug, subject, "Nobody in particular")
