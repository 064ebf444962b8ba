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
from ..text import Text
from .encoding import encode_pairs, shorten
from .metrics import perplexity, token_accuracy, token_agreement, whole_answer
from .probing import answer, teacher_force
from .scores import Answer, Group, Scores

__all__ = ["Edited", "Reference", "evaluate", "refer", "score"]


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
    """What the base model does with the probes that an edit must not change.

    Attributes:
        texts: its own answers, by prompt; empty if nothing was generated.
        predicted: its first choices under teacher forcing, by probe.
        max_new_tokens: the limit the answers were generated with.
    """

    texts: Mapping[str, str]
    predicted: Mapping[Probe, tuple[int, ...]]
    max_new_tokens: int


def evaluate(
    plug: Edited,
    cases: Sequence[Case],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    reference: Reference | None = None,
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
        progress: show bars.

    Returns:
        The scores; those without a probe are None.

    Raises:
        ValueError: no cases, a case whose edit the plug does not hold, a target that ``max_new_tokens``
            would cut off, a reference made for other probes, or a prompt the model has no room for.
    """
    cases = _checked(cases)
    held = {(edit.prompt, edit.target) for edit in plug.edits.values()}
    missing = [case.edit for case in cases if (case.edit.prompt, case.edit.target) not in held]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(cases)} cases ask for edits that the plug does not hold (the first: "
            f"{missing[0].prompt!r} -> {missing[0].target!r}); learn them with plug.edit(cases), "
            "or leave them out"
        )
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "progress": progress,
    }
    if reference is None:
        with plug.paused():
            reference = refer(plug.model, plug.tokenizer, cases, **options)
    return score(plug.model, plug.tokenizer, cases, reference, **options)


def refer(
    model: Any,
    tokenizer: Any,
    cases: Sequence[Case],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    progress: bool = False,
) -> Reference:
    """Ask the base model for the locality and same-subject probes of ``cases``; see `evaluate`."""
    cases = _checked(cases)
    _check_targets(model, tokenizer, cases, max_new_tokens)
    probes = [probe for case in cases for group, probe in _probes(case) if _must_stay(group)]
    forced = teacher_force(model, tokenizer, probes, batch_size=batch_size, progress=progress)
    prompts = [probe.prompt for probe in probes] if max_new_tokens else []
    texts = (
        answer(
            model,
            tokenizer,
            prompts,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
        if prompts
        else []
    )
    predicted = {probe: found.predicted for probe, found in zip(probes, forced, strict=True)}
    return Reference(dict(zip(prompts, texts, strict=True)), predicted, max_new_tokens)


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
    cases = _checked(cases)
    _check_targets(model, tokenizer, cases, max_new_tokens)
    asked = [(index, group, probe) for index, case in enumerate(cases) for group, probe in _probes(case)]
    _check_reference(reference, asked, max_new_tokens)
    probes = [probe for _, _, probe in asked]
    forced = teacher_force(model, tokenizer, probes, batch_size=batch_size, progress=progress)
    texts: Sequence[str | None] = [None] * len(probes)
    if max_new_tokens:
        texts = answer(
            model,
            tokenizer,
            [probe.prompt for probe in probes],
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
    answers = []
    for (index, group, probe), found, text in zip(asked, forced, texts, strict=True):
        stays = _must_stay(group)
        answers.append(
            Answer(
                case=index,
                group=group,
                prompt=probe.prompt,
                target=probe.target,
                tokens=token_accuracy(found.predicted, found.target),
                whole=whole_answer(found.predicted, found.target),
                perplexity=perplexity(found.log_probs),
                text=text,
                base_text=reference.texts.get(probe.prompt) if stays else None,
                agreement=token_agreement(found.predicted, reference.predicted[probe]) if stays else None,
            )
        )
    return Scores.from_answers(answers)


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


def _checked(cases: Sequence[Case]) -> list[Case]:
    cases = list(cases)
    if not cases:
        raise ValueError("there are no cases to evaluate; give at least one Case")
    for case in cases:
        if not isinstance(case, Case):
            raise ValueError(f"expected a Case, got {type(case).__name__}; wrap an edit: Case(edit)")
    return cases


def _check_targets(model: Any, tokenizer: Any, cases: Sequence[Case], max_new_tokens: int) -> None:
    """A target that cannot be generated in full would score 0 whatever the model does."""
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


def _check_reference(
    reference: Reference, asked: Sequence[tuple[int, Group, Probe]], max_new_tokens: int
) -> None:
    if reference.max_new_tokens != max_new_tokens:
        raise ValueError(
            f"the reference was generated with max_new_tokens={reference.max_new_tokens}, this run has "
            f"{max_new_tokens}; use the same number"
        )
    for _, group, probe in asked:
        if _must_stay(group) and probe not in reference.predicted:
            raise ValueError(
                f"the reference knows nothing of {probe.prompt!r}; make it with refer(...) on these cases"
            )
