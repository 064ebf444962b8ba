"""Constants of in-context editing."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Any

from ...configs import check_numbers, from_preset

__all__ = ["ICLConfig"]


@dataclass(frozen=True)
class ICLConfig:
    """Retrieval of edits into the prompt, by LLP's room (`RetrievalConfig` has its constants).

    Wordings are the best of 38 on SmolLM2 (``benchmarks/results/real-retrieval.json``).

    Raises:
        ValueError: a constant out of its range, or a template that leaves out the prompt or the target.
    """

    template: str = "{prompt} {target}."
    """What a note says; ``{prompt}``, ``{target}`` and, if wanted, ``{subject}`` are filled in."""
    front: str = "New fact: "
    """What stands before the notes in plain text."""
    end: str = "\nPrompt:"
    """What stands between the notes and a plain text. IKE's wording (Zheng et al. 2023)."""
    chat_front: str = "Use this fact to answer: "
    """What stands before the notes in a user's turn."""
    chat_end: str = "\nQuestion:"
    """What stands between the notes and the user's own words."""
    k: int = 4
    """Notes read at most, the one that is asked for most last."""

    def __post_init__(self) -> None:
        check_numbers(self, _RANGES, exact=True)
        for name in ("template", "front", "end", "chat_front", "chat_end"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {getattr(self, name)!r}; give a string")
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


_FIELDS = "write {prompt} and {target} where they belong ({subject} if wanted, other braces doubled)"
_RANGES = (("k", 1, 64),)
