"""Keys: how a subject looks to the think layers, made distinct from the other subjects' keys.

A key is a span, the unit hidden states of the subject's tokens in each think layer. Tokenizers write a
subject in more than one way (at the start of a text, after a space); each way gets a key of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..edits import Edit
from ..interface import Host
from ..model.architecture import evaluating
from ..model.hooks import Hook, OwnHooks, StopForward
from ..text.names import Written, writings
from ..text.tokens import Text, TokenizerError
from .config import RetrievalConfig

__all__ = [
    "contexts_of",
    "contrast",
    "outputs_of",
    "spellings",
    "subject_states",
    "think_states",
]


def contexts_of(edit: Edit, prefixes: Sequence[str]) -> list[Written]:
    """Texts that name an edit's subject, its question first.

    The published keys come from the prompt behind each sampled text, with no space between; the first
    occurrence of the subject counts. Without such texts, from the prompt, and from the subject alone.
    """
    prompt, (begin, end) = edit.question, edit.place
    subject = prompt[begin:end]
    if prefixes:
        return [Written(p + prompt, len(p) + begin, len(p) + end) for p in prefixes]
    return [Written(prompt, begin, end), Written(subject, 0, len(subject))]


def spellings(text: Text, subject: str) -> list[tuple[list[int], range]]:
    """Ids of the texts that write a subject in different ways, and its place; see `writings`."""
    found = []
    for one in writings(subject):
        with contextlib.suppress(TokenizerError):
            found.append(text.span(*one))
    return found


def subject_states(
    host: Host, contexts: Sequence[Sequence[Written]], config: RetrievalConfig
) -> list[list[Tensor]]:
    """For each subject, its states in its contexts, one tensor [J,R,S,D] for each way it tokenizes.

    J is the number of contexts that tokenize it so, S its tokens (1 where keys are of the last token
    alone). The first token of a text without a BOS looks like no other, so that it is another way. Float32
    unit vectors on the CPU.
    """
    rows: list[list[int]] = []
    where: list[tuple[int, range]] = []
    for index, texts in enumerate(contexts):
        for number, one in enumerate(texts):
            ids, span = host.text.span(*one)
            if number and len(ids) >= host.text.max_length:
                continue  # what was put before the prompt is too much
            host.text.check_length(ids, one.text)
            rows.append(ids[: span[-1] + 1])  # what comes after cannot matter to a causal model
            where.append((index, span if config.span_keys else span[-1:]))
    grouped: list[dict[tuple[object, ...], list[Tensor]]] = [{} for _ in contexts]
    for at in range(0, len(rows), 128):
        states = think_states(host, rows[at : at + 128], config.think_layers or ())
        for k, (index, span) in enumerate(where[at : at + 128]):
            first = host.text.bos_id is None and span[0] == 0
            way = (first, *(rows[at + k][t] for t in span))
            state = states[:, k, span[0] : span[-1] + 1].float().cpu()
            grouped[index].setdefault(way, []).append(F.normalize(state, dim=-1))
    return [[torch.stack(group) for group in groups.values()] for groups in grouped]


def think_states(host: Host, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> Tensor:
    """[R,N,T,D]: the outputs of the think layers; the layers above them are not run."""
    return outputs_of(host, layers, lambda: host.forward(host.architecture.decoder, host.text.batch(rows)))


@torch.no_grad()
def outputs_of(host: Host, layers: Sequence[int], run: Callable[[], Any]) -> Tensor:
    """[R,N,T,D]: the outputs of ``layers`` in the decoder's forward ``run()``; those above are not run."""
    architecture, found = host.architecture, {}

    def after(index: int) -> Hook:
        def take(_m: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            found[index] = architecture.hidden(output)
            if index == max(layers):
                raise StopForward

        return Hook(architecture.layers[index], "after", take)

    with evaluating(host.model), OwnHooks(map(after, layers)), contextlib.suppress(StopForward):
        run()
    device = found[layers[0]].device
    return torch.stack([found[index].to(device) for index in layers])


def contrast(states: Tensor, others: Sequence[Tensor], config: RetrievalConfig) -> Tensor:
    """The key of a subject: its states' mean, moved away from the other subjects' keys where it must be.
    So in the published procedure, on raw states, and by default, on calibrated ones.

    LLP's contrastive loss in each layer, -log(P / (P + N)), with P the mean over the subject's contexts
    and N the mean over other keys of exp(similarity / temperature); the similarity of spans is the one
    that the search uses, the smallest cosine in the window. A layer that starts below the stopping loss
    of 0.05 is left as it is, and so is the first key of all.

    Args:
        states: [J,R,S,D] unit states of the subject.
        others: keys [R,S',D] of other subjects; those shorter than S cannot be mistaken for it.

    Returns:
        [R,S,D] float32.
    """
    key = states.mean(0) if config.mean_key else states[-1]
    length = key.shape[1]
    rivals = [other[:, -length:].to(key.device) for other in others if other.shape[1] >= length]
    if not rivals or not config.key_steps:
        return key
    against = F.normalize(torch.stack(rivals, dim=1).float(), dim=-1)  # [R,N,S,D]
    own = states.transpose(0, 1)  # [R,J,S,D]
    if bool((_loss(key, own, against, config) < _STOP).all()):
        return key  # nearly always so with spans
    key = key.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([key], lr=config.key_lr)
    for _ in range(config.key_steps):
        loss = _loss(key, own, against, config)
        training = loss.detach() >= _STOP
        if not bool(training.any()):
            break
        (gradient,) = torch.autograd.grad(loss[training].sum(), key)
        before = key.detach().clone()
        key.grad = gradient
        optimizer.step()
        with torch.no_grad():  # a layer that is done stays; Adam's momentum would carry it on
            key[~training] = before[~training]
    return key.detach()


_STOP = 0.05


def _loss(key: Tensor, own: Tensor, against: Tensor, config: RetrievalConfig) -> Tensor:
    """[R]: the contrastive loss of each layer."""
    unit = F.normalize(key, dim=-1)[:, None]
    positive, negative = (
        ((unit * states).sum(-1).amin(-1) / config.temperature).exp().mean(1) for states in (own, against)
    )
    return -(positive / (positive + negative)).log()
