"""Ids for new edits, and which old ones they replace."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .edits import Edit, EditError
from .text.chat import canonical
from .text.printable import printable

__all__ = ["listed", "numbered"]


def numbered(asked: Sequence[Edit], held: Mapping[str, Edit], count: int) -> tuple[list[Edit], list[str]]:
    """The edits with ids, and the ids of those they replace: the ones with the same prompt.

    A text and the same text as a single user turn are one prompt: see `canonical`.

    Args:
        asked: new edits; of those that repeat a prompt the last one counts, with a warning.
        held: the edits there are, by id.
        count: edits ever learned; new ids go on from here.

    Raises:
        EditError: an id is used twice.
    """
    latest = {canonical(edit.prompt): edit for edit in asked}
    if len(latest) < len(asked):
        twice = len(asked) - len(latest)
        warnings.warn(
            f"{twice} edits repeat a prompt of the same list; the last one of each counts", stacklevel=3
        )
    replaced = [id for id, edit in held.items() if canonical(edit.prompt) in latest]
    fresh: list[Edit] = []
    taken = set(held) - set(replaced)
    for edit in latest.values():
        count += 1
        while edit.id is None and f"e{count}" in taken:
            count += 1
        id = edit.id or f"e{count}"
        if id in taken:
            raise EditError(f"the id {id!r} is used twice; give each edit its own id, or none")
        taken.add(id)
        fresh.append(replace(edit, id=id))
    return fresh, replaced


def listed(ids: Sequence[str]) -> str:
    """The first ids, and how many more there are."""
    return ", ".join(map(printable, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
