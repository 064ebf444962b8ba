"""An unfinished run on the disk: what is known so far, and the plug that goes with it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation import Answer
from ..files import LoadError, write_atomically
from ..opening import load
from ..plugin import Plug
from .folder import plain

__all__ = ["Keeper", "Tally", "all_made", "plug_folder", "save", "take_up"]

_FILE = "progress.json"
_SECONDS = 60.0
_SHARE = 0.05


@dataclass
class Tally:
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


class Keeper:
    """Says when a run between two points has gone unsaved for too long, and times each saving in a ``with``.

    A minute at least, and so long that saving takes no more than a twentieth of the time: a ledger of
    thousands of edits is hundreds of megabytes.
    """

    def __init__(self) -> None:
        self._began = self._ended = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save."""
        took = self._ended - self._began
        return time.monotonic() - self._ended >= max(_SECONDS, took / _SHARE)

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()


def plug_folder(state: Path, tally: Tally) -> Path:
    """Where in a run's state its plug is."""
    return state / f"plug-{tally.done}"


def save(state: Path, plug: Plug, tally: Tally) -> None:
    """The plug first, then the file that names it, so that the two always belong together."""
    state.mkdir(parents=True, exist_ok=True)
    folder = plug_folder(state, tally)
    shutil.rmtree(folder, ignore_errors=True)
    plug.save(folder)
    rows = [row.to_dict() for row in tally.immediate]
    values = plain({**vars(tally), "immediate": rows, "plug": folder.name})
    write_atomically(state / _FILE, json.dumps(values, ensure_ascii=False).encode())
    for old in state.glob("plug-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)


def take_up(state: Path, model: Any, tokenizer: Any, paths: Mapping[str, Any]) -> tuple[Plug, Tally] | None:
    """What `save` wrote, with the plug on the model; None where there is nothing. ``paths`` as for `load`.

    Raises:
        LoadError: the plug is damaged, or belongs to another model.
    """
    if not (state / _FILE).is_file():
        return None
    try:
        values = json.loads((state / _FILE).read_bytes())
        folder = state / values.pop("plug")
        rows = [Answer.of(row) for row in values.pop("immediate")]
        tally = Tally(**values, immediate=rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"{state / _FILE} is damaged ({error!r})") from error
    return load(folder, model, tokenizer, **paths), tally


def all_made(state: Path, edits: int) -> bool:
    """Whether what `save` wrote holds all edits of a run, so that it has only to be judged."""
    try:
        return bool(json.loads((state / _FILE).read_bytes())["done"] == edits)
    except (OSError, ValueError, KeyError, TypeError):
        return False
