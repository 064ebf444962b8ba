"""What the figures show and how each panel is drawn; `pictures` puts panels on pages.

All is in percent. What belongs to one method has its number as matplotlib's ``gid``, and its colour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ...text.printable import printable
from .aggregate import Aggregate, Mean, MethodResult, suits
from .labels import PROPERTIES
from .units import ratio, seconds, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS", "GRID", "INK", "Panel", "codes", "curves", "general_curves", "modules", "quality",
    "retention_curves", "shortened", "style", "trade_offs",
]  # fmt: skip

# Okabe and Ito's colours, those that are dark enough on white
COLOURS = ("#0072b2", "#c94f00", "#00795a", "#a8397f", "#7d5f00", "#45505c")
INK, GRID = "#000000", "#dddddd"
_DASHES, _MARKERS = ("-", "--", ":"), ("o", "s", "^")


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: what stands above it.
        words: what it shows, for those who do not see it.
        draw: draws it.
        lines: of text that it has to have room for.
        legend: the labels of the methods in it by number, where they do not stand beside their marks.
    """

    title: str
    words: str
    draw: Callable[[Axes], None]
    lines: int = 10
    legend: Mapping[int, str] = field(default_factory=dict)


def quality(found: Aggregate) -> list[Panel]:
    """The properties after all edits, under the main measure; "right answer" is left to the tables."""
    panels = []
    for prop in PROPERTIES[:5]:
        name = f"{prop.key}.{suits(prop.key, found.main)}"
        rows = [row for row in _numbered(found) if f"final.{name}" in row[1].means]
        words = (f"{m.label} {100 * m.means[f'final.{name}'].value:.0f} percent" for _, m in rows)
        if rows:
            draw = partial(_dots, rows=rows, name=name, base=found.base.means.get(f"final.{name}"))
            panels.append(Panel(prop.label, "; ".join(words), draw, len(rows)))
    return panels


def retention_curves(found: Aggregate) -> dict[str, str]:
    """Curves of the earliest and of the latest edits while more and more are made: title -> path."""
    asked = [("First", "first", "efficacy"), ("First", "first", "generalization")]
    asked += [("First", "first", "specificity"), ("Latest", "recent", "efficacy")]
    return _with_course(
        found,
        {f"{word} {found.few} edits: {p}": f"{part}.{p}.{suits(p, found.main)}" for word, part, p in asked},
    )


def general_curves(found: Aggregate) -> dict[str, str]:
    """Curves of the general tasks: title -> path."""
    return _with_course(found, {task: f"general.{task}" for task in found.tasks})


def _with_course(found: Aggregate, paths: Mapping[str, str]) -> dict[str, str]:
    """Those with more than one point for some method; one alone is in the tables."""
    return {t: path for t, path in paths.items() if any(len(m.along(path)) > 1 for m in found.done)}


def curves(found: Aggregate, paths: Mapping[str, str]) -> list[Panel]:
    """A panel for each of the curves; a general task has the base model as a line across."""
    panels = []
    for title, path in paths.items():
        lines = [(number, m, m.along(path)) for number, m in _numbered(found) if m.along(path)]
        words = (f"{m.label} ends at {100 * points[-1][1].value:.0f} percent" for _, m, points in lines)
        base = found.base.means.get(path) if path.startswith("general.") else None
        legend = {number: method.label for number, method, _ in lines}
        draw = partial(_lines, lines=[(number, points) for number, _, points in lines], base=base)
        panels.append(Panel(title, "; ".join(words), draw, legend=legend))
    return panels


