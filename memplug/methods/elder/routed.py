"""What the tokens of one forward use: the experts of the edits that may change them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .experts import Experts

__all__ = ["Used"]


class Used(NamedTuple):
    """Experts in use in one forward.

    Attributes:
        at: LongTensor [n], the tokens that use any, as row * T + column.
        picks, weights: [l,n,k] which, and how much of each.
    """

    at: Tensor
    picks: Tensor
    weights: Tensor

    def apply(self, experts: Experts, index: int, x: Tensor, output: Tensor) -> Tensor:
        """The output of linear ``index`` with the experts' added.

        Args:
            experts: the LoRAs.
            index: which linear.
            x, output: its input and output, [B,T,w] or flattened to [B T,w].
        """
        flat, device = x.reshape(-1, x.shape[-1]), x.device
        at = self.at.to(device)
        picks, weights = (part[index].to(device) for part in (self.picks, self.weights))
        delta = experts.mix(index, flat[at][:, None], picks, weights)[:, 0]
        out = output.reshape(-1, output.shape[-1])
        return out.index_add(0, at.to(out.device), delta.to(out)).view(output.shape)
