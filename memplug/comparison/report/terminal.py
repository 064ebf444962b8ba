"""A comparison as a table in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ...text.printable import printable
from .aggregate import Aggregate, aggregate
from .tables import summary

__all__ = ["rich_table"]


def rich_table(results: Mapping[str, Any], title: str | None = None) -> Table:
    """The `summary`; below it what the columns mean, and why methods failed."""
    found = aggregate(results)
    made = summary(found)
    caption = escape(_caption(found))
    table = Table(title=title, caption=caption, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("%", overflow="fold", min_width=9)
    for column in made.columns:
        table.add_column(escape(printable(column.label)), justify="right", no_wrap=True)
    for row in made.rows:
        cells = ["[red]failed[/red]"] if row.error else [cell.text for cell in row.cells]
        method = next((one for one in found.methods if one.label == row.label), found.base)
        runs = len(method.runs) + len(method.failed)
        lost = f" ({len(method.failed)} of {runs} failed)" if row.note else ""
        table.add_row(escape(printable(row.label)) + lost, *cells)
    return table


def _caption(found: Aggregate) -> str:
    settings = found.settings
    seeds, asked = (
        settings["seeds"],
        " as generated" if settings.get("max_new_tokens") else ", teacher forced",
    )
    text = (
        f"{settings['edits']} edits in batches of {settings['batch']}, seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))}. Efficacy, generalization, specificity, other facts about the same "
        f"subjects, portability: whole answers{asked}, the third and fourth against the base model. First: "
        "efficacy of the first edits after all. Seconds an edit; a forward's time over the base's"
    )
    chat = ". Asked in the chat template" if settings.get("chat") else ""
    errors = {method.label: " ".join(method.error.split()) for method in found.methods if method.error}
    return "\n".join([text + chat, *(printable(f"{label}: {error}") for label, error in errors.items())])
