"""Keep the figures of a comparison without its raw answers, which are megabytes a method.

    memplug compare --methods ... --out OUT
    python benchmarks/keep_comparison.py compare-world OUT [OUT ...]

Writes ``benchmarks/results/<name>.json``; several folders must have the same settings, but for methods, seeds
and ``--probes``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from common import RESULTS

_SAME = ("model", "cases", "edits", "batch", "device", "dtype", "points", "max_new_tokens")


def slim(run: dict[str, Any], probes: int | None) -> dict[str, Any]:
    """A run without answers and what is shown of single cases, with what it was asked at most."""
    left = {key: value for key, value in run.items() if key not in ("answers", "details", "asked")}
    left["curve"] = [without_answers(point) for point in left.get("curve") or ()]
    if left["error"]:
        left["error"] = {key: left["error"][key] for key in ("type", "message")}
    if left.get("command"):
        left["command"] = pathless(left["command"])
    return left | {"probes": probes}


def pathless(text: str) -> str:
    """Files by their names: a path of this machine says nothing elsewhere."""
    return re.sub(r"/[^ ]*/", "", text)


def without_answers(point: dict[str, Any]) -> dict[str, Any]:
    """The base model's scores, or a point of a curve, without what was said."""
    return {key: value for key, value in point.items() if key not in ("answers", "general_answers")}


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def gathered(folders: list[Path]) -> dict[str, Any]:
    """One comparison of the finished runs of several folders, whichever call made them.

    Raises:
        ValueError: the folders were not made with the same settings, or hold the same run twice.
    """
    settings = [read(folder / "settings.json") for folder in folders]
    runs: list[dict[str, Any]] = []
    base: dict[str, Any] = {}
    for folder, own in zip(folders, settings, strict=True):
        for name in _SAME:
            if own.get(name) != settings[0].get(name):
                raise ValueError(f"{folder} has another {name}: {own.get(name)!r}")
        base |= {file.stem: without_answers(read(file)) for file in sorted((folder / "base").glob("*.json"))}
        runs += [slim(read(file), own.get("probes")) for file in sorted((folder / "runs").glob("*.json"))]
    keys = [(run["method"], run["seed"]) for run in runs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice[0]} with seed {twice[1]} is in two of the folders; give one of them")
    kept = {name: settings[0].get(name) for name in (*_SAME, "level", "drop", "fit_cases", "data")}
    kept["methods"] = list(dict.fromkeys(method for method, _ in keys))
    kept["seeds"] = sorted({seed for _, seed in keys})
    for name in ("cases", "fit_cases", "model"):
        kept[name] = pathless(str(kept[name]))
    known = next((folder / "results.json" for folder in folders if (folder / "results.json").exists()), None)
    environment = read(known)["environment"] if known else None
    return {"environment": environment, "settings": kept, "base": base, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the file of results")
    parser.add_argument("folders", type=Path, nargs="+", metavar="OUT")
    args = parser.parse_args()
    kept = gathered(args.folders)
    path = RESULTS / f"{args.name}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
