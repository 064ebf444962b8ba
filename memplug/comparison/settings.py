"""How a comparison is made: everything that decides its figures, checked before anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .contenders import Contender

__all__ = ["Settings", "SettingsError", "default_points", "differences"]


class SettingsError(ValueError):
    """Settings that make no sense, or are not those of the folder's earlier run."""


@dataclass(frozen=True)
class Settings:
    """What every run of a comparison shares.

    Attributes:
        model: how the model is called in the results.
        cases: how the cases are called.
        methods: labels, in order.
        edits: edits of a run.
        batch: edits made together.
        seeds: one run of every method each.
        points: numbers of edits at which the early ones are looked at again; the last is all of them.
        level: coverage of the intervals.
        max_new_tokens: where a generated answer is cut off; 0 generates none.
        batch_size: prompts run at once when scoring.
        general: names of the general sets.
        drop: oddities left out of the cases.
        probes: how many probes of a kind are asked about a case at most; None asks all.
        fit_cases: what editors are fitted on: how many further cases at most, a source, or None.
        fit_steps: steps of a fitting; None leaves each method its own.
        device, dtype: of the model.
        command: the command line, if there was one.

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

    def __post_init__(self) -> None:
        for name in ("edits", "batch", "batch_size"):
            _whole(name, getattr(self, name), 1)
        _whole("max_new_tokens", self.max_new_tokens, 0)
        if self.fit_steps is not None:
            _whole("fit_steps", self.fit_steps, 1)
        if isinstance(self.fit_cases, int):
            _whole("fit_cases", self.fit_cases, 1)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SettingsError(f"seeds are {list(self.seeds)}; give at least one, each once")
        for seed in self.seeds:
            _whole("seed", seed, 0)
        if not 0 < self.level < 1:
            raise SettingsError(f"level is {self.level!r}; it must lie between 0 and 1, 0.95 is usual")
        if not self.points or self.points[-1] != self.edits or sorted(set(self.points)) != list(self.points):
            raise SettingsError(f"points are {list(self.points)}; give growing numbers up to {self.edits}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def default_points(edits: int, batch: int) -> tuple[int, ...]:
    """Where a run of ``edits`` is looked at: half-way up to 100 edits, then 100, 200, 500, 1000, ..., all."""
    if edits <= 100:
        return checked_points([edits // 2] if edits >= 4 else [], edits, batch)
    series = [factor * 10**power for power in range(2, 8) for factor in (1, 2, 5)]
    return checked_points([point for point in series if point < edits], edits, batch)


def checked_points(points: Sequence[int], edits: int, batch: int) -> tuple[int, ...]:
    """Points moved to the end of the batch they lie in, in order, the last of them all edits.

    Raises:
        SettingsError: a point outside of 1..edits.
    """
    _whole("batch", batch, 1)
    for point in points:
        if isinstance(point, bool) or not isinstance(point, int) or not 1 <= point <= edits:
            raise SettingsError(f"there is no point at {point!r} edits; a run has {edits}, from 1 on")
    ends = {min(edits, -(-point // batch) * batch) for point in points}
    return tuple(sorted(ends | {edits}))


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], contenders: Sequence[Contender]
) -> list[str]:
    """What keeps a comparison from going on in the folder of an earlier one; each as a sentence.

    Other methods and further seeds may join; a label stands for the same constants in all of a folder.
    """
    free = {"methods", "seeds", "orders", "command"}
    found = [
        f"{name} is {now[name]!r}, was {before.get(name)!r}"
        for name in now
        if name not in free and before.get(name) != now[name]
    ]
    orders = before.get("orders", {})
    found += [
        f"the cases of seed {seed} are not the same"
        for seed, digest in now.get("orders", {}).items()
        if orders.get(seed, digest) != digest
    ]
    earlier = before.get("contenders", {})
    found += [
        f"{one.label} is {one.asked()!r}, was {earlier[one.label]!r}"
        for one in contenders
        if one.label in earlier and earlier[one.label] != one.asked()
    ]
    return found


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number of at least {least}")
