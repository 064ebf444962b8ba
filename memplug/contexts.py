"""Texts sampled from the base model itself: contexts to put before a prompt, statements about a subject.

An editor has to know in which contexts an edit must hold and what must not change, and needs no data
set for it: the model can be asked. Every draw has its own seed, made from the configuration's seed and
the text, so that what is sampled for one edit does not depend on the others.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from .text import Text, TopKSampler

__all__ = ["Question", "sample_prefixes", "sample_statements"]

_SENTENCE = re.compile(r"(?<=[.?!])\s+|\n+")


class Question(NamedTuple):
    """What is edited: a prompt about a subject, and the base model's answer to it."""

    subject: str
    prompt: str
    answer: str


def _seed(*parts: object) -> int:
    return zlib.crc32("\x1f".join(map(str, parts)).encode())


def sample_prefixes(text: Text, count: int, tokens: int, top_k: int, seed: int) -> list[str]:
    """``count`` pieces of running text of at most ``tokens`` tokens, sampled from the start of a text."""
    if not count:
        return []
    start = [text.bos_id if text.bos_id is not None else (text.eos_ids or [text.pad_id])[0]]
    sampler = TopKSampler([_seed(seed, "prefix", i) for i in range(count)], tokens, top_k)
    rows = text.generate([start] * count, tokens, choose=sampler)
    texts = (text.decode(row).replace("\n\n", " ").strip() for row in rows)
    return [piece for piece in dict.fromkeys(texts) if piece]


def sample_statements(
    text: Text,
    questions: Sequence[Question],
    count: int,
    tokens: int,
    top_k: int,
    seed: int,
    batch_size: int = 192,
) -> list[list[str]]:
    """Up to ``count`` different statements about each question's subject that do not answer the question.

    The base model continues the subject's name, and the question with its own answer (models that
    have seen several facts about one thing in a row go on with others). The continuation is cut into
    sentences, a question keeping the sentence after it; kept are those that name the subject, say
    something of it, differ from the prompt, and do not contain the base model's answer to it. Of many,
    those that share the fewest words are taken.
    """
    jobs = [
        (owner, opening, draw)
        for owner, question in enumerate(questions)
        for opening in (question.subject, f"{question.prompt} {question.answer}.")
        for draw in range(count)
    ]
    jobs.sort(key=lambda job: len(job[1]))  # rows of like length lie in one batch
    found: list[list[str]] = [[] for _ in questions]
    for at in range(0, len(jobs), batch_size):
        part = jobs[at : at + batch_size]
        starts = [text.encode(opening) for _, opening, _ in part]
        sampler = TopKSampler([_seed(seed, opening, draw) for _, opening, draw in part], tokens, top_k)
        rows = text.generate(starts, tokens, choose=sampler)
        for (owner, _, _), start, row in zip(part, starts, rows, strict=True):
            found[owner] += _about(text.decode(start + row), questions[owner])
    ordered = [sorted(dict.fromkeys(pieces), key=lambda piece: _seed(seed, piece)) for pieces in found]
    return [_spread(pieces, count, q.subject) for pieces, q in zip(ordered, questions, strict=True)]


def _about(whole: str, question: Question) -> list[str]:
    sentences = [sentence.strip() for sentence in _SENTENCE.split(whole)]
    answer = re.compile(rf"(?<!\w){re.escape(question.answer)}(?!\w)", re.IGNORECASE)
    pieces = []
    for i, sentence in enumerate(sentences):
        piece = (
            f"{sentence} {sentences[i + 1]}"
            if sentence.endswith("?") and i + 1 < len(sentences)
            else sentence
        )
        if question.subject not in piece or piece == question.subject or piece.startswith(question.prompt):
            continue
        if not (question.answer and answer.search(piece)) and not _is_list(piece, question.subject):
            pieces.append(piece)
    return pieces


def _is_list(piece: str, subject: str) -> bool:
    """Whether a piece is names and nothing else: every word beside the subject is capitalised."""
    words = re.findall(r"[^\W\d_]+", piece.replace(subject, " "))
    cased = [word for word in words if word.lower() != word.upper()]
    return bool(cased) and not any(word[0].islower() for word in cased)


def _spread(pieces: Sequence[str], count: int, subject: str) -> list[str]:
    """``count`` of the pieces, each the one that shares the fewest words with those before it."""
    words = {piece: set(re.findall(r"\w+", piece.replace(subject, " ").lower())) for piece in pieces}
    chosen: list[str] = []
    rest = list(pieces)
    while rest and len(chosen) < count:
        shared = [max((_overlap(words[p], words[c]) for c in chosen), default=0.0) for p in rest]
        chosen.append(rest.pop(shared.index(min(shared))))
    return chosen


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(1, len(one | other))
