"""A comparison as one web page that needs nothing else: style, script, figures and answers are in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...shown import printable
from .answers import pack
from .charts import general_retention, quality_dots, retention, trade_offs
from .details import decisions
from .files import write_text
from .gather import Gathered, Method, dig, gather, lowest, suits
from .pictures import svg
from .tables import all_quality, costs, general, preferences
from .tables import retention as edited_retention
from .units import percent, ratio, seconds
from .words import FORMULAS, MEASURES, MOMENTS, PROPERTIES

__all__ = ["html", "write_html"]

_PAGE = Path(__file__).parent / "page"


def write_html(results: Mapping[str, Any], path: str | Path, *, answers: int = 400_000) -> Path:
    """Write `html` of the results to a file.

    Args:
        results: as `Comparison.to_json` writes them.
        path: the file; its folder is made, an earlier file is replaced in one step.
        answers: as for `html`.

    Raises:
        ValueError: these are not results of a comparison.
        ImportError: jinja2 or matplotlib is not installed.
    """
    return write_text(path, html(results, answers=answers))


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
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise ImportError('the page is made with jinja2; run `pip install "memplug[report]"`') from error
    gathered = gather(results)

    def shown(value: Any) -> Any:
        """Text from results with what is not printable escaped; what is markup already stays as it is."""
        return printable(value) if type(value) is str else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters["percent"] = percent

    def own(text: str) -> markupsafe.Markup:
        return markupsafe.Markup(text)  # the package's own files, and figures whose labels are escaped

    def breaks(label: str) -> markupsafe.Markup:
        """A label that may break after its signs."""
        plain = str(markupsafe.escape(printable(label)))
        return markupsafe.Markup(re.sub(r"([:/_=-])(?=\w)", r"\1<wbr>", plain))

    def lines(text: str) -> markupsafe.Markup:
        """A text of several lines, for a place that keeps them."""
        return markupsafe.Markup("\n").join(map(printable, str(text).split("\n")))

    environment.filters["heat"] = lambda value: f"{100 * min(max(value, 0.0), 1.0):.0f}"
    environment.filters["breaks"] = breaks
    environment.filters["lines"] = lines
    environment.globals["svg"] = lambda chart: own(svg(chart))
    environment.globals["own"] = own
    page = environment.get_template("page.html")
    return page.render(
        css=own((_PAGE / "page.css").read_text(encoding="utf-8")),
        js=own((_PAGE / "page.js").read_text(encoding="utf-8")),
        **_content(gathered, answers),
    )


def _content(gathered: Gathered, answers: int) -> dict[str, Any]:
    """All names of the template."""
    names = {term.key: term for term in (*MEASURES, *MOMENTS)}
    packed = pack(gathered, answers)
    return {
        "g": gathered,
        "title": _title(gathered),
        "facts": _facts(gathered),
        "highlights": _highlights(gathered),
        "main": names[gathered.main],
        "main_specificity": names[suits("specificity", gathered.main)],
        "measures": [names[key] for key in gathered.measures],
        "moments": MOMENTS,
        "tables": all_quality(gathered),
        "properties": PROPERTIES,
        "costs": costs(gathered),
        "general": general(gathered),
        "preferences": preferences(gathered),
        "truths": _truths(gathered),
        "warned": _warned(gathered),
        "dots": quality_dots(gathered),
        "retention": retention(gathered),
        "edited_retention": edited_retention(gathered),
        "unlike": gathered.unlike,
        "general_retention": general_retention(gathered),
        "trade_offs": trade_offs(gathered),
        "decisions": decisions(gathered),
        "formulas": FORMULAS,
        "configs": _configs(gathered),
        "packed": packed if packed["probes"] else None,
        "command": gathered.setting("command"),
        "settings": _plain(gathered.results.get("settings"), leave_out=("command",)),
        "environment": _plain(gathered.results.get("environment")),
        "data": _plain(gathered.results.get("data")),
        "level": f"{100 * float(gathered.setting('level', 0.95)):g}",
    }


def _title(gathered: Gathered) -> str:
    count = len(gathered.methods)
    methods = "editing method" if count == 1 else "editing methods"
    return f"{count} {methods} compared on {gathered.setting('model', 'a model')}"


def _facts(gathered: Gathered) -> list[tuple[str, str]]:
    seeds, made = gathered.setting("seeds", []), (gathered.results.get("environment") or {}).get("made")
    failed = sum(len(method.failed) for method in gathered.methods)
    runs = sum(len(method.runs) for method in gathered.methods) + failed
    return [
        ("Edits", f"{gathered.setting('edits', '–')}, in batches of {gathered.setting('batch', '–')}"),
        ("Facts from", str(gathered.setting("cases", "–"))),
        *([("Prompts", "in the chat template")] if gathered.setting("chat", False) else []),
        ("Seeds", f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else "–"),
        ("Runs", f"{runs}, {failed} failed" if failed else str(runs)),
        ("Device", f"{gathered.setting('device', '–')}, {gathered.setting('dtype', '–')}"),
        ("Made", f"{str(made).replace('T', ' ')[:16]} UTC" if made else "–"),
    ]


def _highlights(gathered: Gathered) -> list[tuple[str, str, str]]:
    """What a reader asks first: name of the figure, its value, whose it is."""
    main = gathered.main
    tiles = []
    qualities = {
        "best balance (harmonic mean)": lambda m: m.harmonic(main),
        "best after rephrasing": lambda m: _value(m, "generalization", main),
    }
    for name, get in qualities.items():
        found = {method.label: value for method in gathered.done if (value := get(method)) is not None}
        if len(found) > 1:
            best = percent(max(found.values()))
            tiles.append((name, f"{best} %", _who([k for k, v in found.items() if percent(v) == best])))
    for name, path, text in (
        ("fastest to edit", ("seconds_per_edit",), seconds),
        ("least overhead of a forward", ("forward", "ratio"), ratio),
    ):
        spans = {m.label: span for m in gathered.done if (span := m.span("cost", *path)) is not None}
        if len(spans) > 1:
            first = lowest(spans)
            ends = [text(pick(spans[label].value for label in first)) for pick in (min, max)]
            told = "–".join(dict.fromkeys(ends))
            tiles.append((name, told, _who(first) + (", not told apart" if len(first) > 1 else "")))
    return tiles


def _who(labels: list[str]) -> str:
    return ", ".join(labels) if len(labels) < 4 else f"{len(labels)} methods"


def _truths(gathered: Gathered) -> str:
    """Where the answers came from that a new answer was compared with."""
    counts: dict[str, int] = {}
    for run in (*gathered.base.runs, *(run for method in gathered.done for run in method.runs)):
        for source, count in (dig(run, "preference", "before") or {}).items():
            counts[source] = max(counts.get(source, 0), int(count))
    names = {"data": "the data set's", "base model": "the base model's own before the edit"}
    told = [
        f"{names.get(source, source)} ({count} cases a seed)" for source, count in counts.items() if count
    ]
    return " or ".join(told)


def _warned(gathered: Gathered) -> list[tuple[str, str]]:
    """Warnings by method, each once."""
    found: dict[tuple[str, str], None] = {}
    for method in gathered.methods:
        for run in (*method.runs, *method.failed):
            found.update(dict.fromkeys((method.label, str(warning)) for warning in run.get("warnings") or ()))
    return list(found)


def _value(method: Method, prop: str, measure: str) -> float | None:
    mean = method.score("final", prop, suits(prop, measure))
    return None if mean is None else mean.value


def _configs(gathered: Gathered) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each method's constants, of its first run."""
    found = []
    for method in gathered.methods:
        run = (*method.runs, *method.failed)[0]
        found.append((method.label, [("method", str(run.get("name"))), *_plain(run.get("config"))]))
    return found


def _plain(values: Any, leave_out: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Names and values as text."""
    if not isinstance(values, Mapping):
        return []
    kept = {key: value for key, value in values.items() if key not in leave_out}
    return [
        (str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
        for key, value in kept.items()
    ]
