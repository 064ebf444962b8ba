"""A run's file, which only takes runs under the same settings, and the time that a method may take."""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .facts import Fact

__all__ = ["TimeUp", "kept_runs", "settings_of", "time_limit", "write"]


class TimeUp(Exception):
    """A method took longer than it was given."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeUp` inside the ``with`` once so much time has gone (main thread, Unix)."""

    def stop(*_: Any) -> None:
        raise TimeUp(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def settings_of(args: argparse.Namespace, facts: Sequence[Fact]) -> dict[str, Any]:
    """What the rows of one file share; the edits by their number and a digest of their ids."""
    names = ("model", "device", "dtype", "facts", "part", "batch", "ask", "seed", "limit_unrelated", "about")
    drawn = hashlib.sha256(" ".join(fact.id for fact in facts).encode()).hexdigest()[:12]
    return {name: getattr(args, name) for name in names} | {"edits": len(facts), "drawn": drawn}


def kept_runs(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The runs that are in the file already."""
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text())
    other = [name for name, value in settings.items() if kept["settings"].get(name) != value]
    if other:
        raise SystemExit(f"{path} was made with another {', '.join(other)}; name a new file")
    return dict(kept["runs"])


def write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
