"""CounterFact's comparison of the new answer with the old one, in both senses, over the cases of a run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from ..evaluation import bootstrap, prefer
from ..text.chat import Prompt
from ..text.tokens import Text, TokenizerError
from .context import RunContext
from .folder import plain

__all__ = ["preferences"]


class _Pair(NamedTuple):
    """A prompt of one case, the answer that should be likelier there, and the other."""

    case: int
    prompt: Prompt
    wanted: str
    other: str


def preferences(context: RunContext) -> dict[str, Any] | None:
    """`sequence_preference` ("rome") and `positionwise_preference` ("rledit") of the model as it is.

    Efficacy and generalization ask whether the new answer is likelier than the one before the edit: the data
    set's true answer or, where it gives none, the base model's own. Neighborhood asks of each unrelated
    probe whether its own answer is likelier than the edit's new one. Cases without an answer before the
    edit, or whose two answers are the same, are left out, and so are prompts that leave no room for an
    answer in the model's context (``too_long``: how many); None where no edit is left.
    """
    drawn, settings = context.drawn, context.settings
    groups: dict[str, list[_Pair]] = {"efficacy": [], "generalization": [], "neighborhood": []}
    for index, (case, truths) in enumerate(zip(drawn.cases, drawn.truths, strict=True)):
        edit = case.edit
        old = truths[0] if truths else context.reference.texts.get(edit.prompt, "")
        if not old.strip() or old.strip() == edit.target:
            continue
        groups["efficacy"].append(_Pair(index, edit.prompt, edit.target, old))
        groups["generalization"] += [_Pair(index, prompt, edit.target, old) for prompt in case.rephrases]
        others = [probe for probe in case.locality if probe.target != edit.target]
        groups["neighborhood"] += [_Pair(index, p.prompt, p.target, edit.target) for p in others]
    text = Text(context.model, context.tokenizer)
    fitting = {name: [pair for pair in pairs if _fits(text, pair)] for name, pairs in groups.items()}
    if not fitting["efficacy"]:
        return None
    found: dict[str, Any] = {"rome": {}, "rledit": {}}
    for name, pairs in fitting.items():
        columns = list(zip(*(pair[1:] for pair in pairs), strict=True)) or [(), (), ()]
        made = prefer(context.model, context.tokenizer, *columns, batch_size=settings.batch_size)
        for sense, attribute in (("rome", "sequence"), ("rledit", "positionwise")):
            by_case: dict[int, list[float]] = defaultdict(list)
            for pair, one in zip(pairs, made, strict=True):
                by_case[pair.case].append(float(getattr(one, attribute)))
            score = bootstrap([sum(its) / len(its) for its in by_case.values()], level=settings.level)
            found[sense][name] = None if score is None else plain(score._asdict())
    from_data = sum(bool(drawn.truths[pair.case]) for pair in fitting["efficacy"])
    found["before"] = {"data": from_data, "base model": len(fitting["efficacy"]) - from_data}
    too_long = sum(map(len, groups.values())) - sum(map(len, fitting.values()))
    return found | ({"too_long": too_long} if too_long else {})


def _fits(text: Text, pair: _Pair) -> bool:
    """Whether the prompt with either answer fits into the model's context."""
    try:
        return all(text.pair(pair.prompt, answer) for answer in (pair.wanted, pair.other))
    except TokenizerError:
        return False
