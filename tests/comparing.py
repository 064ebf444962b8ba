"""Shared by the tests of comparisons: cases, quick settings, and what has to be the same from run to run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import toy
from families import TEXTS

import memplug
from memplug.comparison import run
from memplug.comparison.checkpoint import Checkpoint
from memplug.edits import Case, Edit, Probe
from memplug.methods import METHODS

NAMES = ["Ada Quill", "Tam Wickes", "Orlo Bridge", "Zar Vest", "Mar Row", "Wick Land"]


def case(index: int) -> Case:
    """The case of one name."""
    name = NAMES[index]
    return Case(
        Edit(f"Where was {name} born?", ["Zarnow", "Marrow"][index % 2], name),
        rephrases=(f"{name} was born in",),
        locality=(Probe("Who founded it?", "Tam"), Probe("Who taught?", "Ada")),
    )


CASES = [case(i) for i in range(6)]
SETTINGS = {"batch": 2, "points": [2, 4], "max_new_tokens": 6, "progress": False}


def figures(comparison: memplug.Comparison) -> dict[str, Any]:
    """The results without what differs from one run to the next: times, memory, the machine, the moment."""
    results = json.loads(json.dumps(comparison.results))
    del results["environment"]
    for one in results["runs"]:
        for name in ("cost", "environment", "command"):
            one.pop(name)
        for point in one["curve"]:
            point.pop("seconds")
        if one["fit"]:
            one["fit"] = {k: v for k, v in one["fit"].items() if k in ("steps", "cases", "parameters")}
    return results


def no_nan(value: Any) -> bool:
    """Whether all numbers in it are finite."""
    if isinstance(value, dict | list):
        return all(map(no_nan, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


@contextmanager
def stopped_after(saves: int) -> Iterator[None]:
    """Inside, a comparison is interrupted as soon as runs have been saved so many times."""
    save, count = Checkpoint.save, []

    def stopping(*given: Any) -> None:
        save(*given)
        count.append(given)
        if len(count) == saves:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            yield


@contextmanager
def quick_toys() -> Iterator[None]:
    """Inside, the toys are among the methods, and times are measured, but not for long."""
    toy.register()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "overhead", partial(run.overhead, turns=1, steps=2, seconds=0))
            yield
    finally:
        for name in ("toy", "toyfit"):
            METHODS.pop(name, None)


def tiny(make_tokenizer: Any, make_llama: Any) -> tuple[Any, Any]:
    """A model and its tokenizer."""
    tokenizer = make_tokenizer(TEXTS)
    return make_llama(len(tokenizer), num_hidden_layers=2), tokenizer
