"""Fitting an editor: trajectories of edits, a loss on what they did, and its gradient to the networks.

No weight changes: a step's changes enter the forward beside the weights, as leaves, and so does the sum of
those of the steps before. Their gradients then go through the solve and the networks in one product, which is
the exact first-order gradient (MALMEN's two stages, with factors instead of whole matrices).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...interface import Host
from ...model.hooks import Hook, OwnHooks
from ...text.tokens import Pair
from ...weights.solve import factor_norm
from ..inweights.branch import Factors, branch_hooks
from ..inweights.rows import alike
from .config import FitConfig
from .editor import Editor
from .samples import Base, Sample, weighted

__all__ = ["Losses", "Step", "Trajectory"]


class Losses(NamedTuple):
    """A step's terms, detached: the edits' cross-entropy, the divergence of unrelated answers (both weighted
    means), and the squared norm of the changes."""

    edit: float
    kept: float
    norm: float

    def total(self, config: FitConfig) -> float:
        """What is minimised."""
        return self.edit + config.locality_weight * self.kept + config.norm_weight * self.norm


class Step(NamedTuple):
    """One step: its losses, the modules chosen, and the changes, by module."""

    losses: Losses
    chosen: tuple[int, ...] | None
    factors: dict[str, Factors]


class _Row(NamedTuple):
    pair: Pair
    weight: float
    kept: bool


class Trajectory:
    """Edits made one batch after another, from the base model on.

    Args:
        host: the model; frozen and in evaluation mode, with the base model's weights.
        editor: the networks.
        samples: all that will be judged.
        rng: draws what is judged.
    """

    def __init__(self, host: Host, editor: Editor, samples: Sequence[Sample], rng: random.Random) -> None:
        self.host, self.editor, self.config, self.rng = host, editor, editor.config, rng
        self.sites = {site.name: site for site in editor.sites}
        kept = [sample.kept for sample in samples if sample.kept is not None]
        rows = [*(sample.asked for sample in samples), *kept]
        self.base = Base(host, min(s.layer for s in editor.sites), rows, self.config.micro_batch)
        if self.config.locality == "base" and kept:
            for part in alike([len(pair.ids) for pair in kept], self.config.micro_batch, host.text.device):
                self.base.said([kept[i] for i in part])
        self.history: list[list[Sample]] = []
        self.total: dict[str, Tensor] = {}
        self.past = editor.no_past() if self.config.remember else None

    def step(self, batch: list[Sample]) -> Step:
        """Edit a batch, judge it, and add the gradient to the parameters'; `commit` makes it last."""
        self.history = [*self.history, batch][-self.config.back_depth :]
        update = self.editor.make(
            self.host,
            [request for sample in batch for request in sample.edit],
            of=[i for i, sample in enumerate(batch) for _ in sample.edit],
            past=self.past,
            hooks=self._standing(),
            observe=True,
            train=True,
        )
        factors = update.factors(self.editor.sites)
        leaves = {n: (a.detach().requires_grad_(a.requires_grad), b.detach().requires_grad_())
                  for n, (a, b) in factors.items()}  # fmt: skip
        judged = weighted(self.history, self.config, self.rng)
        losses = self._losses(leaves, judged)
        found = [(out, leaf.grad) for n in factors for out, leaf in zip(factors[n], leaves[n], strict=True)
                 if out.requires_grad and leaf.grad is not None]  # fmt: skip
        torch.autograd.backward([out for out, _ in found], [grad for _, grad in found])
        for features in update.features:
            for index, past in enumerate(self.past or ()):
                if update.chosen(index):
                    past.add(features.keys[index])
        mask = None if update.choice is None else update.choice.mask
        chosen = None if mask is None else tuple((mask > 0.5).nonzero()[:, 0].tolist())
        return Step(losses, chosen, {n: (a.detach(), b.detach()) for n, (a, b) in factors.items()})

    def commit(self, step: Step) -> None:
        """Go on with the step's changes."""
        for name, (a, b) in step.factors.items():
            change = a @ b
            self.total[name] = self.total[name] + change if name in self.total else change

    def _standing(self) -> list[Hook]:
        """What was changed so far, beside the weights."""

        def after(total: Tensor) -> Callable[..., Tensor]:
            def add(_m: Any, args: tuple[Any, ...], _kwargs: dict[str, Any], output: Tensor) -> Tensor:
                here = total.to(output.device)
                return output + (args[0].to(here.dtype) @ here).to(output.dtype)

            return add

        return [Hook(self.sites[name].module, "after", after(total)) for name, total in self.total.items()]

    # ------------------------------------------------------------------ the outer loss

    def _losses(self, leaves: dict[str, Factors], judged: Sequence[tuple[Sample, float]]) -> Losses:
        """All terms; their gradients are added to the leaves'."""
        config = self.config
        rows = [_Row(item.asked, weight, False) for item, weight in judged]
        rows += [_Row(item.kept, weight, True) for item, weight in judged if item.kept is not None]
        edit = kept = 0.0
        for part in alike([len(row.pair.ids) for row in rows], config.micro_batch, self.host.text.device):
            terms = self._terms(leaves, [rows[i] for i in part])
            (terms[0] + config.locality_weight * terms[1]).backward()
            edit, kept = edit + float(terms[0].detach()), kept + float(terms[1].detach())
        norm = torch.stack([factor_norm(a, b).square().cpu() for a, b in leaves.values()]).sum()
        if config.norm_weight:
            (config.norm_weight * norm).backward()
        return Losses(edit, kept, float(norm.detach()))

    def _terms(self, leaves: dict[str, Factors], rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
        """The weighted cross-entropy of the rephrasings and divergence of the unrelated rows."""
        with OwnHooks([*self._standing(), *branch_hooks(self.sites, leaves)]):
            logits, at = self.base.logits([row.pair for row in rows])
        weights = torch.tensor([row.weight for row in rows], dtype=logits.dtype, device=logits.device)
        weight = weights[at.row] / at.size
        kept = torch.tensor([row.kept for row in rows], device=logits.device)[at.row]
        edit = (self._edit_loss(logits[~kept], at.target[~kept]) * weight[~kept]).sum()
        held = [row.pair for row in rows if row.kept]
        if not held:
            return edit, edit.detach() * 0
        found, before = logits[kept].log_softmax(-1), self._anchor(held)
        apart = F.kl_div(found, before, reduction="none", log_target=True).sum(-1)
        return edit, (apart * weight[kept]).sum()

    @staticmethod
    def _edit_loss(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")

    @torch.no_grad()
    def _anchor(self, pairs: Sequence[Pair]) -> Tensor:
        """Log-probabilities that unrelated answers are held to: the base model's, or what they were."""
        if self.config.locality == "base":
            return self.base.said(pairs)
        with OwnHooks(self._standing()):  # the step's own changes are left out
            return self.base.logits(pairs)[0].log_softmax(-1)
