"""Texts to padded batches of token ids: the right token between prompt and target, rows sorted by length.

The tokenizer's padding settings are neither used nor changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..layers import text_config

__all__ = [
    "at_least_one",
    "batches",
    "check_room",
    "encode",
    "encode_joined",
    "end_ids",
    "pad_id",
    "pad_rows",
    "shorten",
]


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens at which generation ends: the model's, or else the tokenizer's end-of-text token."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = tokenizer.eos_token_id if ids is None else ids
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, special tokens in front as the tokenizer puts them, none behind."""
    empty = next((i for i, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise ValueError(f"prompt {empty} is empty ({texts[empty]!r}); give it some text or leave it out")
    if not texts:
        return []
    rows = [list(ids) for ids in tokenizer(list(texts))["input_ids"]]
    # Some tokenizers close every text; the model has to go on from here.
    return [ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids for ids in rows]


def encode_joined(
    tokenizer: Any, prompts: Sequence[str], targets: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts, and of targets as they go on after them.

    The prompt's tokens are those of the prompt alone, which is what generation starts from. Where the
    tokenizer would merge across the border, the target is encoded by itself.
    """
    for prompt, target in zip(prompts, targets, strict=True):
        if not target.strip():
            raise ValueError(f"the target of {prompt!r} is empty; give it some text or leave the probe out")
    heads = encode(tokenizer, prompts)
    tails = []
    joined = encode(
        tokenizer, [f"{prompt} {target}" for prompt, target in zip(prompts, targets, strict=True)]
    )
    for head, both, target in zip(heads, joined, targets, strict=True):
        tail = both[len(head) :] if both[: len(head)] == head else []
        tail = tail or list(tokenizer(f" {target}", add_special_tokens=False)["input_ids"])
        if not tail:
            raise ValueError(f"the target {target!r} has no tokens in this tokenizer; choose another text")
        tails.append(tail)
    return heads, tails


def batches(rows: Sequence[Sequence[int]], size: int, what: str, progress: bool) -> Iterator[list[int]]:
    """Indices of the rows, longest first, ``size`` at a time."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with tqdm(total=len(rows), desc=what, disable=not progress) as bar:
        for start in range(0, len(order), size):
            yield order[start : start + size]
            bar.update(len(order[start : start + size]))


def pad_rows(rows: Sequence[list[int]], pad: int, model: Any, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask, LongTensors [B,T] on the device where the model reads its input."""
    width = max(len(row) for row in rows)
    gaps = [width - len(row) for row in rows]
    ids = [[pad] * gap + row if left else row + [pad] * gap for row, gap in zip(rows, gaps, strict=True)]
    mask = [
        [0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap
        for row, gap in zip(rows, gaps, strict=True)
    ]
    device = model.get_input_embeddings().weight.device
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def pad_id(model: Any, tokenizer: Any) -> int:
    """A token to fill gaps with; it is masked, so any will do."""
    return next((i for i in (tokenizer.pad_token_id, *sorted(end_ids(model, tokenizer))) if i is not None), 0)


def check_room(model: Any, lengths: Sequence[int], prompts: Sequence[str]) -> None:
    """Raise ValueError if the longest row, prompt and answer together, is beyond the model's context."""
    room = getattr(text_config(model), "max_position_embeddings", None)
    worst = max(range(len(lengths)), key=lengths.__getitem__, default=None)
    if room is not None and worst is not None and lengths[worst] > room:
        raise ValueError(
            f"the prompt {shorten(prompts[worst])!r} and its answer take up to {lengths[worst]} tokens, the "
            f"model's context is {room}; shorten the prompt, leave it out or lower max_new_tokens"
        )


def shorten(text: str, width: int = 60) -> str:
    """The text for a message, its end left out where it is long."""
    return text if len(text) <= width else text[: width - 1] + "…"


def at_least_one(**numbers: int) -> None:
    """Raise ValueError for the first of the named numbers that is not a whole number of at least 1."""
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
