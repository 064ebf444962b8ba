"""Results by method: every score's mean over the seeds, with intervals over cases.

Knows the layout of the results and nothing of how they are shown. A score is named by its path in a run,
such as ``final.efficacy.generated``, ``cost.forward.ratio`` or ``general.skills``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isclose, sqrt
from typing import Any, NamedTuple

import numpy as np

from ...evaluation import Answer
from ...evaluation.resampling import bootstrap_ratio
from ..result import Run, checked
from .labels import MEASURES, MOMENTS

__all__ = ["Aggregate", "Mean", "MethodResult", "aggregate", "combine", "lowest", "over_cases"]

_PARTS = ("final", "immediate", "first", "retained", "preference", "general", "cost", "fit")
_MADE_WITH = ("memplug", "torch", "transformers", "faiss", "peft", "lm_eval", "python")
_MADE_ON = ("platform", "processor", "cores", "threads", "device")
_EARLIEST = 100  # cases that the moment "first" is about
_APART = 0.03  # costs of single runs that differ by less are not told apart


class Mean(NamedTuple):
    """A mean over seeds.

    Attributes:
        value: the mean of the seeds' means.
        low, high: the bounds of its interval; None where there is none, as of costs.
        seeds: each seed's own mean.
    """

    value: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class MethodResult:
    """What one method reached, or the unedited model (family "base").

    Attributes:
        label: what the user calls it; unique.
        family: memory, weights or prompt.
        runs: those that are done, one a seed.
        failed: those that are not.
        means: every score by its path.
        curve: the scores of the retention curve by their path, at each number of edits held.
    """

    label: str
    family: str
    runs: tuple[Run, ...]
    failed: tuple[Run, ...]
    means: Mapping[str, Mean]
    curve: Mapping[int, Mapping[str, Mean]]

    @property
    def error(self) -> str:
        """What went wrong, one line a message; empty if nothing did."""
        return "\n".join(dict.fromkeys(run.problem for run in self.failed))

    def along(self, path: str) -> list[tuple[int, Mean]]:
        """A score of the curve at each number of edits held."""
        return [(edits, means[path]) for edits, means in self.curve.items() if path in means]

    def harmonic(self, measure: str) -> float | None:
        """Harmonic mean of efficacy, generalization and specificity after all edits."""
        properties = ("efficacy", "generalization", "specificity")
        found = [self.means.get(f"final.{prop}.{suits(prop, measure)}") for prop in properties]
        values = [mean.value for mean in found if mean is not None]
        if len(values) < 3:
            return None
        return 0.0 if min(values) <= 0 else 3 / sum(1 / value for value in values)


@dataclass(frozen=True)
class Aggregate:
    """All that a report shows.

    Attributes:
        results: as read.
        methods: in the order in which they were asked for.
        base: the unedited model on the same cases.
    """

    results: Mapping[str, Any]
    methods: tuple[MethodResult, ...]
    base: MethodResult

    @property
    def settings(self) -> Mapping[str, Any]:
        """The comparison's settings."""
        return self.results["settings"]

    @cached_property
    def done(self) -> tuple[MethodResult, ...]:
        """The methods with at least one finished run."""
        return tuple(method for method in self.methods if method.runs)

    @cached_property
    def measures(self) -> list[str]:
        """The measures that were taken, the page's main one first.

        The main one is the whole answer as generated; "begins with" where answers as a rule do not stop; a
        teacher-forced one where nothing was generated.
        """
        best = {}
        for key, *_ in MEASURES:
            found = [m.means[path].value for m in self.done if (path := f"final.efficacy.{key}") in m.means]
            if found:
                best[key] = max(found)
        if best.get("generated", 1) < best.get("starts", 0) / 2:
            return sorted(best, key=lambda key: key != "starts")
        return list(best)

    @property
    def main(self) -> str:
        """The measure of the figures."""
        return self.measures[0] if self.measures else "generated"

    @cached_property
    def tasks(self) -> list[str]:
        """The general tasks, in order of appearance."""
        paths = dict.fromkeys(path for method in (self.base, *self.done) for path in method.means)
        return [path.removeprefix("general.") for path in paths if path.startswith("general.")]

    @cached_property
    def few(self) -> int:
        """How many of the earliest and of the latest edits the curves are about."""
        return min([_EARLIEST, *(self.settings.get("points") or [])[:1]])

    @cached_property
    def unlike(self) -> list[str]:
        """In what versions and machines the runs differ, each as a line; empty where they were made alike."""
        lines = []
        for name in (*_MADE_WITH, *_MADE_ON):
            found: dict[Any, dict[str, None]] = {}
            for run in (run for method in self.methods for run in method.runs if run.environment):
                found.setdefault(run.environment.get(name), {})[run.method] = None
            if len(found) > 1:
                told = (f"{value or 'none'} ({', '.join(labels)})" for value, labels in found.items())
                lines.append(f"{name} {'; '.join(told)}")
        return lines


def aggregate(results: Mapping[str, Any]) -> Aggregate:
    """A comparison's results by method.

    Raises:
        ValueError: these are not results of a comparison, or of a newer version.
    """
    level = float(checked(results)["settings"].get("level") or 0.95)
    runs: dict[str, list[Run]] = {}
    for row in results["runs"]:
        runs.setdefault(str(row["method"]), []).append(Run.of(row))
    methods = tuple(_method(label, its, level) for label, its in runs.items())
    bases = []
    for seed, one in (results["base"] or {}).items():
        if one is None:  # a run that left the model changed ends the comparison before it
            continue
        row = {"method": "base model", "family": "base", "seed": int(seed)}
        row |= dict.fromkeys((term.key for term in MOMENTS), one.get("scores"))
        row |= {name: one.get(name) for name in ("general", "preference")}
        bases.append(Run.of(row | {"answers": {"final": one.get("answers")}}))
    return Aggregate(results, methods, _method("base model", bases, level))


