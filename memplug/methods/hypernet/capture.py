"""Features of edits: inputs of the edited modules at chosen tokens, and the loss's slope at their outputs.

A request's loss is the mean over its own answer tokens and losses are summed, so that its features do not
depend on the requests beside it. Features are constants: nothing is differentiated through them.

Letters: M modules, n rows (tokens), P logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...edits import EditError
from ...hooks import Hook, OwnHooks, resume
from ...layers import evaluating, frozen
from ...sites import Site
from ...text import Pair
from ..base import Host
from ..scaling import GradientScale

__all__ = ["Features", "alike", "capture", "chunks", "flat_rows", "predicting"]

FORWARD_COSTS = {"cpu": 128}
"""What one more forward costs, counted in tokens, by kind of device; elsewhere it costs thousands."""


class Features(NamedTuple):
    """Per module ``keys`` [n,d_k] and ``slopes`` [n,d_v]; ``owner`` int64 [n], a row's request; ``below``,
    by forward, the inputs [B,T,D] of the lowest module's layer; ``known``, by request, the probability of
    its answer's least likely token."""

    keys: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]
    owner: Tensor
    below: tuple[Tensor, ...] = ()
    known: Tensor | None = None

    def by_edit(self, edits: Tensor) -> Features:
        """The same with requests named by ``edits`` [R], and ``known`` by edit, that of its worst request."""
        edits = edits.to(self.owner.device)
        known = self.known
        if known is not None:
            place = edits.unique(return_inverse=True)[1].to(known.device)
            start = known.new_ones(int(place.max()) + 1)
            known = start.scatter_reduce(0, place, known, "amin")
        return self._replace(owner=edits[self.owner], known=known)

    def of(self, requests: Tensor) -> Features:
        """The rows of these requests, by their numbers."""
        mine = torch.isin(self.owner, requests.to(self.owner.device))
        return self._replace(
            keys=tuple(rows[mine] for rows in self.keys),
            slopes=tuple(rows[mine] for rows in self.slopes),
            owner=self.owner[mine],
        )


def capture(
    host: Host,
    sites: Sequence[Site],
    pairs: Sequence[Pair],
    tokens: str,
    hooks: Sequence[Hook] = (),
    *,
    micro_batch: int = 256,
    below: Sequence[Tensor] = (),
) -> Features:
    """The features of requests at the weights as they are now.

    Args:
        host: the model.
        sites: the M modules.
        pairs: token ids of prompt and answer, one pair a request.
        tokens: "answer" takes the positions that predict an answer token; "all" takes every position.
        hooks: what else is to happen in the forward (a change that is not yet in the weights).
        micro_batch: most requests in one forward.
        below: of earlier features of the same requests, if nothing but the modules has changed since; the
            layers below the modules are not run again.

    Raises:
        EditError: a feature is not finite, or a module was not called once on every token.
    """
    parts = alike([len(pair.ids) for pair in pairs], micro_batch, host.text.device)
    states: Sequence[Tensor | None] = below or [None] * len(parts)
    found = [
        _capture(host, sites, pairs, part, tokens, hooks, held)
        for part, held in zip(parts, states, strict=True)
    ]
    owner = torch.cat([f.owner for f in found])
    order = owner.argsort(stable=True)
    keys = tuple(torch.cat([f.keys[i] for f in found])[order] for i in range(len(sites)))
    slopes = tuple(torch.cat([f.slopes[i] for f in found])[order] for i in range(len(sites)))
    for site, rows in zip([*sites, *sites], [*keys, *slopes], strict=True):
        if not bool(torch.isfinite(rows).all()):
            raise EditError(
                f"the features of {site.name} are not finite; the model overflows on these prompts (half "
                "precision?) or its weights are broken. Nothing was changed"
            )
    known = torch.cat([f.known for f in found if f.known is not None])
    place = torch.tensor([i for part in parts for i in part], device=owner.device)
    return Features(keys, slopes, owner[order], tuple(f.below[0] for f in found), known[place.argsort()])


