"""The published LLP procedure as a literal loop, and how much faster the library learns an edit.

    python -m benchmarks.literal_llp --model smollm2 --edits 3

One edit at a time; every step runs the whole model over every row with the value concatenated in front
of the tokens at layer z; logits at all positions; keys are trained block by block against a broadcast
of all earlier keys. Written for Llama models, as the published code has one class per architecture.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import memplug
from memplug import pretrained
from memplug.edits import Edit
from memplug.methods.llp import LLPConfig
from memplug.text.tokens import Text

from .common import table
from .real.facts import own

__all__ = ["LiteralLLP", "main"]


def forward(model: Any, ids: Tensor, mask: Tensor, layer: int, value: Tensor | None) -> Tensor:
    """Logits [B,T,V] of a whole forward, with ``value`` [b,D] concatenated at the input of ``layer``."""
    decoder = model.model
    hidden = decoder.embed_tokens(ids)
    for index, block in enumerate(decoder.layers):
        if index == layer and value is not None:
            hidden = torch.cat([value.expand(len(ids), -1, -1), hidden], dim=1)
            mask = F.pad(mask, (len(value), 0), value=1)
        length = hidden.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
        seen = seen | torch.eye(length, dtype=torch.bool)  # a padded query sees itself, or it is NaN
        rotary = decoder.rotary_emb(hidden, torch.arange(length)[None])
        hidden = block(hidden, attention_mask=seen, position_embeddings=rotary)
    logits: Tensor = model.lm_head(decoder.norm(hidden))
    return logits if value is None else logits[:, len(value) :]


@dataclass
class LiteralLLP:
    """Learns edits one by one; ``values`` [n,b,D] and ``keys`` [R,n,D] grow by one each time."""

    model: Any
    text: Text
    config: LLPConfig
    prefixes: list[str]
    values: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)

    def edit(self, edit: Edit) -> int:
        """Learn one edit; returns the steps its value took."""
        pairs = [self.text.pair(f"{prefix} {edit.prompt}", edit.target) for prefix in self.prefixes]
        batch = self.text.batch([pair.ids for pair in pairs])
        value = self._initial(edit).requires_grad_(True)
        optimizer = torch.optim.Adam([value], lr=self.config.value_lr)
        losses: list[float] = []
        while len(losses) < self.config.value_steps and (not losses or losses[-1] >= self.config.stop_loss):
            logits = forward(self.model, batch.ids, batch.mask, self.config.recall_layer or 0, value)
            loss = torch.zeros(())
            for row, pair in enumerate(pairs):
                target = torch.tensor(pair.ids[pair.start :])
                loss = loss + F.cross_entropy(logits[row, pair.start - 1 : len(pair.ids) - 1], target)
            loss = loss / len(pairs)
            loss = loss + self.config.norm_penalty * value.norm() / value.detach().norm() ** 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        self.values.append(value.detach())
        self._key(edit)
        return len(losses)

    def _initial(self, edit: Edit) -> Tensor:
        ids = torch.tensor([self.text.pair(edit.prompt, edit.target).ids])
        with torch.no_grad():
            states = self.model(ids, output_hidden_states=True).hidden_states
        return states[self.config.recall_layer or 0][0, -self.config.n_values :].clone()

    def _key(self, edit: Edit) -> None:
        layers = self.config.think_layers or ()
        queries = []
        for prefix in self.prefixes:
            text = prefix + edit.prompt
            at = text.index(str(edit.subject))
            ids, span = self.text.span(text, at, at + len(str(edit.subject)))
            with torch.no_grad():
                states = self.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            queries.append(torch.stack([states[layer + 1][0, span[-1]] for layer in layers]))
        own = torch.stack(queries, dim=1)  # [R,J,D]
        key = own[:, -1].clone().requires_grad_(True)
        if self.keys:
            self._contrast(key, own)
        self.keys.append(key.detach())

    def _contrast(self, key: Tensor, own: Tensor) -> None:
        optimizer = torch.optim.Adam([key], lr=self.config.key_lr)
        stored = torch.stack(self.keys, dim=1)  # [R,n,D]
        for layer in range(len(own)):
            for _ in range(self.config.key_steps):
                chosen = torch.randperm(stored.shape[1])[: self.config.negatives]
                rivals = stored[:, chosen][layer]
                near = F.cosine_similarity(key[layer][None, None], own[layer][None], dim=-1)
                far = F.cosine_similarity(key[layer][None, None], rivals[None], dim=-1)
                positive = (near / self.config.temperature).exp().mean()
                negative = (far / self.config.temperature).exp().mean()
                loss = -(positive / (positive + negative)).log()
                if float(loss.detach()) < 0.05:
                    break
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def main(given: list[str] | None = None) -> None:
    """Time the literal loop, the published preset and the defaults on the same facts, in one run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a Llama model, as `memplug.pretrained` loads it")
    parser.add_argument("--edits", type=int, default=3)
    args = parser.parse_args(given)
    model, tokenizer = pretrained.load(args.model)
    edits = [fact.edit for fact in own("tuning")[: args.edits]]
    seconds: dict[str, float] = {}
    with memplug.attach(model, tokenizer, preset="paper") as plug, plug.paused():
        method: Any = plug.method
        model.requires_grad_(False)  # as in the published code: only the value is trained
        literal = LiteralLLP(model, Text(model, tokenizer), method.config, method._contexts())
        begin = time.perf_counter()
        for edit in edits:
            literal.edit(edit)
        seconds["the literal loop"] = time.perf_counter() - begin
    for preset in ("paper", "default"):
        for size, name in ((1, "one by one"), (len(edits), "together")):
            with memplug.attach(model, tokenizer, preset=preset) as plug:
                plug.edit("The capital of Iceland is", "Bergen", "Iceland", progress=False)  # calibrates
                begin = time.perf_counter()
                for at in range(0, len(edits), size):
                    plug.edit(edits[at : at + size], progress=False)
                seconds[f"{preset}, {name}"] = time.perf_counter() - begin
    base = seconds["the literal loop"]
    rows = [[name, f"{it / len(edits):.2f}", f"{base / it:.1f}"] for name, it in seconds.items()]
    print(table(["", "seconds an edit", "times faster"], rows))


if __name__ == "__main__":
    main()
