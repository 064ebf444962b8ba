"""Questions about subjects of several kinds, each asked in several ways (``relations.toml``).

From them is learned in which directions the wordings of one question vary (`questions.Metric`), how alike
different questions are, and what else may be asked about a subject.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from itertools import cycle
from typing import NamedTuple

__all__ = ["Wording", "wordings"]


class Wording(NamedTuple):
    """One way to ask something about a subject.

    Attributes:
        kind: the kind of subject.
        relation: what is asked; wordings of one kind and relation ask the same.
        text: with ``{s}`` for the subject.
        name: a subject of this kind.
    """

    kind: str
    relation: str
    text: str
    name: str

    @property
    def open(self) -> bool:
        """Whether it is a statement to be completed, not a question or a request."""
        return self.text[-1] not in "?."

    def about(self, subject: str) -> str:
        """The question about a subject."""
        return self.text.replace("{s}", subject)


def wordings() -> list[Wording]:
    """All of them, always in the same order."""
    found = tomllib.loads((files(__package__) / "relations.toml").read_text(encoding="utf-8"))
    return [
        Wording(kind, relation, text, name)
        for kind, part in found.items()
        for (relation, text), name in zip(
            ((relation, text) for relation, texts in part["asked"].items() for text in texts),
            cycle(part["names"]),
            strict=False,
        )
    ]
