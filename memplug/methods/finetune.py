"""FT-L: a few weights fine-tuned on the edits, within a bound; the plainest way to change weights."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..edits import Edit, EditError
from ..interface import Host
from ..model.architecture import evaluating, frozen
from ..model.hooks import Hook, OwnHooks
from ..model.reduced_precision import reduced_products
from ..text.chat import quoted
from ..weights.entries import DenseUpdate, Entry
from ..weights.modules import LinearModule, Range
from .answers import read_answers
from .inweights.config import WeightConfig
from .inweights.method import LedgerMethod
from .neutral import Neutral, NeutralPool, neutral, products
from .scaling import GradientScale

__all__ = ["FineTune", "FineTuneConfig"]


@dataclass(frozen=True)
class FineTuneConfig(WeightConfig):
    """FT-L as the baseline of ROME and MEMIT (Zhu et al., 2020), with the divergence of FT+KL.

    ``preset("paper")`` is FT-L as published, for GPT-J. Defaults were looked at on ten facts of a pretrained
    model of 135 million parameters (``benchmarks/results/real-weights-trials.json``).
    """

    ranges: tuple[Range, ...] = (("down", 21 / 28, 22 / 28),)
    """One MLP output linear, layer 21 of GPT-J's 28."""
    batch_size: int = 10
    """Edits trained together (published: 1)."""
    max_change: float = 20.0
    """As in `WeightConfig`; on small models many edits outweigh one module long before they do harm."""
    lr: float = 0.01
    """Adam's step (published: 5e-4)."""
    bound: float | None = 0.1
    """No element changes by more than this for one batch of edits; None: no bound, FT (published: 5e-5)."""
    relative: bool = True
    """Take both in units of the weight's root mean square (published: absolute)."""
    steps: int = 50
    """Most steps (published: 25)."""
    stop_loss: float = 0.1
    """An edit takes no further step while it is below this loss (published: 0.01)."""
    train_stop: bool = False
    """Train the answer to end with the stop token."""
    keep: int = 16
    """Neutral questions beside each step to which the base model's answers are to be kept (published: 0)."""
    keep_pool: int = 48
    """Of so many, and of four that resemble each edit's own (see `NeutralPool`)."""
    keep_weight: float = 2.0
    """Weight of the divergence from these answers."""

    paper: ClassVar[dict[str, Any]] = {
        "lr": 5e-4,
        "bound": 5e-5,
        "relative": False,
        "batch_size": 1,
        "steps": 25,
        "stop_loss": 0.01,
        "keep": 0,
    }
    limits: ClassVar[tuple[tuple[str, float, float], ...]] = (
        ("lr", 1e-12, 1e6),
        ("bound", 1e-12, 1e6),
        ("steps", 1, 1 << 20),
        ("stop_loss", 0, 1e3),
        ("keep", 0, 1 << 20),
        ("keep_pool", 1, 1 << 20),
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
        self._pool = NeutralPool(host, config.keep_pool, config.seed, self._high)

    def _needs(self) -> int:
        """As in `LedgerMethod`, with a change, its slope and Adam's two moments."""
        return super()._needs() + sum(16 * site.d_k * site.d_v for site in self.sites)

    def _neutral(self, edits: Sequence[Edit]) -> Neutral | None:
        host, config = self._host, self.config
        if not config.keep or not config.keep_weight:
            return None
        with self.ledger.paused(), host.tracker.off():
            pairs = self._pool.pairs(edits)
            with self._reduced():
                return neutral(host, self._low, pairs)

    def _reduced(self) -> AbstractContextManager[None]:
        """Products in bfloat16 above the modules that change."""
        return reduced_products(self._host.architecture.shadows, products(self._host, self._high))

    @property
    def _high(self) -> int:
        """The layer from which on nothing changes."""
        return max(site.layer for site in self.sites) + 1

    @property
    def _low(self) -> int:
        """The layer from which on something changes."""
        return min(site.layer for site in self.sites)

    def _make(self, edits: Sequence[Edit]) -> Entry:
        ids = tuple(str(edit.id) for edit in edits)
        changes, loss = self._train(edits)
        wholes = tuple(DenseUpdate(name, change, ids) for name, change in changes.items())
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
        return replace(entry, wholes=(*kept, *(DenseUpdate(n, c, entry.on) for n, c in changes.items())))

    def _train(self, edits: Sequence[Edit]) -> tuple[dict[str, Tensor], float]:
        """By module, the change [d_k,d_v] that the edits ask for at the weights as they are; the last loss.

        Raises:
            EditError: a loss is not finite.
        """
        host, config = self._host, self.config
        forms = [(form, edit.target) for edit in edits for form in host.text.forms(edit.prompt)]
        pairs = [host.text.pair(*form, stop=config.train_stop) for form in forms]
        changes, units = [], []
        for site in self.sites:
            shape = site.d_k, site.d_v
            changes.append(torch.zeros(shape, device=site.device, requires_grad=True, dtype=torch.float32))
            units.append(float(self.ledger.originals.norm(site.name)) / (site.d_k * site.d_v) ** 0.5)
        units = units if config.relative else [1.0] * len(units)
        groups = [
            {"params": [change], "lr": config.lr * unit} for change, unit in zip(changes, units, strict=True)
        ]
        optimizer, scale = torch.optim.Adam(groups), GradientScale(host.model.dtype)
        draw = random.Random(config.seed)
        with ExitStack() as stack:
            stack.enter_context(evaluating(host.model))
            stack.enter_context(frozen(host.model))
            kept = self._neutral(edits)
            stack.enter_context(self._reduced())
            answers = read_answers(host, self._low, pairs)
            every = torch.arange(len(pairs), device=host.text.device)
            with OwnHooks(map(_beside, self.sites, changes)):
                for step in range(config.steps + 1):
                    losses = answers.losses(every)
                    if not bool(torch.isfinite(losses).all()):
                        raise EditError(
                            f"training {quoted(edits[0].prompt)} gave a loss that is not finite; lower lr, "
                            "or look for NaN in the model. Nothing was changed"
                        )
                    left = losses.detach() >= config.stop_loss
                    if step == config.steps or not bool(left.any()):
                        break
                    loss = (losses * left).mean()
                    if kept is not None:
                        loss = loss + config.keep_weight * kept.divergence(config.keep, draw)
                    for change, slope in zip(changes, scale.gradients(loss, changes), strict=True):
                        change.grad = slope
                    optimizer.step()
                    if config.bound is not None:
                        with torch.no_grad():
                            for change, unit in zip(changes, units, strict=True):
                                change.clamp_(-config.bound * unit, config.bound * unit)
        found = {site.name: change.detach() for site, change in zip(self.sites, changes, strict=True)}
        return found, float(losses.detach().mean())


def _beside(site: LinearModule, change: Tensor) -> Hook:
    """Adds ``x change`` to the module's output."""

    def after(_m: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any], output: Tensor) -> Tensor:
        return output + (args[0].to(change.dtype) @ change).to(output.dtype)

    return Hook(site.module, "after", after)
