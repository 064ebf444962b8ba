"""Rows of prompts with their answers: where the answer's tokens are predicted, and which rows run together.

Letters: P answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...interface import Host
from ...model.hooks import Hook, OwnHooks
from ...text.tokens import Pair

__all__ = ["Answers", "alike", "chunks", "flat_rows", "predicting"]

FORWARD_COSTS = {"cpu": 128}
"""What one more forward costs, counted in tokens, by kind of device; elsewhere it costs thousands."""


class Answers(NamedTuple):
    """Where the answers' tokens are predicted: ``row``, ``flat`` (row * width + position), ``target`` token,
    ``size`` (the row's answer tokens, by which its losses are divided); int64 [P]."""

    row: Tensor
    flat: Tensor
    target: Tensor
    size: Tensor


def flat_rows(pairs: Sequence[Pair], width: int, device: torch.device) -> Answers:
    """The answer positions of right-padded rows of ``width`` columns, which lack each pair's last token."""
    row, flat, target, size = [], [], [], []
    for r, (ids, start, _) in enumerate(pairs):
        for t in range(start, len(ids)):
            row.append(r)
            flat.append(r * width + t - 1)
            target.append(ids[t])
            size.append(len(ids) - start)
    return Answers(
        torch.tensor(row, device=device),
        torch.tensor(flat, device=device),
        torch.tensor(target, device=device),
        torch.tensor(size, device=device),
    )


def predicting(host: Host, flat: Tensor) -> OwnHooks:
    """Inside the ``with`` the head computes logits [1,P,V] at the flat positions alone."""

    def narrow(_m: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
        return (args[0].flatten(0, 1)[flat.to(args[0].device)][None],), {}

    return OwnHooks([Hook(host.model.get_output_embeddings(), "before", narrow)])


def alike(lengths: Sequence[int], most: int, device: torch.device) -> list[list[int]]:
    """The rows in parts of like length, at most ``most`` in one, so that padding and forwards together cost
    the least.

    Args:
        lengths: tokens of each row.
        most: rows of a part.
        device: where the rows are run, which says what another forward costs.
    """
    if not lengths:
        return []
    cost = FORWARD_COSTS.get(device.type, 4096)
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    ends = [at for at in range(1, len(order)) if lengths[order[at]] > lengths[order[at - 1]]] + [len(order)]
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # by end, the cost so far and the ends chosen
    for end in ends:
        width = lengths[order[end - 1]]
        best[end] = min(
            (spent + cost * -(-(end - start) // most) + width * (end - start), [*cuts, end])
            for start, (spent, cuts) in best.items()
        )
    cuts = best[len(order)][1]
    return [
        part for start, end in zip([0, *cuts], cuts, strict=False) for part in chunks(order[start:end], most)
    ]


def chunks(items: Sequence[int], size: int) -> Iterator[list[int]]:
    """Runs of at most ``size``."""
    for at in range(0, len(items), size):
        yield list(items[at : at + size])
