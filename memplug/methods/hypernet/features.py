"""Features of edits: inputs of the edited modules at chosen tokens, and the loss's gradient at their outputs.

A request's loss is the mean over its own answer tokens and losses are summed, so that its features do not
depend on the requests beside it. Features are constants: nothing is differentiated through them.

Letters: M modules, n rows (tokens), P logits, R requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...edits import Edit, EditError
from ...interface import Host
from ...model.architecture import evaluating, frozen
from ...model.hooks import Hook, OwnHooks, resume
from ...text.chat import Prompt, question
from ...text.tokens import Pair, Text
from ...weights.modules import LinearModule
from ..inweights.rows import alike, flat_rows, predicting
from ..scaling import GradientScale

__all__ = ["Features", "Request", "capture", "requests"]


class Request(NamedTuple):
    """An edit in one of the forms in which it is asked; features are taken at the tokens ``at``."""

    pair: Pair
    at: list[int]


class Features(NamedTuple):
    """What edits are made from.

    Attributes:
        keys: of each module, [n,d_k], its inputs.
        gradients: of each module, [n,d_v], those of the loss at its outputs.
        owner: int64 [n], a row's request; or its edit, see `by_edit`.
        known: [R], the probability of the least likely token of each answer.
        below: by forward, the inputs [B,T,D] of the lowest module's layer.
    """

    keys: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    owner: Tensor
    known: Tensor
    below: tuple[Tensor, ...] = ()

    def by_edit(self, edits: Tensor) -> Features:
        """The same with requests named by ``edits`` [R], and ``known`` by edit, that of its worst request."""
        place = edits.unique(return_inverse=True)[1].to(self.known.device)
        worst = self.known.new_ones(int(place.max()) + 1)
        worst = worst.scatter_reduce(0, place, self.known, "amin")
        return self._replace(owner=edits.to(self.owner.device)[self.owner], known=worst)

    def of(self, edits: Tensor) -> Features:
        """The rows of these edits, by their numbers."""
        mine = torch.isin(self.owner, edits.to(self.owner.device))
        keys, gradients = (tuple(rows[mine] for rows in kind) for kind in (self.keys, self.gradients))
        return self._replace(keys=keys, gradients=gradients, owner=self.owner[mine])


def requests(text: Text, edit: Edit, forms: Sequence[Prompt], tokens: str) -> list[Request]:
    """An edit in these forms.

    Args:
        text: the model's tokenizer.
        edit: the edit.
        forms: its prompt, as a text, as a chat, or both.
        tokens: where features are taken: at those that predict the "answer", at "both" these and the
            subject's last one, or at "all". A subject that is a text's first token is left out where there
            is no BOS: the states there are nearly the same in all texts. A decoder that reads the prompt from
            an encoder has no token of the subject.

    Raises:
        TokenizerError, ChatTemplateError: as `Text.pair`.
    """
    found = []
    for form in forms:
        pair = text.pair(form, edit.target)
        first = 0 if tokens == "all" else pair.start - 1
        at = list(range(first, len(pair.ids) - 1))
        if tokens == "both" and edit.subject is not None and not pair.source:
            begin = len(question(form)) - len(edit.question) + edit.place.begin
            last = text.asked_span(form, begin, begin + len(edit.subject), edit.target)[1][-1]
            if last < first and (last or text.bos_id is not None):
                at.insert(0, last)
        found.append(Request(pair, at))
    return found


def capture(
    host: Host,
    sites: Sequence[LinearModule],
    asked: Sequence[Request],
    hooks: Sequence[Hook] = (),
    *,
    micro_batch: int = 256,
    below: Sequence[Tensor] = (),
) -> Features:
    """The features of requests at the weights as they are now.

    Args:
        host: the model.
        sites: the M modules.
        asked: the requests.
        hooks: what else is to happen in the forward (a change that is not yet in the weights).
        micro_batch: most requests in one forward.
        below: of earlier features of the same requests, if nothing but the modules has changed since; the
            layers below the modules are not run again.

    Raises:
        EditError: a feature is not finite, or a module was not called once on every token.
    """
    parts = alike([len(one.pair.ids) for one in asked], micro_batch, host.text.device)
    states: Sequence[Tensor | None] = below or [None] * len(parts)
    with evaluating(host.model), frozen(host.model), torch.enable_grad():
        found = [
            _capture(host, sites, [asked[i] for i in part], hooks, held)
            for part, held in zip(parts, states, strict=True)
        ]
    names = [torch.tensor(part, device=f.owner.device) for part, f in zip(parts, found, strict=True)]
    owner = torch.cat([name[f.owner] for name, f in zip(names, found, strict=True)])
    order = owner.argsort(stable=True)
    keys = tuple(torch.cat(rows)[order] for rows in zip(*(f.keys for f in found), strict=True))
    gradients = tuple(torch.cat(rows)[order] for rows in zip(*(f.gradients for f in found), strict=True))
    for site, rows in zip([*sites, *sites], [*keys, *gradients], strict=True):
        if not bool(torch.isfinite(rows).all()):
            raise EditError(
                f"the features of {site.name} are not finite; the model overflows on these prompts (half "
                "precision?) or its weights are broken. Nothing was changed"
            )
    known = torch.cat([f.known for f in found])[torch.cat(names).argsort()]
    return Features(keys, gradients, owner[order], known, tuple(f.below[0] for f in found))


def _capture(
    host: Host,
    sites: Sequence[LinearModule],
    asked: Sequence[Request],
    hooks: Sequence[Hook],
    held: Tensor | None,
) -> Features:
    """The features of one forward, requests numbered from 0."""
    pairs = [one.pair for one in asked]
    batch = host.text.batch([pair.read for pair in pairs])
    low = min(site.layer for site in sites)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    below = [] if held is None else [held]

    def watch(site: LinearModule) -> Hook:
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
        below.append(host.architecture.entering(args, kwargs).detach())

    answers = flat_rows(pairs, batch.ids.shape[1], batch.ids.device)
    run = partial(host.forward, host.model, batch)
    with OwnHooks([*hooks, *map(watch, sites)]):
        if held is None:
            with (
                OwnHooks([Hook(host.architecture.layers[low], "before", keep)]),
                predicting(host, answers.flat),
            ):
                logits = run().logits[0]
        else:
            logits = resume(host.model, host.architecture, low, held, run, answers.flat)
    missing = next((site.name for site in sites if site.name not in inputs), None)
    if missing is not None:
        raise EditError(f"{missing} is not called in a forward; name other modules with modules=(...)")
    wide = torch.promote_types(host.model.dtype, torch.float32)
    losses = F.cross_entropy(logits.to(wide), answers.target, reduction="none")
    scale = GradientScale(host.model.dtype)
    gradients = scale.gradients((losses / answers.size).sum(), [outputs[s.name] for s in sites])
    width = batch.ids.shape[1]
    at = torch.tensor([r * width + t for r, one in enumerate(asked) for t in one.at])

    def rows(tensor: Tensor, size: int) -> Tensor:  # layers may lie on several devices
        return tensor.reshape(-1, size)[at.to(tensor.device)].to(batch.ids.device, wide)

    known = torch.ones(len(asked), device=losses.device, dtype=torch.float32)
    return Features(
        tuple(rows(inputs[s.name], s.d_k) for s in sites),
        tuple(rows(g, s.d_v) for g, s in zip(gradients, sites, strict=True)),
        torch.tensor([r for r, one in enumerate(asked) for _ in one.at], device=batch.ids.device),
        known.scatter_reduce(0, answers.row, (-losses.detach()).exp().float(), "amin"),
        (below[0],),
    )
