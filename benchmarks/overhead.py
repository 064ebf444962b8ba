"""What a memory of many edits costs a forward that recalls nothing, and what it takes in memory.

    python -m benchmarks.overhead --model smollm2 --counts 1000,10000,100000 --out FILE.json
    python -m benchmarks.overhead --shape llama-3-8b --device cuda --dtype float16 --out FILE.json

Three edits are made; the others are keys of three tokens in random directions of the calibrated space,
near to nothing. A forward of 64 tokens and greedy decoding behind it are timed in turns with the bare
model's. Searches read every key, so that what they cost does not depend on what the keys are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import memplug
from memplug.commands.shared import load_model
from memplug.comparison.cost import overhead
from memplug.comparison.model_state import hooks_of
from memplug.edits import Edit
from memplug.memory import KeyMemory

from .common import table, write
from .large import SHAPES, build
from .real.run import NEUTRAL, SINGLE

__all__ = ["filled", "main"]

_TOKENS = 3  # of a subject
_FIRST = 1 << 40  # ids of keys that belong to no edit


def filled(memory: KeyMemory, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """What the memory holds, as `KeyMemory.state_dict` gives it, with random keys up to ``count``."""
    held = memory.state_dict()
    more = count - len(memory)

    def random_keys(n: int) -> torch.Tensor:
        keys = torch.empty(memory.n_layers, n, memory.dim, dtype=torch.float16)
        for layer in keys:
            made = torch.randn(n, memory.dim, generator=generator)
            layer.copy_(torch.nn.functional.normalize(made, dim=-1))
        return keys

    limit = float(held["threshold"].max()) if len(memory) else memory.threshold
    added = {
        "last": random_keys(more),
        "rest": random_keys(more * (_TOKENS - 1)),
        "length": torch.full((more,), _TOKENS),
        "id": torch.arange(_FIRST + len(memory), _FIRST + count),
        "enabled": torch.ones(more, dtype=torch.bool),
        "threshold": torch.full((more,), limit),
    }
    return {
        name: torch.cat([held[name], new], 1 if held[name].dim() > 2 else 0) for name, new in added.items()
    }


def _row(plug: Any, before: frozenset[int], count: int, seconds: float) -> dict[str, Any]:
    memory = plug.method.memory
    begin = time.perf_counter()
    tensors = filled(memory, count, torch.Generator().manual_seed(count))
    made = time.perf_counter()
    memory.load_state_dict(tensors)
    loaded = time.perf_counter()
    cost = overhead(plug.model, plug.tokenizer, NEUTRAL, before, seconds=seconds).to_dict()
    return {
        "edits": count,
        "seconds_to_make": made - begin,
        "seconds_to_load": loaded - made,
        "key_bytes_per_edit": memory.nbytes / count,
    } | {
        name: {k: cost[name][k] for k in cost[name] if "ratio" in k or "ms" in k}
        for name in ("forward", "decode")
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="as memplug's commands take it")
    parser.add_argument(
        "--shape", choices=list(SHAPES), help="a model of this shape with random weights instead"
    )
    parser.add_argument("--counts", default="1000,10000,100000", help="edits held, with commas between")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each count")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(given)
    model, tokenizer = (
        build(args.shape, args.device, args.dtype)
        if args.shape
        else load_model(args.model, args.device, args.dtype)
    )
    before, rows = hooks_of(model), list[dict[str, Any]]()
    edits = [Edit(one.prompt, one.target, one.subject) for one in SINGLE]
    with memplug.attach(model, tokenizer, "llp", **({"value_steps": 1} if args.shape else {})) as plug:
        plug.edit(edits, progress=False)
        for count in map(int, args.counts.split(",")):
            rows.append(_row(plug, before, count, args.seconds))
            write(args.out, rows, **vars(args))
            print(rows[-1], flush=True)
    print(
        table(
            [
                "edits",
                "forward, times the bare model",
                "decode",
                "bare, ms",
                "bytes of keys an edit",
                "load, s",
            ],
            [
                [
                    f"{row['edits']:,}",
                    *(f"{row[name]['ratio']:.3f}" for name in ("forward", "decode")),
                    f"{row['forward']['bare_ms']:.1f} / {row['decode']['bare_ms_per_token']:.1f}",
                    f"{row['key_bytes_per_edit']:.0f}",
                    f"{row['seconds_to_load']:.1f}",
                ]
                for row in rows
            ],
        )
    )


if __name__ == "__main__":
    main()
