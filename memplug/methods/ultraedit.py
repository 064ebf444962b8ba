"""UltraEdit: editing without training. Normalised features, no network, one joint solve."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from .hypernet.config import EditorConfig, FitConfig
from .hypernet.method import WeightEditor

__all__ = ["UltraEdit", "UltraEditConfig"]


@dataclass(frozen=True)
class UltraEditConfig(EditorConfig):
    """UltraEdit (training-free lifelong editing by normalised features)."""

    statistics: Literal["frozen", "stream"] = "frozen"
    """"frozen": from the base model's own sampled text; "stream": from all edits so far, as published."""

    paper: ClassVar[dict[str, Any]] = EditorConfig.published | {
        "statistics": "stream",
        "batch_size": 100,
    }

    former: ClassVar[dict[str, Any]] = EditorConfig.former | dict.fromkeys(
        field.name
        for field in fields(FitConfig)
        if field.name not in {one.name for one in fields(EditorConfig)}
    )
    choices: ClassVar[dict[str, tuple[Any, ...]]] = EditorConfig.choices | {
        "statistics": ("frozen", "stream")
    }


class UltraEdit(WeightEditor):
    """No network and no fitting: values are ``-lr (k^ . k^) g^`` of normalised keys and gradients.

    Unless ``statistics="stream"``, means and deviations come from the base model's own sampled text and stay,
    so that an edit does not depend on how many were made before it.
    """

    name = "ultraedit"

    def _observes(self) -> bool:
        return bool(self.config.statistics == "stream")
