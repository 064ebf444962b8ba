"""An unfinished run on the disk: what is known so far, and the plug that goes with it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..attaching import load
from ..evaluation import Answer
from ..plugin import Plug
from ..saving.files import LoadError, write_atomically
from .folder import plain

__all__ = ["Checkpoint", "RunState"]

_SECONDS = 60.0
_SHARE = 0.05


@dataclass
class RunState:
    """What a run knows so far; all of it is saved with the plug.

    Attributes:
        done: edits made.
        seconds: spent on them.
        host, device: peak memory while editing, bytes.
        immediate: rows about each edit right after its batch.
        curve: the points so far.
        warned: what the method warned of, and how often.
        fit: what fitting cost.
        config: the method's constants.
    """

    done: int = 0
    seconds: float = 0.0
    host: int = 0
    device: int | None = None
    immediate: list[Answer] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    warned: dict[str, int] = field(default_factory=dict)
    fit: dict[str, Any] | None = None
    config: dict[str, Any] | None = None

    def warn(self, text: str) -> None:
        """Count a warning."""
        self.warned[text] = self.warned.get(text, 0) + 1


class Checkpoint:
    """Saves a run's state and plug to a folder, and reads them back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._file = folder, folder / "progress.json"
        self._began = self._ended = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save between two points: a minute after the last time at least, and so long
        that saving takes no more than a twentieth of the time, as a ledger may be hundreds of megabytes."""
        took = self._ended - self._began
        return time.monotonic() - self._ended >= max(_SECONDS, took / _SHARE)

    def save(self, plug: Plug, state: RunState) -> None:
        """The plug first, then the file that names it, so that the two always belong together."""
        self._began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        plug_folder = self.folder / f"plug-{state.done}"
        shutil.rmtree(plug_folder, ignore_errors=True)
        plug.save(plug_folder)
        rows = [row.to_dict() for row in state.immediate]
        values = plain({**vars(state), "immediate": rows, "plug": plug_folder.name})
        write_atomically(self._file, json.dumps(values, ensure_ascii=False).encode())
        for old in self.folder.glob("plug-*"):
            if old != plug_folder:
                shutil.rmtree(old, ignore_errors=True)
        self._ended = time.monotonic()

    def load(self, model: Any, tokenizer: Any, paths: Mapping[str, Any]) -> tuple[Plug, RunState] | None:
        """What `save` wrote, with the plug on the model; None where there is nothing.

        ``paths`` as for `memplug.load`.

        Raises:
            LoadError: the plug is damaged, or belongs to another model.
        """
        if not self._file.is_file():
            return None
        try:
            values = json.loads(self._file.read_bytes())
            plug_folder = self.folder / values.pop("plug")
            rows = [Answer.of(row) for row in values.pop("immediate")]
            state = RunState(**values, immediate=rows)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"{self._file} is damaged ({error!r})") from error
        return load(plug_folder, model, tokenizer, **paths), state

    def size(self) -> int:
        """Bytes of the plug that was saved last."""
        return sum(file.stat().st_size for file in self.folder.glob("plug-*/**/*") if file.is_file())

    def holds(self, edits: int) -> bool:
        """Whether all edits of a run were saved, so that it has only to be judged."""
        try:
            return bool(json.loads(self._file.read_bytes())["done"] == edits)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def remove(self) -> None:
        """Forget what was saved."""
        shutil.rmtree(self.folder, ignore_errors=True)
