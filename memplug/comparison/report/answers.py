"""Every answer, packed small for the page: each text once, a number or a letter wherever it comes up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ...shown import printable
from .gather import Gathered, dig
from .intervals import right
from .words import GROUPS

__all__ = ["pack"]

_MOMENTS = ("immediate", "final")
_LETTERS = {True: "y", False: "n", None: "-"}


def pack(gathered: Gathered, limit: int) -> dict[str, Any]:
    """What the page's script needs to list the answers.

    Args:
        gathered: the results.
        limit: the most answers to keep; of every seed the first cases are kept, whole and of all methods.

    Returns:
        ``texts``: all texts; ``methods``, ``seeds``, ``groups`` ([label, expectation]): names by number;
        ``probes``: [seed, case, group, prompt, target, answer before the edit] as numbers, -1 for none;
        ``runs``: for a method and seed, ``after`` (moment -> text of each probe) and ``right`` (moment ->
        a letter a probe: y, n or -); ``cases`` and ``shown``: how many cases there are, and are kept, a seed.
    """
    seeds = list(dict.fromkeys(run.get("seed") for method in gathered.done for run in method.runs))
    groups = [term.key for term in GROUPS]
    rows = {
        (m, seeds.index(run.get("seed")), moment): _keyed(run, moment)
        for m, method in enumerate(gathered.done)
        for run in method.runs
        for moment in _MOMENTS
    }
    total = sum(len(found) for found in rows.values())
    cases = max((row["case"] + 1 for found in rows.values() for row in found.values()), default=0)
    shown = cases if total <= limit else max(1, cases * limit // total)
    texts: dict[str | None, int] = {None: -1}

    def number(text: Any) -> int:
        text = None if text is None else str(text)
        return texts.setdefault(text, len(texts) - 1)

    before = _before(gathered)
    probes: list[list[int]] = []
    order: dict[int, dict[Any, int]] = defaultdict(dict)  # seed -> probe -> its place
    for (_, seed, _), found in rows.items():
        for key, row in found.items():
            if row["case"] >= shown or key in order[seed] or row["group"] not in groups:
                continue
            order[seed][key] = len(order[seed])
            was = row.get("base_text")
            was = before.get((seeds[seed], *key[:3])) if was is None else was
            group = groups.index(row["group"])
            texts_of = [number(row["prompt"]), number(row["target"]), number(was)]
            probes.append([seed, row["case"], group, *texts_of])
    probes.sort(key=lambda probe: probe[0])  # stable: within a seed as first met, which is `order`
    runs: dict[tuple[int, int], dict[str, Any]] = {}
    for (m, seed, moment), found in rows.items():
        run = runs.setdefault((m, seed), {"method": m, "seed": seed, "after": {}, "right": {}})
        if not found:
            continue
        line = [found.get(key) for key in order[seed]]
        run["after"][moment] = [-1 if row is None else number(row.get("text")) for row in line]
        run["right"][moment] = "".join("-" if row is None else _LETTERS[right(row)] for row in line)
    return {
        "methods": [printable(method.label) for method in gathered.done],
        "seeds": seeds,
        "groups": [[term.label, term.meaning] for term in GROUPS],
        "texts": [printable(text) for text in texts if text is not None],
        "probes": probes,
        "runs": list(runs.values()),
        "cases": cases,
        "shown": shown,
    }


def _keyed(run: Mapping[str, Any], moment: str) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """The answers of a moment by case, group, prompt, target and, where a probe comes twice, its number."""
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in dig(run, "answers", moment) or ():
        key, again = (row["case"], row["group"], row["prompt"], row["target"]), 0
        while (*key, again) in found:
            again += 1
        found[(*key, again)] = row
    return found


def _before(gathered: Gathered) -> dict[tuple[Any, ...], Any]:
    """The base model's own answers, where the results have them: (seed, case, group, prompt) -> text."""
    found = {}
    for seed, base in (gathered.results.get("base") or {}).items():
        for row in dig(base, "answers") or ():
            key = (row.get("case"), row.get("group"), row.get("prompt"))
            found[(seed, *key)] = row.get("text")
            if str(seed).lstrip("-").isdigit():
                found[(int(seed), *key)] = row.get("text")
    return found
