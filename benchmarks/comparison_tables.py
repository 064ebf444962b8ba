"""The tables of `tables.py` on comparisons of all methods."""

from __future__ import annotations

import json
from collections.abc import Callable
from statistics import median
from typing import Any

from common import RESULTS, table

__all__ = ["COMPARISON_TABLES"]

_GROUPS = ("efficacy", "generalization", "specificity", "same_subject", "portability")
_FAMILIES = {"memory": 0, "prompt": 1, "weights": 2}


def _mean(values: list[float], digits: int) -> str:
    """The mean, and half the distance between the lowest and the highest where there are several."""
    shown = f"{sum(values) / len(values):.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ±{(max(values) - min(values)) / 2:.{digits}f}"


def _shares(runs: list[dict[str, Any]], part: str, group: str) -> str:
    found = [((run[part] or {}).get(group) or {}).get("generated") for run in runs]
    return "–" if None in found else _mean([100 * score["value"] for score in found if score], 1)


def _early(runs: list[dict[str, Any]], group: str) -> str:
    """The first 100 edits when no others had been made."""
    points = [point for run in runs for point in run["curve"] if point["edits"] == 100]
    return _shares(points, "first", group) if points else "–"


def _row(runs: list[dict[str, Any]]) -> list[str]:
    """One method: means over the seeds that it finished."""
    method, family = runs[0]["method"], runs[0]["family"]
    done = [run for run in runs if run["status"] == "done"]
    if not done:
        return [method, family, "0", f"failed: {_short(runs[0]['error']['message'])}"]
    skills = [run["general"]["skills"]["value"] for run in done if run["general"].get("skills")]
    ratios = [run["cost"]["forward"]["ratio"] for run in done if run["cost"]["forward"]]
    return [
        method,
        family,
        str(len(done)) if len(done) == len(runs) else f"{len(done)} of {len(runs)}",
        *(_shares(done, "final", group) for group in _GROUPS),
        _shares(done, "immediate", "efficacy"),
        _shares(done, "first", "efficacy"),
        *(_early(done, group) for group in ("efficacy", "specificity")),
        _mean([100 * value for value in skills], 1) if skills else "–",
        f"{min(run['cost']['seconds_per_edit'] for run in done):.2f}",
        f"{median(ratios):.2f}" if ratios else "–",
        f"{min(run['cost']['bytes_per_edit'] for run in done) / 1000:.1f}",
    ]


def _short(message: str) -> str:
    """What went wrong, and after how many edits where that is told."""
    what, _, when = message.partition(" (after ")
    return what.split(", the limit")[0].split(". ")[0] + (f" (after {when}" if when else "")


def comparison(name: str) -> Callable[[], str | None]:
    """Renders ``results/<name>.json``, as `keep_comparison.py` writes it."""

    def render() -> str | None:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            return None
        runs = json.loads(path.read_text())["runs"]
        methods = sorted({(_FAMILIES[run["family"]], run["method"]) for run in runs})
        rows = [_row([run for run in runs if run["method"] == method]) for _, method in methods]
        head = ["method", "family", "seeds", *(group.replace("_", " ") for group in _GROUPS)]
        head += [
            "right after its batch",
            "first 100",
            "with 100 alone",
            "their specificity",
            "skills",
            "s per edit",
            "forward",
            "kB per edit",
        ]
        return table(head, rows)

    return render


def large(shape: str) -> Callable[[], str | None]:
    """Renders ``results/large-<shape>.json``, as `large.py` writes it."""

    def line(found: dict[str, Any]) -> list[str]:
        if "error" in found:
            return [found["method"], found["error"][:100]]
        step = found["seconds_per_fitting_step"]
        memory = found["peak_device_bytes"] or found["peak_host_bytes"]
        return [
            found["method"],
            f"{found['seconds_per_edit']:.2f}",
            "–" if step is None else f"{step:.2f}",
            f"{found['forward_ratio']:.2f}",
            f"{found['decode_ratio']:.2f}",
            f"{memory / 1e6:.0f}",
            f"{found['bytes_per_edit'] / 1000:.0f}",
        ]

    def render() -> str | None:
        path = RESULTS / f"large-{shape}.json"
        if not path.exists():
            return None
        found = json.loads(path.read_text())["results"]
        head = ["method", "s per edit", "s per fitting step", "forward", "decoded token", "peak MB"]
        return table([*head, "kB per edit"], [line(one) for one in found])

    return render


COMPARISON_TABLES = {
    name: comparison(name) for name in ("compare-world", "compare-zsre", "compare-counterfact")
} | {"large-llama-3-8b": large("llama-3-8b")}
