"""Made-up results of a comparison, of the form that the runner writes, for the tests of the report."""

from __future__ import annotations

import random
from typing import Any

from memplug.evaluation import Answer, Scores

COUNTRIES = ["France", "日本", "Ελλάδα", "مصر", "Österreich", "भारत"]
HOSTILE = '</script><script>alert("x")</script><b>bold</b> & <!-- | '
GROUPS = {"efficacy": 1, "generalization": 2, "specificity": 2, "same_subject": 1, "portability": 1}
METHODS = [
    ("llp", "llp", "memory"),
    ("elder", "elder", "memory"),
    ("grace", "grace", "memory"),
    ("hiedit", "hiedit", "weights"),
    ("alphaedit:threshold-0.02-all-layers", "alphaedit", "weights"),
    ("icl", "icl", "prompt"),
    ("記憶編集", "llp", "memory"),
]


def _answers(rng: random.Random, seed: int, cases: int, good: dict[str, float]) -> list[Answer]:
    """Answers of which a share of each group is right; nine of ten where that is not said."""
    rows = []
    for case, (group, count) in ((case, pair) for case in range(cases) for pair in GROUPS.items()):
        target, stays = f"City {case % 7}", group in ("specificity", "same_subject")
        for number in range(count):
            prompt = f"{group} {number}: what about {COUNTRIES[case % len(COUNTRIES)]} {seed}.{case}?"
            right = rng.random() < good.get(group, 0.9)
            text = target if right else f"Elsewhere {rng.randrange(9)}"
            tokens = 1.0 if right else rng.choice([0.0, 0.25, 0.5])
            row = Answer(case, group, prompt, target, tokens, right, 1.1 if right else 12.0, text)
            agreement = 1.0 if right else 0.5
            rows.append(row._replace(base_text=target, agreement=agreement) if stays else row)
    return rows


def _score(value: float, n: int = 100) -> dict[str, Any]:
    half = 1.96 * (max(value * (1 - value), 0.0004) / n) ** 0.5
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def _few(efficacy: float, generalization: float, specificity: float) -> dict[str, Any]:
    """Scores of some properties, the same under each measure but "begins with"."""
    found = {"efficacy": efficacy, "generalization": generalization, "specificity": specificity}
    return {k: dict.fromkeys(("generated", "whole", "tokens"), _score(v)) for k, v in found.items()}


