"""ELDER's training as its equations read: one expert at a time, every layer computed at every step.

The baseline for the speed of editing, and a check that the fast path trains the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memplug.edits import Edit
from memplug.methods.elder import ELDER
from memplug.methods.elder.allocation import hot

__all__ = ["LiteralELDER"]


class LiteralELDER:
    """Trains copies of an attached method's experts, literally, on the model without its plug's hooks.

    Args:
        method: whose constants, linears and starting values are taken.
    """

    def __init__(self, method: ELDER) -> None:
        self.method, self.config = method, method.config
        experts = method.known.experts
        self.places = experts.places
        count, n = len(self.places), experts.n
        self.down = [
            [experts.down[i][e].T.clone().requires_grad_(True) for e in range(n)] for i in range(count)
        ]
        self.up = [[experts.up[i][e].clone().requires_grad_(True) for e in range(n)] for i in range(count)]
        self.gates = [experts.gates[i].clone().requires_grad_(True) for i in range(count)]
        self.bias = [experts.bias[i].clone().requires_grad_(True) for i in range(count)]

    def learn(self, edits: Sequence[Edit]) -> None:
        """One batch."""
        host, config = self.method._host, self.config
        model: Any = host.model
        pairs = [self.method._learner.pair(edit.prompt, edit.target) for edit in edits]
        batch = host.text.batch([pair.ids for pair in pairs])
        labels = torch.full_like(batch.ids, -100)
        for i, pair in enumerate(pairs):
            labels[i, pair.start : len(pair.ids)] = torch.tensor(pair.ids[pair.start :])
        prompts = host.text.batch([pair.ids[: pair.start] for pair in pairs])
        query = self._queries(model, prompts, [str(edit.subject) for edit in edits])
        learner, known = self.method._learner, self.method.known
        goal = [hot(torch.tensor(a), config.n_experts) for a in learner._allocate(known, edits)]
        loras = [t for group in (*self.down, *self.up) for t in group]
        unit = self.places[0].fan_in ** 0.5 if config.relative_lr else 1.0  # all are of one shape here
        router_lr = config.lr / unit if config.router_lr is None else config.router_lr
        groups = [{"params": loras, "lr": config.lr / unit}]
        if router_lr:
            groups.append({"params": [*self.gates, *self.bias], "lr": router_lr})
        optimizer = torch.optim.Adam(groups)
        weights: list[Tensor] = []
        handles = [
            place.module.register_forward_hook(self._hook(i, weights)) for i, place in enumerate(self.places)
        ]
        trainable = [p for p in model.parameters() if p.requires_grad]
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            for _ in range(config.steps):
                scores = [(query @ g.T + b).softmax(-1) for g, b in zip(self.gates, self.bias, strict=True)]
                weights[:] = [s * hot(s.topk(config.top_k).indices, config.n_experts) for s in scores]
                logits = model(batch.ids, attention_mask=batch.mask, use_cache=False).logits[:, :-1].float()
                real = labels[:, 1:] != -100
                nll = -logits.log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
                loss = ((nll * real).sum(1) / real.sum(1)).mean()
                guide = torch.zeros(())
                for i, s in enumerate(scores):
                    for row in range(len(edits)):
                        guide = guide - (s[row].log() * goal[row][i]).sum() / len(edits)
                optimizer.zero_grad()
                (loss + config.guide_weight * guide).backward()
                optimizer.step()
        finally:
            for handle in handles:
                handle.remove()
            for parameter in trainable:
                parameter.requires_grad_(True)

    def _hook(self, index: int, weights: list[Tensor]) -> Any:
        def add(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for e in range(self.config.n_experts):
                delta = (args[0] @ self.down[index][e]) @ self.up[index][e]
                output = output + weights[index][:, e, None, None] * delta
            return output

        return add

    @torch.no_grad()
    def _queries(self, model: Any, prompts: Any, names: list[str]) -> Tensor:
        found: list[Tensor] = []
        hook = self.method._site.hook(self.method._host.anatomy, found.append)
        register = "register_forward_pre_hook" if hook.kind == "before" else "register_forward_hook"
        handle = getattr(hook.module, register)(hook.fn, with_kwargs=True)
        try:
            model(prompts.ids, attention_mask=prompts.mask, use_cache=False)
        finally:
            handle.remove()
        ends = prompts.mask.sum(1) - 1
        return self.method.known.prepare(found[0][torch.arange(len(ends)), ends].float(), names)
