"""Lines run from their first token on, for models and procedures in which all of a row is taught.

What lies below the first edited layer never changes, so it is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...hooks import Hook, OwnHooks, StopForward, resume
from ...layers import Anatomy, evaluating
from ...prefix import Prefix
from ...text import Batch
from ..base import Host
from ..llp.passes import Line, States, Upper

__all__ = ["FromLayer", "Whole", "run_whole"]

_ROWS = 48  # lines that are run together


@dataclass(frozen=True)
class FromLayer:
    """Runs a model from layer ``layer`` on; see `passes.Upper`."""

    model: Any
    anatomy: Anatomy
    layer: int

    def resume(self, hidden: Tensor, run: Callable[[], Any], prefix: Prefix | None, flat: Tensor) -> Tensor:
        """Logits [P,V] at positions ``flat``, see `hooks.resume`; nothing is recalled."""
        return resume(self.model, self.anatomy, self.layer, hidden, run, flat)


@dataclass(frozen=True)
class Whole:
    """Lines of like length from their first token on; takes the place of a `passes.Chunk`.

    Attributes:
        lines: [N] which lines they are.
        batch: token ids [N,T], padded on the right.
        hidden: [N,T,D] inputs of the first edited layer.
    """

    lines: list[int]
    batch: Batch
    hidden: Tensor

    @property
    def ids(self) -> Tensor:
        """LongTensor [N,T]."""
        return self.batch.ids

    def logits(self, host: Host, upper: Upper, prefix: Prefix | None, row: Tensor, at: Tensor) -> Tensor:
        """[Q,V] at tokens ``at`` [Q] of rows ``row`` [Q]."""

        def run() -> Any:
            return host.forward(host.model, self.batch)

        return upper.resume(self.hidden, run, prefix, row * self.ids.shape[1] + at)


def run_whole(
    host: Host, upper: Upper, lines: Sequence[Line], places: Sequence[Sequence[int]], layers: Sequence[int]
) -> tuple[list[Whole], States]:
    """As `passes.run_lines`, without a cache."""
    states: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(lines) for layer in layers}
    order = sorted(range(len(lines)), key=lambda i: len(lines[i].ids))
    chunks = []
    for at in range(0, len(order), _ROWS):
        part = order[at : at + _ROWS]
        batch = host.text.batch([lines[i].ids for i in part])
        hidden, found = _observe(host, upper.layer, batch, layers)
        for row, i in enumerate(part):
            for layer, kept in states.items():
                kept[i] = found[layer][row, list(places[i])].float().cpu()
        chunks.append(Whole(part, batch, hidden))
    return chunks, States(states)


@torch.no_grad()
def _observe(host: Host, first: int, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """Inputs [B,T,D] of layer ``first``, and the outputs of ``layers`` below it."""
    anatomy, seen, hidden = host.anatomy, dict[int, Tensor](), list[Tensor]()

    def after(index: int) -> Hook:
        def take(_m: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            seen[index] = anatomy.hidden(output)

        return Hook(anatomy.layers[index], "after", take)

    def stop(_m: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden.append(anatomy.entering(args, kwargs))
        raise StopForward

    hooks = [*map(after, layers), Hook(anatomy.layers[first], "before", stop)]
    with evaluating(host.model), OwnHooks(hooks), suppress(StopForward):
        host.forward(anatomy.decoder, batch)
    return hidden[0], seen
