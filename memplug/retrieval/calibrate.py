"""The calibration of a model: its layers' ordinary states, and the thresholds that follow from them."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..interface import Host
from ..memory import quorum_of
from ..pretrained import cache, is_large
from ..saving.files import load_tensors
from ..saving.plugs import fingerprint
from ..text.chat import in_chat
from ..text.tokens import Text
from .calibration import Calibration, Sample, chance_thresholds, whitening
from .config import RetrievalConfig
from .keys import think_states
from .lessons import other_lines
from .neutral_texts import FRONTS, NAMES, SYSTEM, TALK
from .passes import Line
from .questions import Metric, metric, told
from .relations import wordings
from .samples import sample_texts

__all__ = ["calibrate", "calibrated", "states_of"]

_FORMAT = 6  # of what is calibrated; another one is made anew
_TEXTS = 24  # texts that the model itself samples
_LENGTH = 96  # their tokens
_EVERY = 6  # of the neutral questions, so many are one that is among the text
_DIRECTIONS = 128  # most in which the wordings of one question vary; more change nothing
_BATCH = 16
_FIRST = 512  # tokens that are tried as the first of a text
_SAME = 0.002  # share of pairs of different questions that are more alike than `Calibration.same`


def calibrated(host: Host, config: RetrievalConfig, think: Sequence[int], relation: int) -> Calibration:
    """`calibrate`, or what it gave before: that of a large model is kept in the user's cache folder.

    It is found by the fingerprint of model and tokenizer and by all constants that it depends on. A file that
    cannot be read or written costs time and nothing else.
    """
    if not is_large(host.model):
        return calibrate(host, config, think, relation)
    layers = (*think, relation)
    asked = (_FORMAT, layers, config.rank, config.quorum, config.false_accepts)
    texts = (wordings(), FRONTS, NAMES, SYSTEM, TALK)
    named = (*asked, config.other_accepts, config.sample_top_k, config.seed, texts)
    both = fingerprint(host.model, host.text.tokenizer)
    file = cache() / "calibrations" / f"{both}-{zlib.crc32(repr(named).encode()):08x}"
    with contextlib.suppress(OSError, SafetensorError, ValueError):
        widths = (host.architecture.width, min(host.architecture.width, config.rank))
        return Calibration.of(load_tensors(file), layers, *widths).to(host.text.device)
    made = calibrate(host, config, think, relation)
    with contextlib.suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        save_file({name: t.contiguous() for name, t in made.tensors().items()}, part)
        part.replace(file)
    return made


def calibrate(host: Host, config: RetrievalConfig, think: Sequence[int], relation: int) -> Calibration:
    """Read ordinary text, and set the thresholds to the config's false-accept rates.

    The text is the model's own (sampled without a prompt), so that any language and domain is met, and a
    short neutral text, so that sentences and questions about things are among it.
    """
    layers = (*think, relation)
    texts = sample_texts(host.text, _TEXTS, _LENGTH, config.sample_top_k * 40, config.seed)
    rows = [host.text.encode(text) for text in texts]
    sample = _sample(host, tuple(think), [*rows, *map(host.text.encode, _neutral())])
    rank = min(host.architecture.width, config.rank)
    roots = [whitening(states, rank) for states in sample.states]
    first = [whitening(states, rank) for states in sample.first]
    mean, root, first_mean, first_root = (
        torch.stack([pair[i] for pair in part]) for part in (roots, first) for i in (0, 1)
    )
    spaces = (mean, root, first_mean, first_root)
    blank = Metric(*(torch.zeros(0) for _ in range(4)))
    made = Calibration(layers, *spaces, 0.0, 0.0, blank, (0.0, 0.0), 1.0, torch.zeros(0), torch.zeros(0))
    units = torch.stack([made.apply(i, states[None])[0] for i, states in enumerate(sample.states)])
    quorum = quorum_of(config.quorum, len(think))
    least = chance_thresholds(units, sample, quorum, config.false_accepts, config.seed)
    one, several = (min(max(limit, 0.05), 0.95) for limit in least)
    made = replace(made, threshold=one, several=several).to(host.text.device)
    return _relations(host, made, relation, config.other_accepts)


def _neutral() -> list[str]:
    """Ordinary sentences and questions."""
    about = [one.about(NAMES[i % len(NAMES)]) for i, one in enumerate(wordings()[::_EVERY])]
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


def _relations(host: Host, made: Calibration, relation: int, rate: float) -> Calibration:
    """With the metric of questions, the limits of likeness, and the neutral questions themselves.

    Of the pairs of questions about subjects of one kind that ask different things, the share ``rate`` exceeds
    the limit, in plain text and in chat, and the share `_SAME` is as alike as if they asked the same.
    """
    text, known = host.text, wordings()
    labels = [(one.kind, one.relation) for one in known]
    forms = (False, True) if text.has_chat else (False,)

    states = []
    for chat in forms:
        prompts = [(one.name, one.about(one.name)) for one in known]
        lines = [other_lines(text, name, [in_chat(said) if chat else said])[0] for name, said in prompts]
        states.append(states_of(host, lines, relation))
    learned = metric([states[0], states[-1]], labels, _DIRECTIONS).to(host.text.device)
    asked = [[learned.question(one, chat) for one in states[chat]] for chat in forms]
    apart = torch.tensor([[a[0] == b[0] and a[1] != b[1] for b in labels] for a in labels])
    vectors = [torch.stack([one.vector for one in some]).cpu() for some in asked]
    others = [(some @ some.T)[apart] for some in vectors]
    plain, in_turn = (float(some.quantile(1 - rate)) for some in (others[0], others[-1]))
    return replace(
        made,
        metric=learned,
        relation=(plain, in_turn),
        same=float(torch.cat(others).quantile(1 - _SAME)),
        neutral=torch.stack(vectors).half().float(),
        labels=torch.tensor([[*dict.fromkeys(labels)].index(one) for one in labels]),
    )


@torch.no_grad()
def states_of(host: Host, lines: Sequence[tuple[Line, range, range, bool]], layer: int) -> list[Tensor]:
    """[W,D] float32 for each line, given its subject and words: the states of what it asks with."""
    order = sorted(range(len(lines)), key=lambda i: len(lines[i][0].ids))
    out: dict[int, Tensor] = {}
    for at in range(0, len(order), _BATCH * 2):
        part = order[at : at + _BATCH * 2]
        states = think_states(host, [lines[i][0].ids for i in part], (layer,))[0]
        for k, i in enumerate(part):
            _, subject, words, _ = lines[i]
            out[i] = states[k][told([t for t in words if t not in subject])].float()
    return [out[i] for i in range(len(lines))]
