"""FT-L: a few weights fine-tuned on the edits, within a bound; the plainest way to change weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..chat import quoted
from ..contexts import ordinary_texts
from ..edits import Edit, EditError
from ..entries import Entry, Whole
from ..hooks import Hook, OwnHooks, capture_input, resume
from ..layers import evaluating, frozen
from ..sites import Range, Site
from .base import Host
from .inweights.config import WeightConfig
from .inweights.method import LedgerMethod
from .inweights.rows import flat_rows
from .locate.covariance import second_moments
from .scaling import GradientScale

__all__ = ["FineTune", "FineTuneConfig"]

_TEXTS = 24  # of the model's own; their inputs are told apart from an edit's, not counted exactly


@dataclass(frozen=True)
class FineTuneConfig(WeightConfig):
    """FT-L as the baseline of ROME and MEMIT (Zhu et al., 2020); published constants are GPT-J's."""

    ranges: tuple[Range, ...] = (("down", 21 / 28, 22 / 28),)
    """One MLP output linear, layer 21 of GPT-J's 28."""
    batch_size: int = 10
    """Edits trained together (published: 1)."""
    max_change: float = 20.0
    """As in `WeightConfig`; on small models many edits outweigh one module long before they do harm."""
    lr: float = 0.05
    """Adam's step (published: 5e-4)."""
    bound: float | None = 0.3
    """No element changes by more than this for one batch of edits; None: no bound, FT (published: 5e-5)."""
    relative: bool = True
    """Take both in units of the weight's root mean square (published: absolute)."""
    steps: int = 25
    """Most steps."""
    stop_loss: float = 0.01
    """A batch is done below this loss."""
    train_stop: bool = False
    """Train the answer to end with the stop token."""
    keep_weight: float = 1.0
    """Weight of what the modules' outputs change on ordinary text, as a share of their squared length there
    (published: 0)."""

    paper: ClassVar[dict[str, Any]] = {
        "lr": 5e-4,
        "bound": 5e-5,
        "relative": False,
        "batch_size": 1,
        "keep_weight": 0.0,
    }
    limits: ClassVar[tuple[tuple[str, float, float], ...]] = (
        ("lr", 1e-12, 1e6),
        ("bound", 1e-12, 1e6),
        ("steps", 1, 1 << 20),
        ("stop_loss", 0, 1e3),
        ("keep_weight", 0, 1e9),
    )


