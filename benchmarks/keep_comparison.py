"""Keep the figures of a comparison without its raw answers, which are megabytes a method.

    memplug compare --methods ... --out OUT
    python benchmarks/keep_comparison.py compare-world OUT [OUT ...]

Writes ``benchmarks/results/<name>.json``; several folders must have the same settings but for the methods.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import RESULTS

_SAME = ("model", "cases", "edits", "batch", "seeds", "device", "dtype", "points", "max_new_tokens")


def slim(run: dict[str, Any]) -> dict[str, Any]:
    """A run without answers and what is shown of single cases."""
    return {key: value for key, value in run.items() if key not in ("answers", "details", "asked")}


def gathered(folders: list[Path]) -> dict[str, Any]:
    """One comparison of the runs of several folders.

    Raises:
        ValueError: the folders were not made with the same settings.
    """
    found = [_of(folder) for folder in folders]
    first = found[0]
    for other, folder in zip(found, folders, strict=True):
        for name in _SAME:
            if other["settings"].get(name) != first["settings"].get(name):
                raise ValueError(f"{folder} has another {name}: {other['settings'].get(name)!r}")
    settings = {name: value for name, value in first["settings"].items() if name != "command"}
    settings["methods"] = [label for one in found for label in one["settings"]["methods"]]
    return first | {"settings": settings, "runs": [slim(run) for one in found for run in one["runs"]]}


def _of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


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