def _capture(
    host: Host,
    sites: Sequence[Site],
    pairs: Sequence[Pair],
    part: Sequence[int],
    tokens: str,
    hooks: Sequence[Hook],
    held: Tensor | None,
) -> Features:
    batch = host.text.batch([pairs[i].ids[:-1] for i in part])
    width = batch.ids.shape[1]
    low = min(site.layer for site in sites)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    below = [] if held is None else [held]

    def watch(site: Site) -> Hook:
        def after(_m: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any], output: Tensor) -> Tensor:
            if site.name in inputs or args[0].shape[:-1].numel() != batch.ids.numel():
                raise EditError(
                    f"{site.name} is not called once on every token; name other modules with modules=(...)"
                )
            inputs[site.name] = args[0].detach()
            # The lowest module starts the graph: nothing below it is kept.
            outputs[site.name] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[site.name]

        return Hook(site.module, "after", after)

    def keep(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        below.append(host.anatomy.entering(args, kwargs).detach())

    answers = flat_rows([pairs[i] for i in part], width, batch.ids.device)
    with evaluating(host.model), frozen(host.model), torch.enable_grad():
        with OwnHooks([*hooks, *map(watch, sites)]):
            if held is None:
                with (
                    OwnHooks([Hook(host.anatomy.layers[low], "before", keep)]),
                    predicting(host, answers.flat),
                ):
                    logits = host.forward(host.model, batch).logits[0]
            else:
                run = partial(host.forward, host.model, batch)
                logits = resume(host.model, host.anatomy, low, held, run, answers.flat)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if len(inputs) < len(sites):
            missing = next(site.name for site in sites if site.name not in inputs)
            raise EditError(f"{missing} is not called in a forward; name other modules with modules=(...)")
        losses = F.cross_entropy(logits, answers.target, reduction="none")
        scale = GradientScale(host.model.dtype)
        slopes = scale.gradients((losses / answers.size).sum(), [outputs[s.name] for s in sites])
    if tokens == "answer":
        at, owner = answers.flat, answers.row
    else:
        real = batch.mask.bool()
        at, owner = real.flatten().nonzero()[:, 0], real.nonzero()[:, 0]
    names = torch.tensor(list(part), device=owner.device)
    wide = torch.promote_types(host.model.dtype, torch.float32)

    def rows(tensor: Tensor, width: int) -> Tensor:  # layers may lie on several devices
        return tensor.reshape(-1, width)[at.to(tensor.device)].to(at.device, wide)

    return Features(
        tuple(rows(inputs[s.name], s.d_k) for s in sites),
        tuple(rows(g, s.d_v) for g, s in zip(slopes, sites, strict=True)),
        names[owner],
        (below[0],),
        torch.ones(len(part), device=losses.device, dtype=torch.float32).scatter_reduce(
            0, answers.row, (-losses.detach()).exp().float(), "amin"
        ),
    )


class Answers(NamedTuple):
    """Where the answers' tokens are predicted: ``row``, ``flat`` (row * width + position), ``target`` token,
    ``size`` (the row's answer tokens, by which its losses are divided); int64 [P]."""

    row: Tensor
    flat: Tensor
    target: Tensor
    size: Tensor


def flat_rows(pairs: Sequence[Pair], width: int, device: torch.device) -> Answers:
    """The answer positions of right-padded rows of ``width`` columns, which lack each pair's last token."""
    row, flat, target, size = [], [], [], []
    for r, (ids, start) in enumerate(pairs):
        for t in range(start, len(ids)):
            row.append(r)
            flat.append(r * width + t - 1)
            target.append(ids[t])
            size.append(len(ids) - start)
    return Answers(
        torch.tensor(row, device=device),
        torch.tensor(flat, device=device),
        torch.tensor(target, device=device),
        torch.tensor(size, device=device),
    )


def predicting(host: Host, flat: Tensor) -> OwnHooks:
    """Inside the ``with`` the head computes logits [1,P,V] at the flat positions alone."""

    def narrow(_m: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
        return (args[0].flatten(0, 1)[flat.to(args[0].device)][None],), {}

    return OwnHooks([Hook(host.model.get_output_embeddings(), "before", narrow)])


def alike(lengths: Sequence[int], most: int, device: torch.device) -> list[list[int]]:
    """The rows in parts of like length, at most ``most`` in one, so that padding and forwards together cost
    the least.

    Args:
        lengths: tokens of each row.
        most: rows of a part.
        device: where the rows are run, which says what another forward costs.
    """
    if not lengths:
        return []
    cost = FORWARD_COSTS.get(device.type, 4096)
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    ends = [at for at in range(1, len(order)) if lengths[order[at]] > lengths[order[at - 1]]] + [len(order)]
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # by end, the cost so far and the ends chosen
    for end in ends:
        width = lengths[order[end - 1]]
        best[end] = min(
            (spent + cost * -(-(end - start) // most) + width * (end - start), [*cuts, end])
            for start, (spent, cuts) in best.items()
        )
    cuts = best[len(order)][1]
    return [
        part for start, end in zip([0, *cuts], cuts, strict=False) for part in chunks(order[start:end], most)
    ]


def chunks(items: Sequence[int], size: int) -> Iterator[list[int]]:
    """Runs of at most ``size``."""
    for at in range(0, len(items), size):
        yield list(items[at : at + size])
