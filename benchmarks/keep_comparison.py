"""Keep the figures of a comparison without its raw answers, which are megabytes a method.

    memplug compare --methods ... --out OUT
    python benchmarks/keep_comparison.py compare-world OUT [OUT ...]

Writes ``benchmarks/results/<name>.json``; several folders must have the same settings, but for methods, seeds
and ``--probes``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import RESULTS

_SAME = ("model", "cases", "edits", "batch", "device", "dtype", "points", "max_new_tokens")


def slim(run: dict[str, Any], probes: int | None) -> dict[str, Any]:
    """A run without answers and what is shown of single cases, with what it was asked at most."""
    left = {key: value for key, value in run.items() if key not in ("answers", "details", "asked")}
    return left | {"probes": probes}


def gathered(folders: list[Path]) -> dict[str, Any]:
    """One comparison of the runs of several folders.

    Raises:
        ValueError: the folders were not made with the same settings, or hold the same run twice.
    """
    found = [json.loads((folder / "results.json").read_text()) for folder in folders]
    first = found[0]
    for other, folder in zip(found, folders, strict=True):
        for name in _SAME:
            if other["settings"].get(name) != first["settings"].get(name):
                raise ValueError(f"{folder} has another {name}: {other['settings'].get(name)!r}")
    runs = [slim(run, one["settings"].get("probes")) for one in found for run in one["runs"]]
    keys = [(run["method"], run["seed"]) for run in runs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice[0]} with seed {twice[1]} is in two of the folders; give one of them")
    settings = {k: v for k, v in first["settings"].items() if k not in ("command", "probes", "orders")}
    settings["methods"] = list(dict.fromkeys(method for method, _ in keys))
    settings["seeds"] = sorted({seed for _, seed in keys})
    base = {seed: scores for one in found for seed, scores in one["base"].items()}
    return first | {"settings": settings, "base": base, "runs": runs}


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
