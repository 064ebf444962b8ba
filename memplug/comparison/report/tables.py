"""The tables of a report as plain rows of text, for the page and for Markdown alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .gather import Gathered, Method, Span, lowest, suits
from .intervals import Mean
from .units import NONE, amount, between, percent, ratio, seconds, size, span
from .words import COSTS, MEASURES, MOMENTS, PREFERENCES, PROPERTIES, Term

__all__ = ["Cell", "Line", "Table", "all_quality", "costs", "general", "preferences", "quality", "retention"]


class Cell(NamedTuple):
    """A number as text.

    Attributes:
        text: the number, or an en dash.
        interval: its confidence interval.
        seeds: the range of the seeds' means; empty with one seed.
        best: whether no other method's is better; of times and memory, whether it is clearly the lowest.
    """

    text: str = NONE
    interval: str = ""
    seeds: str = ""
    best: bool = False


@dataclass
class Line:
    """One row: a method's cells, or what went wrong instead."""

    label: str
    family: str
    cells: list[Cell]
    error: str = ""
    note: str = ""


@dataclass
class Table:
    """A table with its heading and what its columns mean.

    Attributes:
        key: names it within the page.
        title: heading.
        columns: heading and meaning of each column after the method's.
        lines: the rows.
    """

    key: str
    title: str
    columns: list[Term]
    lines: list[Line] = field(default_factory=list)


class _Column(NamedTuple):
    """A column to fill: how to get a number of a method, how to print it, and which way is better."""

    term: Term
    get: Callable[[Method], Mean | Span | None]
    text: Callable[[float], str]
    better: int = 1  # -1: lower is; 0: neither
    measured: bool = False  # with noise: the best is marked only where it can be told from the others


def quality(gathered: Gathered, moment: str, measure: str) -> Table:
    """All properties at one moment under one measure; nothing else is in the same column."""
    names = {term.key: term for term in (*MOMENTS, *MEASURES)}
    columns = []
    for prop in PROPERTIES:
        rows = (gathered.base, *gathered.done)
        if any(m.score(moment, prop.key, measure) for m in rows):
            get = _score(moment, prop.key, measure)
            columns.append(_Column(prop, get, percent))
    if measure == "tokens":
        term = Term("perplexity", "Perplexity of the new answer", "of the edit's answer; lower is better")
        columns.append(_Column(term, _score(moment, "perplexity", ""), _plain, -1))
    title = f"{_capital(names[measure].label)}, {names[moment].label} (%)"
    return _fill(Table(f"{moment}-{measure}", title, [c.term for c in columns]), gathered, columns)


def all_quality(gathered: Gathered) -> list[Table]:
    """A table for each moment and measure that was taken."""
    tables = [quality(gathered, moment.key, key) for moment in MOMENTS for key in gathered.measures]
    return [table for table in tables if table.columns]


def costs(gathered: Gathered) -> Table:
    """Time, memory and size."""
    paths: dict[str, tuple[tuple[str, ...], Callable[[float | None], str]]] = {
        "seconds_per_edit": (("cost", "seconds_per_edit"), seconds),
        "forward": (("cost", "forward", "ratio"), ratio),
        "decode": (("cost", "decode", "ratio"), ratio),
        "peak_host_bytes": (("cost", "peak_host_bytes"), size),
        "peak_device_bytes": (("cost", "peak_device_bytes"), size),
        "forward_host_bytes": (("cost", "forward", "peak_host_bytes"), size),
        "forward_device_bytes": (("cost", "forward", "peak_device_bytes"), size),
        "parameters": (("cost", "parameters"), amount),
        "bytes_per_edit": (("cost", "bytes_per_edit"), size),
        "fit": (("fit", "seconds"), seconds),
    }
    columns = [
        _Column(
            term,
            _span(*paths[term.key][0]),
            paths[term.key][1],
            0 if term.key == "fit" else -1,
            term.key not in ("parameters", "bytes_per_edit"),
        )
        for term in COSTS
        if any(method.span(*paths[term.key][0]) for method in gathered.done)
    ]
    table = _fill(Table("costs", "Costs", [c.term for c in columns]), gathered, columns, base=False)
    for line, method in zip(table.lines, gathered.methods, strict=True):
        if method.runs and all((run.get("fit") or {}).get("shipped") for run in method.runs):
            line.note = "fitted beforehand; comes with the package"
    return table


