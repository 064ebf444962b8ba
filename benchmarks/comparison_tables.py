"""The tables of `tables.py` on comparisons of all methods."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from common import RESULTS

__all__ = ["COMPARISON_TABLES"]

_GROUPS = ("efficacy", "generalization", "specificity", "same_subject", "portability")
_FAMILIES = {"memory": 0, "prompt": 1, "weights": 2}


def _percent(scores: Any, group: str) -> str:
    score = ((scores or {}).get(group) or {}).get("generated")
    return "–" if score is None else f"{100 * score['value']:.1f}"


def _row(run: dict[str, Any]) -> list[str]:
    if run["status"] != "done":
        return [run["method"], run["family"], str(run["seed"]), f"failed: {run['error']['message'][:80]}"]
    cost, skills = run["cost"], (run["general"].get("skills") or {}).get("value")
    return [
        run["method"],
        run["family"],
        str(run["seed"]),
        *(_percent(run["final"], group) for group in _GROUPS),
        _percent(run["immediate"], "efficacy"),
        _percent(run["first"], "efficacy"),
        "–" if skills is None else f"{100 * skills:.1f}",
        f"{cost['seconds_per_edit']:.2f}",
        f"{cost['forward']['ratio']:.2f}",
        f"{cost['bytes_per_edit'] / 1000:.1f}",
    ]


def comparison(name: str) -> Callable[[], str | None]:
    """Renders ``results/<name>.json``, as `keep_comparison.py` writes it."""

    def render() -> str | None:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            return None
        runs = json.loads(path.read_text())["runs"]
        runs.sort(key=lambda run: (_FAMILIES[run["family"]], run["method"], run["seed"]))
        head = ["method", "family", "seed", *(group.replace("_", " ") for group in _GROUPS)]
        head += ["right after its batch", "first 100", "skills", "s per edit", "forward", "kB per edit"]
        lines = [head, ["---"] * len(head), *(_row(run) for run in runs)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    return render


COMPARISON_TABLES = {"compare-world": comparison("compare-world")}
