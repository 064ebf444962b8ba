"""Tiny random models that see, and prompts with an image in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.every_model import tiny

KINDS = {
    "llava": 49,
    "qwen2_vl": 4,
    "qwen2_5_vl": 4,
    "qwen3_vl": 4,
    "idefics3": 1,
    "smolvlm": 1,
    "gemma3": 49,
}
"""Kinds of models, and how many tokens stand for an image."""


def build(kind: str, vocab_size: int) -> Any:
    """A model with a text decoder and a vision tower."""
    return tiny.build(kind, vocab_size, seeing=True)


def image(kind: str, seed: int = 0) -> dict[str, Tensor]:
    """An image, as the model of this kind takes it."""
    draw = torch.Generator().manual_seed(seed)
    if kind.startswith("qwen"):
        size = 16 if kind == "qwen3_vl" else 14
        pixels = torch.randn(16, 3 * 2 * size * size, generator=draw)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]])}
    shape = (1, 1, 3, 64, 64) if kind in ("idefics3", "smolvlm") else (1, 3, 224, 224)
    return {"pixel_values": torch.randn(shape, generator=draw)}


def around(model: Any, kind: str, tokenizer: Any, before: str, after: str) -> list[int]:
    """Ids of a prompt with an image between two texts."""
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return [*tokenizer(before)["input_ids"], *[model.config.image_token_id] * KINDS[kind], *ids]


def inputs(model: Any, kind: str, row: list[int]) -> dict[str, Tensor]:
    """What the model is called with for a prompt and an image."""
    ids = torch.tensor([row])
    seen = (ids == model.config.image_token_id).long()
    types = {"mm_token_type_ids": seen} if kind.startswith("qwen") else {}
    types |= {"token_type_ids": seen} if kind == "gemma3" else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | types | image(kind)
