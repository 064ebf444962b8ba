"""Numbers as text: short, with a unit, and never more digits than they carry."""

from __future__ import annotations

__all__ = ["NONE", "amount", "decimal", "percent", "ratio", "seconds", "size", "whole_percent"]

NONE = "–"


def percent(value: float) -> str:
    """A share in percent, without the sign: 0.973 -> 97.3."""
    return f"{100 * value:.1f}"


def whole_percent(value: float) -> str:
    """The same without decimals: 0.973 -> 97."""
    return f"{100 * value:.0f}"


def decimal(value: float) -> str:
    """A plain number: 12.345 -> 12.35, 123456.7 -> 1.2e+05."""
    return f"{value:.2f}" if value < 1e4 else f"{value:.1e}"


def seconds(value: float) -> str:
    """A duration: 0.0123 -> 12 ms, 4.2 -> 4.2 s, 400 -> 6.7 min, 8000 -> 2.2 h."""
    for limit, factor, unit in ((0.001, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
        if value < limit:
            return f"{_short(value * factor)} {unit}"
    return f"{_short(value / 3600)} h"


def size(value: float) -> str:
    """Bytes, in powers of 1000: 3400 -> 3.4 kB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{_short(value)} {unit}"
        value /= 1000
    return f"{_short(value)} TB"


def amount(value: float) -> str:
    """A count: 1234567 -> 1.2 M."""
    for least, scale, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{_short(value / scale)} {unit}"
    return f"{value:,.0f}"


def ratio(value: float) -> str:
    """A ratio to the bare model: 1.234 -> 1.23×."""
    return f"{value:.2f}×"


def _short(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 9.95 else f"{value:.0f}"
