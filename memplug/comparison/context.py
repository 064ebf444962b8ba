"""What all runs of a comparison share, and how the model is asked in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..edits import Case
from ..evaluation import Answer, Reference, Scores, ask, refer
from ..evaluation.general import General
from .cases import CaseSource, Drawn
from .folder import Folder
from .processes import Processes
from .settings import Settings

__all__ = ["RunContext"]


@dataclass(frozen=True)
class RunContext:
    """What all runs share.

    Attributes:
        model, tokenizer: the model, unedited between runs.
        settings: of the comparison.
        folder: its files.
        source: where cases come from.
        general: the general sets.
        fit_cases: the cases to fit on, or how many further ones; None to fit none.
        processes: that share the runs.
        progress: show bars.
        seed, drawn, reference: a seed, its cases, and the unedited model on them.
    """

    model: Any
    tokenizer: Any
    settings: Settings
    folder: Folder
    source: CaseSource
    general: Sequence[General] = ()
    fit_cases: int | Sequence[Case] | None = None
    processes: Processes = field(default_factory=Processes)
    progress: bool = True
    seed: int = 0
    drawn: Drawn = field(default_factory=lambda: Drawn((), ()))
    reference: Reference = field(default_factory=lambda: Reference({}, {}, 0))

    def at(self, seed: int) -> RunContext:
        """The same for a seed."""
        settings, drawn = self.settings, self.source.draw(self.settings.edits, seed)
        reference = refer(
            self.model,
            self.tokenizer,
            drawn.cases,
            everything=True,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
        )
        return replace(self, seed=seed, drawn=drawn, reference=reference)

    def cases_to_fit(self) -> list[Case] | None:
        """The cases to fit an editor on with this seed; None to fit none."""
        if self.fit_cases is None:
            return None
        return self.source.fitting(self.fit_cases, self.settings.edits, self.seed)

    def ask(self, at: Sequence[int]) -> list[Answer]:
        """Rows about the cases with these numbers."""
        rows = ask(
            self.model,
            self.tokenizer,
            [self.drawn.cases[i] for i in at],
            self.reference,
            batch_size=self.settings.batch_size,
            max_new_tokens=self.settings.max_new_tokens,
        )
        return [row._replace(case=at[row.case]) for row in rows]

    def scores(self, rows: Sequence[Answer]) -> Scores:
        """Scores of rows."""
        return Scores.from_answers(rows, level=self.settings.level)