def trade_offs(found: Aggregate) -> list[Panel]:
    """Quality against each cost."""
    wanted: list[tuple[str, str, str, Callable[[float], str]]] = [
        ("Quality and editing time", "time per edit", "cost.seconds_per_edit", seconds),
        ("Quality and overhead", "forward, over the bare model's", "cost.forward.ratio", ratio),
        ("Quality and size", "bytes per edit", "cost.bytes_per_edit", size),
    ]
    panels = []
    for title, label, path, text in wanted:
        points = [
            (number, m.label, m.means[path].value, 100 * good)
            for number, m in _numbered(found)
            if path in m.means and m.means[path].value > 0 and (good := m.harmonic(found.main)) is not None
        ]
        words = (f"{name} {y:.0f} percent at {text(x)}" for _, name, x, y in points)
        if points:
            draw = partial(_scatter, points=points, label=label, text=text)
            legend = {number: name for number, name, _, _ in points}
            panels.append(Panel(title, "; ".join(words), draw, legend=legend))
    return panels


def modules(method: MethodResult) -> list[Panel]:
    """How often each module was chosen, over all runs of a method that chooses."""
    counts: dict[str, int] = {}
    for run in method.runs:
        for name, count in (run.details.get("layers") or {}).items():
            counts[name] = counts.get(name, 0) + count
    if not counts:
        return []
    names = sorted(counts, key=_by_numbers)
    head = _common([name.split(".")[:-1] for name in names])  # what all begin and end with stands below
    tail = _common([name.split(".")[: len(head) : -1] for name in names])[::-1]
    bars = {".".join(n.split(".")[len(head) : -len(tail) or None]): counts[n] for n in names}
    note = ".".join([*head, "*", *tail]) if head or tail else ""
    words = "; ".join(f"{name} {count:g}" for name, count in bars.items())
    draw = partial(_bars, bars=bars, label=f"edits  {shortened(note, 60)}")
    return [Panel(f"{method.label}: modules chosen", words, draw, len(bars))]


def codes(method: MethodResult) -> list[Panel]:
    """Distances from the codes of the edits, of prompts that should be near and of those that should not."""
    noted = [run.details["distances"] for run in method.runs if run.details.get("distances")]
    groups = {
        label: [int(d) for one in noted for d in one.get(key) or ()]
        for key, label in (("edited", "edits"), ("rephrased", "rephrased"), ("unrelated", "unrelated"))
    }
    groups = {label: values for label, values in groups.items() if values}
    if not groups:
        return []
    marks = [one["epsilon"] for one in noted if one.get("epsilon") is not None]
    words = "; ".join(f"{label} from {min(values)} to {max(values)}" for label, values in groups.items())
    draw = partial(_histogram, groups=groups, mark=sum(marks) / len(marks) if marks else None)
    return [Panel(f"{method.label}: distance to the nearest edit's code", words, draw)]


def _numbered(found: Aggregate) -> list[tuple[int, MethodResult]]:
    """The finished methods, each with the number that gives its colour in all figures."""
    return [(number, method) for number, method in enumerate(found.methods) if method.runs]


def _dots(ax: Axes, rows: Sequence[tuple[int, MethodResult]], name: str, base: Mean | None) -> None:
    for y, (number, method) in enumerate(rows):
        mean, soon = method.means[f"final.{name}"], method.means.get(f"immediate.{name}")
        marker, colour, gid = style(number)["marker"], style(number)["color"], f"method-{number}"
        if mean.low is not None and mean.high is not None:
            ax.plot([100 * mean.low, 100 * mean.high], [y, y], color=colour, lw=3, alpha=0.5, gid=gid)
        if len(mean.seeds) > 1:
            ax.plot([100 * v for v in mean.seeds], [y] * len(mean.seeds), "|", color=colour, ms=11, gid=gid)
        if soon is not None:
            ax.plot(100 * soon.value, y, "o", mfc="none", mec=colour, ms=9, gid=gid)
        ax.plot(100 * mean.value, y, marker, color=colour, ms=6, gid=gid)
    if base is not None:
        ax.axvline(100 * base.value, color=INK, ls="--", lw=1)
    _names(ax, [method.label for _, method in rows])
    ax.set_xlim(-3, 103)
    ax.grid(axis="x", color=GRID)


