"""Shared by the benchmarks: machine and versions, timing, results as JSON."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
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


def best_of(run: Callable[[], Any], repeats: int, seconds: float = 5.0) -> float:
    """Seconds of the fastest of ``repeats`` runs, after one to warm up; stops early past ``seconds``."""
    run()
    best, start = float("inf"), time.perf_counter()
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
        if time.perf_counter() - start > seconds:
            break
    return best


def interleaved(
    runs: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The fastest of ``repeats`` of each run, taken in turns so that a noisy neighbour hits all alike."""
    for run in runs.values():
        run()
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            begin = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[name] = min(best[name], clock() - begin)
    return best


def write(name: str, results: Any, **given: Any) -> Path:
    """Store results with the machine and the settings; a rerun replaces them."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(
        json.dumps({"machine": machine(), "settings": given, "results": results}, indent=1) + "\n"
    )
    return path
