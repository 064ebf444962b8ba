"""Which methods are compared: a label each, and how its plug is attached."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..attaching import attach
from ..methods import FAMILIES, choose, find_method
from ..plugin import Plug

__all__ = ["MethodSpec", "method_specs", "parse_constants"]


@dataclass(frozen=True)
class MethodSpec:
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
        return FAMILIES.get(self.name, "weights")

    def chosen(self) -> Any:
        """The config as far as it is known before a model is there.

        Raises:
            ValueError: no such method, preset or constant.
        """
        return self.config or choose(self.name, self.preset, dict(self.constants))[1]

    def asked(self) -> dict[str, Any]:
        """What was asked for, plain enough to compare with an earlier run's."""
        constants = dict(self.constants) if self.config is None else asdict(self.config)
        return {
            "name": self.name,
            "preset": self.preset if self.config is None else None,
            "constants": json.loads(json.dumps(constants, default=str)),
        }

    def with_constants(self, **constants: Any) -> MethodSpec:
        """The same with those of these constants that the method has and nobody set."""
        if self.config is not None:
            return self
        known = {one.name for one in fields(find_method(self.name).config)}
        return replace(
            self, constants={k: v for k, v in constants.items() if k in known} | {**self.constants}
        )

    def paths(self) -> dict[str, Any]:
        """The constants that name files or folders, for `memplug.load`."""
        constants = self.constants if self.config is None else asdict(self.config)
        known = getattr(find_method(self.name).config, "paths", ())
        return {name: constants[name] for name in known if constants.get(name) is not None}

    def attach(self, model: Any, tokenizer: Any, editor: Path | None = None) -> Plug:
        """A fresh plug on ``model``; with ``editor``, one that takes up a fitted editor."""
        if self.config is not None:
            return attach(model, tokenizer, self.config, editor=editor)
        return attach(model, tokenizer, self.name, preset=self.preset, editor=editor, **self.constants)


def method_specs(
    methods: Iterable[Any], constants: Mapping[str, Mapping[str, Any]] | None = None
) -> list[MethodSpec]:
    """Read what a user names.

    Args:
        methods: each a method's name, ``"name:preset"``, ``"label=name:preset"``, a config object, or a pair
            (label, any of these).
        constants: constants by label, or by the name of a method, which means all of its variants.

    Raises:
        ValueError: no methods, an unknown one, two under one label, or constants for none of them.
    """
    found = [_spec(item) for item in methods]
    if not found:
        raise ValueError("no methods to compare; name at least one, such as 'llp'")
    labels = [spec.label for spec in found]
    for label in sorted(labels):
        if labels.count(label) > 1:
            raise ValueError(f"{label!r} is there twice; give a pair (label, config) with a label of its own")
    for target, values in (constants or {}).items():
        meant = [spec for spec in found if target == (spec.label if target in labels else spec.name)]
        if not meant:
            raise ValueError(f"constants for {target!r}, which is not compared; compared are {labels}")
        for spec in meant:
            if spec.config is not None:
                raise ValueError(
                    f"{spec.label!r} is a config object, which comes with its constants; set them there"
                )
            found[found.index(spec)] = replace(spec, constants={**spec.constants, **values})
    for spec in found:
        spec.chosen()
    return found


def _spec(item: Any) -> MethodSpec:
    if isinstance(item, tuple):
        if len(item) != 2 or not isinstance(item[0], str) or not item[0].strip():
            raise ValueError(f"{item!r} is no pair of a label and a method; write (label, name or config)")
        return replace(_spec(item[1]), label=item[0].strip())
    if isinstance(item, str):
        label, _, text = item.rpartition("=")
        name, _, preset = text.strip().partition(":")
        return MethodSpec(label.strip() or text.strip(), find_method(name).name, preset or "default")
    registered, config = choose(item, "default", {})
    return MethodSpec(registered.name, registered.name, config=config)


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
            raise ValueError(f"{text!r} sets nothing; write METHOD.KEY=VALUE, such as llp.value_steps=20")
        try:
            found.setdefault(method, {})[key] = json.loads(value)
        except json.JSONDecodeError:
            found.setdefault(method, {})[key] = value.strip()
    return found
