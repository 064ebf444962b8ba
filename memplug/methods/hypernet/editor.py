"""The editor: all networks of a method, from features of a batch of edits to changes of its modules.

Letters: M modules, S steps, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...interface import Host
from ...model.hooks import Hook
from ...weights.entries import LowRankUpdate
from ...weights.modules import LinearModule
from ..inweights.branch import Factors, branch_hooks
from .features import Features, Request, capture
from .metric import InputCovariance, PastInputs
from .module_selector import Choice, Gate
from .nets import Change, EditNet

__all__ = ["Editor", "StepSize", "Update"]

_FIRST_LR = 1e-3  # until a step size is found
_NO_RANK = 64  # of the empty tensors of an editor without networks, as its saved files have them


class Update(NamedTuple):
    """What one batch of edits changes.

    Attributes:
        steps: by step, the change of each module (tensors [1,n,...], gradients attached while fitting).
        solved: the same as factors.
        features: by step, the features it was made from.
        choice: which modules were chosen, where a gate chooses.
    """

    steps: list[list[Change]]
    solved: list[list[Factors]]
    features: list[Features]
    choice: Choice | None

    def factors(self, sites: Sequence[LinearModule]) -> dict[str, Factors]:
        """By module, the steps' factors side by side; those of modules not chosen are multiplied by 0."""
        found: dict[str, Factors] = {}
        for index, site in enumerate(sites if self.solved else ()):
            a = torch.cat([step[index][0] for step in self.solved], dim=1)
            b = torch.cat([step[index][1] for step in self.solved])
            found[site.name] = (a, b if self.choice is None else self.choice.mask[index] * b)
        return found

    def chosen(self, index: int) -> bool:
        """Whether a module is changed."""
        return self.choice is None or bool(self.choice.mask[index] > 0.5)

    def parts(self, sites: Sequence[LinearModule]) -> tuple[LowRankUpdate, ...]:
        """The same for the ledger, constants; modules not chosen left out."""
        found = []
        for step, features in zip(self.steps, self.features, strict=True):
            for index, (site, change) in enumerate(zip(sites, step, strict=True)):
                if self.chosen(index):
                    keys, values = (x[0].detach().float().contiguous() for x in change[:2])
                    directed = change.directions
                    directions = None if directed is None else directed[0].detach().float().contiguous()
                    ridge = None if change.log_ridge is None else float(change.log_ridge.detach().exp()[0])
                    found.append(LowRankUpdate(site.name, keys, values, features.owner, ridge, directions))
        return tuple(found)


class StepSize:
    """How large the further steps of a batch are, as multiples of the step size.

    A step size found on the model's own text can be far too small for what edits ask for: steps grow while
    the least probable tokens of the answers gain from each, and shrink where they lost by the last one.

    Args:
        count: edits of the batch.
        growth: by how much; after a loss, its square.
    """

    def __init__(self, count: int, growth: float) -> None:
        self.growth, self.size = growth, 1.0
        self._known = torch.full((count,), torch.nan, dtype=torch.float32)

    def look(self, known: Tensor, edits: Tensor, adapt: bool) -> None:
        """Take note of how probable answers are before a step.

        Args:
            known: [n], probability of the least probable token, of each of ``edits``.
            edits: [n], their numbers.
            adapt: change the size of the step.
        """
        now = known.detach().float().cpu().clamp(min=1e-30).log()
        if adapt:
            gained = float((now - self._known[edits]).mean()) >= 0
            self.size *= self.growth if gained else self.growth**-2
        self._known[edits] = now


