"""Every answer, packed small for the page: each text once, a number or a letter wherever it comes up."""

from __future__ import annotations

from typing import Any

from ...evaluation import Answer
from ...text.printable import printable
from ..result import Run
from .aggregate import Aggregate
from .labels import GROUPS

__all__ = ["pack"]

_MOMENTS = ("immediate", "final")
_LETTERS = {True: "y", False: "n", None: "-"}
_GROUPS = [term.key for term in GROUPS]

Key = tuple[int, str, str, str, int]
"""A probe within a seed: case, group, prompt, target and, where it comes twice, its number."""


def pack(found: Aggregate, limit: int) -> dict[str, Any]:
    """What the page's script needs to list the answers.

    Args:
        found: the results.
        limit: the most answers to keep; of every seed the first cases are kept, whole and of all methods.

    Returns:
        ``texts``: all texts; ``methods``, ``seeds``, ``groups`` ([label, expectation]): names by number;
        ``probes``: [seed, case, group, prompt, target, answer before the edit] as numbers, -1 for none;
        ``runs``: for a method and seed, ``after`` (moment -> text of each probe) and ``right`` (moment ->
        a letter a probe: y, n or -); ``cases`` and ``shown``: how many cases there are, and are kept, a seed.
    """
    seeds = list(dict.fromkeys(run.seed for method in found.done for run in method.runs))
    rows = {
        (m, seeds.index(run.seed), moment): _by_key(run, moment)
        for m, method in enumerate(found.done)
        for run in method.runs
        for moment in _MOMENTS
    }
    total = sum(map(len, rows.values()))
    cases = max((key[0] + 1 for its in rows.values() for key in its), default=0)
    shown = cases if total <= limit else max(1, cases * limit // total)
    texts: dict[str, int] = {}

    def number(text: str | None) -> int:
        return -1 if text is None else texts.setdefault(text, len(texts))

    before = {run.seed: _by_key(run, "final") for run in found.base.runs}
    probes: dict[int, dict[Key, list[int]]] = {seed: {} for seed in range(len(seeds))}
    for (_, seed, _), its in rows.items():
        for key, row in its.items():
            if row.case >= shown or row.group not in _GROUPS or key in probes[seed]:
                continue
            base = before.get(seeds[seed], {}).get(key)
            was = base.text if row.base_text is None and base is not None else row.base_text
            texts_of = [number(str(row.prompt)), number(row.target), number(was)]
            probes[seed][key] = [seed, row.case, _GROUPS.index(row.group), *texts_of]
    runs: dict[tuple[int, int], dict[str, Any]] = {}
    for (m, seed, moment), its in rows.items():
        run = runs.setdefault((m, seed), {"method": m, "seed": seed, "after": {}, "right": {}})
        if its:
            line = [its.get(key) for key in probes[seed]]
            run["after"][moment] = [-1 if row is None else number(row.text) for row in line]
            run["right"][moment] = "".join(_LETTERS[None if row is None else row.right] for row in line)
    return {
        "methods": [printable(method.label) for method in found.done],
        "seeds": seeds,
        "groups": [[term.label, term.meaning] for term in GROUPS],
        "texts": list(map(printable, texts)),
        "probes": [probe for by_key in probes.values() for probe in by_key.values()],
        "runs": list(runs.values()),
        "cases": cases,
        "shown": shown,
    }


def _by_key(run: Run, moment: str) -> dict[Key, Answer]:
    found: dict[Key, Answer] = {}
    for row in run.said(moment):
        key, again = (row.case, row.group, str(row.prompt), row.target), 0
        while (*key, again) in found:
            again += 1
        found[(*key, again)] = row
    return found
