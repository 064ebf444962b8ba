"""How alike two questions are: by hand, and what is saved of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from memplug.retrieval.questions import Metric, Question, likeness, metric, packed, told, unpacked
from memplug.retrieval.relations import wordings


def words(count, seed, width=6):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def literal(vectors, labels, ridge=0.1):
    """(S + r)^-1/2 with S the covariance within groups and r a tenth of its mean variance, in float64."""
    vectors = vectors.double()
    groups = [[i for i, one in enumerate(labels) if one == label] for label in dict.fromkeys(labels)]
    apart = torch.cat([vectors[some] - vectors[some].mean(0) for some in groups if len(some) > 1])
    within = apart.T @ apart / len(apart)
    within += ridge * within.diagonal().mean() * torch.eye(len(within), dtype=torch.float64)
    values, along = torch.linalg.eigh(within)
    return along @ torch.diag(values.rsqrt()) @ along.T


def test_it_is_the_inverse_root_of_the_covariance_within_questions():
    labels = [0, 0, 0, 1, 1, 2, 2, 2, 3]
    states = [words(3, seed) for seed in range(len(labels))]
    made = metric([states, states], labels, 6)
    vectors = torch.stack([one.mean(0) for one in states])
    root = literal(vectors, labels)
    mean = vectors.mean(0).double()
    for one in (words(4, 90), words(1, 91)):
        expected = F.normalize((one.double().mean(0) - mean) @ root, dim=0)
        found = made.question(one, False)
        assert torch.allclose(found.vector.double(), expected, atol=1e-4)
        assert torch.allclose(found.vector, made.question(one, True).vector)
    one, other = made.question(words(4, 90), False), made.question(words(1, 91), False)
    assert likeness(one, other) == pytest.approx(float(one.vector @ other.vector), abs=1e-6)


def test_fewer_questions_than_dimensions_leave_the_rest_of_space_as_it_is():
    labels = [0, 0, 1, 1]
    states = [words(2, seed, 40) for seed in range(4)]
    made = metric([states, states], labels, 128)
    vectors = torch.stack([one.mean(0) for one in states])
    expected = (words(3, 9, 40).double().mean(0) - vectors.mean(0).double()) @ literal(vectors, labels)
    found = made.question(words(3, 9, 40), False).vector.double()
    assert torch.allclose(found, F.normalize(expected, dim=0), atol=1e-4)
    assert made.directions.shape[2] <= 4


def test_what_differs_within_questions_counts_less():
    """Wordings vary along one axis; questions differ in the others."""
    labels = [i // 4 for i in range(40)]
    states = [words(1, label) * torch.tensor([0.0, 1, 1, 1, 1, 1]) for label in labels]
    states = [one + torch.tensor([5.0, 0, 0, 0, 0, 0]) * words(1, 100 + i) for i, one in enumerate(states)]
    made = metric([states, states], labels, 6)
    asked = torch.stack([made.question(one, False).vector for one in states])
    raw = F.normalize(torch.cat(states), dim=-1)
    same = torch.tensor([[a == b for b in labels] for a in labels]) & ~torch.eye(40, dtype=torch.bool)
    apart = torch.tensor([[a != b for b in labels] for a in labels])
    gaps = [float((one @ one.T)[same].mean() - (one @ one.T)[apart].mean()) for one in (asked, raw)]
    assert gaps[0] > 0.7 > 0.3 > gaps[1]


def test_a_sink_counts_no_more_than_a_large_state():
    labels = [0, 0, 1, 1, 2, 2]
    states = [words(3, seed) for seed in range(6)]
    made = metric([states, states], labels, 6)
    usual = words(5, 50)
    for factor in (1e2, 1e6):
        sink = torch.cat([usual, factor * words(1, 51)])
        assert likeness(made.question(usual, False), made.question(sink, False)) > 0.5
    assert torch.allclose(
        made.question(torch.cat([usual, 1e6 * words(1, 51)]), False).vector,
        made.question(torch.cat([usual, 1e7 * words(1, 51)]), False).vector,
        atol=1e-3,
    )


def test_no_words():
    made = metric([[words(2, 1), words(0, 1), words(1, 2)]] * 2, [0, 0, 0], 6)
    none, one = made.question(words(0, 1), True), made.question(words(2, 1), True)
    assert likeness(none, none) == 1.0
    assert likeness(one, one) == pytest.approx(1.0, abs=1e-5)
    assert likeness(one, none) == likeness(none, one) == 0.0


def test_the_first_token_of_a_text_says_nothing_where_there_is_another():
    assert told([0, 1, 4]) == [1, 4]
    assert told(range(3, 5)) == [3, 4]
    assert told([0]) == [0]
    assert told([]) == []


def test_what_is_saved_comes_back_and_damage_is_named():
    asked = [Question(F.normalize(words(1, seed)[0], dim=0), bool(seed % 2), seed != 2) for seed in range(3)]
    tensors = packed(asked, "q.")
    again = unpacked(tensors, "q.", 6)
    assert [(q.chat, q.asks) for q in again] == [(q.chat, q.asks) for q in asked]
    assert all(torch.equal(a.vector, b.vector.half().float()) for a, b in zip(again, asked, strict=True))
    assert unpacked(packed([], "q."), "q.", 6) == []
    for name in tensors:
        with pytest.raises(ValueError, match=f"'{name}' is missing"):
            unpacked({n: t for n, t in tensors.items() if n != name}, "q.", 6)
    with pytest.raises(ValueError, match=r"q\.vectors"):
        unpacked(tensors, "q.", 7)
    made = metric([[words(3, seed) for seed in range(4)]] * 2, [0, 0, 1, 1], 6)
    saved = made.tensors("m.")
    back = Metric.of(saved, "m.", 6)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in back.tensors("m.").items())
    for name in saved:
        with pytest.raises(ValueError, match=f"'{name}' is missing"):
            Metric.of({n: t for n, t in saved.items() if n != name}, "m.", 6)


def test_each_neutral_question_is_asked_in_several_ways_and_no_wording_twice():
    known = wordings()
    assert len({one.text for one in known}) >= len(known) - 8  # a few kinds share one
    assert all(one.text.count("{s}") == 1 for one in known)
    assert all(one.name in one.about(one.name) and one.name not in one.text for one in known)
    asked = {(one.kind, one.relation) for one in known}
    assert len(asked) > 100
    assert all(sum((one.kind, one.relation) == each for one in known) >= 2 for each in asked)
    assert 0.3 < sum(one.open for one in known) / len(known) < 0.8
