"""The tables of the weight editors; `tables.py` puts them into the README."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from common import RESULTS, table

__all__ = ["WEIGHT_TABLES"]

_GROUPS = {
    "efficacy": "efficacy",
    "generalization": "generalization",
    "specificity": "specificity",
    "specificity_gold": "gold",
    "same_subject": "same subject",
}


def _load(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _runs(group: str) -> dict[tuple[str, int, int], list[dict[str, Any]]]:
    """By label, number of edits and batch, the runs of all seeds."""
    found = defaultdict(list)
    for run in _load("weights_runs").get("runs", {}).values():
        if run["group"] == group:
            found[run["label"], run["edits"], run["batch"]].append(run)
    return dict(sorted(found.items(), key=lambda item: item[0][1:]))


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * (max(values) - min(values)) / 2:.0f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def _quality(runs: list[dict[str, Any]], measure: str) -> list[str]:
    cells = []
    for group in _GROUPS:
        values = [run["last"][group][measure] for run in runs if measure in run["last"].get(group, {})]
        cells.append(_percent(values) if values else "–")
    return cells


def _retained(runs: list[dict[str, Any]]) -> list[str]:
    firsts = [run["curve"][-1]["first"] for run in runs]
    return [
        _percent([first[group]["tokens"] for first in firsts]) for group in ("efficacy", "generalization")
    ]


def _made(edits: int, batch: int) -> str:
    return f"{edits} in {batch}s" if batch > 1 else f"{edits} one by one"


def edited(group: str) -> Callable[[], str | None]:
    def made() -> str | None:
        rows = []
        for (label, edits, batch), runs in _runs(group).items():
            skills = _percent([run["curve"][-1]["skills"] for run in runs])
            size = [label, _made(edits, batch), str(len(runs))]
            rows.append([*size, "tokens", *_quality(runs, "tokens"), *_retained(runs), skills])
            rows.append([label, "", "", "generated", *_quality(runs, "generated"), "", "", ""])
        head = ["method", "edits", "seeds", "measure", *_GROUPS.values()]
        return table([*head, "retained", "its rephrasings", "skills"], rows)

    return made


def claims(group: str) -> Callable[[], str | None]:
    def made() -> str | None:
        rows = []
        for (label, edits, batch), runs in _runs(group).items():
            fits = [run["fit"] for run in runs if "fit" in run]
            time = f"{mean(f['cpu_seconds'] for f in fits):.0f}" if fits else "–"
            choices = [run["chosen"] for run in runs if run["chosen"]]
            entropy = f"{mean(c['entropy'] for c in choices):.2f}" if choices else "–"
            cells = [label, _made(edits, batch), str(len(runs)), *_quality(runs, "tokens")]
            rows.append([*cells, *_retained(runs), time, entropy])
        head = [
            "setting",
            "edits",
            "seeds",
            *_GROUPS.values(),
            "retained",
            "its rephrasings",
            "fit, s",
            "bits",
        ]
        return table(head, rows)

    return made


def curve() -> str | None:
    rows = []
    for (label, edits, batch), runs in _runs("shipped").items():
        if edits < 1000:
            continue
        for index, point in enumerate(runs[0]["curve"]):
            skills = _percent([run["curve"][index]["skills"] for run in runs])
            firsts = [run["curve"][index].get("first") for run in runs]
            held = ["–", "–", "–"]
            if firsts[0] is not None:
                groups = ("efficacy", "generalization", "specificity")
                held = [_percent([f[g]["tokens"] for f in firsts]) for g in groups]
            rows.append([label, f"in {batch}s", str(point["edits"]), *held, skills])
    head = ["method", "batches", "edits made", "first 100", "rephrased", "specificity", "skills"]
    return table(head, rows)


def cost() -> str | None:
    rows = []
    for (label, edits, batch), runs in _runs("shipped").items():
        fit = _load(f"weights_fit_{label}")
        each = fit["cpu_seconds"] / fit["fit_steps"] if fit else None
        rows.append([
            label, _made(edits, batch), f"{1000 * mean(run['cpu_seconds_per_edit'] for run in runs):.0f}",
            f"{max(run['peak_rss_mb'] for run in runs):.0f}", f"{runs[0]['parameters']:,}",
            f"{each:.2f}" if each else "–", f"{fit['cpu_seconds']:.0f}" if fit else "–",
        ])  # fmt: skip
    head = ["method", "edits", "ms an edit", "peak MB", "parameters", "s a fitting step", "s of fitting"]
    return table(head, rows)


def speed() -> str | None:
    found = _load("weights_speed")
    rows = []
    for method in ("rledit", "hiedit"):
        for name in ("the same work", "the library's defaults"):
            if method in found and name in found[method]:
                one = found[method][name]
                slow = found[method]["the same work"]["cpu seconds a step, literal"]
                times = found[method]["times as fast"]
                ratio = times[name] if isinstance(times, dict) else times
                rows.append([
                    method, name, str(one["fit_batch"]), f"{slow:.3f}",
                    f"{one['cpu seconds a step']:.3f}", f"{ratio:.1f}",
                ])  # fmt: skip
    return table(["method", "what", "edits a step", "literal, s", "s", "times faster"], rows)


def tuning() -> str | None:
    found = _load("weights_tuning")
    rows = []
    for one in found.get("tried", []):
        cells = [f"{100 * one['last'][name]:.1f}" for name in ("eff", "gen", "spe", "same")]
        rows.append([one["what"], *cells, f"{100 * one['first']['eff']:.1f}"])
    head = ["tried", "efficacy", "generalization", "specificity", "same subject", "retained"]
    return table(head, rows)


def long() -> str | None:
    """What was tried for sequences of many hundred edits."""
    rows = []
    for one in _load("weights_tuning").get("long", {}).get("tried", []):
        last, first = one["last"], one["first"]
        cells = [
            f"{last[name]:.1f}" for name in ("efficacy", "generalization", "specificity", "same_subject")
        ]
        held = [f"{first[name]:.1f}" for name in ("efficacy", "generalization", "specificity")]
        rows.append([one["what"], str(one["edits"]), *cells, *held, f"{one['ms']:.0f}"])
    head = ["tried", "edits", "efficacy", "generalization", "specificity", "same subject", "retained"]
    head += ["its rephrasings", "its specificity", "ms an edit"]
    return table(head, rows)


def thousand() -> str | None:
    """What was tried against what a thousand edits wear out."""
    rows = []
    for one in _load("weights_tuning").get("thousand", {}).get("tried", []):
        cells = [f"{value:.1f}" for value in (*one["last"].values(), *one["first"].values(), one["skills"])]
        rows.append([one["what"], *cells, f"{one['ms']:.0f}"])
    head = ["tried", "efficacy", "generalization", "specificity", "same subject", "retained"]
    return table([*head, "its rephrasings", "skills", "ms an edit"], rows)


def delete() -> str | None:
    """Milliseconds of what the time goes to, by what is done to the ledger."""
    found = _load("weights_delete")
    if not found:
        return None
    means = found["seconds (mean)"]
    rows = [
        [part, *(f"{1000 * means[what][part]:.1f}" for what in means)] for part in next(iter(means.values()))
    ]
    rows.append(["all", *(f"{1000 * sum(one.values()):.1f}" for one in means.values())])
    return table(["ms", *means], rows)


WEIGHT_TABLES: dict[str, Callable[[], str | None]] = {
    "weights-shipped": edited("shipped"),
    "weights-narrow": edited("narrow"),
    "weights-curve": curve,
    "weights-cost": cost,
    "weights-tuning": tuning,
    "weights-long": long,
    "weights-thousand": thousand,
    "weights-speed": speed,
    "weights-delete": delete,
    **{
        f"weights-{group.replace(' ', '-')}": claims(group)
        for group in ("hiedit", "rledit", "little data", "faithful")
    },
}
