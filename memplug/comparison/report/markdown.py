"""A comparison as a Markdown table, for a README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import write_text
from .gather import Gathered, gather
from .tables import costs, quality
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

    The properties are those after all edits under the report's main measure, which the line names.
    """
    gathered = gather(results)
    table, cost = quality(gathered, "final", gathered.main), costs(gathered)
    kept = [i for i, term in enumerate(cost.columns) if term.key in _COSTS]
    by_label = {line.label: line for line in cost.lines}
    heads = ["method", *(term.label for term in table.columns), *(cost.columns[i].label for i in kept)]
    lines = [_settings(gathered), "", _row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    width = len(heads) - 1
    for line in table.lines:
        if line.error:
            lines.append(_row([_text(line.label), f"failed: {_text(line.error)}", *[""] * (width - 1)]))
            continue
        other = by_label.get(line.label)
        spent = [other.cells[i] for i in kept] if other else []
        cells = [f"{_bold(c.text, c.best)}{f' ({c.interval})' if c.interval else ''}" for c in line.cells]
        cells += [_bold(c.text, c.best) for c in spent] + [NONE] * (len(kept) - len(spent))
        lines.append(_row([_text(line.label), *cells]))
    notes = [f"{_text(line.label)}: {_text(line.note)}" for line in table.lines if line.note]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _settings(gathered: Gathered) -> str:
    names = {term.key: term.label for term in MEASURES}
    seeds = gathered.setting("seeds", [])
    parts = [
        f"{gathered.setting('edits', '?')} edits in batches of {gathered.setting('batch', '?')}",
        f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}",
        f"model {_text(str(gathered.setting('model', '?')))}",
        f"cases {_text(str(gathered.setting('cases', '?')))}",
        f"{gathered.setting('device', '?')}, {gathered.setting('dtype', '?')}",
    ]
    level = f"{100 * float(gathered.setting('level', 0.95)):g}"
    return (
        f"{'; '.join(parts)}. In percent after all edits, {names.get(gathered.main, gathered.main)}; "
        f"{level} % intervals over cases in brackets."
    )


def _text(text: str) -> str:
    """Text that means only itself in a cell of a table."""
    for sign in "\\|*_`<>[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
