"""The files of a comparison, so that it can be stopped at any moment and go on.

    settings.json             what decides the figures; a run with other settings is refused
    base/<seed>.json          the unedited model's scores
    runs/<label>-seed<seed>.json      a run that is done, or failed
    state/<label>-seed<seed>/         answers so far and the plug, of an unfinished run, and of one that made
                                      all edits and failed when it was judged
    editors/<label>-seed<seed>.safetensors, .json    a fitted editor and what fitting it cost
    results.json              all runs

Every file is written whole or not at all.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_atomically
from .contenders import Contender
from .settings import FITTING, Settings, SettingsError, changed, differences

__all__ = ["Folder", "plain"]

_PARTS = ("base", "runs", "state", "editors")


@dataclass(frozen=True)
class Folder:
    """A comparison's folder.

    Attributes:
        root: where it is.
    """

    root: Path

    @classmethod
    def open(
        cls, root: Path, settings: Settings, identity: Mapping[str, Any], contenders: Sequence[Contender]
    ) -> Folder:
        """Make the folder, or go on in one that holds the same comparison.

        The constants of a method may change while no run of it is done or under way, and what editors are
        fitted on while none of those used one that was fitted here. What failed with the earlier ones is
        then removed.

        Args:
            root: the folder.
            settings: of this comparison.
            identity: names of the model and the data.
            contenders: the methods.

        Raises:
            SettingsError: it is a file, holds something else, or another comparison (what differs is named).
        """
        if root.exists() and not root.is_dir():
            raise SettingsError(f"{root} is a file; name a folder")
        path = root / "settings.json"
        if root.is_dir() and any(root.iterdir()) and not path.is_file():
            raise SettingsError(f"{root} has files that are not a comparison; name an empty or a new folder")
        now = plain({**settings.to_dict(), **identity})
        asked = {one.label: plain(one.asked()) for one in contenders}
        if path.is_file():
            before = _read(path)
            if not any(file.is_file() for part in _PARTS for file in (root / part).rglob("*")):
                before = now  # nothing was made: what stopped it may have been these settings
            before, lost = cls(root)._without_failures(before, now, contenders)
            found = differences(before, now, contenders)
            if found:
                raise SettingsError(
                    f"{root} holds a comparison with other settings: {'; '.join(found)}. Give the same "
                    "settings to go on with it, or name another folder"
                )
            for label in lost:
                cls(root)._remove(label)
            asked = {**before.get("contenders", {}), **asked}
            now["orders"] = {**before.get("orders", {}), **now.get("orders", {})}
        for name in _PARTS:
            (root / name).mkdir(parents=True, exist_ok=True)
        folder = cls(root)
        folder.write(path, {**now, "contenders": asked})
        return folder

    def _without_failures(
        self, before: Mapping[str, Any], now: Mapping[str, Any], contenders: Sequence[Contender]
    ) -> tuple[dict[str, Any], list[str]]:
        """The earlier settings less those on which nothing rests, and the labels of which all is to go."""
        other_fit = any(before.get(name) != now.get(name) for name in FITTING)
        others = {one.label for one in changed(before, contenders)}
        if not other_fit and not others:
            return dict(before), []
        labels = before.get("contenders", {})
        held, fitted = self._held(labels)
        lost = [label for label in labels if label not in held and (label in others or other_fit)]
        kept = {**before, "contenders": {k: v for k, v in labels.items() if k not in lost}}
        if other_fit and not fitted:
            kept = {name: value for name, value in kept.items() if name not in FITTING}
        return kept, lost

    def _held(self, labels: Iterable[str]) -> tuple[set[str], bool]:
        """Labels with a run that is done or under way, and whether one of these has an editor fitted here."""
        held, fits = set(), []
        for file in (self.root / "runs").glob("*.json"):
            run = _read(file)
            if run["status"] == "done":
                held.add(run["method"])
                fits.append(run.get("fit"))
        for label in labels:
            for state in self._of(label, "state"):
                if (state / "progress.json").is_file() and not (
                    self.root / "runs" / f"{state.name}.json"
                ).is_file():
                    held.add(label)
                    fits.append(_read(state / "progress.json").get("fit"))
        return held, any(fit and not fit.get("shipped") for fit in fits)

    def _of(self, label: str, part: str) -> list[Path]:
        """All of a method's files or folders in a part, of any seed."""
        ours = re.compile(re.escape(_named(label)) + r"-seed\d+(\..*)?")
        found = (self.root / part).iterdir() if (self.root / part).is_dir() else ()
        return [path for path in found if ours.fullmatch(path.name)]

    def _remove(self, label: str) -> None:
        for part in ("runs", "state", "editors"):
            for path in self._of(label, part):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def write(self, path: Path, values: Any) -> None:
        """Write JSON."""
        write_atomically(
            path, json.dumps(plain(values), indent=1, ensure_ascii=False, allow_nan=False).encode()
        )

    def read(self, path: Path) -> Any:
        """What `write` wrote; None where there is nothing."""
        return _read(path) if path.is_file() else None

    def run(self, label: str, seed: int) -> Path:
        """The file of a finished run."""
        return self.root / "runs" / f"{_named(label)}-seed{seed}.json"

    def base(self, seed: int) -> Path:
        """The file of the unedited model's scores."""
        return self.root / "base" / f"{seed}.json"

    def editor(self, label: str, seed: int) -> Path:
        """The file of a fitted editor."""
        return self.root / "editors" / f"{_named(label)}-seed{seed}.safetensors"

    def state(self, label: str, seed: int) -> Path:
        """The folder of an unfinished run."""
        return self.root / "state" / f"{_named(label)}-seed{seed}"

    def forget(self, label: str, seed: int) -> None:
        """Remove what an unfinished run left."""
        shutil.rmtree(self.state(label, seed), ignore_errors=True)


def plain(value: Any) -> Any:
    """The value for JSON: numbers that are not finite as None, tuples as lists, the unknown as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise SettingsError(f"{path} is damaged ({error}); remove it to have it made anew") from error


def _named(label: str) -> str:
    """The label as a file name; those with the same letters and other signs get a mark to tell them apart."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", label)
    return safe if safe == label else f"{safe}-{sum(ord(c) * 31**i for i, c in enumerate(label)) % 16**6:06x}"
