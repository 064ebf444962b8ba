"""The tables of a report, as cells of text: the page, Markdown and the terminal show these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .aggregate import Aggregate, Mean, MethodResult, lowest, suits
from .labels import MEASURES, MOMENTS, PREFERENCES, PROPERTIES
from .units import NONE, amount, decimal, percent, ratio, seconds, size, whole_percent

__all__ = [
    "Cell", "Column", "Row", "Table", "costs", "curve", "general", "overview", "preferences", "quality",
    "retention", "summary", "votes",
]  # fmt: skip

_SHOWN = 30  # prompts of a table of votes


class Column(NamedTuple):
    """A column: its heading, the path of its scores, how one is printed, which way is better.

    Attributes:
        better: 1: higher, -1: lower, 0: neither.
        noisy: measured with noise: the best is marked only where it can be told from the others.
    """

    label: str
    meaning: str = ""
    path: str = ""
    text: Callable[[float], str] = percent
    better: int = 1
    noisy: bool = False


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


class Table(NamedTuple):
    """A table; ``key`` names it within the page, ``head`` is the heading of its labels."""

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    head: str = "Method"


_TIME = Column("Time per edit", "wall-clock time by edit", "cost.seconds_per_edit", seconds, -1, True)
_FORWARD = Column(
    "Forward",
    "a forward on texts that name no edited subject, over the bare model's in the same run",
    "cost.forward.ratio",
    ratio,
    -1,
    True,
)
_BYTES = Column("Bytes per edit", "of the saved state", "cost.bytes_per_edit", size, -1)
_COSTS = (
    _TIME,
    _FORWARD,
    Column("Decoding", "the same of a decoded token", "cost.decode.ratio", ratio, -1, True),
    Column("Host memory", "peak growth while editing", "cost.peak_host_bytes", size, -1, True),
    Column("Device memory", "the same of accelerators", "cost.peak_device_bytes", size, -1, True),
    Column("Host memory, forward", "peak growth in it", "cost.forward.peak_host_bytes", size, -1, True),
    Column("Device memory, forward", "peak growth in it", "cost.forward.peak_device_bytes", size, -1, True),
    Column("Learned numbers", "held when all edits had been made", "cost.parameters", amount, -1),
    _BYTES,
    Column("Fitting", "time to learn to edit, before the first edit", "fit.seconds", seconds, 0),
)


def quality(found: Aggregate, moment: str, measure: str) -> Table:
    """All properties at one moment under one measure; nothing else is in the same column."""
    names = {term.key: term.label for term in (*MOMENTS, *MEASURES)}
    title = f"{names[measure][:1].upper()}{names[measure][1:]}, {names[moment]} (%)"
    return _filled(f"{moment}-{measure}", title, found, _quality(moment, measure))


def _quality(moment: str, measure: str) -> list[Column]:
    columns = [Column(label, meaning, f"{moment}.{key}.{measure}") for key, label, meaning in PROPERTIES]
    if measure == "tokens":
        label, meaning = "Perplexity of the new answer", "of the edit's answer; lower is better"
        columns.append(Column(label, meaning, f"{moment}.perplexity", decimal, -1))
    return columns


def costs(found: Aggregate) -> Table:
    """Time, memory and size."""
    table = _filled("costs", "Costs", found, _COSTS, base=False)
    shipped = {m.label for m in found.done if all(run.fit.get("shipped") for run in m.runs)}
    told = "fitted beforehand; comes with the package"
    return table._replace(
        rows=[row._replace(note=told) if row.label in shipped else row for row in table.rows]
    )


def overview(found: Aggregate) -> Table:
    """The qualities after all edits under the report's main measure, and the three costs asked for most."""
    return _filled("overview", "", found, [*_quality("final", found.main), _TIME, _FORWARD, _BYTES])


def summary(found: Aggregate) -> Table:
    """What fits a terminal: whole answers after all edits, the first edits, general tasks, two costs."""
    how = "generated" if found.settings.get("max_new_tokens") else "whole"
    short = zip(("eff.", "gen.", "spec.", "same", "port."), PROPERTIES, strict=False)
    paths = {label: f"final.{prop.key}.{how}" for label, prop in short}
    paths |= {"first": f"first.efficacy.{how}"} | {task: f"general.{task}" for task in found.tasks}
    columns = [Column(label, path=path, text=whole_percent) for label, path in paths.items()]
    columns += [_TIME._replace(label="s/edit", text=decimal), _FORWARD._replace(label="fwd", text=decimal)]
    return _filled("summary", "", found, columns, whole=True)


