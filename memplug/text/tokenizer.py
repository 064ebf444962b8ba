"""A tokenizer by itself: settings of its own, ids with their places in the text, and back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

__all__ = ["TokenizerError", "apart", "decoded", "with_offsets"]


class TokenizerError(ValueError):
    """The tokenizer does not fit the model, or a text does not fit the tokenizer."""


def apart(tokenizer: Any) -> Any:
    """The tokenizer with settings of its own for padding and truncation, which each call sets.

    A fast tokenizer keeps them where all its users set them: a thread that pads a batch would find them
    changed by another one that encodes a text meanwhile. Others are given back as they are.
    """
    inner = getattr(tokenizer, "_tokenizer", None)
    if inner is None or not getattr(tokenizer, "is_fast", False):
        return tokenizer
    made = copy.copy(tokenizer)
    made._tokenizer = copy.deepcopy(inner)
    return made


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of ids as it is, special tokens left out, ends stripped."""
    # Some tokenizers would take spaces before punctuation away, whatever the tokens say.
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()


def with_offsets(tokenizer: Any, text: str, special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a text, and where in it each of them begins and ends.

    Args:
        special: with the special tokens in front; those behind are left out, as they would end a prompt.
    """
    if getattr(tokenizer, "is_fast", False):
        out = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
        ids, offsets = list(out["input_ids"]), [(int(a), int(b)) for a, b in out["offset_mapping"]]
    else:
        ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
        offsets = _aligned(tokenizer, ids, text, special)
    ending = set(tokenizer.all_special_ids) if special else set()
    while ids and ids[-1] in ending and offsets[-1][0] == offsets[-1][1]:
        ids, offsets = ids[:-1], offsets[:-1]
    return ids, offsets


def _aligned(tokenizer: Any, ids: list[int], text: str, special: bool) -> list[tuple[int, int]]:
    """Character offsets for tokenizers that give none: where each token's text is found next."""
    offsets, at = [], 0
    for token in ids:
        piece = decoded(tokenizer, [token]) if special else tokenizer.decode([token]).strip()
        found = text.find(piece, at) if piece else -1
        offsets.append((at, at) if found < 0 else (found, found + len(piece)))
        at = offsets[-1][1]
    return offsets