def _run(label: str, name: str, family: str, seed: int, number: int, edits: int) -> dict[str, Any]:
    rng, level = random.Random(100 * seed + number), 0.98 - 0.05 * number
    good = {"efficacy": level, "generalization": level - 0.1, "specificity": 0.99 - 0.04 * number}
    said = {"final": _answers(rng, seed, edits, good)}
    said["immediate"] = _answers(rng, seed, edits, {**good, "efficacy": min(1.0, level + 0.05)})
    curve = [
        {
            "edits": held,
            "first": _few(level - 0.1 * held / edits, level - 0.2 * held / edits, 0.9),
            "recent": _few(level, level - 0.1, 0.98),
            "general": {"arithmetic": _score(0.9 - 0.03 * number * held / edits), "copying": _score(0.8)},
        }
        for held in sorted({max(1, edits // part) for part in (10, 4, 2, 1)})
    ]
    likelier = {"efficacy": _score(level), "generalization": _score(level), "neighborhood": _score(0.7)}
    return {
        "method": label,
        "name": name,
        "family": family,
        "seed": seed,
        "status": "done",
        "error": None,
        "config": {"threshold": 0.8, "layers": [1, 2], "note": HOSTILE},
        "fit": {"seconds": 321.0, "steps": 50, "shipped": number % 2 == 0} if family == "weights" else None,
        "cost": {
            "seconds_per_edit": 0.02 * 2.1**number,
            "peak_host_bytes": 3_000_000 * (number + 1),
            "peak_device_bytes": None,
            "parameters": 10_000 * (number + 1),
            "bytes_per_edit": 4_000 * 1.7**number,
            "forward": {
                "ratio": 1 + number / 10,
                "peak_host_bytes": 1_000_000 + 500_000 * number,
                "peak_device_bytes": None,
                "recalled": False,
            },
            "decode": {"bare_ms_per_token": 2.0, "edited_ms_per_token": 2.2, "ratio": 1.1},
        },
        **{moment: Scores.from_answers(rows).to_dict() for moment, rows in said.items()},
        "first": Scores.from_answers(row for row in said["final"] if row.case < 100).to_dict(),
        "retained": {"efficacy": 0.91 - 0.01 * number, "generalization": 0.83 - 0.01 * number},
        "environment": {"torch": "2.13.0", "threads": 2, "made": "2026-11-20T12:00:00+00:00"},
        "preference": {"rome": likelier, "rledit": {"efficacy": _score(0.6), "generalization": None}},
        "curve": curve,
        "general": curve[-1]["general"],
        "details": _details(name, rng),
        "answers": {moment: [row.to_dict() for row in rows] for moment, rows in said.items()},
        "restored": True,
    }


def _details(name: str, rng: random.Random) -> dict[str, Any]:
    if name == "hiedit":
        modules = {f"model.layers.{i}.mlp.down_proj": rng.randrange(1, 90) for i in (2, 10, 3)}
        return {"layers": modules, "entropy": 1.25}
    if name == "llp":
        vote = {"kind": "unrelated", "layers": [1, 2, 3], "similarity": [0.95, 0.7, 0.2], "threshold": 0.8}
        vote |= {"voted": [True, False, False], "recalled": None}
        prompts = ["What is the capital of France?", f"hostile {HOSTILE}", "首都はどこですか"]
        first, *rest = [{**vote, "prompt": prompt} for prompt in prompts]
        return {"votes": [first | {"kind": "edited", "voted": [True, True, False], "recalled": "e1"}, *rest]}
    if name == "elder":
        near, far = [rng.randrange(5) for _ in range(40)], [rng.randrange(8, 30) for _ in range(90)]
        return {"distances": {"edited": near, "rephrased": [*near, 9], "unrelated": far, "epsilon": 6}}
    return {}


def example(methods: int = 7, seeds: int = 3, edits: int = 12, failed: bool = True) -> dict[str, Any]:
    """Results of ``methods`` methods and ``seeds`` seeds; with ``failed``, of one more that always fails."""
    chosen, numbers = METHODS[:methods], list(range(seeds))
    runs = [_run(*method, seed, i, edits) for i, method in enumerate(chosen) for seed in numbers]
    error = {"type": "OutOfMemoryError", "message": f"no room for {HOSTILE}", "traceback": "Traceback ..."}
    if failed:
        lost = {"method": "mend", "name": "mend", "family": "weights", "status": "failed", "error": error}
        runs += [{**lost, "seed": seed, "config": {}, "fit": None} for seed in numbers]
    untouched = {"efficacy": 0.05, "generalization": 0.05, "portability": 0.05}
    untouched |= {"specificity": 1.0, "same_subject": 1.0}
    likelier = {"efficacy": _score(0.12), "generalization": None, "neighborhood": _score(0.88)}
    base = {
        str(seed): {
            "scores": Scores.from_answers(_answers(random.Random(seed), seed, edits, untouched)).to_dict(),
            "general": {"arithmetic": _score(0.92), "copying": _score(0.81)},
            "preference": {"rome": likelier},
        }
        for seed in numbers
    }
    settings = {"model": "embedded world model", "cases": "world", "edits": edits, "batch": 1, "level": 0.95}
    settings |= {"methods": [label for label, *_ in chosen], "seeds": numbers, "points": [edits]}
    settings |= {"device": "cpu", "dtype": "float32", "command": "memplug compare --model world"}
    made = {"memplug": "0.1.0", "torch": "2.13.0", "faiss": None, "made": "2026-11-20T12:00:00+00:00"}
    return {
        "format": "memplug comparison",
        "version": 1,
        "environment": made,
        "settings": settings,
        "data": {"sha256": "ab" * 32, "read": edits, "used": edits, "no_op": 0},
        "base": base,
        "runs": runs,
    }
