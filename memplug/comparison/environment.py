"""What figures were measured with: versions and machine."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment"]


def environment(device: str) -> dict[str, Any]:
    """Versions, machine, threads and the moment (UTC); ``device`` is where the model runs."""
    found: dict[str, Any] = {}
    for key, packages in {
        "memplug": ("memplug",),
        "torch": ("torch",),
        "transformers": ("transformers",),
        "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs"),
        "peft": ("peft",),
        "lm_eval": ("lm_eval",),
    }.items():
        found[key] = next((v for v in map(_version, packages) if v is not None), None)
    on_gpu = device.startswith("cuda")
    return {
        **found,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(torch.device(device)) if on_gpu else "cpu",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
