"""The calibrated space against its literal formulas, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from memplug.retrieval.calibration import Calibration, Sample, chance_thresholds, whitening
from memplug.retrieval.questions import Metric, Question


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def skewed(count, width, seed=0):
    """States with a few huge dimensions and a mean far from zero, as models have them."""
    scale = torch.logspace(2, -2, width)
    return drawn(count, width, seed=seed) @ torch.linalg.qr(drawn(width, width, seed=9)).Q * scale + 3 * scale


def literal(states, rank):
    """The root by its definition: eigenvectors over the square root of eigenvalue and median eigenvalue."""
    wide = states.double()
    values, vectors = torch.linalg.eigh(torch.cov(wide.T))
    order = values.argsort(descending=True)[:rank]
    ridge = values.sort().values[(len(values) - 1) // 2]
    return wide.mean(0), vectors[:, order] / (values[order] + ridge).sqrt()


@pytest.mark.parametrize("rank", [3, 12])
def test_whitening_is_the_literal_formula(rank):
    states = skewed(500, 12)
    mean, root = whitening(states, rank)
    want_mean, want = literal(states, rank)
    assert root.shape == (12, rank)
    assert torch.allclose(mean.double(), want_mean, rtol=1e-5)
    # Directions have no sign of their own: what counts is the products of what comes out.
    one, other = (states.double() - mean) @ root.double(), (states.double() - want_mean) @ want
    assert torch.allclose(one @ one.T, other @ other.T, atol=1e-3)


def test_large_directions_have_unit_variance_and_small_ones_are_not_blown_up():
    scale = torch.tensor([100.0, 50.0, 20.0, 10.0, 1.0, 1.0, 1.0, 0.01, 0.001])
    states = drawn(4000, 9) * scale + 7
    mean, root = whitening(states, 9)
    variance = ((states - mean) @ root).var(0).flip(0)
    assert torch.allclose(variance[:4], torch.ones(4), atol=0.02)
    assert torch.allclose(variance[4:7], torch.full((3,), 0.5), atol=0.05)  # as large as the ridge
    assert float(variance[7:].max()) < 2e-4


def test_a_sample_smaller_than_the_width_or_without_spread_is_taken():
    few = skewed(5, 12)
    mean, root = whitening(few, 12)
    assert bool(torch.isfinite(root).all())
    assert float((((few - mean) @ root)[:, :-4]).abs().max()) < 1e-2  # nothing known of these
    mean, root = whitening(torch.ones(4, 6), 6)
    assert bool(torch.isfinite(root).all())
    assert torch.equal(mean, torch.ones(6))


def made(width=8, rank=5, layers=(1, 3, 4)):
    tables = [whitening(skewed(200, width, seed), rank) for seed in (1, 2, 3, 4)]
    mean, root = torch.stack([m for m, _ in tables[:2]]), torch.stack([r for _, r in tables[:2]])
    first_mean, first_root = torch.stack([m for m, _ in tables[2:]]), torch.stack([r for _, r in tables[2:]])
    along = torch.linalg.qr(drawn(2 * width, 3, seed=6).view(2, width, 3))[0]
    metric = Metric(drawn(2, width, seed=7), along, torch.full((2, 3), 0.5), torch.tensor([2.0, 3.0]))
    vectors = F.normalize(drawn(3, width, seed=5), dim=-1).half().float()
    neutral, labels = vectors.expand(2, 3, width), torch.tensor([0, 0, 1])
    spaces = (mean, root, first_mean, first_root)
    return Calibration(layers, *spaces, 0.31, 0.25, metric, (0.62, 0.71), 0.9, neutral, labels)


def test_units_of_a_text_and_of_its_first_token():
    calibration, states = made(), skewed(6, 8, seed=7).view(2, 3, 8)
    begins = torch.zeros(2, 3, dtype=torch.bool)
    begins[1, 0] = True
    for index in (0, 1):
        plain = calibration.apply(index, states)
        want = F.normalize(
            (states.double() - calibration.mean[index]) @ calibration.root[index].double(), dim=-1
        )
        assert torch.allclose(plain.double(), want, atol=1e-5)
        given = calibration.apply(index, states.bfloat16().float(), begins)
        own = (states[1, 0].bfloat16().double() - calibration.first_mean[index]) @ calibration.first_root[
            index
        ].double()
        assert torch.allclose(given[1, 0].double(), F.normalize(own, dim=-1), atol=1e-5)
        rest = calibration.apply(index, states.bfloat16().float())
        assert torch.equal(given[~begins], rest[~begins])
        assert torch.allclose(given.norm(dim=-1), torch.ones(2, 3), atol=1e-5)


def test_the_same_state_gives_the_same_bits_whatever_dtype_or_company():
    calibration, states = made(), skewed(6, 8, seed=7).view(2, 3, 8).bfloat16()
    both = calibration.apply(0, states)
    assert both.dtype == torch.float32
    assert torch.equal(both, calibration.apply(0, states.float()))
    assert torch.allclose(both[1:], calibration.apply(0, states[1:]), atol=1e-6)


def test_what_is_saved_comes_back_to_the_bit():
    calibration = made()
    again = Calibration.of(calibration.tensors(), calibration.layers, 8, 5)
    assert (again.threshold, again.several, again.relation, again.same) == (0.31, 0.25, (0.62, 0.71), 0.9)
    assert again.layers == (1, 3, 4)
    for name, tensor in calibration.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    moved = calibration.to(torch.device("cpu"))
    assert torch.equal(moved.apply(0, torch.ones(1, 1, 8)), again.apply(0, torch.ones(1, 1, 8)))


NAMES = [
    "mean",
    "root",
    "first_mean",
    "first_root",
    "metric.mean",
    "metric.directions",
    "metric.shrink",
    "metric.size",
    "limits",
]
OTHERS = ["neutral", "labels"]


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_damage_is_named(name):
    tensors = made().tensors()
    for other in (tensors[name][..., :-1] if tensors[name].ndim else None, tensors[name][None]):
        if other is not None:
            with pytest.raises(ValueError, match=r"the saved calibration is .*(metric)?\.?\w+"):
                Calibration.of(tensors | {name: other}, (1, 3, 4), 8, 5)
    del tensors[name]
    with pytest.raises(ValueError, match=f"'{name}' is missing"):
        Calibration.of(tensors, (1, 3, 4), 8, 5)


def test_another_model_is_refused():
    tensors = made().tensors()
    for layers, width in (((1, 2, 3, 4), 8), ((1, 3, 4), 9)):
        with pytest.raises(ValueError, match=f"this one has width {width} and {len(layers) - 1} layers"):
            Calibration.of(tensors, layers, width, 5)


def spoken(words, texts, width=24, layers=2, seed=0):
    """A sample whose tokens are random units."""
    units = F.normalize(drawn(layers, len(words), width, seed=seed), dim=-1)
    return units, Sample(units, units, torch.tensor(texts), words)


def test_the_threshold_is_exceeded_at_the_rate_that_was_asked_for():
    words = [f"word{'abcdefgh'[i % 8]}{'xyz'[i % 3]}" for i in range(600)]
    words = ["".join(c for c in word if c.isalpha()) for word in words]
    units, sample = spoken(words, [i // 50 for i in range(600)])
    for quorum in (1, 2):
        one, several = chance_thresholds(units, sample, quorum, 0.32, seed=0)  # 0.5 % of the tokens, and 32
        cosines = torch.einsum("nik,ntk->nit", units, units).sort(0, descending=True).values[quorum - 1]
        word = torch.tensor([sorted(set(words)).index(w) for w in words])
        other = (word[:, None] != word) & (sample.text[:, None] != sample.text)
        for limit, rate in ((one, 0.005), (several, 0.32)):
            share = float((cosines[other] > limit).float().mean())
            assert share == pytest.approx(rate, rel=0.1)  # of all tokens; 400 of them were tried


def test_a_known_order_gives_a_known_threshold():
    """Two layers, three texts of one word each: cosines by hand."""
    angle = torch.tensor([[0.0, 0.5, 1.0], [0.0, 1.2, 0.3]])
    units = torch.stack([angle.cos(), angle.sin()], -1)
    sample = Sample(units, units, torch.tensor([0, 1, 2]), ["alpha", "gamma", "delta"])
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosines = [(angle[:, i] - angle[:, j]).cos() for i, j in pairs]
    most, both = max(float(c.max()) for c in cosines), max(float(c.min()) for c in cosines)
    assert chance_thresholds(units, sample, 1, 1e-9, seed=0)[0] == pytest.approx(most, abs=1e-6)
    assert chance_thresholds(units, sample, 2, 1e-9, seed=0)[0] == pytest.approx(both, abs=1e-6)
    least = min(float(c.min()) for c in cosines)
    assert chance_thresholds(units, sample, 2, 1e9, seed=0)[0] == pytest.approx(least, abs=1e-6)


def test_the_same_word_and_the_same_text_do_not_count():
    units = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0]]])
    sample = Sample(units, units, torch.tensor([0, 0, 1, 1]), ["alpha", "gamma", "delta", "alpha"])
    # alpha meets gamma in its own text, and alpha in the other: alpha-delta (0.6) and gamma-alpha (1) stay.
    assert chance_thresholds(units, sample, 1, 1e-9, seed=0) == (1.0, 1.0)
    one = Sample(units, units, torch.tensor([0, 0, 1, 1]), ["alpha", "alpha", "delta", "alpha"])
    assert chance_thresholds(units, one, 1, 1e-9, seed=0)[0] == pytest.approx(0.6, abs=1e-6)
    alone = Sample(units, units, torch.zeros(4, dtype=torch.long), ["alpha", "gamma", "delta", "alpha"])
    assert chance_thresholds(units, alone, 1, 1e-9, seed=0) == (0.5, 0.5)  # nothing to compare


def test_only_words_play_the_part_of_a_subject():
    units = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [1.0, 0.0]]])
    sample = Sample(units, units, torch.tensor([0, 1, 2]), [".", "delta", ","])
    assert chance_thresholds(units, sample, 1, 1e-9, seed=0)[0] == pytest.approx(0.8, abs=1e-6)
    marks = Sample(units, units, torch.tensor([0, 1, 2]), [".", "12", ","])  # no word at all: all do
    assert chance_thresholds(units, marks, 1, 1e-9, seed=0) == (1.0, 1.0)


def test_each_kind_has_its_limit():
    calibration = made()
    assert [calibration.limit(chat, "open") for chat in (False, True)] == [0.62, 0.71]
    assert {calibration.limit(chat, "aside") for chat in (False, True)} == {0.9}
    assert [calibration.limit(chat, "due") for chat in (False, True)] == [0.31, 0.355]  # half


def test_what_resembles_another_question_more_is_asked_for_less():
    """Three questions along the axes, two wordings each; an edit asks for the first."""
    axes = torch.eye(4)
    neutral = torch.stack([axes[i // 2] for i in range(6)]).expand(2, 6, 4)
    calibration = replace(made(), neutral=neutral, labels=torch.tensor([0, 0, 1, 1, 2, 2]), same=0.6)
    own = (Question(F.normalize(axes[0] + 0.5 * axes[3], dim=0), False),)

    def like(*parts):
        return Question(F.normalize(sum(w * axes[i] for i, w in parts), dim=0), False)

    assert calibration.matched(own) == 0
    assert calibration.matched((like((3, 1.0)),)) is None
    assert calibration.matched(()) is None
    asked = like((0, 0.8), (3, 0.6))
    cosine = float(own[0].vector @ asked.vector)
    assert calibration.likeness(own, None, asked) == pytest.approx(cosine, abs=1e-6)
    near = like((0, 1.0))  # a wording of what the edit asks is nearer than its own prompt
    assert calibration.likeness(own, 0, near) == pytest.approx(1.0, abs=1e-6)
    assert calibration.likeness(own, None, near) < 0.9
    both = like((0, 0.6), (1, 0.8))
    assert calibration.likeness(own, 0, both) == pytest.approx(0.6 - (0.8 - 0.6), abs=1e-6)
    assert calibration.likeness(own, 0, both._replace(chat=True)) == -1.0  # it is not asked for in chat


def test_a_question_that_is_not_finished_is_not_yet_asked():
    axes = torch.eye(4)
    calibration = replace(made(), neutral=torch.zeros(1, 1, 4), labels=torch.tensor([0]))
    begun = Question(axes[0], False, asks=False)
    own = (Question(F.normalize(axes[0] + axes[1], dim=0), False), begun)
    assert calibration.likeness(own, None, own[0]) == pytest.approx(1.0, abs=1e-6)
    assert calibration.likeness(own, None, begun) == pytest.approx(2 * 0.5**0.5 - 1, abs=1e-6)
    assert calibration.likeness(own, None, begun, due=True) == pytest.approx(0.5**0.5, abs=1e-6)
    assert calibration.likeness((begun,), None, begun) == -1.0
    assert calibration.matched((begun,)) is None
