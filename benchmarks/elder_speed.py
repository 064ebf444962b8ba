"""ELDER's speed: of editing, against a literal loop, and of forwards, attached against bare."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from literal_elder import LiteralELDER
from transformers import LlamaConfig, LlamaForCausalLM

import memplug
from memplug import world
from memplug.methods.elder import ELDERConfig
from memplug.text import Batch

__all__ = ["SIX", "editing", "overhead"]

SIX = {"edit_layers": tuple(range(6, 12))}  # the published number of linears
_STEPS = 20  # of the default, where its editing is timed step by step
_WIDE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}


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


def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """A forward over a 64-token prompt: bare, attached with a deferred row, with one in scope.

    On the embedded model, and on one of random weights in which a millisecond is not a tenth of it.
    """
    out: dict[str, Any] = {}
    model, tokenizer = world.load()
    bare, _ = world.load()
    out |= _overhead(model, bare, tokenizer, {}, args, args.repeats)
    torch.manual_seed(0)
    wide = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **_WIDE)).eval()
    with torch.no_grad():
        wide.model.embed_tokens.weight.mul_(50)  # so that its early layers know words, as a trained one's do
    twin = LlamaForCausalLM(wide.config).eval()
    twin.load_state_dict(wide.state_dict())
    # What is learned there does not matter: the work is the same.
    given = {"steps": 2, "rehearse": 0, "replay": 0, "heldout": 64}
    found = _overhead(wide, twin, tokenizer, given, args, max(10, args.repeats // 5))
    return out | {f"width 1024, 8 layers: {name}": row for name, row in found.items()}


def _overhead(
    model: Any, bare: Any, tokenizer: Any, given: dict[str, Any], args: argparse.Namespace, repeats: int
) -> dict[str, Any]:
    out, n = {}, args.edits[0]
    cases, others = world.cases(n, seed=args.seed), world.cases(n + 20, seed=args.seed)[n:]
    plug = memplug.attach(model, tokenizer, "elder", **(given | args.set))
    plug.edit(cases, progress=False)
    known, text = plug.method.known, plug.method._host.text
    filling = [token for case in others for token in text.encode(case.edit.prompt)[1:]]

    def asking(case: memplug.Case) -> torch.Tensor:
        end = text.encode(case.edit.prompt)[1:]
        return torch.tensor([[text.bos_id, *filling[: 63 - len(end)], *end]])

    # Every forward asks for another edit, so that nothing is still at hand. The limits are opened or closed
    # for the rows, as what is timed is the work.
    naming = [asking(case) for case in cases[-20:]]
    naming_none = [torch.tensor([[text.bos_id, *filling[i : i + 63]]]) for i in range(20)]
    for name, rows, threshold in (
        ("in scope", naming, 0.0),
        ("deferred, names an edited subject", naming, 0.999999),
        ("deferred, names none", naming_none, 0.0),
    ):
        known.deferral.limit(1 << 20, threshold)
        known.version += 1
        batch = Batch(rows[0], torch.ones_like(rows[0]), torch.arange(64)[None])
        inside = bool(known.decide(plug.method.see(batch))[1].scope)
        turn = iter(range(1 << 30))

        def run(of: Any, rows: Any = rows, turn: Any = turn) -> None:
            of(rows[next(turn) // 2 % len(rows)])

        with torch.no_grad():
            seconds = cpu_seconds({"attached": partial(run, model), "bare": partial(run, bare)}, repeats)
        out[name] = {"seconds": seconds, "ratio": seconds["attached"] / seconds["bare"], "in scope": inside}
        print(name, out[name], flush=True)
    plug.detach()
    return out
