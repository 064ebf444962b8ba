"""Time and memory of all methods on a large model's shape with random weights; what it answers means nothing.

    python -m benchmarks.large --shape llama-3-8b --device cuda --dtype float16
    python -m benchmarks.large --shape wide --methods llp,elder,rledit

A method that does not fit is a row with its error. Fitted editors take two steps of fitting, enough to time
one. Values and gates are trained to their last step, as random weights never say what they are told, so that
seconds an edit are upper bounds. Results go to ``benchmarks/results/large-<shape>.json``.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import memplug
from memplug import world

from .common import RESULTS, write

__all__ = ["SHAPES", "build", "main", "row"]

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
    },
    "wide": {
        "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 8192, "max_position_embeddings": 2048,
    },
    "small": {
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 256,
    },
}  # fmt: skip
METHODS = "llp,elder,grace,icl,ultraedit,mend,malmen,rledit,hiedit,smedit,finetune,lora,memit,alphaedit"


def build(shape: str, device: str, dtype: str) -> tuple[Any, Any]:
    """A Llama of this shape with random weights, made where it stays, and the embedded model's tokenizer."""
    _, tokenizer = world.load()
    config = LlamaConfig(
        **SHAPES[shape],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval(), tokenizer


def row(run: dict[str, Any]) -> dict[str, Any]:
    """What one method costs, or why it has no figures."""
    if run["status"] != "done":
        return {"method": run["method"], "error": f"{run['error']['type']}: {run['error']['message']}"}
    cost, fit = run["cost"], run["fit"] or {}
    return {
        "method": run["method"],
        "seconds_per_edit": cost["seconds_per_edit"],
        "seconds_per_fitting_step": fit["seconds"] / fit["steps"] if fit.get("steps") else None,
        "forward_ratio": cost["forward"]["ratio"],
        "forward_bare_ms": cost["forward"]["bare_ms"],
        "decode_ratio": cost["decode"]["ratio"],
        "decode_bare_ms": cost["decode"]["bare_ms_per_token"],
        "peak_device_bytes": cost["peak_device_bytes"],
        "peak_host_bytes": cost["peak_host_bytes"],
        "fit_peak_device_bytes": fit.get("peak_device_bytes"),
        "bytes_per_edit": cost["bytes_per_edit"],
        "parameters": cost["parameters"],
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One comparison a method, so that one that runs out of memory leaves nothing to the next."""
    model, tokenizer = build(args.shape, args.device, args.dtype)
    rows = []
    for method in args.methods.split(","):
        found = memplug.compare(
            model,
            tokenizer,
            world.cases(args.edits),
            methods=[method],
            batch=args.batch,
            probes=1,
            points=[args.edits],
            max_new_tokens=0,
            batch_size=args.batch,
            fit_cases=world.cases(80, split="train"),
            fit_steps=2,
            progress=False,
        )
        rows.append(row(found.results["runs"][0]))
        print(rows[-1], flush=True)
        write(args.out, rows, **vars(args), parameters=model.num_parameters())
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="wide")
    parser.add_argument("--methods", default=METHODS, help="names with commas between")
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, help="the file of results")
    args = parser.parse_args(given)
    args.out = args.out or RESULTS / f"large-{args.shape}.json"
    measure(args)


if __name__ == "__main__":
    main()
