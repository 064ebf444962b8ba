"""What was read from a file, checked before it is believed: kinds, ranges, shapes, names.

Every check gives back the value, or raises a ``ValueError`` with a sentence on what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..edits import EditTable
from ..text.printable import brief, printable

__all__ = [
    "check_edits", "check_rest", "check_rising", "many", "names", "number", "numbered_from", "shaped",
    "table", "text", "whole",
]  # fmt: skip

_MOST = 1 << 62


def whole(value: Any, what: str, low: int = 0, high: int = _MOST) -> int:
    """A whole number from ``low`` to ``high``."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is {brief(value)}, not a whole number from {low} to {high}")
    return value


def number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from ``low`` to ``high``."""
    if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{what} is {brief(value)}, not a finite number from {low} to {high}")
    return float(value)


def text(value: Any, what: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is {brief(value)}, not a text")
    return value


def many(value: Any, what: str, count: int | None = None) -> list[Any]:
    """A list, of ``count`` items if that is given."""
    if not isinstance(value, list | tuple) or count not in (None, len(value)):
        raise ValueError(f"{what} is {brief(value)}, not a list" + ("" if count is None else f" of {count}"))
    return list(value)


def names(value: Any, what: str) -> tuple[str, ...]:
    """A list of texts, no two alike."""
    found = tuple(text(one, what) for one in many(value, what))
    if len(set(found)) < len(found):
        raise ValueError(f"{what} names one twice: {brief(value)}")
    return found


def table(value: Any, what: str) -> dict[str, Any]:
    """Values by name."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{what} is {brief(value)}, not values by name")
    return dict(value)


def shaped(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int | None, ...], *dtypes: torch.dtype
) -> Tensor:
    """The tensor of this name, of this shape (None is any size), one of the types, and with finite values."""
    found = tensors.get(name)
    if found is None:
        raise ValueError(f"the tensor {name!r} is missing")
    fits = found.ndim == len(shape) and all(
        want in (None, have) for want, have in zip(shape, found.shape, strict=True)
    )
    if not fits or found.dtype not in dtypes:
        raise ValueError(
            f"the tensor {printable(name)} is {found.dtype} of shape {tuple(found.shape)}, expected "
            f"{' or '.join(map(str, dtypes))} of shape {shape}"
        )
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        raise ValueError(f"the tensor {printable(name)} has values that are not finite")
    return found


def check_rest(tensors: Iterable[str], known: Iterable[str]) -> None:
    """No tensor is there that nobody knows."""
    other = sorted(set(tensors) - set(known))
    if other:
        raise ValueError(f"nothing is known of the tensor {brief(other[0])}")


def numbered_from(meta: Mapping[str, Any]) -> dict[str, int]:
    """By id the numbers in ``meta["numbers"]``, each larger than the one before and less than the next new
    one, ``meta["next"]``."""
    coming = whole(meta["next"], "the next number")
    found = {
        id: whole(one, "a number", 0, coming - 1) for id, one in table(meta["numbers"], "numbers").items()
    }
    check_rising(list(found.values()))
    return found


def check_rising(numbers: list[int]) -> None:
    """Each number is larger than the one before, as they are given."""
    if any(a >= b for a, b in pairwise(numbers)):
        raise ValueError(f"the numbers {brief(numbers)} do not rise")


def check_edits(held: Iterable[str], off: Iterable[str], edits: EditTable) -> None:
    """What a method holds are the edits of the list, each once, and the same ones are switched off."""
    mine, out = list(held), set(off)
    if sorted(mine) != sorted(edits):
        raise ValueError(f"{len(mine)} edits are held and {len(edits)} listed, and they are not the same")
    if out != {id for id in edits if not edits.enabled(id)}:
        raise ValueError("other edits are switched off than the list says")
