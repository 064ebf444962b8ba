"""A weight editor whose networks are fitted before they edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...edits import Case
from .fit import FitError, FitReport, fit
from .method import UnfittedError, WeightEditor

__all__ = ["FittedEditor"]


class FittedEditor(WeightEditor):
    """A weight editor whose networks are fitted before they edit."""

    def fit(
        self,
        cases: Sequence[Case],
        *,
        progress: bool = True,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 100,
        alone: bool = False,
    ) -> FitReport:
        """Fit from the start, or from a checkpoint; see `fit`. On an error the editor is what it was
        before."""
        for case in cases:
            if not isinstance(case, Case):
                raise FitError(
                    f"fit takes cases, got {type(case).__name__}; give Case(edit, rephrases, locality)"
                )
        fresh = self._fresh()
        with self.ledger.drafting():  # fitting writes weights, for itself alone
            report = fit(
                self._host,
                fresh,
                self.ledger.pristine,
                cases,
                progress=progress,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                alone=alone,
            )
        self._take(fresh)
        return report

    def editor_state(self) -> dict[str, Tensor]:
        """The networks and their statistics.

        Raises:
            UnfittedError: there is nothing yet.
        """
        if not bool(self.editor.fitted):
            raise UnfittedError("there is no fitted editor to save; call plug.fit(cases) first")
        return dict(self.editor.state_dict())
