"""Several processes that share the runs of one comparison, as ``accelerate launch`` starts them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

__all__ = ["Processes"]

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is.

    Attributes:
        rank: from 0 on; process 0 gathers.
        count: how many there are.
        local: its number on this machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    _state: Any = None

    @classmethod
    def here(cls) -> Processes:
        """The processes that a launcher started; one where there was none.

        Raises:
            ImportError: there are several, and accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise ImportError(
                "several processes were launched, and accelerate, which joins them, is not installed: "
                "pip install accelerate"
            ) from error
        import torch

        # Runs differ in length: the first to be done may wait for hours.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=14))
        return cls(state.process_index, state.num_processes, state.local_process_index, state)

    def mine(self, items: Sequence[T]) -> list[T]:
        """This process's share, dealt out in turns."""
        return list(items[self.rank :: self.count])

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def device(self, name: str) -> str:
        """The device for this process: with ``cuda``, one GPU each."""
        return f"cuda:{self.local}" if name == "cuda" and self.count > 1 else name
