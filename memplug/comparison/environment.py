"""What figures were measured with: versions and machine."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment"]

_FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs")


def environment(device: str) -> dict[str, Any]:
    """Versions, machine, threads and the moment (UTC); ``device`` is where the model runs."""
    on_gpu = device.startswith("cuda")
    return {
        **{name: _version(name) for name in ("memplug", "torch", "transformers")},
        "faiss": _version(*_FAISS),
        **{name: _version(name) for name in ("peft", "lm_eval")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(torch.device(device)) if on_gpu else "cpu",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(*packages: str) -> str | None:
    for package in packages:
        with suppress(PackageNotFoundError):
            return version(package)
    return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
