"""The files of a comparison, so that it can be stopped at any moment and go on.

    settings.json             what decides the figures; a run with other settings is refused
    base/<seed>.json          the unedited model's scores
    runs/<label>-seed<seed>.json      a run that is done, or failed
    state/<label>-seed<seed>/         a `Checkpoint` of an unfinished run, and of one that made all edits and
                                      failed when it was judged
    editors/<label>-seed<seed>.safetensors, .json    a fitted editor and what fitting it cost
    results.json              all runs

Every file is written whole or not at all.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..saving.files import write_atomically
from .settings import FITTING, Settings, SettingsError, differences
from .specs import MethodSpec

__all__ = ["Folder", "plain"]

_PARTS = ("base", "runs", "state", "editors")


@dataclass(frozen=True)
class Folder:
    """A comparison's folder.

    Attributes:
        root: where it is.
    """

    root: Path

    def open(self, settings: Settings, identity: Mapping[str, Any], specs: Sequence[MethodSpec]) -> None:
        """Make the folder, or go on in one that holds the same comparison.

        The constants of a method may change while no run of it is done or under way, and what editors are
        fitted on while none of those used one that was fitted here. What failed with the earlier ones is
        then removed.

        Args:
            settings: of this comparison.
            identity: names of the model and the data.
            specs: the methods.

        Raises:
            SettingsError: it is a file, holds something else, or another comparison (what differs is named).
        """
        root, path = self.root, self.root / "settings.json"
        if root.exists() and not root.is_dir():
            raise SettingsError(f"{root} is a file; name a folder")
        if root.is_dir() and any(root.iterdir()) and not path.is_file():
            raise SettingsError(f"{root} has files that are not a comparison; name an empty or a new folder")
        now = plain({**settings.to_dict(), **identity})
        now["contenders"] = {spec.label: plain(spec.asked()) for spec in specs}
        # Where nothing was made, what stopped it may have been the settings.
        if path.is_file() and any(file.is_file() for part in _PARTS for file in (root / part).rglob("*")):
            before, stale = self._binding(self.read(path), now)
            found = differences(before, now)
            if found:
                raise SettingsError(
                    f"{root} holds a comparison with other settings: {'; '.join(found)}. Give the same "
                    "settings to go on with it, or name another folder"
                )
            for file in (file for label in stale for part in _PARTS for file in self._files(part, label)):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            for name in ("contenders", "orders"):
                now[name] = {**before.get(name, {}), **now[name]}
        for name in _PARTS:
            (root / name).mkdir(parents=True, exist_ok=True)
        self.write(path, now)

    def _binding(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The earlier settings less those on which no run rests, and the labels whose files are to go."""
        refit = any(before.get(name) != now.get(name) for name in FITTING)
        labels = before.get("contenders", {})
        others = {label for label, asked in now["contenders"].items() if labels.get(label, asked) != asked}
        if not refit and not others:
            return dict(before), []
        runs = [self.read(file) for file in (self.root / "runs").glob("*.json")]
        used = [(run["method"], run.get("fit")) for run in runs if run["status"] == "done"]
        states = [(label, state) for label in labels for state in self._files("state", label)]
        for label, state in states:
            under_way = not (self.root / "runs" / f"{state.name}.json").is_file()
            if under_way and (saved := self.read(state / "progress.json")):
                used.append((label, saved.get("fit")))
        in_use = {label for label, _ in used}
        stale = [label for label in labels if label not in in_use and (refit or label in others)]
        free = FITTING if refit and not any(fit and not fit.get("shipped") for _, fit in used) else ()
        kept = {name: value for name, value in before.items() if name not in free}
        return {**kept, "contenders": {k: v for k, v in labels.items() if k not in stale}}, stale

    def _files(self, part: str, label: str) -> list[Path]:
        """All of a method's files or folders in a part, of any seed."""
        ours = re.compile(re.escape(_named(label)) + r"-seed\d+(\..*)?")
        return [path for path in (self.root / part).glob("*") if ours.fullmatch(path.name)]

    def write(self, path: Path, values: Any) -> None:
        """Write JSON."""
        text = json.dumps(plain(values), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text.encode())

    def read(self, path: Path) -> Any:
        """What `write` wrote; None where there is nothing."""
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise SettingsError(f"{path} is damaged ({error}); remove it to have it made anew") from error

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


def plain(value: Any) -> Any:
    """The value for JSON: numbers that are not finite as None, tuples as lists, the unknown as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _named(label: str) -> str:
    """The label as a file name; those with the same letters and other signs get a mark to tell them apart."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", label)
    return safe if safe == label else f"{safe}-{sum(ord(c) * 31**i for i, c in enumerate(label)) % 16**6:06x}"
