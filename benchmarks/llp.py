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
import random
import time
import warnings
from typing import Any

import torch
from common import interleaved, write
from literal_llp import LiteralLLP

import memplug
from memplug import world
from memplug.evaluation import answer, evaluate
from memplug.holding import held_by
from memplug.methods.llp.entries import Entry
from memplug.methods.llp.keys import subject_states
from memplug.naming import Written


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
    own = [(case.edit.subject, prompt) for case in cases for prompt in case.rephrases[:2]]
    found = recalled(plug, [prompt for _, prompt in own])
    hits = sum(name == subject for (subject, _), name in zip(own, found, strict=True))
    others = sum(name not in (None, subject) for (subject, _), name in zip(own, found, strict=True))
    alike = [
        probe.prompt
        for case in cases
        for probe in world.namesakes(str(case.edit.subject))[:6]
        if not any(name in probe.prompt for name in edited)
    ]
    unrelated = [probe.prompt for case in cases for probe in case.locality]
    skills = [probe.prompt for probes in world.skills(100, seed=1).values() for probe in probes]
    result: dict[str, Any] = {
        "true recalls, unseen phrasings": hits / len(own),
        "recalls of another subject": others / len(own),
    }
    for name, prompts in (("shares a word", alike), ("unrelated", unrelated), ("skills", skills)):
        distinct = list(dict.fromkeys(prompts))
        fires = sum(subject is not None for subject in recalled(plug, distinct))
        result[f"fires, {name}"] = fires / max(1, len(distinct))
        result[f"prompts, {name}"] = len(distinct)
    print(result, flush=True)
    return result


@torch.no_grad()
def recalled(plug: memplug.Plug, prompts: list[str]) -> list[str | None]:
    """The subject that a forward over each prompt recalls."""
    method = plug.method
    text = method._host.text
    found: list[str | None] = []
    for at in range(0, len(prompts), 64):
        batch = text.batch([text.encode(prompt) for prompt in prompts[at : at + 64]])
        out = plug.model(batch.ids, attention_mask=batch.mask, use_cache=True)
        keys = held_by(out.past_key_values).key.tolist()
        found += [None if key < 0 else method._owner[key] for key in keys]
    return found


def editing(args: argparse.Namespace) -> dict[str, Any]:
    """Edits per second: the literal loop, one by one, and in batches of 32."""
    n = args.edits[0]
    cases = world.cases(n, seed=args.seed)
    model, tokenizer = world.load()
    out: dict[str, Any] = {}
    plug = memplug.attach(model, tokenizer, preset="paper")
    text, prefixes = plug.method._host.text, plug.method._contexts()
    model.requires_grad_(False)  # as in the published code: only the value is trained
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
    """CPU time of a 64-token forward with nothing recalled: bare, and with 0 to 10,000 edits attached.

    Twice: running text without names, and text full of names that share their words with edited subjects.
    """
    bare, tokenizer = world.load()
    texts = {
        "running text": " ".join(probe.prompt for probe in world.skills(40, seed=3)["agreement"]),
        "names that share words": " ".join(world.train_texts(40, seed=5)),
    }
    plugs: dict[int, memplug.Plug] = {}
    for n in (0, 100, 1000, 10_000):
        plugs[n] = memplug.attach(*world.load())
        _fill(plugs[n], n, texts["names that share words"])
    out: dict[str, Any] = {}
    for name, text in texts.items():
        ids = torch.tensor([tokenizer(text)["input_ids"][:64]])
        runs: dict[str, Any] = {"bare": lambda ids=ids: bare(ids)}
        with torch.no_grad():
            for n, plug in plugs.items():
                if not torch.equal(bare(ids).logits, plug.model(ids).logits):
                    raise RuntimeError(f"something was recalled with {n} edits in {name!r}")
                runs[str(n)] = lambda model=plug.model, ids=ids: model(ids)
            best = interleaved(runs, args.repeats, time.process_time)
        for run, seconds in best.items():
            out[f"{name}, {run}"] = {"milliseconds": 1e3 * seconds, "ratio": seconds / best["bare"]}
    for name, row in out.items():
        print(f"{name:32} {row['milliseconds']:.3f} ms  x{row['ratio']:.3f}", flush=True)
    return out


def _fill(plug: memplug.Plug, n: int, avoid: str) -> None:
    """Give a plug ``n`` subjects that nobody asks for: the world's words in new combinations.

    They share their words with the subjects of the text, as real names do; values do not matter here.
    """
    method = plug.method
    names = _new_names(n, avoid)
    with plug.paused():
        contexts = [[Written(name, 0, len(name))] for name in names]
        states = subject_states(method._host, contexts, method.config)
    for number, (name, [state]) in enumerate(zip(names, states, strict=True)):
        method.memory.add(number, state.mean(0))
        edit = memplug.Edit(f"{name} is", "x", name, f"e{number}")
        values = {(f"e{number}",): torch.zeros(2, state.shape[-1])}
        method._owner[number] = name
        method.entries[name] = Entry(name, {f"e{number}": edit}, keys=(number,), values=values)


def _new_names(n: int, avoid: str) -> list[str]:
    rng = random.Random(0)
    words = sorted({word for subject in world.subjects() for word in subject.split()})
    names: dict[str, None] = {}
    while len(names) < n:
        name = " ".join(rng.sample(words, 2))
        if name not in avoid:
            names[name] = None
    return list(names)


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
