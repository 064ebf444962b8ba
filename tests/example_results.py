"""Made-up results of a comparison, of the form that the runner writes, for the tests of the report."""

from __future__ import annotations

import random
from typing import Any

from memplug.evaluation import Answer, Scores

COUNTRIES = ["France", "日本", "Ελλάδα", "مصر", "Österreich", "भारत"]
HOSTILE = '</script><script>alert("x")</script><b>bold</b> & <!-- | '
STAY = ("specificity", "same_subject")


def _answers(rng: random.Random, seed: int, cases: int, good: dict[str, float], base: bool) -> list[Answer]:
    rows = []
    for case in range(cases):
        subject = f"{COUNTRIES[case % len(COUNTRIES)]} {seed}.{case}"
        target = f"City {case % 7}"
        for group, count in (
            ("efficacy", 1),
            ("generalization", 2),
            ("specificity", 2),
            ("same_subject", 1),
            ("portability", 1),
        ):
            for number in range(count):
                prompt = f"{group} {number}: what about {subject}?"
                right = rng.random() < (0.05 if base and group not in STAY else good.get(group, 0.9))
                text = target if right else f"Elsewhere {rng.randrange(9)}"
                stays = group in STAY
                rows.append(
                    Answer(
                        case=case,
                        group=group,
                        prompt=prompt,
                        target=target,
                        tokens=1.0 if right else rng.choice([0.0, 0.25, 0.5]),
                        whole=right,
                        perplexity=1.1 if right else 20 * rng.random() + 2,
                        text=text,
                        base_text=target if stays else None,
                        agreement=(1.0 if right else 0.5) if stays else None,
                    )
                )
    return rows


def _score(value: float, n: int = 100) -> dict[str, Any]:
    half = 1.96 * (max(value * (1 - value), 0.0004) / n) ** 0.5
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def _few(efficacy: float, generalization: float, specificity: float) -> dict[str, Any]:
    """Scores of some properties, the same under each measure but "begins with"."""
    found = {"efficacy": efficacy, "generalization": generalization, "specificity": specificity}
    return {k: dict.fromkeys(("generated", "whole", "tokens"), _score(v)) for k, v in found.items()}


