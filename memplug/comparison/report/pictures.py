"""Draws the figures with matplotlib: PNG files, and SVG for the page, whose style sheet has the colours."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

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
    told,
    trade_offs,
)
from .gather import gather
from .words import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["svg", "write_figures"]

Chart = Bars | Dots | Histogram | Lines | Scatter

# Okabe and Ito's colours, those that are dark enough on white
_COLOURS = ("#0072b2", "#c94f00", "#00795a", "#a8397f", "#7d5f00", "#45505c")
_INK, _GRID = "#000000", "#dddddd"
_DASHES = ("-", "--", ":")
_MARKERS = ("o", "s", "^")
_WIDTH = 4.6  # inches of one panel
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


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
    _check_matplotlib()
    gathered = gather(results)
    measure = next(term.label for term in MEASURES if term.key == gathered.main)
    pages: list[tuple[str, str, Sequence[Chart]]] = [
        ("quality", f"After all edits (%), {measure}", quality_dots(gathered)),
        ("retention", f"Retention (%), {measure}", retention(gathered)),
        ("general", "General tasks (%)", general_retention(gathered)),
        ("costs", "Quality and cost", trade_offs(gathered)),
        ("layers", "Modules chosen for an edit", [b for m in gathered.done if (b := layers(m))]),
        ("codes", "Distances between allocation codes", [d for m in gathered.done if (d := distances(m))]),
    ]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, title, charts in pages:
        if charts:
            written.append(folder / f"{name}.png")
            _drawn(charts, title).savefig(written[-1], dpi=dpi)
    return written


def svg(chart: Chart) -> str:
    """A chart as an ``<svg>`` element, in the custom properties of the page's style sheet instead of colours.

    What belongs to one method is in groups of the class "series" with its number as ``data-method``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    _check_matplotlib()
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    constants = {"svg.fonttype": "none", "svg.hashsalt": "memplug"}
    with matplotlib.rc_context(constants), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has fonts of its own
        _drawn([chart]).savefig(file, format="svg", transparent=True, metadata=nothing)
    root = ET.fromstring(file.getvalue())
    drawn = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": printable(told(chart))}
    root.attrib.clear()
    root.attrib.update(drawn)
    for defined in root.findall(f"{_SVG}defs"):
        for style in defined.findall(f"{_SVG}style"):
            defined.remove(style)  # it would hold for the whole page
    for part in root.iter():
        part.tag = part.tag.removeprefix(_SVG)
        if _LINK in part.attrib:
            part.attrib["href"] = part.attrib.pop(_LINK)
        if part.tag == "g":  # matplotlib's ids would stand on the page once for each figure
            name = part.attrib.pop("id", "")
            if name.startswith("method-"):
                part.attrib |= {"class": "series", "data-method": name.removeprefix("method-")}
    text = ET.tostring(root, encoding="unicode")
    names = {_INK: "ink", _GRID: "line"} | {colour: f"c{i}" for i, colour in enumerate(_COLOURS)}
    for colour, name in names.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def _check_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError('figures are drawn with matplotlib; run `pip install "memplug[report]"`') from error


