"""Scores a model that holds edits: their own prompts, rephrasings, and everything that should have stayed.

The base model is asked only for the probes that an edit must not change, and only once: hand the
`Reference` in where several methods are scored on the same model and cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from ..edits import Case, Edit, Probe
from ..text.chat import Prompt, canonical, quoted
from ..text.tokens import Text
from .encoding import encode_pairs, shorten
from .metrics import perplexity, token_accuracy, token_agreement, whole_answer
from .probing import Forced, answer, teacher_force
from .scores import Answer, Group, Scores

__all__ = ["Edited", "Reference", "ask", "evaluate", "refer", "score"]

Asked = tuple[int, Group, Probe]
"""A case's index, what is tested, and the probe."""


class Edited(Protocol):
    """What `evaluate` needs of a plug."""

    @property
    def model(self) -> Any:
        """The edited causal language model."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""

    @property
    def edits(self) -> Mapping[Any, Edit]:
        """The edits it holds."""

    def paused(self) -> AbstractContextManager[Any]:
        """The base model, inside a ``with``."""


@dataclass(frozen=True)
class Reference:
    """What the base model does with probes.

    Attributes:
        texts: its own answers, by prompt; empty if nothing was generated.
        forced: what it thinks of each probe's target.
        max_new_tokens: the limit the answers were generated with.
        chat: whether the prompts that are texts were asked in the chat template.
    """

    texts: Mapping[Prompt, str]
    forced: Mapping[Probe, Forced]
    max_new_tokens: int
    chat: bool = False

    def answers(self, cases: Sequence[Case]) -> list[Answer]:
        """The base model's own rows, from a reference made for everything that is asked about ``cases``."""
        asked = _asked(_checked(cases, self.chat))
        texts = [self.texts.get(probe.prompt) for _, _, probe in asked]
        return _rows(asked, [self.forced[probe] for _, _, probe in asked], texts, self)


def evaluate(
    plug: Edited,
    cases: Sequence[Case],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    reference: Reference | None = None,
    chat: bool = False,
    progress: bool = False,
) -> Scores:
    """Score a plug that holds the edits of ``cases``, all of them at once.

    Args:
        plug: the plug; it is left as it is.
        cases: what to judge it by.
        batch_size: prompts run at once.
        max_new_tokens: where an answer that does not end by itself is cut off, the same for all
            prompts; 0 generates nothing, and the scores of generated answers are None.
        reference: the base model's answers, if `refer` has been run on these cases before.
        chat: ask every prompt that is a text as a single user turn, in the tokenizer's chat template. The
            edits may have been made in either form.
        progress: show bars.

    Returns:
        The scores; those without a probe are None.

    Raises:
        ValueError: no cases, a case whose edit the plug does not hold, a target that ``max_new_tokens``
            would cut off, a reference made for other probes, or a prompt the model has no room for.
        ChatTemplateError: messages, or ``chat``, and the tokenizer has no template that takes them.
    """
    cases = _checked(cases, chat)
    held = {(canonical(edit.prompt), edit.target) for edit in plug.edits.values()}
    missing = [case.edit for case in cases if (canonical(case.edit.prompt), case.edit.target) not in held]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(cases)} cases ask for edits that the plug does not hold (the first: "
            f"{quoted(missing[0].prompt)} -> {missing[0].target!r}); learn them with plug.edit(cases), "
            "or leave them out"
        )
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "progress": progress,
    }
    if reference is None:
        with plug.paused():
            reference = refer(plug.model, plug.tokenizer, cases, chat=chat, **options)
    elif reference.chat != chat:
        raise ValueError(
            f"the reference was made with chat={reference.chat}, this run has chat={chat}; use the same"
        )
    return score(plug.model, plug.tokenizer, cases, reference, **options)


def refer(
    model: Any,
    tokenizer: Any,
    cases: Sequence[Case],
    *,
    everything: bool = False,
    chat: bool = False,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    progress: bool = False,
) -> Reference:
    """Ask the base model for the locality and same-subject probes of ``cases``; see `evaluate`.

    Args:
        everything: ask all the other probes as well, so that every `Answer` also carries the base model's,
            and `Reference.answers` gives the base model's own rows.
        chat: as for `evaluate`; what the reference is used for is then asked in chat as well.
    """
    cases = _checked(cases, chat)
    check_targets(model, tokenizer, cases, max_new_tokens)
    probes = list(
        dict.fromkeys(probe for _, group, probe in _asked(cases) if everything or _must_stay(group))
    )
    forced, texts = _put(model, tokenizer, probes, batch_size, max_new_tokens, progress)
    prompts = (probe.prompt for probe in probes)
    known = {prompt: text for prompt, text in zip(prompts, texts, strict=True) if text is not None}
    return Reference(known, dict(zip(probes, forced, strict=True)), max_new_tokens, chat)


