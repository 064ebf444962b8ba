"""The public sets as facts to edit, and which of their rows are for tables.

Rows are divided by their subject, so that constants can be chosen on facts about subjects that no table
names. Bring your own copy of the data, as JSON lines with id, subject, prompt, target_new, target_true,
rephrases and locality: ``counterfact/edit.jsonl``, ``counterfact_rome1000/edit.jsonl`` (ROME's 1,000 records,
with all of CounterFact's paraphrases and neighbours), ``zsre/{edit,val,train}.jsonl``.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from .facts import Fact, Known

__all__ = ["Part", "counterfact", "known", "order", "part", "read", "rome", "truths", "zsre"]

Part = Literal["table", "tuning"]

KNOWN = Path(__file__).parent / "known.json"
"""Ids of the rows that the model answers truly as they are asked; `find` writes it."""

FOLDERS = {"rome": "counterfact_rome1000"}
"""Folders of sets that are not called as the set is."""

ODD = {"noop", "true_inside_target", "target_in_prompt", "conflict", "repeat"}
"""Flags of rows that no table uses."""

MENTIONS = (
    "My neighbour told me a lot about {s} yesterday. Could you suggest a simple recipe for dinner?",
    "We were talking about {s} when the phone rang, and",
    "I have a quiz about {s} tomorrow and I am nervous. How can I fall asleep quickly?",
    "The title of my homework is {s}. Please tell me how to stay focused while I write.",
)
"""Passing mentions that fit any subject; two of them, by the row's id, are put to each."""


def order(id: str) -> int:
    """A place drawn once for all."""
    return _hash(f"order {id}")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def part(subject: str) -> Part:
    """Whether rows about this subject are for tables (three in four) or for choosing constants."""
    return "tuning" if _hash(f"part {subject.casefold()}") % 4 == 0 else "table"


def read(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The usable rows of a set, in an order that is drawn once for all; `known` rows keep it."""
    files = ["edit", "val", "train"] if name == "zsre" else ["edit"]
    for file in files:
        lines = (folder / name / f"{file}.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if not ODD & set(row.get("flags") or ())]
        yield from sorted(rows, key=lambda row: order(row["id"]))


def truths(row: dict[str, Any]) -> tuple[str, ...]:
    """The old answers of a row."""
    return tuple(dict.fromkeys([row["target_true"], *(row.get("target_true_all") or ())]))


def counterfact(
    folder: Path, which: Part = "table", ids: Sequence[str] | None = None, *, name: str = "counterfact"
) -> list[Fact]:
    """CounterFact's rows: statements to be completed.

    Other facts of a subject are the other rows about it. Of rows with the same subject and relation, and of
    several rows of a subject in ``ids``, all are kept: they ask different things.

    Args:
        folder: where the set's folder lies.
        which: rows for tables or for choosing constants.
        ids: only these rows.
        name: of the set's folder.
    """
    rows = [row for row in read(folder, name) if part(row["subject"]) == which]
    about = defaultdict[str, list[dict[str, Any]]](list)
    for row in rows:
        about[row["subject"]].append(row)
    wanted = None if ids is None else set(ids)
    return [
        _fact(row, [other for other in about[row["subject"]] if other["relation"] != row["relation"]])
        for row in rows
        if wanted is None or row["id"] in wanted
    ]


def rome(folder: Path, which: Part = "table", ids: Sequence[str] | None = None) -> list[Fact]:
    """The records that ROME's authors edited; arguments as for `counterfact`."""
    return counterfact(folder, which, ids, name=FOLDERS["rome"])


def zsre(folder: Path, which: Part = "table", ids: Sequence[str] | None = None) -> list[Fact]:
    """ZsRE's rows: questions; arguments as for `counterfact`."""
    wanted = None if ids is None else set(ids)
    rows = (row for row in read(folder, "zsre") if part(row["subject"]) == which)
    return [_fact(row, []) for row in rows if wanted is None or row["id"] in wanted]


def known(set_name: str, which: Part = "table") -> list[str]:
    """Ids of the rows of a set that the model answers truly."""
    return list(json.loads(KNOWN.read_text())[set_name][which])


def _fact(row: dict[str, Any], others: Sequence[dict[str, Any]]) -> Fact:
    start = _hash(f"mention {row['id']}")
    mentions = [MENTIONS[(start + i) % len(MENTIONS)].format(s=row["subject"]) for i in range(2)]
    return Fact(
        id=row["id"],
        kind=row.get("relation") or "question",
        prompt=row["prompt"],
        subject=row["subject"],
        target=row["target_new"],
        truth=truths(row),
        rephrases=tuple(row["rephrases"]),
        templates=tuple(row.get("rephrases_template") or ()),
        others=tuple(Known(other["prompt"], truths(other)) for other in others),
        neighbours=tuple(Known(probe["prompt"], (probe["target"],)) for probe in row["locality"]),
        mentions=tuple(mentions),
    )