class FineTune(LedgerMethod):
    """Adam on the whole weights of some modules, each step clamped to ``bound`` around where the batch began.

    Such a change has full rank and goes into the ledger whole: as much memory a batch as the modules' weights
    take in float32 (235 MB for one output linear of a Llama of 8 billion weights). It cannot be divided
    among the edits of its batch: where one is deleted or switched off, the others are trained anew together,
    on what earlier entries leave in force, and the batch's own change is kept for when all are back.
    """

    name = "finetune"

    def __init__(self, host: Host, config: FineTuneConfig) -> None:
        super().__init__(host, config)
        self._usual: dict[str, Tensor] = {}

    def _needs(self) -> int:
        """As in `LedgerMethod`, with a change, its slope, Adam's two moments, and that of the inputs."""
        sizes = ((site.d_k, site.d_v) for site in self.sites)
        return super()._needs() + sum(16 * d_k * d_v + 12 * d_k**2 for d_k, d_v in sizes)

    def _ordinary(self) -> dict[str, Tensor]:
        """By module, the second moment [d_k,d_k] of its inputs on ordinary text, over its outputs' squared
        length there: ``tr(D' M D)`` is how much of it a change D moves."""
        if self.config.keep_weight and not self._usual:
            host = self._host
            with self.ledger.paused(), host.tracker.off():
                texts = ordinary_texts(host.text, self.config.seed)[:_TEXTS]
                found = second_moments(host, self.sites, texts, host.text.max_length).by_site
                for name, moment in found.items():
                    # Not the module's own weight: in a draft that still holds the edits in force.
                    weight = self.ledger.pristine.weight(name)
                    found[name] = moment / ((moment @ weight) * weight).sum().clamp(min=1e-30)
                self._usual = found  # last: this may be broken off
        return self._usual

    def _make(self, edits: Sequence[Edit]) -> Entry:
        ids = tuple(str(edit.id) for edit in edits)
        changes, loss = self._train(edits)
        wholes = tuple(Whole(name, change, ids) for name, change in changes.items())
        return Entry(ids, (), notes={"before": self._before(), "loss": round(loss, 6)}, wholes=wholes)

    def _hold(self, entries: Iterable[Entry]) -> None:
        done: list[Entry] = []
        for entry in entries:
            done.append(entry if entry.trained else self._again(done, entry))
        self.ledger.hold(done)

    def _again(self, earlier: Sequence[Entry], entry: Entry) -> Entry:
        """The entry with a change for the edits that are in force now."""
        self._check_not_paused()
        self.ledger.hold(earlier)
        with evaluating(self._host.model):
            changes, _ = self._train([self._edits[id] for id in entry.on])
        kept = tuple(whole for whole in entry.wholes if whole.ids == entry.ids)
        return replace(entry, wholes=(*kept, *(Whole(n, c, entry.on) for n, c in changes.items())))

    def _train(self, edits: Sequence[Edit]) -> tuple[dict[str, Tensor], float]:
        """By module, the change [d_k,d_v] that the edits ask for at the weights as they are; the last loss.

        Raises:
            EditError: a loss is not finite.
        """
        host, config = self._host, self.config
        usual = self._ordinary()
        forms = [(form, edit.target) for edit in edits for form in host.text.forms(edit.prompt)]
        pairs = [host.text.pair(*form, stop=config.train_stop) for form in forms]
        batch = host.text.batch([pair.ids[:-1] for pair in pairs])
        at = flat_rows(pairs, batch.ids.shape[1], batch.ids.device)
        low = self.sites[0].layer
        scale = GradientScale(host.model.dtype)
        changes, units = [], []
        for site in self.sites:
            where = site.device
            changes.append(
                torch.zeros(site.d_k, site.d_v, device=where, requires_grad=True, dtype=torch.float32)
            )
            units.append(float(self.ledger.pristine.norm(site.name)) / (site.d_k * site.d_v) ** 0.5)
        units = units if config.relative else [1.0] * len(units)
        groups = [
            {"params": [change], "lr": config.lr * unit} for change, unit in zip(changes, units, strict=True)
        ]
        optimizer = torch.optim.Adam(groups)
        with evaluating(host.model), frozen(host.model):
            run = partial(host.forward, host.model, batch)
            hidden = capture_input(host.anatomy, low, partial(host.forward, host.anatomy.decoder, batch))
            for step in range(config.steps + 1):
                with OwnHooks(map(_beside, self.sites, changes)):
                    logits = resume(host.model, host.anatomy, low, hidden, run, at.flat)
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                losses = F.cross_entropy(logits, at.target.to(logits.device), reduction="none")
                loss = (losses / at.size.to(losses.device)).sum() / len(pairs)
                if not bool(torch.isfinite(loss)):
                    raise EditError(
                        f"training {quoted(edits[0].prompt)} gave a loss that is not finite; lower lr, or "
                        "look for NaN in the model. Nothing was changed"
                    )
                if step == config.steps or float(loss.detach()) < config.stop_loss:
                    break
                for site, change in zip(self.sites, changes, strict=True):
                    if usual:
                        loss = loss + config.keep_weight * ((usual[site.name] @ change) * change).sum()
                for change, slope in zip(changes, scale.gradients(loss, changes), strict=True):
                    change.grad = slope
                optimizer.step()
                if config.bound is not None:
                    with torch.no_grad():
                        for change, unit in zip(changes, units, strict=True):
                            change.clamp_(-config.bound * unit, config.bound * unit)
        found = {site.name: change.detach() for site, change in zip(self.sites, changes, strict=True)}
        return found, float(loss.detach())


def _beside(site: Site, change: Tensor) -> Hook:
    """Adds ``x change`` to the module's output."""

    def after(_m: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any], output: Tensor) -> Tensor:
        return output + (args[0].to(change.dtype) @ change).to(output.dtype)

    return Hook(site.module, "after", after)
