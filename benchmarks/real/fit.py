"""Editors for a real model, fitted on rows of CounterFact that no table uses.

    python -m benchmarks.real.fit --data DIR --methods rledit,hiedit,smedit --out memplug/shipped/smollm2

Each is a file, beside which ``fits.json`` says what it cost and where its losses ended. A fitting that is
stopped goes on where it was, with the same command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import memplug
from memplug import pretrained
from memplug.comparison.contenders import parse_constants
from memplug.edits import Case, Probe

from . import sets

__all__ = ["FIT_CASES", "cases", "main"]

FIT_CASES = 400
"""Rows that are fitted on, the first ones for choosing constants; the others of those can be judged on."""


def cases(folder: Path, count: int = FIT_CASES) -> list[Case]:
    """The first ``count`` rows for choosing constants."""
    return [
        Case(
            fact.edit,
            (*fact.rephrases, *fact.templates),
            tuple(Probe(known.prompt, known.answers[0]) for known in fact.neighbours),
        )
        for fact in islice(sets.counterfact(folder, "tuning"), count)
    ]


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument("--methods", default="rledit,hiedit,smedit")
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.KEY=VALUE")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, required=True, help="folder of the editors")
    args = parser.parse_args(given)
    model, tokenizer = pretrained.load(args.model)
    constants, taught = parse_constants(args.set), cases(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    for method in args.methods.split(","):
        path, told = args.out / f"{method}.safetensors", args.out / "fits.json"
        if path.is_file():
            continue
        plug = memplug.attach(model, tokenizer, method, **constants.get(method, {}))
        try:
            checkpoint = path.with_suffix(".checkpoint")
            report = plug.fit(taught, checkpoint=checkpoint)
            plug.save_editor(path, half=True)
            checkpoint.unlink(missing_ok=True)
        finally:
            plug.detach()
        fits = json.loads(told.read_text()) if told.is_file() else {}
        fits[method] = {"cases": len(taught), "megabytes": path.stat().st_size / 1e6, **report._asdict()}
        told.write_text(json.dumps(fits, indent=1) + "\n")


if __name__ == "__main__":
    main()
