"""The gate: HiEdit's high-level network, which chooses the modules that an edit may change.

It is trained straight through its choice.

Letters: M modules, n rows, H hidden width, k modules chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...weights.modules import LinearModule
from .features import Features
from .nets import Normaliser

__all__ = ["Choice", "Gate"]


class Choice(NamedTuple):
    """A gate's decision.

    Attributes:
        mask: [M], 1 for the modules chosen, else 0; carries the scores' gradient straight through.
        scores: [M].
    """

    mask: Tensor
    scores: Tensor


class Gate(nn.Module):
    """Scores modules from an edit's features and chooses the k highest.

    An encoder for each shape maps the features of every token and module to H numbers; they are concatenated
    over the modules, averaged over a request's tokens and then over requests, and mapped to scores.

    Args:
        sites: the modules.
        config: with ``n_selected``, ``hidden``, ``std_floor`` and ``seed`` (see `HiEditConfig`).
    """

    def __init__(self, sites: Sequence[LinearModule], config: Any) -> None:
        super().__init__()
        count = len(sites)
        self.k = max(1, min(count, int(config.n_selected * count + 0.5)))
        shapes = list(dict.fromkeys((s.d_k, s.d_v) for s in sites))
        self.members = [[i for i, s in enumerate(sites) if (s.d_k, s.d_v) == shape] for shape in shapes]
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(config.seed + 77)  # the GPUs' go on as they were
            self.encoders = nn.ModuleList(nn.Linear(d_k + d_v, config.hidden) for d_k, d_v in shapes)
            self.head = nn.Linear(config.hidden * count, count)
        self.scale = nn.Parameter(torch.ones(count, config.hidden, dtype=torch.float32))
        self.shift = nn.Parameter(torch.zeros(count, config.hidden, dtype=torch.float32))
        self.normalise = nn.ModuleList(Normaliser(d_k, d_v, config.std_floor) for d_k, d_v in shapes)

    def observe(self, features: Features) -> None:
        """Take features into the running statistics."""
        for normaliser, members in zip(self.normalise, self.members, strict=True):
            rows = [torch.cat([features.keys[i], features.gradients[i]], dim=1) for i in members]
            normaliser.update(torch.cat(rows))  # type: ignore[operator]

    def scores(self, features: Features) -> Tensor:
        """[M] raw scores."""
        encoded: dict[int, Tensor] = {}
        for encoder, normalise, members in zip(self.encoders, self.normalise, self.members, strict=True):
            for i in members:
                rows = normalise(torch.cat([features.keys[i], features.gradients[i]], dim=1))
                hidden = encoder(rows.to(self.head.weight.dtype)).clamp(min=0)
                encoded[i] = self.scale[i] * hidden + self.shift[i]
        tokens = torch.cat([encoded[i] for i in range(len(encoded))], dim=1)
        _, owner = features.owner.unique(return_inverse=True)
        size = torch.bincount(owner).to(tokens.dtype)
        requests = tokens.new_zeros(len(size), tokens.shape[1]).index_add(0, owner, tokens)
        return self.head((requests / size[:, None]).mean(0))

    def forward(self, features: Features) -> Choice:
        """The choice for one batch of edits."""
        scores = self.scores(features)
        hard = torch.zeros_like(scores).detach().index_fill(0, scores.topk(self.k).indices, 1.0)
        return Choice((hard - scores).detach() + scores, scores)
