"""The table of a sweep, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from benchmarks.common import table
from benchmarks.every_model.promises import Verdict

__all__ = ["markdown"]

KINDS = {
    "exact": "every promise holds, and the fact is answered",
    "not learned": "every promise holds; the random model did not take up the fact",
    "refused": "the library says what the model lacks",
    "wrong": "a promise does not hold",
    "crash": "an error that is not the library's own",
    "base fails": "the model itself does not run on text alone",
    "not built": "transformers does not build a tiny model from sizes alone",
    "not tried": "left out of this run",
}


def markdown(rows: Sequence[tuple[str, Mapping[str, Verdict]]], methods: Sequence[str]) -> str:
    """Counts by method, then a row for each kind of model, then the reasons."""
    rows = [(name, {m: found.get(m, Verdict("not tried")) for m in methods}) for name, found in rows]
    counts = {method: Counter(verdicts[method].kind for _, verdicts in rows) for method in methods}
    shown = [kind for kind in KINDS if any(counts[method][kind] for method in methods)]
    summary = table(
        ["", *methods],
        [[f"**{kind}**: {KINDS[kind]}", *(str(counts[m][kind]) for m in methods)] for kind in shown],
    )
    body = table(["model_type", *methods], [[name, *(v[m].kind for m in methods)] for name, v in rows])
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, verdicts in rows:
        grouped: dict[str, list[str]] = {}
        for method in methods:
            if verdicts[method].reason and verdicts[method].kind not in ("exact", "not learned"):
                grouped.setdefault(f"{verdicts[method].kind}: {verdicts[method].reason}", []).append(method)
        for reason, some in grouped.items():
            reasons.setdefault((reason, ", ".join(some)), []).append(name)
    listed = [f"- {', '.join(names)} ({some}): {reason}" for (reason, some), names in reasons.items()]
    head = (
        f"Every causal language model of transformers {version('transformers')} (torch {version('torch')}) "
        "and, where asked for, every model that sees, on text alone, or every encoder-decoder; tiny and "
        "random, one edit each: `python -m benchmarks.every_model --seeing` (`--encoding`)."
    )
    return "\n\n".join(filter(None, [head, summary, body, "\n".join(listed)])) + "\n"
