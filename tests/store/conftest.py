"""Plugs in one store: an SQLite file, if a test names no other place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import two_facts

import memplug


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "facts.db"


@pytest.fixture
def where(file: Path) -> Any:
    """The store's place."""
    return file


@pytest.fixture
def attach(model: Any, tokenizer: Any, where: Any) -> Iterator[Callable[..., Any]]:
    """Attaches in-context editing, which takes no training, to copies of the model, in one store."""
    made, place = [], where

    def attach(method: str | None = "icl", where: Any = place, on: Any = model, **given: Any) -> Any:
        given = {"k": 2} if method == "icl" and not given else given
        made.append(memplug.attach(copy.deepcopy(on), tokenizer, method, store=where, **given))
        return made[-1]

    yield attach
    for plug in made:
        plug.detach()


@pytest.fixture
def plug(attach: Callable[..., Any]) -> Any:
    """A plug with two facts."""
    return two_facts(attach())
