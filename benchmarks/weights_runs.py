"""Sequences of edits by the weight editors on the embedded model, judged on the way and at the end.

    python benchmarks/weights_runs.py shipped --edits 200 1000 --batch 10 50 --seeds 0 1 2
    python benchmarks/weights_runs.py hiedit --edits 200 --batch 10 --seeds 0 1 2

Settings that are fitted are fitted in the run, on training cases that share no subject with the edits; the
shipped ones load what `weights.py fit` wrote. Every run goes into ``results/weights_runs.json`` under its
name; one that is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
import transformers
from common import RESULTS
from weights import GROUPS, summary

import memplug
from memplug import world
from memplug.edits import Case
from memplug.evaluation import evaluate, refer
from memplug.evaluation.metrics import whole_answer
from memplug.evaluation.probing import teacher_force
from memplug.storage import fingerprint

FILE = RESULTS / "weights_runs.json"
JUDGED = 100
"""Cases that are judged: the first so many (edited retention) and the last so many."""


class Setting(NamedTuple):
    """A method with its constants; ``fitted``: in the run, otherwise as shipped or without fitting."""

    method: str
    constants: dict[str, Any]
    fitted: bool


_PLAIN = {"capacity": 0, "remember": 0.0, "enough": 1.0, "max_feature": 0.0}
_FITTED = _PLAIN | {
    "norm_weight": 3e-4, "locality_weight": 5.0, "fit_steps": 40, "fit_lr": 5e-4,
    "trajectory": (5, 20), "curriculum": 0.5,
}  # fmt: skip
_SIX = (("gate", 4 / 12, 7 / 12), ("up", 6 / 12, 9 / 12))
_NARROW: dict[str, dict[str, Any]] = {
    "rledit": _FITTED | {"steps": 6, "inner_lr": 0.0008},
    "smedit": _FITTED | {"steps": 4, "inner_lr": 0.0011, "norm_weight": 1e-3, "locality_weight": 1.0},
    "hiedit": _FITTED | {"steps": 6, "inner_lr": 0.0011, "ranges": _SIX, "hidden": 256},
}
"""The published modules alone (for the gate, six), nothing remembered: where what a method does shows."""


def _claim(method: str, **constants: Any) -> Setting:
    return Setting(method, _NARROW[method] | constants, True)


_WIDE = {name: _NARROW["hiedit"][name] for name in ("ranges", "inner_lr")}
_ONE = {"rledit": {"steps": 1, "inner_lr": 0.0048}, "hiedit": {"steps": 1, "inner_lr": 0.0066}}
_CODE = {"faithful": True, "protect": 0.0, "fit_lr": 1e-3, "fit_steps": 20, "trajectory": (20, 20)}
SETTINGS: dict[str, dict[str, Setting]] = {
    "shipped": {
        "ultraedit": Setting("ultraedit", {}, False),
        "rledit": Setting("rledit", {}, False),
        "hiedit": Setting("hiedit", {}, False),
        "smedit": Setting("smedit", {}, False),
    },
    "narrow": {
        "ultraedit": Setting("ultraedit", _PLAIN | {"steps": 8}, False),
        **{name: _claim(name, fit_steps=80) for name in ("rledit", "hiedit", "smedit")},
    },
    "hiedit": {
        "hiedit, straight-through": _claim("hiedit", gate_training="straight-through"),
        "static half": _claim("hiedit", selection="static"),
        "all modules (rledit)": _claim("rledit", **_WIDE),
        "all modules, half the step (rledit)": _claim(
            "rledit", ranges=_WIDE["ranges"], inner_lr=_WIDE["inner_lr"] / 2
        ),
        "random half": _claim("hiedit", selection="random"),
        "largest gradients": _claim("hiedit", selection="gradient"),
        "hiedit, score function": _claim("hiedit"),
    },
    "rledit": {
        "6 steps": _claim("rledit"),
        "1 step": _claim("rledit", **_ONE["rledit"]),
        "2 steps": _claim("rledit", steps=2, inner_lr=0.0024),
        "3 steps": _claim("rledit", steps=3, inner_lr=0.0016),
        "4 steps, each as large as one of 2": _claim("rledit", steps=4, inner_lr=0.0024),
        "6 steps, single batches": _claim("rledit", trajectory=(1, 1)),
        "6 steps, no backtracking": _claim("rledit", back_depth=1),
        "6 steps, plain norm": _claim("rledit", protect=0.0),
    },
    "little data": {
        "smedit, 2 steps": _claim("smedit", steps=2, inner_lr=0.0024),
        "rledit, 1 step": _claim("rledit", **_ONE["rledit"]),
        "rledit, 2 steps": _claim("rledit", steps=2, inner_lr=0.0024),
    },
    "faithful": {
        f"{method}, {name}": _claim(method, **_ONE[method], **constants)
        for method in ("rledit", "hiedit")
        for name, constants in (("as in the code", _CODE), ("as meant", {"protect": 0.0}))
    },
}
"""What is compared with what; claims are fitted for fewer steps than what ships."""

FEW = 60
"""Cases to fit on where data is little."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("group", choices=list(SETTINGS))
    parser.add_argument("--only", nargs="*", help="some of the group's settings")
    parser.add_argument("--edits", type=int, nargs="+", default=[200])
    parser.add_argument("--batch", type=int, nargs="+", default=[10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for edits in args.edits:
        for batch in args.batch:
            for seed in args.seeds:
                for label, setting in SETTINGS[args.group].items():
                    if args.only is None or label in args.only:
                        once(args.group, label, setting, edits, batch, seed)


def once(group: str, label: str, setting: Setting, edits: int, batch: int, seed: int) -> None:
    """One run, kept in the file."""
    name = f"{group}: {label} {edits}x{batch} seed {seed}"
    held = json.loads(FILE.read_text()) if FILE.exists() else {"runs": {}}
    if name in held["runs"]:
        return
    model, tokenizer = world.load()
    with_limits = setting.constants | {"batch_size": batch, "max_change": 1e6, "max_perplexity": 1e9}
    found: dict[str, Any] = {"group": group, "label": label, "edits": edits, "batch": batch, "seed": seed}
    if setting.fitted:
        config = memplug.methods.find_method(setting.method).config(**(with_limits | {"seed": seed}))
        plug = memplug.attach(model, tokenizer, config)
        few = "little" in group
        start = time.process_time()
        report = plug.fit(world.cases(FEW if few else 1500, seed, "train"), progress=False)
        found["fit"] = summary(plug, report) | {"cpu_seconds": time.process_time() - start}
    else:
        plug = memplug.attach(model, tokenizer, setting.method, **with_limits)
    found |= edited(plug, world.cases(edits, seed), batch)
    held = json.loads(FILE.read_text()) if FILE.exists() else {"runs": {}}
    held["runs"][name] = found
    held["where"] = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": fingerprint(world.load()[0]),
    }
    FILE.write_text(json.dumps(held, indent=1) + "\n")
    last, first = found["last"], found["curve"][-1]["first"]
    print(name, *(f"{g} {last[g]['tokens']:.3f}" for g in GROUPS if g in last), "| retained",
          *(f"{first[g]['tokens']:.3f}" for g in ("efficacy", "generalization")), flush=True)  # fmt: skip


def edited(plug: Any, cases: Sequence[Case], batch: int) -> dict[str, Any]:
    """Edit in batches; judge the first cases and general skills on the way, the last ones at the end."""
    judged = [replace(c, rephrases=c.rephrases[:2], locality=c.locality[:3],
                      same_subject=c.same_subject[:2], portability=()) for c in cases]  # fmt: skip
    count = min(JUDGED, len(cases))
    points = [at for at in (200, 500) if at < len(cases)]
    base = refer(plug.model, plug.tokenizer, judged[:count], max_new_tokens=0, batch_size=128)
    generated = refer(plug.model, plug.tokenizer, judged[-count:], max_new_tokens=16, batch_size=128)
    seconds, curve = 0.0, [{"edits": 0, "skills": skills(plug)}]
    for at in range(0, len(cases), batch):
        start = time.process_time()
        plug.edit(cases[at : at + batch], progress=False)
        seconds += time.process_time() - start
        done = min(at + batch, len(cases))
        if done in points or done == len(cases):
            held = scores(evaluate(plug, judged[:count], max_new_tokens=0, batch_size=128, reference=base))
            changes = plug.method.ledger.relative_change()
            curve.append({"edits": done, "first": held, "skills": skills(plug), "change": changes})
    ends: dict[str, Any] = {"max_new_tokens": 16, "batch_size": 128, "reference": generated}
    last = scores(evaluate(plug, judged[-count:], **ends))
    return {
        "constants": asdict(plug.method.config),
        "parameters": sum(p.numel() for p in plug.method.editor.parameters()),
        "cpu_seconds_per_edit": seconds / len(cases),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "last": last,
        "curve": curve,
        "chosen": chosen(plug),
    }


def skills(plug: Any) -> float:
    """Share of skills' questions answered in full."""
    probes = [probe for made in world.skills(20).values() for probe in made]
    forced = teacher_force(plug.model, plug.tokenizer, probes, batch_size=140)
    return sum(whole_answer(found.predicted, found.target) for found in forced) / len(probes)


def scores(found: Any) -> dict[str, Any]:
    """Every measure of every group that was asked."""
    table: dict[str, Any] = {}
    for group in GROUPS:
        measures = getattr(found, group)
        table[group] = {
            name: round(getattr(measures, name).value, 4)
            for name in ("tokens", "whole", "generated")
            if getattr(measures, name) is not None
        }
    return table


def chosen(plug: Any) -> dict[str, Any]:
    """How often a batch of edits chose each module, and the entropy of one batch's choice given by that.

    The entropy, in bits, is summed over the modules (each is chosen or not): 0 where the choice never varies.
    """
    entries = plug.method.ledger.entries
    if not any("chosen" in entry.notes for entry in entries):
        return {}
    times = {site.name: sum(site.name in e.notes["chosen"] for e in entries) for site in plug.method.sites}
    shares = [n / len(entries) for n in times.values()]
    bits = sum(-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in shares if 0 < p < 1)
    return {"times": times, "entropy": bits, "largest": float(len(shares)), "sets": len(
        {tuple(e.notes["chosen"]) for e in entries})}  # fmt: skip


if __name__ == "__main__":
    main()
