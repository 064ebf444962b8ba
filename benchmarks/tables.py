"""Write the results' tables into `README.md` and `EMBEDDED.md` of this folder, between their markers.

    python benchmarks/tables.py

A marker ``<!-- name -->`` ... ``<!-- /name -->`` is filled from the results of that name, so that no figure
in the text is typed by hand. Markers without results are left as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, table
from comparison_tables import COMPARISON_TABLES
from weights_tables import WEIGHT_TABLES

PAGES = [Path(__file__).parent / name for name in ("README.md", "EMBEDDED.md")]
_GROUPS = ("efficacy", "generalization", "specificity", "same_subject", "portability")
_MEASURES = (("whole", "teacher-forced, whole answer"), ("generated", "generated, whole answer"))


def load(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def percent(score: Any) -> str:
    return "–" if score is None else f"{100 * score['value']:.1f}"


def llp_quality() -> str | None:
    rows = []
    for preset in ("default", "paper"):
        found = load("llp-quality" + ("" if preset == "default" else f"-{preset}"))
        for n, scores in (found["results"] if found else {}).items():
            for measure, name in _MEASURES:
                cells = [percent(scores[group][measure]) for group in _GROUPS]
                skills = min(scores["skills"].values())
                rows.append(
                    [preset, n, name, *cells, f"{100 * skills:.0f}", f"{scores['seconds_per_edit']:.2f}"]
                )
    head = ["preset", "edits held", "measure", *(group.replace("_", " ") for group in _GROUPS)]
    return table([*head, "worst skill", "s per edit"], rows)


def llp_collisions() -> str | None:
    rows = []
    for preset in ("default", "paper"):
        found = load("llp-collisions" + ("" if preset == "default" else f"-{preset}"))
        if found:
            rows.append(
                [preset]
                + [
                    f"{100 * value:.2f} %" if isinstance(value, float) else str(value)
                    for value in found["results"].values()
                ]
            )
            head = ["preset", *found["results"]]
    return table(head, rows)


def llp_editing() -> str | None:
    found = load("llp-editing")
    if not found:
        return None
    rows = [
        [name, f"{row['seconds_per_edit']:.3f}", f"{row.get('times_faster', 1):.1f}", str(row["edits"])]
        for name, row in found["results"].items()
    ]
    return table(["", "s per edit", "times faster", "edits timed"], rows)


def llp_overhead() -> str | None:
    found = load("llp-overhead")
    if not found:
        return None
    rows = [
        [name, f"{row['milliseconds']:.2f}", f"{row['ratio']:.3f}"] for name, row in found["results"].items()
    ]
    return table(["edits attached", "ms a forward", "ratio"], rows)


def key_memory() -> str | None:
    found = load("key_memory")
    if not found:
        return None
    rows = []
    for row in found["results"]["searches"]:
        size = (
            f"{row['name']}: D={row['width']}, {row['entries']} keys, {row['rows']} x {row['tokens']} tokens"
        )
        cells = [size, f"{row['times_ms']['memory']:.2f}"]
        for against in ("plain", "literal"):
            ratio, target = row["ratios"].get(against), row.get(against)
            cells.append("–" if ratio is None else f"{ratio:.1f}")
            cells.append("–" if target is None else f"{target:g}")
        rows.append(cells)
    head = ["search in 8 layers", "ms", "times faster than float32", "aim", "than the literal loop", "aim"]
    return table(head, rows)


def world() -> str | None:
    found = load("world")
    if not found:
        return None
    known, context = found["knowledge"], found["context"]
    rows = [[name, f"{100 * known[name]['right']:.1f} %"] for name in known if name != "skills"]
    rows += [[f"skill: {name}", f"{100 * v['right']:.1f} %"] for name, v in known["skills"].items()]
    rows += [[name, f"{100 * v['right']:.1f} %"] for name, v in context.items()]
    rows.append(_lexical(found))
    return table(["measured by the training script", ""], rows)


def zsre_model() -> str | None:
    found = load("zsre_model")
    if not found:
        return None
    shares = {
        name: value for part in ("knowledge", "context") for name, value in found[part].items() if value
    }
    rows = [
        [name, f"{100 * value['right']:.1f} %" if isinstance(value, dict) else str(value)]
        for name, value in shares.items()
    ]
    return table(["measured by the training script", ""], [*rows, _lexical(found)])


def _lexical(found: dict[str, Any]) -> list[str]:
    cosines = found["cosine of the last subject token, embeddings then layers"]
    low = ", ".join(f"{c:.2f}" for c in cosines["same subject, 5th percentile"][1:5])
    return ["cosine in other phrasings, layers 0 to 3, 5th percentile", low]


TABLES: dict[str, Callable[[], str | None]] = WEIGHT_TABLES | {
    "llp-quality": llp_quality,
    "llp-collisions": llp_collisions,
    "llp-editing": llp_editing,
    "llp-overhead": llp_overhead,
    "key-memory": key_memory,
    "world": world,
    "zsre-model": zsre_model,
    **COMPARISON_TABLES,
}


def main() -> None:
    found = {name: render() for name, render in TABLES.items()}
    print(*(f"no results for {name}\n" for name, content in found.items() if content is None), sep="", end="")
    for page in PAGES:
        text = page.read_text()
        for name, content in found.items():
            pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
            if content is not None:
                text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
        page.write_text(text)


if __name__ == "__main__":
    main()
