"""A comparison as a table in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...shown import printable
from .aggregate import Aggregate, aggregate
from .tables import summary

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["rich_table"]


def rich_table(results: Mapping[str, Any], title: str | None = None) -> Table:
    """The `summary`; below it what the columns mean, and why methods failed."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    found = aggregate(results)
    made = summary(found)
    table = Table(
        title=title,
        caption=escape(_caption(found)),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("%", overflow="fold", min_width=9)
    for column in made.columns:
        table.add_column(escape(printable(column.label)), justify="right", no_wrap=True)
    failed = {method.label: len(method.failed) for method in found.methods}
    for row in made.rows:
        label, lost = escape(printable(row.label)), failed.get(row.label, 0)
        if row.error:
            table.add_row(label, "[red]failed[/red]")
            continue
        runs = next((len(method.runs) for method in found.methods if method.label == row.label), 0) + lost
        table.add_row(
            label + (f" ({lost} of {runs} failed)" if lost else ""), *(cell.text for cell in row.cells)
        )
    return table


def _caption(found: Aggregate) -> str:
    settings = found.settings
    asked = " as generated" if settings.get("max_new_tokens") else ", teacher forced"
    seeds = settings["seeds"]
    text = (
        f"{settings['edits']} edits in batches of {settings['batch']}, seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))}. Efficacy, generalization, specificity, other facts about the same "
        f"subjects, portability: whole answers{asked}, the third and fourth against the base model. First: "
        "efficacy of the first edits after all. Seconds an edit; a forward's time over the base's"
    )
    if settings.get("chat"):
        text += ". Asked in the chat template"
    lines = [
        printable(f"{method.label}: {' '.join(method.error.split())}")
        for method in found.methods
        if method.error
    ]
    return "\n".join([text, *lines])