def general(gathered: Gathered) -> Table:
    """The general tasks when all edits had been made."""
    columns = [
        _Column(Term(t, t, "items answered right"), _mean("general", t), percent) for t in gathered.tasks
    ]
    return _fill(Table("general", "General tasks (%)", [c.term for c in columns]), gathered, columns)


def retention(gathered: Gathered) -> Table:
    """Edited retention: the first edits when all had been made, and what held of all edits."""
    columns = []
    first = min(100, int(gathered.setting("edits", 100)))
    for prop in PROPERTIES[:3]:
        get = _score("first", prop.key, suits(prop.key, gathered.main))
        if any(get(method) for method in gathered.done):
            columns.append(
                _Column(Term(prop.key, f"First {first}: {prop.label.lower()}", prop.meaning), get, percent)
            )
    for prop in PROPERTIES[:2]:
        path = ("retained", prop.key)
        if any(method.span(*path) for method in gathered.done):
            term = Term(
                f"held-{prop.key}", f"Held: {prop.label.lower()}", "of what was right after its batch"
            )
            columns.append(_Column(term, _span(*path), percent))
    table = Table("retention", "Edited retention (%)", [c.term for c in columns])
    return _fill(table, gathered, columns, base=False)


def preferences(gathered: Gathered) -> list[Table]:
    """Comparisons of the new answer's and the true answer's likelihood, each way of counting by itself."""
    tables = []
    for way in PREFERENCES:
        columns = []
        for key in ("efficacy", "generalization", "neighborhood"):
            get = _mean("preference", way.key, key)
            if any(get(method) for method in gathered.done):
                columns.append(_Column(Term(key, _capital(key), way.meaning), get, percent))
        if columns:
            table = Table(f"preference-{way.key}", f"{_capital(way.label)} (%)", [c.term for c in columns])
            tables.append(_fill(table, gathered, columns, base=any(c.get(gathered.base) for c in columns)))
    return tables


def _fill(table: Table, gathered: Gathered, columns: Sequence[_Column], *, base: bool = True) -> Table:
    best = []
    for column in columns:
        found = [value.value for method in gathered.done if (value := column.get(method)) is not None]
        if column.measured:
            spans = {m.label: s for m in gathered.done if isinstance(s := column.get(m), Span)}
            first = lowest(spans) if column.better and len(spans) > 1 else []
            best.append(column.text(spans[first[0]].value) if len(first) == 1 else "")
            continue
        # as printed: two numbers that read the same are equally good, and if all do, none is best
        read = {column.text(value) for value in found}
        told = column.better and len(read) > 1
        best.append(column.text(max(found, key=lambda v: column.better * v)) if told else "")
    rows = ((gathered.base,) if base and gathered.base.runs else ()) + gathered.methods
    for method in rows:
        if not method.runs:
            table.lines.append(Line(method.label, method.family, [], method.error))
            continue
        cells = []
        for column, winner in zip(columns, best, strict=True):
            cell = _cell(column.get(method), column.text, column.better)
            cells.append(cell._replace(best=method.family != "base" and cell.text == winner != ""))
        asked = len(method.runs) + len(method.failed)
        note = f"{len(method.failed)} of {asked} runs failed: {method.error}" if method.failed else ""
        table.lines.append(Line(method.label, method.family, cells, note=note))
    return table


def _cell(found: Mean | Span | None, text: Callable[[float], str], better: int) -> Cell:
    if found is None:
        return Cell()
    if isinstance(found, Span):
        return Cell(*span(found, text)[:1], seeds=span(found, text)[1])
    low, high = text(min(found.seeds)), text(max(found.seeds))
    scale, digits = (1, 2) if better < 0 else (100, 1)
    return Cell(text(found.value), between(found, scale, digits), "" if low == high else f"{low}–{high}")


def _score(moment: str, prop: str, measure: str) -> Callable[[Method], Mean | None]:
    return lambda method: method.score(moment, prop, measure)


def _mean(*path: str) -> Callable[[Method], Mean | None]:
    return lambda method: method.mean(*path)


def _span(*path: str) -> Callable[[Method], Span | None]:
    return lambda method: method.span(*path)


def _plain(value: float) -> str:
    return f"{value:.2f}" if value < 1e4 else f"{value:.1e}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
