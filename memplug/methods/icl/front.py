"""Attention over notes: keys and values of every layer, of another length in each row.

A text that is read in front takes the place of the row's own first token (BOS), which it brings along: to the
tokens after it the row's own is closed. Positions stay as they are where they are relative; where they are
learned, the row's tokens are counted on. A text that stands inside a row is read behind what stands before
it, and the positions of the row's tokens behind it are counted on. So tokens see what they would see if the
texts were one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...model.architecture import Architecture, UnsupportedModelError, input_device
from ...model.hooks import capture_input
from ...model.prefix import KV, Extension, Prefix
from ...model.recall import Recall

__all__ = ["Front", "Reader", "stacked"]


@dataclass(frozen=True)
class Front(Prefix):
    """What the rows of one forward have in front, see `Prefix`: keys and values [B,H,b,w] of all layers, with
    zeros on the left, and [B,T,b] which of them new tokens see.

    Attributes:
        begin: LongTensor [B]; column of each row's first real token.
        bos: BoolTensor [B]; rows whose own first token is closed, as the text in front brings its own.
    """

    begin: Tensor
    bos: Tensor


def stacked(rows: Sequence[KV | None]) -> KV:
    """Keys and values of a batch from each row's own [1,H,b,w], of which one is given at least."""
    model = next(kv for kv in rows if kv is not None)
    longest = max(0 if kv is None else kv[0][0].shape[-2] for kv in rows)

    def filled(layer: int, which: int) -> Tensor:
        like = model[layer][which]
        parts = [like[:, :, :0] if kv is None else kv[layer][which] for kv in rows]
        return torch.cat([F.pad(one, (0, 0, longest - one.shape[2], 0)) for one in parts])

    return [(filled(layer, 0), filled(layer, 1)) for layer in range(len(model))]


class Reader(Recall):
    """Reads texts in front, and lets every layer see them.

    Raises:
        UnsupportedModelError: as `Recall`; or positions that are learned and cannot be handed in.
    """

    def __init__(self, model: Any, architecture: Architecture) -> None:
        super().__init__(model, architecture, 0)
        self._signature = inspect.signature(type(architecture.decoder).forward)
        takes = "position_ids" in self._signature.parameters
        relative = architecture.rotary or architecture.alibi_arg is not None or architecture.bias_by_column
        self.counts_on = takes and not relative
        self.inserts = takes and architecture.alibi_arg is None and not architecture.bias_by_column
        """Whether a text can stand inside a row: positions behind it can be counted on."""
        self.by_mask = self.counts_on and self._counts_from_mask()
        """Whether a row's positions, where nobody hands them in, begin at its first real token."""

    def read(self, ids: Sequence[int], begin: int) -> KV:
        """Keys and values of ``ids``, which stand at the positions from ``begin`` on."""
        length = len(ids)
        device = input_device(self._model)
        given: dict[str, Any] = {"input_ids": torch.tensor([list(ids)], device=device)}
        if self.counts_on:
            given["position_ids"] = begin + torch.arange(length, device=device)[None]
        run = lambda: self._architecture.decoder(**given, use_cache=False)  # noqa: E731
        with self.forced(None):
            values = capture_input(self._architecture, 0, run)
        return self.project(values, torch.tensor([begin + length]))

    def _positions(self, first: Tensor, length: int) -> Tensor:
        # A text's tokens follow each other, and where positions are counted on they begin at the row's own.
        positions = first - length + torch.arange(length, device=first.device)
        return positions if self._architecture.rotary else positions.clamp(min=0)

    def moved(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], past: int, real: Tensor, by: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The decoder's arguments with positions counted on.

        Args:
            past: columns in the cache.
            real: BoolTensor [B,T], new tokens that are not padding.
            by: LongTensor [B,T], what to add to each one's position.
        """
        given = {**dict(zip(list(self._signature.parameters)[1:], args, strict=False)), **kwargs}
        positions = given.get("position_ids")
        if positions is None:
            if self.by_mask:
                mask = given.get("attention_mask")
                before = mask[:, :past].sum(1, keepdim=True) if isinstance(mask, Tensor) else past
                positions = (before + real.long().cumsum(1) - 1).clamp(min=0)
            else:
                positions = past + torch.arange(real.shape[1], device=real.device)[None]
        given["position_ids"] = positions + by.to(positions.device)
        if given.get("attention_mask") is None:  # positions that jump would be taken for several texts
            given["attention_mask"] = real.new_ones(len(real), past + real.shape[1], dtype=torch.long)
        return (), given

    @torch.no_grad()
    def _counts_from_mask(self) -> bool:
        """See `by_mask`."""
        device = input_device(self._model)
        ids = torch.zeros(1, 3, dtype=torch.long, device=device)
        mask = torch.tensor([[0, 1, 1]], device=device)

        def entering(**given: Any) -> Tensor:
            decoder = self._architecture.decoder
            run = lambda: decoder(input_ids=ids, attention_mask=mask, use_cache=False, **given)  # noqa: E731
            return capture_input(self._architecture, 0, run)[:, 1:]

        alone = entering()
        by_mask = entering(position_ids=torch.tensor([[0, 0, 1]], device=device))
        by_column = entering(position_ids=torch.tensor([[0, 1, 2]], device=device))
        if not (torch.equal(alone, by_mask) or torch.equal(alone, by_column)):
            raise UnsupportedModelError(
                f"{type(self._model).__name__} counts positions in a way of its own where none are given, so "
                "those behind a note cannot be counted on; choose another method"
            )
        return not torch.equal(alone, by_column)

    def _extension(self, prefix: Any, device: torch.device) -> Extension:
        return _Fronted(prefix, self._architecture, device)


class _Fronted(Extension):
    """One forward's masks, biases, keys and values with those in front."""

    def __init__(self, front: Front, architecture: Architecture, device: torch.device) -> None:
        super().__init__(front, architecture, device)
        self._begin, self._bos = front.begin.to(device), front.bos.to(device)

    def mask(self, mask: Any, batch: int, offset: int = 0) -> Tensor:
        """As `Extension.mask`, without a row's own BOS for tokens that see what brings another one."""
        if isinstance(mask, Tensor) and mask.ndim == 4 and bool(self._bos.any()):
            at = torch.arange(mask.shape[-1], device=mask.device) == (self._begin - offset)[:, None]
            own = (at & self._bos[:, None])[:, None, None] & self.open.any(-1)[:, None, :, None]
            closed = self.masked_is_true if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            mask = mask.expand(batch, -1, -1, -1).masked_fill(own, closed)
        return super().mask(mask, batch)
