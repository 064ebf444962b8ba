"""Small plugs of the methods that locate and solve (MEMIT, AlphaEdit), and what a module reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from families import TEXTS, build, lexical

import memplug
from memplug.edits import Edit

EDITS = [
    Edit("Where was Ada Quill born?", "Zarnow", "Ada Quill", "a"),
    Edit("The founder of Orlo Bridge is", "Tam", "Orlo Bridge", "b"),
    Edit("In Vestland, the capital is", "Marrow", "Vestland", "c"),
]
QUICK: dict[str, Any] = {
    "ranges": (("down", 0.0, 0.5),),
    "covariance": tuple(TEXTS),
    "n_prefixes": 2,
    "prefix_tokens": 4,
    "steps": 6,
    "guard_every": 0,
}


def maker(make_tokenizer: Callable[..., Any]) -> Callable[..., memplug.Plug]:
    """``make(method, family="llama", seed=0, teachable=False, **config)`` attaches to a fresh model."""
    tokenizer = make_tokenizer(TEXTS, 300)

    def make(
        method: str, family: str = "llama", seed: int = 0, teachable: bool = False, **config: Any
    ) -> memplug.Plug:
        if teachable:
            model = lexical(family, len(tokenizer), seed=seed)
        else:
            model = build(family, seed=seed, vocab_size=len(tokenizer))
        return memplug.attach(model, tokenizer, method, **(QUICK | config))

    return make


def read(model: Any, module: Any, ids: list[int]) -> torch.Tensor:
    """[T,d_k]: what a module reads on one text, by a plain forward."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0].double()))
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
    finally:
        handle.remove()
    return seen[0]
