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
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from literal_hypernet import LiteralTrajectory

import memplug
from memplug import ledger as ledger_module
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
    """One of many edits, entries shaped as the methods' defaults make them, modules of the embedded model's
    size: what it takes and where the time goes. CPU seconds."""
    torch.manual_seed(0)
    modules, steps, d_k, d_v = 12, 4, 128, 384
    sites = [Site(f"m{i}", torch.nn.Linear(d_k, d_v), i, d_k, d_v, True) for i in range(modules)]
    batches = 20  # of ten edits each, among entries of one
    size = [10 if n % (args.entries // batches) == 0 else 1 for n in range(args.entries)]
    more = 20
    entries = list(_default_entries(sites, [*size, *[1] * more], steps))
    ledger = Ledger(sites)
    start = time.process_time()
    ledger.hold(entries[: args.entries])
    built = time.process_time() - start
    clock = Clock()
    clock.wrap(Ledger, "hold", "bookkeeping over the entries")
    clock.wrap(Ledger, "without", "bookkeeping over the entries")
    clock.wrap(Part, "factors", "solving")
    clock.wrap(ledger_module, "summed", "summing its block")
    clock.wrap(ledger_module, "_add", "adding the blocks' sums")
    clock.wrap(Pristine, "write", "writing the weights")
    of_ten = [entry.ids[3] for entry in entries if len(entry.ids) > 1]
    alone = [entries[n + 7].ids[0] for n in range(0, args.entries, args.entries // batches)]
    parts = {
        "delete one of an entry of its own": [clock.of(ledger.delete, [name]) for name in alone],
        "delete one of ten made together": [clock.of(ledger.delete, [name]) for name in of_ten],
        "add one at the end": [clock.of(ledger.add, entry) for entry in entries[args.entries :]],
    }
    save("delete", {
        "entries": args.entries, "of them, of ten edits": batches, "modules": modules,
        "steps of a row with directions": steps, "blocks": len(ledger._sums), "seconds to build": built,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seconds (mean)": {
            what: {part: sum(one[part] for one in found) / len(found) for part in found[0]}
            for what, found in parts.items()
        },
        "seconds (median)": {
            what: sorted(sum(one.values()) for one in found)[len(found) // 2] for what, found in parts.items()
        },
    })  # fmt: skip


def _default_entries(sites: list[Site], edits: list[int], steps: int) -> Iterator[Entry]:
    """Entries of so many edits each, a row an edit and step; directions keep clear of 64 axes."""
    count = sum(edits) * steps
    rows = {}
    for site in sites:
        keys, values = torch.randn(count, site.d_k), 1e-3 * torch.randn(count, site.d_v)
        axes = torch.linalg.qr(torch.randn(site.d_k, 64))[0]
        rows[site.name] = keys, values, keys - 0.9 * (keys @ axes) @ axes.T
    at = 0
    for n, size in enumerate(edits):
        parts, owner = [], torch.arange(size)
        for _ in range(steps):
            for site in sites:
                keys, values, along = (x[at : at + size] for x in rows[site.name])
                parts.append(Part(site.name, keys, values, owner, 1.0, along).kept(half=True))
            at += size
        yield Entry(tuple(f"e{n}.{i}" for i in range(size)), tuple(parts))


class Clock:
    """CPU time by what wrapped functions do; the time of wrapped functions inside others counts once."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._inside = [0.0]

    def wrap(self, owner: Any, name: str, what: str) -> None:
        plain = getattr(owner, name)
        self.spent[what] = 0.0

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            start = time.process_time()
            try:
                return plain(*args, **kwargs)
            finally:
                took = time.process_time() - start
                self.spent[what] += took - self._inside.pop()
                self._inside[-1] += took

        setattr(owner, name, timed)

    def of(self, call: Callable[[Any], Any], argument: Any) -> dict[str, float]:
        """What one call spends on each."""
        self.spent = dict.fromkeys(self.spent, 0.0)
        call(argument)
        return dict(self.spent)


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
