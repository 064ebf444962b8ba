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
from ..edits import Edit, EditError
from ..entries import Entry, Whole
from ..hooks import Hook, OwnHooks, capture_input, resume
from ..layers import evaluating, frozen
from ..sites import Range, Site
from .hypernet.capture import flat_rows
from .inweights.config import WeightConfig
from .inweights.method import LedgerMethod
from .scaling import GradientScale

__all__ = ["FineTune", "FineTuneConfig"]


@dataclass(frozen=True)
class FineTuneConfig(WeightConfig):
    """FT-L as the baseline of ROME and MEMIT (Zhu et al., 2020); published constants are GPT-J's."""

    ranges: tuple[Range, ...] = (("down", 21 / 28, 22 / 28),)
    """One MLP output linear, layer 21 of GPT-J's 28."""
    batch_size: int = 1
    """Edits trained together."""
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
    train_stop: bool = True
    """Train the answer to end with the stop token (published: no)."""

    paper: ClassVar[dict[str, Any]] = {
        "lr": 5e-4,
        "bound": 5e-5,
        "relative": False,
        "train_stop": False,
    }
    limits: ClassVar[tuple[tuple[str, float, float], ...]] = (
        ("lr", 1e-12, 1e6),
        ("bound", 1e-12, 1e6),
        ("steps", 1, 1 << 20),
        ("stop_loss", 0, 1e3),
    )


class FineTune(LedgerMethod):
    """Adam on the whole weights of some modules, each step clamped to ``bound`` around where the batch began.

    Such a change has full rank and goes into the ledger whole: as much memory a batch as the modules' weights
    take in float32 (235 MB for one output linear of a Llama of 8 billion weights). It cannot be divided
    among the edits of its batch: where one is deleted or switched off, the others are trained anew together,
    on what earlier entries leave in force, and the batch's own change is kept for when all are back.
    """

    name = "finetune"

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
        pairs = [host.text.pair(e.prompt, e.target, stop=config.train_stop) for e in edits]
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
