"""What single tokens are: those that go on a word, and those that stand for no words."""

from __future__ import annotations

import unicodedata
from typing import Any

import torch
from torch import Tensor

__all__ = ["going_on", "is_spaced", "media_ids"]

_MEDIA = ("image", "img", "vision", "video", "frame", "audio", "sound", "boi", "eoi", "boa", "eoa")


def is_spaced(text: str) -> bool:
    """Whether a text ends in a letter or digit of a script that puts blanks between words."""
    name = unicodedata.name(text[-1:], "") if text else ""
    return name.startswith(("LATIN", "GREEK", "CYRILLIC", "DIGIT"))


def going_on(tokenizer: Any) -> Tensor:
    """BoolTensor, by id: the tokens that go on a word that stands before them."""
    front = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    rows = [front, *([*front, token] for token in range(len(tokenizer)))]
    told, *pieces = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    begins = (piece[len(told) : len(told) + 1] for piece in pieces)
    return torch.tensor([one.isalnum() or one == "\ufffd" for one in begins])  # a part of a letter


def media_ids(config: Any) -> tuple[int, ...]:
    """The ids that stand for images, videos and sounds, and around them, as a model's config names them."""
    named = {
        name: value
        for name, value in config.to_dict().items()
        if name.startswith(_MEDIA) and name.endswith(("_token_id", "_token_index"))
    }
    return tuple(sorted({value for value in named.values() if isinstance(value, int)}))
