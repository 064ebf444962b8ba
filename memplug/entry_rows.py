"""Entries of the ledger as tensors and JSON, and back. Knows nothing about files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .entries import Entry, Part, Whole
from .sites import Site

__all__ = ["entries_from", "meta_of", "rows_of"]


def rows_of(entries: Sequence[Entry]) -> dict[str, Tensor]:
    """All rows by module and kind: keys and directions [N,d_k] and values [N,d_v] as they are kept, owner
    int64 [N]; whole changes [d_k,d_v] one below the other."""
    found: dict[str, list[Tensor]] = {}
    for part in (part for entry in entries for part in entry.parts):
        for kind in ("keys", "values", "owner", "directions"):
            if getattr(part, kind) is not None:
                found.setdefault(f"{part.site}:{kind}", []).append(getattr(part, kind))
    for whole in (whole for entry in entries for whole in entry.wholes):
        found.setdefault(f"{whole.site}:whole", []).append(whole.change)
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
            "wholes": [[whole.site, list(whole.ids)] for whole in entry.wholes],
        }
        for entry in entries
    ]


def entries_from(
    sites: Mapping[str, Site], tensors: Mapping[str, Tensor], meta: Sequence[Mapping[str, Any]]
) -> list[Entry]:
    """The entries that `rows_of` and `meta_of` were given; whole changes on the modules' devices.

    Raises:
        ValueError: rows and meta do not fit each other or the modules.
    """
    rows = {name: _Rows(tensor) for name, tensor in tensors.items()}
    entries = []
    for item in meta:
        parts = tuple(_part(sites, rows, *part) for part in item["parts"])
        wholes = tuple(_whole(sites, rows, *whole) for whole in item.get("wholes", ()))
        off, notes = frozenset(item["off"]), dict(item["notes"])
        entries.append(Entry(tuple(item["ids"]), parts, off, notes, wholes))
    return entries


class _Rows:
    """Saved rows, taken from the top."""

    def __init__(self, rows: Tensor) -> None:
        self._left = rows

    def take(self, count: int) -> Tensor:
        taken, self._left = self._left[:count], self._left[count:]
        return taken


def _part(
    sites: Mapping[str, Site],
    rows: Mapping[str, _Rows],
    name: str,
    count: int,
    ridge: float | None,
    directed: bool = False,
    scales: Sequence[float] = (1.0, 1.0, 1.0),
) -> Part:
    kinds = ("keys", "values", "owner", *(["directions"] if directed else []))
    keys, values, owner, *directions = (rows[f"{name}:{kind}"].take(count) for kind in kinds)
    site = sites.get(name)
    wide = (count, site.d_k) if site else ()
    if site is None or values.shape != (count, site.d_v) or any(k.shape != wide for k in (keys, *directions)):
        raise ValueError(
            f"the saved rows of {name!r} are {tuple(keys.shape)} and {tuple(values.shape)}, "
            f"which does not fit {site}"
        )
    of_keys, of_values, of_directions = map(float, scales)
    along = directions[0] if directions else None
    return Part(name, keys, values, owner, ridge, along, (of_keys, of_values, of_directions))


def _whole(sites: Mapping[str, Site], rows: Mapping[str, _Rows], name: str, ids: Sequence[str]) -> Whole:
    site = sites.get(name)
    change = rows[f"{name}:whole"].take(site.d_k if site else 0)
    if site is None or change.shape != (site.d_k, site.d_v):
        raise ValueError(f"a saved change of {name!r} is {tuple(change.shape)}, which does not fit {site}")
    return Whole(name, change.to(site.device), tuple(ids))
