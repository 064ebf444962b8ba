"""The tables of a report, as cells of text: the page, Markdown and the terminal show these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .aggregate import Aggregate, Mean, MethodResult, lowest, suits
from .labels import MEASURES, MOMENTS, PREFERENCES, PROPERTIES, Term
from .units import NONE, amount, decimal, percent, ratio, seconds, size, whole_percent

__all__ = [
    "Cell", "Row", "Table", "costs", "curve", "general", "overview", "preferences", "quality", "retention",
    "summary", "votes",
]  # fmt: skip

_SHOWN = 30  # prompts of a table of votes


class Cell(NamedTuple):
    """A number as text.

    Attributes:
        text: the number, or an en dash.
        interval: its confidence interval.
        seeds: the range of the seeds' means; empty where they read the same.
        best: whether no other method's is better; of times and memory, whether it is clearly the lowest.
        heat: from 0 to 1, how deep its colour is; None for none.
        marked: whether it is framed.
    """

    text: str = NONE
    interval: str = ""
    seeds: str = ""
    best: bool = False
    heat: float | None = None
    marked: bool = False


class Row(NamedTuple):
    """One method's cells, or what went wrong instead; ``beside`` stands small beside its label."""

    label: str
    beside: str
    cells: Sequence[Cell]
    error: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its heading, what its columns mean, and its rows; ``key`` names it within the page."""

    key: str
    title: str
    columns: Sequence[Term]
    rows: Sequence[Row]
    head: str = "Method"


class _Column(NamedTuple):
    """A column to fill: the path of its scores, how to print one, and which way is better."""

    term: Term
    path: str
    text: Callable[[float], str] = percent
    better: int = 1  # -1: lower is; 0: neither
    noisy: bool = True  # of costs: the best is marked only where it can be told from the others


def _cost(
    label: str, meaning: str, path: str, text: Callable[[float], str], better: int = -1, noisy: bool = True
) -> _Column:
    return _Column(Term(path, label, meaning), path, text, better, noisy)


_COSTS = (
    _cost(
        "Time per edit", "wall-clock time of the edits over their number", "cost.seconds_per_edit", seconds
    ),
    _cost(
        "Forward",
        "a forward on texts that name no edited subject, over the bare model's in the same run",
        "cost.forward.ratio",
        ratio,
    ),
    _cost("Decoding", "a decoded token, over the bare model's in the same run", "cost.decode.ratio", ratio),
    _cost("Host memory", "growth of the process's peak memory in editing", "cost.peak_host_bytes", size),
    _cost("Device memory", "peak of accelerator memory allocated in editing", "cost.peak_device_bytes", size),
    _cost("Host memory, forward", "growth of it during that forward", "cost.forward.peak_host_bytes", size),
    _cost("Device memory, forward", "its peak during it", "cost.forward.peak_device_bytes", size),
    _cost(
        "Learned numbers",
        "learned and held when all edits had been made",
        "cost.parameters",
        amount,
        noisy=False,
    ),
    _cost("Bytes per edit", "saved state over the number of edits", "cost.bytes_per_edit", size, noisy=False),
    _cost("Fitting", "time to learn to edit, before the first edit", "fit.seconds", seconds, 0),
)


def quality(found: Aggregate, moment: str, measure: str) -> Table:
    """All properties at one moment under one measure; nothing else is in the same column."""
    names = {term.key: term.label for term in (*MOMENTS, *MEASURES)}
    title = f"{names[measure][:1].upper()}{names[measure][1:]}, {names[moment]} (%)"
    return _filled(f"{moment}-{measure}", title, found, _quality(moment, measure))


def costs(found: Aggregate) -> Table:
    """Time, memory and size."""
    table = _filled("costs", "Costs", found, _COSTS, base=False)
    shipped = {m.label for m in found.done if all(run.fit.get("shipped") for run in m.runs)}
    told = "fitted beforehand; comes with the package"
    rows = [row._replace(note=told) if row.label in shipped else row for row in table.rows]
    return Table(table.key, table.title, table.columns, rows)


def overview(found: Aggregate) -> Table:
    """The qualities after all edits under the report's main measure, and the three costs asked for most."""
    kept = [c for c in _COSTS if c.term.label in ("Time per edit", "Forward", "Bytes per edit")]
    return _filled("overview", "Methods", found, [*_quality("final", found.main), *kept])


def summary(found: Aggregate) -> Table:
    """What fits a terminal: whole answers after all edits, the first edits, general tasks, two costs."""
    how = "generated" if found.settings.get("max_new_tokens") else "whole"
    short = dict(zip(("eff.", "gen.", "spec.", "same", "port."), PROPERTIES, strict=False))
    asked = [(label, f"final.{prop.key}.{how}") for label, prop in short.items()]
    asked += [("first", f"first.efficacy.{how}"), *((task, f"general.{task}") for task in found.tasks)]
    columns = [_Column(Term(label, label), path, whole_percent) for label, path in asked]
    for label, path in (("s/edit", "cost.seconds_per_edit"), ("fwd", "cost.forward.ratio")):
        columns.append(_Column(Term(label, label), path, decimal, -1))
    return _filled("summary", "", found, columns, whole=True)


def general(found: Aggregate) -> Table:
    """The general tasks when all edits had been made."""
    columns = [_Column(Term(task, task, "items answered right"), f"general.{task}") for task in found.tasks]
    return _filled("general", "General tasks (%)", found, columns)


