"""Rows of token ids: a prompt with its answer, and rows put together.

A decoder-only model goes on behind the prompt. Of an encoder-decoder the encoder reads the prompt, its
*source*, and a row is what the decoder says: its start token and the answer.

Letters: B rows, T tokens, S tokens of the sources, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import MoEModelOutput

__all__ = ["Batch", "Pair", "filled"]


class Pair(NamedTuple):
    """Token ids of a prompt and its answer; the answer starts at ``ids[start]``.

    ``source`` is what the encoder of an encoder-decoder reads, and empty for a decoder-only model.
    """

    ids: list[int]
    start: int
    source: tuple[int, ...] = ()

    @property
    def prompt(self) -> Pair:
        """What is read before the answer's first token is said."""
        return self._replace(ids=self.ids[: self.start])

    @property
    def read(self) -> Pair:
        """What is read before the answer's last token is said."""
        return self._replace(ids=self.ids[:-1])

    @property
    def key(self) -> tuple[Any, ...]:
        """The same, to be looked up by."""
        return tuple(self.ids), self.start, self.source


class Batch(NamedTuple):
    """Right-padded ``ids`` and ``mask``, LongTensors [B,T]; ``positions`` [B,T] count each row from 0.

    Of an encoder-decoder also ``source``, LongTensor [B,S] or what its encoder made of it [B,S,D] (see
    `Host.encoded`), and ``source_mask`` [B,S]; else both are None.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    source: Tensor | None = None
    source_mask: Tensor | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What a model is called with, by name; `positions` are what it counts itself."""
        if self.source is None:
            return {"input_ids": self.ids, "attention_mask": self.mask}
        # It has the fields that any model may look for: some also ask for their router's.
        states: Any = MoEModelOutput(last_hidden_state=self.source)
        source = {"encoder_outputs": states} if self.encoded else {"input_ids": self.source}
        return source | {
            "attention_mask": self.source_mask,
            "decoder_input_ids": self.ids,
            "decoder_attention_mask": self.mask,
        }

    @property
    def encoded(self) -> bool:
        """Whether ``source`` holds states."""
        return self.source is not None and self.source.is_floating_point()

    def part(self, rows: Tensor | slice, length: int | None = None) -> Batch:
        """Some rows, of them the first ``length`` tokens; sources are whole."""
        ids, mask, positions = (
            column[rows if isinstance(rows, slice) else rows.to(column.device), :length]
            for column in (self.ids, self.mask, self.positions)
        )
        source, source_mask = (
            None if column is None else column[rows if isinstance(rows, slice) else rows.to(column.device)]
            for column in (self.source, self.source_mask)
        )
        return Batch(ids, mask, positions, source, source_mask)


def filled(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device, *, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows, LongTensors [B,T], filled with ``pad`` on the right, or on the left."""
    longest = max(len(row) for row in rows)
    holes = [longest - len(row) for row in rows]
    pads = [[pad] * hole for hole in holes]
    ids = [[*some, *row] if left else [*row, *some] for row, some in zip(rows, pads, strict=True)]
    real = [[1] * (longest - hole) for hole in holes]
    mask = [[0] * h + one if left else one + [0] * h for one, h in zip(real, holes, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
