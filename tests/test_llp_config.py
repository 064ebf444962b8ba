"""LLP's constants: presets, layers by depth, and every range."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from memplug.methods.llp.config import _CHOICES, _RANGES, PAPER, LLPConfig
from memplug.retrieval import config as retrieval

RANGES = (*retrieval._RANGES, *_RANGES)
CHOICES = retrieval._CHOICES | _CHOICES


@pytest.mark.parametrize(
    ("depth", "think", "recall"),
    [(32, tuple(range(8)), 10), (12, (0, 1, 2), 4), (4, (0,), 1), (2, (0,), 1), (80, tuple(range(20)), 25)],
)
def test_layers_by_depth_of_the_published_procedure(depth, think, recall):
    config = LLPConfig(scope="row").resolve(depth)
    assert (config.think_layers, config.recall_layer) == (think, recall)
    assert config.resolve(depth) == config


@pytest.mark.parametrize(
    ("depth", "think", "recall"),
    [
        (30, (2, 3, 4, 6), 20),
        (32, (2, 3, 4, 6), 21),
        (12, (1, 2), 8),
        (4, (0, 1), 3),
        (2, (0,), 1),
        (80, (6, 8, 11, 16), 53),
    ],
)
def test_layers_by_depth(depth, think, recall):
    config = LLPConfig().resolve(depth)
    assert (config.think_layers, config.recall_layer) == (think, recall)
    assert config.resolve(depth) == config


def test_one_of_the_two_is_chosen_to_fit_the_other():
    for scope, recall in (("row", 10), ("answer", 21)):
        assert LLPConfig(scope=scope, think_layers=[1]).resolve(32).recall_layer == recall
        assert LLPConfig(scope=scope, think_layers=[1]).think_layers == (1,)
        highest = LLPConfig(scope=scope, think_layers=(3, 25)).resolve(32)
        assert (highest.think_layers, highest.recall_layer) == ((3, 25), 26)
    assert LLPConfig(scope="row", recall_layer=2).resolve(32).think_layers == (0, 1)
    assert LLPConfig(scope="row", recall_layer=20).resolve(32).think_layers == tuple(range(8))
    assert LLPConfig(recall_layer=2).resolve(32).think_layers == (1,)
    assert LLPConfig(recall_layer=30).resolve(32).think_layers == (2, 3, 4, 6)


@pytest.mark.parametrize(
    ("given", "depth", "match"),
    [
        ({}, 1, r"the model has 1 layer\(s\); thinking and recalling need at least 2"),
        ({"recall_layer": 12}, 12, "recall_layer is 12, but the model has layers 0 to 11"),
        ({"think_layers": (11,)}, 12, "think layer 11 is not below the recall layer 11"),
        ({"think_layers": (-1,), "recall_layer": 2}, 12, "a think layer is -1"),
        ({"think_layers": (5,), "recall_layer": 5}, 12, "think layer 5 is not below the recall layer 5"),
    ],
)
def test_layers_that_do_not_fit(given, depth, match):
    with pytest.raises(ValueError, match=match):
        LLPConfig(**given).resolve(depth)


def test_presets():
    assert LLPConfig.preset("default") == LLPConfig()
    paper = LLPConfig.preset("paper", n_values=3)
    assert paper == replace(LLPConfig(), **(PAPER | {"n_values": 3}))
    assert (paper.scope, paper.span_keys, paper.mean_key, paper.order) == ("row", False, False, "paper")
    with pytest.raises(ValueError, match=r"no preset 'papers'; there are \['default', 'paper'\]"):
        LLPConfig.preset("papers")
    with pytest.raises(ValueError, match="LLPConfig has no field 'colour'; its fields are .*'think_layers'"):
        LLPConfig.preset("paper", colour=1)


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_ranges(name, low, high):
    for allowed in (low, high):
        assert getattr(LLPConfig(**{name: allowed}), name) == allowed
    for wrong in (low - 1, high + 1, "1", None, True, *([0.5] if isinstance(low, int) else [float("nan")])):
        with pytest.raises(ValueError, match=f"{name} is .*; choose a .* from {low} to {high}"):
            LLPConfig(**{name: wrong})


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name):
    for allowed in CHOICES[name]:
        assert getattr(LLPConfig(**{name: allowed}), name) == allowed
    with pytest.raises(ValueError, match=f"{name} is 'other'; choose one of"):
        LLPConfig(**{name: "other"})


def test_every_constant_is_checked():
    """A new number without a range, or a word without its choices, is noticed."""
    free = {"think_layers", "recall_layer", "relation_layer", "seed"}
    checked = {name for name, *_ in RANGES} | set(CHOICES)
    for field in fields(LLPConfig):
        assert field.name in free | checked or field.type == "bool", field.name
    assert set(PAPER) <= {field.name for field in fields(LLPConfig)}


@pytest.mark.parametrize("layers", [(), (1, 1), 3])
def test_think_layers_have_to_be_several_different_ones(layers):
    with pytest.raises(ValueError, match="think_layers is "):
        LLPConfig(think_layers=layers)
