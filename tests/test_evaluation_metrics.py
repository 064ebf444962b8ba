"""Every measure against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplug.evaluation.metrics import (
    answer_agreement,
    choose_likeliest,
    choose_per_byte,
    generated_exact,
    generated_start,
    perplexity,
    positionwise_preference,
    retained,
    sequence_preference,
    token_accuracy,
    token_agreement,
    whole_answer,
)
from memplug.evaluation.resampling import bootstrap


def test_token_accuracy_counts_positions():
    assert token_accuracy([5, 9, 7, 1], [5, 6, 7, 8]) == 0.5
    assert token_accuracy([5], [5]) == 1.0


def test_whole_answer_needs_every_token_and_the_stop_only_if_given():
    assert whole_answer([5, 6], [5, 6])
    assert not whole_answer([5, 7], [5, 6])
    assert whole_answer([5, 6], [5, 6], stopped=True)
    assert not whole_answer([5, 6], [5, 6], stopped=False)
    assert not whole_answer([5, 7], [5, 6], stopped=True)


@pytest.mark.parametrize("measure", [token_accuracy, token_agreement, whole_answer])
def test_misaligned_tokens_are_refused(measure):
    with pytest.raises(ValueError, match="2 predictions for 3"):
        measure([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="leave out probes whose target is empty"):
        measure([], [])


def test_token_agreement_ignores_what_is_right():
    # Target would be [1, 2, 3]: both models are wrong at the last position, in the same way.
    assert token_agreement([1, 9, 4], [1, 2, 4]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "target", "exact", "start"),
    [
        ("Lyon", "Lyon", True, True),
        (" Lyon \n", "Lyon", True, True),
        ("Lyon.", "Lyon", False, True),
        ("Lyon, in France", "Lyon", False, True),
        ("Lyonnais", "Lyon", False, False),
        ("In Lyon", "Lyon", False, False),
        ("lyon", "Lyon", False, False),
        ("C++17", "C++", False, True),  # the target does not end in a letter or digit
        ("", "Lyon", False, False),
    ],
)
def test_generated_text_against_target(text, target, exact, start):
    assert generated_exact(text, target) is exact
    assert generated_start(text, target) is start


def test_answer_agreement_is_of_texts():
    assert answer_agreement("Lyon ", "Lyon")
    assert not answer_agreement("Lyon", "Paris")


def test_choices_by_whole_likelihood_and_by_bytes():
    log_probs, answers = [-4.0, -6.0, -9.0], ["no", "yés", "not at all"]
    assert choose_likeliest(log_probs) == 0
    assert choose_likeliest([-1.0, -1.0]) == 0
    # -4/2, -6/4 (é has two bytes), -9/10
    assert choose_per_byte(log_probs, answers) == 2
    assert choose_per_byte(log_probs[:2], answers[:2]) == 1
    with pytest.raises(ValueError, match="nothing to choose from"):
        choose_likeliest([])


def test_retained_is_the_share_of_what_held():
    assert retained([1, 1, 0, 1], [1, 0, 1, 1]) == pytest.approx(2 / 3)
    assert retained([0.5, 1.0], [1.0, 0.25]) == pytest.approx(0.75 / 1.5)
    assert retained([0, 0], [1, 1]) is None
    with pytest.raises(ValueError, match="zip"):
        retained([1], [1, 1])


def test_sequence_preference_is_per_token_mean():
    # Means -1.0 and -1.5, although the new target's sum (-3) is below the true one's (-1.5).
    assert sequence_preference([-1.0, -1.0, -1.0], [-1.5])
    assert not sequence_preference([-2.0], [-1.0, -1.0, -1.0])
    assert not sequence_preference([-1.0], [-1.0])
    with pytest.raises(ValueError, match="the true target has no tokens"):
        sequence_preference([-1.0], [])


def test_positionwise_preference_is_over_the_common_length():
    # Position 1 wins, position 2 is shared (a tie counts as failure), position 3 has no counterpart.
    assert positionwise_preference([-0.1, -0.2, -9.0], [-3.0, -0.2]) == 0.5
    assert positionwise_preference([-0.1], [-3.0, -4.0]) == 1.0
    with pytest.raises(ValueError, match="the new target has no tokens"):
        positionwise_preference([], [-1.0])


def test_the_two_preferences_differ():
    new, true_alone, true_there = [-0.5, -2.0], [-1.0, -1.0], [-1.0, -1.0]
    assert positionwise_preference(new, true_there) == 0.5
    assert not sequence_preference(new, true_alone)


def test_perplexity():
    assert perplexity([math.log(0.5), math.log(0.125)]) == pytest.approx(4.0)
    assert perplexity([0.0, 0.0]) == 1.0
    assert perplexity([-math.inf, 0.0]) == math.inf
    assert perplexity([-1e6]) == math.inf
    with pytest.raises(ValueError, match="no tokens"):
        perplexity([])


def test_bootstrap_of_nothing_is_none():
    assert bootstrap([]) is None


def test_bootstrap_interval_is_that_of_the_binomial():
    values = [1.0] * 60 + [0.0] * 40
    score = bootstrap(values, resamples=4000)
    assert score is not None
    assert score.value == pytest.approx(0.6)
    assert score.n == 100
    # Normal approximation: 0.6 -/+ 1.96 * sqrt(0.6 * 0.4 / 100) = 0.504, 0.696.
    assert score.low == pytest.approx(0.504, abs=0.015)
    assert score.high == pytest.approx(0.696, abs=0.015)
    assert bootstrap(values, resamples=4000) == score
    wider = bootstrap(values, resamples=4000, level=0.99)
    assert wider is not None
    assert wider.low < score.low < score.high < wider.high


def test_bootstrap_in_blocks_covers_every_resample():
    # 300,000 values: three resamples a block, the last block is smaller.
    score = bootstrap([0.0, 1.0] * 150_000, resamples=10)
    assert score is not None
    assert 0.49 < score.low <= score.high < 0.51


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.integers(0, 5))
def test_bootstrap_interval_lies_within_the_values(values, seed):
    score = bootstrap(values, resamples=50, seed=seed)
    assert score is not None
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= score.low <= score.high <= max(values) + slack


def test_bootstrap_takes_infinity_and_refuses_nan():
    score = bootstrap([1.0, math.inf])
    assert score is not None
    assert score.value == math.inf
    with pytest.raises(ValueError, match="value 1 is not a number"):
        bootstrap([0.0, math.nan])


def test_bootstrap_refuses_settings_out_of_range():
    with pytest.raises(ValueError, match="level is 95"):
        bootstrap([1.0], level=95)
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap([1.0], resamples=0)
