"""ELDER on the embedded model: many edits in sequence, its ablations, deferral, speed.

    python benchmarks/elder.py sequence --edits 100 --variants default paper random spread
    python benchmarks/elder.py sequence --edits 1000 --variants default
    python benchmarks/elder.py deferral --edits 10 100 1000
    python benchmarks/elder.py editing --edits 16
    python benchmarks/elder.py overhead

Each writes ``results/elder-<what>[-<edits>[-seed<seed>]].json``; in a sequence a variant that runs again
replaces its figures and leaves the others.
"""

from __future__ import annotations

import argparse
import ast
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import RESULTS, write
from elder_curves import curves, decisions, made_up, remember
from literal_elder import LiteralELDER

import memplug
from memplug import world
from memplug.edits import Edit
from memplug.evaluation import answer, evaluate
from memplug.methods.elder import ELDERConfig
from memplug.text import Batch

SIX = {"edit_layers": tuple(range(6, 12))}  # the published number of linears
GUIDED = {"router_lr": 1e-3, "guide_weight": 0.1, "router_replay": 256, "snap": False}
_CASES = 2500  # of the world's test facts are edited at most; more edits are about made-up subjects
_STEPS = 20  # of the default, where its editing is timed step by step
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("default", {}),
    "default, trained on rephrasings": ("default", {}),
    "default, no rehearsal": ("default", {"rehearse": 0}),
    "default, no replay, no rehearsal": ("default", {"replay": 0, "rehearse": 0}),
    "default, routed as themselves": ("default", {"snap": False}),
    "default, without subjects": ("default", {"subjects": False}),
    "default, the published experts": ("default", {"n_experts": 4, "top_k": 2, "rank": 8}),
    "default, guided": ("default", GUIDED),
    "default, load balancing": ("default", GUIDED | {"guide": "balance"}),
    "default, guided, random codes": ("default", GUIDED | {"allocation": "random"}),
    "default, guided, spread codes": ("default", GUIDED | {"allocation": "spread"}),
    "default, gate only": ("default", {}),
    "default, codes alone": ("default", {"gate": "off", "subjects": False, "snap": False}),
    "paper": ("paper", SIX),
    "paper, lr 1e-3": ("paper", SIX | {"lr": 1e-3}),
    "paper, lr 1e-3, trained on rephrasings": ("paper", SIX | {"lr": 1e-3}),
    "paper, lr 1e-3, spread codes": ("paper", SIX | {"lr": 1e-3, "allocation": "spread"}),
    "paper, lr 1e-3, no guide": ("paper", SIX | {"lr": 1e-3, "guide": "none"}),
    "paper, lr 1e-3, load balancing": ("paper", SIX | {"lr": 1e-3, "guide": "balance"}),
    "paper, lr 1e-3, replay": ("paper", SIX | {"lr": 1e-3, "replay": 8}),
    "GRACE": ("default", {}),
    "GRACE, paper": ("paper", {}),
}
"""Name -> preset and what differs from it."""


def sequence(args: argparse.Namespace) -> dict[str, Any]:
    """Edits, 100 in a call; after all of them, scores of the first 100 and of the last."""
    n = args.edits[0]
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
    elder, near = plug.name == "elder", asked[:300]
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
    if elder:
        found["deferral"] = curves(plug, near)
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
    return found | {
        "in scope": {name: float(decisions(plug, some).mean()) for name, some in prompts.items()},
        "epsilon": plug.method.known.deferral.epsilon,
        "threshold": plug.method.known.deferral.threshold,
    }


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


def deferral(args: argparse.Namespace) -> dict[str, Any]:
    """False accepts and false deferrals over epsilon and over the similarity, by number of edits."""
    out: dict[str, Any] = {}
    model, tokenizer = world.load()
    for name in args.variants:
        preset, given = VARIANTS[name]
        for n in args.edits:
            cases = world.cases(min(n, _CASES), seed=args.seed)
            plug = memplug.attach(model, tokenizer, "elder", preset=preset, **(given | args.set))
            if name.endswith("gate only"):
                edits = [case.edit for case in cases]
                remember(plug, [*edits, *made_up(edits, n - len(edits))])
            else:
                plug.edit(cases, progress=False)
            out[f"{name}, {n} edits"] = curves(plug, cases[: args.judged])
            print(name, n, out[f"{name}, {n} edits"]["as set"], flush=True)
            plug.detach()
    return out