class Editor(nn.Module):
    """Networks by step and by shape of module, and a gate where modules are chosen.

    Args:
        sites: the M modules, in order.
        config: constants, an `EditorConfig`; a `FitConfig` where there are networks.
        gate: whether modules are chosen.
        networks: whether there are networks; else features are normalised alone, in all steps by the same
            statistics.

    Attributes:
        fitted: bool [], whether it may edit.
    """

    fitted: Tensor

    def __init__(self, sites: Sequence[LinearModule], config: Any, gate: bool, networks: bool = True) -> None:
        super().__init__()
        self.sites, self.config = sites, config
        self.shapes = list(dict.fromkeys((s.d_k, s.d_v) for s in sites))
        self.members = [[i for i, s in enumerate(sites) if (s.d_k, s.d_v) == shape] for shape in self.shapes]
        self.nets = nn.ModuleList(
            nn.ModuleList(
                EditNet(
                    *shape,
                    len(members),
                    rank=max(1, config.rank // (step + 1)) if networks else _NO_RANK,
                    n_blocks=config.n_blocks if networks else 0,
                    inner_lr=config.inner_lr or _FIRST_LR,
                    ridge=config.ridge,
                    floor=config.std_floor,
                    limit=config.max_feature,
                    seed=config.seed * 1000 + 10 * step + place,
                )
                for place, (shape, members) in enumerate(zip(self.shapes, self.members, strict=True))
            )
            for step in range(config.steps if networks else 1)
        )
        self.gate = Gate(sites, config) if gate else None
        metric = config.protect or config.remember
        self.usual = nn.ModuleList(
            InputCovariance(site.d_k, config.protect, config.protect_rank)
            for site in (sites if metric else ())
        )
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def net(self, step: int, shape: int) -> EditNet:
        """The network of a step and of a shape, by their numbers."""
        nets: nn.ModuleList = self.nets[min(step, len(self.nets) - 1)]  # type: ignore[assignment]
        return nets[shape]  # type: ignore[return-value]

    def observe(self, features: Features, step: int) -> None:
        """Take features into the running statistics."""
        for shape, members in enumerate(self.members):
            rows = [torch.cat([features.keys[i], features.gradients[i]], dim=1) for i in members]
            self.net(step, shape).normalise.update(torch.cat(rows))
        if self.gate is not None and step == 0:
            self.gate.observe(features)

    def study(self, inputs: Sequence[Tensor], asked: Sequence[Tensor] | None = None) -> None:
        """Learn where changes are to keep clear, from each module's inputs [n,d_k] on ordinary text; where
        ``asked``, its inputs at the tokens of requests, is given, ridges are in units of what these meet."""
        for index, covariance in enumerate(self.usual):
            covariance.study(inputs[index], asked[index] if asked else None)  # type: ignore[operator]
        for shape, members in enumerate(self.members if asked else ()):
            met = [(asked[i] * self.usual[i](asked[i])).sum(-1).mean() for i in members]  # type: ignore[index]
            for step in range(len(self.nets)):
                log_ridge = self.net(step, shape).log_ridge
                log_ridge.data.copy_((self.config.ridge * torch.stack(met)).clamp(min=1e-30).log())

    def set_step(self, inner_lr: float) -> None:
        """Start all networks from one step size."""
        for step in range(len(self.nets)):
            for shape in range(len(self.shapes)):
                self.net(step, shape).set_step(inner_lr)

    def no_past(self) -> list[PastInputs]:
        """By module, what to count the inputs of edits in."""
        return [PastInputs(self.config.remember / self.config.steps) for _ in self.sites]

    def changes(
        self, features: Features, step: int, past: Sequence[PastInputs] | None = None
    ) -> list[Change]:
        """The change of each module, in order; ``past``, by module, are inputs of the edits before."""
        found: dict[int, Change] = {}
        for shape, members in enumerate(self.members):
            keys = torch.stack([features.keys[i] for i in members])
            gradients = torch.stack([features.gradients[i] for i in members])
            change = self.net(step, shape)(keys, gradients, self.config.style)
            for place, i in enumerate(members):
                one = slice(place, place + 1)
                keys, values = change.keys[one], change.values[one]
                away = self.usual[i](keys, past[i] if past else None) if self.usual else keys
                if change.log_ridge is None:
                    found[i] = Change(away, values, None)
                else:
                    found[i] = Change(keys, values, change.log_ridge[one], away if self.usual else None)
        return [found[i] for i in range(len(self.sites))]

    def _solved(self, changes: Sequence[Change]) -> list[Factors]:
        """The factors of each module's change, all modules of a shape in one solve."""
        found: dict[int, Factors] = {}
        for members in self.members:
            columns = zip(*(changes[i] for i in members), strict=True)
            joined = [None if column[0] is None else torch.cat(column) for column in columns]
            a, b = Change(*joined).factors()  # type: ignore[arg-type]
            found |= {i: (a[place], b[place]) for place, i in enumerate(members)}
        return [found[i] for i in range(len(changes))]

    def make(
        self,
        host: Host,
        asked: Sequence[Request],
        *,
        of: Sequence[int] | None = None,
        past: Sequence[PastInputs] | None = None,
        hooks: Sequence[Hook] = (),
        observe: bool = False,
        train: bool = False,
        further: bool = True,
    ) -> Update:
        """Changes for a batch of edits at the weights as they are now, step after step.

        Args:
            host: the model.
            asked: the edits' requests.
            of: whose edit's each of them is; None: one of each edit.
            past: by module, the inputs of the edits that were made before; None for none.
            hooks: what else is to happen in the forwards.
            observe: take the features into the running statistics first.
            train: keep what gradients need.
            further: take the further steps of edits that are not learned.
        """
        by_name = {site.name: site for site in self.sites}
        edit_of = torch.tensor(list(range(len(asked)) if of is None else of))
        update, left, below = Update([], [], [], None), edit_of.unique(), tuple[Tensor, ...]()
        stops = not train and self.config.enough < 1
        size = StepSize(len(left), self.config.growth)
        with nullcontext() if train else torch.no_grad():
            for step in range(self.config.steps + (self.config.extra_steps if stops and further else 0)):
                before = {n: (a.detach(), b.detach()) for n, (a, b) in update.factors(self.sites).items()}
                open_ = torch.isin(edit_of, left)
                features = capture(
                    host,
                    self.sites,
                    [asked[i] for i in open_.nonzero()[:, 0].tolist()],
                    [*hooks, *branch_hooks(by_name, before)],
                    micro_batch=self.config.micro_batch,
                    below=below,
                ).by_edit(edit_of[open_])
                below, known = features.below, features.known
                if update.steps and stops:
                    weak = known < self.config.enough
                    left, known = left[weak.cpu()], known[weak]
                    if not len(left):
                        break
                    if len(left) < len(weak):
                        features, below = features.of(left), ()
                if observe:
                    self.observe(features, step)
                if not update.steps and self.gate is not None:
                    update = update._replace(choice=self.gate(features))
                update.features.append(features)
                if stops:
                    size.look(known, left, adapt=step >= self.config.steps)
                changes = self.changes(features, step, past)
                update.steps.append([one._replace(values=one.values * size.size) for one in changes])
                update.solved.append(self._solved(update.steps[-1]))
        return update
