"""ELDER on the embedded model: many edits in sequence, its ablations, deferral, speed.

    python benchmarks/elder.py sequence --edits 100 --variants default paper random spread
    python benchmarks/elder.py sequence --edits 1000 --variants default
    python benchmarks/elder.py deferral --edits 10 100 1000
    python benchmarks/elder.py editing --edits 16
    python benchmarks/elder.py overhead

Each writes ``benchmarks/results/elder-<what>[-<edits>].json``; a variant that runs again replaces its figures
and leaves the others.
"""

from __future__ import annotations

import argparse
import ast
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from common import RESULTS, write
from literal_elder import LiteralELDER

import memplug
from memplug import world
from memplug.edits import Edit
from memplug.evaluation import answer, evaluate
from memplug.methods.elder import ELDERConfig
from memplug.methods.elder.calibration import Closeness, closeness
from memplug.methods.elder.knowledge import Seen
from memplug.text import Batch

SIX = {"edit_layers": tuple(range(6, 12))}  # the published number of linears
GUIDED = {"router_lr": 1e-3, "guide_weight": 0.1, "router_replay": 256, "snap": False}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("default", {}),
    "default, trained on rephrasings": ("default", {}),
    "default, no rehearsal": ("default", {"rehearse": 0}),
    "default, no replay, no rehearsal": ("default", {"replay": 0, "rehearse": 0}),
    "default, routed as themselves": ("default", {"snap": False}),
    "default, without subjects": ("default", {"subjects": False}),
    "default, 4 at once, published experts": ("default", {"n_experts": 4, "top_k": 2, "rank": 8}),
    "default, guided": ("default", GUIDED),
    "default, load balancing": ("default", GUIDED | {"guide": "balance"}),
    "default, guided, random codes": ("default", GUIDED | {"allocation": "random"}),
    "default, guided, spread codes": ("default", GUIDED | {"allocation": "spread"}),
    "default, codes alone": ("default", {"gate": "off", "subjects": False, "snap": False}),
    "paper": ("paper", SIX),
    "paper, lr 1e-3": ("paper", SIX | {"lr": 1e-3}),
    "paper, lr 1e-3, trained on rephrasings": ("paper", SIX | {"lr": 1e-3}),
    "paper, lr 1e-3, spread codes": ("paper", SIX | {"lr": 1e-3, "allocation": "spread"}),
    "paper, lr 1e-3, no guide": ("paper", SIX | {"lr": 1e-3, "guide": "none"}),
    "paper, lr 1e-3, load balancing": ("paper", SIX | {"lr": 1e-3, "guide": "balance"}),
    "paper, lr 1e-3, replay": ("paper", SIX | {"lr": 1e-3, "replay": 8}),
}
"""Name -> preset and what differs from it."""


def sequence(args: argparse.Namespace) -> dict[str, Any]:
    """Edits one batch after the other; scores of the first 100, right away and after all, and of the last."""
    n = args.edits[0]
    path = RESULTS / f"elder-sequence-{n}.json"
    out: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    model, tokenizer = world.load()
    out["base"] = {"skills": _skills(model, tokenizer)}
    for name in args.variants:
        preset, given = VARIANTS[name]
        plug = memplug.attach(model, tokenizer, "elder", preset=preset, **(given | args.set))
        out[name] = _sequence(plug, world.cases(n, seed=args.seed), "rephrasings" in name, args.judged)
        plug.detach()
        print(name, json.dumps(_short(out[name])), flush=True)
        write(f"elder-sequence-{n}", out, edits=n, seed=args.seed)
    return out


