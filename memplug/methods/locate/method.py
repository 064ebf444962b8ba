"""The flow of MEMIT and AlphaEdit: wanted states, then one closed-form solve for each layer.

What the two do differently is the metric that a change is measured in: `LocateMethod._inverse_metric` and
`LocateMethod._project`.

Letters: E edits, D width, d_k a module's input width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...edits import Edit
from ...interface import Host
from ...model.architecture import UnsupportedModelError, evaluating
from ...retrieval.samples import sample_texts
from ...weights.entries import Entry, LowRankUpdate
from ...weights.modules import LinearModule
from ..inweights.branch import branch_hooks
from ..inweights.method import LedgerMethod
from .config import LocateConfig
from .covariance import Moments, moments_of
from .rows import look, means, owners, subject_rows
from .target import find_targets

__all__ = ["LocateMethod"]


class LocateMethod(LedgerMethod):
    """Writes the wanted state of the subject's last token into the MLP outputs of a run of layers.

    A batch is solved together. Where an edit of it is deleted or switched off, each layer's system is solved
    again without its row, which is the batch without it, up to the rest that later layers had to make up for.

    Args:
        host: the model.
        config: constants.

    Raises:
        ValueError: modules that do not exist, two of one layer, or one that does not write hidden states.
        UnsupportedModelError: modules that cannot be edited, or no layer above them.
    """

    def __init__(self, host: Host, config: LocateConfig) -> None:
        super().__init__(host, config)
        layers = [site.layer for site in self.sites]
        odd = next((site for site in self.sites if site.d_v != host.architecture.width), None)
        if odd is not None or len(set(layers)) < len(layers):
            what = (
                f"{odd.name}, which has {odd.d_v} outputs"
                if odd is not None
                else f"{self.sites[0].name}, ..."
            )
            raise ValueError(
                f"modules or ranges give {what}; give at most one linear a layer that writes hidden states "
                f'of width {host.architecture.width}, like ranges=(("down", 0.1, 0.3),)'
            )
        self._last = max(layers)
        if self._last + 1 >= len(host.architecture.layers):
            raise UnsupportedModelError(
                f"the last edited layer is {self._last} of {len(host.architecture.layers)}; a state is found "
                "with the layers above it, so that one must be left"
            )
        self._moments: Moments | None = None
        self._prefixes: list[str] | None = None
        self._inverses: dict[str, tuple[tuple[Any, ...], Tensor]] = {}

    # ------------------------------------------------------------------ what the two methods differ in

    def _inverse_metric(self, site: LinearModule, moments: Tensor) -> Tensor:
        """float64 [d_k,d_k], the inverse of the metric before any edit, from the moments [d_k,d_k]."""
        raise NotImplementedError

    def _project(self, site: LinearModule, keys: Tensor) -> Tensor:
        """The part [n,d_k] of keys that a change may be written along; float64; after `_inverse_metric`."""
        return keys

    @property
    def _ridge(self) -> float:
        """Weight of the metric beside the new keys; 0 meets the wanted states exactly."""
        return 1.0

    # ------------------------------------------------------------------ editing

    def _needs(self) -> int:
        """As in `LedgerMethod`; of each module also a moment and the inverse of a metric, in float64."""
        widths = [site.d_k for site in self.sites]
        return super()._needs() + sum(20 * d_k**2 for d_k in widths) + 24 * max(widths) ** 2

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for rows too long or without tokens, EditError where the plug is paused."""
        super().check(edits)
        subject_rows(self._host.text, edits, ())

    def _make(self, edits: Sequence[Edit]) -> Entry:
        host, config = self._host, self.config
        moments = self._know_base()
        prefixes = self._prefixes or []
        wanted = find_targets(host, self._last, edits, prefixes, config)
        rows = subject_rows(host.text, edits, prefixes)
        added = wanted.added[torch.tensor([row.edit for row in rows])]
        owner, aim = owners(rows), torch.empty(0)
        parts: list[LowRankUpdate] = []
        change: dict[str, tuple[Tensor, Tensor]] = {}
        for index, site in enumerate(self.sites):
            hooks = branch_hooks(self.ledger.sites, change)
            seen = look(host, rows, site, self._last, hooks, config.micro_batch)
            aim = seen.hidden + added.to(seen.hidden) if index == 0 else aim
            # What is left to do is shared among this layer and those that follow.
            left = means(aim - seen.hidden, rows) / (len(self.sites) - index)
            keys = means(seen.inputs, rows).double()
            part = self._part(site, moments.by_site[site.name], keys, left, owner)
            change[site.name] = part.factors()
            parts.append(part.kept(half=False))  # the solve is exact, and may have no ridge
        loss = {str(edit.id): round(float(one), 6) for edit, one in zip(edits, wanted.loss, strict=True)}
        notes = {"before": self._before(), "loss": loss}
        return Entry(tuple(str(edit.id) for edit in edits), tuple(parts), notes=notes)

    def _part(
        self, site: LinearModule, moments: Tensor, keys: Tensor, left: Tensor, owner: Tensor
    ) -> LowRankUpdate:
        inverse = self._inverse_with_earlier(site, moments)
        keys = self._project(site, keys)
        directions = keys @ inverse
        where = site.device
        values = left.float().to(where)
        return LowRankUpdate(
            site.name, keys.float(), values, owner.to(where), self._ridge, directions.float().contiguous()
        )

    def _know_base(self) -> Moments:
        """Moments, prefixes: what is asked of the base model, once."""
        if self._moments is None:
            host, config = self._host, self.config
            with self.ledger.paused(), host.tracker.off(), evaluating(host.model):
                self._prefixes = sample_texts(
                    host.text, config.n_prefixes, config.prefix_tokens, config.sample_top_k, config.seed
                )
                self._moments = moments_of(host, self.sites, config)
        return self._moments

    def _inverse_with_earlier(self, site: LinearModule, moments: Tensor) -> Tensor:
        """float64 [d_k,d_k], the inverse of the metric with the keys of all edits that the ledger holds.

        Each entry's keys come in by ``(M + K'K)^-1 = M^-1 - D' (I + K D')^-1 D`` with ``D = K M^-1``, so
        that nothing grows with the number of edits. Switched-off edits count: they may come back.
        """
        held = tuple(entry.parts for entry in self.ledger.entries) if self.config.earlier else ()
        seen, inverse = self._inverses.get(site.name, ((), None))
        if (
            inverse is None
            or len(seen) > len(held)
            or any(a is not b for a, b in zip(seen, held, strict=False))
        ):
            seen, inverse = (), self._inverse_metric(site, moments)
        for parts in held[len(seen) :]:
            mine = [part.keys.to(inverse.device) for part in parts if part.site == site.name]
            keys = torch.cat(mine).double()
            directions = keys @ inverse
            system = torch.eye(len(keys), dtype=keys.dtype, device=keys.device) + keys @ directions.T
            inverse = inverse - directions.T @ torch.linalg.solve(system, directions)
        self._inverses[site.name] = (held, inverse)
        return inverse
