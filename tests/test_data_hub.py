"""Hub data sets, through a stand-in for the library: which calls are made, and what comes of them."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from memplug.data import DataError, load_cases

ROW = {"prompt": "Where was Mara Voss born?", "target": "Quill"}


@pytest.fixture
def library(monkeypatch):
    calls = []
    library = ModuleType("datasets")

    def load_dataset(name, config):
        calls.append((name, config))
        if name == "nobody/nothing":
            raise FileNotFoundError("Dataset 'nobody/nothing' doesn't exist on the Hub")
        parts = {"train": [ROW], "test": [ROW | {"target": "Sedge"}, {"prompt": "?"}]}
        return parts if name == "me/two" else {"train": [ROW]}

    library.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", library)
    return calls


def test_the_only_split_need_not_be_named(library):
    assert load_cases("hub:me/one").cases[0].edit.target == "Quill"
    assert library == [("me/one", None)]


def test_split_and_configuration(library):
    loaded = load_cases("hub:me/two:test:small", skip_bad=True)
    assert loaded.cases[0].edit.target == "Sedge"
    assert str(loaded.skipped[0]).startswith("hub:me/two, line 2: ")
    assert library == [("me/two", "small")]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            "hub:me/two",
            r"hub:me/two has several splits; name one of \['train', 'test'\]: hub:me/two:train",
        ),
        ("hub:me/two:dev", r"has no split 'dev'"),
        ("hub:nobody/nothing", r"cannot be loaded: Dataset 'nobody/nothing' doesn't exist"),
        ("hub:", r"is no hub data set; write hub:NAME"),
    ],
)
def test_mistakes(library, spec, reason):
    with pytest.raises(DataError, match=reason):
        load_cases(spec)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "memplug\[data\]"'):
        load_cases("hub:me/one")
