"""What the rows of one text are given, from its first forward to its last token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...call import Call
from ..continuing import unflat

__all__ = ["Coded", "query_of", "tokens_replaced"]


@dataclass(frozen=True)
class Coded:
    """What rows were found to be near to; kept with their cache.

    Attributes:
        owner: the method that decided; another one's decisions do not count.
        version: the state of the edits then; with another one the query decides again.
        query: float32 [B,p+1], the key that was looked for, and behind it the tokens of the prompt.
        entry: LongTensor [B] on the CPU, the number of each row's entry, -1 for none.
        value: [B,D], zero for rows without an entry; None where there are none.
        length: columns of the cache when it was decided.
    """

    owner: Any
    version: int
    query: Tensor
    entry: Tensor
    value: Tensor | None
    length: int

    def __len__(self) -> int:
        return len(self.entry)

    def __deepcopy__(self, memo: dict[int, Any]) -> Coded:
        return self  # nothing in it is ever changed in place

    def select(self, rows: Tensor) -> Coded:
        """The same for rows ``rows`` of it."""
        value = None if self.value is None else self.value[rows.to(self.value.device)]
        query = self.query[rows.to(self.query.device)]
        return Coded(self.owner, self.version, query, self.entry[rows.cpu()], value, self.length)

    def crop(self, length: int) -> Coded | None:
        """The same for a cache cut to ``length`` columns; None where the prompt is cut as well."""
        return self if length >= self.length else None

    def apply(self, call: Call, output: Tensor, which: str, begins: bool) -> Tensor | None:
        """The MLP's output [B,T,D] (or flattened) with the values in place; None where nothing changes.

        Args:
            call: the running forward.
            output: as the MLP gave it.
            which: "last", "prompt" or "all".
            begins: whether the forward holds the prompt; else its tokens are generated ones.
        """
        if self.value is None or not (begins or which == "all"):
            return None
        count = call.real.long().cumsum(1)
        end = self.query[:, -1:].to(count.device)
        if begins:
            at = tokens_replaced(count, end, which)
        else:
            at = torch.ones_like(call.real)
        at = at & call.real & (self.entry >= 0)[:, None].to(count.device)
        wide = unflat(output, len(at))
        value = self.value.to(device=output.device, dtype=output.dtype)
        return torch.where(at[..., None].to(output.device), value[:, None], wide).reshape(output.shape)


def tokens_replaced(count: Tensor, end: Tensor, which: str) -> Tensor:
    """BoolTensor [B,T]: tokens to replace, from their place in the text and that of the prompt's last one.

    Args:
        count: [B,T], each token's number in its row, from 1.
        end: [B,1], the number of the prompt's last token.
        which: "last", "prompt" or "all"; or "answer", the prompt's last one and those behind it.
    """
    if which == "answer":
        return count >= end
    if which == "last":
        return count == end
    return count <= end if which == "prompt" else torch.ones_like(count, dtype=torch.bool)


def query_of(call: Call, states: Tensor) -> Tensor:
    """Float32 [B,p+1]: the states [B,T,p] at the end of each row's prompt, and the tokens of that prompt."""
    at = call.prompt_end().to(states.device)
    rows = torch.arange(len(at), device=at.device)
    tokens = call.real.long().cumsum(1).to(states.device)[rows, at]
    return torch.cat([states[rows, at].float(), tokens[:, None].float()], dim=1)
