"""Means over seeds and their intervals. Knows nothing of methods, only of scores and rows of answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isclose, sqrt
from typing import Any, NamedTuple

import numpy as np

from ...evaluation.metrics import answer_agreement, generated_exact, generated_start

__all__ = ["Mean", "combine", "over_cases", "right"]

Key = tuple[str, str]
"""A property and a measure, both by their key."""

_AGAINST_BASE = ("specificity", "same_subject")
_RESAMPLES = 1000
_CELLS = 4_000_000  # drawn cases held at once


class Mean(NamedTuple):
    """A mean over seeds.

    Attributes:
        value: the mean of the seeds' means.
        low, high: the bounds of its interval; None where there is none.
        n: units (cases or items) in all seeds together.
        seeds: each seed's own mean.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    seeds: tuple[float, ...]


def combine(scores: Sequence[Mapping[str, Any] | None]) -> Mean | None:
    """The mean of one score a seed; the half-widths of their intervals combine as of independent means.

    A single seed's score stays as it is. Scores that are None or not finite are left out; None if none is
    left.
    """
    found = [s for s in scores if s is not None and s.get("value") is not None]
    if not found:
        return None
    values = tuple(float(s["value"]) for s in found)
    value = sum(values) / len(values)
    n = sum(int(s.get("n") or 0) for s in found)
    if any(s.get("low") is None or s.get("high") is None for s in found):
        return Mean(value, None, None, n, values)
    down = sqrt(sum((s["value"] - s["low"]) ** 2 for s in found)) / len(found)
    up = sqrt(sum((s["high"] - s["value"]) ** 2 for s in found)) / len(found)
    return Mean(value, value - down, value + up, n, values)


def over_cases(
    seeds: Sequence[Sequence[Mapping[str, Any]]], scores: Mapping[Key, Mean], *, level: float = 0.95
) -> dict[Key, Mean]:
    """``scores`` with intervals from a bootstrap over the distinct cases of all seeds.

    A case (an edit's prompt and target) that came up under several seeds is one unit with several values,
    which are not independent. The statistic is the mean of the seeds' means. A score whose mean the
    answers do not give is left as it is: the answers are then not what it was made from.

    Args:
        seeds: for each seed, the rows that the scores were made from.
        scores: the means to give intervals to.
        level: the intervals' coverage.
    """
    keys = list(scores)
    column = {key: j for j, key in enumerate(keys)}
    units: dict[Any, int] = {}
    parts: list[tuple[Any, int, Any]] = []  # unit of each case, column, share of each case in the seed's mean
    means: dict[int, list[float]] = defaultdict(list)
    for number, rows in enumerate(seeds):
        names: dict[int, Any] = {row["case"]: (number, row["case"]) for row in rows}
        names |= {r["case"]: (r["prompt"], r["target"]) for r in rows if r["group"] == "efficacy"}
        unit = np.array([units.setdefault(names[case], len(units)) for case in names], dtype=np.int64)
        place = {case: i for i, case in enumerate(names)}
        asked: dict[int, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        for row in rows:
            for key, value in _values(row):
                j = column.get(key)
                if j is not None:
                    asked[j][0].append(place[row["case"]])
                    asked[j][1].append(value)
        for j, (at, values) in asked.items():
            probes = np.bincount(at, minlength=len(unit))
            has = probes > 0
            share = (np.bincount(at, values, minlength=len(unit))[has] / probes[has]) / has.sum()
            means[j].append(float(share.sum()))
            parts.append((unit[has], j, share))
    if not parts:
        return dict(scores)
    table = np.zeros((2, len(units), len(keys)))
    for at_units, j, share in parts:
        np.add.at(table[0, :, j], at_units, share)
        np.add.at(table[1, :, j], at_units, 1 / len(share))
    low, high = _bootstrap(table[0], table[1], level)
    out = {}
    for key, score in scores.items():
        j = column[key]
        same = len(means[j]) == len(score.seeds) and all(
            isclose(a, b, abs_tol=1e-6) for a, b in zip(means[j], score.seeds, strict=True)
        )
        out[key] = score._replace(low=float(low[j]), high=float(high[j])) if same else score
    return out


def right(row: Mapping[str, Any]) -> bool | None:
    """Whether an answer is as it should be, as generated; teacher forced where nothing was generated.

    What an edit must not change is right if the base model answers the same; the rest if it is the target.
    """
    text, base = row.get("text"), row.get("base_text")
    if row["group"] in _AGAINST_BASE:
        if text is not None and base is not None:
            return answer_agreement(text, base)
        return None if row.get("agreement") is None else row["agreement"] == 1
    if text is not None:
        return generated_exact(text, row["target"])
    return None if row.get("whole") is None else bool(row["whole"])


def _values(row: Mapping[str, Any]) -> list[tuple[Key, float]]:
    """What one answer counts as, under each property and measure that it belongs to."""
    group, text, target = row["group"], row.get("text"), row["target"]
    found: list[tuple[Key, Any]] = []
    against_target = f"{group}_gold" if group in _AGAINST_BASE else group
    found += [((against_target, "tokens"), row.get("tokens")), ((against_target, "whole"), row.get("whole"))]
    if text is not None:
        found.append(((against_target, "generated"), generated_exact(text, target)))
        found.append(((against_target, "starts"), generated_start(text, target)))
    if group in _AGAINST_BASE:
        agreement, base = row.get("agreement"), row.get("base_text")
        found.append(((group, "tokens"), agreement))
        found.append(((group, "whole"), None if agreement is None else agreement == 1))
        if text is not None and base is not None:
            found.append(((group, "generated"), answer_agreement(text, base)))
    if group == "efficacy":
        found.append((("perplexity", ""), row.get("perplexity")))
    return [(key, float(value)) for key, value in found if value is not None]


def _bootstrap(values: Any, weights: Any, level: float) -> tuple[Any, Any]:
    """Bounds for sum(values) / sum(weights) of each column, units (rows) drawn with replacement."""
    units = len(values)
    rng = np.random.default_rng(0)
    means = np.full((_RESAMPLES, values.shape[1]), np.nan)
    step = max(1, _CELLS // units)
    for start in range(0, _RESAMPLES, step):
        count = min(step, _RESAMPLES - start)
        drawn = rng.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units).astype(np.float64)
        below = times @ weights
        np.divide(times @ values, below, out=means[start : start + count], where=below > 0)
    tail = (1 - level) / 2
    with np.errstate(all="ignore"):
        low, high = np.nanquantile(means, [tail, 1 - tail], axis=0, method="nearest")
    return low, high
