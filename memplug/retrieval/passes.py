"""Prompts run once through the base model: everything about them that no value changes.

A value is seen from the last token of a prompt on. What stands before it keeps the base model's keys and
values, so these are computed once, and a training step runs only the last token and the answer, and only in
the layers from the recall layer on.

Letters: N rows, P tokens before the last one of a prompt, T tokens from it on, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..interface import Host
from ..model.architecture import Architecture, UnsupportedModelError, taken
from ..model.attention import whole_cache
from ..model.hooks import Hook, OwnHooks, resume
from ..model.prefix import Prefix
from ..text.tokens import Batch
from .keys import outputs_of

__all__ = ["Chunk", "FromLayer", "Line", "Run", "States", "Upper", "run_lines", "run_whole"]

_ROWS = 48  # rows that are run together
_SHARED = 12  # tokens that rows have to share at least to be run from there on


class Upper(Protocol):
    """Runs a model from a layer on, see `Recall`."""

    @property
    def layer(self) -> int:
        """That layer."""

    def resume(self, hidden: Tensor, run: Callable[[], Any], prefix: Prefix | None, flat: Tensor) -> Tensor:
        """See `Recall.resume`."""


@dataclass(frozen=True)
class FromLayer:
    """Runs a model from layer ``layer`` on, where nothing is recalled; an `Upper`."""

    model: Any
    architecture: Architecture
    layer: int

    def resume(self, hidden: Tensor, run: Callable[[], Any], prefix: Prefix | None, flat: Tensor) -> Tensor:
        """See `hooks.resume`."""
        return resume(self.model, self.architecture, self.layer, hidden, run, flat)


class Line(NamedTuple):
    """A row of token ids; what is seen by a value begins at ``ids[start]``."""

    ids: tuple[int, ...]
    start: int


class States(NamedTuple):
    """Hidden states of the lines at chosen tokens, by layer: a list of [t,D], float32 on the CPU."""

    layers: dict[int, list[Tensor]]


@dataclass(frozen=True)
class Chunk:
    """Lines of like length, from their ``start`` on, or all of them (see `run_whole`).

    Attributes:
        lines: [N] which lines they are.
        ids, mask, positions: LongTensors [N,T], [N,P+T], [N,T]; what stands before is padded on the left.
        hidden: [N,T,D] inputs of the recall layer.
        past: keys and values [N,H,P,w] of the layers from the recall layer on; none where lines are run whole
            (they are padded on the right).
    """

    lines: list[int]
    ids: Tensor
    mask: Tensor
    positions: Tensor
    hidden: Tensor
    past: list[tuple[Tensor, Tensor]]

    @property
    def begins(self) -> Tensor:
        """LongTensor [N]: the column of ``mask`` in which each row begins."""
        return self.mask.argmax(1)

    def begin(self, line: Line) -> int:
        """The column of ``ids`` in which the ``start`` of one of its lines is."""
        return 0 if self.past else line.start

    def logits(self, host: Host, recall: Upper, prefix: Prefix | None, row: Tensor, at: Tensor) -> Tensor:
        """[Q,V] at columns ``at`` [Q] of rows ``row`` [Q], with ``prefix`` recalled."""
        flat = row * self.ids.shape[1] + at
        if not self.past:
            batch = Batch(self.ids, self.mask, self.positions)
            return recall.resume(self.hidden, lambda: host.forward(host.model, batch), prefix, flat)
        cache = whole_cache(host.model)
        before = self.mask.shape[1] - self.ids.shape[1]
        blank = torch.zeros(len(self.ids), 1, before, 1, dtype=self.hidden.dtype, device=self.hidden.device)
        for index in range(recall.layer):
            if isinstance(cache.layers[index], DynamicLayer):  # masks follow their length, whatever they keep
                cache.update(blank, blank, index)
        for offset, (keys, values) in enumerate(self.past):
            cache.update(keys, values, recall.layer + offset)

        def run() -> Any:
            given = {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions}
            return host.model(**taken(host.model, given), past_key_values=cache, use_cache=True)

        return recall.resume(self.hidden, run, prefix, flat)


Run = Callable[
    [Host, Upper, Sequence[Line], Sequence[Sequence[int]], Sequence[int]], "tuple[list[Chunk], States]"
]
"""`run_lines`, or what does the same in another way."""


def run_lines(
    host: Host, recall: Upper, lines: Sequence[Line], places: Sequence[Sequence[int]], layers: Sequence[int]
) -> tuple[list[Chunk], States]:
    """Run every line through the base model.

    Args:
        lines: the rows.
        places: for each line, the tokens whose states are wanted.
        layers: the layers after which they are wanted.

    Returns:
        The lines in chunks, and the states: for each layer and line [len(places[line]),D].
    """
    states: dict[int, list[Tensor]] = {
        layer: [torch.empty(0, dtype=torch.float32)] * len(lines) for layer in layers
    }
    chunks: list[Chunk] = []
    # A front's keys and values can be taken over by many rows; the states of other kinds of layers cannot.
    alike = all(type(layer) is DynamicLayer for layer in whole_cache(host.model).layers)
    groups = _groups(lines, places) if alike else [((), list(range(len(lines))))]
    for front, group in groups:
        base = _front(host, front)
        group = sorted(group, key=lambda i: (lines[i].start, len(lines[i].ids)))
        for at in range(0, len(group), _ROWS):
            part = group[at : at + _ROWS]
            chunks.append(_run(host, recall, lines, part, base, len(front), places, states))
    return chunks, States(states)


def run_whole(
    host: Host, upper: Upper, lines: Sequence[Line], places: Sequence[Sequence[int]], layers: Sequence[int]
) -> tuple[list[Chunk], States]:
    """As `run_lines`, from their first token on: for what takes effect before ``start``, and for layers that
    keep more than keys and values."""
    states: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(lines) for layer in layers}
    order = sorted(range(len(lines)), key=lambda i: len(lines[i].ids))
    chunks = []
    for part in (order[at : at + _ROWS] for at in range(0, len(order), _ROWS)):
        batch = host.text.batch([lines[i].ids for i in part])
        run = partial(host.forward, host.architecture.decoder, batch)
        *found, hidden = outputs_of(host, (*layers, upper.layer - 1), run)
        for row, i in enumerate(part):
            for layer, some in zip(layers, found, strict=True):
                states[layer][i] = some[row, list(places[i])].float().cpu()
        chunks.append(Chunk(part, batch.ids, batch.mask, batch.positions, hidden, []))
    return chunks, States(states)


def _groups(
    lines: Sequence[Line], places: Sequence[Sequence[int]]
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Lines by a long front that they share (a template's system turn), which is then run once."""
    fronts: dict[tuple[int, ...], list[int]] = {}
    for i, line in enumerate(lines):
        fronts.setdefault(line.ids[:_SHARED] if line.start > _SHARED else (), []).append(i)
    groups: list[tuple[tuple[int, ...], list[int]]] = []
    alone: list[int] = []
    for key, members in fronts.items():
        if not key or len(members) < 4:
            alone += members
            continue
        most = min(min((lines[i].start, *places[i])) for i in members)
        shared = 0
        while shared < most and len({lines[i].ids[shared] for i in members}) == 1:
            shared += 1
        groups.append((lines[members[0]].ids[:shared], members))
    return [((), alone), *groups] if alone else groups


