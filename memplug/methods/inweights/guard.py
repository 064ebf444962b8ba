"""The collapse guard: what the edited model must still be like, or the last edits are refused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...edits import EditError
from ...interface import Host
from ...retrieval.samples import sample_texts, text_rows
from ...text.tokens import Pair
from ...weights.ledger import Ledger
from .config import WeightConfig
from .rows import flat_rows, predicting

__all__ = ["CollapseError", "Guard", "perplexity"]


class CollapseError(EditError):
    """Edits that would have changed the model past the guard's limits; they were not made."""


class Guard:
    """Looks at the size of the change and at the model's perplexity on held-out texts.

    Args:
        host: the model.
        ledger: its edits.
        config: with ``max_change``, ``max_perplexity``, ``guard_every`` and ``guard_texts``.
    """

    def __init__(self, host: Host, ledger: Ledger, config: WeightConfig) -> None:
        self._host, self._ledger, self._config = host, ledger, config
        self._texts: list[Pair] | None = None
        self._base = 0.0
        self._batches = 0

    def look(self) -> None:
        """To be called after each batch of edits; checks after every ``guard_every`` of them.

        Raises:
            CollapseError: a limit was passed.
        """
        self._batches += 1
        if self._config.guard_every and not self._batches % self._config.guard_every:
            self.check()

    def check(self) -> None:
        """Look at the model as it is now.

        Raises:
            CollapseError: a limit was passed.
        """
        config = self._config
        for name, change in self._ledger.relative_change().items():
            if not change <= config.max_change:
                raise CollapseError(
                    f"the edit was refused: it would change {name} by {change:.2f} times its norm, the limit "
                    f"is {config.max_change}. Edit fewer facts, or raise max_change"
                )
        if self._texts is None:
            with self._ledger.paused(), self._host.tracker.off():
                texts = self._chosen()
                self._base = perplexity(self._host, texts) if texts else 1.0
                self._texts = texts  # last: this may be broken off
        found = perplexity(self._host, self._texts) if self._texts else 1.0
        if not found <= config.max_perplexity * self._base:
            raise CollapseError(
                f"the edit was refused: perplexity on held-out text would be {found:.1f}, "
                f"{found / self._base:.1f} times the base model's, the limit is {config.max_perplexity}. "
                "Edit fewer facts, or raise max_perplexity"
            )

    def _chosen(self) -> list[Pair]:
        text, given = self._host.text, self._config.guard_texts
        texts = given or sample_texts(text, 8, 24, 20, self._config.seed + 1)
        return [pair for pair in text_rows(text, texts, self._config.seed + 1) if len(pair.ids) > 1]


@torch.no_grad()
def perplexity(host: Host, texts: Sequence[Pair]) -> float:
    """Of all tokens after the first, over all texts."""
    batch = host.text.batch([pair.read for pair in texts])
    at = flat_rows(texts, batch.ids.shape[1], batch.ids.device)
    with predicting(host, at.flat):
        logits = host.forward(host.model, batch).logits[0]
    return float(F.cross_entropy(logits.float(), at.target).exp())
