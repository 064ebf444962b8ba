"""Which methods are compared: a label each, and how its plug is attached."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..methods import choose, find_method
from ..methods.base import ChangesWeights
from ..opening import attach
from ..plugin import Plug

__all__ = ["Contender", "contenders", "parse_constants"]

# Families that the class does not tell.
_FAMILIES = {"icl": "prompt", "lora": "weights"}


@dataclass(frozen=True)
class Contender:
    """One method with its constants, under a label.

    Attributes:
        label: what it is called in tables and files.
        name: the method's registered name.
        preset: "default" or "paper"; not looked at where a config object was given.
        constants: constants by name, on top of the preset.
        config: a config object, where one was given.
    """

    label: str
    name: str
    preset: str = "default"
    constants: Mapping[str, Any] = field(default_factory=dict)
    config: Any = None

    @property
    def family(self) -> str:
        """ "memory", "weights" or "prompt": where the edits are kept."""
        cls = find_method(self.name).method
        told = getattr(cls, "family", None) or _FAMILIES.get(self.name)
        return told or ("weights" if isinstance(cls, type) and issubclass(cls, ChangesWeights) else "memory")

    def chosen(self) -> Any:
        """The config as far as it is known before a model is there.

        Raises:
            ValueError: no such method, preset or constant.
        """
        return (
            self.config
            if self.config is not None
            else choose(self.name, self.preset, dict(self.constants))[1]
        )

    def asked(self) -> dict[str, Any]:
        """What was asked for, plain enough to compare with an earlier run's."""
        constants = asdict(self.config) if self.config is not None else dict(self.constants)
        return {
            "name": self.name,
            "preset": None if self.config is not None else self.preset,
            "constants": json.loads(json.dumps(constants, default=str)),
        }

    def with_constants(self, **constants: Any) -> Contender:
        """The same with those of these constants that the method has and nobody set."""
        known = {f.name for f in fields(find_method(self.name).config)}
        new = {n: v for n, v in constants.items() if n in known and n not in self.constants}
        return (
            self if self.config is not None or not new else replace(self, constants={**self.constants, **new})
        )

    def paths(self) -> dict[str, Any]:
        """The constants that name files or folders, for `memplug.load`."""
        constants = asdict(self.config) if self.config is not None else self.constants
        known = getattr(find_method(self.name).config, "paths", ())
        return {name: constants[name] for name in known if constants.get(name) is not None}

    def attach(self, model: Any, tokenizer: Any, editor: Path | None = None) -> Plug:
        """A fresh plug on ``model``; with ``editor``, one that takes up a fitted editor."""
        if self.config is not None:
            return attach(model, tokenizer, self.config, editor=editor)
        return attach(model, tokenizer, self.name, preset=self.preset, editor=editor, **self.constants)


def contenders(
    methods: Iterable[Any], constants: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Contender]:
    """Read what a user names.

    Args:
        methods: each a method's name, ``"name:preset"``, ``"label=name:preset"``, a config object, or a pair
            (label, any of these).
        constants: constants by label or by method name.

    Raises:
        ValueError: no methods, an unknown one, two under one label, or constants for none of them.
    """
    found = [_contender(item) for item in methods]
    if not found:
        raise ValueError("no methods to compare; name at least one, such as 'llp'")
    labels = [one.label for one in found]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ValueError(
            f"{sorted(twice)[0]!r} is there twice; give a pair (label, config) with a label of its own"
        )
    for target, values in (constants or {}).items():
        if target not in labels and target not in [one.name for one in found]:
            raise ValueError(f"constants for {target!r}, which is not compared; compared are {labels}")
        # A label means that one; a name means all variants that have no constants under their own label.
        found = [
            replace(one, constants={**one.constants, **values})
            if one.label == target or (target not in labels and one.name == target)
            else one
            for one in found
        ]
    for one in found:
        if one.config is not None and one.constants:
            raise ValueError(
                f"{one.label!r} is a config object, which comes with its constants; set them there"
            )
        one.chosen()
    return found


def _contender(item: Any) -> Contender:
    if isinstance(item, tuple):
        if len(item) != 2 or not isinstance(item[0], str) or not item[0].strip():
            raise ValueError(f"{item!r} is no pair of a label and a method; write (label, name or config)")
        return replace(_contender(item[1]), label=item[0].strip())
    if isinstance(item, str):
        label, _, text = item.rpartition("=")
        name, _, preset = text.strip().partition(":")
        return Contender(label.strip() or text.strip(), find_method(name).name, preset or "default")
    registered, config = choose(item, "default", {})
    return Contender(registered.name, registered.name, config=config)


def parse_constants(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Constants by label or method name, from ``METHOD.KEY=VALUE``; values are JSON, or else plain text.

    Raises:
        ValueError: a text of another form.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in settings:
        left, equals, value = text.partition("=")
        method, dot, key = left.strip().rpartition(".")
        if not (equals and dot and method and key):
            raise ValueError(f"{text!r} sets nothing; write METHOD.KEY=VALUE, such as llp.threshold=0.8")
        try:
            found.setdefault(method, {})[key] = json.loads(value)
        except json.JSONDecodeError:
            found.setdefault(method, {})[key] = value.strip()
    return found
