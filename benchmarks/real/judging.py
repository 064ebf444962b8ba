"""What a generated text is worth: pure functions of text, no model.

*Right*: the new answer stands in the text as whole words, and the old answer does not stand before it.
*Broken*: the text says the same over and over, or it is text that the base model finds very unlikely.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Limits", "answers_at_once", "contains", "distinct", "first", "is_broken", "limits", "right"]

LEAST_UNITS = 8
"""Texts of fewer units are too short to be called repetitive."""

LEAST_TOKENS = 8
"""Texts of fewer tokens have no perplexity worth a judgement."""

FAR = 2.0
"""So many times the base model's 99th percentile is far above it."""

REPETITIVE = 0.3
"""At or above this share of distinct units no text is called repetitive."""


def first(text: str, answer: str) -> tuple[int, int] | None:
    """Where ``answer`` stands in ``text`` as whole words, letter case aside; None where it does not."""
    words = re.escape(" ".join(answer.split())).replace(r"\ ", r"\s+")
    found = re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE)
    return found.span() if found else None


def contains(text: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers stands in the text as whole words."""
    return any(first(text, answer) for answer in answers)


def right(text: str, target: str, old: Iterable[str]) -> bool:
    """Whether the text gives the target and none of the old answers before it.

    An old answer that is a part of the target ("York" in "New York") does not count where it stands there.
    """
    at = first(text, target)
    return at is not None and not contains(text[: at[0]], old)


def answers_at_once(text: str, answers: Iterable[str]) -> bool:
    """Whether the text begins with one of the answers, an article or marks before it aside."""
    start = re.sub(r"^(?:[\W_]+|(?:the|a|an)\b)*", "", text, flags=re.IGNORECASE)
    return any((at := first(start, answer)) is not None and at[0] == 0 for answer in answers)


def distinct(text: str) -> float:
    """Share of distinct units (words in lower case, single digits, single marks) among the text's units.

    Digits and marks count one by one, so that "1000000" and ". . . ." are as repetitive as they look. A text
    of fewer than `LEAST_UNITS` counts as wholly distinct.
    """
    units = re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", text.lower())
    return len(set(units)) / len(units) if len(units) >= LEAST_UNITS else 1.0


class Limits(NamedTuple):
    """From where on a text is broken.

    Attributes:
        distinct: below this share of distinct units.
        perplexity: above this perplexity under the base model.
    """

    distinct: float
    perplexity: float


def limits(texts: Sequence[str], perplexities: Sequence[float]) -> Limits:
    """The limits that follow from the base model's own texts of one kind (same probes, same length).

    Repetitive is what has a share of distinct units below `REPETITIVE` *and* below the base model's first
    percentile, unlikely what has more than `FAR` times the 99th percentile of the base model's perplexities.
    """
    low = _quantile([distinct(text) for text in texts], 0.01)
    return Limits(min(REPETITIVE, low), FAR * _quantile(perplexities, 0.99))


def is_broken(text: str, perplexity: float, limit: Limits) -> bool:
    """Whether the text is repetitive or unlikely; see `limits`."""
    return distinct(text) < limit.distinct or perplexity > limit.perplexity


def _quantile(values: Sequence[float], share: float) -> float:
    """The value with ``share`` of the values below it, the nearest one taken."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]
