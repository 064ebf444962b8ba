"""Edits that did not take: asked with their own prompts, the model does not give their targets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch

from ..edits import Edit
from ..interface import Host
from ..model.architecture import evaluating
from ..text.printable import brief
from ..text.tokens import Pair

__all__ = ["unlearned", "warn_unlearned"]

_TOKENS = 1024  # read at once; a large vocabulary's logits of these are some hundred MB


@torch.no_grad()
def unlearned(host: Host, edits: Sequence[Edit]) -> list[Edit]:
    """Those of the edits in force whose targets are not the model's first choice, token by token."""
    pairs = [host.text.pair(edit.prompt, edit.target) for edit in edits]
    failed = set[int]()
    with evaluating(host.model):
        for part in _parts(pairs):
            rows = [pairs[i] for i in part]
            batch = host.text.batch(rows)
            with host.tracker.prompt_lengths([row.start for row in rows]):
                chosen = host.forward(host.model, batch).logits.argmax(-1)
            for i, row, said in zip(part, rows, chosen.tolist(), strict=True):
                if said[row.start - 1 : len(row.ids) - 1] != row.ids[row.start :]:
                    failed.add(i)
    return [edit for i, edit in enumerate(edits) if i in failed]


def _parts(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Pairs of like length, few enough to be read at once."""
    part: list[int] = []
    for i in sorted(range(len(pairs)), key=lambda i: len(pairs[i].ids)):
        if part and (len(part) + 1) * len(pairs[i].ids) > _TOKENS:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def warn_unlearned(names: Sequence[str], count: int, stacklevel: int) -> None:
    """Warn that of ``count`` edits these are not answered as edited; no name, no warning."""
    if names:
        shown = ", ".join(map(brief, names[:3])) + (", ..." if len(names) > 3 else "")
        warnings.warn(
            f"{len(names)} of {count} were not learned well ({shown}); asked so, the model may not answer as "
            "edited; see if prompt and target suit it (plain words, a short target), or let the method take "
            "more steps",
            stacklevel=stacklevel + 1,
        )
