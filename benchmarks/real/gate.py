"""How often edits are recalled where they should be, and where not, with more and more edits held.

    python -m benchmarks.real.gate --data DIR --method llp --counts 10,100,1000,5000 --out gate.json

Edits are CounterFact's table rows. Per 1,000 prompts: *own* edit recalled where it is asked for (as edited,
rephrased, in chat); *another* edit recalled there; anything recalled by facts about other subjects of the
same kind, by unrelated prompts, and by passing mentions (where a recall is no mistake of the subject's, but
of what is asked). Nothing is generated, so values need no training: ``--set llp.value_steps=0`` saves the
time.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memplug.comparison.decisions import recalled as recalled_by
from memplug.comparison.specs import method_specs, parse_constants
from memplug.plugin import Plug

from ..common import machine, table
from . import sets
from .asking import Asker, Turns
from .facts import Fact
from .probes import ASKED, Probe, probes
from .unrelated import naming, unrelated

__all__ = ["main", "rates", "recalled"]

GROUPS = {**dict.fromkeys(ASKED, "asked"), "neighbours": "neighbours", "passing mentions": "mentions"}


def recalled(plug: Plug, prompts: Sequence[str]) -> list[list[str]]:
    """Ids of the edits that each prompt recalls."""
    found = []
    for prompt in prompts:
        edits = recalled_by(plug.explain(prompt))
        if edits is None:
            raise ValueError(f"{plug.name!r} does not say which edits a prompt recalls")
        found.append([str(edit.id) for edit in edits])
    return found


def rates(
    asked: Sequence[tuple[str, str | None]], found: Sequence[Sequence[str]], subjects: Mapping[str, str]
) -> dict[str, dict[str, float | int]]:
    """Recalls per 1,000 prompts, by group.

    Args:
        asked: of each prompt its group, and the id of the edit that is asked for; None where there is none.
        found: of each prompt the ids of recalled edits; further edits of the subject are no mistake.
        subjects: what each edit is about, by id.
    """
    counted: dict[str, list[tuple[bool, bool]]] = {}
    for (group, own), ids in zip(asked, found, strict=True):
        subject = subjects[own] if own else None
        wrong = any(subjects[id] != subject for id in ids)
        counted.setdefault(group, []).append((own in ids, wrong))
    return {
        group: {
            "own": 1000 * sum(own for own, _ in pairs) / len(pairs),
            "another": 1000 * sum(another for _, another in pairs) / len(pairs),
            "n": len(pairs),
        }
        for group, pairs in counted.items()
    }


def _as_text(asker: Asker, turns: Turns) -> str:
    """What the model would read, as one text."""
    if turns[0][0] == "text":
        return turns[0][1]
    messages = [{"role": role, "content": content} for role, content in turns]
    return str(asker.text.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _group(probe: Probe) -> str | None:
    form = "plain" if probe.form == "plain" else "chat"
    group = GROUPS.get(probe.group, probe.group)
    return None if group == "other facts" else f"{group}, {form}"


def measured(plug: Plug, asker: Asker, facts: Sequence[Fact], data: Path, args: Any) -> dict[str, Any]:
    """The rates with the edits of ``facts`` held; a sample of them is asked for."""
    named = naming(fact.subject for fact in facts)
    sample = random.Random(args.seed).sample(list(facts), min(args.sample, len(facts)))
    others = unrelated(data, [fact.subject for fact in facts], args.limit_unrelated)
    ids: Mapping[tuple[str, str], str] = {(e.prompt, e.target): str(e.id) for e in plug.edits.values()}
    own = {fact.id: ids.get((fact.prompt, fact.target)) for fact in sample}
    asked, texts = [], []
    for probe in probes(sample, others):
        group = _group(probe)
        if group is None or (probe.group == "neighbours" and named(probe.turns[-1][1])):
            continue
        wanted = probe.group in ASKED or probe.group == "passing mentions"
        asked.append((group, own[probe.name.split()[0]] if wanted else None))
        texts.append(_as_text(asker, probe.turns))
    begin = time.perf_counter()
    found = recalled(plug, texts)
    subjects = {id: str(edit.subject) for id, edit in plug.edits.items()}
    return {
        "rates": rates(asked, found, subjects),
        "ms_per_prompt": 1000 * (time.perf_counter() - begin) / len(texts),
    }


def tables(results: Mapping[str, Any]) -> str:
    """A line a number of edits and group."""
    rows = [
        [str(point["edits"]), group, str(rate["n"]), f"{rate['own']:.1f}", f"{rate['another']:.1f}"]
        for point in results["points"]
        for group, rate in point["rates"].items()
    ]
    return table(["edits", "prompts", "n", "own, of 1,000", "another, of 1,000"], rows) or ""


def main(given: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(given)
    from memplug import pretrained

    model, tokenizer = pretrained.load(args.model)
    counts = sorted(int(count) for count in args.counts.split(","))
    facts = sets.counterfact(args.data, args.part)
    facts = random.Random(args.seed).sample(facts, min(max(counts), len(facts)))
    (spec,) = method_specs([args.method], parse_constants(args.set))
    settings = {k: str(v) for k, v in vars(args).items() if k not in ("out", "data")}
    results: dict[str, Any] = {"machine": machine(), "settings": settings, "points": []}
    asker = Asker(model, tokenizer)
    begin = time.perf_counter()
    with spec.attach(model, tokenizer) as plug:
        for held, count in zip([0, *counts], counts, strict=False):
            todo = facts[held:count]
            for start in range(0, len(todo), args.batch):
                plug.edit([fact.edit for fact in todo[start : start + args.batch]], progress=False)
            point = {"edits": len(plug.edits), "seconds": time.perf_counter() - begin}
            results["points"].append(point | measured(plug, asker, facts[:count], args.data, args))
            args.out.write_text(json.dumps(results, indent=1) + "\n")
            print(tables(results), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument("--part", choices=["table", "tuning"], default="table")
    parser.add_argument("--method", default="llp")
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.KEY=VALUE")
    parser.add_argument("--counts", default="10,100,1000,5000")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sample", type=int, default=300, help="edits that are asked for")
    parser.add_argument("--limit-unrelated", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main()
