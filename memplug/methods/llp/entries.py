"""What LLP holds: an entry a subject, with the edits that share its key and value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...edits import Edit

__all__ = ["Entry", "changed", "pack", "unpack"]


@dataclass(frozen=True)
class Entry:
    """A subject, which shares one key and one value among its edits.

    Attributes:
        subject: its name.
        edits: its edits by id, in the order they were learned.
        off: ids that are switched off.
        keys: its keys' numbers in the key memory, one for each way the subject tokenizes.
        values: soft prompts [b,D] by the edits they answer; those in use, and those a switch returns to.
        stamp: changes with every change of the entry.
    """

    subject: str
    edits: dict[str, Edit]
    off: frozenset[str] = frozenset()
    keys: tuple[int, ...] = ()
    values: dict[tuple[str, ...], Tensor] = field(default_factory=dict)
    stamp: int = 0

    @property
    def on(self) -> tuple[str, ...]:
        """Ids of the edits in force."""
        return tuple(id for id in self.edits if id not in self.off)


def changed(entry: Entry, edits: dict[str, Edit], off: frozenset[str]) -> Entry:
    """``entry`` with other edits; values that answer a removed edit are dropped."""
    values = {ids: value for ids, value in entry.values.items() if set(ids) <= edits.keys()}
    return Entry(entry.subject, edits, off, entry.keys, values, entry.stamp)


def pack(entries: Iterable[Entry]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Values by tensor name, and the entries as plain values for JSON."""
    tensors: dict[str, Tensor] = {}
    packed: list[dict[str, Any]] = []
    for entry in entries:
        names: list[dict[str, Any]] = []
        for ids, value in entry.values.items():
            name = f"value.{len(packed)}.{len(names)}"
            names.append({"edits": list(ids), "tensor": name})
            tensors[name] = value
        packed.append(
            {
                "subject": entry.subject,
                "edits": list(entry.edits),
                "off": sorted(entry.off),
                "keys": list(entry.keys),
                "values": names,
            }
        )
    return tensors, packed


def unpack(
    tensors: Mapping[str, Tensor],
    packed: Iterable[Mapping[str, Any]],
    edits: Mapping[str, Edit],
    shape: tuple[int | None, ...],
) -> dict[str, Entry]:
    """What `pack` gave, for a model whose values have this shape; None is any size.

    Raises:
        ValueError: a value has another shape.
    """
    entries: dict[str, Entry] = {}
    for stamp, item in enumerate(packed, start=1):
        values = {tuple(v["edits"]): tensors[v["tensor"]] for v in item["values"]}
        for value in values.values():
            sizes = zip(value.shape, shape, strict=False)
            if value.ndim != len(shape) or any(want not in (None, have) for have, want in sizes):
                raise ValueError(
                    f"the value of {item['subject']!r} is {tuple(value.shape)}, the model's are {shape}"
                )
        entries[item["subject"]] = Entry(
            item["subject"],
            {id: edits[id] for id in item["edits"]},
            frozenset(item["off"]),
            tuple(item["keys"]),
            values,
            stamp,
        )
    return entries
