"""What the figures show, apart from how they are drawn, see `pictures`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .gather import Gathered, Method, dig, suits
from .units import ratio, seconds, size
from .words import PROPERTIES

__all__ = [
    "Bars",
    "Dot",
    "Dots",
    "Histogram",
    "Lines",
    "Point",
    "Scatter",
    "Series",
    "distances",
    "general_retention",
    "layers",
    "quality_dots",
    "retention",
    "told",
    "trade_offs",
]


class Dot(NamedTuple):
    """One method's value (0 to 1), its interval, each seed's value, and the value right after each batch."""

    label: str
    colour: int
    value: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]
    earlier: float | None


@dataclass
class Dots:
    """A row a method; the base model as a line across."""

    title: str
    rows: list[Dot]
    base: float | None = None


class Series(NamedTuple):
    """A line: x, y (0 to 1), low, high of each point."""

    label: str
    colour: int
    points: list[tuple[float, float, float | None, float | None]]


@dataclass
class Lines:
    """One property against the number of edits held."""

    title: str
    series: list[Series]
    base: float | None = None
    x_label: str = "edits made"


class Point(NamedTuple):
    """One method: its cost and its quality (0 to 1)."""

    label: str
    colour: int
    x: float
    y: float


@dataclass
class Scatter:
    """Quality against one cost; the cost on a logarithmic axis."""

    title: str
    x_label: str
    points: list[Point]
    text: Callable[[float], str]
    y_label: str = "harmonic mean (%)"


@dataclass
class Histogram:
    """Whole numbers in groups, one above the other, with a mark; shares within each group."""

    title: str
    groups: dict[str, list[int]]
    mark: float | None
    mark_label: str
    x_label: str


@dataclass
class Bars:
    """Counts by name; ``note`` stands below the title."""

    title: str
    bars: dict[str, float] = field(default_factory=dict)
    x_label: str = ""
    note: str = ""


def told(chart: Bars | Dots | Histogram | Lines | Scatter) -> str:
    """A chart in words, for those who do not see it."""
    match chart:
        case Dots():
            parts = [f"{row.label} {100 * row.value:.0f} percent" for row in chart.rows]
        case Lines():
            parts = [f"{s.label} ends at {100 * s.points[-1][1]:.0f} percent" for s in chart.series]
        case Scatter():
            parts = [f"{p.label} {100 * p.y:.0f} percent at {chart.text(p.x)}" for p in chart.points]
        case Bars():
            parts = [f"{name} {count:g}" for name, count in chart.bars.items()]
        case Histogram():
            parts = [f"{name} from {min(v)} to {max(v)}" for name, v in chart.groups.items()]
    return f"{chart.title}. {'; '.join(parts)}"


def quality_dots(gathered: Gathered) -> list[Dots]:
    """The properties after all edits, under the main measure; "right answer" is left to the tables."""
    charts = []
    for prop in PROPERTIES:
        if prop.key.endswith("_gold"):
            continue
        measure = suits(prop.key, gathered.main)
        rows = []
        for colour, method in _coloured(gathered):
            mean = method.score("final", prop.key, measure)
            if mean is not None:
                soon = method.score("immediate", prop.key, measure)
                earlier = None if soon is None else soon.value
                seeds = mean.seeds if len(mean.seeds) > 1 else ()
                rows.append(Dot(method.label, colour, mean.value, mean.low, mean.high, seeds, earlier))
        base = gathered.base.score("final", prop.key, measure)
        if rows:
            charts.append(Dots(prop.label, rows, None if base is None else base.value))
    return charts


def retention(gathered: Gathered) -> list[Lines]:
    """The earliest edits, and the latest, while more and more are made."""
    few = min([100, *gathered.setting("points", [])[:1]])  # as many as had been made at the first point
    wanted = [
        (f"First {few} edits: efficacy", "first", "efficacy"),
        (f"First {few} edits: generalization", "first", "generalization"),
        (f"First {few} edits: specificity", "first", "specificity"),
        (f"Latest {few} edits: efficacy", "recent", "efficacy"),
    ]
    return _curves([_lines(gathered, t, (w, p, suits(p, gathered.main)), None) for t, w, p in wanted])


def general_retention(gathered: Gathered) -> list[Lines]:
    """Each general task while more and more edits are made."""
    charts = []
    for task in gathered.tasks:
        base = gathered.base.mean("general", task)
        charts.append(_lines(gathered, task, ("general", task), None if base is None else base.value))
    return _curves(charts)


def _curves(charts: list[Lines]) -> list[Lines]:
    """Those that have a course: one point alone is in the tables."""
    return [chart for chart in charts if any(len(line.points) > 1 for line in chart.series)]


def trade_offs(gathered: Gathered) -> list[Scatter]:
    """Quality against each cost."""
    wanted: list[tuple[str, str, tuple[str, ...], Callable[[float], str]]] = [
        ("Quality and editing time", "time per edit", ("cost", "seconds_per_edit"), seconds),
        ("Quality and overhead", "forward, over the bare model's", ("cost", "forward", "ratio"), ratio),
        ("Quality and size", "bytes per edit", ("cost", "bytes_per_edit"), size),
    ]
    charts = []
    for title, label, path, text in wanted:
        points = []
        for colour, method in _coloured(gathered):
            cost, quality = method.span(*path), method.harmonic(gathered.main)
            if cost is not None and quality is not None and cost.value > 0:
                points.append(Point(method.label, colour, cost.value, quality))
        if points:
            charts.append(Scatter(title, label, points, text))
    return charts


def layers(method: Method) -> Bars | None:
    """How often each module was chosen, over all runs of a method that chooses."""
    counts: dict[str, float] = {}
    for run in method.runs:
        for name, count in (dig(run, "details", "layers") or {}).items():
            counts[name] = counts.get(name, 0) + count
    if not counts:
        return None
    head, tail, short = _shared({name: name.split(".") for name in counts})
    bars = {short[name]: count for name, count in sorted(counts.items(), key=_by_numbers)}
    where = ".".join([*head, "*", *tail]) if head or tail else ""
    return Bars(f"{method.label}: modules chosen", bars, "edits", where)


def distances(method: Method) -> Histogram | None:
    """Distances from the codes of the edits, of prompts that should be near and of those that should not."""
    groups: dict[str, list[int]] = {}
    marks = []
    for run in method.runs:
        found = dig(run, "details", "distances") or {}
        for key, label in (("edited", "edits"), ("rephrased", "rephrased"), ("unrelated", "unrelated")):
            groups.setdefault(label, []).extend(int(d) for d in found.get(key) or ())
        if found.get("epsilon") is not None:
            marks.append(float(found["epsilon"]))
    groups = {label: values for label, values in groups.items() if values}
    if not groups:
        return None
    mark = sum(marks) / len(marks) if marks else None
    title = f"{method.label}: distance to the nearest edit's code"
    return Histogram(title, groups, mark, "ε", "Hamming distance (bits)")


def _coloured(gathered: Gathered) -> list[tuple[int, Method]]:
    """The finished methods, each with the number that gives its colour in all figures."""
    return [(i, method) for i, method in enumerate(gathered.methods) if method.runs]


def _lines(gathered: Gathered, title: str, path: tuple[str, ...], base: float | None) -> Lines:
    series = []
    for colour, method in _coloured(gathered):
        points = [(float(x), m.value, m.low, m.high) for x, m in method.curve(*path)]
        if points:
            series.append(Series(method.label, colour, points))
    return Lines(title, series, base)


def _shared(paths: dict[str, list[str]]) -> tuple[list[str], list[str], dict[str, str]]:
    """What all dotted names begin and end with, and what is left of each."""
    rest = {name: list(parts) for name, parts in paths.items()}
    ends: tuple[list[str], list[str]] = ([], [])
    for at, found in ((0, ends[0]), (-1, ends[1])):
        while min(map(len, rest.values())) > 1 and len({parts[at] for parts in rest.values()}) == 1:
            found.append({parts.pop(at) for parts in rest.values()}.pop())
    return ends[0], ends[1][::-1], {name: ".".join(parts) for name, parts in rest.items()}


def _by_numbers(item: tuple[str, Any]) -> list[tuple[bool, int, str]]:
    """Sorts layers.2 before layers.10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in item[0].split(".")]
