"""Threads against one edited model: what they are told while edits change, and how many calls a second.

    python -m benchmarks.stress_threads --generates 2000 --threads 8 --methods llp,llp:row,elder,icl,finetune

Each method is run on the embedded model, beside a thread that edits, deletes, switches, pauses, saves and in
the end detaches; see `stressing` for what counts as right. "alone" in the table is one thread on the model
without a plug, asking the same calls.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

import memplug
from benchmarks.stressing import Asked, Outcome, Stress, changes
from memplug import world

__all__ = ["main"]

METHODS: dict[str, dict[str, Any]] = {"llp:row": {"scope": "row"}}
"""Constants of variants, ``method:variant``."""


def questions(cases: list[Any]) -> list[Asked]:
    """What is asked: single prompts and padded batches, generated, plain and explained."""
    texts = [case.edit.prompt for case in cases] + [case.rephrases[0] for case in cases if case.rephrases]
    texts += [probe.prompt for case in cases for probe in case.locality[:1]]
    batches = [(text,) for text in texts] + [tuple(texts[at : at + 3]) for at in range(0, len(texts), 3)]
    asked = [Asked(kind, batch) for batch in batches for kind in ("generate", "generate", "forward")]
    return [*dict.fromkeys(asked), *(Asked("explain", (text,)) for text in texts[:2])]


def alone(stress: Stress, calls: int) -> float:
    """Calls a second of one thread on the model as it is."""
    rng, begin = random.Random(0), time.perf_counter()
    for _ in range(calls):
        stress.answer(stress.model, rng.choice(stress.asked))
    return calls / (time.perf_counter() - begin)


def stressed(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One method's run, as a row of the table."""
    model, tokenizer = world.load()
    tokenizer.padding_side = "left"
    cases = world.cases(args.facts, seed=args.seed)
    method = name.partition(":")[0]

    def attach(model: Any, tokenizer: Any) -> Any:
        return memplug.attach(model, tokenizer, method, **METHODS.get(name, {}))

    made = changes(len(cases), args.changes, args.seed)
    stress = Stress(model, tokenizer, attach, [case.edit for case in cases], questions(cases), made)
    base = alone(stress, min(args.generates, 200))
    outcome = stress.run(args.threads, args.generates, args.seed)
    told = collections.Counter(outcome.errors).most_common(5)
    return {"method": name, **counts(outcome), "alone": round(base, 1), "errors told": dict(told)}


def counts(outcome: Outcome) -> dict[str, Any]:
    """The figures of an outcome."""
    return {
        "calls": outcome.calls,
        "wrong": outcome.wrong,
        "errors": len(outcome.errors),
        "mixed": outcome.mixed,
        "unjudged": outcome.unjudged,
        "learned": outcome.learned,
        "clean": outcome.clean,
        "calls/s": round(outcome.calls / outcome.seconds, 1),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the methods, print a line each; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--generates", type=int, default=2000, help="calls of all threads together, at least")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--methods", default="llp,llp:row,elder,icl,grace,finetune,ultraedit,rledit")
    parser.add_argument("--changes", type=int, default=24, help="edits, deletions, switches and pauses")
    parser.add_argument("--facts", type=int, default=5, help="that are edited, and asked about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows = []
    for name in args.methods.split(","):
        rows.append(stressed(name, args))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["wrong"] or row["errors"] or not row["learned"] or not row["clean"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
