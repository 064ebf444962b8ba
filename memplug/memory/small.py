"""The search of a small memory: one product in float32, and the few windows it points to followed at once.

A product of a few hundred keys costs less than the steps around it. So here there are no codes, no choice of
tokens and no lengths of queries to divide by: a cosine exceeds the floor where the product with a key of
length 1 exceeds the floor times the query's length. What is found is still checked on the record.

Letters: E entries, S tokens of a subject, D width, R think layers, B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from memplug.memory.record import KeyRecord
from memplug.memory.spans import Proposals

__all__ = ["SmallScan"]

_KEYS = 1 << 16  # elements of a layer's last tokens
_PRODUCT = 1 << 22  # and of them times tokens
_FLOOR = 0.1  # below it most of what is compared is near
_SINGLY = 64  # matches of a last token that are followed one by one


class SmallScan:
    """The keys of a record as they are now, on the CPU, in float32.

    Args:
        record: the keys.

    Attributes:
        last: (R, E, D), the last tokens of the spans.
        rest: for each slot (R, S - 1, D), the tokens before it, from the first one on.
    """

    def __init__(self, record: KeyRecord) -> None:
        count = len(record)
        self.last = record.last[:, :count].float()
        self.rest = [record.span(slot)[:, :-1].float().numpy() for slot in range(count)]
        self.slack = 2.0**-11 + record.dim * 2.0**-22

    @staticmethod
    def suits(record: KeyRecord) -> bool:
        """Whether this is the way to search the record."""
        return record.device.type == "cpu" and len(record) * record.dim <= _KEYS

    @property
    def nbytes(self) -> int:
        """Bytes of the keys."""
        return self.last.nbytes + sum(keys.nbytes for keys in self.rest)

    def takes(self, tokens: int, floor: float) -> bool:
        """Whether it is the way to search it for so many tokens, and cosines above ``floor``."""
        return self.last[0].numel() * tokens <= _PRODUCT and floor >= _FLOOR

    def proposals(
        self, layers: Sequence[int], text: Sequence[Tensor], valid: np.ndarray, seen: int, floor: float
    ) -> list[tuple[Proposals, np.ndarray]]:
        """Windows whose cosines may all exceed the floor, for each layer that has any, with their smallest
        cosines, float32, off by less than `slack`; 0 where not all of a window was looked at.

        Args:
            layers: which layers are searched.
            text: their states, each (B, T, D), any float dtype, on the CPU.
            valid: bool (B, T), which of them are tokens.
            seen: so many first positions are only there for windows to reach back to.
            floor: `_FLOOR` <= floor < 1.
        """
        found, limit = [], floor - self.slack
        for place, (layer, states) in enumerate(zip(layers, text, strict=True)):
            flat = states.detach().flatten(0, 1).float()
            product = self.last[layer] @ flat.T
            least = torch.linalg.vector_norm(flat, dim=1).mul_(limit)
            near = np.flatnonzero((product > least).numpy())
            if not len(near):
                continue
            slot, token = np.divmod(near, len(flat))
            row, position = np.divmod(token, valid.shape[1])
            kept, sim = position >= seen, np.zeros(len(near), np.float32)
            if len(near) <= _SINGLY:
                texts, bounds, last = flat.numpy(), least.numpy(), product.numpy()
                for i in np.flatnonzero(kept).tolist():
                    s, t, p = int(slot[i]), int(token[i]), int(position[i])
                    rest = self.rest[s][layer]
                    first = t - len(rest)
                    kept[i] = p >= len(rest) and bool(valid[row[i], p - len(rest) : p + 1].all())
                    share = last[s, t] / bounds[t]  # of what is asked for
                    for j in range(len(rest) - 1, -1, -1):
                        if kept[i]:
                            value, bound = np.dot(texts[first + j], rest[j]), bounds[first + j]
                            kept[i] = value > bound
                            share = min(share, value / bound) if kept[i] else 0.0
                    sim[i] = share * limit
            if kept.any():
                where = np.full(int(kept.sum()), place), row[kept], position[kept], slot[kept]
                found.append((Proposals(*where), sim[kept]))
        return found