def _drawn(charts: Sequence[Chart], title: str = "") -> Figure:
    """A panel for each chart, and one legend for all that have lines or points of methods."""
    from matplotlib.figure import Figure

    columns = min(len(charts), 3)
    lines = -(-len(charts) // columns)
    names = dict(pair for chart in charts for pair in _methods(chart))
    tall = max(2.6, 0.24 * max(map(_rows, charts)) + 1.3) * lines
    legend = -(-len(names) // (2 * columns))  # rows of it
    figure = Figure(figsize=(_WIDTH * columns, tall + 0.2 * legend + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, chart in zip(axes, charts, strict=False):
        _DRAWERS[type(chart)](ax, chart)
        ax.set_title(_short(chart.title, 60), fontsize=11, loc="left", parse_math=False)
    for ax in axes[len(charts) :]:
        ax.set_axis_off()
    if names:
        from matplotlib.lines import Line2D

        marks = [Line2D([], [], **_style(number), gid=f"method-{number}") for number in names]
        shown = figure.legend(
            marks,
            list(names.values()),
            loc="outside lower left",
            ncols=2 * columns,
            fontsize=9,
            frameon=False,
        )
        for text in shown.get_texts():
            text.set_parse_math(False)
    return figure


def _methods(chart: Chart) -> list[tuple[int, str]]:
    """The numbers and names of the methods that need a legend."""
    if isinstance(chart, Lines):
        return [(series.colour, _short(series.label)) for series in chart.series]
    return [(p.colour, _short(p.label)) for p in chart.points] if isinstance(chart, Scatter) else []


def _dots(ax: Axes, chart: Dots) -> None:
    for y, row in enumerate(chart.rows):
        style = _style(row.colour)
        colour, gid = style["color"], f"method-{row.colour}"
        if row.low is not None and row.high is not None:
            ax.plot([100 * row.low, 100 * row.high], [y, y], color=colour, lw=3, alpha=0.5, gid=gid)
        ax.plot([100 * v for v in row.seeds], [y] * len(row.seeds), "|", color=colour, ms=11, gid=gid)
        if row.earlier is not None:
            ax.plot(100 * row.earlier, y, "o", mfc="none", mec=colour, ms=9, gid=gid)
        ax.plot(100 * row.value, y, style["marker"], color=colour, ms=6, gid=gid)
    if chart.base is not None:
        ax.axvline(100 * chart.base, color=_INK, ls="--", lw=1)
    _named(ax, [row.label for row in chart.rows])
    ax.set_xlim(-3, 103)
    ax.grid(axis="x", color=_GRID)


def _lines(ax: Axes, chart: Lines) -> None:
    from matplotlib.ticker import MaxNLocator

    for series in chart.series:
        style, gid = _style(series.colour), f"method-{series.colour}"
        ax.plot([x for x, *_ in series.points], [100 * v for _, v, _, _ in series.points], **style, gid=gid)
        bounds = [
            (x, 100 * lo, 100 * hi) for x, _, lo, hi in series.points if lo is not None and hi is not None
        ]
        if len(bounds) > 1 and len(chart.series) <= 3:  # more bands than these hide each other
            xs, low, high = zip(*bounds, strict=True)
            ax.fill_between(xs, low, high, color=style["color"], alpha=0.1, lw=0, gid=gid)
        elif bounds:
            ax.plot([bounds[-1][0]] * 2, bounds[-1][1:], color=style["color"], lw=3, alpha=0.4, gid=gid)
    if chart.base is not None:
        ax.axhline(100 * chart.base, color=_INK, ls="--", lw=1)
    ax.set_ylim(-3, 103)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel(chart.x_label, fontsize=9)
    ax.grid(color=_GRID)


def _scatter(ax: Axes, chart: Scatter) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    ax.set_xscale("log")
    ax.margins(x=0.15)
    ax.set_ylim(-3, 103)
    for point in chart.points:
        ax.plot(point.x, 100 * point.y, **(_style(point.colour) | {"ms": 7}), gid=f"method-{point.colour}")
    costs = [point.x for point in chart.points]
    many = LogLocator(subs=(1,) if max(costs) > 100 * min(costs) else (1, 3), numticks=6)
    ax.xaxis.set_major_locator(many if max(costs) > 6 * min(costs) else MaxNLocator(4))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: chart.text(x)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(f"{chart.x_label} (logarithmic)", fontsize=9)
    ax.set_ylabel(chart.y_label, fontsize=9)
    ax.grid(color=_GRID)


def _bars(ax: Axes, chart: Bars) -> None:
    drawn = ax.barh(range(len(chart.bars)), list(chart.bars.values()), color=_COLOURS[0])
    ax.bar_label(drawn, fmt="%g", fontsize=9, padding=2)
    _named(ax, list(chart.bars))
    ax.set_xlabel(f"{chart.x_label}  {_short(chart.note, 60)}", fontsize=9, parse_math=False)


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
        label = f"{chart.mark_label} = {chart.mark:g}"
        ax.axvline(chart.mark - 0.5, color=_INK, ls="--", lw=1, label=label)
    ax.set_xlabel(chart.x_label, fontsize=9)
    ax.set_ylabel("share of a group (%)", fontsize=9)
    ax.legend(fontsize=8, frameon=False)


_DRAWERS: dict[type, Callable[..., None]] = {
    Bars: _bars,
    Dots: _dots,
    Histogram: _histogram,
    Lines: _lines,
    Scatter: _scatter,
}


def _named(ax: Axes, names: Sequence[str]) -> None:
    """Names for the rows, the first one on top."""
    ax.set_yticks(range(len(names)), list(map(_short, names)), fontsize=9, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)


def _rows(chart: Chart) -> int:
    """Lines of text that a panel has room for."""
    if isinstance(chart, Dots):
        return len(chart.rows)
    return len(chart.bars) if isinstance(chart, Bars) else 10


def _style(colour: int) -> dict[str, Any]:
    turn = colour // len(_COLOURS) % 3
    return {"color": _COLOURS[colour % len(_COLOURS)], "marker": _MARKERS[turn], "ls": _DASHES[turn], "ms": 4}


def _short(text: str, most: int = 28) -> str:
    """The beginning and the end of a long text, which tell variants of a method apart."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[1 - most // 2 :]}"
