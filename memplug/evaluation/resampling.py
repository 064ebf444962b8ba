"""Percentile bootstrap intervals (Efron, 1979). Knows nothing about models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .metrics import Score

__all__ = ["bootstrap", "bootstrap_ratio"]


def bootstrap(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Score | None:
    """The mean of ``values`` and its percentile bootstrap interval (Efron, 1979); None without values.

    The units are drawn with replacement, so dependent values (several probes of a case) have to be
    averaged to one value a unit first. The interval of n equal values has no width, whatever n is:
    1.00 of 3 cases is no proof of 1.00.

    Args:
        values: one number a unit; infinities give infinite bounds.
        level: the interval's coverage, between 0 and 1.
        resamples: how many times the units are drawn.
        seed: of the generator that draws; the same values and seed give the same bounds.

    Raises:
        ValueError: a value is NaN, or ``level`` or ``resamples`` is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; it must lie between 0 and 1, 0.95 for a 95 % interval")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples!r}; it must be at least 1, 1000 is usual")
    if len(values) == 0:
        return None
    data = np.asarray(values, dtype=np.float64)
    if np.isnan(data).any():
        raise ValueError(f"value {int(np.isnan(data).argmax())} is not a number; leave that unit out")
    column, ones = data[:, None], np.ones((len(data), 1))
    (low,), (high,) = bootstrap_ratio(column, ones, level=level, resamples=resamples, seed=seed)
    return Score(float(data.mean()), float(low), float(high), len(data))


def bootstrap_ratio(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap bounds (low, high), each [K], of sum(values) / sum(weights) of each column.

    Args:
        values, weights: [N,K]; the N units (rows) are drawn with replacement, all columns of one together.
        level, resamples, seed: as for `bootstrap`.
    """
    units, rng = len(values), np.random.default_rng(seed)
    means = np.full((resamples, values.shape[1]), np.nan)
    finite = np.where(np.isinf(values), 0.0, values)
    endless = [(sign, values == sign) for sign in (np.inf, -np.inf) if (values == sign).any()]
    step = max(1, 1_000_000 // units)  # so that the drawn indices take 8 MB at most
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units).astype(np.float64)
        weight, block = times @ weights, means[start : start + count]
        np.divide(times @ finite, weight, out=block, where=weight > 0)
        for sign, where in endless:
            block[times @ where > 0] = sign
    tail = (1 - level) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail], axis=0, method="nearest")
    return low, high
