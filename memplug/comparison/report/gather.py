"""Results as read, grouped by method: means over seeds, with intervals over cases.

Knows the results' layout and nothing of how they are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..result import FORMAT, VERSION
from .intervals import Key, Mean, combine, over_cases
from .words import MEASURES, MOMENTS, PROPERTIES

__all__ = ["Gathered", "Method", "Span", "dig", "gather", "lowest", "suits"]

_EARLIEST = 100  # cases that the moment "first" is about


_APART = 0.03  # costs of single runs that differ by less are not told apart
_MADE_WITH = ("memplug", "torch", "transformers", "faiss", "peft", "lm_eval", "python")
_MADE_ON = ("platform", "processor", "cores", "threads", "device")


class Span(NamedTuple):
    """A cost: its mean over seeds, the lowest and the highest seed's, and how many seeds there are."""

    value: float
    low: float
    high: float
    seeds: int = 1


def lowest(found: Mapping[str, Span]) -> list[str]:
    """The label with the lowest cost, and those of all costs that cannot be told from it.

    They cannot where the ranges over the seeds overlap, or, with a single seed, where the costs differ by
    less than 3 %.
    """
    best = min(found.values(), key=lambda one: one.value)
    single = min(best.seeds, *(one.seeds for one in found.values())) < 2
    bound = max(best.high, best.value * (1 + _APART) if single else best.high)
    return [label for label, one in found.items() if one is best or one.low <= bound]


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    Attributes:
        label: what the user calls it; unique.
        family: memory, weights or prompt; "base" for the unedited model.
        runs: those that are done, one a seed.
        failed: those that are not.
        level: the coverage of the intervals.
    """

    label: str
    family: str
    runs: tuple[Mapping[str, Any], ...]
    failed: tuple[Mapping[str, Any], ...]
    level: float

    @property
    def error(self) -> str:
        """What went wrong, one line a message; empty if nothing did."""
        lines = []
        for run in self.failed:
            error = run.get("error") or {}
            lines.append(f"{error.get('type') or 'failed'}: {error.get('message') or 'no message'}")
        return "\n".join(dict.fromkeys(lines))

    @cached_property
    def _scores(self) -> dict[str, dict[Key, Mean]]:
        return {moment.key: self._at(moment.key) for moment in MOMENTS}

    def _at(self, moment: str) -> dict[Key, Mean]:
        keys = [(prop.key, measure.key) for prop in PROPERTIES for measure in MEASURES]
        scores = {}
        for key in [*keys, ("perplexity", "")]:
            path = (moment, *filter(None, key))
            mean = combine([dig(run, *path) for run in self.runs])
            if mean is not None:
                scores[key] = mean
        seeds = [_rows(run, moment) for run in self.runs]
        if len(seeds) < 2 or not all(seeds):
            return scores  # a single seed's intervals are over its cases already
        return over_cases(seeds, scores, level=self.level)

    def score(self, moment: str, prop: str, measure: str = "") -> Mean | None:
        """A quality at a moment, or None where it was not asked."""
        return self._scores[moment].get((prop, measure))

    def mean(self, *path: str) -> Mean | None:
        """Any score of the runs, by its path."""
        return combine([dig(run, *path) for run in self.runs])

    def span(self, *path: str) -> Span | None:
        """Any plain number of the runs, by its path."""
        found = [value for run in self.runs if (value := dig(run, *path)) is not None]
        return Span(sum(found) / len(found), min(found), max(found), len(found)) if found else None

    def curve(self, *path: str) -> list[tuple[int, Mean]]:
        """A score of the retention curve at each number of edits held."""
        points: dict[int, list[Any]] = {}
        for run in self.runs:
            for point in run.get("curve") or ():
                points.setdefault(int(point["edits"]), []).append(dig(point, *path))
        means = ((edits, combine(scores)) for edits, scores in sorted(points.items()))
        return [(edits, mean) for edits, mean in means if mean is not None]

    def harmonic(self, measure: str) -> float | None:
        """Harmonic mean of efficacy, generalization and specificity after all edits."""
        found = [
            self.score("final", p, suits(p, measure)) for p in ("efficacy", "generalization", "specificity")
        ]
        values = [mean.value for mean in found if mean is not None]
        if len(values) < 3:
            return None
        return 0.0 if min(values) <= 0 else 3 / sum(1 / value for value in values)


@dataclass(frozen=True)
class Gathered:
    """All that a report shows.

    Attributes:
        results: as read.
        methods: in the order in which they were asked for.
        base: the unedited model on the same cases, as a row.
    """

    results: Mapping[str, Any]
    methods: tuple[Method, ...]
    base: Method

    @cached_property
    def done(self) -> tuple[Method, ...]:
        """The methods with at least one finished run."""
        return tuple(method for method in self.methods if method.runs)

    @cached_property
    def measures(self) -> list[str]:
        """The measures that were taken, the page's main one first.

        The main one is the whole answer as generated; "begins with" where answers as a rule do not stop; a
        teacher-forced one where nothing was generated.
        """
        best = {}
        for measure in MEASURES:
            found = [m.score("final", "efficacy", measure.key) for m in self.done]
            values = [mean.value for mean in found if mean is not None]
            if values:
                best[measure.key] = max(values)
        keys = list(best)
        if best.get("generated", 1) < best.get("starts", 0) / 2:
            keys.sort(key=lambda key: key != "starts")
        return keys

    @property
    def main(self) -> str:
        """The measure of the figures."""
        return self.measures[0] if self.measures else "generated"

    @cached_property
    def tasks(self) -> list[str]:
        """The general tasks, in order of appearance."""
        names: dict[str, None] = {}
        for method in (self.base, *self.done):
            for run in method.runs:
                names.update(dict.fromkeys(run.get("general") or {}))
        return list(names)

    @cached_property
    def unlike(self) -> list[str]:
        """In what versions and machines the runs differ, each as a line; empty where they were made alike."""
        lines = []
        for name in (*_MADE_WITH, *_MADE_ON):
            found: dict[Any, dict[str, None]] = {}
            for method in self.methods:
                for run in method.runs:
                    if isinstance(run.get("environment"), Mapping):
                        found.setdefault(run["environment"].get(name), {})[method.label] = None
            if len(found) > 1:
                told = (
                    f"{value if value is not None else 'none'} ({', '.join(who)})"
                    for value, who in found.items()
                )
                lines.append(f"{name} {'; '.join(told)}")
        return lines

    def setting(self, name: str, default: Any = None) -> Any:
        """One of the comparison's settings."""
        value = (self.results.get("settings") or {}).get(name)
        return default if value is None else value


