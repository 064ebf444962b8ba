"""ELDER asks whom and what a prompt is about: others are deferred, rephrasings are routed as their edit."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
import torch
from elder_tiny import ADA, ORLO, QUICK, TAM, answer, encode, learned, logits, same
from families import TEXTS, build, lexical

import memplug
from memplug import Edit, EditError
from memplug.methods.elder import training

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
    assert found.deferred
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
    with memplug.attach(model, tokenizer, "elder", **QUICK | {"steps": 1, "rehearse": 0}) as plug:
        edits = plug.edit([ADA, TAM, Edit("Who taught Ada Quill?", "Marrow", "Ada Quill")])
        for edit in edits:
            assert named(plug, edit.subject, edit.prompt)


def test_a_query_says_whom_and_what_it_is_about(plug):
    plug.edit([ADA, TAM, Edit("Who taught Ada Quill?", "Marrow", "Ada Quill")], progress=False)
    born, tam, taught = (record.query for record in plug.method.known.records.values())
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


def test_codes_are_looked_at_where_epsilon_says_so(model, tokenizer):
    for epsilon, deferred in ((9, False), (1, False), (None, False)):
        with memplug.attach(model, tokenizer, "elder", **QUICK | {"epsilon": epsilon}) as plug:
            plug.edit([ADA, TAM], progress=False)
            assert plug.explain(ADA.prompt).deferred == deferred
            # As if the router had learned something else since: no code is near to the edit's any more.
            known = plug.method.known
            for id, record in known.records.items():
                known.records[id] = replace(record, picks=(record.picks + 1) % known.experts.n)
            assert plug.explain(ADA.prompt).deferred == (epsilon == 1)


def test_a_failing_edit_leaves_no_subject(plug, monkeypatch):
    plug.edit(ADA)

    def fail(*_args):
        raise EditError("no")

    monkeypatch.setattr("memplug.methods.elder.learning.train", fail)
    with pytest.raises(EditError):
        plug.edit(TAM)
    retriever = plug.method.scope.retriever
    assert list(retriever.entries) == ["Ada Quill"]
    plug.delete("e1")
    assert not retriever.entries
    assert not retriever.memory.ids()


def test_what_holds_is_not_trained_again(plug):
    plug.edit(ADA)
    method, before = plug.method, learned(plug)
    with method._host.tracker.off():
        records = list(method.known.records.values())
        method._learner.train(method.known, method._learner._batch(([], []), [], [], records))
    assert same(learned(plug), before)


@pytest.mark.parametrize("rehearse", [0, 1])
def test_lost_edits_are_learned_again(model, tokenizer, rehearse):
    given = QUICK | {"rehearse": rehearse, "replay": 0}
    with memplug.attach(model, tokenizer, "elder", **given) as plug:
        plug.edit(ADA)
        for up in plug.method.known.experts.up:
            up.zero_()
        assert answer(model, tokenizer, ADA.prompt) != ADA.target
        plug.edit(TAM)
        assert answer(model, tokenizer, TAM.prompt) == TAM.target
        assert (answer(model, tokenizer, ADA.prompt) == ADA.target) == bool(rehearse)


@pytest.mark.parametrize("rehearse", [0, 64])
def test_what_a_calls_last_batch_undid_is_learned_again(model, tokenizer, monkeypatch, rehearse):
    given = QUICK | {"rehearse": rehearse, "batch_size": 1, "replay": 0}
    train, calls = training.train, []

    def undo(host, upper, experts, config, batch, *advance):
        calls.append(1)
        if len(calls) == 2:  # Tam's batch
            for up in experts.up:
                up.zero_()
        return train(host, upper, experts, config, batch, *advance)

    monkeypatch.setattr("memplug.methods.elder.learning.train", undo)
    with memplug.attach(model, tokenizer, "elder", **given) as plug:
        plug.edit([ADA, TAM], progress=False)
        assert (answer(model, tokenizer, ADA.prompt) == ADA.target) == bool(rehearse)
        assert answer(model, tokenizer, TAM.prompt) == TAM.target


@pytest.mark.parametrize("both", ["Then {off} saw {on}. ", "Then {on} saw {off}. "])
@pytest.mark.parametrize(("off", "on"), [(ADA, ORLO), (ORLO, ADA)])
def test_a_subject_that_is_switched_off_does_not_hide_another(plug, both, off, on):
    given, _ = plug.edit([off, on], progress=False)
    plug.disable(given)
    found = plug.explain(both.format(off=off.subject, on=on.subject) + on.prompt)
    assert (found.deferred, found.recalled.edits[0].prompt) == (False, on.prompt)
    assert plug.explain(off.prompt).deferred


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
    given = QUICK | {"steps": 1, "rehearse": 0}
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
