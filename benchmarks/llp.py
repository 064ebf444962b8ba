"""LLP on the embedded model: quality with many edits held at once, collisions, speed of editing, overhead.

    python benchmarks/llp.py quality --edits 1 100 1000 [--preset paper]
    python benchmarks/llp.py collisions --edits 1000 [--preset paper]
    python benchmarks/llp.py editing --edits 64
    python benchmarks/llp.py overhead

Each writes ``benchmarks/results/llp-<what>[-<preset>].json`` and prints what it wrote.
"""

from __future__ import annotations

import argparse
import ast
import time
import warnings
from typing import Any

import torch
from common import interleaved, write
from literal_llp import LiteralLLP

import memplug
from memplug import world
from memplug.evaluation import answer, evaluate
from memplug.methods.llp.keys import think_states
from memplug.methods.llp.method import Entry


def quality(args: argparse.Namespace) -> dict[str, Any]:
    """Scores of the first n cases held at once, for each n; each n is learned anew."""
    out: dict[str, Any] = {}
    for n in args.edits:
        model, tokenizer = world.load()
        cases = [_judged(case) for case in world.cases(n, seed=args.seed)]
        plug = memplug.attach(model, tokenizer, method="llp", preset=args.preset, **args.set)
        start = time.perf_counter()
        plug.edit(cases)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        scores = evaluate(plug, cases, batch_size=64)
        out[str(n)] = scores.to_dict() | {
            "seconds_per_edit": seconds / n,
            "seconds_of_evaluation": time.perf_counter() - start,
            "skills": _skills(plug),
        }
        print(scores)
        print(
            {key: value for key, value in out[str(n)].items() if key in ("seconds_per_edit", "skills")},
            flush=True,
        )
    return out


def _judged(case: memplug.Case) -> memplug.Case:
    """The case with the phrasings that the model never saw for its subject alone."""
    return memplug.Case(case.edit, case.rephrases[:2], case.locality[:4], case.same_subject, case.portability)


def _skills(plug: memplug.Plug) -> dict[str, float]:
    found = {}
    for name, probes in world.skills(100, seed=1).items():
        texts = answer(plug.model, plug.tokenizer, [probe.prompt for probe in probes], batch_size=64)
        found[name] = sum(t == probe.target for t, probe in zip(texts, probes, strict=True)) / len(probes)
    return found


def collisions(args: argparse.Namespace) -> dict[str, Any]:
    """Who is recalled: the edited subject in unseen phrasings; nobody for those who share a word with one."""
    n = args.edits[0]
    model, tokenizer = world.load()
    cases = world.cases(n, seed=args.seed)
    edited = {str(case.edit.subject) for case in cases}
    plug = memplug.attach(
        model, tokenizer, preset=args.preset, **({"value_steps": 0, "n_statements": 0} | args.set)
    )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values are not trained: only keys are looked at here
        plug.edit(cases)
    true, wrong, total = 0, 0, 0
    for case in cases:
        for prompt in case.rephrases[:2]:
            found = recalled(plug, prompt)
            true += found == case.edit.subject
            wrong += found not in (None, case.edit.subject)
            total += 1
    fires, asked = 0, 0
    for case in cases[: args.limit]:
        probes = [
            p for p in world.namesakes(str(case.edit.subject)) if not any(s in p.prompt for s in edited)
        ]
        for probe in probes[:6]:
            fires += recalled(plug, probe.prompt) is not None
            asked += 1
    locality = [recalled(plug, probe.prompt) for case in cases[: args.limit] for probe in case.locality]
    skills = [recalled(plug, p.prompt) for probes in world.skills(100, seed=1).values() for p in probes]
    result = {
        "true_recalls": true / total,
        "recalls_of_another": wrong / total,
        "prompts": total,
        "fires_on_namesakes": fires / max(1, asked),
        "namesake_prompts": asked,
        "fires_on_locality": sum(x is not None for x in locality) / len(locality),
        "fires_on_skills": sum(x is not None for x in skills) / len(skills),
    }
    print(result, flush=True)
    return result


def recalled(plug: memplug.Plug, prompt: str) -> str | None:
    """The subject that a forward over ``prompt`` recalls."""
    method = plug.method
    ids = torch.tensor([method._host.text.encode(prompt)])
    out = plug.model(ids, use_cache=True)
    key = int(out.past_key_values._memplug_rows.key[0])
    return None if key < 0 else method._owner[key]


