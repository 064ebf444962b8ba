"""Contexts that ask an edit's question, and what the model computes at the subject's last token in them.

A context is the prompt in plain text, in the chat template, or behind a sampled text: the edit has to hold in
all of them. Where a tokenizer adds no BOS, the first token of a text is an attention sink, whose states are
nearly the same whatever it is: nothing is read or written there as long as another context will do.

Letters: E edits, N rows, G groups of rows (an edit's contexts of one kind), D width, d_k a module's input
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...edits import Edit, EditError
from ...interface import Host
from ...model.hooks import Hook, OwnHooks, capture_input
from ...retrieval.neutral_texts import MENTIONS, REQUESTS, some
from ...retrieval.relations import wordings
from ...text.chat import Prompt, behind, in_chat, question, with_question
from ...text.tokens import Text
from ...weights.modules import LinearModule
from ..inweights.rows import chunks

__all__ = [
    "Context",
    "Row",
    "Seen",
    "contexts",
    "first_rows",
    "kept_rows",
    "look",
    "means",
    "owners",
    "subject_at",
    "subject_rows",
]

_ANSWER = 64  # tokens that an answer may need behind a context other than the edit's own prompt


class Context(NamedTuple):
    """A prompt, and its ``kind``: 0 plain, 1 in the chat template, 2 behind a sampled text."""

    prompt: Prompt
    kind: int


class Row(NamedTuple):
    """``ids`` of a text; ``at``, the subject's last token; ``edit``, whose row it is; ``kind`` of its
    context."""

    ids: list[int]
    at: int
    edit: int
    kind: int


class Seen(NamedTuple):
    """At each row's subject: ``inputs`` [N,d_k] of a module and ``hidden`` [N,D] behind the last edited
    layer, float32 or wider."""

    inputs: Tensor
    hidden: Tensor


def contexts(text: Text, edit: Edit, prefixes: Sequence[str]) -> list[Context]:
    """Where the edit is to hold; its own prompt comes first unless the subject is the first token of it.

    What is too long for the model's context is left out.

    Raises:
        TokenizerError: the prompt itself is longer than the model's context.
    """
    forms: list[Prompt] = text.forms(edit.prompt)
    found = [Context(form, int(not isinstance(form, str))) for form in forms]
    found += [Context(behind(front, edit.prompt), 2) for front in prefixes]
    good: list[Context] = []
    first: list[Context] = []
    for context in found:
        ids, at = subject_at(text, context.prompt, edit)
        if context.prompt is edit.prompt:
            text.check_length(ids, edit.prompt)
        elif len(ids) + _ANSWER >= text.max_length:
            continue
        (good if at or ids[:1] == [text.bos_id] else first).append(context)
    return good or first


def subject_at(text: Text, prompt: Prompt, edit: Edit, target: str | None = None) -> tuple[list[int], int]:
    """Ids of a context of the edit, with ``target`` behind it, and the subject's last token in it."""
    begin = len(question(prompt)) - len(edit.question) + edit.place.begin
    ids, span = text.asked_span(prompt, begin, begin + len(str(edit.subject)), target)
    return ids, span[-1]


def subject_rows(text: Text, edits: Sequence[Edit], prefixes: Sequence[str]) -> list[Row]:
    """Each edit's `contexts`, cut behind the subject's last token: what comes after cannot matter to a causal
    model. The first place where the subject is named counts.

    Raises:
        TokenizerError: as for `contexts`.
    """
    rows = []
    for index, edit in enumerate(edits):
        for prompt, kind in contexts(text, edit, prefixes):
            ids, at = subject_at(text, prompt, edit)
            rows.append(Row(ids[: at + 1], at, index, kind))
    return rows


def kept_rows(text: Text, edit: Edit, count: int, seed: int) -> list[tuple[list[int], int]]:
    """Ids and the subject's last token of "<subject> is a" (as published) and ``count`` other neutral texts,
    in turn statements, passing mentions and, where there is a chat template, questions and requests."""
    subject, prompts = str(edit.subject), list[Prompt](["{s} is a"])
    known = wordings()
    statements, questions = ([one.text for one in known if one.open == kind] for kind in (True, False))
    kinds: list[tuple[Sequence[str], bool]] = [(statements, False), (MENTIONS, False)]
    if text.has_chat:
        kinds = [(statements, False), (REQUESTS, True), (MENTIONS, False), (questions, True)]
    for n in range(count):
        kind, chat = kinds[n % len(kinds)]
        drawn = some(kind, count, seed, subject)
        wording = drawn[n // len(kinds) % len(drawn)]
        prompts.append(in_chat(wording) if chat else wording)
    found: list[tuple[list[int], int]] = []
    for prompt in prompts:
        wording = question(prompt)
        begin = wording.index("{s}")
        filled = with_question(prompt, wording.replace("{s}", subject))
        ids, span = text.asked_span(filled, begin, begin + len(subject))
        if len(ids) < text.max_length and (span[-1] or ids[:1] == [text.bos_id] or not found):
            found.append((ids, span[-1]))
    return found[1:] if len(found) > 1 and not found[0][1] and text.bos_id is None else found


@torch.no_grad()
def look(
    host: Host, rows: Sequence[Row], site: LinearModule, layer: int, hooks: Sequence[Hook], micro_batch: int
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
            after = capture_input(
                host.architecture, layer + 1, partial(host.forward, host.architecture.decoder, batch)
            )
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


def means(values: Tensor, rows: Sequence[Row]) -> Tensor:
    """[G,*]: the means of ``values`` [N,*] over an edit's contexts of a kind, in the order of `owners`.

    Published, a key is the mean over all contexts (MEMIT, section 4.3); those in a chat template and in plain
    text are so far apart that what is written for their mean is met by neither.
    """
    groups = [(row.edit, row.kind) for row in rows]
    order = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    place = torch.tensor([order[group] for group in groups], device=values.device)
    total = values.new_zeros(len(order), values.shape[1]).index_add(0, place, values)
    return total / torch.bincount(place).to(values.dtype)[:, None]


def owners(rows: Sequence[Row]) -> Tensor:
    """LongTensor [G]: the edit of each group of contexts."""
    return torch.tensor([edit for edit, _ in dict.fromkeys((row.edit, row.kind) for row in rows)])


def first_rows(rows: Sequence[Any], device: torch.device) -> Tensor:
    """LongTensor [E]: each edit's first row, at which its wanted state is told."""
    edits = [row.edit for row in rows]
    return torch.tensor([edits.index(edit) for edit in dict.fromkeys(edits)], device=device)
