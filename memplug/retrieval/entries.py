"""What the room holds: an entry a subject, with the edits that share its key and value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..edits import Edit, EditTable
from ..memory import KeyMemory
from ..saving.checked import check_edits, check_rest, many, names, shaped, table, text, whole
from ..text.printable import brief

__all__ = ["Entry", "changed", "check_keys", "pack", "unpack"]


@dataclass(frozen=True)
class Entry:
    """A subject and its edits, which share its keys; each has a value, or (as published) they share one.

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
    packed: Any,
    edits: EditTable,
    shape: tuple[int | None, ...],
    dtype: torch.dtype,
) -> dict[str, Entry]:
    """What `pack` gave, for a model whose values have this shape (None is any size) and type.

    Raises:
        ValueError, KeyError: it is none, or does not fit the edits or the model.
    """
    entries: dict[str, Entry] = {}
    used: set[str] = set()
    for stamp, given in enumerate(many(packed, "the entries"), start=1):
        item = table(given, "an entry")
        subject, ids = text(item["subject"], "an entry's subject"), names(item["edits"], "an entry's edits")
        values: dict[tuple[str, ...], Tensor] = {}
        for value in many(item["values"], "an entry's values"):
            name = text(table(value, "a value")["tensor"], "a value's tensor")
            mine = names(value["edits"], "a value's edits")
            if not set(mine) <= set(ids) or mine in values or name in used:
                raise ValueError(f"the value {brief(name)} is there twice, or is that of no edit")
            values[mine] = shaped(tensors, name, shape, dtype)
            used.add(name)
        keys = tuple(whole(n, "a key's number") for n in many(item["keys"], "an entry's keys"))
        off = frozenset(names(item["off"], "an entry's edits that are off"))
        held = {id: edits[id] for id in ids}
        if not ids or not keys or subject in entries or any(e.subject != subject for e in held.values()):
            raise ValueError(
                f"the entry of {brief(subject)} has no edits or keys, or those of another subject"
            )
        entries[subject] = Entry(subject, held, off, keys, values, stamp)
    every = list(entries.values())
    check_edits((id for e in every for id in e.edits), (id for e in every for id in e.off), edits)
    check_rest((name for name in tensors if name.startswith("value.")), used)
    return entries


def check_keys(entries: Iterable[Entry], memory: KeyMemory, coming: int) -> None:
    """The keys of the memory are those of the entries, in force where an edit is, with numbers below
    ``coming``.

    Raises:
        ValueError: they are not.
    """
    owner = [(number, bool(entry.on)) for entry in entries for number in entry.keys]
    if sorted(number for number, _ in owner) != sorted(memory.ids()):
        raise ValueError("the keys of the entries are not those that are held")
    if any(number >= coming or memory.enabled(number) != on for number, on in owner):
        raise ValueError(
            "a key is searched and its edits are off, or the other way round, or its number is to come"
        )