def _sequence(
    plug: memplug.Plug, cases: list[memplug.Case], rephrasings: bool, judged: int
) -> dict[str, Any]:
    # Two unseen phrasings are asked; with training on rephrasings, two others are trained.
    asked = [memplug.Case(c.edit, c.rephrases[:2], c.locality, c.same_subject, c.portability) for c in cases]
    first, last = asked[:judged], asked[-judged:]
    seconds, early = 0.0, None
    for at in range(0, len(cases), 100):
        begin = time.perf_counter()
        plug.edit(
            _with_rephrasings(cases[at : at + 100]) if rephrasings else cases[at : at + 100], progress=False
        )
        seconds += time.perf_counter() - begin
        if early is None and len(cases) > 100:
            early = evaluate(plug, first, batch_size=64)
    known = plug.method.known
    scores = {"first, after all": evaluate(plug, first, batch_size=64)}
    if early is not None:
        scores["first, right away"] = early
        scores["last"] = evaluate(plug, last, batch_size=64)
    prompts = {
        "own prompts": [case.edit.prompt for case in asked],
        "rephrasings": [prompt for case in asked[:300] for prompt in case.rephrases],
        "unrelated": [probe.prompt for case in asked[:300] for probe in case.locality],
        "same subject": [probe.prompt for case in asked[:300] for probe in case.same_subject],
        "skills": [probe.prompt for probes in world.skills(50, seed=1).values() for probe in probes],
    }
    return {
        "scores": {name: found.to_dict() for name, found in scores.items()},
        "in scope": {name: float(_decisions(plug, some).mean()) for name, some in prompts.items()},
        "skills": _skills(plug.model, plug.tokenizer),
        "deferral": _curves(plug, asked[:300]),
        "epsilon": known.deferral.epsilon,
        "threshold": known.deferral.threshold,
        "parameters": known.experts.count,
        "edits": len(plug.edits),
        "seconds_per_edit": seconds / len(plug.edits),
    }


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
    return found | {"in scope": result["in scope"], "seconds_per_edit": result["seconds_per_edit"]}


def _skills(model: Any, tokenizer: Any) -> float:
    probes = [probe for some in world.skills(50, seed=1).values() for probe in some]
    texts = answer(model, tokenizer, [probe.prompt for probe in probes], batch_size=64)
    return sum(t == probe.target for t, probe in zip(texts, probes, strict=True)) / len(probes)


@torch.no_grad()
def _seen(plug: memplug.Plug, prompts: list[str]) -> Iterator[Seen]:
    """What is looked at in the prompts, 64 at a time."""
    text = plug.method._host.text
    for at in range(0, len(prompts), 64):
        with plug.paused():
            yield plug.method.see(text.batch([text.encode(p) for p in prompts[at : at + 64]]))


def _decisions(plug: memplug.Plug, prompts: list[str]) -> np.ndarray:
    known = plug.method.known
    found = [known.decide(seen)[1].scope for seen in _seen(plug, list(dict.fromkeys(prompts)))]
    return torch.cat(found).numpy()


