"""Constants of in-context editing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from string import Formatter
from typing import Any, Literal

from ...layers import check_layer, fraction
from ..checks import check_choices, check_numbers, from_preset

__all__ = ["ICLConfig"]


@dataclass(frozen=True)
class ICLConfig:
    """Retrieval of edits into the prompt.

    Defaults are the best found on the embedded model.

    Raises:
        ValueError: a constant out of its range, or a template that leaves out the prompt or the target.
    """

    template: str = "Note: {prompt} {target}."
    """What a note says; ``{prompt}``, ``{target}`` and, if wanted, ``{subject}`` are filled in."""
    separator: str | None = None
    """What stands between the notes and the prompt. None: nothing, where the tokenizer puts a space before a
    text by itself; else a line break."""
    k: int = 1
    """Notes read at most, the nearest one last."""
    threshold: float = 0.93
    """Cosine that an edit has to exceed; where none does, the base model answers."""
    layer: int | None = None
    """Layer whose output texts are compared by. None: at `depth`."""
    depth: float = 0.5
    """Share of the depth at which it lies, where `layer` is None."""
    pooling: Literal["last", "mean"] = "last"
    """The state at the prompt's last token, or the mean over its tokens."""
    center: bool = True
    """Take the mean over sampled texts off every embedding, which all texts have in common."""
    heldout: int = 64
    """Texts sampled from the base model for it."""
    heldout_tokens: int = 24
    """Longest of them, in tokens."""
    sample_top_k: int = 5
    """Top-k of that sampling."""
    seed: int = 0
    """Of that sampling."""

    def __post_init__(self) -> None:
        check_numbers(self, _RANGES, exact=True)
        check_choices(self, {"pooling": ("last", "mean"), "center": (True, False)})
        if not isinstance(self.template, str) or not isinstance(self.separator, str | None):
            raise ValueError(f"template is {self.template!r} and separator {self.separator!r}; give strings")
        try:
            fields = [field for field in Formatter().parse(self.template) if field[1] is not None]
        except ValueError as error:
            raise ValueError(f"template {self.template!r} cannot be read ({error}); {_FIELDS}") from error
        if any(spec or conversion for _, _, spec, conversion in fields):  # could ask for a gigabyte of blanks
            raise ValueError(f"template {self.template!r} says how a field is written; {_FIELDS}")
        found = {str(name) for _, name, _, _ in fields}
        if not {"prompt", "target"} <= found <= {"prompt", "target", "subject"}:
            raise ValueError(f"template {self.template!r} has the fields {sorted(found)}; {_FIELDS}")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ICLConfig:
        """``"default"``; fields given by name win.

        Raises:
            ValueError: no such preset or field.
        """
        return from_preset(cls, {"default": {}}, name, overrides)

    def resolve(self, depth: int) -> ICLConfig:
        """This config with the layer filled in for a model of ``depth`` layers.

        Raises:
            ValueError: a layer out of range.
        """
        layer = self.layer
        if layer is None:
            layer = min(fraction(self.depth, depth), depth - 1)
        return replace(self, layer=check_layer(layer, depth, "the layer that texts are compared by"))


_FIELDS = "write {prompt} and {target} where they belong ({subject} if wanted, other braces doubled)"
_RANGES = (
    ("k", 1, 1 << 10),
    ("threshold", -1.0, 1.0),
    ("depth", 0.0, 1.0),
    ("heldout", 1, 1 << 20),
    ("heldout_tokens", 1, 1 << 12),
    ("sample_top_k", 1, 1 << 20),
)
