"""A comparison as a web page that needs nothing else, and as a Markdown table: templates filled by jinja2."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...saving.files import write_atomically
from ...text.printable import printable
from . import charts, tables
from .aggregate import Aggregate, MethodResult, aggregate, lowest, suits
from .answers import pack
from .labels import MEASURES, MOMENTS, PROPERTIES
from .pictures import svg
from .units import percent, ratio, seconds

__all__ = ["html", "markdown", "write_html", "write_markdown"]

_FOLDER = Path(__file__).parent / "page"


def write_html(results: Mapping[str, Any], path: str | Path, *, answers: int = 400_000) -> Path:
    """Write `html` of the results to a file; its folder is made, an earlier file is replaced in one step."""
    return _write(path, html(results, answers=answers))


def write_markdown(results: Mapping[str, Any], path: str | Path) -> Path:
    """Write `markdown` of the results to a file in the same way."""
    return _write(path, markdown(results))


def html(results: Mapping[str, Any], *, answers: int = 400_000) -> str:
    """The page. It loads nothing: a policy in its head forbids it, and it has nothing to load.

    Args:
        results: as `Comparison.to_json` writes them.
        answers: the most answers to put in (about 10 bytes each, and every distinct text once); if there are
            more, the first cases of each seed are, and the page says so.

    Raises:
        ValueError: these are not results of a comparison.
        ImportError: jinja2 or matplotlib is not installed.
    """
    found = aggregate(results)
    packed = pack(found, answers)
    asked = (tables.quality(found, moment.key, measure) for moment in MOMENTS for measure in found.measures)
    return _filled(
        "page.html",
        found,
        tables=[table for table in asked if table.columns],
        properties=PROPERTIES,
        moments=MOMENTS,
        costs=tables.costs(found),
        general=tables.general(found),
        retention=tables.retention(found),
        preferences=tables.preferences(found),
        truths=_truths(found),
        highlights=_highlights(found),
        quality_panels=charts.quality(found),
        cost_panels=charts.trade_offs(found),
        edit_curves=charts.retention_curves(found),
        task_curves=charts.general_curves(found),
        votes=[(m.label, both) for m in found.done if (both := tables.votes(m))],
        modules=[(panel, _entropy(m)) for m in found.done for panel in charts.modules(m)],
        codes=[panel for m in found.done for panel in charts.codes(m)],
        packed=packed if packed["probes"] else None,
        warned=dict.fromkeys((run.method, text) for run in _all_runs(found) for text in run.warnings),
    )


def markdown(results: Mapping[str, Any]) -> str:
    """A line on the settings, then a table: a row a method, in percent, intervals in brackets, best in bold.

    The properties are those after all edits under the report's main measure, which the line names. Where
    likelihoods of two answers were compared, a table for each way of counting follows.
    """
    found = aggregate(results)
    return _filled("table.md", found, table=tables.overview(found), preferences=tables.preferences(found))


def _write(path: str | Path, text: str) -> Path:
    """Write text as UTF-8; characters that UTF-8 does not have become HTML character references.

    A report is for others, so they may read it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode("utf-8", "xmlcharrefreplace"))
    path.chmod(0o644)
    return path


def _filled(template: str, found: Aggregate, **content: Any) -> str:
    """A template filled with what both show and ``content``; in ``.html`` all text is escaped."""
    try:
        import jinja2
        from markupsafe import Markup, escape
    except ImportError as error:
        raise ImportError('the report is made with jinja2; run `pip install "memplug[report]"`') from error

    def shown(value: Any) -> Any:
        """Text with what is not printable escaped; what is markup, or passed by the filter "cell", stays."""
        return printable(value) if type(value) is str and template.endswith(".html") else value

    def broken(label: str) -> Markup:
        """A label that may break after its signs."""
        return Markup(re.sub(r"([:/_=-])(?=\w)", r"\1<wbr>", str(escape(printable(label)))))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=shown,
    )
    environment.filters |= {
        "breaks": broken,
        "cell": _only_text,
        "lines": lambda text: Markup("\n").join(map(printable, str(text).split("\n"))),
        "plain": lambda value: (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        ),
    }
    names = {term.key: term for term in MEASURES}
    return environment.get_template(template).render(
        g=found,
        settings=found.settings,
        main=names[found.main],
        main_specificity=names[suits("specificity", found.main)],
        measures=[names[key] for key in found.measures],
        level=f"{100 * float(found.settings.get('level') or 0.95):g}",
        # the package's own files, and figures whose labels are escaped
        own=lambda name: Markup((_FOLDER / name).read_text(encoding="utf-8")),
        svg=lambda panel: Markup(svg(panel)),
        panels=lambda paths: charts.curves(found, paths),
        numbers=lambda paths: [tables.curve(found, title, path) for title, path in paths.items()],
        **content,
    )


def _only_text(text: str) -> str:
    """Text that means only itself in a cell of a Markdown table: no tag, no markup, nothing unprintable."""
    text = re.sub(r"([\\|*_`\[\]~])", r"\\\1", printable(" ".join(text.split())))
    # As entities, since not all that show Markdown heed a backslash before a tag.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _all_runs(found: Aggregate) -> list[Any]:
    return [run for method in found.methods for run in (*method.runs, *method.failed)]


def _highlights(found: Aggregate) -> list[tuple[str, str, str]]:
    """What a reader asks first: name of the figure, its value, whose it is."""
    path = f"final.generalization.{found.main}"
    qualities: dict[str, Callable[[MethodResult], float | None]] = {
        "best balance (harmonic mean)": lambda m: m.harmonic(found.main),
        "best after rephrasing": lambda m: m.means[path].value if path in m.means else None,
    }
    tiles = []
    for name, get in qualities.items():
        values = {m.label: percent(value) for m in found.done if (value := get(m)) is not None}
        if len(values) > 1:
            best = max(values.values(), key=float)
            tiles.append((name, f"{best} %", _who([label for label, v in values.items() if v == best])))
    for name, path, text in (
        ("fastest to edit", "cost.seconds_per_edit", seconds),
        ("least overhead of a forward", "cost.forward.ratio", ratio),
    ):
        means = {m.label: m.means[path] for m in found.done if path in m.means}
        if len(means) > 1:
            first = lowest(means)
            ends = dict.fromkeys(text(pick(means[label].value for label in first)) for pick in (min, max))
            tiles.append((name, "–".join(ends), _who(first) + ", not told apart" * (len(first) > 1)))
    return tiles


def _who(labels: list[str]) -> str:
    return ", ".join(labels) if len(labels) < 4 else f"{len(labels)} methods"


def _truths(found: Aggregate) -> str:
    """Where the answers came from that a new answer was compared with."""
    names = {"data": "the data set's", "base model": "the base model's own before the edit"}
    counts: dict[str, int] = {}
    for run in (*found.base.runs, *_all_runs(found)):
        for source, count in (run.preference.get("before") or {}).items():
            counts[source] = max(counts.get(source, 0), int(count))
    return " or ".join(f"{names.get(s, s)} ({count} cases a seed)" for s, count in counts.items() if count)


def _entropy(method: MethodResult) -> float | None:
    """Of the choice of modules, in bits; the mean over the runs."""
    found = [run.details["entropy"] for run in method.runs if run.details.get("entropy") is not None]
    return sum(found) / len(found) if found else None
