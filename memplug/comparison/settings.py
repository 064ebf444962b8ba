"""How a comparison is made: everything that decides its figures, checked before anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FITTING", "Settings", "SettingsError", "differences", "named", "points_of"]

_LEAST = {"edits": 1, "batch": 1, "batch_size": 1, "max_new_tokens": 0, "fit_steps": 1, "fit_cases": 1}
_SERIES = [factor * 10**power for power in range(2, 8) for factor in (1, 2, 5)]

FITTING = ("fit_cases", "fit_steps")
"""Settings that matter only to editors that are fitted in the folder."""

_FREE = {"methods", "seeds", "orders", "command", "data", "general_sets", "contenders"}
_EARLIER = {"chat": False}  # what folders of earlier versions do not say


class SettingsError(ValueError):
    """Settings that make no sense, or are not those of the folder's earlier run."""


@dataclass(frozen=True)
class Settings:
    """What every run of a comparison shares; the names are those of `compare` and of the results.

    Attributes:
        model, cases: how they are called in the results.
        methods: labels, in order.
        points: numbers of edits at which the early ones are looked at again; the last is all of them.
        general: names of the general sets.
        fit_cases: what editors are fitted on: how many further cases at most, a source, or None.
        device, dtype: of the model.
        general_sets: of each general set that can tell, what was asked: kind, number, digest of a file.

    Raises:
        SettingsError: a number out of its range.
    """

    model: str
    cases: str
    methods: tuple[str, ...]
    edits: int
    batch: int
    seeds: tuple[int, ...]
    points: tuple[int, ...]
    level: float
    max_new_tokens: int
    batch_size: int
    general: tuple[str, ...]
    drop: tuple[str, ...]
    probes: int | None
    fit_cases: int | str | None
    fit_steps: int | None
    device: str
    dtype: str
    command: str | None = None
    general_sets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    chat: bool = False

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            free = (value is None and name in FITTING) or (name == "fit_cases" and isinstance(value, str))
            if not free:
                _check_whole(name, value, least)
        for seed in self.seeds:
            _check_whole("seed", seed, 0)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SettingsError(f"seeds are {list(self.seeds)}; give at least one, each once")
        for name in self.general:
            if self.general.count(name) > 1 or f"{name}_norm" in self.general:
                raise SettingsError(
                    f"general has several sets whose figures would be called {name!r} or {name + '_norm'!r}; "
                    "rename a file, or compare with one of them at a time"
                )
        if not 0 < self.level < 1:
            raise SettingsError(f"level is {self.level!r}; it must lie between 0 and 1, 0.95 is usual")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def points_of(points: Sequence[int] | None, edits: int, batch: int) -> tuple[int, ...]:
    """Where a run is looked at: each point at the end of the batch it lies in, in order, the last all edits.

    By default half-way up to 100 edits, of more at 100, 200, 500, 1000 and so on.

    Raises:
        SettingsError: a point outside of 1..edits, or ``batch`` is no number to count with.
    """
    _check_whole("batch", batch, 1)
    if points is None:
        points = [n for n in _SERIES if n < edits] if edits > 100 else [edits // 2] if edits >= 4 else []
    for point in points:
        if isinstance(point, bool) or not isinstance(point, int) or not 1 <= point <= edits:
            raise SettingsError(f"there is no point at {point!r} edits; a run has {edits}, from 1 on")
    return tuple(sorted({edits, *(min(edits, -(-point // batch) * batch) for point in points)}))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What keeps a comparison from going on in the folder of an earlier one; each as a sentence.

    Other methods and further seeds may join, but what both name has to be the same. Leave out of ``before``
    what may change: `FITTING`, and labels in ``before["contenders"]``.
    """
    asked = {k: v for k, v in now.items() if k not in _FREE}
    earlier = {**dict.fromkeys(asked.keys() - {*FITTING, "contenders"}), **_EARLIER, **before}
    pairs = [("", earlier, asked)]
    for part, word in (("data", "data "), ("general_sets", "general "), ("contenders", "")):
        pairs.append((word, before.get(part) or {}, now.get(part) or {}))
    both = [
        (word + n, _content(old[n]), _content(new[n])) for word, old, new in pairs for n in new if n in old
    ]
    orders = now.get("orders", {}).items()
    seeds = [seed for seed, digest in orders if before.get("orders", {}).get(seed, digest) != digest]
    return [
        *(f"{name} is {new!r}, was {old!r}" for name, old, new in both if new != old),
        *(f"the cases of seed {seed} are not the same" for seed in seeds),
    ]


def named(fit_cases: Any) -> int | str | None:
    """What editors are fitted on, as it stands in the settings."""
    if fit_cases is None or isinstance(fit_cases, int | str):
        return fit_cases
    return str(fit_cases) if isinstance(fit_cases, Path) else f"{len(fit_cases)} cases"


def _content(value: Any) -> Any:
    """A value without where its file lies, which says nothing about what is in it."""
    return {k: v for k, v in value.items() if k != "file"} if isinstance(value, Mapping) else value


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number of at least {least}")
