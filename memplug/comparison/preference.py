"""CounterFact's comparison of the new answer with the old one, in both senses, over the cases of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..chat import Prompt
from ..evaluation import Reference, bootstrap, prefer
from ..text import Text, TokenizerError
from .casebook import Drawn
from .folder import plain
from .settings import Settings

__all__ = ["preferences"]


class _Pair(NamedTuple):
    """A prompt of one case, the answer that should be likelier there, and the other."""

    case: int
    prompt: Prompt
    wanted: str
    other: str


def preferences(
    model: Any, tokenizer: Any, drawn: Drawn, reference: Reference, settings: Settings
) -> dict[str, Any] | None:
    """`sequence_preference` ("rome") and `positionwise_preference` ("rledit") of the model as it is.

    Efficacy and generalization ask whether the new answer is likelier than the one before the edit: the data
    set's true answer or, where it gives none, the base model's own. Neighborhood asks of each unrelated
    probe whether its own answer is likelier than the edit's new one. Cases without an answer before the
    edit, or whose two answers are the same, are left out, and so are prompts that leave no room for an
    answer in the model's context (``too_long``: how many); None where no edit is left.
    """
    text = Text(model, tokenizer)
    groups: dict[str, list[_Pair]] = {"efficacy": [], "generalization": [], "neighborhood": []}
    for index, (case, truths) in enumerate(zip(drawn.cases, drawn.truths, strict=True)):
        edit = case.edit
        old = truths[0] if truths else reference.texts.get(edit.prompt, "")
        if not old.strip() or old.strip() == edit.target:
            continue
        groups["efficacy"].append(_Pair(index, edit.prompt, edit.target, old))
        groups["generalization"] += [_Pair(index, p, edit.target, old) for p in case.rephrases]
        groups["neighborhood"] += [
            _Pair(index, probe.prompt, probe.target, edit.target)
            for probe in case.locality
            if probe.target != edit.target
        ]
    fitting = {name: [pair for pair in pairs if _fits(text, pair)] for name, pairs in groups.items()}
    too_long = sum(map(len, groups.values())) - sum(map(len, fitting.values()))
    if not fitting["efficacy"]:
        return None
    found: dict[str, Any] = {"rome": {}, "rledit": {}}
    for name, pairs in fitting.items():
        made = prefer(
            model,
            tokenizer,
            [pair.prompt for pair in pairs],
            [pair.wanted for pair in pairs],
            [pair.other for pair in pairs],
            batch_size=settings.batch_size,
        )
        for sense, values in (
            ("rome", [float(one.sequence) for one in made]),
            ("rledit", [one.positionwise for one in made]),
        ):
            score = bootstrap(_by_case(pairs, values), level=settings.level)
            found[sense][name] = None if score is None else plain(score._asdict())
    from_data = sum(bool(drawn.truths[pair.case]) for pair in fitting["efficacy"])
    found["before"] = {"data": from_data, "base model": len(fitting["efficacy"]) - from_data}
    if too_long:
        found["too_long"] = too_long
    return found


def _fits(text: Text, pair: _Pair) -> bool:
    """Whether the prompt with either answer fits into the model's context."""
    try:
        return all(text.pair(pair.prompt, answer) for answer in (pair.wanted, pair.other))
    except TokenizerError:
        return False


def _by_case(pairs: Sequence[_Pair], values: Sequence[float]) -> list[float]:
    """One mean a case."""
    gathered: dict[int, list[float]] = {}
    for pair, value in zip(pairs, values, strict=True):
        gathered.setdefault(pair.case, []).append(value)
    return [sum(found) / len(found) for found in gathered.values()]
