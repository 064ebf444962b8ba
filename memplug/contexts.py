"""Texts sampled from the base model itself: contexts for a prompt, statements about a subject, rephrasings.

An editor has to know in which contexts an edit must hold and what must not change, and needs no data
set for it: the model can be asked. Every draw has its own seed, made from the configuration's seed and
the text, so that what is sampled for one edit does not depend on the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .naming import names
from .pretrained import cache, is_large
from .text import Text, TopKSampler

__all__ = ["Question", "Sampled", "ordinary_texts", "sample_about", "sample_prefixes"]

_SENTENCE = re.compile(r"(?<=[.?!])\s+|\n+")
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


class Question(NamedTuple):
    """What is edited: a prompt about a subject, and the base model's answer to it."""

    subject: str
    prompt: str
    answer: str


class Sampled(NamedTuple):
    """What the base model says about a question's subject.

    Attributes:
        statements: sentences that leave the answer to the question out.
        restatements: what stands before the answer in sentences that give it: other ways to ask.
    """

    statements: list[str]
    restatements: list[str]


def _seed(*parts: object) -> int:
    return zlib.crc32("\x1f".join(map(str, parts)).encode())


def sample_prefixes(text: Text, count: int, tokens: int, top_k: int, seed: int) -> list[str]:
    """``count`` pieces of running text of at most ``tokens`` tokens, sampled from the start of a text.

    Of a model that says nothing there (it stops at once, or at blanks), pieces of a few plain sentences. What
    a large model says is kept in the user's cache folder, by its fingerprint and the tokenizer's, since it
    takes minutes; a file that cannot be read or written costs time and nothing else.
    """
    if not count:
        return []
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
    return sample_prefixes(text, 64, 64, 200, seed)


def _file(text: Text, *asked: int) -> Path:
    """Where the samples of a model are kept."""
    from .storage import fingerprint  # above this room; it is asked for a name only

    named = (*asked, text.bos_id, tuple(text.eos_ids))
    both = fingerprint(text.model, text.tokenizer)
    return cache() / "samples" / f"{both}-{_seed(*named):08x}.json"


def sample_about(
    text: Text,
    questions: Sequence[Question],
    count: int,
    restated: int,
    tokens: int,
    top_k: int,
    seed: int,
    batch_size: int = 192,
) -> list[Sampled]:
    """What the base model says about each question's subject.

    Up to ``count`` different statements, and up to ``restated`` restatements of the question.

    The base model continues the subject's name, and the question with its own answer (models that
    have seen several facts about one thing in a row go on with others). The continuation is cut into
    sentences, a question keeping the sentence after it; kept are those that name the subject, say
    something of it and differ from the prompt. One that contains the base model's answer restates the
    question if the subject comes first, up to the answer; the others are statements. Of many, those that
    share the fewest words are taken.
    """
    jobs = [
        (owner, opening, draw)
        for owner, question in enumerate(questions)
        for opening in (question.subject, f"{question.prompt} {question.answer}.")
        for draw in range(count)
    ]
    jobs.sort(key=lambda job: len(job[1]))  # rows of like length lie in one batch
    said = [Sampled([], []) for _ in questions]
    for at in range(0, len(jobs), batch_size):
        part = jobs[at : at + batch_size]
        starts = [text.encode(opening) for _, opening, _ in part]
        sampler = TopKSampler([_seed(seed, opening, draw) for _, opening, draw in part], tokens, top_k)
        rows = text.generate(starts, tokens, choose=sampler)
        for (owner, _, _), start, row in zip(part, starts, rows, strict=True):
            more = _about(text.decode(start + row), questions[owner])
            said[owner].statements.extend(more.statements)
            said[owner].restatements.extend(more.restatements)

    def chosen(pieces: list[str], most: int, subject: str) -> list[str]:
        return _spread(sorted(dict.fromkeys(pieces), key=lambda piece: _seed(seed, piece)), most, subject)

    return [
        Sampled(chosen(one.statements, count, q.subject), chosen(one.restatements, restated, q.subject))
        for one, q in zip(said, questions, strict=True)
    ]


def _about(whole: str, question: Question) -> Sampled:
    sentences = [sentence.strip() for sentence in _SENTENCE.split(whole)]
    answer = re.compile(rf"(?<!\w){re.escape(question.answer)}(?!\w)", re.IGNORECASE)
    said = Sampled([], [])
    for i, sentence in enumerate(sentences):
        piece = (
            f"{sentence} {sentences[i + 1]}"
            if sentence.endswith("?") and i + 1 < len(sentences)
            else sentence
        )
        if (
            not names(piece, question.subject)
            or piece == question.subject
            or piece.startswith(question.prompt)
        ):
            continue
        given = answer.search(piece) if question.answer else None
        if given is None:
            if not _is_list(piece, question.subject):
                said.statements.append(piece)
            continue
        front = piece[: given.start()].rstrip()
        if names(front, question.subject) and front != question.subject:
            said.restatements.append(front)
    return said


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
