"""Entries of the ledger as tensors and JSON, and back. Knows nothing about files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..saving.checked import many, names, number, shaped, table, whole
from ..text.printable import brief
from .entries import DenseUpdate, Entry, LowRankUpdate
from .modules import LinearModule

__all__ = ["entries_from", "meta_of", "rows_of"]


def rows_of(entries: Sequence[Entry]) -> dict[str, Tensor]:
    """All rows by module and kind: keys and directions [N,d_k] and values [N,d_v] as they are kept, owner
    int64 [N]; whole changes [d_k,d_v] one below the other."""
    found: dict[str, list[Tensor]] = {}
    for part in (part for entry in entries for part in entry.parts):
        for kind in ("keys", "values", "owner", "directions"):
            if getattr(part, kind) is not None:
                found.setdefault(f"{part.site}:{kind}", []).append(getattr(part, kind))
    for one in (one for entry in entries for one in entry.wholes):
        found.setdefault(f"{one.site}:whole", []).append(one.change)
    return {name: torch.cat(rows) for name, rows in found.items()}


def meta_of(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What `entries_from` needs beside the rows; goes through JSON."""
    return [
        {
            "ids": list(entry.ids),
            "off": sorted(entry.off),
            "notes": dict(entry.notes),
            "parts": [
                [part.site, len(part.owner), part.ridge, part.directions is not None, part.scales]
                for part in entry.parts
            ],
            "wholes": [[one.site, list(one.ids)] for one in entry.wholes],
        }
        for entry in entries
    ]


def entries_from(
    sites: Mapping[str, LinearModule], tensors: Mapping[str, Tensor], meta: Sequence[Mapping[str, Any]]
) -> list[Entry]:
    """The entries that `rows_of` and `meta_of` were given; whole changes on the modules' devices.

    Raises:
        ValueError: rows and meta do not fit each other or the modules, or are no such values.
    """
    rows = {name: _Rows(name, tensor) for name, tensor in tensors.items()}
    entries = []
    for given in many(meta, "the list of entries"):
        item = table(given, "an entry")
        ids, off = names(item["ids"], "an entry's edits"), names(item["off"], "its edits that are off")
        if not set(ids) >= set(off):
            raise ValueError("an edit that is off is not in its entry")
        parts = tuple(_part(sites, rows, len(ids), part) for part in many(item["parts"], "an entry's parts"))
        wholes = tuple(
            _whole(sites, rows, ids, one) for one in many(item.get("wholes", ()), "an entry's changes")
        )
        entries.append(Entry(ids, parts, frozenset(off), _notes(item["notes"]), wholes))
    for left in rows.values():
        left.check_end()
    return entries


def _notes(given: Any) -> dict[str, Any]:
    """What a method noted, of which scores and chosen modules are read again."""
    notes = table(given, "an entry's notes")
    for module, score in table(notes.get("scores", {}), "the scores").items():
        number(score, f"the score of {module!r}")
    names(notes.get("chosen", ()), "the chosen modules")
    return notes


class _Rows:
    """Saved rows, taken from the top."""

    def __init__(self, name: str, rows: Tensor) -> None:
        self._name, self._left = name, rows

    def take(self, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        """The next rows, of this shape and one of these types, with finite values."""
        taken, self._left = self._left[: shape[0]], self._left[shape[0] :]
        return shaped({self._name: taken}, self._name, shape, *dtypes)

    def check_end(self) -> None:
        """No row is left."""
        if len(self._left):
            raise ValueError(f"{len(self._left)} saved rows of {self._name!r} belong to no entry")


def _part(
    sites: Mapping[str, LinearModule], rows: Mapping[str, _Rows], edits: int, given: Any
) -> LowRankUpdate:
    """A part of an entry of so many edits."""
    name, size, ridge, *more = many(given, "a part")
    directed, scales = (*more, False, (1.0, 1.0, 1.0))[:2] if len(more) < 2 else more
    site, count = _site(sites, name), whole(size, "the rows of a part")
    if type(directed) is not bool:
        raise ValueError(f"a part's directions are {brief(directed)}, not true or false")
    ridge = None if ridge is None else number(ridge, "the ridge of a part", 0)
    of_keys, of_values, of_directions = (
        number(scale, "a scale of a part", 0) for scale in many(scales, "the scales of a part", 3)
    )
    kinds = ("keys", "values", "owner", *(["directions"] if directed else []))
    lacking = next((kind for kind in kinds if f"{name}:{kind}" not in rows), None)
    if lacking is not None:
        raise ValueError(f"the saved {lacking} of {name!r} are missing")
    keys = rows[f"{name}:keys"].take((count, site.d_k), *_KEPT)
    values = rows[f"{name}:values"].take((count, site.d_v), *_KEPT)
    owner = rows[f"{name}:owner"].take((count,), torch.int64)
    if count and not 0 <= int(owner.min()) <= int(owner.max()) < edits:
        raise ValueError(f"saved rows of {name!r} belong to no edit of their entry")
    along = rows[f"{name}:directions"].take((count, site.d_k), *_KEPT) if directed else None
    return LowRankUpdate(name, keys, values, owner, ridge, along, (of_keys, of_values, of_directions))


def _whole(
    sites: Mapping[str, LinearModule], rows: Mapping[str, _Rows], ids: Sequence[str], given: Any
) -> DenseUpdate:
    """A dense change of an entry of these edits."""
    name, some = many(given, "a change", 2)
    site, mine = _site(sites, name), names(some, "a change's edits")
    if f"{name}:whole" not in rows or not set(ids) >= set(mine):
        raise ValueError(f"a saved change of {name!r} is missing, or belongs to no edit of its entry")
    change = rows[f"{name}:whole"].take((site.d_k, site.d_v), *_KEPT)
    return DenseUpdate(name, change.to(site.device), mine)


def _site(sites: Mapping[str, LinearModule], name: Any) -> LinearModule:
    if not isinstance(name, str) or name not in sites:
        raise ValueError(f"{brief(name)} is changed, and the modules are {sorted(sites)[:8]}")
    return sites[name]


_KEPT = (torch.float32, torch.float16, torch.float64, torch.bfloat16)
