"""Prompts that name no edited subject: requests written for this benchmark, and parts of public sets.

Questions of Natural Questions are asked as plain text and in chat; sentences of the GLUE sets are continued
from their first half.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .asking import Turns, chat, plain
from .sets import order

__all__ = ["Unrelated", "naming", "unrelated"]

REQUESTS = Path(__file__).parent / "requests.txt"

SENTENCES = {"sst2": "text", "cola": "text", "mrpc": "sentence1", "rte": "premise", "nli": "premise"}
"""Sets of sentences, and the field that holds one."""

LEAST_WORDS = 8
"""A sentence of fewer words is not halved."""


class Unrelated(NamedTuple):
    """A prompt and its name."""

    id: str
    turns: Turns


def unrelated(folder: Path | None, subjects: Iterable[str], limit: int = 1000) -> list[Unrelated]:
    """At most ``limit`` prompts that name none of the subjects: all own requests, then a mixture.

    Args:
        folder: where ``natural_questions/`` and ``glue/`` lie; None leaves the own requests.
        subjects: of the edits.
        limit: how many prompts are wanted.
    """
    named = naming(subjects)
    found = [*_requests(), *(_public(folder) if folder else [])]
    return [one for one in found if not named(one.turns[-1][1])][:limit]


def naming(subjects: Iterable[str]) -> Any:
    """A function that says whether a text names one of the subjects as whole words, letter case aside."""
    words = "|".join(sorted({re.escape(subject.casefold()) for subject in subjects}, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)") if words else None
    return lambda text: bool(pattern and pattern.search(text.casefold()))


def _requests() -> list[Unrelated]:
    found = [
        Unrelated(f"request-{number}", chat(line) if line[-1] in ".?!" else plain(line))
        for number, line in enumerate(REQUESTS.read_text().splitlines())
    ]
    return sorted(found, key=lambda one: order(one.id))


def _public(folder: Path) -> list[Unrelated]:
    """Questions and sentences in turn, each sort in an order that is drawn once for all."""
    sorts = [
        [
            Unrelated(row["id"], way(f"{row['question']}?"))
            for row in _rows(folder / "natural_questions" / "efficientqa_dev.jsonl")[number::2]
        ]
        for number, way in enumerate((plain, chat))
    ]
    halves = [
        Unrelated(row["id"], plain(" ".join(words[: len(words) // 2])))
        for name, field in SENTENCES.items()
        for row in _rows(folder / "glue" / f"{name}.jsonl")
        if len(words := row[field].split()) >= LEAST_WORDS
    ]
    sorts.append(sorted(halves, key=lambda one: order(one.id)))
    return [one for some in zip(*sorts, strict=False) for one in some]


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if not row.get("in_zsre_locality")]
    return sorted(rows, key=lambda row: order(row["id"]))
