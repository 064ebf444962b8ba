"""Puts prompts to a model in batches: what it answers, and what it thinks of a given answer.

Takes any model that generates text as it is, edited or not. Rows are sorted by length, equal ones are run
once, and a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attached import plug_of
from ..edits import Probe
from ..model.architecture import evaluating
from ..text.chat import Given, Prompt, as_prompt
from ..text.tokens import Batch, Text
from .encoding import at_least_one, batches, encode_pairs, encode_prompts
from .metrics import positionwise_preference, sequence_preference

__all__ = ["Forced", "Preference", "answer", "prefer", "teacher_force"]


class Forced(NamedTuple):
    """A target under teacher forcing: at position i the model has read the prompt and y_<i.

    Attributes:
        target: token ids y_1..y_n.
        predicted: the model's first choices a_1..a_n.
        log_probs: log p(y_i), nats.
        stopped: after y_n the first choice is an end token.
        rival_log_probs: log p of a rival target's i-th token at the same positions, up to the shorter
            of the two; None where no rival was given.
    """

    target: tuple[int, ...]
    predicted: tuple[int, ...]
    log_probs: tuple[float, ...]
    stopped: bool
    rival_log_probs: tuple[float, ...] | None = None


class Preference(NamedTuple):
    """A new target against the true one on one prompt; see the metrics of the same names.

    Attributes:
        sequence: `sequence_preference`, as in ROME and MEMIT.
        positionwise: `positionwise_preference`, as in RLEdit and HiEdit.
    """

    sequence: bool
    positionwise: float


@torch.no_grad()
def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Given],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    progress: bool = False,
) -> list[str]:
    """The model's own answers: plain greedy decoding until the model stops by itself.

    Penalties, sampling and minimum lengths of the model's generation config are set aside.

    Args:
        model: a causal language model, or an encoder-decoder.
        tokenizer: the model's tokenizer; its padding settings are not used and not changed.
        prompts: texts without a blank at the end, or messages, which go through the chat template.
        batch_size: B, rows run at once.
        max_new_tokens: where a model that does not stop is stopped; one number for all prompts.
        progress: show a bar.

    Returns:
        One text a prompt, in their order, without special tokens, blanks at both ends taken off.

    Raises:
        ValueError: ``batch_size`` or ``max_new_tokens`` below 1, an empty prompt, or a prompt that
            leaves no room for ``max_new_tokens`` in the model's context.
    """
    at_least_one(batch_size=batch_size, max_new_tokens=max_new_tokens)
    text = Text(model, tokenizer)
    asked = [as_prompt(prompt) for prompt in prompts]
    unique = list(dict.fromkeys(asked))
    rows = encode_prompts(text, unique, max_new_tokens)
    texts = [""] * len(rows)
    with evaluating(model):
        for batch in batches(rows, batch_size, "answers", progress):
            for i, said in zip(batch, text.generate([rows[i] for i in batch], max_new_tokens), strict=True):
                texts[i] = text.decode(said)
    found = dict(zip(unique, texts, strict=True))
    return [found[prompt] for prompt in asked]


@torch.no_grad()
def teacher_force(
    model: Any,
    tokenizer: Any,
    probes: Sequence[Probe],
    *,
    rivals: Sequence[str] | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> list[Forced]:
    """What the model thinks of each probe's target, one forward a batch (right padded).

    The model reads prompt and target together, as everywhere in the field; a method that matches its
    memory against the whole text therefore sees the target as well. Methods that decide at the end of the
    prompt are told where it is (`Plug.prompt_lengths`).

    Args:
        model: a causal language model, or an encoder-decoder.
        tokenizer: the model's tokenizer; its padding settings are not used and not changed.
        probes: prompt (a text or messages) and target, without blanks at their ends.
        rivals: another target for each probe, scored at the probe's own positions.
        batch_size: B, rows run at once.
        progress: show a bar.

    Returns:
        One result a probe, in their order.

    Raises:
        ValueError: ``batch_size`` below 1, an empty prompt or target, not one rival a probe, or a text
            longer than the model's context.
    """
    at_least_one(batch_size=batch_size)
    if rivals is not None and len(rivals) != len(probes):
        raise ValueError(f"{len(rivals)} rivals for {len(probes)} probes; give one rival each")
    paired: Sequence[str | None] = [None] * len(probes) if rivals is None else rivals
    keys = [(as_prompt(prompt), y, rival) for (prompt, y), rival in zip(probes, paired, strict=True)]
    unique = list(dict.fromkeys(keys))
    text = Text(model, tokenizer)
    pairs = encode_pairs(text, [(prompt, target) for prompt, target, _ in unique])
    rows, tails = [pair.ids for pair in pairs], [pair.ids[pair.start :] for pair in pairs]
    others: list[list[int]] = [[] for _ in unique]
    if rivals is not None:
        rival_pairs = encode_pairs(text, [(prompt, rival or "") for prompt, _, rival in unique])
        others = [pair.ids[pair.start :] for pair in rival_pairs]
    ends = text.eos_ids
    found: dict[tuple[Prompt, str, str | None], Forced] = {}
    with evaluating(model):
        for batch in batches(rows, batch_size, "targets", progress):
            spans = [(pairs[i].start, len(rows[i])) for i in batch]
            logits = _at_targets(model, text.batch([pairs[i] for i in batch]), spans)
            predicted = _split(logits.argmax(dim=-1), spans)
            scores = _split(_log_probs(logits, spans, [tails[i] for i in batch]), spans)
            there = _split(_log_probs(logits, spans, [others[i] for i in batch]), spans)
            for i, first, mine, theirs in zip(batch, predicted, scores, there, strict=True):
                length = len(tails[i])
                found[unique[i]] = Forced(
                    target=tuple(tails[i]),
                    predicted=tuple(first[:length]),
                    log_probs=tuple(mine[:length]),
                    stopped=first[length] in ends,
                    rival_log_probs=None if rivals is None else tuple(theirs[: min(length, len(others[i]))]),
                )
    return [found[key] for key in keys]


def prefer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    new: Sequence[str],
    true: Sequence[str],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> list[Preference]:
    """CounterFact's comparison of each prompt's new target with its true one, in both senses.

    For neighbourhood prompts, whose right answer is the true one, exchange ``new`` and ``true``.

    Args:
        model, tokenizer, batch_size, progress: as for `teacher_force`.
        prompts, new, true: one of each a sample.

    Raises:
        ValueError: lists of different length, or as for `teacher_force`.
    """
    if not len(prompts) == len(new) == len(true):
        raise ValueError(
            f"{len(prompts)} prompts, {len(new)} new and {len(true)} true targets; give one of each a sample"
        )
    probes = [Probe(*pair) for pair in zip((*prompts, *prompts), (*new, *true), strict=True)]
    forced = teacher_force(
        model, tokenizer, probes, rivals=[*true, *new], batch_size=batch_size, progress=progress
    )
    return [
        Preference(
            sequence_preference(mine.log_probs, theirs.log_probs),
            positionwise_preference(mine.log_probs, mine.rival_log_probs or ()),
        )
        for mine, theirs in zip(forced[: len(prompts)], forced[len(prompts) :], strict=True)
    ]


def _at_targets(model: Any, batch: Batch, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Float32 logits [N,V] of every row's target (columns first to last, last excluded), row by row; each
    row's are followed by those of the token after its target."""
    skipped = 0
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(type(model).forward).parameters:
        # Logits over a large vocabulary cost more than the rest of a small model: leave out the prompts'.
        skipped = min(first for first, _ in spans) - 1
        options["logits_to_keep"] = batch.ids.shape[1] - skipped
    plug = plug_of(model)
    # A method that decides at the end of the prompt must not take the answer for a part of it.
    known = plug.prompt_lengths([first for first, _ in spans]) if plug else nullcontext()
    with known:
        logits = model(**batch.given, **options).logits
    row = torch.cat([torch.full((last - first + 1,), b) for b, (first, last) in enumerate(spans)])
    column = torch.cat([torch.arange(first - 1, last) for first, last in spans]) - skipped
    return logits[row.to(logits.device), column.to(logits.device)].float()


def _log_probs(logits: Tensor, spans: Sequence[tuple[int, int]], tokens: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability [N] of each row's tokens at its target's positions; 0 where a row has no token left.

    A model whose logits are no numbers gives its target no probability.
    """
    wanted: list[int] = []
    for (first, last), row in zip(spans, tokens, strict=True):
        size = last - first + 1
        wanted += [*row, *[-1] * size][:size]
    index = torch.tensor(wanted, device=logits.device)
    found = logits.gather(1, index.clamp(min=0)[:, None])[:, 0] - logits.logsumexp(dim=-1)
    return found.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf).masked_fill(index < 0, 0.0)


def _split(values: Tensor, spans: Sequence[tuple[int, int]]) -> list[list[Any]]:
    """Values [N] of `_at_targets` as one list a row."""
    return [part.tolist() for part in values.split([last - first + 1 for first, last in spans])]