def cpu_seconds(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each run, taken in turns, on one thread: a busy machine changes it little."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            if turn:  # the first is to warm up
                found[name].append(time.process_time() - begin)
    return {name: float(np.median(some)) for name, some in found.items()}


def editing(args: argparse.Namespace) -> dict[str, Any]:
    """Edits a second, this library's training against the literal one, at the same number of steps; then the
    default as it is, 48 edits after 16, against the literal loop at 50 steps a batch of 4 (of equal cost)."""
    model, tokenizer = world.load()
    batch = [case.edit for case in world.cases(4, seed=args.seed)]
    out: dict[str, Any] = {}
    for name, preset, given in (
        ("paper", "paper", SIX),
        ("default", "default", {"stop_loss": 0.0, "steps": _STEPS, "replay": 0, "rehearse": 0}),
    ):
        plug = memplug.attach(model, tokenizer, "elder", preset=preset, **(given | args.set))
        plug.edit(batch, progress=False)  # what is sampled is sampled
        method = plug.method
        start = method.known.experts.snapshot()

        def fast(method: Any = method, start: Any = start) -> None:
            method.known.experts.load(start)
            with method._host.tracker.off():
                rows = method._learner.rows(method.known, batch)[0]
                method._learner._train(method.known, rows)

        def literal(method: Any = method, start: Any = start) -> LiteralELDER:
            method.known.experts.load(start)
            made = LiteralELDER(method)
            with method._host.tracker.off():
                made.learn(batch)
            return made

        fast()
        experts = method.known.experts
        trained = [*(tensor.transpose(1, 2) for tensor in experts.down), *experts.up]
        trained = [tensor.clone() for tensor in trained]
        made = literal()
        theirs = [torch.stack(group).detach() for group in (*made.down, *made.up)]
        apart = max(float((a - b).abs().max()) for a, b in zip(trained, theirs, strict=True))
        seconds = cpu_seconds({"fast": fast, "literal": literal}, args.repeats)
        out[name] = {
            "edits_per_second": {key: len(batch) / value for key, value in seconds.items()},
            "speedup": seconds["literal"] / seconds["fast"],
            "largest difference of a trained parameter": apart,
        }
        print(name, out[name], flush=True)
        plug.detach()
    cases = world.cases(64, seed=args.seed)
    with memplug.attach(model, tokenizer, "elder", **args.set) as plug:
        plug.edit(cases[:16], progress=False)
        begin = time.process_time()
        plug.edit(cases[16:], progress=False)
        fast = 48 / (time.process_time() - begin)
    slow = out["default"]["edits_per_second"]["literal"] * _STEPS / ELDERConfig.preset("paper").steps
    out["default as it is"] = {
        "edits_per_second": {"fast": fast, "literal": slow},
        "speedup": fast / slow,
        "largest difference of a trained parameter": None,
    }
    return out


@torch.no_grad()
def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a forward over a 64-token prompt: bare, attached with a deferred row, with one in scope."""
    out: dict[str, Any] = {}
    model, tokenizer = world.load()
    bare, _ = world.load()
    n = args.edits[0]
    cases, others = world.cases(n, seed=args.seed), world.cases(n + 20, seed=args.seed)[n:]
    plug = memplug.attach(model, tokenizer, "elder", **args.set)
    plug.edit(cases, progress=False)
    known, text = plug.method.known, plug.method._host.text
    filling = [token for case in others for token in text.encode(case.edit.prompt)[1:]]
    end = text.encode(cases[-1].edit.prompt)[1:]
    asking = torch.tensor([[text.bos_id, *filling[: 63 - len(end)], *end]])
    # The limits are opened or closed for the row, as what is timed is the work.
    for name, row, epsilon, threshold in (
        ("in scope", asking, 1 << 20, 0.0),
        ("deferred, names an edited subject", asking, 1 << 20, 0.999999),
        ("deferred, names none", torch.tensor([[text.bos_id, *filling[:63]]]), 1 << 20, 0.0),
    ):
        known.deferral.limit(epsilon, threshold)
        known.version += 1
        batch = Batch(row, torch.ones_like(row), torch.arange(64)[None])
        inside = bool(known.decide(plug.method.see(batch))[1].scope)
        runs = {"attached": lambda row=row: model(row), "bare": lambda row=row: bare(row)}
        seconds = cpu_seconds(runs, args.repeats)
        out[name] = {"seconds": seconds, "ratio": seconds["attached"] / seconds["bare"], "in scope": inside}
    print(out, flush=True)
    plug.detach()
    return out


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["sequence", "deferral", "editing", "overhead"])
    parser.add_argument("--edits", type=int, nargs="+", default=[100])
    parser.add_argument("--variants", nargs="+", default=["default", "paper"], choices=list(VARIANTS))
    parser.add_argument("--judged", type=int, default=100)
    parser.add_argument("--brief", action="store_true", help="ask edits and rephrasings only")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="name=value, constants of the method")
    args = parser.parse_args()
    pairs = [item.split("=", 1) for item in args.set]
    args.set = {name: ast.literal_eval(value) for name, value in pairs}
    ELDERConfig(**args.set)
    torch.set_num_threads(1)
    results = {"sequence": sequence, "deferral": deferral, "editing": editing, "overhead": overhead}[
        args.what
    ](args)
    if args.what != "sequence":  # that one writes after each variant
        print(write(f"elder-{args.what}", results, edits=args.edits, seed=args.seed, set=args.set))


if __name__ == "__main__":
    main()
