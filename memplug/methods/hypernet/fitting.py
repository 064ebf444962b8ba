"""Fitting an editor: trajectories of edits, a loss on what they did, and its gradient to the networks.

Inside a step no weight changes: the step's changes enter the forward beside the weights, as leaves. Their
gradients then go through the solve and the networks in one product, which is the exact first-order gradient
(MALMEN's two stages, with factors instead of whole matrices). Between two steps the changes made are added
to a float32 sum, and the live weights become its one cast.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...hooks import Hook, OwnHooks
from ...pristine import Pristine
from ...solve import factor_norm
from ...text import Pair
from ..base import Host
from .branch import Factors, branch_hooks
from .capture import alike
from .config import EditorConfig
from .editor import Editor, Made
from .samples import Prepared, Row, autocast, logits_of, row_of, weighted

__all__ = ["Losses", "Step", "Trajectory"]


class Losses(NamedTuple):
    """A step's terms, detached: the edits' cross-entropy, the divergence of unrelated answers (both weighted
    means), and the squared norm of the changes."""

    edit: float
    kept: float
    norm: float

    def total(self, config: EditorConfig) -> float:
        """What is minimised."""
        return self.edit + config.locality_weight * self.kept + config.norm_weight * self.norm


class Step(NamedTuple):
    """One step: its losses, the reward of a gate that is trained by one, the modules chosen."""

    losses: Losses
    reward: float | None
    chosen: tuple[int, ...] | None


class _Row(NamedTuple):
    """One row of the outer batch; ``kept`` tells unrelated rows, ``base`` is what they are held to."""

    pair: Pair
    hidden: Tensor
    weight: float
    base: Tensor | None
    kept: bool


class Trajectory:
    """Edits made one batch after another, from the base model on.

    Args:
        host: the model; frozen and in evaluation mode.
        editor: the networks.
        pristine: writes the weights between steps.
        rng: draws what is judged.
        draw: draws modules, where a gate samples.
    """

    def __init__(
        self, host: Host, editor: Editor, pristine: Pristine, rng: random.Random, draw: torch.Generator
    ) -> None:
        self.host, self.editor, self.config = host, editor, editor.config
        self.pristine, self.rng, self.draw = pristine, rng, draw
        self.sites = {site.name: site for site in editor.sites}
        self.low = min(site.layer for site in editor.sites)
        self.history: list[list[Prepared]] = []
        self.total: dict[str, Tensor] = {}
        self.earlier = editor.nothing_earlier() if self.config.remember else None
        # Log-probabilities of unrelated answers before and after a step. In half precision the weights are a
        # cast of what a step was judged with, and nothing is kept from it.
        self._keeps = self.config.locality == "previous" and host.model.dtype.itemsize >= 4
        self._before: dict[Row, Tensor] = {}
        self._after: dict[Row, Tensor] = {}

    def step(self, batch: list[Prepared], only: int | None = None) -> tuple[Step, dict[str, Factors]]:
        """Edit a batch, judge it, and add the gradient to the parameters'; the weights stay as they are.

        Args:
            batch: the edits.
            only: of the steps of an edit, this one alone (the ones before it are in the weights already).
        """
        config = self.config
        if not only:
            self.history = [*self.history, batch][-config.back_depth :]
        pairs = [item.sample.edit for item in batch]
        made = self.editor.make(
            self.host,
            pairs,
            observe=True,
            train=True,
            draw=self.draw,
            hooks=self._standing(),
            only=only,
            earlier=self.earlier,
        )
        if config.faithful and made.choice is not None:
            self._published_gate(made)
            made = made._replace(choice=made.choice._replace(mask=made.choice.mask.detach()))
        factors = made.factors(self.editor.sites)
        leaves = {n: (a.detach().requires_grad_(a.requires_grad), b.detach().requires_grad_())
                  for n, (a, b) in factors.items()}  # fmt: skip
        judged = weighted(self.history, config, self.rng)
        self._after = {}
        losses = self._losses(leaves, judged, True)
        reward = self._reinforce(made, judged, losses)
        slopes = [(out, leaf.grad) for n in factors for out, leaf in zip(factors[n], leaves[n], strict=True)
                  if out.requires_grad and leaf.grad is not None]  # fmt: skip
        torch.autograd.backward([out for out, _ in slopes], [grad for _, grad in slopes])
        self._remember(made)
        chosen = None if made.choice is None else tuple((made.choice.mask > 0.5).nonzero()[:, 0].tolist())
        return Step(losses, reward, chosen), {n: (a.detach(), b.detach()) for n, (a, b) in factors.items()}

    def _remember(self, made: Made) -> None:
        """Count the inputs of these edits with the earlier ones."""
        for features in made.features:
            for index, earlier in enumerate(self.earlier or ()):
                if made.chosen(index):
                    earlier.add(features.keys[index])

    def commit(self, factors: dict[str, Factors]) -> None:
        """Make the changes part of the weights."""
        for name, (a, b) in factors.items():
            change = a @ b
            self.total[name] = self.total[name] + change if name in self.total else change
        if self.config.mode == "merged":
            self.pristine.write(self.total)
        self._before = self._after

    def _standing(self) -> list[Hook]:
        """In side mode, what was changed so far, beside the weights."""
        if self.config.mode == "merged":
            return []

        def after(total: Tensor) -> Callable[..., Tensor]:
            def add(_m: Any, args: tuple[Any, ...], _kwargs: dict[str, Any], output: Tensor) -> Tensor:
                here = total.to(output.device)
                with torch.autocast(output.device.type, enabled=False):
                    return output + (args[0].to(here.dtype) @ here).to(output.dtype)

            return add

        return [Hook(self.sites[name].module, "after", after(total)) for name, total in self.total.items()]

    # ------------------------------------------------------------------ the outer loss

    def _losses(
        self, leaves: dict[str, Factors], judged: Sequence[tuple[Prepared, float]], backward: bool
    ) -> Losses:
        """All terms, rephrasings and unrelated rows in one batch; their gradients are added to the
        leaves'."""
        config = self.config
        rows = [_Row(item.sample.asked, item.asked, weight, None, False) for item, weight in judged]
        if config.locality != "none":
            rows += [
                _Row(item.sample.kept, item.kept, weight, item.base, True)
                for item, weight in judged
                if item.sample.kept is not None and item.kept is not None
            ]
        edit = kept = 0.0
        for part in alike([len(row.pair.ids) for row in rows], config.micro_batch, self.host.text.device):
            terms = self._terms(leaves, [rows[i] for i in part], backward)
            if backward:
                (terms[0] + config.locality_weight * terms[1]).backward()
            edit, kept = edit + float(terms[0].detach()), kept + float(terms[1].detach())
        norm = self._norm(leaves)
        if backward and config.norm_weight and not (config.faithful and config.norm_of == "edit"):
            (config.norm_weight * norm).backward()
        return Losses(edit, kept, float(norm.detach()))

    def _terms(
        self, leaves: dict[str, Factors], rows: Sequence[_Row], backward: bool
    ) -> tuple[Tensor, Tensor]:
        """The weighted cross-entropy of the rephrasings and divergence of the unrelated rows."""
        pairs, hidden = [row.pair for row in rows], [row.hidden for row in rows]
        with torch.set_grad_enabled(backward):
            hooks = OwnHooks([*self._standing(), *branch_hooks(self.sites, leaves)])
            with hooks, autocast(self.host, self.config):
                logits, at = logits_of(self.host, self.low, pairs, hidden)
            weights = torch.tensor([row.weight for row in rows], dtype=logits.dtype, device=logits.device)
            weight = weights[at.row] / at.size
            kept = torch.tensor([row.kept for row in rows], device=logits.device)[at.row]
            edit = (self._edit_loss(logits[~kept], at.target[~kept]) * weight[~kept]).sum()
            if not bool(kept.any()):
                return edit, edit.detach() * 0
            held = [row for row in rows if row.kept]
            found = logits[kept].log_softmax(-1)
            if backward and self._keeps:
                self._after |= _by_row(held, found.detach())
            apart = F.kl_div(found, self._anchor(held), reduction="none", log_target=True).sum(-1)
            return edit, (apart * weight[kept]).sum()

    @staticmethod
    def _edit_loss(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")

    @torch.no_grad()
    def _anchor(self, rows: Sequence[_Row]) -> Tensor:
        """Log-probabilities that unrelated answers are held to: the base model's, or those before this step;
        of the latter, what the last step left behind is at hand and only new rows are run."""
        if self.config.locality == "base":
            return torch.cat([row.base for row in rows if row.base is not None])
        new = [row for row in rows if row_of(row.pair) not in self._before]
        if new:
            # The weights are in place, the branch is left out.
            with OwnHooks(self._standing()), autocast(self.host, self.config):
                logits, _ = logits_of(self.host, self.low, [r.pair for r in new], [r.hidden for r in new])
            self._before |= _by_row(new, logits.log_softmax(-1))
        return torch.cat([self._before[row_of(row.pair)] for row in rows])

    def _norm(self, leaves: dict[str, Factors]) -> Tensor:
        """Squared norm of the step's changes, or of all changes since the base model."""
        found = torch.zeros((), dtype=torch.float32)
        for name, (a, b) in leaves.items():
            found = found + factor_norm(a, b).square().cpu()
            if self.config.norm_of == "drift" and name in self.total:
                drift = self.total[name]
                # |T + ab|^2 = |T|^2 + 2 <T, ab> + |ab|^2
                found = found + (drift.square().sum() + 2 * ((a.mT @ drift) * b).sum()).cpu()
        return found

    # ------------------------------------------------------------------ the gate's reward

    def _published_gate(self, made: Made) -> None:
        """All that trains the gate in the published code: the norm, in the first step of a trajectory."""
        if self.total or made.choice is None or not made.choice.mask.requires_grad:
            return
        norms = [factor_norm(*(x.detach() for x in pair)) for pair in made._replace(choice=None)
                 .factors(self.editor.sites).values()]  # fmt: skip
        penalty = (made.choice.mask.square() * torch.stack(norms).square()).sum()
        (self.config.norm_weight * penalty).backward()

    def _reinforce(
        self, made: Made, judged: Sequence[tuple[Prepared, float]], losses: Losses
    ) -> float | None:
        """HiEdit's intrinsic reward: by how much the chosen modules do better than the baseline's."""
        choice = made.choice
        if choice is None or choice.log_prob is None:
            return None
        mask = torch.ones_like(choice.scores)
        if self.config.baseline == "random":  # type: ignore[attr-defined]
            order = torch.rand(len(mask), generator=self.draw, dtype=torch.float32).argsort()[
                : int(choice.mask.detach().sum())
            ]
            mask = torch.zeros_like(mask).index_fill(0, order.to(mask.device), 1.0)
        other = made._replace(choice=choice._replace(mask=mask)).factors(self.editor.sites)
        plain = {n: (a.detach(), b.detach()) for n, (a, b) in other.items()}
        reward = self._losses(plain, judged, False).total(self.config) - losses.total(self.config)
        (-reward * choice.log_prob).backward()
        return reward


def _by_row(rows: Sequence[_Row], found: Tensor) -> dict[Row, Tensor]:
    """What was found at the rows' answer positions, one after another, by row."""
    parts = found.split([len(row.pair.ids) - row.pair.start for row in rows])
    return {row_of(row.pair): part for row, part in zip(rows, parts, strict=True)}
