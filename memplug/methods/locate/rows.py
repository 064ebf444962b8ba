"""Texts that name an edit's subject, and what the model computes at the subject's last token.

Letters: E edits, N rows, D width, d_k a module's input width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...chat import behind, question
from ...edits import Edit, EditError
from ...hooks import Hook, OwnHooks, capture_input
from ...sites import Site
from ...text import Text
from ..base import Host
from ..hypernet.capture import chunks

__all__ = ["Row", "Seen", "look", "mean_keys", "subject_rows"]


class Row(NamedTuple):
    """``ids`` of a text; ``at``, the subject's last token; ``edit``, whose row it is; ``bare``, whether the
    prompt stands alone in it."""

    ids: list[int]
    at: int
    edit: int
    bare: bool


class Seen(NamedTuple):
    """At each row's subject: ``inputs`` [N,d_k] of a module and ``hidden`` [N,D] behind the last edited
    layer, float32 or wider."""

    inputs: Tensor
    hidden: Tensor


def subject_rows(text: Text, edits: Sequence[Edit], prefixes: Sequence[str]) -> list[Row]:
    """Each edit's bare prompt and its prompt behind each prefix, cut behind the subject's last token.

    What comes after cannot matter to a causal model. The first place where the subject is named counts.

    Raises:
        TokenizerError: a row is longer than the model's context.
    """
    rows = []
    for index, edit in enumerate(edits):
        subject = str(edit.subject)
        for front in ("", *prefixes):
            whole = behind(front, edit.prompt)
            begin = len(question(whole)) - len(edit.question) + edit.place.begin
            ids, span = text.asked_span(whole, begin, begin + len(subject))
            if not front or len(ids) < text.max_length:
                text.check_length(ids, whole)
                rows.append(Row(ids[: span[-1] + 1], span[-1], index, not front))
    return rows


@torch.no_grad()
def look(
    host: Host, rows: Sequence[Row], site: Site, layer: int, hooks: Sequence[Hook], micro_batch: int
) -> Seen:
    """What the module reads and the layers up to ``layer`` give at each row's subject.

    Args:
        hooks: changes that are not yet in the weights.

    Raises:
        EditError: the module is not called once on every token, or something is not finite.
    """
    inputs: list[Tensor] = []
    hidden: list[Tensor] = []
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for part in chunks(order, micro_batch):
        batch = host.text.batch([rows[i].ids for i in part])
        found: list[Tensor] = []

        def take(
            _m: nn.Module, args: tuple[Any, ...], _k: dict[str, Any], found: list[Tensor] = found
        ) -> None:
            found.append(args[0])

        with OwnHooks([*hooks, Hook(site.module, "before", take)]):
            after = capture_input(host.anatomy, layer + 1, partial(host.forward, host.anatomy.decoder, batch))
        if len(found) != 1 or found[0].shape[:-1].numel() != batch.ids.numel():
            raise EditError(
                f"{site.name} is not called once on every token; name other modules with modules=(...)"
            )
        at = torch.tensor([r * batch.ids.shape[1] + rows[i].at for r, i in enumerate(part)])
        wide = torch.promote_types(after.dtype, torch.float32)
        inputs.append(found[0].reshape(-1, site.d_k)[at.to(found[0].device)].to(wide))
        hidden.append(after.flatten(0, 1)[at.to(after.device)].to(wide))
    back = torch.tensor(order).argsort()
    seen = Seen(torch.cat(inputs)[back.to(inputs[0].device)], torch.cat(hidden)[back.to(hidden[0].device)])
    if not all(bool(torch.isfinite(one).all()) for one in seen):
        raise EditError(
            f"what the model computes up to {site.name} is not finite; it overflows on these prompts (half "
            "precision?) or its weights are broken. Nothing was changed"
        )
    return seen


def mean_keys(inputs: Tensor, rows: Sequence[Row], count: int) -> Tensor:
    """[E,d_k]: each edit's key; the bare prompt counts as much as all prefixes together (MEMIT, section 4.3
    leaves the weights open)."""
    owner = torch.tensor([row.edit for row in rows], device=inputs.device)
    bare = torch.tensor([row.bare for row in rows], device=inputs.device)
    means = []
    for mine in (bare, ~bare):
        size = torch.bincount(owner[mine], minlength=count).to(inputs.dtype)[:, None]
        total = inputs.new_zeros(count, inputs.shape[1]).index_add(0, owner[mine], inputs[mine])
        means.append((total / size.clamp(min=1), size > 0))
    (alone, _), (behind, any_) = means
    return torch.where(any_, (alone + behind) / 2, alone)
