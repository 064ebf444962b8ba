"""Draws the figures with matplotlib: PNG files, and SVG for the page, whose style sheet has the colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...text.printable import printable
from . import charts
from .aggregate import aggregate
from .charts import COLOURS, GRID, INK, Panel, shortened, style
from .labels import MEASURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["svg", "write_figures"]

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
    _check_matplotlib()
    found = aggregate(results)
    measure = next(term.label for term in MEASURES if term.key == found.main)
    pages = [
        ("quality", f"After all edits (%), {measure}", charts.quality(found)),
        ("retention", f"Retention (%), {measure}", charts.curves(found, charts.retention_curves(found))),
        ("general", "General tasks (%)", charts.curves(found, charts.general_curves(found))),
        ("costs", "Quality and cost", charts.trade_offs(found)),
        ("layers", "Modules chosen for an edit", [p for m in found.done for p in charts.modules(m)]),
        ("codes", "Distances between allocation codes", [p for m in found.done for p in charts.codes(m)]),
    ]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, title, panels in pages:
        if panels:
            written.append(folder / f"{name}.png")
            _drawn(panels, title).savefig(written[-1], dpi=dpi)
    return written


def svg(panel: Panel) -> str:
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
        _drawn([panel]).savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    view, body = re.search(r'viewBox="[^"]*"', text), text[text.index(">", text.index("<svg")) + 1 :]
    words = escape(printable(f"{panel.title}. {panel.words}"))
    for pattern, new in (
        ("<style.*?</style>", ""),  # it would hold for the whole page
        (r'<g id="method-(\d+)"', r'<g class="series" data-method="\1"'),
        ('<g id="[^"]*"', "<g"),  # these ids would stand on the page once for each figure
        (INK, "var(--ink)"),
        (GRID, "var(--line)"),
        *((colour, f"var(--c{number})") for number, colour in enumerate(COLOURS)),
    ):
        body = re.sub(pattern, new, body, flags=re.DOTALL)
    return f'<svg {view and view[0]} role="img" aria-label="{words}">{body}'


def _check_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError('figures are drawn with matplotlib; run `pip install "memplug[report]"`') from error


def _drawn(panels: Sequence[Panel], title: str = "") -> Figure:
    """The panels side by side, and one legend for all that have lines or points of methods."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    names = {number: label for panel in panels for number, label in panel.legend.items()}
    tall = max(2.6, 0.24 * max(panel.lines for panel in panels) + 1.3) * lines
    legend = -(-len(names) // (2 * columns))  # rows of it
    figure = Figure(figsize=(_WIDTH * columns, tall + 0.2 * legend + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        panel.draw(ax)
        ax.set_title(shortened(panel.title, 60), fontsize=11, loc="left", parse_math=False)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    if names:
        marks = [Line2D([], [], **style(number), gid=f"method-{number}") for number in names]
        labels = list(map(shortened, names.values()))
        placed = {"loc": "outside lower left", "ncols": 2 * columns, "fontsize": 9, "frameon": False}
        for text in figure.legend(marks, labels, **placed).get_texts():
            text.set_parse_math(False)
    return figure
