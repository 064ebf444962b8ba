"""Train a small Llama-architecture model on weighted lines, from any maker of lines.

What makes so small a model behave like a large one is here as far as it is not in the lines: embeddings at
standard deviation 1 and weak residual projections keep the early layers lexical. Matrices inside the layers
are trained by Muon (Jordan et al., 2024; step scaled to AdamW's as in Liu et al., 2025, arXiv:2502.16982),
embeddings, head and norms by AdamW. Knows nothing about what the lines say.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memplug.world.corpus import Piece, text_of

RESULTS = Path(__file__).resolve().parent / "results"
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
CHUNK = 64  # batches drawn, sorted by length and shuffled at a time


class Lines(Protocol):
    """An endless source of training lines."""

    def line(self) -> list[Piece]: ...


Source = Callable[[str, int], Lines]  # from a seed, for the training steps from the given one on


def add_options(parser: argparse.ArgumentParser, name: str, steps: int, vocabulary: int) -> None:
    """The options of every training script; ``name`` is that of its run folder and results file."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--run", type=Path, default=Path("runs") / name, help="folder of log and checkpoint")
    parser.add_argument("--results", type=Path, default=RESULTS / f"{name}.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=vocabulary)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--decay-from", type=float, default=0.4, help="share of the run at full step size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compile", action="store_true", help="a fifth faster on a CPU, after minutes of compiling"
    )
    parser.add_argument("--checkpoint-every", type=int, default=500)


def make_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the texts; a first word is encoded like one after a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=256
    )


def make_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Embeddings at std 1 and weak residual projections: early layers stay lexical, as in large models."""
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config._attn_implementation = "eager"  # the fused kernel's backward is slower on short CPU rows
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=1.0 if "embed_tokens" in name else args.hidden**-0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.2)
        model.lm_head.weight.mul_(0.2)
    return model


class Encoder:
    """Lines to token ids and loss weights; a token weighs what the piece with its last letter weighs."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.inner = tokenizer.backend_tokenizer
        self.bos, self.eos = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)

    def __call__(self, lines: list[list[Piece]]) -> list[tuple[list[int], list[float]]]:
        encoded = self.inner.encode_batch([text_of(line) for line in lines], add_special_tokens=False)
        rows = []
        for line, found in zip(lines, encoded, strict=True):
            ends = list(accumulate(len(piece.text) for piece in line))
            weights = [line[bisect_left(ends, stop)].weight for _, stop in found.offsets]
            rows.append(([self.bos, *found.ids, self.eos], [0.0, *weights, 1.0]))
        return rows


def batches(
    source: Source, seed: int, start: int, encoder: Encoder, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids [B,T], weights [B,T]) of about ``size`` tokens, lines of like length together."""
    chunk = start // CHUNK
    skip = start % CHUNK
    while True:
        lines, tokens = source(f"{seed} {chunk}", chunk * CHUNK), 0
        rows: list[tuple[list[int], list[float]]] = []
        while tokens < size * CHUNK * 1.1:  # some are left over, so that every chunk is whole
            more = encoder([lines.line() for _ in range(256)])
            rows += more
            tokens += sum(len(ids) for ids, _ in more)
        rows.sort(key=lambda row: len(row[0]))
        made: list[list[tuple[list[int], list[float]]]] = [[]]
        for row in rows:
            if len(row[0]) * (len(made[-1]) + 1) > size * 1.05:
                made.append([])
            made[-1].append(row)
        random.Random(chunk).shuffle(made)
        for group in made[skip:CHUNK]:
            width = max(len(ids) for ids, _ in group)
            ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group])
            weights = torch.tensor([w + [0.0] * (width - len(w)) for _, w in group])
            yield ids, weights
        chunk, skip = chunk + 1, 0


def schedule(step: int, args: argparse.Namespace) -> float:
    """Step size factor: 100 steps up, flat, then straight down to zero."""
    flat = args.decay_from * args.steps
    down = 1.0 if step < flat else max(0.0, (args.steps - step) / max(1.0, args.steps - flat))
    return min(1.0, (step + 1) / 100) * down


def optimizers(model: LlamaForCausalLM, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    tables = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." not in name]
    norms = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": tables, "weight_decay": args.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(inner, lr=args.lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98)),
    ]


def train(
    model: LlamaForCausalLM, encoder: Encoder, source: Source, args: argparse.Namespace
) -> dict[str, float]:
    """Run or resume; returns tokens per second and wall time in seconds, both of all runs together."""
    args.run.mkdir(parents=True, exist_ok=True)
    saved, step, seconds, tokens = args.run / "checkpoint.pt", 0, 0.0, 0
    optims = optimizers(model, args)
    if saved.exists():
        state = torch.load(saved, weights_only=True, map_location=args.device)
        model.load_state_dict(state["model"])
        for optim, kept in zip(optims, state["optimizers"], strict=True):
            optim.load_state_dict(kept)
        step, seconds, tokens = state["step"], state["seconds"], state["tokens"]
    forward = torch.compile(model, dynamic=True) if args.compile else model
    stream = batches(source, args.seed, step, encoder, args.batch_tokens)
    log, began = (args.run / "log.jsonl").open("a"), time.monotonic() - seconds
    while step < args.steps:
        ids, weights = (x.to(args.device) for x in next(stream))
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = args.lr * schedule(step, args)
        with torch.autocast(args.device.partition(":")[0], dtype=torch.bfloat16):
            logits = forward(input_ids=ids[:, :-1], use_cache=False).logits
        losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        step, tokens, seconds = step + 1, tokens + ids.numel(), time.monotonic() - began
        if step % 25 == 0:
            answers = losses[weight == 1].mean().item()
            record = {
                "step": step,
                "loss": loss.item(),
                "answers": answers,
                "tokens": tokens,
                "seconds": seconds,
            }
            print(json.dumps({k: round(v, 4) for k, v in record.items()}), file=log, flush=True)
        if step % args.checkpoint_every == 0 or step == args.steps:
            kept = {"model": model.state_dict(), "optimizers": [optim.state_dict() for optim in optims]}
            torch.save(
                {**kept, "step": step, "seconds": seconds, "tokens": tokens}, saved.with_suffix(".new")
            )
            saved.with_suffix(".new").replace(saved)
    return {"tokens": tokens, "seconds": round(seconds, 1), "tokens_per_second": round(tokens / seconds, 1)}


def run(args: argparse.Namespace, texts: Callable[[], Iterable[str]], source: Source) -> dict[str, float]:
    """Train, or go on training, and store the model in half precision with its tokenizer in ``args.out``.

    Args:
        texts: what a tokenizer is made from, where the run has none yet.
        source: makes the training lines of a seed and a step.
    """
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if not (args.run / "tokenizer").exists():  # a resumed run keeps its own, whatever the text is now
        make_tokenizer(texts(), args.vocabulary).save_pretrained(args.run / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(args.run / "tokenizer")
    model = make_model(args, tokenizer).to(args.device)
    trained = train(model, Encoder(tokenizer), source, args)
    model.eval().cpu().half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    return trained


def report(args: argparse.Namespace, trained: dict[str, float], measured: dict[str, Any]) -> None:
    """Write settings, training and measurements to ``args.results``, and print them."""
    settings = {name: value for name, value in vars(args).items() if not isinstance(value, Path)}
    results = {"settings": settings, "training": trained, **measured}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
