"""ELDER's tables, from ``results/elder-*.json``; `tables.py` puts them into the README."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from common import RESULTS, table

__all__ = ["TABLES"]

_GROUPS = ("efficacy", "generalization", "specificity", "same_subject")
_ABLATION = 200  # edits
_MEASURES = (("generated", "generated, whole"), ("whole", "teacher-forced, whole"), ("tokens", "tokens"))
_PAPERS = [
    ["ELDER's paper, LLaMA2-7B, ZsRE", "1000", "all", "whole", "93.96", "90.21", "–", "–", "–", "2.12"],
    ["GRACE, in ELDER's paper, the same", "1000", "all", "whole", "89.48", "0.46", "–", "–", "–", "–"],
]


def _load(name: str) -> dict[str, Any]:
    path = RESULTS / f"elder-{name}.json"
    found: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    return found


def _percent(score: Any) -> str:
    return "–" if score is None else f"{100 * score['value']:.1f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _sequences() -> list[tuple[int, int, dict[str, Any]]]:
    """Edits, seed, and the runs of each file."""
    found = []
    for path in RESULTS.glob("elder-sequence-*.json"):
        whole = json.loads(path.read_text())
        found.append((whole["settings"]["edits"], whole["settings"]["seed"], whole["results"]))
    return sorted(found, key=lambda item: item[:2])


def sequence() -> str | None:
    """Quality by edits, variant, which of the edits are asked, and measure."""
    rows = []
    for edits, seed, runs in _sequences():
        for name, run in runs.items():
            if (edits <= _ABLATION and "in scope" not in run) or "scores" not in run:
                continue
            for when, scores in run["scores"].items():
                for measure, label in _MEASURES:
                    rows.append(
                        [name + (f" (seed {seed})" if seed else ""), str(edits), when, label]
                        + [_percent(scores[group][measure]) for group in _GROUPS]
                        + [_share(run.get("skills")), f"{run['cpu_seconds_per_edit']:.3f}"]
                    )
    head = ["", "edits", "asked", "measure", *(group.replace("_", " ") for group in _GROUPS)]
    return table([*head, "skills", "CPU s per edit"], rows and [*rows, *_PAPERS])


def ablation() -> str | None:
    """Generated whole answers of every variant, the first and the last of some hundred edits."""
    rows = []
    for edits, seed, runs in _sequences():
        for name, run in runs.items():
            if edits > _ABLATION or "last" not in run.get("scores", {}):
                continue
            first, last = run["scores"]["first, after all"], run["scores"]["last"]
            rows.append(
                [name + (f" (seed {seed})" if seed else ""), str(edits)]
                + [_percent(scores[group]["generated"]) for scores in (first, last) for group in _GROUPS[:2]]
                + [str(run["parameters"]), f"{run['cpu_seconds_per_edit']:.3f}"]
            )
    head = ["", "edits", "first: efficacy", "generalization", "last: efficacy", "generalization"]
    return table([*head, "parameters", "CPU s per edit"], rows)


def _curves() -> dict[str, dict[str, Any]]:
    """Curves by setting and number of edits, from the sequences and the runs of the deferral alone."""
    found = {
        f"{name}, {edits} edits": run["deferral"]
        for edits, seed, runs in _sequences()
        for name, run in runs.items()
        if not seed
        and edits != _ABLATION
        and "deferral" in run
        and name in ("default", "paper", "paper, lr 1e-3")
    }
    return found | _load("deferral")


def deferral() -> str | None:
    """Rates with the limits as they are set."""
    rows = []
    for name, curves in _curves().items():
        at = curves["as set"]
        threshold = at["threshold"]
        rows.append(
            [name, str(at["epsilon"]), "–" if threshold is None else f"{threshold:.3f}"]
            + [
                f"{100 * at[what]:.2f} %"
                for what in ("false accepts", "false accepts, same subject", "false deferrals")
            ]
        )
    return table(
        ["", "epsilon", "threshold", "unrelated accepted", "same subject accepted", "rephrasings deferred"],
        rows,
    )


def epsilon() -> str | None:
    """Both rates over epsilon alone, without any similarity."""
    return _over("over epsilon", ("2", "4", "6", "8", "10", "12", "16", "20", "24", "28", "32"))


def threshold() -> str | None:
    """Both rates over the similarity alone."""
    return _over(
        "over threshold", ("0.60", "0.70", "0.75", "0.80", "0.85", "0.90", "0.92", "0.94", "0.96", "0.98")
    )


def _over(what: str, points: tuple[str, ...]) -> str | None:
    rows = []
    for name, curves in _curves().items():
        cells = []
        for point in points:
            at = curves[what].get(point)
            cells.append(
                "–" if at is None else f"{100 * at['false accepts']:.0f} / {100 * at['false deferrals']:.0f}"
            )
        rows.append([name, *cells])
    return table(["unrelated accepted / rephrasings deferred, %", *points], rows)


def editing() -> str | None:
    """Speed of editing against the literal loop."""
    rows = []
    for name, row in _load("editing").items():
        speed = row["edits_per_second"]
        apart = row["largest difference of a trained parameter"]
        cells = [f"{speed['literal']:.2f}", f"{speed['fast']:.2f}", f"{row['speedup']:.1f}"]
        rows.append([name, *cells, "–" if apart is None else f"{apart:.0e}"])
    return table(["", "literal, edits a second", "memplug", "times faster", "parameters differ by"], rows)


def overhead() -> str | None:
    """A forward of 64 tokens, attached against bare."""
    rows = [
        [
            name,
            *(f"{1000 * row['seconds'][what]:.2f}" for what in ("bare", "attached")),
            f"{row['ratio']:.2f}",
        ]
        for name, row in _load("overhead").items()
    ]
    return table(["", "bare, CPU ms", "attached", "ratio"], rows)


TABLES: dict[str, Callable[[], str | None]] = {
    "elder-sequence": sequence,
    "elder-ablation": ablation,
    "elder-deferral": deferral,
    "elder-epsilon": epsilon,
    "elder-threshold": threshold,
    "elder-editing": editing,
    "elder-overhead": overhead,
}
