"""The measures, one pure function each, every variant under its own name.

Numbers of different measures are on different scales and are never to be mixed in one column: a
language model that answers nothing right in full can still get a third of the tokens right when it is fed
the right beginning. Knows nothing about models: token ids, log-probabilities and texts come in.

Symbols: y_1..y_n the target's tokens, x the prompt, p the model; a_i = argmax p(. | x, y_<i), which is
what the model puts at position i when it is *teacher forced*, that is, fed the target's own beginning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "Score",
    "answer_agreement",
    "choose_likeliest",
    "choose_per_byte",
    "generated_exact",
    "generated_start",
    "perplexity",
    "positionwise_preference",
    "retained",
    "sequence_preference",
    "token_accuracy",
    "token_agreement",
    "whole_answer",
]


class Score(NamedTuple):
    """A mean with its confidence interval.

    Attributes:
        value: the mean over ``n`` units.
        low, high: the bounds of the interval.
        n: the number of units (cases, where a case's probes are averaged first).
    """

    value: float
    low: float
    high: float
    n: int


class Judged(dict[str, Score]):
    """Scores by measure, and what they were made from.

    Attributes:
        answers: one plain dict a question, as it was answered.
    """

    def __init__(self, scores: Mapping[str, Score], answers: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(scores)
        self.answers = [dict(answer) for answer in answers]


def token_accuracy(predicted: Sequence[int], target: Sequence[int]) -> float:
    """Share of target tokens that are the model's first choice under teacher forcing: mean_i [a_i = y_i].

    Efficacy and generalization as computed by MEND, MALMEN, RLEdit, HiEdit and LLP. It gives credit for
    tokens that any fluent model gets right once it is fed the beginning, so base models start at a
    quarter to a third on ZsRE.

    Raises:
        ValueError: no tokens, or not one prediction a target token.
    """
    _check_aligned(predicted, target, "target")
    return sum(a == y for a, y in zip(predicted, target, strict=True)) / len(target)


def whole_answer(predicted: Sequence[int], target: Sequence[int], *, stopped: bool | None = None) -> bool:
    """Whether every target token is the model's first choice under teacher forcing: prod_i [a_i = y_i].

    The exact match of ELDER, GRACE and MELO in its teacher-forced form. Equals "greedy decoding begins
    with the target's tokens" for a model that answers the same with and without the fed beginning.

    Args:
        predicted: a_1..a_n.
        target: y_1..y_n.
        stopped: whether the first choice after y_n is an end token; given, it must hold too.

    Raises:
        ValueError: as for `token_accuracy`.
    """
    _check_aligned(predicted, target, "target")
    return list(predicted) == list(target) and stopped is not False


def token_agreement(predicted: Sequence[int], base_predicted: Sequence[int]) -> float:
    """Share of positions where edited and base model have the same first choice: mean_i [a_i = a_i^base].

    Locality as computed by LLP (both models teacher forced on the same text; whether the text is right
    plays no role), so the base model has 1 by definition.

    Raises:
        ValueError: no tokens, or sequences of different length.
    """
    _check_aligned(predicted, base_predicted, "base token")
    return token_accuracy(predicted, base_predicted)


def generated_exact(text: str, target: str) -> bool:
    """Whether the model's own answer, decoded greedily until it stopped by itself, is the target.

    Blanks at both ends are taken off, nothing else is normalised. A model that goes on after the
    answer fails here; see `generated_start`.
    """
    return text.strip() == target.strip()


def generated_start(text: str, target: str) -> bool:
    """Whether the model's own answer begins with the target, and the target's last word ends there.

    For models that were never taught to stop after an answer. "Lyonnais" does not begin with "Lyon".
    """
    text, target = text.strip(), target.strip()
    if not target or not text.startswith(target):
        return False
    following = text[len(target) : len(target) + 1]
    return not (target[-1].isalnum() and following.isalnum())


def answer_agreement(text: str, base_text: str) -> bool:
    """Whether edited and base model generate the same text, blanks at both ends aside."""
    return text.strip() == base_text.strip()


def sequence_preference(new_log_probs: Sequence[float], true_log_probs: Sequence[float]) -> bool:
    """Whether the new target is likelier per token than the true one: mean log p(new) > mean log p(true).

    CounterFact success as ROME and MEMIT compute it (their "efficacy score", "paraphrase score"; for
    neighbourhood prompts exchange the two arguments). Each target is teacher forced on its own beginning;
    log-likelihoods are divided by the target's number of tokens; a tie is no success.

    Args:
        new_log_probs: log p(y_i | x, y_<i) of the new target, nats.
        true_log_probs: the same of the true target.

    Raises:
        ValueError: one of the two is empty.
    """
    return _mean(new_log_probs, "new") > _mean(true_log_probs, "true")


def positionwise_preference(new_log_probs: Sequence[float], true_log_probs_there: Sequence[float]) -> float:
    """Share of positions where the new target's token outscores the true target's.

    CounterFact success as RLEdit and HiEdit compute it: position by position over the common length
    m = min(n_new, n_true), both tokens scored after the *new* target's beginning,
    1/m sum_{i<=m} [p(new_i | x, new_<i) > p(true_i | x, new_<i)]. Tokens that both targets share count
    as failures, and what is longer than the other is left out. Not comparable with `sequence_preference`.

    Args:
        new_log_probs: log p(new_i | x, new_<i), nats (or logits of one position: only the order counts).
        true_log_probs_there: log p(true_i | x, new_<i).

    Raises:
        ValueError: one of the two is empty.
    """
    _mean(new_log_probs, "new"), _mean(true_log_probs_there, "true")
    pairs = list(zip(new_log_probs, true_log_probs_there, strict=False))
    return sum(new > true for new, true in pairs) / len(pairs)


def choose_likeliest(log_probs: Sequence[float]) -> int:
    """Index of the likeliest of several answers: argmax_c log p(c | x), with log p(c | x) = sum_i log p(c_i).

    "acc" of the Language Model Evaluation Harness, for answers that are much alike in length (labels).
    The first of equal ones.

    Args:
        log_probs: log-likelihood of each whole answer, nats.

    Raises:
        ValueError: there is none.
    """
    if len(log_probs) == 0:
        raise ValueError("there is nothing to choose from; give at least one answer")
    return max(range(len(log_probs)), key=lambda i: log_probs[i])


def choose_per_byte(log_probs: Sequence[float], answers: Sequence[str]) -> int:
    """Index of the likeliest of several answers for its length: argmax_c log p(c | x) / bytes(c).

    "acc_norm" of the Language Model Evaluation Harness, for answers of different length; bytes of the
    UTF-8 text, so that tokenizers are comparable.

    Raises:
        ValueError: as for `choose_likeliest`, or not one answer each.
    """
    pairs = zip(log_probs, answers, strict=True)
    return choose_likeliest([score / max(1, len(answer.encode())) for score, answer in pairs])


def retained(before: Sequence[float], after: Sequence[float]) -> float | None:
    """Share of what once held that still holds: sum_i min(before_i, after_i) / sum_i before_i.

    Edited retention where ``before`` is each edit's score right after it was made and ``after`` its score
    once all edits are made; general retention where ``before`` is the base model's. None where nothing
    held in the first place, so that a method that never learned does not pass for one that forgets nothing.

    Args:
        before, after: one value in [0, 1] a unit.

    Raises:
        ValueError: not one of each.
    """
    total = sum(before)
    kept = sum(min(pair) for pair in zip(before, after, strict=True))
    return kept / total if total else None


def perplexity(log_probs: Sequence[float]) -> float:
    """exp of the target's mean negative log-likelihood: exp(-1/n sum_i log p(y_i | x, y_<i)).

    LLP's measure for hallucination edits; a data set's figure is the arithmetic mean over its samples.
    Overflow gives infinity.

    Raises:
        ValueError: no tokens.
    """
    try:
        return math.exp(-_mean(log_probs, "target"))
    except OverflowError:
        return math.inf


def _check_aligned(predicted: Sequence[int], target: Sequence[int], what: str) -> None:
    if len(target) == 0:
        raise ValueError(f"no {what}s; leave out probes whose target is empty")
    if len(predicted) != len(target):
        raise ValueError(f"{len(predicted)} predictions for {len(target)} {what}s; give one prediction each")


def _mean(log_probs: Sequence[float], what: str) -> float:
    if len(log_probs) == 0:
        raise ValueError(f"the {what} target has no tokens; leave such a sample out")
    return sum(log_probs) / len(log_probs)
