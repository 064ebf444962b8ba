"""Numbers as text: short, with a unit, and never more digits than they carry."""

from __future__ import annotations

from collections.abc import Callable

from .gather import Span
from .intervals import Mean

__all__ = ["NONE", "amount", "between", "percent", "ratio", "seconds", "size", "span"]

NONE = "–"
_SIZES = ("B", "kB", "MB", "GB", "TB")


def percent(value: float | None) -> str:
    """A share in percent, without the sign: 0.973 -> 97.3."""
    return NONE if value is None else f"{100 * value:.1f}"


def between(mean: Mean, scale: float = 100, digits: int = 1) -> str:
    """The interval of a mean as low–high; empty where there is none."""
    if mean.low is None or mean.high is None:
        return ""
    return f"{scale * mean.low:.{digits}f}–{scale * mean.high:.{digits}f}"


def seconds(value: float | None) -> str:
    """A duration: 0.0123 -> 12 ms, 4.2 -> 4.2 s, 400 -> 6.7 min, 8000 -> 2.2 h."""
    if value is None:
        return NONE
    for limit, factor, unit in ((0.001, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
        if value < limit:
            return f"{_short(value * factor)} {unit}"
    return f"{_short(value / 3600)} h"


def size(value: float | None) -> str:
    """Bytes, in powers of 1000: 3400 -> 3.4 kB."""
    if value is None:
        return NONE
    at = 0
    while abs(value) >= 1000 and at < len(_SIZES) - 1:
        value, at = value / 1000, at + 1
    return f"{_short(value)} {_SIZES[at]}"


def amount(value: float | None) -> str:
    """A count: 1234567 -> 1.2 M."""
    if value is None:
        return NONE
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= limit:
            return f"{_short(value / (1e3 if unit == ' k' else limit))}{unit}"
    return f"{value:,.0f}"


def ratio(value: float | None) -> str:
    """A ratio to the bare model: 1.234 -> 1.23×."""
    return NONE if value is None else f"{value:.2f}×"


def span(found: Span | None, text: Callable[[float], str]) -> tuple[str, str]:
    """A cost as text, and its range over seeds (empty where the seeds read the same)."""
    if found is None:
        return NONE, ""
    low, high = text(found.low), text(found.high)
    return text(found.value), "" if low == high else f"{low}–{high}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.5 else f"{value:.2g}" if abs(value) < 9.95 else f"{value:.0f}"