def _method(label: str, runs: Sequence[Run], level: float) -> MethodResult:
    done = tuple(run for run in runs if run.status == "done")
    means = _means({part: getattr(run, part) for part in _PARTS} for run in done)
    points: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for point in (point for run in done for point in run.curve):
        points[int(point["edits"])].append({part: point.get(part) for part in ("first", "recent", "general")})
    family = runs[0].family if runs else "base"
    if len(done) > 1 and family != "base":  # a single seed's intervals are over its cases already
        for moment in (term.key for term in MOMENTS):
            seeds = [_rows(run, moment) for run in done]
            if all(seeds):
                means |= over_cases(seeds, means, moment, level)
    failed = tuple(run for run in runs if run.status != "done")
    return MethodResult(label, family, done, failed, means, {n: _means(points[n]) for n in sorted(points)})


def _rows(run: Run, moment: str) -> list[Answer]:
    """The answers that a moment's scores were made from."""
    if moment == "first":
        return [row for row in run.said("final") if row.case < _EARLIEST]
    return run.said(moment)


def _means(trees: Iterable[Mapping[str, Any]]) -> dict[str, Mean]:
    """The mean of every score over several runs, by its path."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for tree in trees:
        for path, score in _scores(tree):
            found[path].append(score)
    return {path: combine(scores) for path, scores in found.items()}


def _scores(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All scores (value, low, high) and plain numbers in a tree, with their paths."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and "value" in value and "low" in value:
            if value["value"] is not None:
                yield path + key, value
        elif isinstance(value, Mapping):
            yield from _scores(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path + key, {"value": value}


def combine(scores: Sequence[Mapping[str, Any]]) -> Mean:
    """The mean of one score a seed; the half-widths of their intervals combine as of independent means.

    A single seed's score stays as it is.
    """
    values = tuple(float(score["value"]) for score in scores)
    value = sum(values) / len(values)
    if any(score.get("low") is None or score.get("high") is None for score in scores):
        return Mean(value, None, None, values)
    down = sqrt(sum((score["value"] - score["low"]) ** 2 for score in scores)) / len(values)
    up = sqrt(sum((score["high"] - score["value"]) ** 2 for score in scores)) / len(values)
    return Mean(value, value - down, value + up, values)


def over_cases(
    seeds: Sequence[Sequence[Answer]], means: Mapping[str, Mean], moment: str, level: float = 0.95
) -> dict[str, Mean]:
    """A moment's means with intervals from a bootstrap over the distinct cases of all seeds.

    A case (an edit's prompt and target) that came up under several seeds is one unit with several values,
    which are not independent. The statistic is the mean of the seeds' means. A score whose mean the answers
    do not give is left out: the answers are then not what it was made from.

    Args:
        seeds: for each seed, the answers that the scores were made from.
        means: the means to give intervals to, by path; they begin with ``moment``.
        moment: "final", "immediate" or "first".
        level: the intervals' coverage.
    """
    units: dict[Any, int] = {}
    own: dict[tuple[int, int], int] = {}  # seed and case -> unit
    found: dict[tuple[str, ...], list[dict[int, list[float]]]]
    found = defaultdict(lambda: [defaultdict(list) for _ in seeds])
    for seed, rows in enumerate(seeds):
        names = {row.case: (row.prompt, row.target) for row in rows if row.group == "efficacy"}
        for row in rows:
            own[seed, row.case] = units.setdefault(names.get(row.case, (seed, row.case)), len(units))
            for key, value in row.values().items():
                found[key][seed][row.case].append(value)
    paths = {path: found[key] for key in found if (path := ".".join((moment, *key))) in means}
    values, weights = np.zeros((2, len(units), len(paths)))
    centres: dict[str, list[float]] = {path: [] for path in paths}
    for column, (path, by_seed) in enumerate(paths.items()):
        for seed, cases in ((seed, cases) for seed, cases in enumerate(by_seed) if cases):
            index = [own[seed, case] for case in cases]
            shares = np.array([sum(its) / len(its) for its in cases.values()]) / len(cases)
            np.add.at(values[:, column], index, shares)
            np.add.at(weights[:, column], index, 1 / len(cases))
            centres[path].append(float(shares.sum()))
    bounds = zip(*bootstrap_ratio(values, weights, level=level), strict=True)
    out = {}
    for (path, centre), (low, high) in zip(centres.items(), bounds, strict=True):
        if len(centre) == len(means[path].seeds) and all(map(_same, centre, means[path].seeds)):
            out[path] = means[path]._replace(low=float(low), high=float(high))
    return out


def _same(one: float, other: float) -> bool:
    return isclose(one, other, abs_tol=1e-6)


def lowest(found: Mapping[str, Mean]) -> list[str]:
    """The label with the lowest cost, and those of all costs that cannot be told from it.

    They cannot where the ranges over the seeds overlap, or, with a single seed, where the costs differ by
    less than 3 %.
    """
    best = min(found.values(), key=lambda mean: mean.value)
    single = any(len(mean.seeds) < 2 for mean in found.values())
    bound = max(*best.seeds, best.value * (1 + _APART) if single else best.value)
    return [label for label, mean in found.items() if mean is best or min(mean.seeds) <= bound]


def suits(prop: str, measure: str) -> str:
    """The measure under which a property is shown beside others: agreement has no "begins with"."""
    return "generated" if measure == "starts" and prop in ("specificity", "same_subject") else measure
