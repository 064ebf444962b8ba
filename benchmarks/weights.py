"""Weight editors on the embedded model: fit them, edit with them, time them.

    python benchmarks/weights.py fit rledit            # writes memplug/world/editors/rledit.safetensors
    python benchmarks/weights.py speed                 # a step of fitting against the literal procedure
    python benchmarks/weights.py delete                # one of 10,000 entries

What the editors do with edits is measured by `weights_runs.py`. Results go to
``benchmarks/results/weights_<what>.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from literal_hypernet import LiteralTrajectory

import memplug
from memplug import world
from memplug.entries import Entry, Part
from memplug.layers import evaluating, frozen
from memplug.ledger import Ledger
from memplug.methods.hypernet.fitting import Trajectory
from memplug.methods.hypernet.samples import draw_batches, prepare, sample_of
from memplug.pristine import Pristine
from memplug.sites import Site
from memplug.storage import fingerprint

ROOT = Path(__file__).resolve().parent
EDITORS = ROOT.parent / "memplug" / "world" / "editors"
GROUPS = (
    "efficacy",
    "generalization",
    "specificity",
    "specificity_gold",
    "same_subject",
    "same_subject_gold",
)
_FITTED = {"fit_steps": 50, "fit_lr": 5e-4, "trajectory": (10, 80), "curriculum": 0.5}
SHIPPED: dict[str, dict[str, Any]] = {
    "rledit": _FITTED,
    "smedit": _FITTED,
    "hiedit": _FITTED | {"hidden": 128},
}
"""Constants of the shipped editors, where they are not the method's defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    fit_ = tasks.add_parser("fit")
    fit_.add_argument("method")
    fit_.add_argument("--cases", type=int, default=1500)
    fit_.add_argument("--set", type=json.loads, default={}, help="constants, as JSON")
    speed_ = tasks.add_parser("speed")
    speed_.add_argument("--steps", type=int, default=3)
    delete_ = tasks.add_parser("delete")
    delete_.add_argument("--entries", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"fit": fit, "speed": speed, "delete": delete}[args.task](args)


def fit(args: argparse.Namespace) -> None:
    model, tokenizer = world.load()
    constants = SHIPPED.get(args.method, {}) | args.set
    config = memplug.methods.find_method(args.method).config(**constants)
    plug = memplug.attach(model, tokenizer, config)
    start = time.process_time()
    report = plug.fit(world.cases(args.cases, 0, "train"), checkpoint=f"runs/fit_{args.method}.safetensors")
    seconds = time.process_time() - start
    path = EDITORS / f"{args.method}.safetensors"
    plug.save_editor(path, half=True)
    save(f"fit_{args.method}", summary(plug, report) | {"cpu_seconds": seconds, "bytes": path.stat().st_size})


