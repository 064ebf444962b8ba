"""ELDER asks whom a prompt is about: other subjects are deferred, rephrasings are routed as their edit."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch
from elder_tiny import ADA, ORLO, QUICK, TAM, answer, encode, learned, logits, same
from families import TEXTS, build, lexical

import memplug
from memplug import Edit, EditError
from memplug.methods.elder import learning
from memplug.methods.elder.calibration import within
from memplug.methods.elder.deferral import Deferral
from memplug.methods.elder.training import losses, train_batch

OTHER = "Where was Tam Wickes born?"


@pytest.fixture
def plug(model, tokenizer):
    with memplug.attach(model, tokenizer, "elder", **QUICK) as made:
        yield made


def look(plug, *prompts):
    text = plug.method._host.text
    with plug.paused():
        return plug.method.see(text.batch([text.encode(prompt) for prompt in prompts]))


@pytest.mark.parametrize("subjects", [True, False])
def test_the_same_question_about_somebody_else_is_deferred(model, tokenizer, subjects):
    with memplug.attach(
        model, tokenizer, "elder", **QUICK | {"subjects": subjects, "threshold": 0.0, "epsilon": 100}
    ) as plug:
        base = logits(model, **encode(tokenizer, OTHER))
        plug.edit(ADA)
        assert torch.equal(logits(model, **encode(tokenizer, OTHER)), base) == subjects
        found = plug.explain(OTHER)
        assert found.deferred == subjects
        assert ("names no edited subject" in found.reason) == subjects
        assert answer(model, tokenizer, ADA.prompt) == ADA.target


def test_a_subject_is_recognised_in_its_edits_own_prompts_in_any_model(tokenizer):
    model = build(
        "olmo2", vocab_size=len(tokenizer)
    )  # where a subject stands changes its states beyond likeness
    with memplug.attach(model, tokenizer, "elder", **QUICK | {"steps": 1, "subject_threshold": 0.7}) as plug:
        edits = plug.edit([ADA, TAM, Edit("Who taught Ada Quill?", "Marrow", "Ada Quill")])
        for edit in edits:
            assert "names no edited subject" not in plug.explain(edit.prompt).reason


def test_a_query_says_whom_it_is_about(plug):
    known = plug.method.known
    query = torch.randn(1, known.width // 2, generator=torch.Generator().manual_seed(0))
    ada, tam, nobody = (known.prepare(query, [name])[0] for name in ("Ada Quill", "Tam Wickes", None))
    assert torch.equal(ada, known.prepare(query, ["Ada Quill"])[0])
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(ada, tam, dim=0)) < 0.9
    assert not nobody[known.width // 2 :].any()
    torch.testing.assert_close(ada[: known.width // 2].norm(), ada[known.width // 2 :].norm())


@pytest.mark.parametrize("snap", [True, False])
def test_a_row_in_scope_is_routed_as_its_edit(model, tokenizer, snap):
    given = QUICK | {"snap": snap, "threshold": 0.1, "epsilon": 100}
    with memplug.attach(model, tokenizer, "elder", **given) as plug:
        plug.edit([ADA, TAM], progress=False)
        known = plug.method.known
        seen = look(plug, "Tell me, where was Ada Quill born then?", "Nobody in particular")
        routing, decision = known.decide(seen)
        assert decision.scope.tolist() == [True, False]
        trained = known.experts.route(known.deferral.queries[:1])
        assert torch.equal(routing.weights[:, :1], trained.weights) == snap
        if snap:
            assert torch.equal(routing.picks[:, :1], trained.picks)


def test_comparing_with_some_edits_is_comparing_with_no_others():
    made = Deferral(8, 4, 100, 0.9, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    queries = torch.randn(4, 8, generator=draw)
    picks = torch.rand(2, 4, 4, generator=draw).argsort(-1)[..., :2].sort(-1).values
    made.add([3, 5, 6, 9], queries, picks)
    made.limit(100, 0.1)
    alone = Deferral(8, 4, 100, 0.9, torch.device("cpu"))
    alone.add([5, 9], queries[[1, 3]], picks[:, [1, 3]])
    alone.limit(100, 0.1)
    asked, routed = queries[[3, 0]] + 0.1, picks[:, [3, 0]]
    got = made.among(asked, lambda: routed, [[1, 3], []])
    wanted = alone.decide(asked[:1], routed[:, :1])
    assert got.scope.tolist() == [bool(wanted.scope[0]), False] == [True, False]
    assert got.similar.tolist() == [int(wanted.similar[0]), -1]
    assert got.nearest.tolist() == [int(wanted.nearest[0]), -1]
    assert int(got.distance[0]) == int(wanted.distance[0])
    assert got.similarity[0] == pytest.approx(wanted.similarity[0], abs=2e-3)


def test_what_else_may_be_asked_sets_the_limit():
    made = Deferral(4, 4, 100, 0.9, torch.device("cpu"))
    made.add([0], torch.tensor([[1.0, 0, 0, 1]]), torch.zeros(2, 1, 1, dtype=torch.long))
    angles = np.linspace(0, np.pi / 2, 101)  # cosines from 1 to 0 with the one edit's query
    others = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], 1), dtype=torch.float32)
    epsilon, threshold = within(made, torch.ones(101, dtype=torch.bool), others, 0.5, 8)
    assert epsilon == 12
    inner = (2 + np.cos(np.pi / 4)) / 3  # half of them are below cos 45 degrees: two thirds from there to 1
    assert threshold == pytest.approx((1 + inner) / 2, abs=1e-4)
    few = torch.zeros(101, dtype=torch.bool)
    assert within(made, few, others, 0.5, 8) == (12, 0.9)


def test_a_failing_edit_leaves_no_subject(plug, monkeypatch):
    plug.edit(ADA)

    def fail(*_args):
        raise EditError("no")

    monkeypatch.setattr("memplug.methods.elder.learning.train_batch", fail)
    with pytest.raises(EditError):
        plug.edit(TAM)
    assert list(plug.method.known.subjects.keys) == ["Ada Quill"]
    plug.delete("e1")
    assert not plug.method.known.subjects.keys


def test_rows_chosen_are_rows_made_alone(plug):
    host, learner, known = plug.method._host, plug.method._learner, plug.method.known
    plug.edit([ADA, TAM], progress=False)
    edits = [ADA, Edit("Tam Wickes says at length", "Marrow", "Tam Wickes"), TAM]
    with host.tracker.off():
        rows = learner._rows(known, edits, learner._allocate(known, edits), [])
        every = losses(host, known.experts, 2, rows, known.experts.route(rows.query))
        keep = torch.tensor([True, False, True])
        some = rows.select(keep)
        got = losses(host, known.experts, 2, some, known.experts.route(some.query))
    torch.testing.assert_close(got, every[keep], atol=1e-5, rtol=1e-4)
    assert some.goal.shape[1] == 2
    assert some.batch.ids.shape[1] == int(rows.batch.mask[keep].sum(1).max())


def test_what_holds_is_not_trained_again(plug):
    plug.edit(ADA)
    method, before = plug.method, learned(plug)
    with method._host.tracker.off():
        rows = method.known, [ADA]
        train_batch(method._host, method.known.experts, method.config, 2, method._learner.rows(*rows)[0])
    assert same(learned(plug), before)


@pytest.mark.parametrize("rehearse", [0, 1])
def test_lost_edits_are_learned_again(model, tokenizer, monkeypatch, rehearse):
    given = QUICK | {"rehearse": rehearse, "stop_loss": 0.1}
    with memplug.attach(model, tokenizer, "elder", **given) as plug:
        plug.edit(ADA)
        for up in plug.method.known.experts.up:
            up.zero_()
        assert answer(model, tokenizer, ADA.prompt) != ADA.target
        trained, train = [], learning.train_batch
        monkeypatch.setattr(
            "memplug.methods.elder.learning.train_batch",
            lambda *args: trained.append(len(args[4])) or train(*args),
        )
        plug.edit(TAM)
        assert trained[0] == 1
        assert (len(trained) > 1) == bool(rehearse)
        assert answer(model, tokenizer, TAM.prompt) == TAM.target
        assert (answer(model, tokenizer, ADA.prompt) == ADA.target) == bool(rehearse)


@pytest.mark.parametrize("rehearse", [0, 64])
def test_what_a_calls_last_batch_undid_is_learned_again(model, tokenizer, monkeypatch, rehearse):
    given = QUICK | {"rehearse": rehearse, "stop_loss": 0.1, "batch_size": 1}
    train = learning.train_batch

    def undo(host, experts, config, first, rows, rehearsed):
        again = "Ada" in host.text.tokenizer.decode(rows.batch.ids[0]) and any(up.any() for up in experts.up)
        if not again:
            for up in experts.up:
                up.zero_()
        return train(host, experts, config, first, rows, rehearsed)

    monkeypatch.setattr("memplug.methods.elder.learning.train_batch", undo)
    with memplug.attach(model, tokenizer, "elder", **given) as plug:
        plug.edit([ADA, TAM], progress=False)
        assert (answer(model, tokenizer, ADA.prompt) == ADA.target) == bool(rehearse)
        assert answer(model, tokenizer, TAM.prompt) == TAM.target


@pytest.mark.parametrize("both", ["Then {off} saw {on}. ", "Then {on} saw {off}. "])
@pytest.mark.parametrize(("off", "on"), [(ADA, ORLO), (ORLO, ADA)])
def test_a_subject_that_is_switched_off_does_not_hide_another(model, tokenizer, both, off, on):
    with memplug.attach(model, tokenizer, "elder", **QUICK | {"threshold": 0.0, "epsilon": 100}) as plug:
        given, _ = plug.edit([off, on], progress=False)
        plug.disable(given)
        prompt = both.format(off=off.subject, on=on.subject) + on.prompt
        known, seen = plug.method.known, look(plug, prompt, f"Then {off.subject} left")
        assert known.subjects.find(seen.states, seen.valid, known._about) == [on.subject, off.subject]
        found = plug.explain(prompt)
        assert (found.deferred, found.similar.prompt) == (False, on.prompt)
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
        known = plug.method.known
        for subject in ("Ada Quill", "Tam Wickes"):
            asked = [place.format(s=subject) for place in PLACES]
            seen = look(plug, *asked)
            found = known.subjects.find(seen.states, seen.valid, known._about)
            assert [p for p, name in zip(asked, found, strict=True) if name != subject] == []
        seen = look(plug, "Who taught the Renée’s?", unicodedata.normalize("NFD", "Who taught the Renée's?"))
        assert known.subjects.find(seen.states, seen.valid, known._about) == ["Renée's"] * 2
        seen = look(plug, "Where was Orlo born?", "Nobody in particular")
        assert known.subjects.find(seen.states, seen.valid, known._about) == [None, None]
