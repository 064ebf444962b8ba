"""The calibration of a model: its layers' ordinary states, and the thresholds that follow from them."""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...calibration import Calibration, Sample, chance_threshold, whitening
from ...contexts import sample_prefixes
from ...pretrained import cache
from ...text import Text
from ...turns import Turns
from ..base import Host
from .config import LLPConfig
from .keys import think_states
from .lessons import other_lines
from .passes import Line
from .wordings import CHAT, FRONTS, NAMES, PLAIN, SYSTEM, TALK

__all__ = ["calibrate", "calibrated"]

_FORMAT = 1  # of what is calibrated; another one is made anew
_LARGE = 50_000_000  # parameters from which on a calibration takes seconds
_TEXTS = 24  # texts that the model itself samples
_LENGTH = 96  # their tokens
_BATCH = 16
_FIRST = 512  # tokens that are tried as the first of a text


def calibrated(
    host: Host, config: LLPConfig, think: Sequence[int], relation: int, turns: Turns | None
) -> Calibration:
    """`calibrate`, or what it gave before: that of a large model is kept in the user's cache folder.

    It is found by the model's fingerprint and by everything that it depends on. A file that cannot be read or
    written costs time and nothing else.
    """
    if sum(p.numel() for p in host.model.parameters()) < _LARGE:
        return calibrate(host, config, think, relation, turns)
    from ...storage import fingerprint  # above this room; it is asked for a name only

    layers = (*think, relation)
    asked = (_FORMAT, layers, config.rank, config.quorum, config.false_accepts, config.other_accepts)
    texts = (PLAIN, CHAT, FRONTS, NAMES, SYSTEM, TALK)
    named = (*asked, config.sample_top_k, config.seed, len(host.text.tokenizer), turns, texts)
    file = cache() / "calibrations" / f"{fingerprint(host.model)}-{zlib.crc32(repr(named).encode()):08x}"
    with contextlib.suppress(OSError, SafetensorError, ValueError):
        return Calibration.of(load_file(file), layers, host.anatomy.width).to(host.text.device)
    made = calibrate(host, config, think, relation, turns)
    with contextlib.suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        save_file({name: t.contiguous() for name, t in made.tensors().items()}, part)
        part.replace(file)
    return made


def calibrate(
    host: Host, config: LLPConfig, think: Sequence[int], relation: int, turns: Turns | None
) -> Calibration:
    """Read ordinary text, and set the thresholds to the config's false-accept rates.

    The text is the model's own (sampled without a prompt), so that any language and domain is met, and a
    short neutral text, so that sentences and questions about things are among it.
    """
    layers = (*think, relation)
    texts = sample_prefixes(host.text, _TEXTS, _LENGTH, config.sample_top_k * 40, config.seed)
    sample = _sample(host, layers, [host.text.encode(text) for text in (*texts, *_neutral())])
    rank = min(host.anatomy.width, config.rank)
    roots = [whitening(states, rank) for states in sample.states]
    first = [whitening(states, rank) for states in sample.first]
    made = Calibration(
        layers,
        torch.stack([mean for mean, _ in roots]),
        torch.stack([root for _, root in roots]),
        torch.stack([mean for mean, _ in first]),
        torch.stack([root for _, root in first]),
        0.0,
        0.0,
        torch.zeros(0, rank, dtype=torch.float32),
    )
    units = torch.stack([made.apply(i, states[None])[0] for i, states in enumerate(sample.states[:-1])])
    quorum = max(1, math.ceil(config.quorum * len(think)))
    threshold = chance_threshold(units, sample, quorum, config.false_accepts, config.seed)
    limit, others = _relations(host, made, relation, turns, config.other_accepts)
    threshold = min(max(threshold, 0.05), 0.95)
    return replace(made, threshold=threshold, relation=limit, others=others).to(host.text.device)


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


def _relations(
    host: Host, made: Calibration, relation: int, turns: Turns | None, rate: float
) -> tuple[float, Tensor]:
    """The cosine that the ends of two different prompts about one subject exceed with probability ``rate``,
    and the mean state [M,K] at the end of each neutral prompt."""
    cosines: list[Tensor] = []
    ends: list[Tensor] = []
    plain = len(PLAIN)
    for name in NAMES[::2]:
        lines = other_lines(host.text, turns, name)
        states = _ends(host, [line for line, _ in lines], [end for _, end in lines], relation)
        ends.append(made.apply(len(made.layers) - 1, states[None])[0].cpu())
        # An edit has gates of both forms: like is compared with like.
        for unit in (ends[-1][:plain], ends[-1][plain:]):
            pairs = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
            cosines.append(pairs.flatten())
    limit = float(torch.cat(cosines).quantile(1 - rate).clamp(0.0, 0.95))
    return limit, F.normalize(torch.stack(ends).mean(0), dim=-1)


@torch.no_grad()
def _ends(host: Host, lines: Sequence[Line], ends: Sequence[int], layer: int) -> Tensor:
    order = sorted(range(len(lines)), key=lambda i: len(lines[i].ids))
    out: list[Tensor] = [torch.empty(0, dtype=torch.float32)] * len(lines)
    for at in range(0, len(order), _BATCH * 2):
        part = order[at : at + _BATCH * 2]
        states = think_states(host, [lines[i].ids for i in part], (layer,))
        for k, i in enumerate(part):
            out[i] = states[0, k, ends[i]].float()
    return torch.stack(out)