def _lines(ax: Axes, lines: Sequence[tuple[int, list[tuple[int, Mean]]]], base: Mean | None) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, points in lines:
        drawn, gid = style(number), f"method-{number}"
        ax.plot([x for x, _ in points], [100 * mean.value for _, mean in points], **drawn, gid=gid)
        bounds = [
            (x, 100 * m.low, 100 * m.high) for x, m in points if m.low is not None and m.high is not None
        ]
        at, low, high = zip(*bounds, strict=True) if bounds else ((), (), ())
        if len(bounds) > 1 and len(lines) <= 3:  # more bands than these hide each other
            ax.fill_between(at, low, high, color=drawn["color"], alpha=0.1, lw=0, gid=gid)
        elif bounds:
            ax.plot([at[-1]] * 2, [low[-1], high[-1]], color=drawn["color"], lw=3, alpha=0.4, gid=gid)
    if base is not None:
        ax.axhline(100 * base.value, color=INK, ls="--", lw=1)
    ax.set_ylim(-3, 103)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel("edits made", fontsize=9)
    ax.grid(color=GRID)


def _scatter(
    ax: Axes, points: Sequence[tuple[int, str, float, float]], label: str, text: Callable[[float], str]
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    ax.set_xscale("log")
    ax.margins(x=0.15)
    ax.set_ylim(-3, 103)
    for number, _, x, y in points:
        ax.plot(x, y, **(style(number) | {"ms": 7}), gid=f"method-{number}")
    spread = max(x for _, _, x, _ in points) / min(x for _, _, x, _ in points)
    few = LogLocator(subs=(1,) if spread > 100 else (1, 3), numticks=6)
    ax.xaxis.set_major_locator(few if spread > 6 else MaxNLocator(4))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text(x)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(f"{label} (logarithmic)", fontsize=9)
    ax.set_ylabel("harmonic mean (%)", fontsize=9)
    ax.grid(color=GRID)


def _bars(ax: Axes, bars: Mapping[str, int], label: str) -> None:
    ax.bar_label(
        ax.barh(range(len(bars)), list(bars.values()), color=COLOURS[0]), fmt="%g", fontsize=9, padding=2
    )
    _names(ax, list(bars))
    ax.set_xlabel(label, fontsize=9, parse_math=False)


def _histogram(ax: Axes, groups: Mapping[str, list[int]], mark: float | None) -> None:
    high = max(max(values) for values in groups.values())
    step = max(1, -(-(high + 1) // 64))
    ax.hist(
        list(groups.values()),
        [step * i - 0.5 for i in range(high // step + 2)],
        weights=[[100 / len(values)] * len(values) for values in groups.values()],
        color=COLOURS[: len(groups)],
        label=[f"{name} ({len(values)})" for name, values in groups.items()],
    )
    if mark is not None:
        ax.axvline(mark - 0.5, color=INK, ls="--", lw=1, label=f"ε = {mark:g}")
    ax.set_xlabel("Hamming distance (bits)", fontsize=9)
    ax.set_ylabel("share of a group (%)", fontsize=9)
    ax.legend(fontsize=8, frameon=False)


def _names(ax: Axes, names: Sequence[str]) -> None:
    """Names for the rows, the first one on top."""
    ax.set_yticks(range(len(names)), list(map(shortened, names)), fontsize=9, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)


def style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of a method."""
    turn = number // len(COLOURS) % 3
    return {"color": COLOURS[number % len(COLOURS)], "marker": _MARKERS[turn], "ls": _DASHES[turn], "ms": 4}


def shortened(text: str, most: int = 28) -> str:
    """The beginning and the end of a long text, which tell variants of a method apart."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[1 - most // 2 :]}"


def _common(lists: Sequence[list[str]]) -> list[str]:
    """What all lists begin with."""
    columns = takewhile(lambda parts: len(set(parts)) == 1, zip(*lists, strict=False))
    return [parts[0] for parts in columns]


def _by_numbers(name: str) -> list[tuple[bool, int, str]]:
    """Sorts layers.2 before layers.10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
