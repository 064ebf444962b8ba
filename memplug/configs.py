"""What the configs of all methods check alike: numbers in their ranges, choices, layers, presets."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .text.printable import brief

__all__ = [
    "Limit",
    "SavedPath",
    "check_choices",
    "check_numbers",
    "from_json",
    "from_preset",
    "several_layers",
    "without_former",
]

Config = TypeVar("Config")

Limit = tuple[str, float, float]
"""A field with its smallest and largest value."""


class SavedPath(str):
    """A path that stood in a saved plug. It is kept as it is, and not followed: the user has not named it."""

    __slots__ = ()


def check_numbers(config: Any, limits: Iterable[Limit], *, exact: bool = False) -> None:
    """Each field that ``config`` has is a number within its limits.

    Args:
        exact: where a limit is a whole number, so must the value be; and None is no value. Otherwise None
            passes.

    Raises:
        ValueError: one is not.
    """
    for name, low, high in limits:
        value = getattr(config, name, low)
        if value is None and not exact:
            continue
        whole = exact and isinstance(low, int)
        kinds = int if whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            kind = "a whole number" if whole else "a value"
            raise ValueError(f"{name} is {value!r}; choose {kind} from {low} to {high}")


def check_choices(config: Any, choices: Mapping[str, Sequence[Any]]) -> None:
    """Each field holds one of its choices.

    Raises:
        ValueError: one does not.
    """
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} is {getattr(config, name)!r}; choose one of {allowed}")


def several_layers(name: str, layers: Any) -> tuple[int, ...]:
    """The layers that the field ``name`` holds, as a tuple.

    Raises:
        ValueError: none, one twice, or not several.
    """
    if not isinstance(layers, Iterable):
        raise ValueError(f"{name} is {layers!r}; give several: (0, 1, 2)")
    found = tuple(layers)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name} is {found}; name each layer once, at least one")
    return found


def from_preset(
    config: type[Config], presets: Mapping[str, dict[str, Any]], name: str, overrides: dict[str, Any]
) -> Config:
    """A config made from the preset ``name``; ``overrides`` win over it.

    Raises:
        ValueError: no such preset or field.
    """
    if name not in presets:
        raise ValueError(f"no preset {name!r}; there are {sorted(presets)}")
    known = {field.name for field in fields(config)}  # type: ignore[arg-type]
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(f"{config.__name__} has no field {unknown[0]!r}; its fields are {sorted(known)}")
    return config(**(presets[name] | overrides))


def from_json(config: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config from JSON, each of the kind that its annotation names; ranges are not looked at.

    Fields that files written earlier may hold, the config's ``former``, are left out (`without_former`).

    Raises:
        ValueError: an unknown field, or a value of another kind.
    """
    values = without_former(config, values)
    known = {field.name for field in fields(config)}
    kinds = get_type_hints(config)
    for name in values:
        if name not in known:
            raise ValueError(f"{config.__name__} has no field {brief(name)}")
    return {name: _as(kinds[name], value, name) for name, value in values.items()}


def without_former(config: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without those fields that the config had once, where they say nothing any more; see
    `EditorConfig.former`."""
    former = getattr(config, "former", {})
    return {
        name: value
        for name, value in values.items()
        if name not in former or (former[name] is not None and former[name] != value)
    }


def _as(kind: Any, value: Any, name: str) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for one in parts:
            try:
                return _as(one, value, name)
            except ValueError:
                continue
    elif origin is Literal:
        if any(type(value) is type(one) and value == one for one in parts):
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        each = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        if len(each) == len(value):
            return tuple(_as(one, item, name) for one, item in zip(each, value, strict=True))
    elif kind is float:
        if type(value) in (int, float) and math.isfinite(value):
            return value
    elif kind is Any or type(value) is kind:
        return value
    raise ValueError(f"{name} is {brief(value)}, which is not of the kind {kind}")
