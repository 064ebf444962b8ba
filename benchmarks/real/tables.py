"""The figures of a run as Markdown.

python -m benchmarks.real.tables FILE.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common import table

__all__ = ["tables"]

COLUMNS = (
    ("as asked", "plain", "right"),
    ("as asked", "chat", "right"),
    ("rephrased", "plain", "right"),
    ("rephrased", "chat", "right"),
    ("rephrased by template", "plain", "right"),
    ("rephrased by template", "chat", "right"),
    ("in conversation", "with a system turn", "right"),
    ("in conversation", "in a second turn", "right"),
    ("in conversation", "behind a longer message", "right"),
    ("other facts", "plain", "kept"),
    ("other facts", "chat", "kept"),
    ("neighbours", "plain", "kept"),
    ("neighbours", "chat", "kept"),
    ("unrelated", "plain", "same"),
    ("unrelated", "chat", "same"),
    ("passing mentions", "plain", "same"),
    ("passing mentions", "chat", "same"),
    ("passing mentions", "plain", "broken"),
    ("passing mentions", "chat", "broken"),
    ("passing mentions", "plain", "blurts"),
    ("passing mentions", "chat", "blurts"),
    ("as asked", "plain", "broken"),
    ("as asked", "chat", "broken"),
)
COSTS = (
    ("learned", "edits learned", 0),
    ("seconds_per_edit", "seconds an edit, in batches", 2),
    ("cpu_seconds_per_edit", "CPU seconds an edit, in batches", 2),
    ("seconds_per_single_edit", "seconds an edit, one by one", 2),
    ("forward_ratio", "forward of 64 tokens, times the base model", 2),
    ("decode_ratio", "decoding a token, times the base model", 2),
)


def tables(results: Mapping[str, Any]) -> str:
    """A line a measure, a column a model: first the base model, then the methods. Shares in %."""
    runs = {"base": results["base"], **results["runs"]}
    rows = []
    for group, form, measure in COLUMNS:
        found = [_share(run, group, form, measure) for run in runs.values()]
        if any(found):
            n = max(share["n"] if isinstance(share, dict) else share[1] for share in found if share)
            rows.append([f"{group}, {form}: {measure}", str(n), *map(_percent, found)])
    for key, title, digits in COSTS:
        values = [run.get(key) for run in runs.values()]
        if any(value is not None for value in values):
            rows.append([title, "", *("–" if v is None else f"{v:.{digits}f}" for v in values)])
    ends = [f"{name}: {run['error']}" for name, run in runs.items() if run.get("error")]
    return "\n".join([table(["%", "n", *runs], rows) or "", *ends]) + "\n"


def _share(run: Mapping[str, Any], group: str, form: str, measure: str) -> Any:
    return run.get("measures", {}).get(group, {}).get(form, {}).get(measure)


def _percent(share: Any) -> str:
    return "–" if not share else f"{100 * (share['share'] if isinstance(share, dict) else share[0]):.1f}"


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text())))