def _run(label: str, name: str, family: str, seed: int, number: int, edits: int) -> dict[str, Any]:
    rng = random.Random(100 * seed + number)
    level = 0.98 - 0.05 * number
    good = {"efficacy": level, "generalization": level - 0.1, "specificity": 0.99 - 0.04 * number}
    final = _answers(rng, seed, edits, good, False)
    immediate = _answers(rng, seed, edits, {**good, "efficacy": min(1.0, level + 0.05)}, False)
    points = sorted({max(1, edits // 10), max(1, edits // 4), max(1, edits // 2), edits})
    curve = [
        {
            "edits": p,
            "seconds": 0.2 * p,
            "first": _few(
                level - 0.1 * p / edits, level - 0.2 * p / edits, 0.99 - 0.3 * number * p / edits / 12
            ),
            "recent": _few(level, level - 0.1, 0.98),
            "general": {"arithmetic": _score(0.9 - 0.03 * number * p / edits), "copying": _score(0.8)},
        }
        for p in points
    ]
    return {
        "method": label,
        "name": name,
        "family": family,
        "seed": seed,
        "status": "done",
        "error": None,
        "config": {"threshold": 0.8, "layers": [1, 2], "note": HOSTILE},
        "fit": {"seconds": 321.0, "steps": 50, "seconds_per_step": 6.4, "shipped": number % 2 == 0}
        if family == "weights"
        else None,
        "cost": {
            "seconds": 12.0,
            "seconds_per_edit": 0.02 * 2.1**number,
            "peak_host_bytes": 3_000_000 * (number + 1),
            "peak_device_bytes": None,
            "parameters": 10_000 * (number + 1),
            "bytes": 400_000,
            "bytes_per_edit": 4_000 * 1.7**number,
            "forward": {
                "tokens": 64,
                "bare_ms": 10.0,
                "edited_ms": 10.0 + number,
                "ratio": 1 + number / 10,
                "bare_peak_host_bytes": 1_000_000,
                "bare_peak_device_bytes": None,
                "peak_host_bytes": 1_000_000 + 500_000 * number,
                "peak_device_bytes": None,
                "recalled": False,
            },
            "decode": {"bare_ms_per_token": 2.0, "edited_ms_per_token": 2.2, "ratio": 1.1},
        },
        "immediate": Scores.from_answers(immediate).to_dict(),
        "final": Scores.from_answers(final).to_dict(),
        "first": Scores.from_answers([a for a in final if a.case < 100]).to_dict(),
        "retained": {"efficacy": 0.91 - 0.01 * number, "generalization": 0.83 - 0.01 * number},
        "environment": {"torch": "2.13.0", "threads": 2, "made": "2026-11-20T12:00:00+00:00"},
        "preference": {
            "rome": {"efficacy": _score(level), "generalization": _score(level), "neighborhood": _score(0.7)},
            "rledit": {"efficacy": _score(0.6), "generalization": None, "neighborhood": None},
        },
        "curve": curve,
        "general": curve[-1]["general"],
        "details": _details(name, rng),
        "answers": {
            "immediate": Scores.from_answers(immediate).to_dict(answers=True)["answers"],
            "final": Scores.from_answers(final).to_dict(answers=True)["answers"],
        },
        "restored": True,
    }


def _details(name: str, rng: random.Random) -> dict[str, Any]:
    if name == "hiedit":
        modules = {f"model.layers.{i}.mlp.down_proj": rng.randrange(1, 90) for i in (2, 10, 3)}
        return {"layers": modules, "entropy": 1.25}
    if name == "llp":
        prompts = ["What is the capital of France?", f"hostile {HOSTILE}", "首都はどこですか"]
        vote = {"layers": [1, 2, 3], "similarity": [0.95, 0.7, 0.2], "voted": [True, False, False]}
        votes = [
            {"prompt": p, "kind": "unrelated", "threshold": 0.8, "recalled": None, **vote} for p in prompts
        ]
        votes[0] |= {"kind": "edited", "voted": [True, True, False], "recalled": "e1"}
        return {"votes": votes}
    if name == "elder":
        near, far = [rng.randrange(5) for _ in range(40)], [rng.randrange(8, 30) for _ in range(90)]
        return {"distances": {"edited": near, "rephrased": [*near, 9], "unrelated": far, "epsilon": 6}}
    return {}


METHODS = [
    ("llp", "llp", "memory"),
    ("elder", "elder", "memory"),
    ("grace", "grace", "memory"),
    ("rledit", "rledit", "weights"),
    ("hiedit", "hiedit", "weights"),
    ("ultraedit", "ultraedit", "weights"),
    ("memit", "memit", "weights"),
    ("alphaedit:threshold-0.02-all-layers", "alphaedit", "weights"),
    ("finetune", "finetune", "weights"),
    ("lora", "lora", "weights"),
    ("icl", "icl", "prompt"),
    ("記憶編集", "llp", "memory"),
]


def example(methods: int = 12, seeds: int = 3, edits: int = 12, failed: bool = True) -> dict[str, Any]:
    """Results of ``methods`` methods and ``seeds`` seeds; with ``failed``, of one more that always fails."""
    chosen, numbers = METHODS[:methods], list(range(seeds))
    runs = [_run(*m, seed, i, edits) for i, m in enumerate(chosen) for seed in numbers]
    error = {"type": "OutOfMemoryError", "message": f"no room for {HOSTILE}", "traceback": "Traceback ..."}
    if failed:
        lost = {"method": "mend", "name": "mend", "family": "weights", "status": "failed", "error": error}
        runs += [{**lost, "seed": seed, "config": {}, "fit": None} for seed in numbers]
    base = {}
    for seed in numbers:
        rows = _answers(random.Random(seed), seed, edits, {"specificity": 1.0, "same_subject": 1.0}, True)
        scores = Scores.from_answers(rows).to_dict()
        preference = {
            "rome": {"efficacy": _score(0.12), "generalization": None, "neighborhood": _score(0.88)}
        }
        base[str(seed)] = {
            "scores": scores,
            "general": {"arithmetic": _score(0.92), "copying": _score(0.81)},
            "preference": preference,
        }
    settings = {
        "model": "embedded world model",
        "cases": "world",
        "methods": [label for label, *_ in chosen],
        "edits": edits,
        "batch": 1,
        "seeds": numbers,
        "device": "cpu",
        "dtype": "float32",
        "points": [edits],
        "level": 0.95,
        "general": ["skills"],
        "command": "memplug compare --model world --cases world",
    }
    return {
        "format": "memplug comparison",
        "version": 1,
        "environment": {
            "memplug": "0.1.0",
            "torch": "2.13.0",
            "cores": 2,
            "faiss": None,
            "made": "2026-11-20T12:00:00+00:00",
        },
        "settings": settings,
        "data": {"sha256": "ab" * 32, "read": edits, "used": edits, "no_op": 0},
        "base": base,
        "runs": runs,
    }