def _near(plug: memplug.Plug, prompts: list[str]) -> Closeness:
    """How close prompts come to the edits they are compared with: those of their subject where one is asked
    for."""
    known, parts = plug.method.known, []
    on = known.deferral.on
    names = {record.number: str(record.edit.subject) for record in known.records.values()}
    subjects = np.array([names[n] for n, o in zip(known.deferral.numbers, on, strict=True) if o])
    for seen in _seen(plug, list(dict.fromkeys(prompts))):
        named: list[str | None] = [None] * len(seen.query)
        excluded = np.zeros((len(named), int(on.sum())), bool)
        if known.subjects is not None:
            named = known.subjects.find(seen.states, seen.valid)
            excluded = np.array([subjects != name for name in named])
        query = known.prepare(seen.query, named)
        parts.append(closeness(known.deferral, known.experts, query, excluded))
    return Closeness(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def deferral(args: argparse.Namespace) -> dict[str, Any]:
    """False accepts and false deferrals over epsilon and over the similarity, by number of edits."""
    out: dict[str, Any] = {}
    model, tokenizer = world.load()
    for name in args.variants:
        preset, given = VARIANTS[name]
        for n in args.edits:
            cases = world.cases(n, seed=args.seed)
            plug = memplug.attach(model, tokenizer, "elder", preset=preset, **(given | args.set))
            plug.edit(cases, progress=False)
            out[f"{name}, {n} edits"] = _curves(plug, cases[: args.judged])
            print(name, n, out[f"{name}, {n} edits"]["as set"], flush=True)
            plug.detach()
    return out


def _curves(plug: memplug.Plug, cases: list[memplug.Case]) -> dict[str, Any]:
    """Rates of false accepts and false deferrals over each limit alone, and with both as they are set."""
    deferral, config = plug.method.known.deferral, plug.method.config
    near = {
        "unrelated": _near(plug, [probe.prompt for case in cases for probe in case.locality]),
        "same subject": _near(plug, [probe.prompt for case in cases for probe in case.same_subject]),
        "rephrasings": _near(plug, [prompt for case in cases for prompt in case.rephrases[:2]]),
    }
    least = -2.0 if deferral.threshold is None else deferral.threshold

    def rates(epsilon: float, threshold: float) -> dict[str, float]:
        inside = {
            what: float(((x.distance < epsilon) & (x.similarity > threshold)).mean())
            for what, x in near.items()
        }
        return {
            "false accepts": inside["unrelated"],
            "false accepts, same subject": inside["same subject"],
            "false deferrals": 1 - inside["rephrasings"],
        }

    bits = 2 * config.top_k * len(plug.method.known.experts.places)
    return {
        "over epsilon": {str(e): rates(e, -2.0) for e in range(2, bits + 3, 2)},
        "over threshold": {
            f"{t / 100:.2f}": rates(np.inf, t / 100) for t in (*range(50, 90, 5), *range(90, 99))
        },
        "as set": {
            "epsilon": deferral.epsilon,
            "threshold": deferral.threshold,
            **rates(deferral.epsilon, least),
        },
    }


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
    """Edits a second, this library's training against the literal one, at the same number of steps."""
    model, tokenizer = world.load()
    batch = [case.edit for case in world.cases(4, seed=args.seed)]
    out: dict[str, Any] = {}
    for name, preset, given in (
        ("paper", "paper", SIX),
        ("default", "default", {"stop_loss": 0.0, "steps": 20, "replay": 0, "router_replay": 0}),
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
        trained = [tensor.clone() for tensor in method.known.experts.down + method.known.experts.up]
        made = literal()
        theirs = [torch.stack(group) for group in (*made.down, *made.up)]
        apart = max(float((a - b).abs().max()) for a, b in zip(trained, theirs, strict=True))
        seconds = cpu_seconds({"fast": fast, "literal": literal}, args.repeats)
        out[name] = {
            "edits_per_second": {key: len(batch) / value for key, value in seconds.items()},
            "speedup": seconds["literal"] / seconds["fast"],
            "largest difference of a trained parameter": apart,
        }
        print(name, out[name], flush=True)
        plug.detach()
    return out


@torch.no_grad()
def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a forward over a 64-token prompt: bare, attached with a deferred row, with one in scope."""
    out: dict[str, Any] = {}
    model, tokenizer = world.load()
    bare, _ = world.load()
    cases = world.cases(args.edits[0], seed=args.seed)
    plug = memplug.attach(model, tokenizer, "elder", **args.set)
    plug.edit(cases, progress=False)
    known, text = plug.method.known, plug.method._host.text
    filling = [token for case in cases for token in text.encode(case.edit.prompt)]
    end = text.encode(cases[-1].edit.prompt)[1:]
    row = torch.tensor([filling[: 64 - len(end)] + end])
    whole = Batch(row, torch.ones_like(row), torch.arange(64)[None])
    # The limits are opened or closed for the row, as what is timed is the work.
    for name, epsilon, threshold in (
        ("in scope", 1 << 20, 0.0),
        ("deferred by similarity", 1 << 20, 0.999),
    ):
        known.deferral.limit(epsilon, threshold)
        known.version += 1
        inside = bool(known.decide(plug.method.see(whole))[1].scope)
        runs = {"attached": lambda: model(row), "bare": lambda: bare(row)}
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
    name = f"elder-{args.what}" + (f"-{args.edits[0]}" if args.what == "sequence" else "")
    print(write(name, results, edits=args.edits, seed=args.seed, set=args.set))


if __name__ == "__main__":
    main()