def gather(results: Mapping[str, Any]) -> Gathered:
    """Group a comparison's results by method.

    Raises:
        ValueError: these are not results of a comparison, or of a newer version.
    """
    found = results.get("format") if isinstance(results, Mapping) else type(results).__name__
    if found != FORMAT:
        raise ValueError(
            f"format is {found!r}; a report needs the results of a comparison ({FORMAT!r}), which "
            "`memplug compare` writes to results.json"
        )
    version = results.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"the results are of version {version!r}, this memplug reads up to {VERSION}; update it"
        )
    level = float((results.get("settings") or {}).get("level") or 0.95)
    runs: Iterable[Mapping[str, Any]] = results.get("runs") or ()
    by_label: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_label.setdefault(str(run["method"]), []).append(run)
    methods = []
    for label, its in by_label.items():
        done = tuple(run for run in its if run.get("status") == "done")
        failed = tuple(run for run in its if run.get("status") != "done")
        methods.append(Method(label, str(its[0].get("family") or "–"), done, failed, level))
    bases = [
        {
            "seed": seed,
            "general": found.get("general"),
            "preference": found.get("preference"),
            **dict.fromkeys(_MOMENTS, found.get("scores")),
        }
        for seed, found in (results.get("base") or {}).items()
    ]
    return Gathered(results, tuple(methods), Method("base model", "base", tuple(bases), (), level))


_MOMENTS = [moment.key for moment in MOMENTS]


def suits(prop: str, measure: str) -> str:
    """The measure under which a property is shown beside others: agreement has no "begins with"."""
    return "generated" if measure == "starts" and prop in ("specificity", "same_subject") else measure


def dig(tree: Any, *path: str) -> Any:
    """The value at a path of keys, or None where the path ends early."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def _rows(run: Mapping[str, Any], moment: str) -> list[Mapping[str, Any]]:
    """The answers that a moment's scores were made from."""
    rows = dig(run, "answers", "final" if moment == "first" else moment) or []
    if moment == "first":
        return [row for row in rows if row["case"] < _EARLIEST]
    return list(rows)
