"""ELDER on a tiny model: constants that learn quickly, edits, and what its tests ask."""

from __future__ import annotations

import torch

from memplug import Edit

QUICK = {
    "edit_layers": (2, 3),
    "n_experts": 16,
    "top_k": 2,
    "rank": 8,
    "lr": 0.02,
    "batch_size": 4,
    "replay": 4,
    "steps": 120,
    "stop_loss": 0.05,
    "train_stop": True,
    "n_others": 2,
    "n_mentions": 0,
    "other_accepts": 0.5,
}
"""Constants that learn quickly."""
ROW = {
    "scope": "row",
    "epsilon": 2,
    "edit_layers": (2, 3),
    "n_experts": 16,
    "top_k": 2,
    "rank": 8,
    "lr": 1e-2,
    "batch_size": 4,
    "steps": 120,
    "stop_loss": 0.02,
    "train_stop": True,
}
"""The published procedure, with constants that learn quickly."""

ADA = Edit("Where was Ada Quill born?", "Zarnow", "Ada Quill")


TAM = Edit("Tam Wickes was taught by", "Marrow", "Tam Wickes")


ORLO = Edit("The Orlo Bridge Company is based in", "Vestland", "Orlo Bridge Company")


def encode(tokenizer, *texts, side="left"):
    tokenizer.padding_side = side
    out = tokenizer(list(texts), return_tensors="pt", padding=True)
    tokenizer.padding_side = "left"
    return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}


def answer(model, tokenizer, text, **given):
    inputs = encode(tokenizer, text)
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False, **given)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@torch.no_grad()
def logits(model, **inputs):
    return model(**inputs).logits


def learned(plug):
    return [tensor.clone() for tensor in plug.method.experts.tensors]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
