"""Shared by the benchmarks: machine and versions, timing, results as JSON."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {"python": platform.python_version(), "threads": torch.get_num_threads()}
    for package in ("torch", "transformers", "faiss-cpu", "faiss-gpu"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
    found["cpu"] = names[0] if names else platform.processor()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def table(head: list[str], rows: list[list[str]]) -> str | None:
    """A Markdown table; None without rows."""
    if not rows:
        return None
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(path: Path, results: Any, **given: Any) -> None:
    """Store results with the machine and the settings; a rerun replaces them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    given.pop("out", None)  # a path of this machine
    path.write_text(
        json.dumps({"machine": machine(), "settings": given, "results": results}, indent=1) + "\n"
    )
