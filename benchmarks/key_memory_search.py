"""One search of the key memory: three ways to do it, and their times.

- plain: float32 product with all keys, largest similarity over the tokens, top 3, threshold, votes;
- literal: the published code's way, one row: `F.cosine_similarity` of (T, 1, D) with (1, E, D), the same
  selection, and a loop over `.item()`; left out where it would need more than 6 GB;
- memory: `KeyMemory.search`.

Half of the keys are of random directions, half are in groups of eight alike (cosine 0.72); queries are of
random directions, half of them at cosine 0.45 to a key, and a share of the rows has a token at cosine
0.80 to 0.95 to a key in all layers.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memplug.memory import KeyMemory

__all__ = ["FULL", "QUICK", "Search", "cpu_times", "searches"]

LITERAL_BYTES = 6e9


class Search(NamedTuple):
    """One row of the table: sizes, and how many times quicker the memory should be."""

    name: str
    width: int
    entries: int
    rows: int
    tokens: int
    plain: float | None = None
    literal: float | None = None
    share: float = 0.5
    layers: int = 8
    scan: str = "auto"
    milliseconds: float | None = None


FULL = [
    Search("decode", 256, 1_000, 1, 1, 0.5, 2),
    Search("decode", 1024, 10_000, 1, 1, 12, 350),
    Search("decode", 1024, 100_000, 1, 1, 60, 2000),
    Search("decode", 1024, 100_000, 64, 1, 12),
    Search("decode", 4096, 10_000, 1, 1, 25, 800),
    Search("short prompt", 1024, 10_000, 1, 16, 8, 1200, share=1.0),
    Search("prefill", 1024, 100_000, 8, 64, 10),
    Search("prefill", 4096, 10_000, 8, 64, 10),
    Search("every key", 1024, 10_000, 1, 8, 2.5, 150, scan="exact"),
    Search("every key", 1024, 10_000, 8, 64, 2.5, scan="exact"),
    Search("embedded model", 192, 1_000, 1, 64, share=0.0, layers=3, milliseconds=0.5),
    Search("embedded model", 192, 10_000, 1, 64, share=0.0, layers=3, milliseconds=1.5),
    Search("embedded model, decode", 192, 1_000, 1, 1, share=0.0, layers=3),
]
QUICK = [
    Search("decode", 256, 1_000, 1, 1, 0.5, 2),
    Search("decode", 1024, 5_000, 1, 1, 6),
    Search("short prompt", 1024, 5_000, 1, 8, 4),
    Search("every key", 1024, 2_000, 1, 8, 2.5, 150, scan="exact"),
    Search("embedded model", 192, 1_000, 1, 64, share=0.0, layers=3, milliseconds=0.5),
]


def draw(case: Search, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys (R, E, D) of length 1 and queries (R, B, T, D)."""
    generator = torch.Generator().manual_seed(seed)

    def directions(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, case.width, generator=generator), dim=-1)

    keys = directions(case.layers, case.entries)
    half = case.entries // 16 * 8
    for layer in keys:  # groups of eight, cosine 0.72 within
        centres = directions(half // 8).repeat_interleave(8, dim=0)
        layer[:half] = F.normalize(0.85 * centres + 0.53 * layer[:half], dim=-1)
    queries = directions(case.layers, case.rows, case.tokens)
    near = torch.randint(case.entries, (case.rows, case.tokens), generator=generator)
    similar = torch.rand(case.rows, case.tokens, generator=generator) < 0.5
    cosine = torch.where(similar, 0.45, 0.0)
    hit = torch.rand(case.rows, generator=generator) < case.share
    cosine[hit, -1] = 0.8 + 0.15 * torch.rand(int(hit.sum()), generator=generator)
    for layer in range(case.layers):
        queries[layer] = (
            cosine[..., None] * keys[layer][near] + (1 - cosine**2).sqrt()[..., None] * queries[layer]
        )
    return keys, queries


def plain(keys: Tensor, queries: Tensor, quorum: int) -> Tensor:
    """Winners (B,) by a product in float32; keys of length 1."""
    votes = torch.zeros(queries.shape[1], keys.shape[1])
    total = torch.zeros(queries.shape[1], keys.shape[1])
    for k, q in zip(keys, F.normalize(queries, dim=-1), strict=True):
        similarity = (q.flatten(0, 1) @ k.T).view(*q.shape[:2], -1).amax(dim=1)
        top, at = similarity.topk(3)
        votes.scatter_add_(1, at, (top > 0.7).float())
        total.scatter_add_(1, at, top * (top > 0.7))
    best, winner = (votes * 1000 + total).max(dim=1)
    return torch.where(best >= 1000 * quorum, winner, -1)


def literal(keys: Tensor, queries: Tensor, quorum: int) -> Tensor:
    """The winner (1,) of one row as the published code finds it."""
    votes: dict[int, int] = {}
    for k, q in zip(keys, queries, strict=True):
        similarity = F.cosine_similarity(q[0][:, None], k[None], dim=-1)
        value, at = similarity.max(dim=0).values.topk(3)
        for place in torch.nonzero(value > 0.7):
            entry = at[place].item()
            votes[entry] = votes.get(entry, 0) + 1
    if votes:
        entry = max(votes, key=lambda key: votes[key])
        if votes[entry] >= quorum:
            return torch.tensor([entry])
    return torch.tensor([-1])


def cpu_times(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Smallest CPU time of each run in milliseconds, in turns until `seconds` are spent."""
    best = dict.fromkeys(runs, float("inf"))
    spent = dict.fromkeys(runs, 0.0)
    for _ in range(300):
        for name, run in runs.items():
            if spent[name] > seconds / len(runs):
                continue
            start = time.thread_time()
            run()
            taken = time.thread_time() - start
            spent[name] += taken
            best[name] = min(best[name], 1000 * taken)
    return best


def filled(keys: Tensor, **settings: Any) -> KeyMemory:
    """A memory of these keys, one token each."""
    n_layers, entries, dim = keys.shape
    memory = KeyMemory(n_layers, dim, **settings)
    memory.load_state_dict(
        {
            "last": keys.half(),
            "rest": torch.zeros(n_layers, 0, dim, dtype=torch.float16),
            "length": torch.ones(entries, dtype=torch.int64),
            "id": torch.arange(entries),
            "enabled": torch.ones(entries, dtype=torch.bool),
            "threshold": torch.full((entries,), 0.7),
        }
    )
    return memory


def searches(cases: Iterable[Search], seconds: float) -> Iterable[dict[str, Any]]:
    """Measure each case."""
    for case in cases:
        keys, queries = draw(case)
        quorum = (case.layers + 1) // 2
        memory = filled(keys, scan=case.scan)
        same = torch.equal(memory.search(queries)[0], plain(keys, queries, quorum))
        runs: dict[str, Callable[[], Any]] = {
            "memory": lambda memory=memory, queries=queries: memory.search(queries),
            "plain": lambda keys=keys, queries=queries, quorum=quorum: plain(keys, queries, quorum),
        }
        need = 12.0 * case.tokens * case.entries * case.width
        if case.literal and need < LITERAL_BYTES:
            runs["literal"] = lambda keys=keys, queries=queries, quorum=quorum: literal(keys, queries, quorum)
        times = cpu_times(runs, seconds)
        ratios = {other: times[other] / times["memory"] for other in ("plain", "literal") if other in times}
        targets = {"plain": case.plain, "literal": case.literal if "literal" in runs else None}
        passed = same and all(not target or ratios[name] >= target for name, target in targets.items())
        if case.milliseconds:
            passed = passed and times["memory"] <= case.milliseconds
        yield {
            **case._asdict(),
            "times_ms": times,
            "ratios": ratios,
            "code_bits": memory._signs.bits if memory._signs else 0,
            "same_winners": same,
            "bytes_per_key_and_layer": memory.nbytes / case.entries / case.layers,
            "literal_skipped": bool(case.literal) and need >= LITERAL_BYTES,
            "passed": passed,
        }
        del memory, runs, keys, queries
        gc.collect()
