"""A comparison as a Markdown table, for a README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...shown import printable
from .files import write_text
from .gather import Gathered, gather
from .tables import Cell, Table, costs, preferences, quality
from .units import NONE
from .words import MEASURES

__all__ = ["markdown", "write_markdown"]

_COSTS = ("seconds_per_edit", "forward", "bytes_per_edit")


def write_markdown(results: Mapping[str, Any], path: str | Path) -> Path:
    """Write `markdown` of the results to a file.

    Args:
        results: as `Comparison.to_json` writes them.
        path: the file; its folder is made, an earlier file is replaced.

    Raises:
        ValueError: these are not results of a comparison.
    """
    return write_text(path, markdown(results))


def markdown(results: Mapping[str, Any]) -> str:
    """A line on the settings, then a table: a row a method, in percent, intervals in brackets, best in bold.

    The properties are those after all edits under the report's main measure, which the line names. Where
    likelihoods of two answers were compared, a table for each way of counting follows.
    """
    gathered = gather(results)
    table, cost = quality(gathered, "final", gathered.main), costs(gathered)
    kept = [i for i, term in enumerate(cost.columns) if term.key in _COSTS]
    by_label = {line.label: line for line in cost.lines}
    heads = ["method", *(_text(t.label) for t in (*table.columns, *(cost.columns[i] for i in kept)))]
    lines = [_settings(gathered), "", _row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    width = len(heads) - 1
    for line in table.lines:
        if line.error:
            lines.append(_row([_text(line.label), f"failed: {_text(line.error)}", *[""] * (width - 1)]))
            continue
        other = by_label.get(line.label)
        spent = [other.cells[i] for i in kept] if other else []
        cells = [*map(_cell, line.cells), *map(_cell, spent)] + [NONE] * (len(kept) - len(spent))
        lines.append(_row([_text(line.label), *cells]))
    notes = [f"{_text(line.label)}: {_text(line.note)}" for line in table.lines if line.note]
    if gathered.unlike:
        notes.append(f"The runs were not all made alike: {_text('; '.join(gathered.unlike))}.")
    lines += ["", *notes] if notes else []
    for more in preferences(gathered):
        lines += ["", f"{more.title}:", "", *_plain_table(more)]
    return "\n".join(lines) + "\n"


def _plain_table(table: Table) -> list[str]:
    """The methods that were finished, and the base model."""
    rows = [_row([_text(line.label), *map(_cell, line.cells)]) for line in table.lines if not line.error]
    return [
        _row(["method", *(_text(t.label) for t in table.columns)]),
        _row(["---", *["---:"] * len(table.columns)]),
        *rows,
    ]


def _cell(cell: Cell) -> str:
    """The number with its interval and, where seeds differ, their range."""
    beside = "; ".join(filter(None, (cell.interval, cell.seeds and f"seeds {cell.seeds}")))
    return f"{_bold(cell.text, cell.best)}{f' ({beside})' if beside else ''}"


def _settings(gathered: Gathered) -> str:
    names = {term.key: term.label for term in MEASURES}
    seeds = gathered.setting("seeds", [])
    parts = [
        _text(f"{gathered.setting('edits', '?')} edits in batches of {gathered.setting('batch', '?')}"),
        f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}",
        f"model {_text(str(gathered.setting('model', '?')))}",
        f"cases {_text(str(gathered.setting('cases', '?')))}",
        *(["prompts in the chat template"] if gathered.setting("chat", False) else []),
        _text(f"{gathered.setting('device', '?')}, {gathered.setting('dtype', '?')}"),
    ]
    if not gathered.done:
        return f"{'; '.join(parts)}. No run was finished."
    ranges = ", with the range of the seeds' means" if len(seeds) > 1 else ""
    level = f"{100 * float(gathered.setting('level', 0.95)):g}"
    return (
        f"{'; '.join(parts)}. In percent after all edits, {names.get(gathered.main, gathered.main)}; "
        f"{level} % intervals over cases in brackets{ranges}."
    )


def _text(text: str) -> str:
    """Text that means only itself in a cell of a table: no tag, no markup, nothing that is not printable."""
    text = printable(" ".join(text.split()))
    for sign in "\\|*_`[]~":
        text = text.replace(sign, f"\\{sign}")
    # As entities, since not all that show Markdown heed a backslash before a tag.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
