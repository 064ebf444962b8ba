"""Edits of a real model by several methods: everything is asked, judged, and written after each method.

    python -m benchmarks.real.run --facts own --methods llp,icl,grace --edits 36 --out own.json
    python -m benchmarks.real.run --facts known --data DIR --methods llp,llp:paper --edits 200 --out
    known.json

Facts: ``own`` (well-known ones, written for this benchmark), ``known``, ``rome-known`` and ``zsre-known``
(rows of CounterFact, of ROME's part of it and of ZsRE that the model answers truly), ``counterfact``,
``rome`` and ``zsre`` (rows as they come). A method that is in the file already, under the same settings, is
not run again. What the measures mean is said in `measure`.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from memplug.commands.shared import load_model
from memplug.comparison.cost import overhead
from memplug.comparison.model_state import bits_of, hooks_of
from memplug.comparison.specs import MethodSpec, method_specs, parse_constants
from memplug.edits import Case, Edit, Probe
from memplug.interface import Fits
from memplug.plugin import Plug

from ..common import machine
from . import sets
from .asking import Asker
from .facts import Fact, own
from .keeping import TimeUp, kept_runs, settings_of, time_limit, write
from .measure import Reference, answers, examples, refer, shares
from .probes import Probe as Asked
from .probes import near, probes
from .tables import tables
from .unrelated import naming, unrelated

__all__ = ["attempt", "choose", "main", "measured"]

FACTS = ("own", "known", "rome-known", "zsre-known", "counterfact", "rome", "zsre")
FIT_CASES = 200

SINGLE = (
    Edit("The capital of Iceland is", "Bergen", "Iceland"),
    Edit("Who composed the opera Carmen?", "Franz Liszt", "Carmen"),
    Edit("The chemical symbol for magnesium is", "Cd", "magnesium"),
)
"""Edits that are timed one by one, after everything else."""

NEUTRAL = (
    "The rain stopped in the afternoon, and the streets were dry again by the evening.",
    "She put the kettle on and opened the window to let some air in.",
    "They counted the boxes twice and wrote the number on a sheet of paper.",
    "In autumn the leaves are swept up and burnt at the end of the garden.",
)


def choose(name: str, folder: Path | None, edits: int, seed: int, part: sets.Part = "table") -> list[Fact]:
    """The facts to edit, drawn by the seed; known rows that are not edited are neighbours of those that are.

    Raises:
        ValueError: the facts are rows of public sets and no folder was given.
    """
    if name == "own":
        found = own(part)
    elif folder is None:
        raise ValueError(f"--facts {name} are rows of public sets; give the folder they lie in with --data")
    else:
        read = {"rome": sets.rome, "zsre": sets.zsre}.get(name.removesuffix("-known"), sets.counterfact)
        ids = sets.known(read.__name__, part) if "known" in name else None
        found = read(folder, part, ids)
    drawn = random.Random(seed).sample(found, min(edits, len(found)))
    if name == "known":
        spare: sets.Part = "tuning" if part == "table" else "table"
        more = sets.counterfact(folder, spare, sets.known("counterfact", spare))  # type: ignore[arg-type]
        added = near([*found, *more], drawn)
        drawn = [replace(fact, neighbours=(*fact.neighbours, *added[fact.id])) for fact in drawn]
    return drawn


def _fit(plug: Plug, folder: Path | None) -> None:
    """Teach a method that learns to edit first, on rows that no table uses."""
    if not isinstance(plug.method, Fits):
        return
    with suppress(ValueError):  # it says so where nothing was fitted
        if plug.method.editor_state():
            return
    if folder is None:
        raise ValueError("this method is fitted first, on rows of CounterFact; give their folder with --data")
    facts = islice(sets.counterfact(folder, "tuning"), FIT_CASES)
    plug.fit(
        [
            Case(
                f.edit,
                (*f.rephrases, *f.templates),
                tuple(Probe(n.prompt, n.answers[0]) for n in f.neighbours),
            )
            for f in facts
        ]
    )


def _timed_edit(plug: Plug, edits: Sequence[Edit]) -> tuple[float, float]:
    """Seconds and CPU seconds of learning ``edits`` together."""
    begin, cpu = time.perf_counter(), time.process_time()
    plug.edit(edits, progress=False)
    return time.perf_counter() - begin, time.process_time() - cpu


def measured(
    spec: MethodSpec, model: Any, tokenizer: Any, facts: Sequence[Fact], reference: Reference, args: Any
) -> Generator[dict[str, Any]]:
    """Attach, edit, measure, detach; gives the figures as they come."""
    found: dict[str, Any] = {"edits": len(facts)}
    before = hooks_of(model)
    plug = spec.attach(model, tokenizer)
    try:
        begin = time.perf_counter()
        _fit(plug, args.data)
        found["seconds_before_the_first_edit"] = time.perf_counter() - begin
        edits = [fact.edit for fact in facts]
        took = []
        for start in range(0, len(edits), args.batch):
            took.append(_timed_edit(plug, edits[start : start + args.batch]))
            done = min(start + args.batch, len(edits))
            yield {**found, "learned": done, "learning_seconds": sum(wall for wall, _ in took)}
        found["learned"] = len(edits)
        found["seconds_per_edit"] = sum(wall for wall, _ in took) / len(edits)
        found["cpu_seconds_per_edit"] = sum(cpu for _, cpu in took) / len(edits)
        cost = overhead(model, tokenizer, NEUTRAL, before).to_dict()
        found |= {f"{name}_ratio": cost[name]["ratio"] for name in ("forward", "decode")}
        yield found
        asked = reference.asked(list(reference.said))
        said = answers(Asker(model, tokenizer, args.ask), asked, reference.said, plug.paused)
        found["measures"], found["examples"] = shares(said, reference), examples(said, reference)
        yield found
        found["seconds_per_single_edit"] = sum(_timed_edit(plug, [edit])[0] for edit in SINGLE) / len(SINGLE)
        yield found
    finally:
        plug.detach()


def attempt(spec: MethodSpec, *given: Any, seconds: float, keep: Callable[[dict[str, Any]], None]) -> None:
    """`measured`, with how it ended; a method that fails or takes too long keeps the figures it has.

    Args:
        spec: the method.
        *given: to `measured`.
        seconds: it may take.
        keep: takes the figures as they come, each time all there are.
    """
    found: dict[str, Any] = {}
    begin = time.perf_counter()
    status = {"status": "done"}
    with warnings.catch_warnings(record=True) as said:
        try:
            with time_limit(seconds), closing(measured(spec, *given)) as steps:
                for found in steps:
                    keep({"status": "running", **found})
        except TimeUp as error:
            status = {"status": "stopped", "error": str(error)}
        except Exception as error:
            status = {"status": "failed", "error": f"{type(error).__name__}: {str(error)[:300]}"}
    told = list(dict.fromkeys(str(one.message)[:300] for one in said))[:5]
    keep({**status, "seconds": time.perf_counter() - begin, **found, "warnings": told})


def _reference(
    model: Any, tokenizer: Any, facts: Sequence[Fact], args: Any
) -> tuple[Reference, dict[str, Any]]:
    """What the base model says to everything that will be asked; neighbours that are edited are left out."""
    subjects = [*(fact.subject for fact in facts), *(str(edit.subject) for edit in SINGLE)]
    named = naming(subjects)
    own_subjects = [fact.subject for fact in own()]
    others = unrelated(args.data, [*subjects, *own_subjects], args.limit_unrelated)
    some = random.Random(args.seed).sample(facts, min(args.about, len(facts)))
    some = [replace(f, neighbours=tuple(n for n in f.neighbours if not named(n.prompt))) for f in some]
    asked: list[Asked] = probes(some, others)
    reference = refer(Asker(model, tokenizer, args.ask), asked, args.cache, bits_of(model))
    return reference, {
        "measures": shares(reference.said, reference),
        "limits": {form: limit._asdict() for form, limit in reference.limits.items()},
        "probes": len(asked),
    }


def main(given: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(given)
    torch.manual_seed(args.seed)
    model, tokenizer = load_model(args.model, args.device, args.dtype)
    facts = choose(args.facts, args.data, args.edits, args.seed, args.part)
    runs = kept_runs(args.out, settings := settings_of(args, facts))
    reference, base = _reference(model, tokenizer, facts, args)
    results = {"machine": machine(), "settings": settings, "base": base, "runs": runs}
    write(args.out, results)
    print(tables(results), flush=True)
    bits = bits_of(model)
    for spec in method_specs(args.methods.split(","), parse_constants(args.set)) if args.methods else ():
        asked = spec.asked()
        if runs.get(spec.label, {}).get("status") == "done" and runs[spec.label]["asked"] == asked:
            continue

        def keep(found: dict[str, Any], label: str = spec.label, asked: Any = asked) -> None:
            runs[label] = {"asked": asked, **found}
            write(args.out, results)

        every = (model, tokenizer, facts, reference, args)
        attempt(spec, *every, seconds=args.max_seconds, keep=keep)
        print(tables(results), flush=True)
        if bits_of(model) != bits:
            raise SystemExit(f"{spec.label} left the model changed; nothing after it would be true")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--facts", choices=FACTS, default="own")
    parser.add_argument(
        "--part",
        choices=["table", "tuning"],
        default="table",
        help="facts for tables, or those on which constants are chosen",
    )
    parser.add_argument("--data", type=Path, help="folder of the public sets")
    parser.add_argument(
        "--methods",
        default="llp,icl,grace",
        help="as memplug compare takes them; empty for the base model only",
    )
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.KEY=VALUE")
    parser.add_argument("--edits", type=int, default=36)
    parser.add_argument("--batch", type=int, default=32, help="edits learned together")
    parser.add_argument("--about", type=int, default=300, help="edits that are asked about, of those held")
    parser.add_argument("--ask", type=int, default=32, help="prompts asked together")
    parser.add_argument("--seed", type=int, default=0, help="which facts, and in which order")
    parser.add_argument("--limit-unrelated", type=int, default=1000)
    parser.add_argument("--max-seconds", type=float, default=3600.0, help="for each method")
    parser.add_argument("--model", default="smollm2", help="as memplug's commands take it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--cache", type=Path, default=Path("runs/real"), help="keeps the base model's texts")
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main()
