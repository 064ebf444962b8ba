"""The calibration of a model: its layers' ordinary states, and the thresholds that follow from them."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...calibration import Calibration, Sample, chance_threshold, whitening
from ...chat import in_chat
from ...contexts import sample_prefixes
from ...pretrained import cache
from ...questions import Lexicon, Question, likeness, rarity
from ...text import Text
from ..base import Host
from .config import LLPConfig
from .keys import think_states
from .lessons import other_lines
from .passes import Line
from .wordings import CHAT, FRONTS, MENTIONS, NAMES, PLAIN, REQUESTS, SYSTEM, TALK

__all__ = ["calibrate", "calibrated", "question_of", "questions_of"]

_FORMAT = 3  # of what is calibrated; another one is made anew
_LARGE = 50_000_000  # parameters from which on a calibration takes seconds
_TEXTS = 24  # texts that the model itself samples
_LENGTH = 96  # their tokens
_BATCH = 16
_FIRST = 512  # tokens that are tried as the first of a text
_PART = 12  # tokens of a sampled text that count as a text of their own
_SAME = 0.02  # share of pairs of neutral questions about a subject that ask the same
_PASSING = (
    0.01  # share of pairs of a question and a passing mention that are more alike than `Calibration.told`
)


def calibrated(host: Host, config: LLPConfig, think: Sequence[int], relation: int) -> Calibration:
    """`calibrate`, or what it gave before: that of a large model is kept in the user's cache folder.

    It is found by the model's fingerprint and by everything that it depends on. A file that cannot be read or
    written costs time and nothing else.
    """
    if sum(p.numel() for p in host.model.parameters()) < _LARGE:
        return calibrate(host, config, think, relation)
    from ...storage import fingerprint  # above this room; it is asked for a name only

    layers = (*think, relation)
    asked = (_FORMAT, layers, config.rank, config.quorum, config.false_accepts)
    accepts = (config.plain_accepts, config.other_accepts)
    texts = (PLAIN, CHAT, FRONTS, MENTIONS, REQUESTS, NAMES, SYSTEM, TALK)
    named = (*asked, *accepts, config.sample_top_k, config.seed, len(host.text.tokenizer), texts)
    file = cache() / "calibrations" / f"{fingerprint(host.model)}-{zlib.crc32(repr(named).encode()):08x}"
    with contextlib.suppress(OSError, SafetensorError, ValueError):
        widths = (host.anatomy.width, min(host.anatomy.width, config.rank), host.text.embed([0]).shape[1])
        return Calibration.of(load_file(file), layers, *widths).to(host.text.device)
    made = calibrate(host, config, think, relation)
    with contextlib.suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        save_file({name: t.contiguous() for name, t in made.tensors().items()}, part)
        part.replace(file)
    return made


def calibrate(host: Host, config: LLPConfig, think: Sequence[int], relation: int) -> Calibration:
    """Read ordinary text, and set the thresholds to the config's false-accept rates.

    The text is the model's own (sampled without a prompt), so that any language and domain is met, and a
    short neutral text, so that sentences and questions about things are among it.
    """
    layers = (*think, relation)
    texts = sample_prefixes(host.text, _TEXTS, _LENGTH, config.sample_top_k * 40, config.seed)
    rows = [host.text.encode(text) for text in texts]
    sample = _sample(host, layers, [*rows, *map(host.text.encode, _neutral())])
    rank = min(host.anatomy.width, config.rank)
    roots = [whitening(states, rank) for states in sample.states]
    first = [whitening(states, rank) for states in sample.first]
    mean, root, first_mean, first_root = (
        torch.stack([pair[i] for pair in part]) for part in (roots, first) for i in (0, 1)
    )
    spaces = (mean, root, first_mean, first_root)
    made = Calibration(layers, *spaces, 0.0, _lexicon(host, rows, rank), (0.0, 0.0), 1.0, 1.0, ())
    units = torch.stack([made.apply(i, states[None])[0] for i, states in enumerate(sample.states[:-1])])
    quorum = max(1, math.ceil(config.quorum * len(think)))
    threshold = chance_threshold(units, sample, quorum, config.false_accepts, config.seed)
    made = replace(made, threshold=min(max(threshold, 0.05), 0.95)).to(host.text.device)
    return _relations(host, made, relation, (config.plain_accepts, config.other_accepts))


def _lexicon(host: Host, rows: Sequence[Sequence[int]], rank: int) -> Lexicon:
    """What ordinary text ``rows`` and the neutral statements and questions say of tokens."""
    neutral = [host.text.encode(wording.replace("{s}", NAMES[0])) for wording in (*PLAIN, *CHAT)]
    parts = [row[at : at + _PART] for row in rows for at in range(0, len(row), _PART)]
    tokens = [token for row in (*neutral, *rows) for token in row]
    embeddings = host.text.embed(tokens).float()
    mean, root = whitening(embeddings, min(rank, embeddings.shape[1]))
    return Lexicon(mean, root, *rarity(neutral, parts))


def _neutral() -> list[str]:
    """Ordinary sentences and questions."""
    about = [wording.replace("{s}", NAMES[i % len(NAMES)]) for i, wording in enumerate((*PLAIN, *CHAT))]
    joined = [" ".join(about[i : i + 4]) for i in range(0, len(about), 4)]
    return [*joined, " ".join(FRONTS), f"{SYSTEM} {TALK[0]} {TALK[1]}"]


def _sample(host: Host, layers: tuple[int, ...], rows: list[list[int]]) -> Sample:
    rows = sorted((row[: host.text.max_length - 1] for row in rows if len(row) > 2), key=len)
    kept: list[Tensor] = []
    where: list[int] = []
    words: list[str] = []
    for at in range(0, len(rows), _BATCH):
        part = rows[at : at + _BATCH]
        states = think_states(host, part, layers)
        for k, row in enumerate(part):
            kept.append(states[:, k, 1 : len(row)].float())
            where += [at + k] * (len(row) - 1)
            words += [_word(host.text, token) for token in row[1:]]
    return Sample(torch.cat(kept, 1), _first_states(host, layers), torch.tensor(where), words)


def _word(text: Text, token: int) -> str:
    decoded: str = text.tokenizer.decode([token])
    return decoded.strip().lower()


def _first_states(host: Host, layers: tuple[int, ...]) -> Tensor:
    """[n,M,D] of tokens spread evenly over the vocabulary, each alone."""
    total = min(len(host.text.tokenizer), host.text.model.get_input_embeddings().weight.shape[0])
    tokens = torch.linspace(0, total - 1, min(_FIRST, total)).long().unique().tolist()
    front = [] if host.text.bos_id is None else [host.text.bos_id]
    states = think_states(host, [[*front, token] for token in tokens], layers)
    return states[:, :, -1].float()


def _relations(host: Host, made: Calibration, relation: int, rates: tuple[float, float]) -> Calibration:
    """With the limits of likeness, and the neutral questions themselves.

    Of all pairs of questions about one subject the share ``rates`` exceeds the limit in plain text and the
    one in chat, and the share `_SAME` may well ask the same. Of pairs of a question and a text that names its
    subject in passing the share `_PASSING` exceeds the limit for sentences that are no questions.
    """
    text = host.text
    found: tuple[list[float], list[float]] = ([], [])
    passing: list[float] = []
    others: list[Question] = []

    def asked(name: str, wordings: Sequence[str], chat: bool) -> list[Question]:
        texts = [wording.replace("{s}", name) for wording in wordings]
        prompts = [*map(in_chat, texts)] if chat else texts
        return questions_of(host, made, other_lines(text, name, prompts), relation)

    def alike(one: Question, other: Question) -> float:
        return likeness(made.lexicon, text.embed, one, other)

    for name in NAMES[::4]:
        for chat in (False, True) if text.has_chat else (False,):
            questions = asked(name, (*PLAIN, *CHAT), chat)
            found[chat].extend(alike(*pair) for pair in itertools.combinations(questions, 2))
            remarks = asked(name, REQUESTS if chat else MENTIONS, chat)
            passing += [alike(*pair) for pair in itertools.product(questions, remarks)]
            if name == NAMES[0]:
                others += questions[len(PLAIN) :] if chat else questions[: len(PLAIN)]
    plain, chat_limit = (
        _quantile(some or found[0], 1 - rate) for some, rate in zip(found, rates, strict=True)
    )
    same, told = _quantile([*found[0], *found[1]], 1 - _SAME), _quantile(passing, 1 - _PASSING)
    return replace(made, relation=(plain, chat_limit), told=told, same=same, others=tuple(others))


def _quantile(numbers: Sequence[float], share: float) -> float:
    return float(torch.tensor(numbers, dtype=torch.float32).quantile(share))


@torch.no_grad()
def questions_of(
    host: Host, made: Calibration, lines: Sequence[tuple[Line, range, range, bool]], layer: int
) -> list[Question]:
    """The questions of lines, given each one's subject and words."""
    order = sorted(range(len(lines)), key=lambda i: len(lines[i][0].ids))
    out: dict[int, Question] = {}
    for at in range(0, len(order), _BATCH * 2):
        part = order[at : at + _BATCH * 2]
        states = think_states(host, [lines[i][0].ids for i in part], (layer,))[0]
        for k, i in enumerate(part):
            line, subject, words, chat = lines[i]
            some = [t for t in words if t not in subject]
            out[i] = question_of(host.text, made, line.ids, some, states[k][some], chat)
    return [out[i] for i in range(len(lines))]


def question_of(
    text: Text, made: Calibration, ids: Sequence[int], words: Sequence[int], states: Tensor, chat: bool
) -> Question:
    """The tokens ``words`` of a text as a question.

    Args:
        states: [W,D] their states in the last layer of ``made``.
    """
    begins = torch.tensor([[t == 0 and text.bos_id is None for t in words]])
    at = states[None].to(made.mean.device)
    units = made.apply(len(made.layers) - 1, at, begins.to(at.device))[0]
    return Question(tuple(ids[t] for t in words), units.half().cpu(), chat)