def summary(plug: Any, report: Any) -> dict[str, Any]:
    tenth = max(1, len(report.losses) // 10)
    parts = [report.losses[at : at + tenth] for at in range(0, len(report.losses) - tenth + 1, tenth)]
    return {
        "constants": asdict(plug.method.config),
        "parameters": sum(p.numel() for p in plug.method.editor.parameters()),
        "inner_lr": report.inner_lr,
        "fit_steps": report.steps,
        "fit_seconds": report.seconds,
        "losses (edit, kept, norm), ten stages": [
            [round(sum(step[i] for step in part) / len(part), 4) for i in range(3)] for part in parts
        ],
        "chosen while fitting": report.chosen,
        "rewards": [round(reward, 4) for reward in report.rewards[:: max(1, len(report.rewards) // 20)]],
    }


def speed(args: argparse.Namespace) -> None:
    """Steps with a full history: the library's against the literal ones, and the gradients they give."""
    model, tokenizer = world.load()
    shapes: dict[str, dict[str, Any]] = {
        "rledit": {"fit_batch": 20},
        "hiedit": {"fit_batch": 1, "gate_training": "straight-through"},
    }
    # The modules of the published ranges, so that no size of a rule stands in the comparison.
    published = {"capacity": 0, "remember": 0.0}
    same_work = {"locality": "previous", "back_samples": None}
    result: dict[str, Any] = {}
    for method, shape in shapes.items():
        for name, constants in (("the same work", same_work), ("the library's defaults", {})):
            config = memplug.methods.find_method(method).config(
                **shape, **published, steps=1, inner_lr=2e-3, norm_weight=1e-3, **constants
            )
            with memplug.attach(model, tokenizer, config) as plug, evaluating(model), frozen(model):
                found = compare(plug, args.steps, literal=bool(constants))
            result.setdefault(method, {})[name] = found
        slow = result[method]["the same work"]["cpu seconds a step, literal"]
        result[method]["times as fast"] = {
            name: slow / result[method][name]["cpu seconds a step"]
            for name in ("the same work", "the library's defaults")
        }
    save("speed", result)


def compare(plug: Any, steps: int, literal: bool) -> dict[str, Any]:
    method, host = plug.method, plug.method._host
    config, depth = method.config, method.config.back_depth
    rng = random.Random(0)
    batches = draw_batches(world.cases(500, 0, "train"), depth + 1 + steps, config.fit_batch, rng, True)
    samples = [[sample_of(host, case, config, rng) for case in batch] for batch in batches]
    times: dict[str, list[float]] = {}
    grads: dict[str, list[torch.Tensor]] = {}
    prepared: list[Any] = []
    kinds = (Trajectory, LiteralTrajectory) if literal else (Trajectory,)
    for kind in kinds:
        torch.manual_seed(0)
        editor = type(method.editor)(method.sites, config, method.gated)
        pristine = Pristine({site.name: site for site in method.sites})
        run = kind(host, editor, pristine, random.Random(0), torch.Generator().manual_seed(0))
        start = time.process_time()
        ready = iter(prepare(host, run.low, [s for batch in samples for s in batch], config))
        prepared = [[next(ready) for _ in batch] for batch in samples]
        cached = (time.process_time() - start) / len(batches) if kind is Trajectory else 0.0
        run.history = prepared[: depth - 1]
        for number, batch in enumerate(prepared[depth - 1 : depth + steps]):
            editor.zero_grad()
            start = time.process_time()
            _, factors = run.step(batch)
            run.commit(factors)
            if number:  # the first one meets a history that it did not make
                # What the library computes once for a trajectory is counted with its steps.
                times.setdefault(kind.__name__, []).append(time.process_time() - start + cached)
            if kind.__name__ not in grads:
                grads[kind.__name__] = [p.grad.flatten() for p in editor.parameters() if p.grad is not None]
        pristine.restore()
    found: dict[str, Any] = {
        "fit_batch": config.fit_batch,
        "back_depth": depth,
        "modules": len(method.sites),
        "cpu seconds a step": sum(times["Trajectory"]) / steps,
        "steps": times,
    }
    if literal:
        ours, theirs = (torch.cat(grads[kind.__name__]) for kind in kinds)
        found["cpu seconds a step, literal"] = sum(times["LiteralTrajectory"]) / steps
        found["relative difference of the first gradients"] = float((ours - theirs).norm() / theirs.norm())
    return found


def delete(args: argparse.Namespace) -> None:
    """One of many entries, on modules of the embedded model's size; and what its time goes to."""
    torch.manual_seed(0)
    sites = [Site(f"m{i}", torch.nn.Linear(128, 384), i, 128, 384, True) for i in range(4)]
    ledger = Ledger(sites)
    rows = 2
    entries = [
        Entry((f"e{n}",), tuple(
            Part(s.name, torch.randn(rows, 128), 1e-3 * torch.randn(rows, 384), torch.zeros(rows).long(), 1.0)
            for s in sites
        ))
        for n in range(args.entries)
    ]  # fmt: skip
    start = time.perf_counter()
    ledger.hold(entries)
    built = time.perf_counter() - start
    times = []
    for n in range(0, args.entries, args.entries // 20):
        start = time.perf_counter()
        ledger.delete([f"e{n}"])
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    total = {site.name: torch.zeros(128, 384) for site in sites}
    for _ in range(len(ledger._sums)):
        total = {name: value + 0.0 for name, value in total.items()}
    added = time.perf_counter() - start
    save("delete", {
        "entries": args.entries, "modules": len(sites), "rows an entry": rows, "seconds to build": built,
        "seconds to delete one (median)": sorted(times)[len(times) // 2], "seconds to delete one": times,
        "blocks": len(ledger._sums), "of it, adding the blocks' sums": added,
    })  # fmt: skip


def save(name: str, result: dict[str, Any]) -> None:
    where = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": fingerprint(world.load()[0]),
    }
    path = ROOT / "results" / f"weights_{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result | {"where": where}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
