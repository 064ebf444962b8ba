"""A weight editor whose networks are fitted before they edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ...chat import Prompt
from ...edits import Case, Edit
from ...free_memory import check_room
from ...text import Pair
from .asked import Asked, asked
from .editor import Editor
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
        checkpoint_every: int = 10,
        alone: bool = False,
    ) -> FitReport:
        """Fit from the start, or from a checkpoint; see `fit`. On an error the editor is what it was
        before."""
        for case in cases:
            if not isinstance(case, Case):
                raise FitError(
                    f"fit takes cases, got {type(case).__name__}; give Case(edit, rephrases, locality)"
                )
        if self.config.tokens == "subject":
            cases = [replace(case, edit=case.edit.with_subject()) for case in cases]
        fresh = self._fresh()
        check_room(
            self._fitting_needs(fresh),
            self._host.text.device,
            f"fitting {self.name} to {len(self.sites)} modules ({self.sites[0].name}, ...)",
            "lower rank, fit_batch or micro_batch, or edit fewer modules with ranges",
        )
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

    def _fitting_needs(self, fresh: Editor) -> int:
        """Bytes: what edits take, networks with gradients and Adam's two moments, and the outer batch's
        logits (and their gradients), of which a row has some ten."""
        config, model = self.config, self._host.model
        numbers = sum(parameter.numel() for parameter in fresh.parameters())
        rows = min(config.micro_batch, 2 * (config.fit_batch + (config.back_samples or config.fit_batch)))
        logits = 10 * rows * int(model.get_output_embeddings().weight.shape[0])
        return self._needs() + 16 * numbers + 4 * 4 * logits

    def _forms(self, edit: Edit) -> Sequence[Prompt]:
        return self._host.text.forms(edit.prompt)

    def _asked(self, edits: Sequence[Edit], forms: Sequence[Sequence[Prompt]]) -> Sequence[Pair | Asked]:
        return asked(self._host, edits, forms)

    def editor_state(self) -> dict[str, Tensor]:
        """The networks and their statistics.

        Raises:
            UnfittedError: there is nothing yet.
        """
        if not bool(self.editor.fitted):
            raise UnfittedError("there is no fitted editor to save; call plug.fit(cases) first")
        return dict(self.editor.state_dict())