def general(found: Aggregate) -> Table:
    """The general tasks when all edits had been made."""
    columns = [Column(task, "items answered right", f"general.{task}") for task in found.tasks]
    return _filled("general", "General tasks (%)", found, columns)


def retention(found: Aggregate) -> Table:
    """Edited retention: the first edits when all had been made, and what held of all edits."""
    first, columns = min(100, int(found.settings.get("edits") or 100)), []
    for key, label, meaning in PROPERTIES[:3]:
        path = f"first.{key}.{suits(key, found.main)}"
        columns.append(Column(f"First {first}: {label.lower()}", meaning, path))
    for key, label, _ in PROPERTIES[:2]:
        meaning = "of what was right after its batch"
        columns.append(Column(f"Held: {label.lower()}", meaning, f"retained.{key}"))
    return _filled("retention", "Edited retention (%)", found, columns, base=False)


def preferences(found: Aggregate) -> list[Table]:
    """Comparisons of the new answer's and the true answer's likelihood, each way of counting by itself."""
    tables = []
    for way, label, meaning in PREFERENCES:
        paths = {k: f"preference.{way}.{k}" for k in ("efficacy", "generalization", "neighborhood")}
        columns = [Column(key.capitalize(), meaning, path) for key, path in paths.items()]
        base = any(path in found.base.means for path in paths.values())
        tables.append(_filled(f"preference-{way}", f"{label} (%)", found, columns, base=base))
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
    return Table(path, f"{title} (%)", [Column(f"{edits:,} edits") for edits in steps], rows)


def votes(method: MethodResult) -> list[Table]:
    """The votes on the prompts that a run of the method noted (of the first seed that has some): by kind of
    prompt the share for which each layer voted, and prompt by prompt the layers' similarities."""
    noted = [votes for run in method.runs if (votes := run.details.get("votes"))][:1]
    asked: list[Mapping[str, Any]] = [vote for votes in noted for vote in votes]
    layers = sorted({int(layer) for vote in asked for layer in vote["layers"]})
    if not layers:
        return []
    columns = [*(Column(f"layer {layer}") for layer in layers), Column("recalled")]
    rows, by_kind = [], dict[str, list[list[bool]]]()
    for vote in asked:
        similarity, voted = (
            dict(zip(vote["layers"], vote.get(k, ()), strict=False)) for k in ("similarity", "voted")
        )
        by_kind.setdefault(vote["kind"], []).append(
            [*(bool(voted.get(layer)) for layer in layers), vote["recalled"] is not None]
        )
        cells = [
            Cell(f"{value:.2f}", heat=value, marked=bool(voted.get(layer)))
            if (value := similarity.get(layer)) is not None
            else Cell(heat=0.0)
            for layer in layers
        ]
        recalled = "nothing" if vote["recalled"] is None else str(vote["recalled"])
        rows.append(Row(vote["prompt"], vote["kind"], [*cells, Cell(recalled)]))
    shares = {
        f"{kind} ({len(its)})": [sum(column) / len(its) for column in zip(*its, strict=True)]
        for kind, its in by_kind.items()
    }
    kinds = [Row(kind, "", [Cell(percent(s), heat=s) for s in its]) for kind, its in shares.items()]
    limit = next((f", above {vote['threshold']:.2f}" for vote in asked if vote.get("threshold")), "")
    return [
        Table("votes", f"{method.label}: votes by layer{limit} (%)", columns, kinds, "Prompts"),
        Table("similarities", f"{method.label}: similarities", columns, rows[:_SHOWN], "Prompt"),
    ]


def _filled(
    key: str,
    title: str,
    found: Aggregate,
    columns: Sequence[Column],
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
    return Table(key, title, columns, rows)


def _best(found: Aggregate, column: Column) -> str | None:
    """The best number as printed; None where none is: those that read the same are equally good."""
    means = {m.label: m.means[column.path] for m in found.done if column.path in m.means}
    if not column.better or len({column.text(mean.value) for mean in means.values()}) < 2:
        return None
    if column.noisy:
        first = lowest(means)
        return column.text(means[first[0]].value) if len(first) == 1 else None
    return column.text(max((mean.value for mean in means.values()), key=lambda v: column.better * v))


def _cell(mean: Mean | None, text: Callable[[float], str]) -> Cell:
    if mean is None:
        return Cell()
    interval = "" if mean.low is None or mean.high is None else f"{text(mean.low)}–{text(mean.high)}"
    low, high = text(min(mean.seeds)), text(max(mean.seeds))
    return Cell(text(mean.value), interval, "" if low == high else f"{low}–{high}")
