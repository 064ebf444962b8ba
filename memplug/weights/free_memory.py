"""How much memory is free, and refusing what needs more of it before it starts."""

from __future__ import annotations

from pathlib import Path

import torch

from ..edits import EditError

__all__ = ["check_room", "free_bytes"]

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had where ``device`` is; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:  # a container may have less
        most, used = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return free
    return min(free, max(0, most - used))


def check_room(need: int, device: torch.device, what: str, less: str) -> None:
    """Nothing, where ``need`` bytes can be had or nobody knows.

    Args:
        need: bytes.
        device: where.
        what: what needs them, the beginning of the message.
        less: what would need less.

    Raises:
        EditError: they cannot; the message names both numbers.
    """
    free = free_bytes(device)
    if free is not None and need > free:
        where = "main memory" if device.type == "cpu" else f"the memory of {device}"
        raise EditError(
            f"{what} needs about {need / 1e9:.1f} GB beside the model, and {free / 1e9:.1f} GB of {where} "
            f"are free; {less}. Nothing was changed"
        )
