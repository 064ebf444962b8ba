"""Draws the figures as inline SVG: no colours of its own (classes and the page's style sheet have them).

Drawn 360 units wide, so that text keeps its size on a phone. Built as an element tree, which escapes every
label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from xml.etree import ElementTree as ET

from ...shown import printable
from .charts import Bars, Dots, Histogram, Lines, Scatter, Series
from .places import arrange, clip, extent, log_ticks, spread, ticks, width

__all__ = ["draw"]

WIDTH = 360
LABELS = 128  # room for labels
ROW = 22
BANDS = 3  # more bands than these hide each other; then only that of the line under the pointer is shown
COLOURS = 6  # classes c0..c5; with the dashes or shapes of d0..d2 eighteen methods differ


def draw(chart: Bars | Dots | Histogram | Lines | Scatter) -> str:
    """A chart as an ``<svg>`` element."""
    drawers: dict[type, Callable[..., ET.Element]] = {
        Bars: _bars,
        Dots: _dots,
        Histogram: _histogram,
        Lines: _lines,
        Scatter: _scatter,
    }
    return ET.tostring(drawers[type(chart)](chart), encoding="unicode")


def _svg(title: str, height: float, told: str) -> ET.Element:
    root = ET.Element("svg", {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img"})
    root.set("aria-label", printable(f"{title}. {told}"))
    _text(root, 0, 15, title, "title")
    return root


def _dots(chart: Dots) -> ET.Element:
    top, left, right = 28, LABELS, WIDTH - 14
    height = top + ROW * len(chart.rows) + 40
    told = "; ".join(f"{row.label} {100 * row.value:.0f} percent" for row in chart.rows)
    root = _svg(chart.title, height, told)
    place = _scale(0, 1, left, right)
    bottom = height - 36
    _percent_axis(root, place, top, bottom)
    if chart.base is not None:
        _line(root, place(chart.base), top, place(chart.base), bottom, "base")
        side = "start" if chart.base < 0.7 else "end"
        _text(root, place(chart.base), height - 3, "base model", "small", side)
    for i, row in enumerate(chart.rows):
        y = top + ROW * (i + 0.5)
        group = _series(root, row.label, row.colour)
        _label(group, left - 11, y + 4.5, row.label, "end", LABELS - 13)
        if row.low is not None and row.high is not None:
            _line(group, place(row.low), y, place(row.high), y, "interval")
        for value in row.seeds:
            _line(group, place(value), y - 6, place(value), y + 6, "tick")
        if row.earlier is not None:
            ET.SubElement(group, "circle", _at(place(row.earlier), y, r="6", cls="ring"))
        ET.SubElement(group, "circle", _at(place(row.value), y, r="4", cls="dot"))
    return root


def _lines(chart: Lines) -> ET.Element:
    top, left = 28, 34
    height = top + max(170, 21 * len(chart.series)) + 38
    right, bottom = WIDTH - LABELS, height - 36
    told = "; ".join(f"{s.label} ends at {100 * s.points[-1][1]:.0f} percent" for s in chart.series)
    root = _svg(chart.title, height, told)
    xs = [x for s in chart.series for x, *_ in s.points]
    across, up = _scale(*extent(xs), left, right - 6), _scale(0, 1, bottom, top + 4)
    for share in (0, 0.25, 0.5, 0.75, 1):
        _line(root, left, up(share), right - 6, up(share), "grid")
        _text(root, left - 5, up(share) + 4, f"{100 * share:.0f}", "small", "end")
    for tick in ticks(min(xs), max(xs), 4):
        _text(root, across(tick), bottom + 16, f"{tick:,.0f}", "small", "middle")
    _text(root, (left + right) / 2, height - 3, chart.x_label, "small", "middle")
    if chart.base is not None:
        _line(root, left, up(chart.base), right - 6, up(chart.base), "base")
    wanted = [up(s.points[-1][1]) for s in chart.series]
    placed = spread(wanted, 17, top + 4, bottom + 4)
    for series, ideal, y in zip(chart.series, wanted, placed, strict=True):
        band = "band" if len(chart.series) <= BANDS else "band many"
        _one_line(root, series, across, up, (ideal, y, right), band)
    return root


def _one_line(
    root: ET.Element,
    series: Series,
    across: Callable[[float], float],
    up: Callable[[float], float],
    label: tuple[float, float, float],
    band: str,
) -> None:
    """A curve, its band, and its label with a leader: from what height, to what height, right of what."""
    ideal, y, right = label
    group = _series(root, series.label, series.colour)
    spots = [(across(x), up(v)) for x, v, _, _ in series.points]
    bounds = [
        (across(x), up(lo), up(hi)) for x, _, lo, hi in series.points if lo is not None and hi is not None
    ]
    if len(bounds) > 1:
        around = [(x, hi) for x, _, hi in bounds] + [(x, lo) for x, lo, _ in reversed(bounds)]
        ET.SubElement(group, "polygon", {"class": band, "points": _points(around)})
    if bounds and band != "band":
        x, low, high = bounds[-1]  # on paper and under a finger no band lights up: at least the end has one
        _line(group, x, low, x, high, "interval end")
    ET.SubElement(group, "polyline", {"class": "curve", "points": _points(spots)})
    for x, v in spots:
        ET.SubElement(group, "circle", _at(x, v, r="2.5", cls="dot"))
    _line(group, spots[-1][0] + 4, ideal, right + 8, y, "leader")
    _label(group, right + 11, y + 4.5, series.label, "start", LABELS - 12)


def _scatter(chart: Scatter) -> ET.Element:
    top, left, right, height = 42, 34, WIDTH - 8, 340
    bottom = height - 36
    told = "; ".join(f"{p.label} {100 * p.y:.0f} percent at {chart.text(p.x)}" for p in chart.points)
    root = _svg(chart.title, height, told)
    _text(root, 0, 32, chart.y_label, "small")
    low, high = extent([math.log10(p.x) for p in chart.points], least=0.3)
    across, up = _scale(low, high, left + 12, right - 12), _scale(0, 1, bottom, top + 4)
    for share in (0, 0.25, 0.5, 0.75, 1):
        _line(root, left, up(share), right, up(share), "grid")
        _text(root, left - 5, up(share) + 4, f"{100 * share:.0f}", "small", "end")
    for tick in log_ticks(low, high):
        _line(root, across(tick), bottom, across(tick), bottom + 4, "axis")
        _text(root, across(tick), bottom + 17, chart.text(10**tick), "small", "middle")
    _text(root, (left + right) / 2, height - 3, f"{chart.x_label} (logarithmic)", "small", "middle")
    spots = [(across(math.log10(p.x)), up(p.y)) for p in chart.points]
    names = [clip(p.label, LABELS) for p in chart.points]
    corners = arrange(spots, [width(name) for name in names], 15, (left, top - 4, right, bottom))
    for p, name, (x, y), (corner, above) in zip(chart.points, names, spots, corners, strict=True):
        group = _series(root, p.label, p.colour)
        middle = corner + width(name) / 2
        end = corner if corner > x else min(x, corner + width(name))
        if abs(above + 7.5 - y) > 8 or abs(end - x) > 12:
            _line(group, x, y, middle if corner < x < corner + width(name) else end, above + 7.5, "leader")
        ET.SubElement(group, "circle", _at(x, y, r="5", cls="dot"))
        anchor, at = ("start", corner) if corner > x else ("end", corner + width(name))
        _text(group, at, above + 12, name, "label", anchor)
    return root


def _histogram(chart: Histogram) -> ET.Element:
    top, left, right, band = 30, 86, WIDTH - 10, 62
    height = top + band * len(chart.groups) + 38
    bottom = height - 36
    parts = [f"{name}: median {sorted(v)[len(v) // 2]} of {len(v)}" for name, v in chart.groups.items()]
    root = _svg(chart.title, height, "; ".join([*parts, f"{chart.mark_label} = {chart.mark}"]))
    values = [v for group in chart.groups.values() for v in group]
    high = max(*values, math.ceil(chart.mark or 0), 1)
    step = max(1, math.ceil((high + 1) / 64))
    across = _scale(0, high + step, left, right)
    for row, (name, group) in enumerate(chart.groups.items()):
        floor = top + band * (row + 1) - 4
        counts: dict[int, int] = {}
        for value in group:
            counts[value // step] = counts.get(value // step, 0) + 1
        _line(root, left, floor, right, floor, "axis")
        _text(root, left - 8, floor - 18, name, "label", "end")
        _text(root, left - 8, floor - 3, f"{len(group):,}", "small", "end")
        tallest = max(counts.values())
        for at, count in sorted(counts.items()):
            x, tall = across(at * step), (band - 14) * count / tallest
            shape = {"x": f"{x:.1f}", "y": f"{floor - tall:.1f}", "height": f"{tall:.1f}"}
            shape["width"] = f"{max(1.0, across((at + 1) * step) - x - 1):.1f}"
            ET.SubElement(root, "rect", {**shape, "class": f"bar c{row}"})
    for tick in ticks(0, high, 5):
        _text(root, across(tick + step / 2), bottom + 14, f"{tick:,.0f}", "small", "middle")
    _text(root, (left + right) / 2, height - 3, chart.x_label, "small", "middle")
    if chart.mark is not None:
        x = across(chart.mark)  # what is below the mark is near
        _line(root, x, top - 4, x, bottom, "base")
        side = "end" if x > WIDTH / 2 else "start"
        told = f"{chart.mark_label} = {chart.mark:g}"
        _text(root, x + (-5 if side == "end" else 5), top + 6, told, "label", side)
    return root


def _bars(chart: Bars) -> ET.Element:
    top, right = (44 if chart.note else 26), WIDTH - 44
    left = 12 + min(166, max(map(width, chart.bars)))
    height = top + ROW * len(chart.bars) + 6
    told = "; ".join(f"{name} {count:g}" for name, count in chart.bars.items())
    root = _svg(chart.title, height, told)
    _text(root, 0, 34, clip(chart.note, 1.1 * WIDTH), "small")
    across = _scale(0, max([*chart.bars.values(), 1]), left, right)
    for i, (name, count) in enumerate(chart.bars.items()):
        y = top + ROW * i
        _label(root, left - 7, y + 15, name, "end", left - 8)
        shape = {"x": f"{left}", "y": f"{y + 3}", "height": f"{ROW - 6}"}
        ET.SubElement(root, "rect", {**shape, "width": f"{across(count) - left:.1f}", "class": "bar c0"})
        _text(root, across(count) + 5, y + 15, f"{count:g}", "small")
    return root


def _percent_axis(root: ET.Element, place: Callable[[float], float], top: float, bottom: float) -> None:
    for share in (0, 0.25, 0.5, 0.75, 1):
        _line(root, place(share), top, place(share), bottom, "grid")
        _text(root, place(share), bottom + 16, f"{100 * share:.0f}", "small", "middle")


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    across = (end - start) / (high - low)
    return lambda value: start + (value - low) * across


def _series(root: ET.Element, label: str, colour: int) -> ET.Element:
    """The group of everything that belongs to one method; the page lights it up under the pointer."""
    group = ET.SubElement(root, "g", {"class": f"series c{colour % COLOURS} d{colour // COLOURS % 3}"})
    group.set("data-method", printable(label))
    ET.SubElement(group, "title").text = printable(label)
    return group


def _label(parent: ET.Element, x: float, y: float, text: str, anchor: str, room: float) -> None:
    _text(parent, x, y, clip(text, room), "label", anchor)


def _text(parent: ET.Element, x: float, y: float, text: str, cls: str, anchor: str = "start") -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": cls, "text-anchor": anchor}
    ET.SubElement(parent, "text", place).text = printable(text)


def _line(parent: ET.Element, x1: float, y1: float, x2: float, y2: float, cls: str) -> None:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    ET.SubElement(parent, "line", {**ends, "class": cls})


def _at(x: float, y: float, *, r: str, cls: str) -> dict[str, str]:
    return {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": r, "class": cls}


def _points(spots: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
