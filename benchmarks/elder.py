"""ELDER on the embedded model: many edits in sequence, with its ablations.

    python benchmarks/elder.py --edits 100 --variants default paper
    python benchmarks/elder.py --edits 1000 --variants default

Writes ``results/elder-sequence-<edits>[-seed<seed>].json``; a variant that runs again replaces its figures
and leaves the others.
"""

from __future__ import annotations

import argparse
import ast
import json
import time
from typing import Any

import torch
from common import RESULTS, write

import memplug
from memplug import world
from memplug.edits import Edit
from memplug.evaluation import answer, evaluate
from memplug.methods.elder import ELDERConfig

SIX = {"edit_layers": tuple(range(6, 12))}  # the published number of linears
GUIDED = {"router_lr": 1e-3, "guide_weight": 0.1, "allocation": "random"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("default", {}),
    "default, trained on rephrasings": ("default", {}),
    "default, no rehearsal": ("default", {"rehearse": 0}),
    "default, no replay, no rehearsal": ("default", {"replay": 0, "rehearse": 0}),
    "default, the published experts": ("default", {"n_experts": 4, "top_k": 2, "rank": 8}),
    "default, guided": ("default", GUIDED),
    "default, load balancing": ("default", GUIDED | {"guide": "balance"}),
    "paper": ("paper", SIX),
    "paper, lr 1e-3": ("paper", SIX | {"lr": 1e-3}),
    "paper, lr 1e-3, trained on rephrasings": ("paper", SIX | {"lr": 1e-3}),
    "paper, lr 1e-3, no guide": ("paper", SIX | {"lr": 1e-3, "guide": "none"}),
    "paper, lr 1e-3, load balancing": ("paper", SIX | {"lr": 1e-3, "guide": "balance"}),
    "paper, lr 1e-3, replay": ("paper", SIX | {"lr": 1e-3, "replay": 8}),
    "GRACE": ("default", {}),
    "GRACE, paper": ("paper", {}),
}
"""Name -> preset and what differs from it."""


def sequence(args: argparse.Namespace) -> dict[str, Any]:
    """Edits, 100 in a call; after all of them, scores of the first 100 and of the last."""
    n = args.edits
    name = f"elder-sequence-{n}" + (f"-seed{args.seed}" if args.seed else "")
    path = RESULTS / f"{name}.json"
    out: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    model, tokenizer = world.load()
    out["base"] = {"skills": _skills(model, tokenizer)}
    for variant in args.variants:
        preset, given = VARIANTS[variant]
        method = "grace" if variant.startswith("GRACE") else "elder"
        plug = memplug.attach(model, tokenizer, method, preset=preset, **(given | args.set))
        cases = world.cases(n, seed=args.seed)
        out[variant] = _sequence(plug, cases, "rephrasings" in variant, args.judged, args.brief)
        plug.detach()
        print(variant, json.dumps(_short(out[variant])), flush=True)
        write(name, out, edits=n, seed=args.seed)
    return out


def _sequence(
    plug: memplug.Plug, cases: list[memplug.Case], rephrasings: bool, judged: int, brief: bool
) -> dict[str, Any]:
    # Two unseen phrasings are asked; with training on rephrasings, two others are trained.
    asked = [memplug.Case(c.edit, c.rephrases[:2], c.locality[:3], c.same_subject[:3]) for c in cases]
    seconds = 0.0
    for at in range(0, len(cases), 100):
        begin = time.process_time()
        plug.edit(
            _with_rephrasings(cases[at : at + 100]) if rephrasings else cases[at : at + 100], progress=False
        )
        seconds += time.process_time() - begin
    elder = plug.name == "elder"
    if brief:
        asked = [memplug.Case(case.edit, case.rephrases) for case in asked]
    scores = {"first, after all": evaluate(plug, asked[:judged], batch_size=64)}
    if len(cases) > judged:
        scores["last"] = evaluate(plug, asked[-judged:], batch_size=64)
    found: dict[str, Any] = {
        "scores": {name: found.to_dict() for name, found in scores.items()},
        "parameters": plug.method.known.experts.count if elder else _grace_numbers(plug),
        "edits": len(plug.edits),
        "cpu_seconds_per_edit": seconds / len(plug.edits),
    }
    if not brief:
        found["skills"] = _skills(plug.model, plug.tokenizer)
    if brief or not elder:
        return found
    prompts = {
        "own prompts": [case.edit.prompt for case in asked],
        "rephrasings": [prompt for case in asked[:300] for prompt in case.rephrases],
        "unrelated": [probe.prompt for case in asked[:300] for probe in case.locality],
        "same subject": [probe.prompt for case in asked[:300] for probe in case.same_subject],
        "skills": [probe.prompt for probes in world.skills(50, seed=1).values() for probe in probes],
    }
    scope = {
        name: sum(not plug.explain(prompt).deferred for prompt in some) / len(some)
        for name, some in prompts.items()
    }
    return found | {"in scope": scope}


def _grace_numbers(plug: memplug.Plug) -> int:
    """How many numbers GRACE's keys and values are by now."""
    method = plug.method
    return sum(tensor.numel() for tensor in method.state().tensors.values())


def _with_rephrasings(cases: list[memplug.Case]) -> list[Edit]:
    return [
        Edit(prompt, case.edit.target, case.edit.subject)
        for case in cases
        for prompt in (case.edit.prompt, *case.rephrases[2:4])
    ]


def _short(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for when, scores in result["scores"].items():
        for name in ("efficacy", "generalization", "specificity", "same_subject"):
            measure = scores[name]
            found[f"{when}: {name}"] = [
                None if measure[key] is None else round(measure[key]["value"], 3)
                for key in ("generated", "whole", "tokens")
            ]
    return found | {
        "in scope": result.get("in scope"),
        "cpu_seconds_per_edit": result["cpu_seconds_per_edit"],
    }


def _skills(model: Any, tokenizer: Any) -> float:
    probes = [probe for some in world.skills(50, seed=1).values() for probe in some]
    texts = answer(model, tokenizer, [probe.prompt for probe in probes], batch_size=64)
    return sum(t == probe.target for t, probe in zip(texts, probes, strict=True)) / len(probes)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--variants", nargs="+", default=["default", "paper"], choices=list(VARIANTS))
    parser.add_argument("--judged", type=int, default=100)
    parser.add_argument("--brief", action="store_true", help="ask edits and rephrasings only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="name=value, constants of the method")
    args = parser.parse_args()
    pairs = [item.split("=", 1) for item in args.set]
    args.set = {name: ast.literal_eval(value) for name, value in pairs}
    ELDERConfig(**args.set)
    torch.set_num_threads(1)
    sequence(args)


if __name__ == "__main__":
    main()