def retention(found: Aggregate) -> Table:
    """Edited retention: the first edits when all had been made, and what held of all edits."""
    first = min(100, int(found.settings.get("edits") or 100))
    columns = [
        _Column(
            Term(prop.key, f"First {first}: {prop.label.lower()}", prop.meaning),
            f"first.{prop.key}.{suits(prop.key, found.main)}",
        )
        for prop in PROPERTIES[:3]
    ] + [
        _Column(
            Term(f"held-{prop.key}", f"Held: {prop.label.lower()}", "of what was right after its batch"),
            f"retained.{prop.key}",
        )
        for prop in PROPERTIES[:2]
    ]  # fmt: skip
    return _filled("retention", "Edited retention (%)", found, columns, base=False)


def preferences(found: Aggregate) -> list[Table]:
    """Comparisons of the new answer's and the true answer's likelihood, each way of counting by itself."""
    tables = []
    for way in PREFERENCES:
        columns = [
            _Column(Term(key, key.capitalize(), way.meaning), f"preference.{way.key}.{key}")
            for key in ("efficacy", "generalization", "neighborhood")
        ]
        base = any(column.path in found.base.means for column in columns)
        tables.append(_filled(f"preference-{way.key}", f"{way.label} (%)", found, columns, base=base))
    return [table for table in tables if table.columns]


def curve(found: Aggregate, title: str, path: str) -> Table:
    """A score at each number of edits held."""
    along = {method.label: dict(method.along(path)) for method in found.done}
    steps = sorted({edits for points in along.values() for edits in points})
    rows = [
        Row(label, "", [_cell(points.get(edits), percent)._replace(seeds="") for edits in steps])
        for label, points in along.items()
        if points
    ]
    return Table(path, f"{title} (%)", [Term(str(edits), f"{edits:,} edits") for edits in steps], rows)


def votes(method: MethodResult) -> list[Table]:
    """The votes on the prompts that a run of the method noted (of the first seed that has some): by kind of
    prompt the share for which each layer voted, and prompt by prompt the layers' similarities."""
    noted: Sequence[Mapping[str, Any]] = next(
        (run.details["votes"] for run in method.runs if run.details.get("votes")), []
    )
    layers = sorted({int(layer) for vote in noted for layer in vote["layers"]})
    if not layers:
        return []
    columns = [*(Term(str(layer), f"layer {layer}") for layer in layers), Term("recalled", "recalled")]
    shares = []
    for kind in dict.fromkeys(vote["kind"] for vote in noted):
        its = [vote for vote in noted if vote["kind"] == kind]
        voted = [sum(_at(vote, "voted", layer) or 0 for vote in its) / len(its) for layer in layers]
        voted.append(sum(vote["recalled"] is not None for vote in its) / len(its))
        shares.append(Row(f"{kind} ({len(its)})", "", [Cell(percent(share), heat=share) for share in voted]))
    rows = []
    for vote in noted[:_SHOWN]:
        seen = [(_at(vote, "similarity", layer), bool(_at(vote, "voted", layer))) for layer in layers]
        cells = [
            Cell(NONE if value is None else f"{value:.2f}", heat=value or 0.0, marked=voted)
            for value, voted in seen
        ]
        recalled = "nothing" if vote["recalled"] is None else str(vote["recalled"])
        rows.append(Row(vote["prompt"], vote["kind"], [*cells, Cell(recalled)]))
    return [
        Table("votes", f"{method.label}: votes by layer (%)", columns, shares, "Prompts"),
        Table("similarities", f"{method.label}: similarities", columns, rows, "Prompt"),
    ]


def _at(vote: Mapping[str, Any], name: str, layer: int) -> Any:
    return dict(zip(vote["layers"], vote[name], strict=False)).get(layer)


def _quality(moment: str, measure: str) -> list[_Column]:
    columns = [_Column(prop, f"{moment}.{prop.key}.{measure}", noisy=False) for prop in PROPERTIES]
    if measure == "tokens":
        term = Term("perplexity", "Perplexity of the new answer", "of the edit's answer; lower is better")
        columns.append(_Column(term, f"{moment}.perplexity", decimal, -1, False))
    return columns


def _filled(
    key: str,
    title: str,
    found: Aggregate,
    columns: Sequence[_Column],
    *,
    base: bool = True,
    whole: bool = False,
) -> Table:
    """The table with a row a method, less the columns for which there is nothing (unless ``whole``)."""
    shown = ((found.base,) if base and found.base.runs else ()) + found.methods
    columns = [c for c in columns if whole or any(c.path in method.means for method in shown)]
    best = [_best(found, column) for column in columns]
    rows = []
    for method in shown:
        if not method.runs:
            rows.append(Row(method.label, method.family, (), method.error))
            continue
        cells = []
        for column, winner in zip(columns, best, strict=True):
            cell = _cell(method.means.get(column.path), column.text)
            cells.append(cell._replace(best=method is not found.base and cell.text == winner))
        asked = len(method.runs) + len(method.failed)
        note = f"{len(method.failed)} of {asked} runs failed: {method.error}" if method.failed else ""
        rows.append(Row(method.label, method.family, cells, note=note))
    return Table(key, title, [column.term for column in columns], rows)


def _best(found: Aggregate, column: _Column) -> str | None:
    """The best number as printed; None where none is: those that read the same are equally good."""
    means = {m.label: m.means[column.path] for m in found.done if column.path in m.means}
    if not column.better or len({column.text(mean.value) for mean in means.values()}) < 2:
        return None
    if column.noisy and column.better < 0:
        first = lowest(means)
        return column.text(means[first[0]].value) if len(first) == 1 else None
    return column.text(max((mean.value for mean in means.values()), key=lambda v: column.better * v))


def _cell(mean: Mean | None, text: Callable[[float], str]) -> Cell:
    if mean is None:
        return Cell()
    interval = "" if mean.low is None or mean.high is None else f"{text(mean.low)}–{text(mean.high)}"
    low, high = text(min(mean.seeds)), text(max(mean.seeds))
    return Cell(text(mean.value), interval, "" if low == high else f"{low}–{high}")
