"""The figures as PNG files, drawn with matplotlib from what the page shows too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...shown import printable
from .charts import (
    Bars,
    Dots,
    Histogram,
    Lines,
    Scatter,
    distances,
    general_retention,
    layers,
    quality_dots,
    retention,
    trade_offs,
)
from .gather import gather
from .places import arrange, extent, log_ticks, spread, width
from .words import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_figures"]

# Okabe and Ito's colours, those that are dark enough on white
_COLOURS = ("#0072b2", "#c94f00", "#00795a", "#a8397f", "#7d5f00", "#45505c")
_DASHES = ("-", "--", ":")
_MARKERS = ("o", "s", "^")
_WIDTH = 4.6  # inches of one panel


def write_figures(results: Mapping[str, Any], folder: str | Path, *, dpi: int = 150) -> list[Path]:
    """Write the figures that the results have data for.

    Args:
        results: as `Comparison.to_json` writes them.
        folder: where ``quality.png``, ``retention.png``, ``general.png``, ``costs.png``, ``layers.png`` and
            ``codes.png`` go; made if it is not there. Earlier ones are replaced.
        dpi: pixels per inch; a panel is 4.6 inches wide.

    Returns:
        The files written.

    Raises:
        ValueError: these are not results of a comparison.
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures are drawn with matplotlib; run `pip install "memplug[report]"`') from error
    gathered = gather(results)
    measure = next(term.label for term in MEASURES if term.key == gathered.main)
    chosen = [bars for method in gathered.done if (bars := layers(method))]
    codes = [found for method in gathered.done if (found := distances(method))]
    pages: list[tuple[str, str, Sequence[Any], Callable[..., None]]] = [
        ("quality", f"After all edits (%), {measure}", quality_dots(gathered), _dots),
        ("retention", f"Retention (%), {measure}", retention(gathered), _lines),
        ("general", "General tasks (%)", general_retention(gathered), _lines),
        ("costs", "Quality and cost", trade_offs(gathered), _scatter),
        ("layers", "Modules chosen for an edit", chosen, _bars),
        ("codes", "Distances between allocation codes", codes, _histogram),
    ]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, title, charts, drawer in pages:
        if not charts:
            continue
        columns = min(len(charts), 3)
        lines = -(-len(charts) // columns)
        tall = max(2.6, 0.24 * max(map(_rows, charts)) + 1.3)
        figure = Figure(figsize=(_WIDTH * columns, tall * lines + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=12)
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax, chart in zip(axes, charts, strict=False):
            drawer(ax, chart)
            ax.set_title(chart.title.replace("$", r"\$"), fontsize=11, loc="left")
        for ax in axes[len(charts) :]:
            ax.set_axis_off()
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=dpi)
        written.append(path)
    return written


def _dots(ax: Axes, chart: Dots) -> None:
    for y, row in enumerate(chart.rows):
        colour, marker, _ = _style(row.colour)
        if row.low is not None and row.high is not None:
            ax.plot([100 * row.low, 100 * row.high], [y, y], color=colour, lw=3, alpha=0.5)
        ax.plot([100 * v for v in row.seeds], [y] * len(row.seeds), "|", color=colour, ms=11)
        if row.earlier is not None:
            ax.plot(100 * row.earlier, y, "o", mfc="none", mec=colour, ms=9)
        ax.plot(100 * row.value, y, marker, color=colour, ms=6)
    if chart.base is not None:
        ax.axvline(100 * chart.base, color="black", ls="--", lw=1)
    ax.set_yticks(range(len(chart.rows)), [_plain(row.label) for row in chart.rows], fontsize=9)
    ax.set_ylim(len(chart.rows) - 0.5, -0.5)
    ax.set_xlim(-3, 103)
    ax.grid(axis="x", color="#dddddd")


def _lines(ax: Axes, chart: Lines) -> None:
    from matplotlib.ticker import MaxNLocator

    ends = [100 * series.points[-1][1] for series in chart.series]
    # heights are in percent of an axis about 22 lines of labels high
    placed = spread([-end for end in ends], 105 / max(16, len(ends)), -103, 3)
    for series, end, down in zip(chart.series, ends, placed, strict=True):
        colour, marker, dash = _style(series.colour)
        xs = [x for x, *_ in series.points]
        ax.plot(xs, [100 * v for _, v, _, _ in series.points], dash, marker=marker, color=colour, ms=4)
        bounds = [
            (x, 100 * lo, 100 * hi) for x, _, lo, hi in series.points if lo is not None and hi is not None
        ]
        if len(bounds) > 1 and len(chart.series) <= 3:
            below, above = [lo for _, lo, _ in bounds], [hi for _, _, hi in bounds]
            ax.fill_between([x for x, _, _ in bounds], below, above, color=colour, alpha=0.1, lw=0)
        elif bounds:
            ax.plot([bounds[-1][0]] * 2, bounds[-1][1:], color=colour, lw=3, alpha=0.4)
        ax.annotate(
            _plain(series.label),
            (xs[-1], end),
            (1.03, -down),
            textcoords=ax.get_yaxis_transform(),
            color=colour,
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.4, "lw": 0.8},
        )
    if chart.base is not None:
        ax.axhline(100 * chart.base, color="black", ls="--", lw=1)
    ax.set_ylim(-3, 103)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel(chart.x_label, fontsize=9)
    ax.grid(color="#dddddd")


