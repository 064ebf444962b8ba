"""UltraEdit: editing without training. Normalised features, no network, one joint solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..chat import Prompt
from ..edits import Edit
from .hypernet.config import EditorConfig
from .hypernet.method import WeightEditor

__all__ = ["UltraEdit", "UltraEditConfig"]


@dataclass(frozen=True)
class UltraEditConfig(EditorConfig):
    """UltraEdit (training-free lifelong editing by normalised features)."""

    steps: int = 5
    """As in `EditorConfig`; several small steps wear the model out less than one large one (published: 1)."""
    statistics: str = "frozen"
    """"frozen": from the base model's own sampled text; "stream": from all edits so far, as published."""

    paper: ClassVar[dict[str, Any]] = EditorConfig.published | {
        "steps": 1,
        "statistics": "stream",
        "batch_size": 100,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.statistics not in ("frozen", "stream"):
            raise ValueError(f"statistics is {self.statistics!r}; choose 'frozen' or 'stream'")


class UltraEdit(WeightEditor):
    """No network and no fitting: values are ``-lr (k^ . k^) g^`` of normalised keys and slopes.

    Unless ``statistics="stream"``, means and deviations come from the base model's own sampled text and stay,
    so that an edit does not depend on how many were made before it.
    """

    name = "ultraedit"
    networks = False

    def _forms(self, edit: Edit) -> Sequence[Prompt]:
        return self._host.text.forms(edit.prompt)

    def _observes(self) -> bool:
        return bool(self.config.statistics == "stream")