def editing(args: argparse.Namespace) -> dict[str, Any]:
    """Edits per second: the literal loop, one by one, and in batches of 32."""
    n = args.edits[0]
    cases = world.cases(n, seed=args.seed)
    model, tokenizer = world.load()
    out: dict[str, Any] = {}
    plug = memplug.attach(model, tokenizer, preset="paper")
    text, prefixes = plug.method._host.text, plug.method._contexts()
    literal = LiteralLLP(model, text, plug.method.config, prefixes)
    few = cases[: max(4, n // 8)]
    start = time.perf_counter()
    with plug.paused():
        steps = [literal.edit(case.edit) for case in few]
    base = (time.perf_counter() - start) / len(few)
    out["literal published loop"] = {
        "seconds_per_edit": base,
        "steps": sum(steps) / len(steps),
        "edits": len(few),
    }
    plug.detach()
    for preset in ("paper", "default"):
        for size, name in ((1, "one by one"), (32, "batches of 32")):
            plug = memplug.attach(model, tokenizer, preset=preset)
            some = cases if size > 1 else few
            start = time.perf_counter()
            for at in range(0, len(some), size):
                plug.edit(some[at : at + size], progress=False)
            each = (time.perf_counter() - start) / len(some)
            out[f"{preset}, {name}"] = {
                "seconds_per_edit": each,
                "times_faster": base / each,
                "edits": len(some),
            }
            plug.detach()
    for name, row in out.items():
        print(f"{name:32}", {key: round(value, 3) for key, value in row.items()}, flush=True)
    return out


def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """A 64-token forward with nothing recalled: bare, and with 0 to 10,000 edits attached."""
    model, tokenizer = world.load()
    with_plugs: dict[str, Any] = {}
    texts = " ".join(world.train_texts(40, seed=5))
    edited = set()
    bare, _ = world.load()
    runs: dict[str, Any] = {}
    ids = torch.tensor([tokenizer(texts)["input_ids"][:64]])
    with torch.no_grad():
        runs["bare"] = lambda: bare(ids)
        for n in (0, 100, 1000, 10_000):
            model, _ = world.load()
            plug = memplug.attach(model, tokenizer)
            _fill(plug, n, edited, ids)
            with_plugs[str(n)] = plug
            assert torch.equal(bare(ids).logits, model(ids).logits), "something was recalled"
            runs[str(n)] = lambda model=model: model(ids)
        best = interleaved(runs, args.repeats)
    out = {name: {"milliseconds": 1e3 * best[name], "ratio": best[name] / best["bare"]} for name in runs}
    for name, row in out.items():
        print(f"{name:8} {row['milliseconds']:.3f} ms  x{row['ratio']:.3f}", flush=True)
    return out


def _fill(plug: memplug.Plug, n: int, edited: set[str], ids: torch.Tensor) -> None:
    """Give a plug ``n`` entries with made-up keys: the hidden states of the world's other texts, shuffled."""
    method = plug.method
    if not n:
        return
    generator = torch.Generator().manual_seed(0)
    states = _token_states(plug, 4000)
    for number in range(n):
        pick = torch.randint(states.shape[1], (2,), generator=generator)
        noise = torch.randn(states.shape[0], 2, states.shape[2], generator=generator) * states.std() * 0.7
        method.memory.add(number, states[:, pick] + noise)
        method._owner[number] = f"s{number}"
        edit = memplug.Edit(f"s{number} is", "x", f"s{number}", f"e{number}")
        method.entries[f"s{number}"] = Entry(
            f"s{number}",
            {f"e{number}": edit},
            keys=(number,),
            values={(f"e{number}",): torch.zeros(2, states.shape[2])},
        )


def _token_states(plug: memplug.Plug, count: int) -> torch.Tensor:
    text = plug.method._host.text
    rows = [text.encode(t)[:48] for t in world.train_texts(400, seed=9)]
    found = []
    with plug.paused():
        for at in range(0, len(rows), 50):
            states = think_states(plug.method._host, rows[at : at + 50], plug.method.config.think_layers)
            for k, row in enumerate(rows[at : at + 50]):
                found.append(states[:, k, 1 : len(row)])
    return torch.cat(found, dim=1)[:, :count].float()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["quality", "collisions", "editing", "overhead"])
    parser.add_argument("--edits", type=int, nargs="+", default=[100])
    parser.add_argument("--preset", default="default", choices=["default", "paper"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="constants of the method")
    parser.add_argument("--tag", default="", help="appended to the name of the results")
    args = parser.parse_args()
    args.set = {k: _value(v) for k, v in (item.split("=") for item in args.set)}
    torch.set_num_threads(args.threads)
    results = globals()[args.what](args)
    parts = [
        "llp",
        args.what,
        *([args.preset] if args.preset != "default" else []),
        *([args.tag] if args.tag else []),
    ]
    print(write("-".join(parts), results, **vars(args)))


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