@torch.no_grad()
def _front(host: Host, front: tuple[int, ...]) -> DynamicCache | None:
    if not front:
        return None
    cache = whole_cache(host.model)
    ids = torch.tensor([front], device=host.text.device)
    host.architecture.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


@torch.no_grad()
def _run(
    host: Host,
    recall: Upper,
    lines: Sequence[Line],
    part: list[int],
    base: DynamicCache | None,
    shared: int,
    places: Sequence[Sequence[int]],
    states: dict[int, list[Tensor]],
) -> Chunk:
    architecture, device = host.architecture, host.text.device
    batch = host.text.batch([lines[i].ids[shared:] for i in part])
    cache = whole_cache(host.model)
    if base is not None:
        for index, layer in enumerate(base.layers):
            shape = (len(part), -1, -1, -1)
            cache.update(layer.keys.expand(shape), layer.values.expand(shape), index)
    seen = torch.ones(len(part), shared, dtype=torch.long, device=device)
    mask = torch.cat([seen, batch.mask], 1)
    positions = batch.positions + shared
    found: dict[int, Tensor] = {}

    def after(index: int) -> Hook:
        def take(_m: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            found[index] = architecture.hidden(output)

        return Hook(architecture.layers[index], "after", take)

    with OwnHooks([after(index) for index in {*states, recall.layer - 1}]):
        given = {"input_ids": batch.ids, "attention_mask": mask, "position_ids": positions}
        architecture.decoder(**taken(architecture.decoder, given), past_key_values=cache, use_cache=True)
    for row, i in enumerate(part):
        at = [place - shared for place in places[i]]
        for layer, kept in states.items():
            kept[i] = found[layer][row, at].float().cpu()
    return _chunk(host, recall, lines, part, batch.ids, positions, found[recall.layer - 1], cache, shared)


def _chunk(
    host: Host,
    recall: Upper,
    lines: Sequence[Line],
    part: list[int],
    ids: Tensor,
    positions: Tensor,
    hidden: Tensor,
    cache: DynamicCache,
    shared: int,
) -> Chunk:
    before = max(lines[i].start for i in part)
    size = max(len(lines[i].ids) - lines[i].start for i in part)
    device = ids.device
    # Column j of the chunk is token start - before + j of a line; what is outside of it is padding.
    at = torch.tensor([lines[i].start for i in part], device=device)[:, None]
    column = at - before + torch.arange(before + size, device=device)
    total = torch.tensor([len(lines[i].ids) for i in part], device=device)[:, None]
    mask = ((column >= 0) & (column < total)).long()
    tail = (column[:, before:].clamp(max=shared + ids.shape[1] - 1) - shared).clamp(min=0)
    gathered = hidden.gather(1, tail[..., None].expand(-1, -1, hidden.shape[-1]))
    past: list[tuple[Tensor, Tensor]] = []
    front = column[:, :before].clamp(min=0)
    for layer in cache.layers[recall.layer :]:
        index = front[:, None, :, None]
        past.append((_picked(layer.keys, index), _picked(layer.values, index)))
    return Chunk(part, ids.gather(1, tail), mask, positions.gather(1, tail), gathered, past)


def _picked(states: Tensor | None, index: Tensor) -> Tensor:
    """Columns ``index`` [N,1,P,1] of keys or values [N,H,*,w]."""
    if states is None:
        raise UnsupportedModelError("a layer above the recall layer keeps no keys and values of its own")
    return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[-1]))
