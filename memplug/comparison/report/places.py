"""Where things go in a figure: ticks, labels that do not overlap, text that fits its room."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

__all__ = ["arrange", "clip", "extent", "log_ticks", "spread", "ticks", "width"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_AROUND = [(1, 0), (-1, 0), (1, -0.8), (-1, -0.8), (1, 0.8), (-1, 0.8), (0, -1.2), (0, 1.2)]
_NARROW, _WIDE = 7.1, 13.0  # mean width of a 13-unit character; the wide ones are Chinese, Japanese, Korean


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart, within bounds if there is room; the squared shifts sum to the least.

    With z_i = y_i - i gap in the order of the wanted positions, the gaps ask for a z that never falls:
    isotonic regression, solved by pooling adjacent violators.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []  # mean and length
    for place, i in enumerate(order):
        mean, length = wanted[i] - place * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, length = (mean * length + before * count) / (length + count), length + count
        blocks.append((mean, length))
    level = [mean for mean, length in blocks for _ in range(length)]
    top = max(low, high - (len(wanted) - 1) * gap)
    placed = [0.0] * len(wanted)
    for place, i in enumerate(order):
        placed[i] = min(max(level[place], low), top) + place * gap
    return placed


def arrange(
    spots: Sequence[tuple[float, float]], widths: Sequence[float], height: float, bounds: Box
) -> list[tuple[float, float]]:
    """Left upper corners for labels beside their spots, off each other and off all spots where there is room.

    Greedy: each label in turn takes the place with the least overlap, of those the nearest.

    Args:
        spots: the points to label; y grows downwards.
        widths: of the labels.
        height: of all labels.
        bounds: left, top, right and bottom of the room.
    """
    dots = [(x - 7, y - 7, x + 7, y + 7) for x, y in spots]
    taken: list[Box] = []
    corners = []
    for (x, y), width in zip(spots, widths, strict=True):
        best, least = (x + 9, y - height / 2), math.inf
        for away in (9, 16, 26, 38, 52, 70):
            for dx, dy in _AROUND:
                left = x + dx * away - (width if dx < 0 else width / 2 if dx == 0 else 0)
                box = (left, y + dy * away - height / 2, left + width, y + dy * away + height / 2)
                outside = max(
                    0.0, bounds[0] - box[0], bounds[1] - box[1], box[2] - bounds[2], box[3] - bounds[3]
                )
                cost = 50 * outside + away + 2 * abs(dy)
                cost += sum(_shared(box, other) for other in (*dots, *taken))
                if cost < least:
                    best, least = (box[0], box[1]), cost
        corners.append(best)
        taken.append((best[0], best[1], best[0] + width, best[1] + height))
    return corners


def _shared(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def extent(values: Sequence[float], least: float = 1.0) -> tuple[float, float]:
    """The lowest and the highest value, at least ``least`` apart."""
    low, high = min(values), max(values)
    missing = max(0.0, least - (high - low)) / 2
    return low - missing, high + missing


def ticks(low: float, high: float, count: int) -> list[int]:
    """At most about ``count`` round whole numbers within the bounds; the lower bound if there are none."""
    wanted = max(1.0, (high - low) / count)
    power = 10 ** math.floor(math.log10(wanted))
    step = next(
        int(power * f) for f in (1, 2, 2.5, 5, 10) if power * f >= wanted and power * f == int(power * f)
    )
    found = list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))
    return found or [round(low)]


def log_ticks(low: float, high: float) -> list[float]:
    """Decimal logarithms of two to five round numbers whose logarithms lie within the bounds."""
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        powers = range(math.floor(low), math.ceil(high) + 1)
        found = [math.log10(d) + p for p in powers for d in digits]
        found = [v for v in found if low - 1e-9 <= v <= high + 1e-9]
        if len(found) >= 2:
            return found[:: math.ceil(len(found) / 5)]
    return [(low + high) / 2]


def clip(text: str, room: float) -> str:
    """The text if it fits, else its beginning and its end, which tell variants of a method apart."""
    widths = [width(c) for c in text]
    if sum(widths) <= room:
        return text
    left, right = 0, len(text)
    room -= _NARROW
    while left < right:
        first = left <= len(text) - right
        room -= widths[left] if first else widths[right - 1]
        if room < 0:
            break
        left, right = (left + 1, right) if first else (left, right - 1)
    return f"{text[:left]}…{text[right:]}"


def width(text: str) -> float:
    """About how wide a label is."""
    return sum(_WIDE if unicodedata.east_asian_width(c) in "WF" else _NARROW for c in text)
