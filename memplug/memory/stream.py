"""What matching remembers of a text that is given in pieces.

Two things. Spans may straddle two pieces, so the last states of each layer are kept. And not every layer
has to be searched at once: an entry that passes in none of the first R - quorum + 1 layers cannot have
the quorum, so the other layers, here called late, wait unsearched until something is found in the early
ones. Mostly nothing ever is. What waits is kept here, so that the result is that of searching everything.

Letters: B rows, t tokens of a block, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memplug.memory.votes import Found

__all__ = ["Block", "MatchState"]

# Hidden states that may wait, in bytes: 700 tokens of three late layers of width 4096 in bfloat16.
_WAITING = 1 << 24
# Pieces that may wait before they are joined to one, so that a token costs the same however many wait.
_PIECES = 16


class Block(NamedTuple):
    """Some consecutive positions of all rows.

    Attributes:
        layers: hidden states of some layers, each (B, t, D).
        valid: bool (B, t), which positions are tokens to match.
    """

    layers: tuple[Tensor, ...]
    valid: Tensor

    @property
    def length(self) -> int:
        """t."""
        return int(self.valid.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the hidden states."""
        return sum(layer.nbytes for layer in self.layers)

    def after(self, start: int) -> Block:
        """The positions from `start` on, as views."""
        return Block(tuple(layer[:, start:] for layer in self.layers), self.valid[:, start:])

    def copy(self) -> Block:
        """The same in memory of its own; the caller's hidden states are not held on to."""
        return Block(tuple(layer.clone() for layer in self.layers), self.valid.clone())

    def select(self, rows: Tensor) -> Block:
        """The block with the given rows, int64 (B',)."""
        layers = tuple(layer.index_select(0, rows.to(layer.device)) for layer in self.layers)
        return Block(layers, self.valid.index_select(0, rows.to(self.valid.device)))

    def tail(self, length: int) -> Block:
        """The last `length` positions, or all if there are fewer, in memory of their own."""
        if length:
            return self.after(max(0, self.length - length)).copy()
        return Block((), self.valid[:, :0].clone())  # of no layers, to spare the time

    @staticmethod
    def join(blocks: tuple[Block, ...]) -> Block:
        """One block after another, on the device and in the dtype of the last."""
        last = blocks[-1]
        blocks = (*(block for block in blocks[:-1] if block.length), last)
        if len(blocks) == 1:
            return last
        layers = tuple(
            torch.cat([block.layers[i].to(like.device, like.dtype) for block in blocks], dim=1)
            for i, like in enumerate(last.layers)
        )
        return Block(layers, torch.cat([block.valid.to(last.valid.device) for block in blocks], dim=1))


class MatchState(NamedTuple):
    """Kept by the caller beside his KV cache, one for a batch of texts. It is never changed in place: a
    search returns a new one, so that an older one can be taken up again.

    Attributes:
        found: the entries above their threshold so far.
        early: the last positions of the layers that are always searched, all searched.
        late: blocks of the other layers; their last `waiting` positions are not searched yet.
        waiting: how many positions wait.
        seq: entries from this place in the order of insertion on were added later than what waits.
    """

    found: Found
    early: Block
    late: tuple[Block, ...]
    waiting: int
    seq: int

    @property
    def n_rows(self) -> int:
        """B."""
        return int(self.early.valid.shape[0])

    def select(self, rows: Tensor) -> MatchState:
        """The state whose row j is this state's row ``rows[j]`` (beam reorder, repeat, subset).

        Args:
            rows: int64 (B',), values in 0..B-1, repeats allowed.
        """
        found = self.found
        if len(found.row):
            new_row, item = np.nonzero(rows.cpu().numpy()[:, None] == found.row[None, :])
            found = found.keep(item)._replace(row=new_row.astype(np.int64))
        late = tuple(block.select(rows) for block in self.late)
        return self._replace(found=found, early=self.early.select(rows), late=late)

    @staticmethod
    def wait(late: tuple[Block, ...], waiting: int, reach: int) -> tuple[Block, ...] | None:
        """`late` as it may be kept, with `reach` searched positions; None if too much of it waits."""
        if sum(block.nbytes for block in late) > _WAITING:
            return None
        if len(late) > _PIECES:
            late = (Block.join(late).tail(waiting + reach),)
        return late
