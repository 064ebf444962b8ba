"""Texts sampled from the base model itself: contexts for a prompt, and what is usual in it.

An editor needs no data set for them: the model can be asked. Every draw has its own seed, made from the
configuration's seed, so that what is sampled does not depend on the edits.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import zlib
from collections.abc import Sequence
from pathlib import Path

from ..pretrained import cache, is_large
from ..saving.plugs import fingerprint
from ..text.chat import Prompt
from ..text.tokens import Pair, Text, TopKSampler
from .relations import wordings

__all__ = ["ordinary_texts", "sample_texts", "text_rows"]

_PLAIN = (
    "The door stood open, and nobody was in the room.",
    "Rain fell on the roof for most of the night.",
    "They had bread, cheese and a little wine on the table.",
    "In spring the river carries more water than in summer.",
    "A letter lay under the lamp, but it had no address.",
    "We walked along the shore until it was dark.",
    "The train was late again, as it was every Monday.",
    "She put the books back where they had been.",
)


_REPLY, _TOP_K = 16, 20  # tokens of a reply at most, and how many it is drawn from


def _seed(*parts: object) -> int:
    return zlib.crc32("\x1f".join(map(str, parts)).encode())


def sample_texts(text: Text, count: int, tokens: int, top_k: int, seed: int) -> list[str]:
    """``count`` pieces of running text of at most ``tokens`` tokens, sampled from the start of a text.

    An encoder-decoder has no running text of its own: it gets neutral questions, see `text_rows`. Of a model
    that says nothing there (it stops at once, or at blanks), pieces of a few plain sentences. What
    a large model says is kept in the user's cache folder, by its fingerprint and the tokenizer's, since it
    takes minutes; a file that cannot be read or written costs time and nothing else.
    """
    if not count:
        return []
    if text.begins:
        known = wordings()
        return [one.about(one.name) for one in random.Random(seed).sample(known, min(count, len(known)))]
    file = _file(text, count, tokens, top_k, seed) if is_large(text.model) else None
    if file is not None:
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads(file.read_text())
            if isinstance(kept, list) and all(isinstance(piece, str) and piece for piece in kept) and kept:
                return kept
    start = [text.bos_id if text.bos_id is not None else (text.eos_ids or [text.pad_id])[0]]
    sampler = TopKSampler([_seed(seed, "prefix", i) for i in range(count)], tokens, top_k)
    rows = text.generate([start] * count, tokens, choose=sampler)
    texts = (text.decode(row).replace("\n\n", " ").strip() for row in rows)
    pieces = [piece for piece in dict.fromkeys(texts) if piece]
    if not pieces:
        pieces = [text.decode(text.encode(sentence)[: tokens + 1]) for sentence in _PLAIN[:count]]
    pieces = [piece for piece in dict.fromkeys(pieces) if piece]
    if file is not None:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{file.name}.{os.getpid()}")
            part.write_text(json.dumps(pieces))
            part.replace(file)
    return pieces


def ordinary_texts(text: Text, seed: int) -> list[str]:
    """Running text of the model's own, for what is usual in it: some 4,000 tokens."""
    return sample_texts(text, 64, 64, 200, seed)


def text_rows(text: Text, texts: Sequence[Prompt], seed: int) -> list[Pair]:
    """Running text as rows, of which all after the first token is said.

    What an encoder-decoder says is no running text: it reads each of ``texts``, and the row is a reply that
    is sampled, not necessarily of any token.
    """
    if not text.begins:
        return [Pair(text.encode(piece)[: text.max_length], 1) for piece in texts]
    prompts = [text.encode(piece) for piece in texts]
    sampler = TopKSampler([_seed(seed, "reply", i) for i in range(len(prompts))], _REPLY, _TOP_K)
    replies = text.generate(prompts, _REPLY, sampler) if prompts else []
    return [text.row(ids, said) for ids, said in zip(prompts, replies, strict=True)]


def _file(text: Text, *asked: int) -> Path:
    """Where the samples of a model are kept."""
    named = (*asked, text.bos_id, tuple(text.eos_ids))
    both = fingerprint(text.model, text.tokenizer)
    return cache() / "samples" / f"{both}-{_seed(*named):08x}.json"
