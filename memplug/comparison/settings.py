"""How a comparison is made: everything that decides its figures, checked before anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.encoding import longest
from ..text import Text
from .casebook import Casebook
from .contenders import Contender

__all__ = ["Settings", "SettingsError", "changed", "default_points", "differences", "named", "room"]


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
        general_sets: of each that can tell, what was asked: kind, number of questions, digest of a file.
        drop: oddities left out of the cases.
        probes: how many probes of a kind are asked about a case at most; None asks all.
        fit_cases: what editors are fitted on: how many further cases at most, a source, or None.
        fit_steps: steps of a fitting; None leaves each method its own.
        device, dtype: of the model.
        command: the command line, if there was one.
        chat: whether every prompt that is a text stood in the chat template, as one user turn.

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
        for name in self.general:
            if self.general.count(name) > 1 or f"{name}_norm" in self.general:
                raise SettingsError(
                    f"general has several sets whose figures would be called {name!r} or {name + '_norm'!r}; "
                    "rename a file, or compare with one of them at a time"
                )
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


FITTING = ("fit_cases", "fit_steps")
"""Settings that matter only to editors that are fitted in the folder."""

_EARLIER = {"chat": False}
"""What folders of earlier versions do not say."""


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], contenders: Sequence[Contender]
) -> list[str]:
    """What keeps a comparison from going on in the folder of an earlier one; each as a sentence.

    Other methods and further seeds may join. A label stands for the same constants in all of a folder.
    Leave out of ``before`` what may change: `FITTING`, and labels in ``before["contenders"]``.
    """
    free = {"methods", "seeds", "orders", "command", "data", "general_sets"}
    free |= {name for name in FITTING if name not in before}
    before = {**_EARLIER, **before}
    found = [
        f"{name} is {now[name]!r}, was {before.get(name)!r}"
        for name in now
        if name not in free and before.get(name) != now[name]
    ]
    for whole in ("data", "general_sets"):
        # Folders of earlier versions know less: what both know has to be the same.
        old, new = before.get(whole) or {}, now.get(whole) or {}
        found += [
            f"{whole.split('_')[0]} {name} is {_counted(new[name])!r}, was {_counted(old[name])!r}"
            for name in new
            if name in old and _counted(old[name]) != _counted(new[name])
        ]
    orders = before.get("orders", {})
    found += [
        f"the cases of seed {seed} are not the same"
        for seed, digest in now.get("orders", {}).items()
        if orders.get(seed, digest) != digest
    ]
    earlier = before.get("contenders", {})
    return found + [
        f"{one.label} is {one.asked()!r}, was {earlier[one.label]!r}" for one in changed(before, contenders)
    ]


def changed(before: Mapping[str, Any], contenders: Sequence[Contender]) -> list[Contender]:
    """Those of the methods that had other constants before."""
    earlier = before.get("contenders", {})
    return [one for one in contenders if one.label in earlier and earlier[one.label] != one.asked()]


def room(model: Any, tokenizer: Any, book: Casebook) -> int:
    """Tokens that the longest target needs with its end, and 32 at least; the same for all seeds."""
    return max(32, 2 + longest(Text(model, tokenizer), book.targets()))


def named(fit_cases: Any) -> int | str | None:
    """What editors are fitted on, as it stands in the settings."""
    if fit_cases is None or isinstance(fit_cases, int | str):
        return fit_cases
    return str(fit_cases) if isinstance(fit_cases, Path) else f"{len(fit_cases)} cases"


def _counted(value: Any) -> Any:
    """A value without where its file lies, which says nothing about what is in it."""
    return {k: v for k, v in value.items() if k != "file"} if isinstance(value, Mapping) else value


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number of at least {least}")