def _scatter(ax: Axes, chart: Scatter) -> None:
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log")
    ax.margins(x=0.15)
    ax.set_ylim(-3, 103)
    xs = sorted(point.x for point in chart.points)
    # in points, of a panel about 270 wide and 210 high, y downwards as `arrange` wants it
    low, high = math.log10(xs[0]), math.log10(xs[-1]) + 1e-9
    spots = [(40 + 190 * (math.log10(p.x) - low) / (high - low), 210 * (1 - p.y)) for p in chart.points]
    names = [_plain(point.label) for point in chart.points]
    corners = arrange(spots, [0.72 * width(name) for name in names], 11, (0, -5, 270, 215))
    for point, name, (x, y), (left, top) in zip(chart.points, names, spots, corners, strict=True):
        colour, marker, _ = _style(point.colour)
        ax.plot(point.x, 100 * point.y, marker, color=colour, ms=7)
        ax.annotate(
            name,
            (point.x, 100 * point.y),
            (left - x if left > x else left + 0.72 * width(name) - x, y - top - 5.5),
            textcoords="offset points",
            ha="left" if left > x else "right",
            va="center",
            color=colour,
            fontsize=9,
        )
    marks = [10**tick for tick in log_ticks(*extent([math.log10(x) for x in xs], least=0.3))]
    ax.set_xticks(marks, [chart.text(mark) for mark in marks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(f"{chart.x_label} (logarithmic)", fontsize=9)
    ax.set_ylabel(chart.y_label, fontsize=9)
    ax.grid(color="#dddddd")


def _bars(ax: Axes, chart: Bars) -> None:
    names = list(chart.bars)
    drawn = ax.barh(range(len(names)), list(chart.bars.values()), color=_COLOURS[0])
    ax.bar_label(drawn, fmt="%g", fontsize=9, padding=2)
    ax.set_yticks(range(len(names)), [_plain(name) for name in names], fontsize=9)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(f"{chart.x_label}  {_plain(chart.note)}", fontsize=9)


def _histogram(ax: Axes, chart: Histogram) -> None:
    high = max(v for values in chart.groups.values() for v in values)
    step = max(1, -(-(high + 1) // 64))
    edges = [step * i - 0.5 for i in range(high // step + 2)]
    ax.hist(
        list(chart.groups.values()),
        edges,
        weights=[[100 / len(values)] * len(values) for values in chart.groups.values()],
        color=[_COLOURS[i % len(_COLOURS)] for i in range(len(chart.groups))],
        label=[f"{name} ({len(values)})" for name, values in chart.groups.items()],
    )
    if chart.mark is not None:
        ax.axvline(
            chart.mark - 0.5, color="black", ls="--", lw=1, label=f"{chart.mark_label} = {chart.mark:g}"
        )
    ax.set_xlabel(chart.x_label, fontsize=9)
    ax.set_ylabel("share of a group (%)", fontsize=9)
    ax.legend(fontsize=8)


def _rows(chart: Any) -> int:
    """Lines of text that a panel has room for."""
    if isinstance(chart, Dots):
        return len(chart.rows)
    if isinstance(chart, Bars):
        return len(chart.bars)
    return max(8, len(chart.series)) if isinstance(chart, Lines) else 12


def _style(colour: int) -> tuple[str, str, str]:
    turn = colour // len(_COLOURS) % 3
    return _COLOURS[colour % len(_COLOURS)], _MARKERS[turn], _DASHES[turn]


def _plain(text: str) -> str:
    """Short, and without the dollar signs that would begin a formula."""
    text = printable(text)
    text = text if len(text) <= 28 else f"{text[:14]}…{text[-13:]}"
    return text.replace("$", r"\$")