def score(
    model: Any,
    tokenizer: Any,
    cases: Sequence[Case],
    reference: Reference,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    progress: bool = False,
) -> Scores:
    """Score any model, the base model itself included, on ``cases``; arguments as for `evaluate`.

    Raises:
        ValueError: as for `evaluate`; whether the model holds the edits is not asked.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    return Scores.from_answers(ask(model, tokenizer, cases, reference, **options, progress=progress))


def ask(
    model: Any,
    tokenizer: Any,
    cases: Sequence[Case],
    reference: Reference,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    progress: bool = False,
) -> list[Answer]:
    """The rows that `score` makes its scores of, in the order of the cases."""
    cases = _checked(cases, reference.chat)
    check_targets(model, tokenizer, cases, max_new_tokens)
    asked = _asked(cases)
    _check_reference(reference, asked, max_new_tokens)
    probes = [probe for _, _, probe in asked]
    forced, texts = _put(model, tokenizer, probes, batch_size, max_new_tokens, progress)
    return _rows(asked, forced, texts, reference)


def _put(
    model: Any,
    tokenizer: Any,
    probes: Sequence[Probe],
    batch_size: int,
    max_new_tokens: int,
    progress: bool,
) -> tuple[list[Forced], Sequence[str | None]]:
    """What the model thinks of the probes' targets, and its own answers (None where none are wanted)."""
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    forced = teacher_force(model, tokenizer, probes, **options)
    if not max_new_tokens:
        return forced, [None] * len(probes)
    prompts = [probe.prompt for probe in probes]
    return forced, answer(model, tokenizer, prompts, max_new_tokens=max_new_tokens, **options)


def _rows(
    asked: Sequence[Asked],
    forced: Sequence[Forced],
    texts: Sequence[str | None],
    reference: Reference,
) -> list[Answer]:
    rows = []
    for (index, group, probe), found, text in zip(asked, forced, texts, strict=True):
        base = reference.forced[probe].predicted if _must_stay(group) else None
        rows.append(
            Answer(
                case=index,
                group=group,
                prompt=probe.prompt,
                target=probe.target,
                tokens=token_accuracy(found.predicted, found.target),
                whole=whole_answer(found.predicted, found.target),
                perplexity=perplexity(found.log_probs),
                text=text,
                base_text=reference.texts.get(probe.prompt),
                agreement=None if base is None else token_agreement(found.predicted, base),
            )
        )
    return rows


def _asked(cases: Sequence[Case]) -> list[Asked]:
    return [(index, group, probe) for index, case in enumerate(cases) for group, probe in _probes(case)]


def _probes(case: Case) -> Iterator[tuple[Group, Probe]]:
    """Everything that is asked about one case, in the order of the scores."""
    target = case.edit.target
    yield "efficacy", Probe(case.edit.prompt, target)
    for prompt in case.rephrases:
        yield "generalization", Probe(prompt, target)
    for probe in case.locality:
        yield "specificity", Probe(*probe)
    for probe in case.same_subject:
        yield "same_subject", Probe(*probe)
    for probe in case.portability:
        yield "portability", Probe(*probe)


def _must_stay(group: Group) -> bool:
    return group in ("specificity", "same_subject")


def _checked(cases: Sequence[Case], chat: bool = False) -> list[Case]:
    cases = list(cases)
    if not cases:
        raise ValueError("there are no cases to evaluate; give at least one Case")
    for case in cases:
        if not isinstance(case, Case):
            raise ValueError(f"expected a Case, got {type(case).__name__}; wrap an edit: Case(edit)")
    return [case.in_chat() for case in cases] if chat else cases


def check_targets(model: Any, tokenizer: Any, cases: Sequence[Case], max_new_tokens: int) -> None:
    """A target that cannot be generated in full would score 0 whatever the model does.

    Raises:
        TokenizerError: a prompt with its answer does not fit the model's context, or an answer has no tokens.
        ValueError: ``max_new_tokens`` is too small for a target.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; give a whole number, 0 to generate nothing")
    probes = list(dict.fromkeys(probe for case in cases for _, probe in _probes(case)))
    pairs = encode_pairs(Text(model, tokenizer), probes)
    longest = max(range(len(probes)), key=lambda i: len(pairs[i].ids) - pairs[i].start)
    needed = len(pairs[longest].ids) - pairs[longest].start + 1
    if 0 < max_new_tokens < needed:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens}, but the target {shorten(probes[longest].target)!r} and "
            f"the token that ends it take {needed}; raise it to {needed} or more (0 generates nothing)"
        )


def _check_reference(reference: Reference, asked: Sequence[Asked], max_new_tokens: int) -> None:
    if reference.max_new_tokens != max_new_tokens:
        raise ValueError(
            f"the reference was generated with max_new_tokens={reference.max_new_tokens}, this run has "
            f"{max_new_tokens}; use the same number"
        )
    for _, group, probe in asked:
        if _must_stay(group) and probe not in reference.forced:
            raise ValueError(
                f"the reference knows nothing of {quoted(probe.prompt)}; make it with refer(...) on these "
                "cases"
            )
