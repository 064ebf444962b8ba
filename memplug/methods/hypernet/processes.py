"""Several processes that fit one editor: gradients averaged, statistics shared; knows nothing of losses."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from .editor import Editor

__all__ = ["Processes"]


class Processes:
    """Other processes that fit the same editor; alone where none were launched.

    Args:
        alone: leave processes that were launched out of it.

    Attributes:
        count: how many there are, this one included.
        rank: which of them this one is.
    """

    def __init__(self, alone: bool) -> None:
        self.count = 1 if alone else int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = 0
        if self.count > 1:
            if not distributed.is_initialized():
                distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            self.rank, self.count = distributed.get_rank(), distributed.get_world_size()

    def average(self, editor: Editor, fine: bool) -> bool:
        """Average gradients over the processes; whether all of them had finite ones."""
        grads = [parameter.grad for parameter in editor.parameters() if parameter.grad is not None]
        fine = fine and all(bool(torch.isfinite(grad).all()) for grad in grads)
        if self.count == 1:
            return fine
        flag = torch.tensor([0.0 if fine else 1.0], dtype=torch.float32, device=grads[0].device)
        flat = torch.cat([*[grad.flatten() for grad in grads], flag])
        distributed.all_reduce(flat)
        at = 0
        for grad in grads:
            grad.copy_(flat[at : at + grad.numel()].view_as(grad) / self.count)
            at += grad.numel()
        return float(flat[-1]) == 0

    def share(self, buffers: Sequence[Tensor]) -> None:
        """Give all processes the first one's."""
        for buffer in buffers if self.count > 1 else ():
            distributed.broadcast(buffer, 0)
