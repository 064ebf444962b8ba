"""What all configs check alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from memplug.configs import check_choices, check_numbers, from_preset, several_layers


@dataclass(frozen=True)
class Some:
    count: Any = 3
    share: Any = 0.5
    way: str = "up"


LIMITS = (("count", 1, 9), ("share", 0.0, 1.0), ("of_a_subclass", 1, 2))


@pytest.mark.parametrize("exact", [True, False])
def test_numbers_within_their_limits_pass_and_absent_fields_too(exact):
    for given in ({}, {"count": 1}, {"count": 9}, {"share": 0}, {"share": 1.0}):
        check_numbers(Some(**given), LIMITS, exact=exact)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"count": 0}, "count is 0; choose a whole number from 1 to 9"),
        ({"count": 10}, "count is 10; choose a whole number"),
        ({"count": 2.0}, "count is 2.0; choose a whole number"),
        ({"count": True}, "count is True; choose a whole number"),
        ({"count": None}, "count is None; choose a whole number"),
        ({"share": 1.1}, "share is 1.1; choose a value from 0.0 to 1.0"),
        ({"share": float("nan")}, "share is nan; choose a value"),
        ({"share": "a"}, "share is 'a'; choose a value"),
        ({"share": None}, "share is None; choose a value"),
    ],
)
def test_exact_numbers(given, match):
    with pytest.raises(ValueError, match=match):
        check_numbers(Some(**given), LIMITS, exact=True)


def test_where_it_is_not_exact_fractions_and_none_pass_but_nothing_else():
    check_numbers(Some(count=2.5, share=None), LIMITS)
    for given in ({"count": 0}, {"count": "2"}, {"count": True}, {"share": float("nan")}):
        with pytest.raises(ValueError, match="choose a value from"):
            check_numbers(Some(**given), LIMITS)


def test_choices():
    check_choices(Some(), {"way": ("up", "down")})
    with pytest.raises(ValueError, match=r"way is 'left'; choose one of \('up', 'down'\)"):
        check_choices(Some(way="left"), {"way": ("up", "down")})


def test_layers_are_several_and_different():
    assert several_layers("these", [2, 1]) == (2, 1)
    for wrong, match in ((3, "these is 3; give several"), ([], "these is .*at least one"), ([1, 1], "once")):
        with pytest.raises(ValueError, match=match):
            several_layers("these", wrong)


def test_presets():
    presets = {"default": {}, "paper": {"count": 5, "share": 0.1}}
    assert from_preset(Some, presets, "default", {}) == Some()
    assert from_preset(Some, presets, "paper", {"share": 0.2}) == Some(5, 0.2)
    assert presets["paper"] == {"count": 5, "share": 0.1}
    with pytest.raises(ValueError, match=r"no preset 'papers'; there are \['default', 'paper'\]"):
        from_preset(Some, presets, "papers", {})
    with pytest.raises(ValueError, match="Some has no field 'colour'; its fields are .*'count'"):
        from_preset(Some, presets, "paper", {"colour": 1})
